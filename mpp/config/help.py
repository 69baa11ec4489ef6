"""`--help`, the options that most people need, and `--help-all`, all of them, from the texts beside the options."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from mpp.config.bounds import OneOf, Options, option_name
from mpp.config.words import SHORT

_WIDTH = 80
_FEW = 30  # options that --help lists in full
_MAIN = {
    *("data.path", "data.labels", "data.hold_out", "data.eval_split", "init", "method", "mpp", "supervised", "arms"),
    *(
        "over",
        "equal",
        "parts",
        "arm",
        "curves",
        "steps",
        "shares",
        "pretrain_seeds",
        "labels",
        "seeds",
        "model.variant",
        "model.img_size",
        "model.patch_size",
        "train.steps",
        "train.epochs",
    ),
    *("train.batch_size", "optim.lr", "eval.probe", "eval_only", "output", "config", "resume", "seed", "dry_run"),
}
_TYPES = {int: "INT", float: "FLOAT", str: "TEXT"}


@dataclasses.dataclass(frozen=True)
class Option:
    """An option as --help shows it: its name ("train.steps"), type, default and text, and its group with a text."""

    name: str
    hint: Any
    default: Any
    text: str
    group: str
    about: str


def help_of(kind: type[Options], prog: str, in_place: Sequence[str], every: bool) -> str:
    """The help of a command: every option, or those that most people need."""
    options = list(_options(kind()))
    shown = options if every or len(options) <= _FEW else [option for option in options if option.name in _MAIN]
    values = " ".join(f"[{option.rpartition('--')[2].partition('.')[0].upper()}]" for option in in_place)
    lines = [f"usage: {' '.join(filter(None, [prog, values, '[OPTIONS]']))}", ""]
    for paragraph in inspect.cleandoc(kind.__doc__ or "").split("\n\n"):
        example = paragraph.startswith("  ")  # commands to copy, each on a line of its own
        lines += paragraph.splitlines() if example else _wrapped(paragraph)
        lines.append("")
    lines.pop()
    group = None
    for option in shown:
        if option.group != group and not option.about:
            lines.append("")
        elif option.group != group:
            lines += ["", *_wrapped(f"{option.group}: {option.about}")]
        group = option.group
        lines += ["  " + _usage(option, options), *_wrapped(_text(option), "      ")]
    if len(shown) < len(options):
        lines += ["", *_wrapped(f"`{prog} --help-all` explains all {len(options)} options.")]
    return "\n".join(lines)


def _options(config: Options, group: str = "") -> Iterator[Option]:
    """Every option of a command, those without a group first."""
    from tyro._docstrings import get_field_docstring  # private in tyro 1.0, as `tyro._errors`

    hints, groups = get_type_hints(type(config), include_extras=True), []
    for name in (field.name for field in dataclasses.fields(config)):
        value: Any = getattr(config, name)
        text = get_field_docstring(type(config), name, ()) or ""
        if dataclasses.is_dataclass(value):
            groups.append((name, value))
        else:
            about = (type(config).__doc__ or "").strip() if group else ""
            yield Option(f"{group}{name}", hints[name], value, text, group.rstrip("."), about)
    for name, value in groups:
        yield from _options(value, f"{group}{name}.")


def _usage(option: Option, options: list[Option]) -> str:
    names = [option_name(option.name)]
    if isinstance(option.default, bool):
        group, dot, last = option.name.rpartition(".")
        names.append(option_name(f"{group}{dot}no_{last}"))
    known = [other.name for other in options]
    names += [option_name(short) for short, long in SHORT.items() if long == option.name and short not in known]
    return f"{', '.join(names)} {_values(option.hint)}".rstrip()


def _values(hint: Any) -> str:
    """What an option takes: INT, {auto,pad}, FLOAT FLOAT, INT ..."""
    parts = get_args(hint)
    if choices := [
        name for note in getattr(hint, "__metadata__", ()) if isinstance(note, OneOf) for name in note.names
    ]:
        return f"{{{','.join(choices)}}}"
    if get_origin(hint) is Annotated:
        return _values(parts[0])
    if get_origin(hint) is Literal:
        return f"{{{','.join(map(str, parts))}}}" if len(parts) > 1 else str(parts[0])
    if get_origin(hint) in (Union, UnionType):
        return " | ".join(_values(part) for part in parts if part is not NoneType)
    if get_origin(hint) is tuple:
        return f"{_values(parts[0])} ..." if parts[-1] is ... else " ".join(map(_values, parts))
    return _TYPES.get(hint, "")


def _text(option: Option) -> str:
    """An option's text and its default; what the text says of another command's default is left out."""
    default = _default(option)
    return (re.sub(r"\s*Default: [^.]*\.$", "", option.text) if default else option.text) + default


def _default(option: Option) -> str:
    value = option.default
    if value is None or value in ("", ()):
        return ""
    if isinstance(value, bool):
        return f" (default: {'on' if value else 'off'})"
    parts = value if isinstance(value, tuple) else (value,)
    return f" (default: {' '.join(f'{part:g}' if isinstance(part, float) else str(part) for part in parts)})"


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()),
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
