"""Targets and methods of a Python program, which takes the place of a name: mpp.pretrain(data={"target": Mine})."""

from __future__ import annotations

from typing import Any

from mpp.errors import UserError

PREFIX = "python:"
_OWN: dict[str, Any] = {}


def name_of(option: str, thing: Any, verb: str) -> str:
    """Give a class or an object a name that options take in this process: python:ItsClass. Raises UserError if it has
    no method `verb`, as what `option` takes has."""
    kind = thing if isinstance(thing, type) else type(thing)
    if not callable(getattr(kind, verb, None)):
        raise UserError(f"{option} takes a name or a class with a method {verb!r}, not {thing!r:.80}")
    name = f"{PREFIX}{kind.__qualname__}".replace("*", "").replace("+", "")
    _OWN[name] = thing
    return name


def is_own(name: str) -> bool:
    """Whether a name is that of a program's own target or method."""
    return name.startswith(PREFIX)


def own(option: str, name: str) -> Any:
    """The class or object of a name. Raises UserError if this process does not know it."""
    if name not in _OWN:
        raise UserError(
            f"{option} {name} is a class of a Python program: go on from there, with the class in place of its name"
        )
    return _OWN[name]
