"""Turn an encoded image into pixels: open it (header only), then decode, rotate, crop and scale it to uint8.

Only `pixels` detects damage behind a file's header; `mpp.data.batches` then stops or skips, as --data.on-error says.
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from mpp.data.bands import MOST_CHANNELS, Bands, other_channels
from mpp.data.rasters import TYPES, Raster, open_npy, open_png, open_tiff
from mpp.errors import printable

Opened = Image.Image | Raster


Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the image as seen


_TURNS = {  # EXIF orientation -> the turn that makes the image upright; 1 needs none
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# Only these formats are opened, whatever the file's name says. PIL supports about 35 more, which are rare and seldom
# tested; one of them (EPS) starts another program. (PIL opens a camera's MPO as JPEG.)
Image.init()


FORMATS = ["JPEG", "PNG", "WEBP", "JPEG2000", "GIF", "TIFF", "BMP", "PPM", *(["AVIF"] if "AVIF" in Image.OPEN else [])]


# No warning for large photographs. PIL still refuses decompression bombs, at twice the size of the warning.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


class Unreadable(Exception):
    """An image cannot be decoded. The message says why, but not which image."""


def open_image(row: dict | None, source: str | None = None) -> Opened | Unreadable:
    """Open a table's {"bytes": ..., "path": ...}. Reads only the header; returns Unreadable on failure.

    A path without bytes must be a regular file within `source`, the set being read. Otherwise a table from elsewhere
    could make us read other files of this machine, or wait endlessly for a pipe.
    """
    try:
        if row is None or (row["bytes"] is None and row["path"] is None):
            return Unreadable("the row is empty")
        if row["bytes"] is not None:
            return _open(row["bytes"])
        if "::" in row["path"]:
            return Unreadable("it is in an archive; unpack the archive first")
        if source is None or not is_within(row["path"], source):
            return Unreadable("its path points outside the set")
        if not stat.S_ISREG(os.stat(row["path"]).st_mode):
            return Unreadable("it is not a regular file")
        return _open(row["path"])
    except Exception as error:  # PIL's plug-ins raise nearly any exception on damaged files
        return _unreadable(error)


_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two are BigTIFF


def _open(file: str | bytes) -> Opened:
    try:
        image = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS)
    except UnidentifiedImageError:
        start = _start_of(file)
        if start[:6] == b"\x93NUMPY":
            return open_npy(file)
        if start[:4] in _TIFF:
            return open_tiff(file)
        raise
    deep = image.format == "PNG" and len(image.tile) == 1 and str(image.tile[0].args).endswith(";16B")
    if deep and (channels := {"RGB": 3, "RGBA": 4, "LA": 2}.get(image.mode)):
        return open_png(file, *image.size, channels)
    if image.format == "TIFF" and _has_bands(image):
        return open_tiff(file)
    return image


def _start_of(file: str | bytes) -> bytes:
    if isinstance(file, bytes):
        return file[:8]
    with open(file, "rb") as opened:
        return opened.read(8)


def pages_are_bands(tiff: Any) -> bool:
    """Whether the pages of a TIFF are one array with channels, as tifffile and ImageJ write and describe it."""
    said = str(tiff.tag_v2.get(270, ""))[:1000]
    together = ('"shape": [' in said and "axes" not in said) or '"axes": "CYX"' in said or "\nchannels=" in said
    return together and tiff.n_frames > 1 and min(tiff.n_frames, *tiff.size) <= MOST_CHANNELS


def _has_bands(tiff: Any) -> bool:
    """Whether PIL reads only a part of a TIFF: of its samples, of their bits, or of an array in several pages."""
    if pages_are_bands(tiff):
        return True
    tags = tiff.tag_v2
    transparent = sum(int(extra) in (1, 2) for extra in tags.get(338, ()))
    colours = tags.get(277, 1) - transparent
    if colours == 1:
        return transparent > 0 and max(tags.get(258, (1,))) > 8
    return max(tags.get(258, (1,))) > 8 or colours != (4 if tags.get(262) == 5 else 3)  # 5: CMYK


def is_within(path: str, source: str) -> bool:
    """Whether `path` is in the set's folder (or in the folder of the set's file), or in a Hugging Face cache.

    `..` and links to folders count as where they lead; a link to a file may lead anywhere, as in a folder of links.
    """
    path = os.path.abspath(path)
    return path.startswith(_roots(source)) and _is_folder_within(os.path.dirname(path), source)


@cache
def _is_folder_within(folder: str, source: str) -> bool:
    return os.path.join(os.path.realpath(folder), "").startswith(_roots(source))


@cache
def _roots(source: str) -> tuple[str, ...]:
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    here = Path(source).expanduser()
    folders = [here if here.is_dir() else here.parent] if here.exists() else []
    roots = (*folders, datasets.config.HF_DATASETS_CACHE, HF_HUB_CACHE)
    # `datasets` resolves a folder that is a link
    real = (f(root) for root in roots for f in (os.path.abspath, os.path.realpath))
    return tuple(os.path.join(root, "") for root in real)


def size_as_seen(image: Opened, channels: int | None = None) -> tuple[int, int]:
    """(height, width) after the EXIF rotation, from the header alone; `channels` are those that are asked for."""
    if isinstance(image, Raster):
        with _readable():
            return image.size(channels)
    width, height = image.size
    return (width, height) if _quarter_turned(_turn(image)) else (height, width)


def channels_of(image: Opened, wanted: int | None = None) -> int:
    """How many channels an image gives, from its header; `wanted` decides where it can give several numbers.

    A picture gives 3, but 1 if it is grey and 4 if it is transparent where that is wanted. An array gives what it has,
    but 3 equal ones if it has 1 and 3 are wanted. Raises Unreadable if it has none that are read.
    """
    if isinstance(image, Raster):
        with _readable():
            found = image.channels(wanted)
        return 3 if found == 1 and (wanted == 3 or (image.kind != "array" and wanted is None)) else found
    gives = {1: image.mode in ("1", "L", "LA", "La") or _is_deep(image), 4: image.mode in ("RGBA", "RGBa")}
    return wanted if wanted is not None and gives.get(wanted) else 3


def is_transparent_tiff(image: Opened) -> bool:
    """Whether a TIFF has a sample that is marked as transparency: programs mark any fourth one so."""
    if isinstance(image, Raster):
        return image.kind == "TIFF" and image.alpha is not None
    return image.format == "TIFF" and image.mode in ("RGBA", "RGBa")


def type_of(image: Opened) -> str:
    """The type of an image's values, from its header."""
    if isinstance(image, Raster):
        return image.dtype.name if image.dtype.name in TYPES and image.dtype != np.int32 else "float32"
    return {"F": "float32", "I": "int32"}.get(image.mode, "uint16" if _is_deep(image) else "uint8")


def pixels(
    image: Opened,
    size: tuple[int, int],
    box: Box | None = None,
    bands: Bands = Bands(),  # noqa: B008
) -> np.ndarray:
    """Decode an image to uint8 (H, W, C), cropped to `box` (default: all of it) and scaled to `size` = (H, W).

    `bands` says how many channels it has to give (default: see `channels_of`) and which values become 0 and 255.
    JPEGs are shrunk during decoding, but not below the resolution that `size` needs. EXIF rotation is applied. Palette,
    CMYK and greyscale pictures become RGB; transparent images get a white background. Raises Unreadable.
    """
    bands = Bands(bands.channels or channels_of(image), bands.range)
    with _readable():
        return bands.pixels(values(image, size, box, bands.channels))


def values(image: Opened, size: tuple[int, int], box: Box | None = None, channels: int | None = None) -> np.ndarray:
    """As `pixels`, but in the image's own type: (H, W, C). A grey array has one channel, whatever is asked for."""
    there = channels_of(image, channels)
    if channels not in (None, there):
        raise Unreadable(other_channels(there, channels))
    height, width = size_as_seen(image, channels)
    box = box or (0, 0, width, height)
    with _readable():
        if isinstance(image, Raster):
            return _resized(image.values(channels), size, box)
        turn = _turn(image)
        want_w, want_h = size[1] * width / (box[2] - box[0]), size[0] * height / (box[3] - box[1])
        want = (want_h, want_w) if _quarter_turned(turn) else (want_w, want_h)
        array = _decoded(image, (max(1, round(want[0])), max(1, round(want[1]))), turn, channels)
        fx, fy = array.shape[1] / width, array.shape[0] / height  # below 1 if a JPEG was shrunk; scale the box too
        return _resized(array, size, (box[0] * fx, box[1] * fy, box[2] * fx, box[3] * fy))


def _decoded(
    image: Image.Image, want: tuple[int, int], turn: Image.Transpose | None, channels: int | None
) -> np.ndarray:
    """Decode a picture upright to (H, W, C): uint8 RGB, or 16 and 32 bits of grey in their own type. Shrinks a JPEG by
    2, 4 or 8 if it stays at least `want` = (W, H)."""
    if isinstance(image, JpegImageFile) and image.format == "JPEG":  # not MPO
        image.draft(None, want)  # sets image.size
        if image.mode == "RGB" and turn is None and image.fp:
            image.fp.seek(0)
            with suppress(ValueError):  # damage: PIL below tolerates it or describes it better
                # same library and same pixels as PIL, in 0.7 of the time
                return simplejpeg.decode_jpeg(image.fp.read(), min_width=image.size[0], min_height=image.size[1])
    image.load()
    upright = image if turn is None else image.transpose(turn)
    if _is_deep(upright):
        grey = np.asarray(upright)
        signed = image.format == "TIFF" and grey.dtype == np.int32 and max(cast(Any, image).tag_v2.get(258, (1,))) == 16
        grey = grey.astype(np.int16 if signed else grey.dtype.newbyteorder("="))
        return np.asarray(repeat(grey, "h w -> h w c", c=channels or 3))
    if channels == 4:
        return np.asarray(upright.convert("RGBA"))
    return np.asarray(_to_rgb(upright))[..., : channels or 3]


def _is_deep(image: Image.Image) -> bool:
    """Whether a picture is 16- or 32-bit grey, which PIL's own conversion clips at 255."""
    return image.mode.startswith(("I", "F"))


def _resized(array: np.ndarray, size: tuple[int, int], box: Box) -> np.ndarray:
    """Crop (H, W, C) to `box`, at whole pixels, and scale it to `size` with antialiased bicubic interpolation: PIL's
    filter up to rounding (1 or 2 of 255), in a seventh of PIL's time."""
    (left, right), (top, bottom) = _round(box[0], box[2], array.shape[1]), _round(box[1], box[3], array.shape[0])
    array = array[top:bottom, left:right]
    if array.shape[:2] != size:
        known = array.copy() if array.dtype == np.uint8 else array.astype(np.float32)  # types that torch can scale
        image = rearrange(torch.from_numpy(known), "h w c -> 1 c h w")  # channels_last is fastest in torch
        scaled = rearrange(F.interpolate(image, size, mode="bicubic", antialias=True), "1 c h w -> h w c").numpy()
        array = scaled if scaled.dtype == array.dtype else _rounded(scaled, array.dtype)
    if array.dtype == np.float32 and not np.isfinite(array.sum(dtype=np.float64)):
        raise ValueError("some pixels are not finite numbers")
    return array


def _rounded(array: np.ndarray, kind: np.dtype) -> np.ndarray:
    """Floats in a type of integers, within its bounds, which bicubic interpolation may leave."""
    bounds = np.iinfo(kind)
    return array.round().clip(bounds.min, bounds.max).astype(kind)


def _round(start: float, stop: float, length: int) -> tuple[int, int]:
    """Round start and stop to whole pixels within `length`, at least one apart."""
    first = min(round(start), length - 1)
    return first, max(first + 1, min(round(stop), length))


def _to_rgb(image: Image.Image) -> Image.Image:
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _turn(image: Image.Image) -> Image.Transpose | None:
    """The turn that the header's EXIF (or XMP) asks for. None for damaged EXIF and for TIFFs, which PIL turns."""
    told = "exif" in image.info or ("xmp" in image.info and image.format != "PNG")  # XMP of a PNG needs decoding
    if not told or image.format == "TIFF":
        return None
    try:
        return _TURNS.get(image.getexif().get(0x0112, 1))
    except Exception:
        return None


def _quarter_turned(turn: Image.Transpose | None) -> bool:
    return turn in (_TURNS[5], _TURNS[6], _TURNS[7], _TURNS[8])


@contextmanager
def _readable() -> Iterator[None]:
    """Turn whatever reading an image raises into Unreadable."""
    try:
        yield
    except Unreadable:
        raise
    except Exception as error:
        raise _unreadable(error) from error


def _unreadable(error: BaseException) -> Unreadable:
    if isinstance(error, UnidentifiedImageError):
        return Unreadable(f"not an image in a supported format ({', '.join(FORMATS)})")
    found = Unreadable(printable(str(error).strip().replace("\n", " ")) or type(error).__name__)
    found.__cause__ = error
    return found
