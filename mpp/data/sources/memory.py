"""Sets of images in this Python process: arrays, tensors, lists, tables of `datasets`, torch Datasets.

`from_memory` gives such a set a name, memory:..., that every option for a set of images takes. The name is made from
the content, so that the same images have the same name in another process, and a run goes on there.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image

from mpp.data.bands import Bands
from mpp.data.contents import Contents, Listing
from mpp.data.decode import Opened, Unreadable, open_image, pixels, size_as_seen
from mpp.data.rasters import stored
from mpp.data.sources.table import TableImages
from mpp.errors import UserError, counted, printable

PREFIX = "memory:"
_NO_SET = (
    "an array (N, H, W, C), a tensor (N, C, H, W), a list of pictures or paths, a datasets.Dataset, a torch Dataset"
)
_SETS: dict[str, dict[str, Any]] = {}  # splits by name: a table of `datasets`, or images read by index


def from_memory(images: Any, labels: Any = None, label_names: Sequence[str] | None = None) -> str:
    """Give images of this process a name, memory:..., that every option for a set takes: {"data.path": name}.

    Args:
        images: one split, or {"train": ..., "test": ...}. A split is an array (N, H, W, C) or (N, H, W), a tensor
            (N, C, H, W), a list of PIL pictures, arrays or paths, a `datasets.Dataset`, or anything with a length and
            items, as a torch Dataset; or (images, labels) of these. An item is a picture, an array (H, W, C), a tensor
            (C, H, W) or a path; or such a one first and its label second; or {"image": ..., "label": ...}.
        labels: of one split without its own: a class number or name for each image.
        label_names: the names of the classes, if labels are numbers. Default: the numbers.

    Values of other types than 8 or 16 bits need --data.range, as in files. Raises UserError for what is no such set.
    """
    given = images if isinstance(images, Mapping) else {"train": images if labels is None else (images, labels)}
    if labels is not None and isinstance(images, Mapping):
        raise UserError('labels of several splits stand beside their images: {"train": (images, labels), ...}')
    if not given:
        raise UserError(f"there are no images; give {_NO_SET}")
    parts = {str(split): _pair(part) for split, part in given.items()}
    classes = list(label_names) if label_names else _classes([named for _, named in parts.values()])
    splits = {split: _split(split, part, named, classes) for split, (part, named) in parts.items()}
    digest = hashlib.blake2b(digest_size=6)
    for split, found in splits.items():
        content = found._fingerprint if _is_table(found) else found.contents(labels=True).digest
        digest.update(f"{split} {content}".encode())
    name = PREFIX + digest.hexdigest()
    _SETS[name] = splits
    return name


def is_memory(path: str) -> bool:
    """Whether a path is the name of a set of this process."""
    return path.startswith(PREFIX)


def splits_in_memory(path: str) -> dict[str, Any]:
    """The splits of a set. Raises UserError for a name that this process does not know."""
    if path not in _SETS:
        raise UserError(
            f"--data.path {path} is a set in the memory of another Python process; go on there, or give the same "
            f"images to mpp.from_memory again"
        )
    return _SETS[path]


def open_in_memory(path: str, split: str, image_column: str | None, label_column: str | None) -> Any:
    """One split of a set of this process."""
    splits = splits_in_memory(path)
    if not _is_table(splits[split]):
        if named := label_column or image_column:
            raise UserError(f"{path} is no table and has no column {printable(named)}; leave it out")
        return splits[split]
    tables = {name: (lambda table=table: table) for name, table in splits.items() if _is_table(table)}
    return TableImages(tables, _place_of(splits[split]) or path, split, image_column, label_column)


class MemoryImages:
    """Images read by index: an array (N, H, W, C), or items that are pictures, arrays or paths."""

    def __init__(self, split: str, items: Any, labels: np.ndarray | None, label_names: list[str] | None) -> None:
        self.split, self.items = split, items
        self.label_names, self._numbers = label_names, labels
        self.bands = Bands(3)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def packed_size(self) -> tuple[int, int] | None:
        """(H, W) of all images; None of items, whose sizes may differ."""
        return self.items.shape[1:3] if isinstance(self.items, np.ndarray) else None

    def arrays(self, indices: Sequence[int]) -> np.ndarray:
        """Images of an array, (B, H, W, C)."""
        return self.items[np.asarray(indices)]

    def read(self, indices: Sequence[int]) -> list[Opened | Unreadable]:
        return [_opened(self.items[int(index)]) for index in indices]

    def labels(self, indices: Sequence[int]) -> np.ndarray:
        if self._numbers is None:
            raise UserError(f"{self.where(0)} and the others have no labels; give (images, labels)")
        return self._numbers[np.asarray(indices, dtype=np.int64)]

    def where(self, index: int) -> str:
        return f"image {index} of split {self.split}, in memory"

    def contents(self, labels: bool = False) -> Contents:
        """The images by their content."""
        return self._labelled if labels and self._numbers is not None else self._plain

    @cached_property
    def _plain(self) -> Contents:
        return self._listed([""] * len(self))

    @cached_property
    def _labelled(self) -> Contents:
        assert self._numbers is not None
        assert self.label_names is not None
        return self._listed([self.label_names[number] for number in self._numbers])

    def _listed(self, texts: list[str]) -> Contents:
        listing = Listing(len(self))
        for index, text in enumerate(texts):
            looked_at = index % listing.step == 0
            listing.add(f"row {index}", memoryview(_bytes(self.items[index]) if looked_at else b""), text)
        return listing.contents(self.split)


def _split(split: str, part: Any, named: Any, classes: list[str] | None) -> Any:
    """A split as it is kept."""
    if _is_table(part):
        return part if named is None else part.add_column("label", list(named))
    items = _items(part)
    if not len(items):
        raise UserError(f"split {split} in memory has no images; give {_NO_SET}")
    labels = None if named is None else _numbers(split, named, classes or [], len(items))
    return MemoryImages(split, items, labels, list(classes) if labels is not None and classes else None)


def _pair(part: Any) -> tuple[Any, Any]:
    """A split's images, and their labels or None."""
    if isinstance(part, tuple):
        if len(part) != 2:
            raise UserError(f"a split in memory is images or (images, labels), not {len(part)} things")
        return part
    if _is_table(part) or isinstance(part, np.ndarray | torch.Tensor):
        return part, None
    try:
        length, first = len(part), part[0]
    except (TypeError, IndexError, KeyError):
        raise UserError(f"{printable(type(part).__name__)} is no set of images in memory; give {_NO_SET}") from None
    if not isinstance(first, tuple | list | Mapping):
        return part, None
    pictures = _First(part)
    if (known := getattr(part, "targets", None)) is not None and len(known) == length:  # as torchvision's sets have
        names = getattr(part, "classes", None)
        return pictures, [names[int(n)] for n in known] if names else known
    each = [_second(part[index]) for index in range(length)]
    return pictures, None if all(label is None for label in each) else each


class Squared:
    """An item that is an encoded picture, scaled to a square and not cropped: what is counted or measured in it may lie
    anywhere. The square has the picture's short side, or `most` pixels if that is longer."""

    def __init__(self, read: Callable[[], bytes], most: int = 512) -> None:
        self.read, self.most = read, most

    def picture(self) -> Opened | Unreadable:
        """The square, or why there is none."""
        try:
            image = open_image({"bytes": self.read(), "path": None})
            if isinstance(image, Unreadable):
                return image
            height, width = size_as_seen(image, 3)
            side = min(height, width, self.most)
            return Image.fromarray(pixels(image, (side, side), (0.0, 0.0, float(width), float(height)), Bands(3)))
        except OSError as error:
            return Unreadable(error.strerror or str(error))
        except Unreadable as error:
            return error


class _First:
    """The pictures of items that are (picture, label) or {"image": ..., "label": ...}."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        item = self.items[index]
        return item.get("image") if isinstance(item, Mapping) else item[0]


def _second(item: Any) -> Any:
    if isinstance(item, Mapping):
        return item.get("label")
    return item[1] if len(item) > 1 else None


def _items(part: Any) -> Any:
    """Images as an array (N, H, W, C), or by index."""
    channels_first = isinstance(part, torch.Tensor)
    if isinstance(part, torch.Tensor):
        part = part.detach().cpu().numpy()
    if not isinstance(part, np.ndarray):
        return part
    if part.ndim == 3:
        return rearrange(part, "n h w -> n h w 1")
    if part.ndim != 4:
        raise UserError(f"an array of images has the shape (N, H, W, C), (N, C, H, W) or (N, H, W), not {part.shape}")
    few = (1, 3, 4)
    channels_first = channels_first or (part.shape[1] in few and part.shape[-1] not in few)
    return rearrange(part, "n c h w -> n h w c") if channels_first else part


def _classes(labels: list[Any]) -> list[str] | None:
    """The names of the classes that labels of all splits have, in order; None if there are none."""
    found = {_plain(label) for named in labels if named is not None for label in named}
    if not found:
        return None
    numbers = [label for label in found if isinstance(label, int)]
    if len(numbers) == len(found):
        return [str(number) for number in range(max(numbers) + 1)]
    return sorted(map(str, found))


def _numbers(split: str, named: Any, classes: list[str], count: int) -> np.ndarray:
    if len(named) != count:
        raise UserError(f"split {split} in memory has {counted(count, 'image')}, and {counted(len(named), 'label')}")
    labels = [_plain(label) for label in named]
    known = {name: number for number, name in enumerate(classes)}
    numbers = [label if isinstance(label, int) else known.get(label, -1) for label in labels]
    for index, number in enumerate(numbers):
        if not 0 <= number < len(classes):
            raise UserError(f"image {index} of split {split} has the label {printable(str(labels[index]))}, no class")
    return np.array(numbers, dtype=np.int64)


def _plain(label: Any) -> int | str:
    label = label.item() if hasattr(label, "item") else label
    return int(label) if isinstance(label, int) or (isinstance(label, float) and label == int(label)) else str(label)


def _opened(item: Any) -> Opened | Unreadable:
    """A picture from an item of a set."""
    if isinstance(item, Image.Image):
        return item
    if isinstance(item, Squared):
        return item.picture()
    if isinstance(item, str | os.PathLike):
        path = os.path.abspath(os.path.expanduser(item))
        return open_image({"bytes": None, "path": path}, os.path.dirname(path))
    if isinstance(item, bytes):
        return open_image({"bytes": item, "path": None})
    if isinstance(item, torch.Tensor):
        item = item.detach().cpu().numpy()
        item = rearrange(item, "c h w -> h w c") if item.ndim == 3 else item
    if not isinstance(item, np.ndarray) or item.ndim not in (2, 3):
        return Unreadable(f"{type(item).__name__} is no picture, array (H, W, C), tensor (C, H, W) or path")
    array = np.ascontiguousarray(rearrange(item, "h w -> h w 1") if item.ndim == 2 else item)
    picture = (array.dtype, array.shape[-1]) == (np.uint8, 3)
    return Image.fromarray(array) if picture else stored(array)


def _bytes(item: Any) -> bytes:
    """The content of an item, for its fingerprint."""
    if isinstance(item, str | os.PathLike | Squared):
        try:
            return item.read() if isinstance(item, Squared) else Path(item).expanduser().read_bytes()
        except OSError:
            return b""
    if isinstance(item, bytes):
        return item
    return np.ascontiguousarray(np.asarray(item)).tobytes()


def _is_table(part: Any) -> bool:
    """Whether a split is a table of `datasets`, without importing it."""
    return type(part).__module__.startswith("datasets.") and hasattr(part, "column_names")


def _place_of(table: Any) -> str | None:
    """The folder of all files that a table of `datasets` names; None if it holds its pictures itself."""
    import datasets

    column = next((name for name, kind in table.features.items() if isinstance(kind, datasets.Image)), None)
    if column is None:
        return None
    rows = table.cast_column(column, datasets.Image(decode=False))[column]
    folders = {os.path.dirname(row["path"]) for row in rows if row and row["path"] and row["bytes"] is None}
    return os.path.commonpath(folders) if folders else None
