"""Folders of images: their splits, their classes, and a table of the images of each split."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mpp.data.sources.classes import Classes
from mpp.data.sources.layout import SPLIT_WORDS, Layout, Parts, layout_of, split_called, splits_by_name
from mpp.data.sources.listing import Listing, tell_left_out, tell_unread_parts
from mpp.errors import UserError, is_first_process, printable, warn

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Folder:
    """A folder of images; what it holds is known without decoding any."""

    listing: Listing
    layout: Layout
    by_name: bool  # whether splits are words in the names of files

    @property
    def plain(self) -> bool:
        """Whether images, folders and metadata are all there is: no other table, no shard."""
        return not self.listing.tables

    @property
    def splits(self) -> list[str]:
        """The names of its splits."""
        if not self.by_name:
            return list(self.layout.splits)
        called = {_split_of_file(name) for names in self.listing.images.values() for name in names}
        return [split for split in SPLIT_WORDS if split in called]

    def images(self, split: str) -> list[tuple[str, Parts]]:
        """The path of every image of a split, sorted, and its folders without the split's own."""
        return sorted(
            (os.path.join(self.listing.folder, *folder, name), below)
            for folder, below in self.layout.splits["train" if self.by_name else split].items()
            for name in self.listing.images[folder]
            if not self.by_name or _split_of_file(name) == split
        )

    def classes(self, level: int | None = None) -> Classes:
        """The classes: the folders at `level` below the splits, by default at the first.

        Raises UserError if a level is asked for at which no split has two folders.
        """
        found = Classes.of({split: self._below(split) for split in self.splits}, level or 1)
        if level is not None and not found.names:
            raise UserError(
                f"--data.class-level {level}: at this level below the splits, {self.listing.folder} does not have two "
                f"folders with all images in them; leave it out, or give another"
            )
        return found

    def _below(self, split: str) -> set[Parts]:
        """The folders of a split's images, without the split's own."""
        return {below for _, below in self.images(split)} if self.by_name else set(self.layout.splits[split].values())

    def table(self, split: str, level: int | None = None) -> Dataset:
        """The images of a split, as paths, and their labels if all lie in classes."""
        import datasets
        import pyarrow as pa

        images, classes = self.images(split), self.classes(level)
        paths = pa.array([path for path, _ in images], pa.string())
        features: dict[str, Any] = {"image": datasets.Image()}
        columns = {"image": pa.StructArray.from_arrays([pa.nulls(len(images), pa.binary()), paths], ["bytes", "path"])}
        if classes.label(split):
            features["label"] = datasets.ClassLabel(names=classes.names)
            number_of: dict[str | None, int] = {name: number for number, name in enumerate(classes.names)}
            numbers = [number_of[classes.name_of(split, below)] for _, below in images]
            columns["label"] = pa.array(numbers, pa.int64())
        versions = [(path, (entry := os.stat(path)).st_size, entry.st_mtime_ns) for path, _ in images]
        return datasets.Dataset(
            datasets.table.InMemoryTable(pa.table(columns)),
            datasets.DatasetInfo(features=datasets.Features(features)),
            fingerprint=hashlib.sha256(repr((versions, classes.names, level)).encode()).hexdigest()[:32],
        )

    def why_no_labels(self, split: str, level: int | None = None) -> str:
        """Why the folders of a split do not count as classes: ": ..."."""
        classes, images = self.classes(level), self.images(split)
        inside = [path for path, below in images if classes.name_of(split, below) is not None]
        outside = [path for path, below in images if classes.name_of(split, below) is None]
        if not (inside and outside):
            return ": its images do not lie in at least two class folders"
        one, other = printable(outside[0]), printable(inside[0])
        return f": every image must lie in a class folder, all of these at one depth, but {one} and {other} do not"


_SEEN: dict[str, Folder] = {}


def look_through(folder: str) -> Folder:
    """Inspect a folder, again only if it has changed. Warns of images that are not read, and of folders that are named
    like splits but are none. Raises UserError for names and shards that cannot be read (see `Listing.of`)."""
    folder = os.path.abspath(folder)
    if folder not in _SEEN or not _SEEN[folder].listing.is_as_it_was():
        _SEEN[folder] = _look_through(folder)
    return _SEEN[folder]


def _look_through(folder: str) -> Folder:
    listing = Listing.of(folder)
    images = {parts: len(names) for parts, names in listing.images.items()}
    layout = layout_of(images)
    undivided = layout.heads == {"train": [()]}
    stems = Counter(_split_of_file(name) or "" for names in listing.images.values() for name in names)
    found = Folder(listing, layout, undivided and splits_by_name(stems))
    of_folders: dict[str, Counter[str]] = {}
    for parts, why in layout.left_out.items():
        of_folders.setdefault(why, Counter())[parts[0] if parts else ""] += images[parts]
        listing.left_out[why] += [os.path.join(folder, *parts, name) for name in listing.images[parts]]
    if found.by_name and stems[""]:
        without = [
            os.path.join(folder, *parts, n) for parts in images for n in listing.images[parts] if not _split_of_file(n)
        ]
        listing.left_out["it has no split in its name, as the others have"] = without
    tell_left_out(listing.left_out, of_folders)
    if found.plain:
        if undivided and not found.by_name:
            _tell_all_trained_on(layout.splits["train"])
        tell_unread_parts([path for split in found.splits for path, _ in found.images(split)], listing.empty)
    return found


def _tell_all_trained_on(folders: dict[Parts, Parts]) -> None:
    """Warn, in one process, of a folder that is named like a split but is used for training."""
    named = sorted({parts[: n + 1] for parts in folders for n, name in enumerate(parts) if split_called(name)})
    if named and is_first_process():
        folder = printable("/".join(named[0]))
        warn(f"the folder {folder} is named like a split, but its images are used for training")


def _split_of_file(name: str) -> str | None:
    return split_called(os.path.splitext(name)[0])
