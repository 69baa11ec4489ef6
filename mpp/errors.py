"""Errors that are the user's to mend: one line that says what is wrong, where, and what to do."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """A message for the terminal, without a traceback; the command ends with exit code 2."""

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())  # one line, whatever was given as a value


def run_command(main: Callable[[], object]) -> NoReturn:
    """Run a command's `main` and end the process as a user expects: 0, or 2 with one line on stderr."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    sys.exit(0)
