"""From an encoded image to pixels: opened without being decoded, then decoded, turned, cropped and scaled to uint8 RGB.

`pixels` is the only place where damage behind a file's header comes to light.
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


_TURNS = {  # by the EXIF orientation, of which 1 is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# What is opened, whatever a file's name says. PIL knows some 35 more, rare and seldom tested, one of which (EPS) starts
# another program; a format fewer is a door fewer. (A camera's MPO is a JPEG.)
Image.init()


FORMATS = ["JPEG", "PNG", "WEBP", "JPEG2000", "GIF", "TIFF", "BMP", "PPM", *(["AVIF"] if "AVIF" in Image.OPEN else [])]


# Decompression bombs stay refused (PIL raises at twice this), but a large photograph is no reason for a warning.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


class Unreadable(Exception):
    """An image that cannot be decoded; the message says why, without the place."""


def open_image(row: dict | None, source: str | None = None) -> Image.Image | Unreadable:
    """Open a table's {"bytes": ..., "path": ...}; only the header is read.

    Where there is a path alone, it must be a regular file within `source`, the set that is being read: a table from
    elsewhere is not to have other files of this machine read, or a pipe, which would be waited for without end.
    """
    try:
        if row is None or (row["bytes"] is None and row["path"] is None):
            return Unreadable("the row is empty")
        if row["bytes"] is not None:
            return _open(io.BytesIO(row["bytes"]))
        if "::" in row["path"]:
            return Unreadable("it is in an archive, which is not looked into: unpack that first")
        if source is None or not _is_within(row["path"], source):
            return Unreadable("its path leads out of the set that is read")
        if not stat.S_ISREG(os.stat(row["path"]).st_mode):
            return Unreadable("it is no regular file")
        return _open(row["path"])
    except Exception as error:  # on damaged files, PIL's plug-ins raise nearly anything
        return _unreadable(error)


def _open(file: str | io.BytesIO) -> Image.Image:
    return Image.open(file, formats=FORMATS)


def _is_within(path: str, source: str) -> bool:
    """Whether a file is in the folder (or beside the file) that a set is read from, or in the hub's cache."""
    return os.path.abspath(path).startswith(_roots(source))  # with no `..` left; links are the user's own


@cache
def _roots(source: str) -> tuple[str, ...]:
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    here = Path(source).expanduser()
    folders = [here if here.is_dir() else here.parent] if here.exists() else []
    roots = (*folders, datasets.config.HF_DATASETS_CACHE, HF_HUB_CACHE)
    real = (
        f(root) for root in roots for f in (os.path.abspath, os.path.realpath)
    )  # `datasets` follows a folder's link
    return tuple(os.path.join(root, "") for root in real)


def printable(text: str) -> str:
    """Text from a set (a file's name, say) on one line, with no control characters: as "\\n" for a line break."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def size_as_seen(image: Image.Image) -> tuple[int, int]:
    """(height, width) after the EXIF rotation, from the header alone."""
    width, height = image.size
    return (width, height) if _quarter_turned(_turn(image)) else (height, width)


def pixels(image: Image.Image, size: tuple[int, int], box: Box | None = None) -> np.ndarray:
    """Decode an image to uint8 RGB (H, W, 3), cut to `box` (default all of it) and scaled to `size` = (H, W).

    JPEGs are shrunk while being decoded, as far as the result allows. EXIF rotation is applied, palettes, CMYK, 16-bit
    and greyscale become RGB, transparency is laid over white. Raises Unreadable.
    """
    height, width = size_as_seen(image)
    turn = _turn(image)
    box = box or (0, 0, width, height)
    try:
        want_w, want_h = size[1] * width / (box[2] - box[0]), size[0] * height / (box[3] - box[1])
        want = (want_h, want_w) if _quarter_turned(turn) else (want_w, want_h)
        array = _decoded(image, (max(1, round(want[0])), max(1, round(want[1]))), turn)
        fx, fy = array.shape[1] / width, array.shape[0] / height  # below 1 where it was shrunk; the box shrinks along
        return _resized(array, size, (box[0] * fx, box[1] * fy, box[2] * fx, box[3] * fy))
    except Exception as error:
        raise _unreadable(error) from error


def _decoded(image: Image.Image, want: tuple[int, int], turn: Image.Transpose | None) -> np.ndarray:
    """Decode to RGB (H, W, 3), turned; a JPEG shrunk by 2, 4 or 8 where it still has `want` = (W, H)."""
    if isinstance(image, JpegImageFile) and image.format == "JPEG":  # no MPO
        image.draft(None, want)  # sets image.size
        if image.mode == "RGB" and turn is None and image.fp:
            image.fp.seek(0)
            with suppress(ValueError):  # of damage, of which PIL says more or which it overlooks
                # the same library as PIL's and the same pixels, in 0.7 of the time
                return simplejpeg.decode_jpeg(image.fp.read(), min_width=image.size[0], min_height=image.size[1])
    image.load()
    return np.asarray(_to_rgb(image if turn is None else image.transpose(turn)))


def _resized(array: np.ndarray, size: tuple[int, int], box: Box) -> np.ndarray:
    """Cut (H, W, 3) to `box`, at whole pixels, and scale it to `size`: antialiased bicubic, which is PIL's filter, but
    for rounding by 1 or 2 of 255, in a seventh of its time."""
    (left, right), (top, bottom) = _whole(box[0], box[2], array.shape[1]), _whole(box[1], box[3], array.shape[0])
    array = array[top:bottom, left:right]
    if array.shape[:2] == size:
        return array
    image = rearrange(torch.from_numpy(array.copy()), "h w c -> 1 c h w")  # torch scales channels_last fastest
    scaled = F.interpolate(image, size, mode="bicubic", antialias=True)
    return rearrange(scaled, "1 c h w -> h w c").numpy()


def _whole(start: float, stop: float, length: int) -> tuple[int, int]:
    """The whole pixels from start to stop, one at least, of `length`."""
    first = min(round(start), length - 1)
    return first, max(first + 1, min(round(stop), length))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16- and 32-bit grey, where PIL's own conversion clips at 255
        grey = np.asarray(image).astype(np.float32)  # in place from here: large scans are 16-bit grey
        if not np.isfinite(grey.sum(dtype=np.float64)):
            raise ValueError("pixels that are not finite numbers")
        top = 65535.0
        if image.mode == "F":  # no convention: 0..1, 0..255 or 0..65535, by the largest value
            top = next((limit for limit in (1.0, 255.0) if grey.max() <= limit), 65535.0)
        grey *= 255 / top
        image = Image.fromarray(grey.clip(0, 255, out=grey).round(out=grey).astype(np.uint8))
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How the header's EXIF (or XMP) says to turn an image. Damaged EXIF says nothing; TIFFs are turned by PIL."""
    told = "exif" in image.info or ("xmp" in image.info and image.format != "PNG")  # else a PNG would be decoded here
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
        return Unreadable(f"no image format that is read: {', '.join(FORMATS)}")
    return Unreadable(printable(str(error).strip().replace("\n", " ")) or type(error).__name__)
