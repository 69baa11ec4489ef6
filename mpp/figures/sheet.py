"""A contact sheet: images side by side, each with a line below it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import make_grid

from mpp.data.bands import displayed
from mpp.errors import printable

_GAP, _LINE = 6, 18  # pixels between images, and for a line of text


def paint_sheet(images: Sequence[np.ndarray], captions: Sequence[str], columns: int, side: int = 112) -> Tensor:
    """Paint uint8 images (C, H, W) row by row with their captions: uint8 (3, height, width). The longer side of an
    image becomes `side` pixels; of many channels the first three are shown. A caption that is too long is cut."""
    columns = max(1, min(columns, len(images)))
    rows = -(-len(images) // columns)
    tallest = max((round(side * min(1.0, image.shape[1] / image.shape[2])) for image in images), default=0)
    line = tallest + (2 if any(captions) else 0)
    cell_width, cell_height = side + _GAP, tallest + _GAP + (_LINE if any(captions) else 0)
    sheet = Image.new("RGB", (columns * cell_width + _GAP, max(1, rows) * cell_height + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = _GAP + number % columns * cell_width, _GAP + number // columns * cell_height
        picture = Image.fromarray(np.ascontiguousarray(rearrange(image[displayed(len(image))], "c h w -> h w c")))
        scale = side / max(picture.size)
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        enlarged = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC  # pixels stay what they are
        sheet.paste(picture.resize(size, enlarged), (left, top))
        pen.text((left, top + line), _cut(printable(caption), side), fill="black", font=_font())
    return torch.from_numpy(rearrange(np.asarray(sheet), "h w c -> c h w").copy())


def paint_rows(rows: Tensor, headings: Sequence[str], nrow: int = 2) -> Tensor:
    """Rows of equally wide panels, uint8 (B, C, H, W), `nrow` beside one another, under the panels' headings: uint8
    (3, height, width)."""
    grid = make_grid(rows, nrow=nrow, padding=_GAP, pad_value=255)  # (3, height, width)
    width = rows.shape[-1] / len(headings)
    band = Image.new("RGB", (grid.shape[-1], _LINE), "white")
    pen = ImageDraw.Draw(band)
    for row in range(min(nrow, len(rows))):
        for panel, heading in enumerate(headings):
            left = _GAP + row * (rows.shape[-1] + _GAP) + panel * width
            pen.text((left + 4, 2), _cut(heading, int(width) - 4), fill="black", font=_font())
    return torch.cat([torch.from_numpy(rearrange(np.asarray(band), "h w c -> c h w").copy()), grid], dim=1)


def _cut(text: str, width: int) -> str:
    """A text, shortened at its end until it is no wider than so many pixels."""
    if _font().getlength(text) <= width:
        return text
    while text and _font().getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


@cache
def _font() -> ImageFont.FreeTypeFont:
    from matplotlib.font_manager import findfont  # its DejaVu Sans has more letters than PIL's own font

    return ImageFont.truetype(findfont("DejaVu Sans"), 12)
