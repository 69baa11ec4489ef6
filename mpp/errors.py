"""Errors that a user can mend: one line that says what is wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A message for the terminal, without a traceback; the command ends with exit code 2."""

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())  # one line, whatever was given as a value


def first_line(error: BaseException) -> str:
    """What an error says first, or its kind if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextmanager
def renamed(option: str, here: str) -> Iterator[None]:
    """Have a UserError name an option (or a part of its name) as the command at hand calls it."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(option, here)) from error
