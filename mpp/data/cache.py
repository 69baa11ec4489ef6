"""The folder of sets that were decoded once: whose it is, what is in it, and what has to go when it is full."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from mpp.data.sources.packed_header import read_header
from mpp.errors import UserError

with suppress(ImportError):  # not on Windows, where an open file cannot be removed anyway
    import fcntl

_OURS = re.compile(r"(.+-[0-9a-f]{32}\.mpp)(\.partial)?")  # no other file in the folder is ever touched


def cache_folder() -> Path | None:
    """$MPP_CACHE, or mpp in the user's cache folder; None for a user without a home folder."""
    with suppress(RuntimeError):
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return Path(os.environ.get("MPP_CACHE") or Path(cache, "mpp")).expanduser()
    return None


def refuse_untrusted(path: Path) -> None:
    """Raise UserError if a folder or file of the cache could have been written by somebody else."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"the cache {path} cannot be read ({error.strerror}); {_OTHER}") from error
    if hasattr(os, "getuid") and found.st_uid not in (os.getuid(), 0):
        raise UserError(f"the cache {path} belongs to another user, who could have put other images there; {_OTHER}")
    if os.name == "posix" and stat.S_IMODE(found.st_mode) & stat.S_IWOTH:
        raise UserError(
            f"the cache {path} can be written by every user, who could put other images there; take that right away "
            f"(chmod o-w), {_OTHER}"
        )


_OTHER = "set MPP_CACHE to a folder of your own, or give --data.no-cache"


@dataclass(frozen=True)
class Entry:
    """A decoded set, or one whose packing was cut."""

    path: Path
    size: int  # bytes
    used: float  # when it was last used, in seconds since 1970

    @property
    def origin(self) -> str:
        """Where its images lie."""
        if self.path.suffix == ".partial":
            return "a packing that was cut"
        try:
            return read_header(str(self.path)).origin or "unknown"
        except UserError:
            return "damaged"

    def remove(self) -> bool:
        """Remove it, unless a process reads or writes it; returns whether it is gone."""
        packed = self.path.with_suffix("") if self.path.suffix == ".partial" else self.path
        try:
            with FileLock(f"{packed}.lock", timeout=0), self.path.open("r+b") as file:
                if "fcntl" in globals():
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.path.unlink()
                packed.with_name(f"{packed.name}.partial.json").unlink(missing_ok=True)
        except (OSError, Timeout, NotImplementedError):
            return False
        return True

    def __str__(self) -> str:
        return f"{self.path} ({gigabytes(self.size)}, last used {datetime.fromtimestamp(self.used):%Y-%m-%d %H:%M})"


def gigabytes(size: int) -> str:
    """A size for people."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"


def entries(folder: Path) -> list[Entry]:
    """What is in a cache folder, the one that was not used for the longest time first."""
    found = []
    for path in folder.glob("*.mpp*"):
        if _OURS.fullmatch(path.name):
            with suppress(FileNotFoundError):
                about = path.lstat()
                if stat.S_ISREG(about.st_mode):
                    found.append(Entry(path, about.st_size, about.st_mtime))
    return sorted(found, key=lambda entry: entry.used)


def make_room(folder: Path, limit: float, needs: int = 0) -> bool:
    """Have a cache folder hold at most `limit` GB with `needs` bytes more: the sets that were not used for the longest
    time go, but none in use. Returns whether it does."""
    kept = entries(folder)
    size = sum(entry.size for entry in kept) + needs
    if needs > limit * 1e9:
        return False
    for entry in kept:
        if size > limit * 1e9 and entry.remove():
            size -= entry.size
            print(f"removed from the cache, to keep it below --data.cache-limit {limit:g} GB: {entry}")
    return size <= limit * 1e9


def clear_marks(folder: Path) -> None:
    """Remove what else packing leaves in a cache folder: locks that nobody holds, and why a set could not be packed."""
    for lock in folder.glob("*.mpp.lock"):
        packed = lock.with_suffix("")
        if _OURS.fullmatch(packed.name) and not packed.exists():
            with suppress(OSError, Timeout, NotImplementedError), FileLock(lock, timeout=0):
                packed.with_suffix(".not-packed").unlink(missing_ok=True)
                lock.unlink()


@contextmanager
def packing(path: Path) -> Iterator[None]:
    """Hold the right to pack into `path`: of several processes and machines, one has it at a time."""
    with FileLock(f"{path}.lock"):
        yield


def in_use(path: Path) -> BinaryIO:
    """Open a file of the cache, which is not removed while it stays open. Raises OSError if it is not there."""
    while True:
        file = path.open("rb")
        with suppress(OSError):  # a file system without locks
            if "fcntl" in globals():
                fcntl.flock(file, fcntl.LOCK_SH)
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):  # not removed before it was locked
            return file
        file.close()
