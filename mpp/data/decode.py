"""Turn an encoded image into pixels: open it (header only), then decode, rotate, crop and scale it to uint8 RGB.

Only `pixels` detects damage behind a file's header.
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

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


def open_image(row: dict | None, source: str | None = None) -> Image.Image | Unreadable:
    """Open a table's {"bytes": ..., "path": ...}. Reads only the header; returns Unreadable on failure.

    A path without bytes must be a regular file within `source`, the set being read. Otherwise a table from elsewhere
    could make us read other files of this machine, or wait endlessly for a pipe.
    """
    try:
        if row is None or (row["bytes"] is None and row["path"] is None):
            return Unreadable("the row is empty")
        if row["bytes"] is not None:
            return _open(io.BytesIO(row["bytes"]))
        if "::" in row["path"]:
            return Unreadable("it is in an archive; unpack the archive first")
        if source is None or not is_within(row["path"], source):
            return Unreadable("its path points outside the set")
        if not stat.S_ISREG(os.stat(row["path"]).st_mode):
            return Unreadable("it is not a regular file")
        return _open(row["path"])
    except Exception as error:  # PIL's plug-ins raise nearly any exception on damaged files
        return _unreadable(error)


def _open(file: str | io.BytesIO) -> Image.Image:
    return Image.open(file, formats=FORMATS)


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


def printable(text: str) -> str:
    """Escape control characters in text from a set (such as a file name), so that it fits on one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def size_as_seen(image: Image.Image) -> tuple[int, int]:
    """(height, width) after the EXIF rotation, from the header alone."""
    width, height = image.size
    return (width, height) if _quarter_turned(_turn(image)) else (height, width)


def pixels(image: Image.Image, size: tuple[int, int], box: Box | None = None) -> np.ndarray:
    """Decode an image to uint8 RGB (H, W, 3), cropped to `box` (default: all of it) and scaled to `size` = (H, W).

    JPEGs are shrunk during decoding, but not below the resolution that `size` needs. EXIF rotation is applied. Palette,
    CMYK, 16-bit and greyscale images become RGB; transparent images get a white background. Raises Unreadable.
    """
    height, width = size_as_seen(image)
    turn = _turn(image)
    box = box or (0, 0, width, height)
    try:
        want_w, want_h = size[1] * width / (box[2] - box[0]), size[0] * height / (box[3] - box[1])
        want = (want_h, want_w) if _quarter_turned(turn) else (want_w, want_h)
        array = _decoded(image, (max(1, round(want[0])), max(1, round(want[1]))), turn)
        fx, fy = array.shape[1] / width, array.shape[0] / height  # below 1 if a JPEG was shrunk; scale the box too
        return _resized(array, size, (box[0] * fx, box[1] * fy, box[2] * fx, box[3] * fy))
    except Exception as error:
        raise _unreadable(error) from error


def _decoded(image: Image.Image, want: tuple[int, int], turn: Image.Transpose | None) -> np.ndarray:
    """Decode to upright RGB (H, W, 3). Shrinks a JPEG by 2, 4 or 8 if it stays at least `want` = (W, H)."""
    if isinstance(image, JpegImageFile) and image.format == "JPEG":  # not MPO
        image.draft(None, want)  # sets image.size
        if image.mode == "RGB" and turn is None and image.fp:
            image.fp.seek(0)
            with suppress(ValueError):  # damage: PIL below tolerates it or describes it better
                # same library and same pixels as PIL, in 0.7 of the time
                return simplejpeg.decode_jpeg(image.fp.read(), min_width=image.size[0], min_height=image.size[1])
    image.load()
    return np.asarray(_to_rgb(image if turn is None else image.transpose(turn)))


def _resized(array: np.ndarray, size: tuple[int, int], box: Box) -> np.ndarray:
    """Crop (H, W, 3) to `box`, at whole pixels, and scale it to `size` with antialiased bicubic interpolation: PIL's
    filter up to rounding (1 or 2 of 255), in a seventh of PIL's time."""
    (left, right), (top, bottom) = _round(box[0], box[2], array.shape[1]), _round(box[1], box[3], array.shape[0])
    array = array[top:bottom, left:right]
    if array.shape[:2] == size:
        return array
    image = rearrange(torch.from_numpy(array.copy()), "h w c -> 1 c h w")  # channels_last is fastest in torch
    scaled = F.interpolate(image, size, mode="bicubic", antialias=True)
    return rearrange(scaled, "1 c h w -> h w c").numpy()


def _round(start: float, stop: float, length: int) -> tuple[int, int]:
    """Round start and stop to whole pixels within `length`, at least one apart."""
    first = min(round(start), length - 1)
    return first, max(first + 1, min(round(stop), length))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16- and 32-bit grey, which PIL's own conversion clips at 255
        grey = np.asarray(image).astype(np.float32)  # large scans are 16-bit grey: work in place
        if not np.isfinite(grey.sum(dtype=np.float64)):
            raise ValueError("some pixels are not finite numbers")
        top = 65535.0
        if image.mode == "F":  # no convention: the largest value decides between 0..1, 0..255, 0..65535
            top = next((limit for limit in (1.0, 255.0) if grey.max() <= limit), 65535.0)
        grey *= 255 / top
        image = Image.fromarray(grey.clip(0, 255, out=grey).round(out=grey).astype(np.uint8))
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


def _unreadable(error: BaseException) -> Unreadable:
    if isinstance(error, UnidentifiedImageError):
        return Unreadable(f"not an image in a supported format ({', '.join(FORMATS)})")
    return Unreadable(printable(str(error).strip().replace("\n", " ")) or type(error).__name__)
