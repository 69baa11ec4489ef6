"""Files that are there as a whole or not at all, and their checksums."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import secrets
import shutil
import stat
from pathlib import Path
from typing import Any

_DRAFT = re.compile(r".+\.[0-9a-f]{16}\.tmp|step_\d{8}\.tmp|shards\.tmp")  # the last two: of older versions


def write_whole(path: Path, content: bytes, overwrite: bool = True) -> None:
    """Write a file so that readers see the old content or the new, never a part. What lies at `path` is replaced: a
    link is not followed. Without `overwrite`, raises FileExistsError if something lies there."""
    draft = draft_of(path)
    try:
        with open(draft, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if not overwrite and os.path.lexists(path):
            raise FileExistsError(f"{path} exists")
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def csv_cell(value: Any) -> Any:
    """A cell of a table that spreadsheets open: a text that they would take for a formula has a ' before it; a number
    stays one, and one that is not finite is left out."""
    if isinstance(value, float) and not math.isfinite(value):
        return ""
    if not isinstance(value, str) or not re.match(r"[\t\r\n]|\s*[=+@-]", value):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def as_json(value: Any, indent: int | None = None) -> str:
    """A value as JSON, which has no NaN and no infinity: null takes the place of such a number."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def draft_of(path: Path) -> Path:
    """A name beside `path` for what will take its place. Nobody can guess it and put a link there."""
    return path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")


def is_draft(path: Path) -> bool:
    """Whether a name is one of `draft_of`."""
    return _DRAFT.fullmatch(path.name) is not None


def clear_drafts(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder and below; other names stay, and links too."""
    for here, folders, files in os.walk(folder):
        for path in (Path(here, name) for name in [*folders, *files]):
            if is_draft(path) and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        folders[:] = [name for name in folders if not is_draft(Path(name))]


def ordinary_modes(folder: Path) -> None:
    """Give the files of a folder the modes that new files have: safetensors writes for the owner alone."""
    mask = os.umask(0o077)
    os.umask(mask)
    for path in folder.iterdir():
        if stat.S_ISREG(path.lstat().st_mode):
            path.chmod(0o666 & ~mask)


def is_special(path: Path) -> bool:
    """Whether a path leads to a pipe, a socket or a device: a reader may wait for it for ever."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def sha256_of(path: Path) -> str:
    """The checksum of a file, read in parts."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def flush(path: Path) -> None:
    """Have a file or folder on the disk itself, not only in the system's cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def shipped(folder: str) -> Path:
    """A folder of the repository ("recipes/presets", "tools"), which a wheel carries inside the package."""
    package = Path(__file__).parent
    inside = package / Path(folder).name
    return inside if inside.is_dir() else package.parent / folder
