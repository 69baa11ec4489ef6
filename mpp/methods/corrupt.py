"""Corruption of patch embeddings: which patches, and what replaces them (ViT paper, appendix B.1.2).

Half of an image's patch embeddings are corrupted: 80 % of these become the learnt [mask] embedding, 10 % a random
other patch's embedding, 10 % stay. The loader draws the patches with numpy; the device replaces the embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from mpp.config.derived import num_corrupted
from mpp.data.randomness import Numbers, Use
from mpp.models.blocks import gather

MaskShape = Literal["uniform", "blocks"]


class Corruption(NamedTuple):
    """The corruption of a batch. Both tensors (B, K) int64; K is the same for every image, so shapes are static."""

    indices: Tensor  # the corrupted patches, sorted, in 0..N-1
    sources: Tensor  # the patch that replaces each one: itself (kept), another patch, or N for [mask]


def draw_corruption(
    numbers: Numbers,
    grid: tuple[int, int],
    ratio: float = 0.5,
    fates: tuple[float, float, float] = (0.8, 0.1, 0.1),
    shape: MaskShape = "uniform",
) -> Corruption:
    """Choose each image's corrupted patches and their fates from the random numbers of its place in the batch.

    Args:
        numbers: random numbers of B samples; the same numbers give the same corruption.
        grid: patches (down, across), N in total.
        ratio: corrupts exactly round(ratio * N) patches of every image.
        fates: probabilities of ([mask], a random other patch of the image, kept), in 0..1, with sum 1.
        shape: "uniform" (without replacement) or "blocks" (rectangles, as BEiT's).
    """
    num_patches = grid[0] * grid[1]
    count = num_corrupted(num_patches, ratio)
    if min(fates) < 0 or abs(sum(fates) - 1) > 1e-6:
        raise ValueError(f"the probabilities {fates} of [mask], other and kept must be at least 0 and sum to 1")
    if shape == "uniform":
        noise = numbers.uniform(Use.PATCHES, num_patches)  # (B, N)
        indices = np.sort(np.argpartition(noise, count, axis=1)[:, :count], axis=1)
    else:
        rngs = (numbers.generator(Use.PATCHES, i) for i in range(len(numbers.places)))
        indices = np.stack([blocks(rng, grid, count) for rng in rngs])
    fate, offset = rearrange(numbers.uniform(Use.FATES, 2 * count), "b (two k) -> two b k", two=2)  # (B, K) each
    other = (indices + 1 + (offset * (num_patches - 1)).astype(np.int64)) % num_patches  # never the patch itself
    sources = np.where(fate < fates[0], num_patches, np.where(fate < fates[0] + fates[1], other, indices))
    return Corruption(torch.from_numpy(indices), torch.from_numpy(sources))


def corrupt(embeddings: Tensor, mask_token: Tensor, corruption: Corruption) -> Tensor:
    """Apply a corruption to patch embeddings (B, N, D), before positions are added; `mask_token` is (D,)."""
    batch, num_patches, _ = embeddings.shape
    own = torch.arange(num_patches, device=embeddings.device).expand(batch, -1)  # (B, N)
    sources = own.scatter(1, corruption.indices, corruption.sources)  # (B, N): an uncorrupted patch is its own source
    masked = sources == num_patches
    moved = gather(embeddings, torch.where(masked, own, sources))
    return torch.where(masked[..., None], mask_token.to(embeddings.dtype), moved)


def blocks(rng: np.random.Generator, grid: tuple[int, int], count: int) -> np.ndarray:
    """Cover exactly `count` patches with random rectangles: BEiT's block-wise masking (arXiv 2106.08254, algorithm 1).
    BEiT's smallest block, 16 of 196 patches, is scaled to the grid. The last block is cut to fit."""
    height, width = grid
    chosen = np.zeros(grid, dtype=bool)
    smallest = height * width * 16 / 196
    while (missing := count - int(chosen.sum())) > 0:
        area = rng.uniform(min(smallest, missing), missing)
        aspect = np.exp(rng.uniform(np.log(0.3), -np.log(0.3)))
        h = min(height, max(1, round(np.sqrt(area * aspect))))
        w = min(width, max(1, round(np.sqrt(area / aspect))))
        top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
        block = np.zeros(grid, dtype=bool)
        block[top : top + h, left : left + w] = True
        new = np.flatnonzero(block & ~chosen)
        chosen.flat[new[:missing]] = True
    return np.flatnonzero(chosen)


@dataclass(frozen=True)
class CorruptionDraws:
    """Draws the corruption of a batch from its samples' random numbers; the loader calls it."""

    grid: tuple[int, int]
    ratio: float
    fates: tuple[float, float, float]
    shape: MaskShape

    def __call__(self, numbers: Numbers) -> dict[str, Tensor]:
        return draw_corruption(numbers, self.grid, self.ratio, self.fates, self.shape)._asdict()
