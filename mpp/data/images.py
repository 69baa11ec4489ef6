"""Sets of images that are read by index. `load_images` opens all kinds."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np

from mpp.config.options import Source
from mpp.data.bands import Bands
from mpp.data.contents import Contents
from mpp.data.decode import Opened, Unreadable
from mpp.data.sources.labelled_shards import ShardImages
from mpp.data.sources.memory import is_memory, open_in_memory
from mpp.data.sources.packed import PackedImages, is_packed
from mpp.data.sources.path import folders_of_rows, is_stream, load_table, refuse_class_level, shard_files, split_names
from mpp.data.sources.shapes import LABELS, Shapes
from mpp.data.sources.shards import refuse_dots_in_keys
from mpp.data.sources.table import TableImages
from mpp.errors import UserError, printable


class Images(Protocol):
    """A set of images that is read by index."""

    @property
    def label_names(self) -> list[str] | None: ...

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> Sequence[Opened | Unreadable]:
        """Open images, in order. `Unreadable` takes the place of a file that is not an image."""
        ...

    def labels(self, indices: Sequence[int]) -> np.ndarray:
        """Class numbers (len(indices),) int64; raises UserError if the set has none."""
        ...

    def where(self, index: int) -> str:
        """The file or row an image comes from, for messages."""
        ...

    def contents(self, labels: bool = False) -> Contents:
        """What the whole split holds, with the images' labels if so asked."""
        ...


def load_images(
    path: str,
    split: str = "train",
    *,
    size: tuple[int, int] = (32, 32),
    image_column: str | None = None,
    label_column: str | None = None,
    config: str | None = None,
    class_level: int | None = None,
    labels_file: str | None = None,
) -> Images:
    """Open one split of a set of images.

    Args:
        path: `shapes` (built in), a folder of images (with or without class folders), a folder or file of parquet, a
            csv, tsv or jsonl file with paths of images, a folder from `save_to_disk` of `datasets`, a packed file, a
            name from `mpp.from_memory`, a folder of WebDataset .tar shards, or a hub id. (Shards
            without labels are better streamed: `mpp.data.streams`.)
        split: "train", "validation", "test", as the set calls them.
        size: (height, width) in pixels of the scenes of `shapes`; other images keep their size.
        image_column, label_column: needed only if several columns fit. For `shapes` the label column is one of
            shape (default), colour, count, place.
        config: needed only if the set has several configurations.
        class_level: which folders of a folder of images are the classes, from 1 below the splits (default).
        labels_file: a table with the labels of a folder of images (csv, tsv, jsonl, parquet).

    Raises UserError with the way out if there is no such set, split or column.
    """
    if split not in (splits := split_names(path, config)):
        raise UserError(
            f"{path} has no split {split!r}; it has: {', '.join(map(printable, splits))} (--data.split, "
            f"--data.eval-split)"
        )
    if path == "shapes" or is_memory(path) or is_packed(path):
        refuse_class_level(path, class_level)
    if is_memory(path):
        if labels_file is not None:
            raise UserError(f"--data.labels-file {labels_file} is for a folder of images; give (images, labels)")
        return open_in_memory(path, split, image_column, label_column)
    if path == "shapes":
        if labels_file is not None:
            raise UserError(f"--data.labels-file {labels_file} is for a folder of images; shapes has labels of its own")
        if label_column not in (None, *LABELS):
            raise UserError(f"shapes has no label column {label_column!r}; it has: {', '.join(LABELS)}")
        return Shapes(split, size, label_column or "shape")
    if is_packed(path):
        if image_column or label_column or labels_file:
            raise UserError(f"{path} is packed and has no other columns: name columns when packing (tools/pack.py)")
        return PackedImages(path, split)
    if is_stream(path, config):
        refuse_class_level(path, class_level)
        if labels_file is not None:
            raise UserError(f"--data.labels-file {labels_file} is for a folder of images; shards have labels inside")
        if image_column is None:
            refuse_dots_in_keys(path)
        return ShardImages(path, split, shard_files(path, config), image_column, label_column)
    beside = {"labels_file": labels_file, "label_column": label_column}
    tables = {name: partial(load_table, path, name, config, class_level, **beside) for name in splits}
    return TableImages(tables, path, split, image_column, label_column, partial(folders_of_rows, path, split, config))


def open_images(data: Source, split: str, size: tuple[int, int] = (32, 32)) -> Images:
    """Open one split of the set that options name."""
    return load_images(
        data.path,
        split,
        size=size,
        image_column=data.image_column,
        label_column=data.label_column,
        config=data.config,
        class_level=data.class_level,
        labels_file=data.labels_file,
    )


def bands_of(images: Any) -> Bands:
    """How the values of a set become pixels; of the sets that say nothing, as each image is."""
    return getattr(images, "bands", Bands())


def with_bands(images: Any, bands: Bands) -> Any:
    """The same set, read with other bands."""
    if bands_of(images) == bands:
        return images
    images = copy.copy(images)
    if hasattr(images, "images"):  # a view of another set
        images.images = with_bands(images.images, bands)
    else:
        images.bands = bands
    return images


class Subset:
    """Some images of a set, by index."""

    def __init__(self, images: Images, indices: np.ndarray) -> None:
        self.images, self.indices = images, indices

    @property
    def label_names(self) -> list[str] | None:
        return self.images.label_names

    @property
    def bands(self) -> Bands:
        return bands_of(self.images)

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, indices: Sequence[int]) -> Sequence[Any]:
        return self.images.read(self.indices[np.asarray(indices)].tolist())

    @property
    def packed_size(self) -> tuple[int, int] | None:
        """(H, W) of all images; None if they are not packed or sizes differ."""
        return getattr(self.images, "packed_size", None)

    def arrays(self, indices: Sequence[int]) -> np.ndarray:
        """Images of one size, (B, H, W, C), in the type of their values."""
        return self.images.arrays(self.indices[np.asarray(indices)])  # type: ignore[attr-defined]

    def labels(self, indices: Sequence[int]) -> np.ndarray:
        return self.images.labels(self.indices[np.asarray(indices)].tolist())

    def where(self, index: int) -> str:
        return self.images.where(int(self.indices[index]))

    def contents(self, labels: bool = False) -> Contents:
        return self.images.contents(labels)


class HeldOut(Subset):
    """Images that are held out of the split that is trained on; `says` tells which, for the terminal."""

    def __init__(self, images: Images, indices: np.ndarray, says: str) -> None:
        super().__init__(images, indices)
        self.says = says
