"""Tables of images and labels that `datasets` reads from folders, parquet and the hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from mpp.data.bands import Bands
from mpp.data.contents import Contents, Listing, name_within
from mpp.data.decode import Opened, Unreadable, open_image
from mpp.errors import UserError, listed, printable

if TYPE_CHECKING:
    from datasets import Dataset

_ROWS = 1000  # of a table, looked at together


class TableImages:
    """Images in a table of `datasets`. It is memory-mapped from disk, so a large table needs no more memory."""

    def __init__(
        self,
        tables: Mapping[str, Callable[[], Dataset]],
        path: str,
        split: str,
        image_column: str | None = None,
        label_column: str | None = None,
    ) -> None:
        """`tables` has every split of the set; its classes are those of all of them."""
        import datasets

        table = tables[split]()
        self.path, self.split, self.columns, self.bands = path, split, table.column_names, Bands(3)
        self.image_column = pick_column(table, image_column, "image")
        try:
            images = table.cast_column(self.image_column, datasets.Image(decode=False))
        except (TypeError, ValueError, NotImplementedError) as error:
            raise UserError(
                f"--data.image-column {self.image_column} holds no images; the columns are: {', '.join(self.columns)}"
            ) from error
        self.table = images.select_columns(self.image_column)
        self._whole_table, self._tables, self._named_label = table, tables, label_column
        if label_column is not None:
            _ = self._labels  # a wrong name raises now; other errors wait until labels are needed

    @cached_property
    def _labels(self) -> LabelColumn | None:
        table = self._whole_table
        column = pick_column(table, self._named_label, "label")
        if not column or (self._named_label is None and _names_splits(table.features[column])):
            return None
        labels = LabelColumn.of(table.select_columns(column), column, self._tables, self.path)
        return labels if labels.filled else None

    @property
    def label_names(self) -> list[str] | None:
        return None if self._labels is None else self._labels.names

    def __len__(self) -> int:
        return len(self.table)

    def read(self, indices: Sequence[int]) -> list[Opened | Unreadable]:
        return [open_image(row, self.path) for row in self.table[list(map(int, indices))][self.image_column]]

    def labels(self, indices: Sequence[int]) -> np.ndarray:
        if self._labels is None:
            raise UserError(f"{self.path} has no label column; name one of {self.columns} with --data.label-column")
        found = self.labels_or_none(indices)
        if (found < 0).any():
            where = self.where(indices[int(np.argmin(found))])
            raise UserError(
                f"{where} has no label (column {self._labels.column}); name another split (--data.split, "
                f"--data.eval-split) or column (--data.label-column)"
            )
        return found

    def labels_or_none(self, indices: Sequence[int]) -> np.ndarray:
        """As `labels`, but -1 for an image without a label."""
        assert self._labels is not None
        found = np.array([-1 if value is None else value for value in self._labels.values(indices)], dtype=np.int64)
        if (found >= len(self._labels.names)).any():
            where, classes = self.where(indices[int(np.argmax(found))]), len(self._labels.names)
            raise UserError(
                f"{where} has label number {found.max()}, but column {self._labels.column} has {classes} classes (0 to "
                f"{classes - 1}); correct the table, or name another column (--data.label-column)"
            )
        return found

    def where(self, index: int) -> str:
        row = self.table[int(index)][self.image_column] or {}
        named = row.get("path") and row.get("bytes") is None
        return printable(row["path"] if named else f"{self.path}, {self.split} row {index}")

    def contents(self, labels: bool = False) -> Contents:
        """The images by name, size and content; files without a name by their content."""
        named = self._labels.names if labels and self._labels else []
        texts = [named[n] if n >= 0 else "" for n in self.labels_or_none(range(len(self)))] if named else []
        listing = Listing(len(self))
        for start in range(0, len(self), _ROWS):
            rows = self.table.with_format("arrow")[start : start + _ROWS][self.image_column].combine_chunks()
            encoded = rows.field("bytes")
            for number, path in enumerate(rows.field("path").to_pylist()):
                label = texts[start + number] if texts else ""
                if encoded[number].is_valid:
                    listing.add(path or None, memoryview(encoded[number].as_buffer()), label)
                else:
                    listing.add_file(name_within(path or "", self.path), path or "", label)
        if listing.step > 1:  # not all were hashed
            for file in self.table.cache_files:
                listing.note_times(file["filename"])
        return listing.contents(self.split)


@dataclass(frozen=True)
class LabelColumn:
    """The labels of a table, and the names of the classes."""

    table: Dataset
    column: str
    names: list[str]
    class_of: dict[Any, int] | None  # value -> class number; None if values are class numbers

    @classmethod
    def of(cls, table: Dataset, column: str, tables: Mapping[str, Callable[[], Dataset]], path: str) -> LabelColumn:
        """The labels in `column`. Classes are its named classes, or else the values it has in any split."""
        import datasets

        if isinstance(table.features[column], datasets.ClassLabel):
            return cls(table, column, list(table.features[column].names), None)
        values = _values_in_all_splits(tables, column, path)
        return cls(table, column, [str(v) for v in values], {value: number for number, value in enumerate(values)})

    @property
    def filled(self) -> bool:
        """Whether any row has a label: test splits of published sets often have an empty label column."""
        return any(self._number(value) is not None for value in self.table.unique(self.column))

    def values(self, indices: Sequence[int]) -> list[int | None]:
        """Class numbers of rows, None where there is no label."""
        return [self._number(value) for value in self.table[list(map(int, indices))][self.column]]

    def _number(self, value: Any) -> int | None:
        if self.class_of is not None:
            return self.class_of.get(value)
        return None if value is None or value < 0 else value  # `datasets` marks a missing ClassLabel with -1


def _values_in_all_splits(splits: Mapping[str, Callable[[], Dataset]], label: str, path: str) -> list:
    """The sorted values of a column of numbers or words in all splits: every split of a set has the same classes."""
    import datasets

    tables = [table() for table in splits.values()]
    if not all(isinstance(table.features.get(label), datasets.Value) for table in tables):
        raise UserError(f"--data.label-column {label} does not hold numbers or words in every split of {path}")
    of_split = [{v for v in table.unique(label) if v is not None and v == v} for table in tables]
    values = set().union(*of_split)
    if not values or isinstance(next(iter(values)), str) or min(values) != -1:
        return sorted(values)
    # many sets mark a missing label with -1: so taken if a class is above 1, or a split holds only -1
    return sorted(values - {-1} if max(values) > 1 or {-1} in of_split else values)


def _names_splits(feature: Any) -> bool:
    """Whether classes are only names of splits: `datasets` takes these folders for classes if there are no others."""
    import datasets
    from datasets.data_files import SPLIT_KEYWORDS

    folders = {word for words in SPLIT_KEYWORDS.values() for word in words}
    return isinstance(feature, datasets.ClassLabel) and set(feature.names) <= folders


def pick_column(table: Dataset, named: str | None, kind: str) -> str:
    """The column `named`, or the one with the type of `kind` ("image" or "label"); "" if no column holds labels."""
    import datasets

    columns = listed(table.column_names)
    if named is not None:
        if named not in table.column_names:
            raise UserError(f"--data.{kind}-column {named} does not exist; the columns are: {columns}")
        return named
    types = datasets.Image if kind == "image" else datasets.ClassLabel
    fitting = [name for name, feature in table.features.items() if isinstance(feature, types)]
    if not fitting:  # plain parquet: images are bytes, and a label column is named so
        plain = (name for name, feature in table.features.items() if isinstance(feature, datasets.Value))
        binary = ("binary", "large_binary")
        fitting = [n for n in plain if (table.features[n].dtype in binary if kind == "image" else n == "label")]
    if len(fitting) > 1 or (kind == "image" and not fitting):
        found = f"several columns could hold the {kind}: {listed(fitting)}" if fitting else f"no {kind} column"
        raise UserError(f"{found} among {columns}; name it with --data.{kind}-column")
    return fitting[0] if fitting else ""
