"""Principal components of patch features as colours, as DINOv2 shows them (arXiv 2304.07193, figure 1)."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

_OUTSIDE = 0.01  # share of patches at either end of a component that are as dark or as bright as it goes


def component_colours(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """The first three principal components of the patches of several images, as red, green and blue.

    The components are those of all patches together, so that a colour means the same in every image; each image's mean
    is taken away before, because in MPP's last blocks it hides what varies within the image. Shapes: tokens (B, N, D)
    of patches in a grid (h, w) -> uint8 (B, 3, h, w). Components that do not vary are grey.
    """
    features = tokens.double()
    features = rearrange(features - features.mean(1, keepdim=True), "b n d -> (b n) d")
    _, axes = torch.linalg.eigh(features.T @ features)  # ascending
    axes = axes.flip(1)[:, :3]
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()  # eigh may return either direction
    places = features @ axes  # (B N, 3)
    low, high = places.quantile(_OUTSIDE, dim=0), places.quantile(1 - _OUTSIDE, dim=0)
    varies = high - low > 1e-9 * features.abs().max().clamp_min(1e-300)
    shares = torch.where(varies, (places - low) / torch.where(varies, high - low, 1.0), 0.5).clamp(0, 1)
    return rearrange((255 * shares).round().byte(), "(b h w) c -> b c h w", h=grid[0], w=grid[1])
