"""The sheet of a dense probe: image, truth and predictions, in colours that the colour-blind tell apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from einops import rearrange
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mpp.data.bands import displayed

# Okabe and Ito, https://jfly.uni-koeln.de/color, from black; then Paul Tol's muted, https://personal.sron.nl/~pault
_COLOURS = (
    *("#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999"),
    *("#332288", "#88CCEE", "#44AA99", "#117733", "#DDCC77", "#AA4499", "#882255", "#CC6677"),
)
_NOTHING = "#FFFFFF"  # pixels that count for nothing
_IN_LEGEND = 17  # classes

Example = tuple[np.ndarray, np.ndarray, Mapping[str, np.ndarray]]


def colours_of(classes: int) -> np.ndarray:
    """A colour for each class, (classes, 3) in 0..1. Of more than 17, colours come again, darker each time."""
    fades = (0.65 ** (number // len(_COLOURS)) for number in range(classes))
    return np.array([np.array(to_rgb(_COLOURS[n % len(_COLOURS)])) * fade for n, fade in enumerate(fades)])


def paint_dense(examples: Sequence[Example], titles: Mapping[str, str], classes: Sequence[str]) -> Figure:
    """Each row an image (C, H, W), its map and what each predictor in `titles` says. Without `classes`, maps are
    depths, all on one scale."""
    columns = len(titles) + 2
    figure = Figure(figsize=(1.7 * columns + 0.4, 1.7 * len(examples) + 1.1), layout="constrained")
    every = figure.subplots(len(examples), columns, squeeze=False)
    for axes, title in zip(every[0], ("image", "truth", *titles.values()), strict=True):
        axes.set_title(title, fontsize=9)
    for axes in every.flat:
        axes.set(xticks=[], yticks=[])
    depths = np.concatenate([true.reshape(-1) for _, true, _ in examples]).astype(np.float64)
    low, high = (0.0, 1.0) if classes else (float(np.nanmin(depths)), float(np.nanmax(depths)))
    scale = None
    for row, (image, true, said) in zip(every, examples, strict=True):
        row[0].imshow(rearrange(image[displayed(len(image))], "c h w -> h w c"), cmap="gray", vmin=0, vmax=255)
        for axes, found in zip(row[1:], (true, *(said[name] for name in titles)), strict=True):
            if classes:
                axes.imshow(_coloured(found, len(classes)), interpolation="nearest")
            else:
                scale = axes.imshow(found, cmap="cividis", vmin=low, vmax=high, interpolation="nearest")
    if scale is not None:
        figure.colorbar(scale, ax=every, label="depth", shrink=min(1, 3 / len(examples)))
    elif legend := _legend(examples, titles, classes):
        figure.legend(handles=legend, loc="outside lower center", ncols=min(6, len(legend)), fontsize=8)
    return figure


def _coloured(found: np.ndarray, classes: int) -> np.ndarray:
    """Classes (H, W), below 0 where ignored, as colours (H, W, 3)."""
    palette = np.concatenate([colours_of(classes), [to_rgb(_NOTHING)]])
    return palette[np.where(found < 0, classes, found)]


def _legend(examples: Sequence[Example], titles: Mapping[str, str], classes: Sequence[str]) -> list[Patch]:
    """The colours of the classes that the sheet shows; the first 17 of them."""
    maps = [found for _, true, said in examples for found in (true, *(said[name] for name in titles))]
    shown = [number for number in np.unique(np.concatenate([found.reshape(-1) for found in maps])) if number >= 0]
    palette = colours_of(len(classes))
    named = [Patch(fc=palette[n], ec="black", lw=0.5, label=classes[n].replace("$", r"\$")) for n in shown[:_IN_LEGEND]]
    ignored = [Patch(fc=_NOTHING, ec="black", lw=0.5, label="ignored")] if any((m < 0).any() for m in maps) else []
    return named + ignored
