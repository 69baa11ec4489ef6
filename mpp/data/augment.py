"""Augmentation: crops, flips and more, drawn for each sample by its own generator; mixing of pairs; normalisation.

Choosing a box and scaling it to size happen while decoding (`random_resized_box`, `centred_box`); the shift and the
flip are made for a whole batch (`shift_and_flip`). Normalisation and mixing are the device's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from torch import Tensor

from mpp.data.decode import Box, pixels, size_as_seen
from mpp.data.randomness import Numbers, Use

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


def shift_and_flip(images: np.ndarray, shift: np.ndarray, flip: np.ndarray) -> np.ndarray:
    """Move images (B, H, W, C) by `shift` (B, 2) pixels down and right, and mirror those where `flip` (B,) is true.

    What comes in at an edge is the image's reflection, not black, which would make patches that need no prediction.
    Returns (B, C, H, W), which costs no further pass: 3 microseconds an image of 32 x 32, where one index of every
    pixel on the device took 11 on a CPU.
    """
    batch, height, width, _ = images.shape
    pad = int(np.abs(shift).max(initial=0))
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")
    windows = sliding_window_view(padded, (height, width), axis=(1, 2))  # (B, 2 pad + 1, 2 pad + 1, C, H, W), a view
    moved = np.ascontiguousarray(windows[np.arange(batch), pad - shift[:, 0], pad - shift[:, 1]])
    moved[flip] = moved[flip][..., ::-1]
    return moved


def randaugmented(image: np.ndarray, operations: int, rng: np.random.Generator) -> np.ndarray:
    """RandAugment (torchvision's, magnitude 9 of 30) of one image (H, W, 3) uint8, drawn by its own generator."""
    from torchvision.transforms.v2 import RandAugment  # a second to import, and not always needed

    with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's own generator
        torch.default_generator.manual_seed(int(rng.integers(1 << 62)))
        return np.array(RandAugment(operations)(Image.fromarray(image)))  # ten times as fast as on small tensors


def mixed(
    images: Tensor, labels: Tensor, mixup: float, cutmix: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Mixup or CutMix (torchvision's; with both, one of them by chance) of normalised images (B, C, H, W) and label
    weights (B, classes).

    Sample 2i is mixed with sample 2i + 1, and one draw serves the batch, so that a step's result does not depend on how
    many processes share it. B must be even.
    """
    from torchvision.transforms.v2 import CutMix, MixUp

    kinds = [*([MixUp(alpha=mixup)] if mixup else []), *([CutMix(alpha=cutmix)] if cutmix else [])]
    channels, classes = images.shape[1], labels.shape[1]
    # torchvision mixes an image with its neighbour in a batch: of two, whose channels are those of all the pairs
    images = rearrange(images, "(pair two) c h w -> two (pair c) h w", two=2)
    labels = rearrange(labels, "(pair two) k -> two (pair k)", two=2)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(rng.integers(1 << 62)))
        images, labels = kinds[int(rng.integers(len(kinds)))](images, labels)
    images = rearrange(images, "two (pair c) h w -> (pair two) c h w", c=channels)
    return images, rearrange(labels, "two (pair k) -> (pair two) k", k=classes)


def normalise(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 -1..1, as the ViT authors' code does for all data sets (mean and deviation 0.5)."""
    return images / 127.5 - 1


@dataclass(frozen=True)
class View:
    """How samples are cropped, to `size` (H, W), and otherwise changed (not at all for evaluation)."""

    size: tuple[int, int]
    crop: Crop = "none"
    pad: int = 0
    scale: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.0
    randaugment: int = 0

    def cut(self, image: Any, numbers: Numbers, number: int) -> np.ndarray:
        """Decode the image of sample `number` into (H, W, 3) uint8. Raises Unreadable."""
        height, width = size_as_seen(image)
        aspect = self.size[1] / self.size[0]
        box = centred_box(height, width, aspect)
        if not self.is_drawn:
            return pixels(image, self.size, box)
        rng = numbers.generator(Use.CUT, number)
        if self.crop == "resized":
            box = random_resized_box(rng, height, width, aspect, self.scale)
        array = pixels(image, self.size, box)
        return randaugmented(array, self.randaugment, rng) if self.randaugment else array

    @property
    def is_drawn(self) -> bool:
        """Whether `cut` leaves something to chance."""
        return self.crop == "resized" or self.randaugment > 0

    def takes_whole(self, images: Any) -> bool:
        """Whether images need nothing from `cut`: packed ones of the size that is wanted."""
        return not self.is_drawn and getattr(images, "packed_size", None) == self.size

    def move(self, images: np.ndarray, numbers: Numbers, kept: Sequence[int]) -> np.ndarray:
        """Shift and flip the images (B, H, W, 3) of the samples `kept` -> (B, 3, H, W)."""
        pad = self.pad if self.crop == "pad" else 0
        if not pad and not self.flip:
            return np.ascontiguousarray(rearrange(images, "b h w c -> b c h w"))
        u = numbers.uniform(Use.MOVE, 3)[kept]
        return shift_and_flip(images, (u[:, :2] * (2 * pad + 1)).astype(np.int64) - pad, u[:, 2] < self.flip)
