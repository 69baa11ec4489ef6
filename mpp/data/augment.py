"""Augmentation (crops, flips, RandAugment; each sample has its own generator), mixing of pairs, and normalisation.

The crop box is chosen and scaled during decoding (`random_resized_box`, `centred_box`). Shift and flip act on a whole
batch (`shift_and_flip`). Normalisation and mixing run on the device.
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

from mpp.data.bands import Bands
from mpp.data.decode import Box, pixels, size_as_seen
from mpp.data.randomness import Numbers, Use

Crop = Literal["pad", "resized", "none"]


def random_resized_box(
    rng: np.random.Generator, height: int, width: int, aspect: float, scale: tuple[float, float]
) -> Box:
    """Draw a box: a random share (`scale`, 0..1) of the image's area, a random shape of 3/4 to 4/3 of `aspect` (w/h).

    Inception's augmentation (arXiv 1409.4842) as in torchvision: ten tries, then the largest centred box.
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
    """Shift images (B, H, W, C) by `shift` (B, 2) pixels down and right, and mirror those where `flip` (B,) is true.

    The border is filled with the image's reflection: black patches would need no prediction. Returns (B, C, H, W)
    without a further pass, in 3 microseconds per 32 x 32 image. Indexing every pixel on a CPU device took 11.
    """
    batch, height, width, _ = images.shape
    pad = int(np.abs(shift).max(initial=0))
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")
    windows = sliding_window_view(padded, (height, width), axis=(1, 2))  # (B, 2 pad + 1, 2 pad + 1, C, H, W), a view
    moved = np.ascontiguousarray(windows[np.arange(batch), pad - shift[:, 0], pad - shift[:, 1]])
    moved[flip] = moved[flip][..., ::-1]
    return moved


def randaugmented(image: np.ndarray, operations: int, rng: np.random.Generator) -> np.ndarray:
    """Apply torchvision's RandAugment (magnitude 9 of 30) to one image (H, W, 3) uint8, with the sample's generator."""
    from torchvision.transforms.v2 import RandAugment  # the import takes a second and is not always needed

    with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's global generator
        torch.default_generator.manual_seed(int(rng.integers(1 << 62)))
        return np.array(RandAugment(operations)(Image.fromarray(image)))  # PIL is ten times as fast as tensors


def mixed(
    images: Tensor, labels: Tensor, mixup: float, cutmix: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Apply torchvision's Mixup or CutMix (if both are on, one at random) to normalised images (B, C, H, W) and label
    weights (B, classes).

    Sample 2i is mixed with sample 2i + 1. The whole batch shares one draw, so the result of a step does not depend on
    the number of processes. B must be even.
    """
    from torchvision.transforms.v2 import CutMix, MixUp

    kinds = [*([MixUp(alpha=mixup)] if mixup else []), *([CutMix(alpha=cutmix)] if cutmix else [])]
    channels, classes = images.shape[1], labels.shape[1]
    # torchvision mixes neighbours in a batch: give it a batch of two, with all pairs along the channels
    images = rearrange(images, "(pair two) c h w -> two (pair c) h w", two=2)
    labels = rearrange(labels, "(pair two) k -> two (pair k)", two=2)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(rng.integers(1 << 62)))
        images, labels = kinds[int(rng.integers(len(kinds)))](images, labels)
    images = rearrange(images, "two (pair c) h w -> (pair two) c h w", c=channels)
    return images, rearrange(labels, "two (pair k) -> (pair two) k", k=classes)


def normalise(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 -1..1, as the ViT authors do for all data sets (mean and standard deviation 0.5)."""
    return images / 127.5 - 1


@dataclass(frozen=True)
class View:
    """How samples are cropped to `size` (H, W) and augmented. The defaults augment nothing, as evaluation needs."""

    size: tuple[int, int]
    crop: Crop = "none"
    pad: int = 0
    scale: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.0
    randaugment: int = 0

    def cut(self, image: Any, bands: Bands, numbers: Numbers, number: int) -> np.ndarray:
        """Decode and crop the image of sample `number` to (H, W, C) uint8. Raises Unreadable."""
        height, width = size_as_seen(image, bands.channels)
        aspect = self.size[1] / self.size[0]
        box = centred_box(height, width, aspect)
        if not self.is_drawn:
            return pixels(image, self.size, box, bands)
        rng = numbers.generator(Use.CUT, number)
        if self.crop == "resized":
            box = random_resized_box(rng, height, width, aspect, self.scale)
        array = pixels(image, self.size, box, bands)
        return randaugmented(array, self.randaugment, rng) if self.randaugment else array

    @property
    def is_drawn(self) -> bool:
        """Whether `cut` draws random numbers."""
        return self.crop == "resized" or self.randaugment > 0

    def takes_whole(self, images: Any) -> bool:
        """Whether `cut` can be skipped: images are packed at `size`, and nothing is drawn."""
        return not self.is_drawn and getattr(images, "packed_size", None) == self.size

    def move(self, images: np.ndarray, numbers: Numbers, kept: Sequence[int]) -> np.ndarray:
        """Shift and flip the images of the samples `kept`: (B, H, W, C) uint8 -> (B, C, H, W)."""
        pad = self.pad if self.crop == "pad" else 0
        if not pad and not self.flip:
            return np.ascontiguousarray(rearrange(images, "b h w c -> b c h w"))
        u = numbers.uniform(Use.MOVE, 3)[kept]
        return shift_and_flip(images, (u[:, :2] * (2 * pad + 1)).astype(np.int64) - pad, u[:, 2] < self.flip)
