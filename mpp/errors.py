"""Errors that a user can mend: one line that says what is wrong, where, and what to do."""

from __future__ import annotations

import html
import os
import re
import textwrap
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

# the starts of lines with commands or paths
_TO_COPY = ("Next:", "stopped", "the work goes on with:", "Pictures:", "Confusion matrix:")


class UserError(Exception):
    """A message for the terminal, without a traceback; the command ends with exit code 2."""

    def __str__(self) -> str:
        return one_line(super().__str__())  # whatever was given as a value or read from a file


class SaidByTheFirst(UserError):
    """A message that all processes of a run would say alike: only the first of them says it."""


def printable(text: str) -> str:
    """Text from a file (a class, a column, a file's name) with its control characters escaped: line breaks, those that
    steer a terminal, and those that turn the direction of writing."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """A message of ours on one line, in which nothing steers the terminal."""
    return printable(" ".join(text.splitlines()))


def escaped(text: str) -> str:
    """A text as it reads in Markdown: no HTML, link, picture, code or cell begins in the name of a class or a file."""
    return re.sub(r"([\\`\[\]|])", r"\\\1", html.escape(printable(text), quote=False))


def counted(count: int, noun: str, plural: str = "") -> str:
    """1 file; 2 files."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def for_terminal(text: str, stream: Any) -> str:
    """A text for a stream: on a terminal its lines are wrapped at words, at 80 columns, but not commands to copy."""
    if not stream.isatty():
        return text
    lines = []
    for line in text.split("\n"):
        if len(line) > 80 and not line.startswith(_TO_COPY):
            indent = " " * (len(line) - len(line.lstrip()))
            line = textwrap.fill(line, 80, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        lines.append(line)
    return "\n".join(lines)


def listed(names: Iterable[str], most: int = 10) -> str:
    """Names from a file for a message: the first `most` of them, none longer than 80 characters."""
    names = list(names)
    shown = [printable(name if len(name) <= 80 else f"{name[:79]}…") for name in names[:most]]
    return ", ".join(shown) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def first_line(error: BaseException) -> str:
    """What an error says first, or its kind if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextmanager
def renamed(option: str, here: str, texts: Iterable[str] = ()) -> Iterator[None]:
    """Have a UserError name an option (or the start of one, as "--") as the command at hand does. `texts` are what the
    user typed, a path for example: they stay as they are."""
    try:
        yield
    except UserError as error:
        typed = (rf"(?<!\w){re.escape(text)}(?!\w)" for text in sorted(filter(None, texts), key=len, reverse=True))
        pattern = "|".join([*typed, rf"(?<![\w/.-])({re.escape(option)})"])
        raise UserError(re.sub(pattern, lambda found: here if found[1] else found[0], str(error))) from error


class Notice(UserWarning):
    """A warning to the user about data or files."""


def is_first_process() -> bool:
    """Whether this process is alone or the first of its run: the one that says what all would say. It can be asked
    before devices are set up."""
    return os.environ.get("RANK", "0") == "0"


def warn(text: str) -> None:
    """Warn the user in one line."""
    warnings.warn(one_line(text), Notice, stacklevel=3)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Print notices as one line each ("warning: ..."), without the line of our code that warns."""
    before = warnings.formatwarning

    def plain(message: Any, category: Any, *place: Any, **line: Any) -> str:
        return f"warning: {message}\n" if issubclass(category, Notice) else before(message, category, *place, **line)

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = before
