"""Read the columns of a small table (csv, tsv, txt, jsonl, parquet), or say in one line what is wrong with the file."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mpp.errors import UserError, first_line, listed, printable

TABLES = (".csv", ".tsv", ".txt", ".jsonl", ".parquet")
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # as `datasets` calls them
_SEPARATORS = {",": "','", ";": "';'", "\t": "a tab", "|": "'|'", " ": "a space"}
_MISSING = {"", "NA", "N/A", "#N/A", "<NA>", "NaN", "nan", "NULL", "null", "None"}  # as pandas has it


@dataclass(frozen=True)
class Columns:
    """A table's columns. Text is not yet typed: see `typed`."""

    file: str
    values: dict[str, list[Any]]  # column -> the value of each row
    separator: str = ""  # of a text table

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    @property
    def described(self) -> str:
        """The columns for messages, and what separates them."""
        separator = f" (separator: {_SEPARATORS[self.separator]})" if self.separator and len(self.values) > 1 else ""
        return f"{listed(self.values)}{separator}"

    def headless(self) -> Columns:
        """The table with its first line as a row; its columns are called 1, 2, and so on."""
        numbered = enumerate(self.values.items(), start=1)
        return Columns(self.file, {str(number): [name, *rows] for number, (name, rows) in numbered}, self.separator)


def read_columns(file: str | Path) -> Columns:
    """Read a table. Raises UserError with the file, the line and the reason."""
    try:
        state = os.stat(file)
    except OSError as error:
        raise UserError(f"the table {printable(str(file))} cannot be read ({error.strerror})") from error
    return _read_columns(str(file), state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=8)  # every split asks for it
def _read_columns(file: str, _changed: int, _size: int) -> Columns:
    name, extension = printable(file), Path(file).suffix.lower()
    if extension not in TABLES:
        raise UserError(f"the table {name} is none of {', '.join(TABLES)}; give one of these")
    if not Path(file).is_file():
        raise UserError(f"the table {name} is not a regular file")
    try:
        if extension == ".parquet":
            import pyarrow.parquet as pq

            columns = Columns(file, pq.read_table(file, partitioning=None).to_pydict())
        elif extension == ".jsonl":
            columns = Columns(file, _from_json(Path(file).read_text(encoding="utf-8-sig"), name))
        else:
            columns = _from_text(file, _decoded(Path(file).read_bytes()), extension)
    except UserError:
        raise
    except UnicodeDecodeError as error:
        raise UserError(f"the table {name} is not text in UTF-8 (byte {error.start}); save it in UTF-8") from error
    except Exception as error:  # pyarrow's and csv's
        raise UserError(f"the table {name} cannot be read ({printable(first_line(error))})") from error
    if not columns.values or not len(columns):
        raise UserError(
            f"the table {name} has no rows{f'; its columns are: {columns.described}' * bool(columns.values)}"
        )
    return columns


def _decoded(data: bytes) -> str:
    """Text in UTF-8, with or without a mark at the start, or in UTF-16 with one, as Excel writes "Unicode text"."""
    return data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")


def _from_text(file: str, text: str, extension: str) -> Columns:
    lines = text.splitlines(keepends=True)
    if lines and re.match("sep=.", lines[0], re.IGNORECASE):  # Excel's own first line
        del lines[0]
    separator = _separator_of(lines, extension)
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=separator == " ", strict=True)
    rows = [(reader.line_num, row) for row in reader if row]
    if not rows:
        raise UserError(f"the table {printable(file)} is empty")
    (_, header), *rows = rows
    header = [name.strip() for name in header]
    columns = Columns(file, {name: [] for name in header}, separator)
    for line, row in rows:
        if len(row) != len(header):
            raise UserError(
                f"the table {printable(file)} has {len(row)} values in line {line}, but {len(header)} columns: "
                f"{columns.described}; mend the line"
            )
    if len(columns.values) < len(header):
        raise UserError(f"the table {printable(file)} has two columns of one name: {columns.described}; rename one")
    return Columns(file, {name: [row[i] for _, row in rows] for i, name in enumerate(header)}, separator)


def _separator_of(lines: Sequence[str], extension: str) -> str:
    """What separates the values: what the first lines have most alike, and most of."""
    some = [line for line in lines[:50] if line.strip()]

    def alike(separator: str) -> tuple[bool, int]:
        try:
            counts = [len(row) for row in csv.reader(some, delimiter=separator, skipinitialspace=separator == " ")]
        except csv.Error:
            return False, 0
        return bool(counts) and counts[0] > 1 and counts.count(counts[0]) * 2 > len(counts), counts[:1][
            0
        ] if counts else 0

    first = "\t" if extension == ".tsv" else ","
    order = [first, *(mark for mark in _SEPARATORS if mark != first and (mark != " " or extension == ".txt"))]
    best = max(order, key=alike)  # the first of equals
    return best if alike(best)[0] else first


def _from_json(text: str, name: str) -> dict[str, list[Any]]:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"the table {name} has no JSON in line {number} ({first_line(error)})") from error
            if not isinstance(row, dict):
                raise UserError(f'the table {name} has no object in line {number}; each line is {{"column": value}}')
            rows.append(row)
    return {column: [row.get(column) for row in rows] for column in dict.fromkeys(key for row in rows for key in row)}


def typed(values: Iterable[Any]) -> list[Any]:
    """The values of a column: text that is all whole numbers or all numbers becomes them; missing ones become None.

    Numbers that begin with a 0, as 007, stay text: they are names.
    """
    found = [None if isinstance(value, str) and value.strip() in _MISSING else value for value in values]
    words = [value for value in found if value is not None]
    if not all(isinstance(word, str) for word in words):
        return found
    if all(re.fullmatch(r"\s*[+-]?(0|[1-9]\d{0,17})\s*", word) for word in words):
        return [None if value is None else int(value) for value in found]
    try:
        return [None if value is None else float(value) for value in found] if not any(map(_zero_led, words)) else found
    except ValueError:
        return found


def _zero_led(word: str) -> bool:
    return re.match(r"\s*0\d", word) is not None or "_" in word  # Python reads 1_0 as a number
