"""What the arguments of a model may be: they may come from a configuration that somebody else wrote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from mpp.errors import listed

MOST_PATCHES, MOST_PIXELS = 1 << 16, 1 << 24  # of an image: 256 x 256 patches, 4096 x 4096 pixels


def refuse_unknown(**choices: tuple[Any, Sequence[str]]) -> None:
    """Raise ValueError for a name (the first of each pair) that is not among those there are."""
    for name, (value, allowed) in choices.items():
        if not isinstance(value, str) or value not in allowed:
            raise ValueError(f"there is no {name} {shown(value)}; choose one of: {', '.join(allowed)}")


def refuse_no_counts(**counts: Any) -> None:
    """Raise ValueError for what is no whole number above 0; None is a default."""
    for name, value in counts.items():
        if value is not None and (type(value) is not int or not value > 0):
            raise ValueError(f"{name} must be a whole number above 0, not {shown(value)}")


def refuse_no_numbers(most: float, **numbers: Any) -> None:
    """Raise ValueError for what is no number from 0 to `most`; NaN is none."""
    for name, value in numbers.items():
        if type(value) not in (int, float) or not 0 <= value <= most:
            raise ValueError(f"{name} must be a number from 0 to {most:g}, not {shown(value)}")


def refuse_no_switches(**switches: Any) -> None:
    """Raise ValueError for what is neither true nor false."""
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, not {shown(value)}")


def refuse_no_colour(name: str, values: Any, channels: int) -> None:
    """Raise ValueError for what is no number a channel, above 0 if it is the standard deviation; None is a default."""
    if values is None:
        return
    numbers = values if isinstance(values, list | tuple) else []
    if len(numbers) != channels or any(type(n) not in (int, float) or not abs(n) <= 1000 for n in numbers):
        raise ValueError(f"{name} must be {channels} numbers, one a channel, not {shown(values)}")
    if name == "std" and min(numbers) <= 0:
        raise ValueError(f"std must be above 0, not {shown(values)}")


def refuse_no_size(img_size: Any) -> None:
    """Raise ValueError for what is neither a side nor (height, width)."""
    sides = img_size if isinstance(img_size, list | tuple) else [img_size]
    if len(sides) not in (1, 2) or any(type(side) is not int for side in sides):
        raise ValueError(f"img_size must be a side or (height, width) in whole pixels, not {shown(img_size)}")


def refuse_beyond_use(img_size: tuple[int, int], patch_size: int) -> None:
    """Raise ValueError for an image size that nobody trains with: the weights of a model without position embeddings do
    not bound it."""
    pixels = img_size[0] * img_size[1]
    if pixels > MOST_PIXELS or pixels // patch_size**2 > MOST_PATCHES:
        raise ValueError(
            f"img_size {img_size} makes {pixels // patch_size**2:,} patches of {patch_size}x{patch_size} pixels; "
            f"{MOST_PATCHES:,} patches and {MOST_PIXELS:,} pixels an image at most are read"
        )


def refuse_odd_classes(classes: Any) -> None:
    """Raise ValueError unless class names are different texts, at least one."""
    if not isinstance(classes, list | tuple) or not classes:
        raise ValueError(f"classes must be a list of names, not {shown(classes)}")
    for number, name in enumerate(classes):
        if not isinstance(name, str) or not name.strip() or len(name) > 1000:
            raise ValueError(f"class {number} must be a name of at most 1,000 characters, not {shown(name)}")
    if twice := [name for name, count in Counter(classes).items() if count > 1]:
        raise ValueError(f"the names of classes must differ; these stand there more than once: {listed(twice)}")


def shown(value: Any) -> str:
    """A value from a file for a message, short whatever it is."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}… ({type(value).__name__})"
