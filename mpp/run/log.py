"""log.txt: what the terminal said of a run, with the time, in the run's folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from mpp.errors import for_terminal, is_first_process

FILE = "log.txt"


class Log:
    """Keeps the lines of the terminal, and writes them to the folders of the runs that say them.

    A folder gets its lines once the run has written its options there, so that a refused run leaves none.
    """

    def __init__(self) -> None:
        self.early: list[str] = []  # lines before the first run has a folder
        self.waiting: dict[Path, list[str]] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen to stdout and stderr while a command runs."""
        streams = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = (Tee(stream, self) for stream in streams)
        try:
            yield
        except Exception as error:
            self.add(f"error: {error or type(error).__name__}")
            raise
        finally:
            sys.stdout, sys.stderr = streams
            self.early, self.waiting = [], {}

    @contextmanager
    def into(self, folder: Path) -> Iterator[None]:
        """Have the lines of a run go to its folder; those of a command's outermost run, until the command ends."""
        if not is_first_process():
            yield
            return
        self.waiting[folder] = self.early
        self.early = []
        try:
            yield
        finally:
            if len(self.waiting) > 1:
                del self.waiting[folder]

    def add(self, line: str) -> None:
        """Note a line."""
        line = f"{datetime.now():%Y-%m-%d %H:%M:%S} {line}\n"
        if not self.waiting:
            self.early.append(line)
        for folder, lines in self.waiting.items():
            lines.append(line)
            if (folder / "config.toml").exists():
                with suppress(OSError), (folder / FILE).open("a", encoding="utf-8", errors="replace") as file:
                    file.writelines(lines)
                lines.clear()


class Tee:
    """A stream of the terminal, to whose lines a log listens. Of a bar that is drawn over and over, it hears the last
    state."""

    def __init__(self, stream: TextIO, log: Log) -> None:
        self.stream, self.log, self.part = stream, log, ""

    def write(self, text: str) -> int:
        *lines, self.part = (self.part + text).split("\n")
        for line in lines:
            if line := line.rpartition("\r")[2].strip():
                self.log.add(line)
        return self.stream.write(text if "\r" in text else for_terminal(text, self.stream))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


LOG = Log()
