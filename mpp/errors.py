"""Errors that a user can mend: one line that says what is wrong, where, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A message for the terminal, without a traceback; the command ends with exit code 2."""

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())  # one line, whatever was given as a value


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
        typed = map(re.escape, sorted(filter(None, texts), key=len, reverse=True))
        pattern = "|".join([*typed, rf"(?<![\w/.-])({re.escape(option)})"])
        raise UserError(re.sub(pattern, lambda found: here if found[1] else found[0], str(error))) from error
