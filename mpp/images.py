"""Where images come from: one function over `datasets`, WebDataset shards, and the built-in `shapes`.

A source gives PIL images by index, opened but not decoded (`mpp.decode`).
"""

from __future__ import annotations

import errno
import glob
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from mpp.decode import Unreadable, open_image, printable
from mpp.errors import UserError, first_line
from mpp.folders import look_through
from mpp.packed import PackedImages, is_packed, read_header
from mpp.shapes import LABELS, SPLITS, Shapes

if TYPE_CHECKING:
    from datasets import Dataset


class Images(Protocol):
    """A set of images that are read by index."""

    @property
    def label_names(self) -> list[str] | None: ...

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> Sequence[Image.Image | Unreadable]:
        """Open images, in order; one that is no image is given as `Unreadable` in its place."""
        ...

    def labels(self, indices: Sequence[int]) -> np.ndarray:
        """Class numbers (len(indices),) int64; raises UserError if the set has none."""
        ...

    def where(self, index: int) -> str:
        """The file or row an image comes from, for messages."""
        ...


def load_images(
    path: str,
    split: str = "train",
    *,
    size: tuple[int, int] = (32, 32),
    image_column: str | None = None,
    label_column: str | None = None,
) -> Images:
    """Open one split of a set of images.

    Args:
        path: `shapes` (built in), a folder of images (with or without a folder a class), a folder or file of parquet,
            or a hub id. (Folders of WebDataset .tar shards are streamed, see `mpp.streams`.)
        split: "train", "validation", "test", as the set calls them.
        size: (height, width) in pixels of the scenes of `shapes`; other images keep their own.
        image_column, label_column: needed only where several could be meant. For `shapes` the label column is one of
            shape (default), colour, count, place.

    Raises UserError with the way out if there is no such set, split or column.
    """
    if path == "shapes":
        if split not in SPLITS:
            raise UserError(
                f"shapes has no split {split!r}; it has: {', '.join(SPLITS)} (--data.split, --data.eval-split)"
            )
        if label_column not in (None, *LABELS):
            raise UserError(f"shapes has no label column {label_column!r}; it has: {', '.join(LABELS)}")
        return Shapes(split, size, label_column or "shape")
    if is_packed(path):
        if image_column or label_column:
            raise UserError(f"{path} is packed, with the image and label that it was packed with: name columns there")
        return PackedImages(path, split)
    return TableImages(_load_table(path, split), path, split, image_column, label_column)


def split_names(path: str) -> list[str]:
    """The splits of a set, without reading its images."""
    if path == "shapes":
        return list(SPLITS)
    if is_packed(path):
        return list(read_header(path)["splits"])
    from datasets import get_dataset_split_names

    name, options = source_of(path)
    with naming_the_source(path):
        return [str(split) for split in get_dataset_split_names(name, **options)]


class TableImages:
    """Images in a table of `datasets`: memory-mapped from disk, so its size does not matter to memory."""

    def __init__(
        self, table: Dataset, path: str, split: str, image_column: str | None = None, label_column: str | None = None
    ) -> None:
        import datasets

        self.path, self.split, self.columns = path, split, table.column_names
        self.image_column = pick_column(table, image_column, "image")
        try:
            images = table.cast_column(self.image_column, datasets.Image(decode=False))
        except (TypeError, ValueError, NotImplementedError) as error:
            raise UserError(
                f"--data.image-column {self.image_column} holds no images; there are: {', '.join(self.columns)}"
            ) from error
        self.table = images.select_columns(self.image_column)
        self._whole_table, self._named_label = table, label_column
        if label_column is not None:
            _ = self._labels  # a wrong name is told at once; what is not named, when labels are wanted

    @cached_property
    def _labels(self) -> LabelColumn | None:
        table = self._whole_table
        column = pick_column(table, self._named_label, "label")
        if not column or (self._named_label is None and _names_splits(table.features[column])):
            return None
        labels = LabelColumn.of(table.select_columns(column), column, self.path)
        return labels if labels.filled else None

    @property
    def fingerprint(self) -> str:
        """Another one whenever the files behind the set, or what is taken from them, change."""
        return f"{self._whole_table._fingerprint}-{self.image_column}-{self._named_label}"

    @property
    def label_names(self) -> list[str] | None:
        return None if self._labels is None else self._labels.names

    def __len__(self) -> int:
        return len(self.table)

    def read(self, indices: Sequence[int]) -> list[Image.Image | Unreadable]:
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
        """As `labels`, with -1 where there is none."""
        assert self._labels is not None
        return np.array([-1 if value is None else value for value in self._labels.values(indices)], dtype=np.int64)

    def where(self, index: int) -> str:
        row = self.table[int(index)][self.image_column] or {}
        named = row.get("path") and row.get("bytes") is None
        return printable(row["path"] if named else f"{self.path}, {self.split} row {index}")


@dataclass(frozen=True)
class LabelColumn:
    """The labels of a table, and the names of the classes."""

    table: Dataset
    column: str
    names: list[str]
    class_of: dict[Any, int] | None  # of the column's values, where they are no class numbers

    @classmethod
    def of(cls, table: Dataset, column: str, path: str) -> LabelColumn:
        """The labels in `column`: its classes, or the values that it has in any split."""
        import datasets

        if isinstance(table.features[column], datasets.ClassLabel):
            return cls(table, column, list(table.features[column].names), None)
        values = _values_in_all_splits(path, column)
        return cls(table, column, [str(v) for v in values], {value: number for number, value in enumerate(values)})

    @property
    def filled(self) -> bool:
        """Whether there is a label at all: test splits of published sets often have the column, and nothing in it."""
        return any(self._number(value) is not None for value in self.table.unique(self.column))

    def values(self, indices: Sequence[int]) -> list[int | None]:
        """Class numbers of rows, None where there is no label."""
        return [self._number(value) for value in self.table[list(map(int, indices))][self.column]]

    def _number(self, value: Any) -> int | None:
        if self.class_of is not None:
            return self.class_of.get(value)
        return None if value is None or value < 0 else value  # -1 is how `datasets` marks a missing ClassLabel


def _load_table(path: str, split: str) -> Dataset:
    from datasets import load_dataset

    if split not in (splits := split_names(path)):
        raise UserError(f"{path} has no split {split!r}; it has: {', '.join(splits)} (--data.split, --data.eval-split)")
    name, options = source_of(path)
    with naming_the_source(path):
        return load_dataset(name, split=split, **options)


def source_of(path: str) -> tuple[str, dict[str, Any]]:
    """What `datasets.load_dataset` takes for a path: its first argument and options."""
    with naming_the_source(path):
        here = Path(path).expanduser()
        if here.is_dir():
            if not any(here.iterdir()):
                raise UserError(f"--data.path {path} is an empty folder")
            if (splits := look_through(str(here)).splits) is None:
                return str(here), {}
            names = {
                split: [glob.escape(str(here.joinpath(*head))) for head in heads] for split, heads in splits.items()
            }
            return "imagefolder", {"data_files": {split: [f"{name}/**" for name in names[split]] for split in names}}
        if here.suffix == ".parquet" and here.is_file():
            return "parquet", {"data_files": {"train": str(here)}}
    if here.exists():
        raise UserError(
            f"--data.path {path} is a file that is neither parquet nor packed; give a folder of images, a .parquet "
            f"file, or what tools/pack.py wrote"
        )
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise UserError(f"--data.path {path} does not exist")
    return path, {}


@contextmanager
def naming_the_source(path: str) -> Iterator[None]:
    """Turn what `datasets` raises for a bad source into one line that names it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause: BaseException = error
        while str(cause).startswith("An error occurred while generating") and cause.__cause__:
            cause = cause.__cause__  # what `datasets` says of everything
        reason = printable(first_line(cause))
        if isinstance(cause, OSError) and cause.errno in (errno.EROFS, errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"--data.path {path}: the table of its images cannot be written ({reason}); HF_HOME names another place"
            ) from error
        raise UserError(
            f"--data.path {path} could not be read as a set of images ({reason}); it takes a folder of images, "
            f"a folder or file of parquet, a folder of WebDataset .tar shards, a hub id, or shapes"
        ) from error


def _values_in_all_splits(path: str, label: str) -> list:
    """What a column of numbers or words holds, in order: the classes, the same for every split of a set."""
    import datasets

    tables = [_load_table(path, split) for split in split_names(path)]
    if not all(isinstance(table.features.get(label), datasets.Value) for table in tables):
        raise UserError(f"--data.label-column {label}: it holds no numbers or words in some split of {path}")
    of_split = [{v for v in table.unique(label) if v is not None and v == v} for table in tables]
    values = set().union(*of_split)
    if not values or isinstance(next(iter(values)), str) or min(values) != -1:
        return sorted(values)
    # -1 is how many sets mark a missing label, where classes are counted from 0, or a split has no others
    return sorted(values - {-1} if max(values) > 1 or {-1} in of_split else values)


def _names_splits(feature: Any) -> bool:
    """Whether classes are only the folders of splits, which `datasets` takes for classes if there are no others."""
    import datasets
    from datasets.data_files import SPLIT_KEYWORDS

    folders = {word for words in SPLIT_KEYWORDS.values() for word in words}
    return isinstance(feature, datasets.ClassLabel) and set(feature.names) <= folders


def pick_column(table: Dataset, named: str | None, kind: str) -> str:
    """The column called `named`, or the one whose type says that it holds the "image" or the "label" ("" if none)."""
    import datasets

    columns = ", ".join(table.column_names)
    if named is not None:
        if named not in table.column_names:
            raise UserError(f"--data.{kind}-column {named}: there is no such column; there are: {columns}")
        return named
    types = datasets.Image if kind == "image" else datasets.ClassLabel
    fitting = [name for name, feature in table.features.items() if isinstance(feature, types)]
    if not fitting:  # plain parquet: bytes for an image, and a label only if it is called so
        plain = (name for name, feature in table.features.items() if isinstance(feature, datasets.Value))
        binary = ("binary", "large_binary")
        fitting = [n for n in plain if (table.features[n].dtype in binary if kind == "image" else n == "label")]
    if len(fitting) > 1 or (kind == "image" and not fitting):
        found = f"several columns could hold the {kind}: {', '.join(fitting)}" if fitting else f"no {kind} column"
        raise UserError(f"{found} among {columns}; name it with --data.{kind}-column")
    return fitting[0] if fitting else ""
