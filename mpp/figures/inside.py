"""Pictures of what is inside a Vision Transformer, as figure 7 and appendix D of the ViT paper show it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from einops import rearrange
from matplotlib.figure import Figure
from torch import Tensor

from mpp.data.bands import displayed
from mpp.errors import printable

_COLOURS = "viridis"  # told apart by the colour-blind, and in grey


def paint_filters(components: Tensor, shares: Tensor) -> Figure:
    """The principal components of the patch-embedding filters: (K, C, P, P), and their shares of the variance (K,)."""
    columns = 7
    rows = -(-len(components) // columns)
    figure = Figure(figsize=(1.1 * columns, 1.3 * rows + 0.6), layout="constrained")
    figure.suptitle(f"First {len(components)} principal components of the patch-embedding filters (% of the variance)")
    for number, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if number < len(components):
            shown = components[number][displayed(components.shape[1])]
            scaled = 0.5 + 0.5 * shown / shown.abs().max().clamp_min(1e-12)
            axes.imshow(rearrange(scaled, "c p q -> p q c").numpy(), cmap="gray", vmin=0, vmax=1)
            axes.set_title(f"{number + 1}: {100 * shares[number]:.1f}", fontsize=8)
    return figure


def paint_positions(similarity: Tensor, grid: tuple[int, int], kind: str) -> Figure:
    """Cosine similarity of position embeddings: a tile for each patch (1d, 2d), or for each block (relative)."""
    if kind == "relative":
        rows, columns, tiles = 1, len(similarity), similarity
        title = "Cosine similarity of each offset's vector to that of offset 0, by block"
    else:
        rows, columns = grid
        tiles = rearrange(similarity, "n (h w) -> n h w", h=grid[0])
        title = "Cosine similarity of the position embedding of each patch to those of all, a tile a patch"
    figure = Figure(figsize=(max(6.0, min(12.0, 0.8 * columns)), max(3.0, min(12.0, 0.8 * rows + 1))))
    figure.suptitle(title, fontsize="medium")
    every = figure.subplots(rows, columns, squeeze=False)
    for number, (tile, axes) in enumerate(zip(tiles, every.flat, strict=True)):
        shown = axes.imshow(tile.numpy(), cmap=_COLOURS, vmin=float(similarity.min()), vmax=1)
        axes.set(xticks=[], yticks=[])
        if kind == "relative":
            axes.set_title(f"block {number + 1}", fontsize=8)
        elif number % columns == 0:
            axes.set_ylabel(str(number // columns + 1), fontsize=8)
    figure.supxlabel("offset in columns" if kind == "relative" else "patch column", fontsize="small")
    figure.supylabel("offset in rows" if kind == "relative" else "patch row", fontsize="small")
    figure.colorbar(shown, ax=every, label="cosine similarity", shrink=0.8)
    return figure


def paint_distances(models: Mapping[str, tuple[Tensor, float]], images: int) -> Figure:
    """Mean attention distance of each head against depth, a panel a model: its name, the distances (depth, heads) in
    pixels, and uniform attention's."""
    figure = Figure(figsize=(5.4 * len(models) + 1, 4.2), layout="constrained")
    figure.suptitle(f"How far attention looks, over {images} images")
    every = figure.subplots(1, len(models), squeeze=False, sharey=True)[0]
    top = 1.08 * max(max(uniform, distances.max().item()) for distances, uniform in models.values())
    for axes, (name, (distances, uniform)) in zip(every, models.items(), strict=True):
        depth, heads = distances.shape
        blocks = np.arange(1, depth + 1)
        for head in range(heads):
            axes.plot(blocks, distances[:, head], "o", color="#0072B2", alpha=0.6, label=None if head else "a head")
        axes.plot(blocks, distances.mean(1), color="#D55E00", label="mean of the heads")
        axes.axhline(uniform, color="black", linestyle=":", label="uniform attention")
        axes.set(xlabel="block", xticks=blocks, ylim=(0, top))
        axes.set_title(_dollars(name), fontsize=9)
        axes.grid(alpha=0.3)
    every[0].set_ylabel("mean attention distance, pixels")
    every[0].legend(loc="lower right")
    return figure


def _dollars(name: str) -> str:
    """A name that matplotlib does not take for a formula."""
    return printable(name).replace("$", r"\$")


def paint_rollout(images: np.ndarray, flows: np.ndarray) -> Figure:
    """Images uint8 (B, C, H, W), and beside each what share of its patches (B, h, w) reaches the representation."""
    columns = 4
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(2.9 * columns, 1.5 * rows + 0.6), layout="constrained")
    figure.suptitle("Attention rollout: image, and each patch's share in its representation (1 = an equal share)")
    every = figure.subplots(rows, 2 * columns, squeeze=False)
    for axes in every.flat:
        axes.set_axis_off()
    shown = None
    for number, (image, flow) in enumerate(zip(images, flows, strict=True)):
        left, right = every[number // columns, 2 * (number % columns) : 2 * (number % columns) + 2]
        left.imshow(rearrange(image[displayed(len(image))], "c h w -> h w c"), cmap="gray")
        shown = right.imshow(flow * flow.size, cmap=_COLOURS, vmin=0, vmax=float((flows * flow.size).max()))
    if shown is not None:
        figure.colorbar(shown, ax=every, label="share of the patch (1 = an equal share)", shrink=0.8)
    return figure
