"""Images that are arrays of bands: TIFFs that PIL does not read in full, 16-bit colour PNGs, and .npy files."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from einops import rearrange

from mpp.data.bands import MOST_CHANNELS

File = str | bytes  # a path, or the content


_MOST_BYTES = 4 << 30  # of one decoded image: no file may claim more memory


logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it logs of a damaged file is also an error


TYPES = ("uint8", "uint16", "int16", "int32", "float32")  # of values; others become float32


@dataclass(frozen=True)
class Raster:
    """An image of bands. Only its header has been read."""

    shape: tuple[int, ...]  # as stored: (H, W), (H, W, C) or (C, H, W)
    dtype: np.dtype
    load: Callable[[], np.ndarray]  # the values, in `shape`
    channels_at: int | None = None  # the axis of the channels in `shape`; None: the shape decides
    alpha: int | None = None  # the channel that is transparency, of an image with `channels_at`
    kind: str = "TIFF"  # PNG or TIFF: one channel is grey, and so becomes three; "array": it stays one

    def __post_init__(self) -> None:
        if len(self.shape) not in (2, 3) or min(self.shape) < 1:
            raise ValueError(f"its shape {self.shape} is not (height, width) or (height, width, channels)")
        if self.dtype.kind not in "uif":
            raise ValueError(f"its values are {self.dtype}; integers and floats are read")
        if (needs := math.prod(self.shape) * self.dtype.itemsize) > _MOST_BYTES:
            raise ValueError(f"its {needs / 2**30:,.0f} GiB are more than the {_MOST_BYTES >> 30} GiB that are read")

    def size(self, wanted: int | None) -> tuple[int, int]:
        """(height, width)."""
        axis = self._axis(wanted)
        height, width = (side for i, side in enumerate(self.shape) if i != axis)
        return height, width

    @property
    def height(self) -> int:
        return self.size(None)[0]

    @property
    def width(self) -> int:
        return self.size(None)[1]

    def channels(self, wanted: int | None) -> int:
        """How many channels it gives where `wanted` are asked for: transparency is one if that makes up the number."""
        axis = self._axis(wanted)
        count = 1 if axis is None else self.shape[axis]
        if count > MOST_CHANNELS:
            raise ValueError(f"it has {count} channels; {MOST_CHANNELS} are the most")
        return count - (self.alpha is not None and count != wanted)

    def values(self, wanted: int | None) -> np.ndarray:
        """Read it: (H, W, C). Transparent places become white."""
        axis, array = self._axis(wanted), self.load()
        array = array[..., None] if axis is None else np.moveaxis(array, axis, -1)
        if array.dtype.name not in TYPES or array.dtype == np.int32:  # (int32 is of PIL's grey pictures)
            array = array.astype(np.float32)
        if self.alpha is None or array.shape[-1] == self.channels(wanted):
            return array
        return _on_white(array, self.alpha)

    def _axis(self, wanted: int | None) -> int | None:
        """The axis of the channels. Raises ValueError if two could be it."""
        if len(self.shape) == 2 or self.channels_at is not None:
            return self.channels_at
        first, height_or_width, last = self.shape
        if wanted in (first, last) and first != last:
            return 0 if wanted == first else 2
        if first == wanted or (last >= first and 2 * first > min(height_or_width, last)):
            raise ValueError(
                f"its shape {self.shape} could be height, width, channels or channels, height, width; --data.channels "
                f"{first if first == last else f'{last} or {first}'} says which, or store it as height, width, channels"
            )
        return 2 if last < first else 0


def _on_white(array: np.ndarray, alpha: int) -> np.ndarray:
    """Lay (H, W, C) with a channel of transparency (not premultiplied) on white, as PIL does."""
    if array.dtype.kind == "f":
        raise ValueError("its transparency is floats, which are not read; --data.channels takes it as one more channel")
    top = np.iinfo(array.dtype).max
    share = array[..., alpha, None].astype(np.float32) / top
    colours = np.delete(array, alpha, -1)
    return (colours * share + top * (1 - share)).round().clip(np.iinfo(array.dtype).min, top).astype(array.dtype)


def open_npy(file: File) -> Raster:
    """A .npy file. Pickled objects are not read."""
    if isinstance(file, str):
        array = np.load(file, mmap_mode="r", allow_pickle=False)
        return Raster(array.shape, array.dtype, lambda: np.array(array), kind="array")
    content = io.BytesIO(file)
    version = np.lib.format.read_magic(content)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(content)
    if math.prod(shape) * dtype.itemsize != len(file) - content.tell():
        raise ValueError("it is cut short, or its header lies")
    return Raster(shape, dtype, lambda: np.load(io.BytesIO(file), allow_pickle=False), kind="array")


def open_tiff(file: File) -> Raster:
    """A TIFF, by tifffile: its first page, or all pages of a stack that was written as one array of channels."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(file) if isinstance(file, bytes) else file) as tiff:
        page: Any = tiff.pages[0]
        stack = tiff.series[0] if len(tiff.pages) > 1 else None
        together = stack is not None and stack.axes in ("QYX", "CYX")  # Q: not said
        shape = stack.shape if stack is not None and together else page.shape
        axes = stack.axes if stack is not None and together else page.axes
        dtype = page.dtype
        alphas = [] if together else [number for number, kind in enumerate(page.extrasamples) if int(kind) in (1, 2)]
        first_extra = page.samplesperpixel - len(page.extrasamples)
    if dtype is None:
        raise ValueError("its values have a type that is not read")
    return Raster(
        tuple(shape),
        np.dtype(dtype),
        lambda: _read_tiff(file, together),
        channels_at=next((axes.index(name) for name in "SC" if name in axes), None),
        alpha=first_extra + alphas[0] if alphas else None,
    )


def _read_tiff(file: File, together: bool) -> np.ndarray:
    import tifffile

    with tifffile.TiffFile(io.BytesIO(file) if isinstance(file, bytes) else file) as tiff:
        return (tiff.series[0] if together else tiff.pages[0]).asarray(maxworkers=1)


def open_png(file: File, width: int, height: int, channels: int) -> Raster:
    """A PNG of 16 bits a channel in colour or with transparency, of which PIL keeps 8."""
    return Raster(
        (height, width, channels),
        np.dtype(np.uint16),
        lambda: _read_png(file),
        channels_at=2,
        alpha=channels - 1 if channels in (2, 4) else None,
        kind="PNG",
    )


def _read_png(file: File) -> np.ndarray:
    import torch
    from torchvision.io import ImageReadMode, decode_png, read_file

    data = read_file(file) if isinstance(file, str) else torch.frombuffer(bytearray(file), dtype=torch.uint8)
    return np.asarray(rearrange(decode_png(data, ImageReadMode.UNCHANGED), "c h w -> h w c"))


def stored(array: np.ndarray) -> Raster:
    """Values (H, W, C) that are in memory already."""
    return Raster(array.shape, array.dtype, lambda: array, channels_at=2, kind="array")
