"""Pack sets of small images automatically: decode them once into this user's cache, then read them from there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from mpp.data.bands import Bands
from mpp.data.contents import Contents
from mpp.data.decode import Opened, Unreadable, bytes_a_pixel, size_as_seen
from mpp.data.images import Images, bands_of
from mpp.data.packing import fingerprint, forget, pack
from mpp.data.randomness import Purpose, generator
from mpp.data.sources.packed import PackedImages
from mpp.data.sources.table import TableImages
from mpp.errors import UserError

_MOST_BYTES = 4 << 30  # largest packed split


_LOOKED_AT = 64  # images whose size is checked before a split is packed


def packed_if_small(images: Images, size: tuple[int, int], seen: int) -> Images:
    """Return the split with its pixels in a packed file in the cache, if that changes nothing but the speed.

    A split is packed if all its images can be read and have the model's `size` (H, W), so that none is scaled; if
    training reads `seen` images, at least as many as the split has, so that packing costs no more than it saves; and if
    the file takes at most 4 GiB and half of the free disk space. The source's fingerprint is in the file's name, so a
    changed set is packed again. Labels and names come from the source.
    """
    if not (isinstance(images, TableImages) and 0 < len(images) <= seen):
        return images
    channels, some = bands_of(images).channels, _some(images)
    if not all(size_as_seen(image, channels) == size for image in some):
        return images
    if (folder := cache_folder()) is None:
        print("small images are not packed: this user has no home folder; set MPP_CACHE to a folder for them")
        return images
    of_channels = "" if channels in (None, 3) else f"-{channels}"
    path = folder / f"{images.split}{of_channels}-{fingerprint({images.split: images})[:32]}.mpp"
    why_not = path.with_suffix(".not-packed")  # holds the reason, so that packing is not tried again
    if path.exists():  # complete, because it was renamed into place; the folder may be read-only
        return PackedPixels(images, PackedImages(str(path), images.split))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):  # only one of several processes and machines packs
            if why_not.exists():
                return images
            if not path.exists():
                if not _has_room(folder, len(images) * size[0] * size[1] * max(map(bytes_a_pixel, some), default=3)):
                    return images
                print(f"packing {len(images):,} small images into {path}, once (--data.no-cache reads the files)")
                try:
                    pack({images.split: images}, path, path.stem, labels=False, only_size=size, channels=channels)
                except UserError as error:  # harmless: reading the set reports this image if it is ever needed
                    forget(path)
                    why_not.write_text(str(error))
                    print(f"not packed: {error}")
                    return images
    except (OSError, NotImplementedError) as error:  # a full disk; a file system without locks
        with suppress(OSError):
            forget(path)
        print(f"not packed into {folder} ({error}); set MPP_CACHE to another folder, or give --data.no-cache")
        return images
    return PackedPixels(images, PackedImages(str(path), images.split))


def _has_room(folder: Path, needs: int) -> bool:
    return needs <= min(_MOST_BYTES, shutil.disk_usage(folder).free // 2)


def cache_folder() -> Path | None:
    """$MPP_CACHE, or mpp in the user's cache folder; None for a user without a home folder."""
    with suppress(RuntimeError):
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return Path(os.environ.get("MPP_CACHE") or Path(cache, "mpp")).expanduser()
    return None


def _some(images: Images) -> list[Opened]:
    """The readable ones of a random sample, of which only the headers are read."""
    rng = generator(0, Purpose.SPLIT, 4)
    some = images.read(np.sort(rng.permutation(len(images))[:_LOOKED_AT]).tolist())
    return [image for image in some if not isinstance(image, Unreadable)]


class PackedPixels:
    """A set with its pixels in a packed file. Everything else comes from the set itself."""

    def __init__(self, images: Images, packed: PackedImages) -> None:
        self.images, self.packed = images, packed

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
