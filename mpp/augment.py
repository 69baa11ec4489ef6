"""Augmentation: crops and flips, drawn for each sample by its own generator, and normalisation.

Choosing a box and scaling it to size happen while decoding (`random_resized_box`, `centred_box`); the shift and the
flip are made for the whole batch on the device (`shift_and_flip`), as is normalisation.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mpp.images import Box

Crop = Literal["pad", "resized", "none"]


def random_resized_box(
    rng: np.random.Generator, height: int, width: int, aspect: float, scale: tuple[float, float]
) -> Box:
    """A box of a random share (`scale`, 0..1) of an image's area and a random shape, 3/4 to 4/3 of `aspect` (w/h).

    The augmentation of Inception (arXiv 1409.4842) in torchvision's form: ten tries, then the largest centred box.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        ratio = aspect * np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
            return int(left), int(top), int(left + w), int(top + h)
    return centred_box(height, width, aspect)


def centred_box(height: int, width: int, aspect: float) -> Box:
    """The largest centred box of shape `aspect` (w/h): for evaluation and the crops "pad" and "none"."""
    w, h = min(float(width), height * aspect), min(float(height), width / aspect)
    left, top = (width - w) / 2, (height - h) / 2
    return left, top, left + w, top + h


def shift_and_flip(images: Tensor, shift: Tensor, flip: Tensor) -> Tensor:
    """Move images (B, C, H, W) by `shift` (B, 2) pixels down and right, and mirror where `flip` (B,) is true.

    What comes in at an edge is the image's reflection, not black, which would make patches that need no prediction.
    One index of the whole batch does both, instead of a crop an image.
    """
    height, width = images.shape[-2:]
    rows = _reflect(torch.arange(height, device=images.device) - shift[:, :1], height)  # (B, H)
    cols = _reflect(torch.arange(width, device=images.device) - shift[:, 1:], width)  # (B, W)
    cols = torch.where(flip[:, None], cols.flip(-1), cols)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    pixels = images.permute(0, 2, 3, 1)[batch, rows[:, :, None], cols[:, None, :]]  # (B, H, W, C)
    return pixels.permute(0, 3, 1, 2)


def _reflect(places: Tensor, size: int) -> Tensor:
    """Places beyond 0..size-1 mirrored at the edge pixels, as often as it takes."""
    places = places.abs() % max(1, 2 * size - 2)
    return torch.where(places >= size, 2 * size - 2 - places, places)


def normalise(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 -1..1, as the ViT authors' code does for all data sets (mean and deviation 0.5)."""
    return images / 127.5 - 1
