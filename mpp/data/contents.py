"""What a split of a set holds, by name, size and content: alike wherever the set lies and whenever it was copied.

Content is hashed whole where that is cheap: 10,000 files of 3 kB take half a second, and a second look at unchanged
files only the time of asking for their sizes. Of more than 20,000 images, one in 2, 4, 8 and so on is hashed; all count
by name and size. Of a large file, four pieces are hashed.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from mpp.errors import counted, printable

_MOST_HASHED = 20_000  # images; of more, a share


_MOST_LISTED = 50_000  # images whose names a run's data.json keeps: 3 MB


_PIECES = 4  # of a large file


_LARGEST_WHOLE, _SMALLEST_WHOLE = 4 << 20, 64 << 10  # bytes of a file that are hashed: fewer where there are many files


UNKNOWN = "?"  # the mark of a file that could not be read now: it is not taken for a change


@dataclass(frozen=True)
class Contents:
    """What a split holds. `names` and `marks` (size and content) are those of its images or shards, in their order."""

    split: str
    kind: str  # what the parts are: "image", "shard"
    count: int
    names: list[str]
    marks: list[str]
    also: str = ""  # what else tells one set from another
    times: str = ""  # a hash of when the files changed last whose content was not hashed, or in pieces only

    @property
    def exact(self) -> str:
        """As `digest`, but another one also if only a file may have changed whose content was not looked at."""
        return hashlib.blake2b(f"{self.digest} {self.times}".encode(), digest_size=16).hexdigest()

    @cached_property
    def digest(self) -> str:
        """One number for all of it."""
        digest = hashlib.blake2b(repr((self.kind, self.count, self.also)).encode(), digest_size=16)
        for name, mark in zip(self.names, self.marks, strict=True):
            digest.update(f"{name}\0{mark}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def as_json(self) -> dict[str, Any]:
        """What a run's data.json keeps of it."""
        found: dict[str, Any] = {"kind": self.kind, "count": self.count, "also": self.also, "digest": self.digest}
        if 0 < len(self.names) <= _MOST_LISTED:
            found["parts"] = dict(zip(self.names, self.marks, strict=True))
        return found

    def changes(self, then: dict[str, Any]) -> str:
        """What differs from what data.json keeps of an earlier day, in words: "" if nothing does."""
        if then["digest"] == self.digest:
            return ""
        before = then.get("parts", {})
        if not (before and self.names) or then["kind"] != self.kind:
            if then["count"] != self.count:
                return f"{counted(then['count'], self.kind)} then, {self.count:,} now"
            return f"{then['also']} then, {self.also} now" if then["also"] != self.also else "other content"
        now = dict(zip(self.names, self.marks, strict=True))
        found = {
            "added": [name for name in now if name not in before],
            "removed": [name for name in before if name not in now],
            "changed": [name for name in now if name in before and not _alike(before[name], now[name])],
        }
        says = [f"{counted(len(names), self.kind)} {verb} ({_first(names)})" for verb, names in found.items() if names]
        if not says and list(before) != self.names:
            says = [f"another order of its {self.kind}s"]
        if not says and then["also"] != self.also:
            says = [f"{then['also']} then, {self.also} now"]
        return ", ".join(says)


def _first(names: list[str]) -> str:
    return f"{'the first: ' if len(names) > 1 else ''}{printable(names[0])}"


def _alike(one: str, other: str) -> bool:
    """Whether two marks can be of the same content: what only one of them knows does not part them."""
    (size, hashed, *label), (other_size, other_hashed, *other_label) = one.split(":", 2), other.split(":", 2)
    hashed_alike = hashed.partition("-")[2] == other_hashed.partition("-")[2]  # the same pieces of it
    return (
        (size == other_size or UNKNOWN in (size, other_size))
        and (hashed == other_hashed or UNKNOWN in (hashed, other_hashed) or not hashed_alike)
        and label == other_label
    )


class Listing:
    """Collects the names and marks of `count` parts of a split, in order.

    A mark is "size:hash", or with a label "size:hash:label". What is not known is "?".
    """

    def __init__(self, count: int) -> None:
        self.step = 1 << max(0, (count - 1) // _MOST_HASHED).bit_length()  # one part in so many is hashed
        room = max(_SMALLEST_WHOLE, min(_LARGEST_WHOLE, (1 << 30) // max(1, count)))
        self.whole = 1 << room.bit_length() - 1  # a power of two, so that one image more seldom changes it
        self.names: list[str] = []
        self.marks: list[str] = []
        self._met: Counter[str] = Counter()
        self._times = hashlib.blake2b(digest_size=16)

    def add_file(self, name: str, path: str, label: str = "") -> None:
        """A part that is a file."""
        try:
            found = os.stat(path)
            hashed = UNKNOWN
            if self._wants(name):
                hashed = _hash_of_file(path, found.st_size, found.st_mtime_ns, found.st_ctime_ns, self.whole)
            if hashed == UNKNOWN or found.st_size > self.whole:
                self.note_times(path, found)
            self._add(name, f"{found.st_size}:{hashed}", label)
        except OSError:
            self._add(name, f"{UNKNOWN}:{UNKNOWN}", label)

    def note_times(self, path: str, found: os.stat_result | None = None) -> None:
        """Have `exact` differ once a file may have changed."""
        found = found or os.stat(path)
        self._times.update(f"{path} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}\n".encode(errors="replace"))

    def add(self, name: str | None, content: memoryview, label: str = "") -> None:
        """A part that is some bytes. Without a name, it has that of its content, or of its row if there are many."""
        self.add_read(name, content.nbytes, lambda at, size: content[at : at + size], label)

    def add_read(self, name: str | None, size: int, read: Callable[[int, int], Any], label: str = "") -> None:
        """As `add`, of `size` bytes that `read` (place, how many) gives if they are wanted."""
        if name is None and self.step > 1:
            name = f"row {len(self.names)}"
        hashed = UNKNOWN
        if name is None or self._wants(name):
            hashed = _hash(size, read, self.whole)
        self._add(hashed if name is None else name, f"{size}:{hashed}", label)

    def contents(self, split: str, kind: str = "image", also: str = "") -> Contents:
        """All that was added."""
        return Contents(split, kind, len(self.names), self.names, self.marks, also, self._times.hexdigest())

    def _wants(self, name: str) -> bool:
        return zlib.crc32(name.encode(errors="surrogateescape")) % self.step == 0

    def _add(self, name: str, mark: str, label: str) -> None:
        self._met[name] += 1
        self.names.append(name if self._met[name] == 1 else f"{name} ({self._met[name]})")
        self.marks.append(f"{mark}:{label}" if label else mark)


@lru_cache(maxsize=1 << 17)
def _hash_of_file(path: str, size: int, _modified: int, _changed: int, whole: int) -> str:
    """The hash of a file's content. Whoever writes to a file changes the time of its last change, so that a second look
    at a file as it was needs not read it."""
    with open(path, "rb", buffering=0) as file:

        def read(at: int, length: int) -> bytes:
            file.seek(at)
            return file.read(length) or b""

        return _hash(size, read, whole)


def _hash(size: int, read: Callable[[int, int], Any], whole: int) -> str:
    """A hash of up to `whole` bytes of a content: all of it, or pieces from its start to its end."""
    digest = hashlib.blake2b(digest_size=8)
    if size <= whole:
        digest.update(read(0, size))
        return digest.hexdigest()
    piece = whole // _PIECES
    for number in range(_PIECES):
        digest.update(read((size - piece) * number // (_PIECES - 1), piece))
    return f"{digest.hexdigest()}-{whole >> 10}k"


def files_contents(paths: Iterable[str], root: str, split: str, kind: str) -> Contents:
    """The contents of a split that is some files, named from `root`."""
    files = list(paths)
    listing = Listing(len(files))
    for path in files:
        listing.add_file(name_within(path, root), path)
    return listing.contents(split, kind)


@lru_cache(maxsize=64)
def _roots(root: str) -> tuple[str, ...]:
    here = Path(root).expanduser()
    folder = here if here.is_dir() else here.parent
    return tuple(os.path.join(f(folder), "") for f in (os.path.abspath, os.path.realpath))


def name_within(path: str, root: str) -> str:
    """A file's name from the set's folder, so that it stays when the folder is moved."""
    for folder in _roots(root):
        if path.startswith(folder):
            return path[len(folder) :].replace(os.sep, "/")
    return path
