"""Targets that are regressed and have no colour: normalised pixels, and histograms of oriented gradients (HOG)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import Tensor

_ORIENTATIONS = 9  # unsigned, in 0..180 degrees
_EPSILON = 0.075  # of the norm, for grey in -1..1: weaker edges than this are not blown up to full size
_SCALE = 2.0  # brings the mean squared error of a mean prediction near that of pixels


class Regression(ABC):
    """A target of real numbers (B, N, num_outputs), learnt by mean squared error: a prediction has a target's form."""

    @abstractmethod
    def of(self, images: Tensor) -> Tensor: ...

    @abstractmethod
    def bins(self, targets: Tensor) -> Tensor: ...

    @abstractmethod
    def true_pixels(self, targets: Tensor) -> list[Tensor]: ...

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(predictions.float(), targets)

    def predicted_bins(self, predictions: Tensor) -> Tensor:
        return self.bins(predictions)

    def clues(self, images: Tensor) -> Tensor:
        return self.of(images)

    def bins_of_clues(self, clues: Tensor) -> Tensor:
        return self.bins(clues)

    def pixels(self, predictions: Tensor) -> list[Tensor]:
        return self.true_pixels(predictions)


class NormalisedPixels(Regression):
    """Regression of each patch's pixels less their mean and over their deviation (MAE's target, arXiv 2111.06377,
    section 4.1). The colour is gone; the bin is the brightest quarter of the patch."""

    cells, num_bins = 1, 4

    def __init__(self, patch_size: int, channels: int = 3) -> None:
        self.patch_size, self.channels = patch_size, channels
        self.num_outputs = channels * patch_size**2

    def of(self, images: Tensor) -> Tensor:
        p = self.patch_size
        pixels = rearrange(images / 127.5 - 1, "b c (h y) (w x) -> b (h w) (c y x)", y=p, x=p)
        variance, mean = torch.var_mean(pixels, dim=-1, keepdim=True, correction=0)
        return (pixels - mean) * (variance + 1e-4).rsqrt()  # a flat patch is 0, not noise blown up

    def bins(self, targets: Tensor) -> Tensor:
        grey = reduce(targets.float(), "b k (c y x) -> b k y x", "mean", c=self.channels, y=self.patch_size)
        return F.adaptive_avg_pool2d(grey, 2).flatten(-2).argmax(-1, keepdim=True)

    def true_pixels(self, targets: Tensor) -> list[Tensor]:
        pixels = (targets.float() * 64 + 128).round().clamp(0, 255).to(torch.uint8)  # two deviations fill the range
        return [rearrange(pixels, "b k (c y x) -> b k c y x", c=self.channels, y=self.patch_size)]


class Hog(Regression):
    """Histograms of oriented gradients (Dalal and Triggs, CVPR 2005), as MaskFeat's (arXiv 2112.09133).

    A patch has 2 x 2 cells (one if its side is odd) of 9 unsigned orientations each, together of norm 1. The gradients
    are those of the mean of the channels. The bin is the strongest orientation of the whole patch.
    """

    cells, num_bins = 1, _ORIENTATIONS

    def __init__(self, patch_size: int, channels: int = 3) -> None:
        self.patch_size, self.channels = patch_size, channels
        self.grid = 1 if patch_size % 2 else 2
        self.num_outputs = _ORIENTATIONS * self.grid**2

    def of(self, images: Tensor) -> Tensor:
        grey = reduce(images.to(torch.int32), "b c h w -> b 1 h w", "sum").float()  # exact: no rounding turns an edge
        padded = F.pad(grey, [1] * 4, mode="reflect")  # central differences that are 0 at the border
        dx = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
        dy = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
        angle = torch.atan2(dy, dx) / math.pi % 1  # in 0..1 for 0..180 degrees
        orientation = (angle * _ORIENTATIONS).long().clamp_(max=_ORIENTATIONS - 1)
        strength = torch.zeros_like(grey).repeat(1, _ORIENTATIONS, 1, 1).scatter_(1, orientation, torch.hypot(dx, dy))
        strength *= 2 / 255 / images.shape[1]  # of the channels' mean in -1..1
        cell = self.patch_size // self.grid
        cells = rearrange(
            F.avg_pool2d(strength, cell), "b o (h gy) (w gx) -> b (h w) (gy gx o)", gy=self.grid, gx=self.grid
        )
        return _SCALE * cells * (cells.square().sum(-1, keepdim=True) + _EPSILON**2).rsqrt()

    def bins(self, targets: Tensor) -> Tensor:
        whole = reduce(targets.float(), "b k (cells o) -> b k o", "sum", o=_ORIENTATIONS)
        return whole.argmax(-1, keepdim=True)

    def true_pixels(self, targets: Tensor) -> list[Tensor]:
        """A cell is as bright as its edges are strong; with 3 channels, its hue says their orientation."""
        cells = rearrange(targets.float().clamp(min=0), "b k (cells o) -> b k cells o", o=_ORIENTATIONS)
        turns = torch.arange(_ORIENTATIONS, device=cells.device) / _ORIENTATIONS * 2 * math.pi
        phases = torch.arange(self.channels, device=cells.device) / 3 * 2 * math.pi if self.channels == 3 else turns[:1]
        hues = 0.5 + 0.5 * torch.cos(turns[:, None] - phases)  # (9, C or 1)
        shown = (cells @ hues / _SCALE * 1.5 * 255).clamp(0, 255).to(torch.uint8)
        side = self.patch_size // self.grid
        shown = repeat(shown, "b k (gy gx) c -> b k c (gy y) (gx x)", gy=self.grid, y=side, x=side)
        return [shown.expand(-1, -1, self.channels, -1, -1)]
