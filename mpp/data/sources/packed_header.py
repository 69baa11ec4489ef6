"""The header of a packed file: what it says is checked, field by field, before anything is read or allocated by it."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mpp.data.bands import MOST_CHANNELS
from mpp.data.rasters import TYPES
from mpp.errors import UserError, first_line, printable

MAGIC = b"MPPACK1\n"
TAIL = struct.Struct("<Q8s")  # the header's offset, and the magic again


_LONGEST = 64 << 20  # bytes of JSON: a million classes with long names


_AT_ONCE = 1 << 20  # images whose tables are checked together


@dataclass(frozen=True)
class PackedSplit:
    """The offsets of a split's parts in the file, in bytes."""

    count: int
    pixels: int
    begins: int
    sizes: int
    labels: int | None
    size: tuple[int, int] | None  # (H, W) of all images; None if sizes differ
    dtype: str = "uint8"  # of the values, one of TYPES
    channels: int = 3  # C of all images

    @property
    def pixel(self) -> int:
        """Bytes of a pixel."""
        return self.channels * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Header:
    """What a packed file says of itself."""

    splits: dict[str, PackedSplit]
    label_names: list[str] | None
    source: str  # identifies the set that was packed
    sha256: str  # of the first `content` bytes
    short_side: int | None
    content: int  # bytes before the header
    sampled: str | None = None  # checksum of pieces of the content
    origin: str | None = None  # where the images lie, of a file in the cache


def read_header(path: str) -> Header:
    """The header of a packed file. Raises UserError, which names the field, if it is damaged or its header lies."""
    here = Path(path).expanduser()
    try:
        found = here.stat()
        return _read(str(here), found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    except (OSError, ValueError, RecursionError, struct.error) as error:
        raise UserError(
            f"--data.path {path} is a damaged packed file ({printable(first_line(error))}); pack it again"
        ) from error


@lru_cache(maxsize=64)
def _read(path: str, size: int, *_changed: int) -> Header:
    with open(path, "rb") as file:
        file.seek(max(0, size - TAIL.size))
        at, magic = TAIL.unpack(file.read())
        if magic != MAGIC or not len(MAGIC) <= at <= size - TAIL.size:
            raise ValueError("its end is missing")
        if size - TAIL.size - at > _LONGEST:
            raise ValueError(f"its header is longer than {_LONGEST:,} bytes")
        file.seek(at)
        text = file.read(size - TAIL.size - at)
    try:
        values = json.loads(text.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise ValueError(f"its header is not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"its header is no JSON: {error}") from error
    header = _header(values, at)
    for name, split in header.splits.items():
        _check_tables(path, name, split, header)
    return header


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{_shown(name)} is in its header twice")
        found[name] = value
    return found


def _no_number(name: str) -> float:
    raise ValueError(f"{name} in its header is no number")


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


class _Fields:
    """An object of the header, from which each field is taken with its type and bounds checked."""

    def __init__(self, values: Any, where: str, names: set[str]) -> None:
        self.values, self.where = values, where
        if not isinstance(values, dict):
            raise ValueError(f"{where} {_shown(values)} must be an object")
        if unknown := sorted(values.keys() - names):
            raise ValueError(f"{where} has a field {_shown(unknown[0])} that this version does not know")

    def number(self, name: str, least: int, most: int, *, optional: bool = False) -> int | None:
        value = self._get(name, optional)
        if not (optional and value is None) and (type(value) is not int or not least <= value <= most):
            raise self.wrong(name, f"must be a whole number from {least:,} to {most:,}")
        return value

    def place(self, name: str, size: int, content: int, *, optional: bool = False) -> int | None:
        """The offset of `size` bytes within the content."""
        if size > content - len(MAGIC):
            raise ValueError(f"{self.where}: {name} would take {size:,} bytes, and the file has {content:,}")
        return self.number(name, len(MAGIC), content - size, optional=optional)

    def text(self, name: str) -> str:
        return self.as_text(name, self._get(name))

    def optional_text(self, name: str) -> str | None:
        return None if self._get(name, optional=True) is None else self.text(name)

    def texts(self, name: str) -> list[str] | None:
        """Names of which no two are alike."""
        values = self._get(name, optional=True)
        if values is None:
            return None
        if not isinstance(values, list) or len({self.as_text(name, value) for value in values}) < len(values):
            raise self.wrong(name, "must be a list of different texts")
        return values

    def pair(self, name: str, most: int) -> tuple[int, int] | None:
        value = self._get(name, optional=True)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != 2 or not all(type(v) is int and 1 <= v <= most for v in value):
            raise self.wrong(name, "must be a height and a width, both above 0, that fit into the file")
        return value[0], value[1]

    def as_text(self, name: str, value: Any) -> str:
        if not isinstance(value, str) or not value or any("\ud800" <= c <= "\udfff" for c in value):
            raise ValueError(f"{self.where}: {name} {_shown(value)} must be text")
        return value

    def wrong(self, name: str, says: str) -> ValueError:
        return ValueError(f"{self.where}: {name} {_shown(self.values.get(name))} {says}")

    def _get(self, name: str, optional: bool = False) -> Any:
        if name not in self.values and not optional:
            raise ValueError(f"{self.where} has no {name}")
        return self.values.get(name)


def _header(values: Any, content: int) -> Header:
    fields = _Fields(
        values, "its header", {"splits", "label_names", "source", "sha256", "short_side", "sampled", "origin"}
    )
    label_names = fields.texts("label_names")
    splits = _Fields(values.get("splits"), "splits in its header", set(values.get("splits") or ()))
    if not splits.values:
        raise ValueError("its header names no split")
    sha256 = fields.text("sha256")
    if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        raise fields.wrong("sha256", "must be 64 hexadecimal digits")
    return Header(
        splits={splits.as_text("a name", name): _split(name, part, content) for name, part in splits.values.items()},
        label_names=label_names,
        source=fields.text("source"),
        sha256=sha256,
        short_side=fields.number("short_side", 1, 1 << 31, optional=True),
        content=content,
        sampled=fields.optional_text("sampled"),
        origin=fields.optional_text("origin"),
    )


def _split(name: str, values: Any, content: int) -> PackedSplit:
    where = f"split {printable(name)} in its header"
    fields = _Fields(values, where, {"count", "pixels", "begins", "sizes", "labels", "size", "dtype", "channels"})
    dtype, channels = "uint8", 3  # of files from before there was another
    if "dtype" in fields.values:
        dtype, channels = fields.text("dtype"), fields.number("channels", 1, MOST_CHANNELS) or 0
    if dtype not in TYPES:
        raise fields.wrong("dtype", f"must be one of {', '.join(TYPES)}")
    pixel = channels * np.dtype(dtype).itemsize
    count = fields.number("count", 0, content // pixel) or 0
    size = fields.pair("size", content)
    whole = count * size[0] * size[1] * pixel if size else count * pixel
    return PackedSplit(
        count=count,
        pixels=fields.place("pixels", whole, content) or 0,
        begins=fields.place("begins", 8 * (count + 1), content) or 0,
        sizes=fields.place("sizes", 16 * count, content) or 0,
        labels=fields.place("labels", 8 * count, content, optional=True),
        size=size,
        dtype=dtype,
        channels=channels,
    )


def _check_tables(path: str, name: str, split: PackedSplit, header: Header) -> None:
    """Raise ValueError unless the sizes and places of a split's images lie in the file and agree, and each label number
    is that of a class."""
    where, room, pixel = f"split {printable(name)}", header.content - split.pixels, split.pixel
    if split.labels is not None and header.label_names is None:
        raise ValueError(f"{where} has labels, but its header has no label_names")
    for first in range(0, split.count, _AT_ONCE):
        count = min(_AT_ONCE, split.count - first)

        def table(at: int, columns: int = 1, more: int = 0, first: int = first, count: int = count) -> np.ndarray:
            offset, numbers = at + 8 * columns * first, columns * (count + more)
            return np.fromfile(path, dtype="<i8", count=numbers, offset=offset).reshape(-1, columns)

        def refuse(wrong: np.ndarray, what: str, values: np.ndarray, first: int = first) -> None:
            if wrong.any():
                number = int(np.argmax(wrong))
                raise ValueError(f"{where}, image {first + number}: {what} {values[number].tolist()}")

        begins, sizes = table(split.begins, more=1)[:, 0], table(split.sizes, 2)
        height, width = sizes[:, 0], sizes[:, 1]
        refuse((height < 1) | (width < 1), "sizes: it cannot be", sizes)
        refuse(height > room // pixel // np.maximum(width, 1), "sizes: the file has no room for", sizes)
        if split.size:
            refuse((sizes != split.size).any(1), f"size says {list(split.size)} of all, and sizes", sizes)
        refuse((begins < 0) | (begins > room), "begins: it cannot lie at", begins)
        refuse(np.diff(begins) != height * width * pixel, "begins: its bytes are not those of sizes", sizes)
        if first == 0:
            refuse(begins[:1] != 0, "begins must start at 0, not at", begins)
        if split.labels is not None:
            labels, classes = table(split.labels)[:, 0], len(header.label_names or [])
            refuse((labels < -1) | (labels >= classes), f"labels: none of its {classes} classes has number", labels)
