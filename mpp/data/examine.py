"""Look at every image of a split once: its size, type and values, whether it can be read, and what finds its copies."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from einops import reduce
from PIL import Image
from torch.utils.data import DataLoader
from tqdm import tqdm

from mpp.data.augment import View
from mpp.data.bands import Bands, displayed
from mpp.data.decode import Opened, Unreadable, size_as_seen, values
from mpp.data.duplicates import GREY, perceptual_hashes
from mpp.data.images import Images
from mpp.data.loader import Batch, as_it_is, leave_signals
from mpp.data.parts import PartReader, Parts, labels_of
from mpp.data.streams import Kept

_SHRUNK = 64  # pixels of the longer side at most, at which images are compared


_AT_ONCE = 256


@dataclass
class Examined:
    """What a split holds, an entry for each image that can be read."""

    split: str
    parts: Parts
    unreadable: dict[str, str] = field(default_factory=dict)  # where -> why
    columns: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.columns["index"])

    def __getitem__(self, column: str) -> Any:
        """size (M, 2) as height and width, channels, low, high (the values), type, label (M,); and what is compared:
        digest (of size and pixels), hash, colours (M, 8, 8, 3) uint8, spread (deviation of the grey values)."""
        return self.columns[column]

    def name(self, row: int) -> str:
        """The file or row of an image."""
        names = self.columns["name"]
        return names[row] if names[row] else self.parts.images.where(int(self.columns["index"][row]))  # type: ignore[union-attr]


class Examiner(PartReader):
    """Reads parts as what is to be known of their images."""

    def _read(self, images: Images, indices: np.ndarray) -> Batch:
        unreadable: dict[str, str] = {}
        rows: list[dict[str, Any]] = []
        for start in range(0, len(indices), 32):  # no more are open at once
            some = indices[start : start + 32].tolist()
            for index, image in zip(some, images.read(some), strict=True):
                try:
                    name = images.where(index) if isinstance(images, Kept) else None  # others can be asked later
                    rows.append({"index": index, "name": name, **looked_at(image)})
                except Unreadable as error:
                    unreadable[images.where(index)] = str(error)
        columns: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
        if rows:
            pictures = np.stack(columns.pop("picture")).astype(np.float32)  # (B, 32, 32, 3)
            grey = pictures.mean(-1)
            columns["hash"], columns["spread"] = perceptual_hashes(grey), grey.std((1, 2))
            columns["colours"] = (
                reduce(pictures, "b (h p) (w q) c -> b h w c", "mean", h=8, w=8).round().astype(np.uint8)
            )
            columns["label"] = labels_of(images, columns["index"]) or [None] * len(rows)
        return {"columns": columns, "unreadable": unreadable}


def looked_at(image: Opened | Unreadable) -> dict[str, Any]:
    """What one image shows. Raises Unreadable."""
    if isinstance(image, Unreadable):
        raise image
    height, width = size_as_seen(image)
    scale = min(1.0, _SHRUNK / max(height, width))
    array = values(image, (max(1, round(height * scale)), max(1, round(width * scale))))  # (h, w, C), in its own type
    digest = hashlib.blake2b(f"{height} {width} {array.shape} {array.dtype}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array).data)
    low, high = float(array.min()), float(array.max())
    shown = array[..., displayed(array.shape[-1])]
    if shown.dtype != np.uint8:
        shown = Bands(range=(low, high if high > low else low + 1)).pixels(shown)
    picture = np.asarray(Image.fromarray(np.ascontiguousarray(shown)).resize((GREY, GREY), Image.Resampling.BILINEAR))
    return {
        "size": (height, width),
        "channels": array.shape[-1],
        "type": array.dtype.name,
        "low": low,
        "high": high,
        "digest": digest.hexdigest(),
        "picture": picture,
    }


def examine(parts: Parts, split: str, workers: int) -> Examined:
    """Look at every image of a split."""
    loader = DataLoader(
        Examiner(parts, list(range(parts.count)), View((1, 1)), _AT_ONCE),
        batch_size=None,
        collate_fn=as_it_is,
        num_workers=workers,
        worker_init_fn=leave_signals,
    )
    found, columns = Examined(split, parts), []
    with tqdm(total=parts.total, unit="image", desc=split, leave=False, mininterval=1) as bar:
        for batch in loader:
            if not batch.get("done"):
                found.unreadable |= batch["unreadable"]
                columns.append(batch["columns"])
                bar.update(len(batch["columns"].get("index", [])) + len(batch["unreadable"]))
    columns = [some for some in columns if some]
    kinds = {"index": np.int64, "size": np.int64, "channels": np.int64, "low": float, "high": float, "type": str}
    kinds |= {"digest": str, "hash": np.uint64, "spread": float, "colours": np.uint8}
    for name in [*kinds, "name", "label"]:
        every = [value for some in columns for value in some.get(name, ())]
        found.columns[name] = np.array(every, dtype=kinds[name]) if name in kinds else every
    if not len(found):
        found.columns |= {"size": np.empty((0, 2), np.int64), "colours": np.empty((0, 8, 8, 3), np.uint8)}
    return found
