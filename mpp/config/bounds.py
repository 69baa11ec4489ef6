"""What an option may be, written on the option itself: its bounds, and whether it changes a run's numbers."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Annotated, Any, ClassVar, Protocol, TypeVar, get_args, get_type_hints

from mpp.config.own import is_own, own
from mpp.errors import UserError

T = TypeVar("T")
LARGEST = 2**31 - 1  # larger whole numbers overflow tensors, loops and file names


class Options(Protocol):
    """The options of a command, or a group of them: a dataclass of `mpp.config`."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


@dataclasses.dataclass(frozen=True)
class Within:
    """The numbers that an option allows, and how a message says so. NaN is never within."""

    allows: Callable[[float], bool]
    says: str


@dataclasses.dataclass(frozen=True)
class OneOf:
    """The names that an option takes. From Python it takes a class in place of one, too."""

    names: tuple[str, ...]


Count = Annotated[int, Within(lambda n: 0 < n <= LARGEST, f"must be above 0 and at most {LARGEST}")]
Whole = Annotated[int, Within(lambda n: 0 <= n <= LARGEST, f"must not be negative, and at most {LARGEST}")]
Positive = Annotated[float, Within(lambda x: 0 < x < math.inf, "must be above 0")]
NotNegative = Annotated[float, Within(lambda x: 0 <= x < math.inf, "must not be negative")]
Share = Annotated[float, Within(lambda x: 0 <= x <= 1, "must be in 0..1")]
Below1 = Annotated[float, Within(lambda x: 0 <= x < 1, "must be at least 0 and below 1")]
Inside = Annotated[float, Within(lambda x: 0 < x < 1, "must be above 0 and below 1")]
UpTo1 = Annotated[float, Within(lambda x: 0 < x <= 1, "must be above 0 and at most 1")]
Channels = Annotated[int, Within(lambda n: 1 <= n <= 64, "must be in 1..64")]
Bits = Annotated[int, Within(lambda n: 1 <= n <= 8, "must be in 1..8")]


class Mark(Enum):
    """What an option is to a run."""

    HARMLESS = 0  # changes no number, or only its rounding: a resumed run may have another value
    ONCE = 1  # belongs to one start of a command, so config.toml leaves it out


Harmless = Annotated[T, Mark.HARMLESS]
Once = Annotated[T, Mark.ONCE]


def but(kind: type[T], **defaults: Any) -> T:
    """A group of options with other defaults, as the default of a dataclass field."""
    return dataclasses.field(default_factory=lambda: copy.deepcopy(kind(**defaults)))


def walk(config: Options, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every option of a configuration: its name ("train.batch_size"), value and annotated type."""
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from walk(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value, hint


def notes(hint: Any, kind: type[T]) -> list[T]:
    """The notes of one kind on an annotated type or on a part of it."""
    own = [note for note in getattr(hint, "__metadata__", ()) if isinstance(note, kind)]
    return own + [note for part in get_args(hint) for note in notes(part, kind)]


def marked(config: Options, mark: Mark) -> set[str]:
    """The names of the options that have a mark."""
    return {name for name, _, hint in walk(config) if mark in notes(hint, Mark)}


def check_bounds(config: Options) -> None:
    """Raise UserError, with the full name of the option, for a value out of its bounds. None has no bounds."""
    for name, value, hint in walk(config):
        for bound in notes(hint, Within):
            parts = value if isinstance(value, tuple) else (value,)
            if not all(part is None or bound.allows(part) for part in parts):
                raise UserError(f"{option_name(name)} {value} {bound.says}")
        for choice in notes(hint, OneOf):
            if is_own(value):
                own(option_name(name), value)
            elif value not in choice.names:
                raise UserError(f"{option_name(name)} {value!r} is none of {', '.join(choice.names)}")


def option_name(name: str) -> str:
    """ "train.batch_size" as the command line spells it, safe to print: --train.batch-size."""
    return "--" + name.replace("_", "-").encode("unicode_escape").decode()
