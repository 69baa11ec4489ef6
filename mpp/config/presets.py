"""Presets: TOML files of options, named by path or, if they come with the toolkit, by name alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mpp.errors import UserError
from mpp.files import is_special, shipped

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def presets() -> dict[str, Path]:
    """The presets that come with the toolkit: name -> file."""
    return {path.stem: path for path in sorted(shipped("recipes/presets").glob("*.toml"))}


def purpose(preset: Path) -> str:
    """What a preset is for: the first sentence of the comment at its head."""
    comment = []
    for line in preset.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            comment.append(line.removeprefix("#").strip())
        elif comment:
            break
    return " ".join(comment).partition(". ")[0].rstrip(".") + "."


def find_preset(name: str, beside: Path = Path()) -> Path:
    """The file that --config or `base` names: a path (from the folder `beside`), or a preset that comes along."""
    if (file := beside / name).exists() or Path(name).name != name:
        return file
    return presets().get(name.removesuffix(".toml"), file)


def read_toml(path: str | Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The options of a preset or a run, on top of those of its `base`, another preset. Raises UserError if a file is
    missing or is not TOML."""
    try:
        file = find_preset(str(path), above[-1].parent if above else Path())
        if file.resolve() in above:
            raise UserError(f"--config {above[0]}: its base leads back to {file}; a preset cannot build on itself")
        if is_special(file):
            raise UserError(f"--config {path} is a pipe, a socket or a device; give a file")
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        known = f"; presets by name: {', '.join(presets())}" if Path(path).name == str(path) else ""
        raise UserError(f"--config {path}: {error.strerror}{known}") from error
    except (ValueError, RecursionError) as error:  # of TOML, of the encoding, of a name or a nesting that cannot be
        raise UserError(f"--config {path} is not TOML: {error}") from error
    if isinstance(base := values.pop("base", None), str):
        return merged(read_toml(base, (*above, file.resolve())), values)
    if base is not None:
        raise UserError(f"--config {path}: base {base!r} must be the name or path of another preset")
    return values


def merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Nested options `under`, with those of `over` in their place."""
    nested = {
        name for name in under.keys() & over.keys() if isinstance(under[name], dict) and isinstance(over[name], dict)
    }
    under = {
        name: value for name, value in under.items() if {"steps": "epochs", "epochs": "steps"}.get(name) not in over
    }
    return under | over | {name: merged(under[name], over[name]) for name in nested}
