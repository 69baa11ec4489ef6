"""Pictures of what a pretrained model predicts: images completed, colours taken for others, confidence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from mpp.data.bands import displayed

_COLOURS = "viridis"  # told apart by the colour-blind, and in grey
_BEST, _WORST = "#56B4E9", "#D55E00"  # of Okabe and Ito's palette, as all lines here
_OUTLINED = 3  # best and worst patches of an image

Shown = tuple[float, tuple[int, int], Sequence[Tensor]]  # a patch's error, where it begins in views uint8 (C, h, w)


def _show(axes: Axes, image: Tensor) -> None:
    """Show an image, uint8 (C, H, W), or its first channels."""
    shown = rearrange(image[displayed(len(image))], "c h w -> h w c")
    axes.imshow(shown.numpy(), cmap="gray", vmin=0, vmax=255)


def paint_panels(panels: Sequence[Tensor], headings: Sequence[str], errors: Tensor, patch_size: int) -> Figure:
    """Each row an image: panels (B, C, H, W) under their headings, then the error of each patch (B, h, w), NaN where
    nothing was predicted. The 3 best and worst patches of each image are outlined."""
    count, columns = len(errors), len(panels) + 1
    figure = Figure(figsize=(1.5 * columns + 1, 1.5 * count + 0.9), layout="constrained")
    figure.suptitle(f"Outlined: the best (blue) and the worst (red) {_OUTLINED} patches of each image")
    every = figure.subplots(count, columns, squeeze=False)
    for axes, heading in zip(every[0], (*headings, "error"), strict=True):
        axes.set_title(heading, fontsize=9)
    for axes in every.flat:
        axes.set(xticks=[], yticks=[])
    most = float(np.nanmax(errors.numpy()))
    for number, row in enumerate(every):
        for axes, panel in zip(row, panels, strict=False):
            _show(axes, panel[number])
        height, width = errors[number].shape
        extent = (-0.5, patch_size * width - 0.5, patch_size * height - 0.5, -0.5)
        shown = row[-1].imshow(errors[number].numpy(), cmap=_COLOURS, vmin=0, vmax=max(most, 1e-6), extent=extent)
        order = np.argsort(errors[number].flatten().numpy())  # NaN last
        order = order[: int((~errors[number].isnan()).sum())]
        for colour, places in {_BEST: order[:_OUTLINED], _WORST: order[-_OUTLINED:]}.items():
            for place in places.tolist():
                for axes in row:
                    y, x = (patch_size * at - 0.5 for at in divmod(place, width))
                    axes.add_patch(Rectangle((x, y), patch_size, patch_size, fill=False, edgecolor=colour, lw=1.3))
    figure.colorbar(shown, ax=every, label="mean absolute error of the patch, of 0..255", shrink=min(1, 3 / count))
    return figure


def paint_examples(best: Sequence[Shown], worst: Sequence[Shown], patch_size: int) -> Figure:
    """The best and the worst patches, outlined among those around them."""
    columns = max(len(best), len(worst))
    figure = Figure(figsize=(1.25 * columns + 1, 8.6), layout="constrained")
    figure.suptitle("The best and the worst patch of different images; above: mean absolute error, of 0..255")
    every = figure.subplots(6, columns, squeeze=False)
    for axes in every.flat:
        axes.set(xticks=[], yticks=[], frame_on=False)
    for first, (name, examples, colour) in {0: ("best", best, _BEST), 3: ("worst", worst, _WORST)}.items():
        for axes, heading in zip(every[first:, 0], ("input", "predicted", "true"), strict=False):
            axes.set_ylabel(f"{name}: {heading}", fontsize=9)
        for number, (error, (row, column), views) in enumerate(examples):
            every[first, number].set_title(f"{error:.1f}", fontsize=9)
            for axes, view in zip(every[first:, number], views, strict=False):
                _show(axes, view)
                corner = column - 0.5, row - 0.5
                axes.add_patch(Rectangle(corner, patch_size, patch_size, fill=False, edgecolor=colour, lw=1.3))
    return figure


def paint_colour_confusion(luminance: np.ndarray, chroma: np.ndarray | None, hues: Sequence[str]) -> Figure:
    """Which colours are taken for which: counts (8, 8) of luminance levels and (7, 7) of hues, rows are true."""
    matrices = {"luminance": (luminance, [f"{32 * level}" for level in range(len(luminance))])}
    if chroma is not None:
        matrices["hue"] = chroma, list(hues)
    figure = Figure(figsize=(6.2 * len(matrices), 5.6), layout="constrained")
    figure.suptitle(f"Mean colours of {int(luminance.sum()):,} predicted patches, in % of the true one")
    for axes, (name, (counts, names)) in zip(
        figure.subplots(1, len(matrices), squeeze=False)[0], matrices.items(), strict=True
    ):
        totals = counts.sum(1, keepdims=True)
        shares = 100 * counts / np.maximum(1, totals)
        shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
        rows = [f"{label} ({total:,})" for label, total in zip(names, totals[:, 0], strict=True)]
        axes.set_xticks(range(len(names)), names, rotation=45)
        axes.set_yticks(range(len(names)), rows)
        unit = " (levels from this, of 0..255)" if name == "luminance" else ""
        axes.set(xlabel=f"predicted {name}{unit}", ylabel=f"true {name} (patches)", title=name)
        for row, column in np.ndindex(*shares.shape):
            if totals[row, 0]:
                shade = "white" if shares[row, column] > 50 else "black"
                axes.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", color=shade, fontsize=8)
    figure.colorbar(shown, label="% of the true one's patches", shrink=0.7)
    return figure


def paint_calibration(table: Sequence[tuple[float, float, int, float, float]], error: float) -> Figure:
    """Whether the probability of the predicted bin is how often it is right: bins of confidence, (from, to, how many,
    mean confidence, accuracy), and the expected calibration error; all but the counts in 0..1."""
    starts, ends, counts, means, accuracies = (np.array(column) for column in zip(*table, strict=True))
    figure = Figure(figsize=(5.6, 5.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    above.plot([0, 100], [0, 100], ":", color="black", label="as often as it says")
    above.plot(100 * means, 100 * accuracies, "o-", color="#0072B2", label="predicted bins")
    above.set(
        xlim=(0, 100),
        ylim=(0, 100),
        ylabel="accuracy, %",
        title=f"{counts.sum():,} predicted colour bins: calibration error {100 * error:.1f} points",
    )
    above.grid(alpha=0.3)
    above.legend(loc="upper left")
    below.bar(
        100 * starts, 100 * counts / counts.sum(), 100 * (ends - starts), align="edge", color="#0072B2", ec="white"
    )
    below.set(xlabel="confidence: probability of the predicted bin, %", ylabel="share, %")
    return figure
