"""A confusion matrix as a picture."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

_MOST_CLASSES = 1000  # that a picture can show; the matrix takes memory with their square


def paint_confusion(confusion: Callable[[int], np.ndarray], classes: list[str]) -> dict[str, Tensor]:
    """Paint the confusion matrix (rows: the true class, in % of its images) and the accuracy of each class. Returns
    {"confusion": uint8 (1, 3, H, W)}, or {} with more than 1000 classes.

    `confusion` makes the matrix of so many classes: (classes, classes) counts, rows are true, columns predicted.
    """
    if len(classes) > _MOST_CLASSES:
        return {}
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counts = confusion(len(classes))
    shares = 100 * counts / np.maximum(1, counts.sum(1, keepdims=True))
    side = float(np.clip(0.5 * len(classes), 4, 16))
    shown = [name.replace("$", r"\$") for name in classes]  # matplotlib reads text between two $ as a formula
    figure = Figure(figsize=(1.6 * side + 2, side + 1), layout="constrained")
    matrix, bars = figure.subplots(1, 2, width_ratios=[2, 1])
    matrix.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    matrix.set(xlabel="predicted", ylabel="true", title="% of the true class")
    bars.barh(np.arange(len(classes)), shares.diagonal(), color="tab:blue")
    bars.set(xlim=(0, 100), ylim=(len(classes) - 0.5, -0.5), title="accuracy, %")
    if len(classes) <= 40:
        matrix.set_xticks(range(len(classes)), shown, rotation=90)
        matrix.set_yticks(range(len(classes)), shown)
    bars.set_yticks([])
    if len(classes) <= 20:
        for row, column in np.ndindex(*shares.shape):
            shade = "white" if shares[row, column] > 50 else "black"
            matrix.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", color=shade, fontsize=8)
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # matplotlib shows a box instead
        canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]  # (H, W, 3)
    return {"confusion": torch.from_numpy(rearrange(pixels, "h w c -> 1 c h w").copy())}
