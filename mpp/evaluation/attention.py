"""What attention does: its weights, how far it looks, and what flows to the image's representation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from einops import rearrange, reduce
from torch import Tensor

from mpp.models.blocks import Attention, split_heads
from mpp.models.vit import ViT


def attention_weights(attention: Attention, x: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d) + relative positions) of a block's attention: its input (B, T, D) -> (B, h, T, T)."""
    q, k, _ = split_heads(attention.qkv(x), 3, attention.num_heads)
    logits = torch.einsum("bhqd,bhkd->bhqk", q, k) * q.shape[-1] ** -0.5
    return (logits if attention.relative is None else logits + attention.relative(q)).float().softmax(-1)


@torch.no_grad()
def weights_of_blocks(vit: ViT, images: Tensor) -> Iterator[Tensor]:
    """The attention weights (B, h, T, T) of every block, from the first: images (B, C, H, W) in -1..1."""
    tokens = vit.enter(vit.add_positions(vit.embed(images)))
    block: Any  # nn.ModuleList says no more than Module
    for block in vit.blocks:
        yield attention_weights(block.attn, block.norm1(tokens))
        tokens = block(tokens)


def pixel_distances(grid: tuple[int, int], stride: int) -> Tensor:
    """Distances between the centres of patches, `stride` pixels apart: (N, N)."""
    rows, cols = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    places = torch.stack([rows.flatten(), cols.flatten()], dim=-1).float() * stride  # (N, 2)
    return torch.cdist(places, places)


def attention_distances(weights: Tensor, first: int, distances: Tensor) -> Tensor:
    """Mean attention distance of each head in pixels (ViT paper, figure 7): the distance between a patch and those it
    attends to, weighted by attention, mean over patches. [class] and registers are left out, and the weights of the
    patches sum to 1 again. Weights (B, h, T, T), the patches from token `first` on -> (B, h).

    Uniform attention gives the mean of all distances.
    """
    patches = slice(first, first + len(distances))
    among = weights[:, :, patches, patches]  # (B, h, N, N)
    shares = among / among.sum(-1, keepdim=True)
    return reduce(shares * distances.to(among), "b h q k -> b h q", "sum").mean(-1)


def rollout(weights: Iterator[Tensor] | list[Tensor], first: int, patches: int) -> Tensor:
    """Attention rollout (Abnar and Zuidema, arXiv 2005.00928): how much of each patch reaches [class], or where there
    is none the mean of the patches. Half of every block's input goes past its attention; heads are averaged.

    Weights (B, h, T, T) of every block -> (B, N), which sum to 1.
    """
    flow: Tensor | None = None
    for block in weights:
        mixed = 0.5 * block.mean(1) + 0.5 * torch.eye(block.shape[-1], device=block.device)  # (B, T, T)
        flow = mixed if flow is None else mixed @ flow
    assert flow is not None
    reads = flow[:, 0] if first else flow[:, :patches].mean(1)  # (B, T)
    of_patches = reads[:, first : first + patches]
    return of_patches / of_patches.sum(-1, keepdim=True)


def filter_components(weight: Tensor, channels: int, patch_size: int, count: int = 28) -> tuple[Tensor, Tensor]:
    """The first principal components of the patch-embedding filters (ViT paper, figure 7): weight (D, C P P) -> the
    components (count, C, P, P) of length 1, and the share of the variance that each explains (count,)."""
    filters = weight.double() - weight.double().mean(0)
    _, values, axes = torch.linalg.svd(filters, full_matrices=False)
    shares = values.square() / values.square().sum().clamp_min(1e-300)
    found = rearrange(axes[:count], "k (c p q) -> k c p q", c=channels, p=patch_size)
    return found.float(), shares[:count].float()


def position_similarity(vit: ViT) -> Tensor | None:
    """Cosine similarity of position embeddings. 1d and 2d: of each patch's to those of all, (N, N). relative: of the
    vector of each offset in rows and columns to that of offset 0, in every block, (depth, 2h - 1, 2w - 1). None: None.
    """
    unit = torch.nn.functional.normalize
    if (absolute := vit.positions()) is not None:
        places = unit(absolute[0, vit.first :].double(), dim=-1)  # (N, D)
        return (places @ places.T).float().detach()
    blocks: list[Any] = list(vit.blocks)
    tables = [block.attn.relative for block in blocks if block.attn.relative is not None]
    if not tables:
        return None
    height, width = vit.grid
    maps = []
    for table in tables:
        offsets = unit(table.table[:-3].double(), dim=-1)  # ((2h - 1) (2w - 1), d)
        centre = offsets[(height - 1) * (2 * width - 1) + width - 1]
        maps.append(rearrange(offsets @ centre, "(h w) -> h w", h=2 * height - 1))
    return torch.stack(maps).float().detach()
