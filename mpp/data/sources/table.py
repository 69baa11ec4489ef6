"""Tables of images and labels that `datasets` reads from folders, parquet and the hub."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from mpp.data.bands import Bands
from mpp.data.contents import Contents, Listing, name_within
from mpp.data.decode import Opened, Unreadable, is_within, open_image
from mpp.data.sources.beside import several_labels, tables_that_fit
from mpp.data.sources.classes import class_name
from mpp.errors import UserError, is_first_process, listed, printable, warn

if TYPE_CHECKING:
    from datasets import Dataset

_ROWS = 1000  # of a table, looked at together


_SEVERAL = {"label", "labels", "class", "classes", "category", "categories", "tag", "tags", "target", "targets"}


_PATHS = {"file_name", "filename", "file", "file_path", "filepath", "path", "image", "image_path", "img", "img_path"}


class TableImages:
    """Images in a table of `datasets`. It is memory-mapped from disk, so a large table needs no more memory."""

    def __init__(
        self,
        tables: Mapping[str, Callable[[], Dataset]],
        path: str,
        split: str,
        image_column: str | None = None,
        label_column: str | None = None,
        folders: Callable[[], list[tuple[int, str]]] | None = None,
    ) -> None:
        """`tables` has every split of the set; its classes are those of all of them. `folders` gives the folders of the
        split's tables, to which paths are relative, each with its first row; without it, the set's folder is taken."""
        import datasets

        table = tables[split]()
        self.path, self.split, self.columns, self.bands = path, split, table.column_names, Bands(3)
        self.image_column = pick_column(table, image_column, "image")
        try:
            images = table.cast_column(self.image_column, datasets.Image(decode=False))
        except (TypeError, ValueError, NotImplementedError) as error:
            raise UserError(
                f"--data.image-column {self.image_column} holds no images; the columns are: {listed(self.columns)}"
            ) from error
        self.table = images.select_columns(self.image_column)
        self._folders = [(0, path)]
        if folders is not None and any(not os.path.isabs(file) for file in self._paths()):
            self._folders = folders()
        self._refuse_outside()
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
        if (number := labels.highest) >= len(labels.names):
            where = self.where(labels.values(range(len(self))).index(number))
            raise UserError(
                f"{where} has label number {number}, but column {printable(column)} has {len(labels.names)} classes (0 "
                f"to {len(labels.names) - 1}); correct the table, or name another column (--data.label-column)"
            )
        return labels if number >= 0 else None

    @property
    def label_names(self) -> list[str] | None:
        return None if self._labels is None else self._labels.names

    def __len__(self) -> int:
        return len(self.table)

    def read(self, indices: Sequence[int]) -> list[Opened | Unreadable]:
        rows = self.table[list(map(int, indices))][self.image_column]
        return [open_image(self._placed(row, i), self.path) for i, row in zip(indices, rows, strict=True)]

    def _placed(self, row: dict[str, Any] | None, index: int) -> dict[str, Any] | None:
        """A row whose path, if it has one instead of an image, is relative to its table no more."""
        if not row or row["bytes"] is not None or not row["path"]:
            return row
        return row | {"path": self._file(row["path"], index)}

    def _file(self, path: str, index: int) -> str:
        if os.path.isabs(path) or "://" in path:
            return path
        folder = next(folder for first, folder in reversed(self._folders) if first <= index)
        return os.path.normpath(os.path.join(os.path.abspath(folder), path))

    def _paths(self) -> list[str]:
        """The paths of the rows that have one instead of an image."""
        import pyarrow.compute as pc

        images = self.table.with_format("arrow")[:][self.image_column]
        paths = pc.filter(pc.struct_field(images, "path"), pc.is_null(pc.struct_field(images, "bytes")))
        return [path for path in paths.to_pylist() if path and "::" not in path]

    def _refuse_outside(self) -> None:
        """Raise UserError if a row's path leads out of the set."""
        one_of = {os.path.dirname(file): file for file in self._paths()}  # of each folder
        for file in one_of.values():
            if any(
                "://" in file or not is_within(os.path.join(folder, file), self.path) for _, folder in self._folders
            ):
                raise UserError(
                    f"the table {self.path} leads out of its folder, to {printable(file)}; a set reads no files but "
                    f"its own: mend the table, or give as --data.path the folder that holds both"
                )

    def labels(self, indices: Sequence[int]) -> np.ndarray:
        if self._labels is None:
            raise UserError(f"--data.path {self.path} has no labels{self.why_no_labels()}")
        found = self.labels_or_none(indices)
        if (found < 0).any():
            where = self.where(indices[int(np.argmin(found))])
            raise UserError(
                f"{where} has no label (column {self._labels.column}); name another split (--data.split, "
                f"--data.eval-split) or column (--data.label-column)"
            )
        return found

    def why_no_labels(self) -> str:
        """What there is instead of a label column, and what to do: ": ..."."""
        import datasets

        features = self._whole_table.features
        images = {self.image_column, *(n for n in self.columns if isinstance(features[n], datasets.Image))}
        others = [name for name in self.columns if name not in images and not _names_splits(features[name])]
        if self._named_label is None and (
            lists := [name for name in others if name.lower() in _SEVERAL and _is_list(self._whole_table, name)]
        ):
            return several(lists[0], self._whole_table[lists[0]])
        plain = [name for name in others if isinstance(features[name], datasets.Value)]
        flags = [name for name in plain if set(self._whole_table.unique(name)) <= {0, 1, None}]
        if len(flags) > 1 and len(flags) == len(plain):
            return f": {several_labels(self.path, flags)}; --data.label-column makes one of them the label"
        pictures = os.path.isdir(os.path.expanduser(self.path)) and self.image_column == "image" and self._paths()
        fitting = tables_that_fit(self.path, [load() for load in self._tables.values()]) if pictures else []
        beside = "".join(f"; {os.path.basename(file)} lies beside: --data.labels-file {file}" for file in fitting[:3])
        if others:
            return (
                f"; its columns are: {listed(self.columns)}; --data.label-column names the one with the labels{beside}"
            )
        return beside or "; put each class in a folder, or give a table of labels with --data.labels-file"

    def labels_or_none(self, indices: Sequence[int]) -> np.ndarray:
        """As `labels`, but -1 for an image without a label."""
        assert self._labels is not None
        return np.array([-1 if value is None else value for value in self._labels.values(indices)], dtype=np.int64)

    def where(self, index: int) -> str:
        row = self._placed(self.table[int(index)][self.image_column], int(index)) or {}
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
                    file = self._file(path, start + number) if path else ""
                    listing.add_file(name_within(file, self.path), file, label)
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

        feature = table.features[column]
        numbered = isinstance(feature, datasets.ClassLabel)
        if _is_list(table, column):
            raise UserError(f"--data.label-column {column}{several(column, table[column])}")
        values = list(feature.names) if numbered else _values_in_all_splits(tables, column, path)
        texts = [class_name(str(value)) for value in values]
        names = list(dict.fromkeys(texts))
        if numbered and len(names) == len(texts):
            return cls(table, column, names, None)
        number_of = {name: number for number, name in enumerate(names)}
        keys = range(len(values)) if numbered else values
        return cls(table, column, names, {key: number_of[text] for key, text in zip(keys, texts, strict=True)})

    @property
    def highest(self) -> int:
        """The highest class number of a row; -1 if none has a label, as in the test splits of many published sets."""
        numbers = map(self._number, self.table.unique(self.column))
        return max((number for number in numbers if number is not None), default=-1)

    def values(self, indices: Sequence[int]) -> list[int | None]:
        """Class numbers of rows, None where there is no label."""
        return [self._number(value) for value in self.table[list(map(int, indices))][self.column]]

    def _number(self, value: Any) -> int | None:
        if self.class_of is not None:
            return self.class_of.get(value)
        return None if value is None or value < 0 else value  # `datasets` marks a missing ClassLabel with -1


def _is_list(table: Dataset, column: str) -> bool:
    import pyarrow as pa

    kind = table.data.schema.field(column).type
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def several(column: str, values: Sequence[Any]) -> str:
    """What is said of a column that is no single number or word: ": ..."."""
    example = next((value for value in values if isinstance(value, list) and len(value) > 1), None)
    as_here = f", as {printable(', '.join(map(str, example[:3])))}" if example else ""
    return (
        f": column {printable(column)} holds lists{as_here}: several labels an image are not supported; "
        f"--data.label-column names a column with one number or word an image"
    )


def _values_in_all_splits(splits: Mapping[str, Callable[[], Dataset]], label: str, path: str) -> list:
    """The sorted values of a column of numbers or words in all splits: every split of a set has the same classes."""
    import datasets

    tables = [table for load in splits.values() if label in (table := load()).column_names]
    if not all(isinstance(table.features[label], datasets.Value) for table in tables):
        raise UserError(f"--data.label-column {label} does not hold numbers or words in every split of {path}")
    of_split = [{v for v in table.unique(label) if v is not None and v == v} for table in tables]
    values = set().union(*of_split)
    if any(isinstance(value, float) for value in values):
        _refuse_measurements(tables, label, len(values), path)
    if not values or isinstance(next(iter(values)), str) or min(values) != -1:
        return sorted(values)
    # many sets mark a missing label with -1: so taken if a class is above 1, or a split holds only -1
    return sorted(values - {-1} if max(values) > 1 or {-1} in of_split else values)


def _refuse_measurements(tables: Sequence[Dataset], label: str, classes: int, path: str) -> None:
    """Say how many classes numbers with a fraction make. Raises UserError if hardly any is there twice."""
    count = sum(value is not None and value == value for table in tables for value in table[label])
    what = f"column {printable(label)} of {path} makes {classes:,} classes from {count:,} values"
    if classes * 2 > count:
        raise UserError(
            f"{what}: these are measurements, and regression is not supported; sort them into a few classes, in a "
            f"column that --data.label-column names"
        )
    if is_first_process():
        warn(f"{what}, which are numbers with a fraction; regression is not supported")


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
            beside = "; --data.labels-file gives a folder of images labels" if table.column_names == ["image"] else ""
            raise UserError(f"--data.{kind}-column {named} does not exist; the columns are: {columns}{beside}")
        return named
    types = datasets.Image if kind == "image" else datasets.ClassLabel
    fitting = [name for name, feature in table.features.items() if isinstance(feature, types)]
    if not fitting:  # plain tables: images are bytes, or paths in a column named so, and labels are named so
        plain = (name for name, feature in table.features.items() if isinstance(feature, datasets.Value))
        binary = ("binary", "large_binary")
        fitting = [n for n in plain if (table.features[n].dtype in binary if kind == "image" else n == "label")]
    if not fitting and kind == "image":
        fitting = [n for n in table.column_names if n.lower() in _PATHS and "string" in str(table.features[n])]
    if len(fitting) > 1 or (kind == "image" and not fitting):
        found = f"several columns could hold the {kind}: {listed(fitting)}" if fitting else f"no {kind} column"
        raise UserError(f"{found} among {columns}; name it with --data.{kind}-column")
    return fitting[0] if fitting else ""
