"""Sets of small images are packed by themselves: decoded once into this user's cache, and read from there since."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from mpp.data.decode import Unreadable, size_as_seen
from mpp.data.images import Images
from mpp.data.packing import fingerprint, forget, pack
from mpp.data.randomness import Purpose, generator
from mpp.data.sources.packed import PackedImages
from mpp.data.sources.table import TableImages
from mpp.errors import UserError

_MOST_BYTES = 4 << 30  # of a packed split


_LOOKED_AT = 64  # images that tell whether all may have the model's size


def packed_if_small(images: Images, size: tuple[int, int], seen: int) -> Images:
    """A split whose pixels come from a packed file in the cache, where that changes nothing but the speed.

    So it is where all its images can be read and have `size` (H, W), the model's, so that none is scaled; where
    training looks at `seen` images, no fewer than the split has, so that packing costs no more than it saves; and where
    it takes up to 4 GiB, and half of the disk's free space. The file is named after the source's fingerprint: a changed
    set is packed anew. Labels and names stay the source's.
    """
    if not (isinstance(images, TableImages) and 0 < len(images) <= seen and _all_of(size, images)):
        return images
    if (folder := cache_folder()) is None:
        print("small images are not packed: this user has no home folder; MPP_CACHE names one for them")
        return images
    path = folder / f"{images.split}-{fingerprint({images.split: images})[:32]}.mpp"
    why_not = path.with_suffix(".not-packed")  # why not, so that it is not tried again
    if path.exists():  # as a whole, since it is written beside; the folder may be read-only
        return PackedPixels(images, PackedImages(str(path), images.split))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):  # of several processes and machines, one packs
            if why_not.exists():
                return images
            if not path.exists():
                if not _has_room(folder, len(images) * size[0] * size[1] * 3):
                    return images
                print(f"packing {len(images):,} small images into {path}, once (--data.no-cache reads the files)")
                try:
                    pack({images.split: images}, path, path.stem, labels=False, only_size=size)
                except UserError as error:  # no harm: who reads the files will tell, if this image is ever wanted
                    forget(path)
                    why_not.write_text(str(error))
                    print(f"not packed: {error}")
                    return images
    except (OSError, NotImplementedError) as error:  # a full disk; a file system without locks
        with suppress(OSError):
            forget(path)
        print(f"not packed into {folder} ({error}); MPP_CACHE names another folder, --data.no-cache does without")
        return images
    return PackedPixels(images, PackedImages(str(path), images.split))


def _has_room(folder: Path, needs: int) -> bool:
    return needs <= min(_MOST_BYTES, shutil.disk_usage(folder).free // 2)


def cache_folder() -> Path | None:
    """$MPP_CACHE, or mpp in the user's folder for caches; None for a user without a home."""
    with suppress(RuntimeError):
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return Path(os.environ.get("MPP_CACHE") or Path(cache, "mpp")).expanduser()
    return None


def _all_of(size: tuple[int, int], images: Images) -> bool:
    """Whether some images, chosen by chance, all have `size` (H, W); only their headers are read."""
    rng = generator(0, Purpose.SPLIT, 4)
    some = images.read(np.sort(rng.permutation(len(images))[:_LOOKED_AT]).tolist())
    return all(isinstance(image, Unreadable) or size_as_seen(image) == size for image in some)


class PackedPixels:
    """A set whose pixels are read from a packed file, and all else from the set itself."""

    def __init__(self, images: Images, packed: PackedImages) -> None:
        self.images, self.packed = images, packed

    @property
    def label_names(self) -> list[str] | None:
        return self.images.label_names

    @property
    def packed_size(self) -> tuple[int, int] | None:
        """(H, W) of all images."""
        return self.packed.packed_size

    def __len__(self) -> int:
        return len(self.images)

    def arrays(self, indices: Sequence[int]) -> np.ndarray:
        """Images, (B, H, W, 3) uint8."""
        return self.packed.arrays(indices)

    def read(self, indices: Sequence[int]) -> list[Any]:
        return self.packed.read(indices)

    def labels(self, indices: Sequence[int]) -> np.ndarray:
        return self.images.labels(indices)

    def where(self, index: int) -> str:
        return self.images.where(index)
