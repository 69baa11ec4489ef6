"""Packed sets: all images decoded into one memory-mapped file, which opens in milliseconds.

The file holds: 8 bytes of magic; the values (H, W, C) of all images in the type of their split, split by split; for
each split the offsets of its images (M + 1, int64), their sizes (M, 2: H, W) and labels (M,), -1 for none; a JSON
header with the offsets of these parts; the header's offset and the magic again. If all images of a split have one size,
a batch is read by index as one array. Shuffling is full, by index. If the set fits in the system's cache, each page is
read from disk once, in any order. In a larger set, each image costs one read of a few pages per epoch: this is fast on
SSDs and slow on hard disks (use WebDataset shards there). The process itself keeps few of these pages.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mpp.data.bands import Bands
from mpp.data.contents import Contents, Listing
from mpp.data.rasters import stored
from mpp.data.sources.packed_header import MAGIC, read_header
from mpp.errors import UserError
from mpp.files import is_special

_KEPT = 1024  # most images whose pages a process keeps: 64 MiB, at 64 KiB per image


class PackedImages:
    """One split of a packed file."""

    def __init__(self, path: str, split: str) -> None:
        header = read_header(path)
        self.path, self.split = path, split
        self.part = header.splits[split]
        if not self.part.count:
            raise UserError(
                f"{path} has no images in its split {split}; name another (--data.split, --data.eval-split)"
            )
        self.label_names: list[str] | None = None if self.part.labels is None else header.label_names
        self.bands = Bands(3)
        self.checksum = header.sha256
        self._read = 0

    @cached_property
    def _map(self) -> mmap.mmap:
        with Path(self.path).expanduser().open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    @property
    def _file(self) -> np.ndarray:
        return np.frombuffer(self._map, dtype=np.uint8)

    def __getstate__(self) -> dict[str, Any]:  # each worker process maps the file itself
        return {name: value for name, value in self.__dict__.items() if name != "_map"}

    def _let_go(self, count: int) -> None:
        """Release the file's pages from this process (not from the system's cache) after every _KEPT images. The system
        maps 64 KiB around each image, so a whole set would soon count as this process's memory."""
        self._read += count
        if self._read >= _KEPT and hasattr(mmap, "MADV_DONTNEED"):
            self._read = 0
            self._map.madvise(mmap.MADV_DONTNEED)

    def __len__(self) -> int:
        return self.part.count

    @property
    def packed_size(self) -> tuple[int, int] | None:
        """(H, W) of all images; None if sizes differ."""
        return self.part.size

    def arrays(self, indices: Sequence[int]) -> np.ndarray:
        """Images of one size, (B, H, W, C), read without a Python loop."""
        assert self.packed_size is not None
        height, width = self.packed_size
        shape = (self.part.count, height, width, self.part.channels)
        every = np.frombuffer(self._map, self.part.dtype, int(np.prod(shape)), self.part.pixels).reshape(shape)
        found = every[np.asarray(indices)]
        self._let_go(len(found))
        return found

    def read(self, indices: Sequence[int]) -> list[Any]:
        begins = self._array(self.part.begins, (self.part.count + 1,))
        sizes = self._array(self.part.sizes, (self.part.count, 2))
        found: list[Any] = []
        for index in map(int, indices):
            array = (
                np.array(self._pixels(begins, index)).view(self.part.dtype).reshape(*sizes[index], self.part.channels)
            )
            picture = (self.part.dtype, self.part.channels) == ("uint8", 3)
            found.append(Image.fromarray(array) if picture else stored(array))
        self._let_go(len(found))
        return found

    def labels(self, indices: Sequence[int]) -> np.ndarray:
        found = self.labels_or_none(indices)
        if (found < 0).any():
            raise UserError(f"{self.where(indices[int(np.argmin(found))])} has no label; name another split")
        return found

    def labels_or_none(self, indices: Sequence[int]) -> np.ndarray:
        """As `labels`, but -1 for an image without a label."""
        if self.part.labels is None:
            raise UserError(f"{self.path} was packed without labels")
        return np.array(self._array(self.part.labels, (self.part.count,))[np.asarray(indices, dtype=np.int64)])

    def where(self, index: int) -> str:
        return f"{self.path}, {self.split} row {index}"

    def contents(self, labels: bool = False) -> Contents:
        """The images by their content, and the checksum that the file was packed with."""
        begins = self._array(self.part.begins, (self.part.count + 1,))
        names, numbers = self.label_names, self.labels_or_none(range(len(self))) if labels else None
        listing = Listing(len(self))
        for index in range(len(self)):
            label = names[numbers[index]] if names and numbers is not None and numbers[index] >= 0 else ""
            listing.add(None, self._pixels(begins, index).data, label)
            self._let_go(1)
        return listing.contents(self.split, also=f"checksum {self.checksum[:16]}")

    def _pixels(self, begins: np.ndarray, index: int) -> np.ndarray:
        return self._file[self.part.pixels + begins[index] : self.part.pixels + begins[index + 1]]

    def _array(self, at: int, shape: tuple[int, ...]) -> np.ndarray:
        return self._file[at:][: 8 * int(np.prod(shape))].view(np.int64).reshape(shape)


def is_packed(path: str) -> bool:
    """Whether a path is a packed file. Raises UserError for a pipe, a socket or a device, which no set is."""
    try:
        if is_special(Path(path).expanduser()):
            raise UserError(f"--data.path {path} is a pipe, a socket or a device; give a file or a folder")
        with Path(path).expanduser().open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except (OSError, RuntimeError):  # no such file, or ~name of an unknown user
        return False
