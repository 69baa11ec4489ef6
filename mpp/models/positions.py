"""Position embeddings: relative positions, sine-cosine initial values, and interpolation for `ViT.resize`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn


class RelativePositions(nn.Module):
    """Attention logits from relative positions: the query's product with a learnt vector for each offset.

    As in appendix D.4 of the ViT paper, but with the offset in rows and columns rather than in raster order, so that
    it can be interpolated to other image sizes. Pairs with [class] have three vectors of their own.
    """

    index: Tensor

    def __init__(self, grid: tuple[int, int], head_dim: int) -> None:
        super().__init__()
        self.grid = grid
        self.table = nn.Parameter(torch.empty((2 * grid[0] - 1) * (2 * grid[1] - 1) + 3, head_dim))  # (R + 3, d)
        self.register_buffer("index", _offset_index(grid), persistent=False)  # (T, T)

    def forward(self, q: Tensor, at: Tensor | None = None) -> Tensor:
        """Queries (B, h, T, d), or those `at` (B, K) -> logits to add to the attention's (B, h, T or K, T)."""
        logits = torch.einsum("bhtd,rd->bhtr", q, self.table) * q.shape[-1] ** -0.5
        index = self.index if at is None else self.index[at][:, None]  # (T, T) or (B, 1, K, T)
        return logits.gather(-1, index.expand(*logits.shape[:2], -1, -1))

    def resize(self, grid: tuple[int, int]) -> None:
        """Interpolate the table to another grid of patches."""
        places, cls = self.table[:-3], self.table[-3:]
        places = rearrange(places, "(h w) d -> h w d", h=2 * self.grid[0] - 1)
        places = interpolate(places, (2 * grid[0] - 1, 2 * grid[1] - 1))
        self.table = nn.Parameter(torch.cat([rearrange(places, "h w d -> (h w) d"), cls]))
        self.index = _offset_index(grid).to(self.index.device)
        self.grid = grid


def sincos(length: int, dim: int) -> Tensor:
    """Sine-cosine embeddings of places 0..length-1: (length, dim), with wavelengths from 2 pi to 10,000 * 2 pi."""
    frequencies = 10_000.0 ** -(torch.arange(dim // 2) / (dim // 2))
    angles = torch.arange(length)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _offset_index(grid: tuple[int, int]) -> Tensor:
    """Row of the offset table for each (query, key) pair, [class] first: (1 + N, 1 + N) int64."""
    height, width = grid
    rows, cols = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rows, cols = rows.flatten(), cols.flatten()
    down = rows[:, None] - rows[None] + height - 1
    right = cols[:, None] - cols[None] + width - 1
    last = (2 * height - 1) * (2 * width - 1)
    index = torch.empty(1 + height * width, 1 + height * width, dtype=torch.int64)
    index[1:, 1:] = down * (2 * width - 1) + right
    index[0, :], index[:, 0], index[0, 0] = last, last + 1, last + 2
    return index


def sincos_2d(grid: tuple[int, int], width: int) -> Tensor:
    """One half of each place's vector from its row, the other from its column: (N, width); width a multiple of 4."""
    rows, cols = (sincos(places, width // 2) for places in grid)
    halves = [repeat(rows, "h d -> (h w) d", w=grid[1]), repeat(cols, "w d -> (h w) d", h=grid[0])]
    return torch.cat(halves, dim=-1)


def interpolate(places: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic, antialiased interpolation of a map of vectors: (h, w, d) -> (*size, d)."""
    maps = rearrange(places.float(), "h w d -> 1 d h w")
    maps = F.interpolate(maps, size=size, mode="bicubic", antialias=True, align_corners=False)
    return rearrange(maps, "1 d h w -> h w d").to(places.dtype)
