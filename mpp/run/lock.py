"""One folder, one run: a file that says which process writes into a folder, or writes a packed file."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from mpp.errors import UserError

NAME = "run.lock"  # in the folder of a run while it goes on


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock. `born` tells it from a later process with the same number."""

    host: str
    pid: int
    started: str
    born: str
    space: str  # numbers of processes mean nothing in another space, of another container for example
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, started {self.started}"

    @classmethod
    def me(cls) -> Holder:
        """This process, as it takes a lock."""
        pid, now = os.getpid(), f"{datetime.now():%Y-%m-%d %H:%M:%S}"
        return cls(socket.gethostname(), pid, now, born(pid) or "", space(), secrets.token_hex(8))

    def is_me(self) -> bool:
        """Whether it is this very process."""
        mine = Holder.me()
        return (self.host, self.pid, self.born, self.space) == (mine.host, mine.pid, mine.born, mine.space)

    def is_dead(self) -> bool:
        """Whether the process has certainly ended. Of one on another machine nobody here can say."""
        mine = Holder.me()
        if self.host != mine.host:
            return False
        if self.space.partition(" ")[0] != mine.space.partition(" ")[0]:
            return True  # the machine has been started anew
        return self.space == mine.space and born(self.pid) != self.born


def born(pid: int) -> str | None:
    """When a process began, as the system says it; None if there is none, or one that has ended, not waited for yet."""
    if sys.platform == "linux":
        with suppress(OSError):
            state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return None if state in "ZX" else rest[18]
        return None
    with suppress(OSError):
        ps = ["ps", "-o", "lstart=", "-p", str(pid)]
        return subprocess.run(ps, capture_output=True, text=True, check=False).stdout.strip() or None
    return str(pid)  # nobody knows: taken for alive


def space() -> str:
    """What this start of the machine is called, and the space in which its processes are numbered."""
    found = []
    with suppress(OSError):
        found.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        found.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(found)


@contextmanager
def locked_folder(folder: Path, option: str) -> Iterator[None]:
    """Hold a run's folder meanwhile. A folder within one that this process holds, as those of a comparison's pieces,
    needs no lock of its own; one within another run's is refused."""
    above = [parent / NAME for parent in folder.resolve().parents if os.path.lexists(parent / NAME)]
    if any(holder and holder.is_me() for holder in map(read, above)):
        if os.path.lexists(folder / NAME):
            refuse_if_held(folder / NAME, option)
            (folder / NAME).unlink()
        yield
        return
    with locked(folder / NAME, option):
        for file in above:
            refuse_if_held(file, option)
        yield


@contextmanager
def locked(file: Path, option: str) -> Iterator[None]:
    """Hold the lock `file` meanwhile. Raises UserError, which calls the place `option`, if another process holds it;
    one that has ended holds nothing, and its lock is taken over."""
    mine = Holder.me()
    take(file, mine, option)
    try:
        yield
    finally:
        if os.getpid() == mine.pid:  # not in a fork of this process
            with suppress(OSError), one_at_a_time(file.parent):
                if read(file) == mine:  # a user may have removed it, and another process taken the place
                    file.unlink()


def take(file: Path, mine: Holder, option: str) -> None:
    """Write a lock for `mine` where there is none, or one of a process that has ended."""
    with one_at_a_time(file.parent):
        if os.path.lexists(file):
            refuse_if_held(file, option)
            print(f"{option} was left locked by a run that has ended ({read(file)}): taken over", flush=True)
            file.unlink()
        with open(file, "x", encoding="utf-8") as lock:  # "x": never through a link, never over another's
            lock.write(json.dumps(asdict(mine)))
            lock.flush()
            os.fsync(lock.fileno())


def refuse_if_held(file: Path, option: str) -> None:
    """Raise UserError if a process that may be alive holds the lock `file`."""
    holder = read(file)
    if holder is None or not holder.is_dead():
        here = holder is not None and (holder.host, holder.space) == (socket.gethostname(), space())
        raise UserError(
            f"{option} is in use by another run: {holder or 'its lock does not say which'}; "
            + ("wait for it, stop it, or give another name" if here else f"if that run has ended, remove {file}")
        )


def read(file: Path) -> Holder | None:
    """Who holds a lock; None if the file does not say."""
    try:
        if not file.is_symlink() and file.is_file():
            holder = Holder(**json.loads(file.read_text(encoding="utf-8")))
            return holder if str(holder).isprintable() and type(holder.pid) is int else None
    except (OSError, ValueError, TypeError):
        pass
    return None


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Let no other process look at the locks in a folder meanwhile, where the file system can do that: two that find
    one of a dead process must not both take it over."""
    descriptor = None
    try:
        with suppress(ImportError, OSError):
            import fcntl

            descriptor = os.open(folder, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)
