"""Embeddings of a set in files: one for each part of the set, written as a whole, then all in one; and their nearest.

A table has the columns image, (label,) embedding: D floats, or for all patches N lists of D.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from mpp.evaluation.predictions import write_table
from mpp.files import csv_cell, draft_of

_ROWS = 1024  # of a table, read at a time


class Writer:
    """Writes a table of embeddings of shape (D,) or (N, D), a batch at a time. It is there once all of it is."""

    def __init__(self, file: Path, shape: Sequence[int], labelled: bool) -> None:
        self.file, self.draft = file, draft_of(file)
        self.type: Any = pa.float32()
        for size in reversed(shape):
            self.type = pa.list_(self.type, size)
        labels = [("label", pa.string())] if labelled else []
        self.schema = pa.schema([("image", pa.string()), *labels, ("embedding", self.type)])

    def __enter__(self) -> Writer:
        self.writer = parquet.ParquetWriter(self.draft, self.schema, use_dictionary=["label"])
        return self

    def add(self, names: list[str], labels: list[str | None] | None, embeddings: np.ndarray) -> None:
        """Append rows: embeddings (B, D) or (B, N, D) float32."""
        column: Any = pa.array(embeddings.reshape(-1))
        for size in reversed(embeddings.shape[1:]):
            column = pa.FixedSizeListArray.from_arrays(column, size)
        columns = [pa.array(names, pa.string()), *([pa.array(labels, pa.string())] if labels is not None else [])]
        self.writer.write_batch(pa.record_batch([*columns, column], schema=self.schema))

    def note(self, unreadable: dict[str, str]) -> None:
        """Keep with the table which images were left out, and why."""
        self.writer.add_key_value_metadata({"unreadable": json.dumps(unreadable)})

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.writer.close()
        if kind is None:
            os.replace(self.draft, self.file)
        else:
            self.draft.unlink(missing_ok=True)


def unreadable_of(table: Path) -> dict[str, str]:
    """The images that were left out of a part, and why."""
    return json.loads((parquet.read_metadata(table).metadata or {}).get(b"unreadable", b"{}"))


def join(parts: Sequence[Path], out: Path, shape: Sequence[int], labelled: bool) -> int:
    """Put the tables of all parts into one file, .parquet, or .npy with the names beside it in a .csv; returns the
    number of rows. No more than a part of a table is in memory."""
    count = sum(parquet.read_metadata(part).num_rows for part in parts)
    if out.suffix == ".parquet":
        with Writer(out, shape, labelled) as writer:
            for part in parts:
                for batch in parquet.ParquetFile(part).iter_batches(_ROWS):
                    writer.writer.write_batch(batch.cast(writer.schema))
        return count
    draft = draft_of(out)
    try:
        array = np.lib.format.open_memmap(draft, "w+", np.float32, (count, *shape))
        names: dict[str, list[Any]] = {"image": []} | ({"label": []} if labelled else {})
        start = 0
        for part in parts:
            for rows in chunks(part):
                array[start : start + len(rows)] = rows
                start += len(rows)
            table = parquet.read_table(part, columns=list(names)).to_pydict()
            for name, column in table.items():
                names[name] += column
        array.flush()
        del array
        write_table(names, str(names_beside(out)), overwrite=True)
        os.replace(draft, out)  # last: where it is, its names are, too
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return count


def names_beside(out: Path) -> Path:
    """The file with the names of the rows of a .npy file."""
    return out.with_suffix(".csv")


def chunks(file: Path) -> Iterator[np.ndarray]:
    """The embeddings of a file, some rows at a time: float32 (R, D) or (R, N, D)."""
    if file.suffix == ".npy":
        array = np.load(file, mmap_mode="r", allow_pickle=False)
        for start in range(0, len(array), _ROWS):
            yield np.asarray(array[start : start + _ROWS])
        return
    for batch in parquet.ParquetFile(file).iter_batches(_ROWS, columns=["embedding"]):
        column, shape = batch.column("embedding"), [len(batch)]
        while isinstance(column, pa.FixedSizeListArray):
            shape.append(column.type.list_size)
            column = column.flatten()
        yield column.to_numpy().reshape(shape)


def names_of(file: Path) -> dict[str, list[str]]:
    """The columns image and (if there are labels) label of a file of embeddings."""
    if file.suffix == ".parquet":
        columns = [name for name in ("image", "label") if name in parquet.read_schema(file).names]
        return parquet.read_table(file, columns=columns).to_pydict()
    with names_beside(file).open(encoding="utf-8", newline="") as lines:
        head, *rows = ([_typed(cell) for cell in row] for row in csv.reader(lines))
    return {name: [row[number] for row in rows] for number, name in enumerate(head)}


def _typed(cell: str) -> str:
    """A text without the ' that `csv_cell` has put before it."""
    return cell[1:] if cell[:1] == "'" and csv_cell(cell[1:]) == cell else cell


def nearest(file: Path, query: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` rows nearest to a query (D,) by cosine, the nearest first: their numbers and cosines in -1..1."""
    query = query / max(float(np.linalg.norm(query)), 1e-12)
    found = [rows @ query / np.linalg.norm(rows, axis=1).clip(1e-12) for rows in chunks(file)]
    cosines = np.concatenate(found) if found else np.empty(0, np.float32)
    best = np.argsort(-cosines, kind="stable")[:count]
    return best, cosines[best]
