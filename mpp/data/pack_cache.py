"""Pack sets of small images automatically: decode them once into this user's cache, then read them from there."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mpp.data.bands import Bands
from mpp.data.cache import cache_folder, gigabytes, in_use, make_room, packing, refuse_untrusted
from mpp.data.contents import Contents
from mpp.data.decode import Opened, Unreadable, channels_of, size_as_seen, type_of
from mpp.data.images import Images, bands_of
from mpp.data.packing import forget, pack, verify_sample
from mpp.data.randomness import Purpose, generator
from mpp.data.sources.labelled_shards import ShardImages
from mpp.data.sources.packed import PackedImages
from mpp.data.sources.table import TableImages
from mpp.errors import UserError

_MOST_BYTES = 4 << 30  # largest packed split


_LOOKED_AT = 64  # images whose size is checked before a split is packed


_NOT_AGAIN = 24 * 3600  # seconds in which a set that could not be packed is not tried again


_Encoded = TableImages | ShardImages


def packed_if_small(images: Images, size: tuple[int, int], seen: int, limit: float) -> Images:
    """Return the split with its pixels in a packed file in the cache, if that changes nothing but the speed.

    A split is packed if all its images can be read and have the model's `size` (H, W), so that none is scaled; if
    training reads `seen` images, at least as many as the split has, so that packing costs no more than it saves; and if
    the file takes at most 4 GiB, half of the free disk space and, with the rest of the cache, `limit` GB. The file's
    name holds a fingerprint of the content, so a changed set is packed again. Labels and names come from the source.
    """
    if not (isinstance(images, _Encoded) and 0 < len(images) <= seen):
        return images
    channels, some = bands_of(images).channels, _some(images)
    if not all(size_as_seen(image, channels) == size for image in some):
        return images
    if (folder := cache_folder()) is None:
        print("small images are not packed: this user has no home folder; set MPP_CACHE to a folder for them")
        return images
    refuse_untrusted(folder)
    of_channels = "" if channels in (None, 3) else f"-{channels}"
    path = folder / f"{images.split}{of_channels}-{images.contents().exact}.mpp"
    why_not = path.with_suffix(".not-packed")  # holds the reason, so that packing is not tried again for a day
    needs = len(images) * size[0] * size[1] * _pixel(some, channels)
    try:
        found = _cached(path, images, size)
        if found is None and not _is_fresh(why_not):
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            with packing(path):
                found = _cached(path, images, size, repair=True)
                if found is None and _has_room(folder, needs, limit) and _pack(images, path, size, channels, why_not):
                    found = _cached(path, images, size)
        if found is not None:
            make_room(folder, limit)
    except (OSError, NotImplementedError) as error:  # a full disk; a file system without locks
        with suppress(OSError):
            forget(path)
        print(f"not packed into {folder} ({error}); set MPP_CACHE to another folder, or give --data.no-cache")
        return images
    return images if found is None else found


def _pack(images: _Encoded, path: Path, size: tuple[int, int], channels: int | None, why_not: Path) -> bool:
    """Pack a split into the cache; returns whether it could be."""
    print(f"packing {len(images):,} small images into {path}, once (--data.no-cache reads the files)")
    origin, splits = os.path.abspath(os.path.expanduser(images.path)), {images.split: images}
    try:
        pack(splits, path, path.stem, labels=False, only_size=size, channels=channels, origin=origin)  # type: ignore[arg-type]
    except UserError as error:  # harmless: reading the set reports this image if it is ever needed
        forget(path)
        if not _may_pass(error):
            why_not.write_text(str(error))
        print(f"not packed: {error}")
        return False
    return True


def _cached(path: Path, images: _Encoded, size: tuple[int, int], repair: bool = False) -> PackedPixels | None:
    """The split with its pixels in the packed file at `path`; None if that is not there, or damaged: `repair` removes a
    damaged one."""
    try:
        file = in_use(path)
    except FileNotFoundError:
        return None
    refuse_untrusted(path)
    try:
        verify_sample(path)
        packed = PackedImages(str(path), images.split)
        if len(packed) != len(images) or packed.packed_size != size:
            raise UserError(f"{path} holds other images")
    except UserError as error:
        file.close()
        if repair:
            path.unlink()
            print(f"{path} is thrown away and made again: {error}")
        return None
    with suppress(OSError):  # a folder that may only be read
        os.utime(path)
    return PackedPixels(images, packed, file)


def _pixel(some: list[Opened], channels: int | None) -> int:
    """Bytes of a pixel, at most."""
    return max((channels_of(image, channels) * np.dtype(type_of(image)).itemsize for image in some), default=3)


def _is_fresh(mark: Path) -> bool:
    with suppress(OSError):
        return time.time() - mark.stat().st_mtime < _NOT_AGAIN
    return False


def _may_pass(error: BaseException) -> bool:
    """Whether an error comes of the disk, the network or the memory, and not of the images: it may pass."""
    causes = [error]
    while causes[-1].__cause__:
        causes.append(causes[-1].__cause__)
    return any(isinstance(c, MemoryError) or (isinstance(c, OSError) and c.errno is not None) for c in causes)


def _has_room(folder: Path, needs: int, limit: float) -> bool:
    if needs > min(_MOST_BYTES, shutil.disk_usage(folder).free // 2):
        return False
    if not make_room(folder, limit, needs):
        print(
            f"not packed: {gigabytes(needs)} more are too much for the cache {folder}, of which --data.cache-limit "
            f"{limit:g} GB is the limit (`mpp cache` lists it)"
        )
        return False
    return True


def _some(images: Images) -> list[Opened]:
    """The readable ones of a random sample, of which only the headers are read."""
    rng = generator(0, Purpose.SPLIT, 4)
    some = images.read(np.sort(rng.permutation(len(images))[:_LOOKED_AT]).tolist())
    return [image for image in some if not isinstance(image, Unreadable)]


class PackedPixels:
    """A set with its pixels in a packed file. Everything else comes from the set itself."""

    def __init__(self, images: Images, packed: PackedImages, file: BinaryIO) -> None:
        self.images, self.packed = images, packed
        self._file = file  # open, so that the cache keeps it

    def __getstate__(self) -> dict[str, Any]:  # worker processes end before this one
        return {name: value for name, value in self.__dict__.items() if name != "_file"}

    @property
    def label_names(self) -> list[str] | None:
        return self.images.label_names

    @property
    def packed_size(self) -> tuple[int, int] | None:
        """(H, W) of all images."""
        return self.packed.packed_size

    @property
    def bands(self) -> Bands:
        return bands_of(self.images)

    def __len__(self) -> int:
        return len(self.images)

    def arrays(self, indices: Sequence[int]) -> np.ndarray:
        """Images, (B, H, W, C), in the type of their values."""
        return self.packed.arrays(indices)

    def read(self, indices: Sequence[int]) -> list[Any]:
        return self.packed.read(indices)

    def labels(self, indices: Sequence[int]) -> np.ndarray:
        return self.images.labels(indices)

    def where(self, index: int) -> str:
        return self.images.where(index)

    def contents(self, labels: bool = False) -> Contents:
        return self.images.contents(labels)
