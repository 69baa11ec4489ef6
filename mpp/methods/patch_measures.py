"""What a pretrained model gets right, patch by patch: colours, confidence, the best and the worst patches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from einops import rearrange, reduce
from torch import Tensor

from mpp.data.loader import Batch
from mpp.methods.patch_prediction import PatchPrediction
from mpp.methods.targets import bin_probabilities, colour_part, paint_patches, true_pictures

LEVELS = 8  # of luminance: 32 of 0..255 each, as a bin of 3 bits
HUES = ("red", "yellow", "green", "cyan", "blue", "magenta", "grey")
_EXAMPLES = 8  # patches that are shown of either end
_GREY = 32  # a colour whose channels differ by less has no hue: one bin of 3 bits
_LUMINANCE = (0.299, 0.587, 0.114)  # of red, green, blue (ITU-R BT.601)


def luminance_levels(colours: Tensor) -> Tensor:
    """The level 0..7 of the luminance of colours (..., C) in 0..255; of other than 3 channels, that of their mean."""
    weights = colours.new_tensor(_LUMINANCE) if colours.shape[-1] == 3 else None
    luminance = colours.mean(-1) if weights is None else colours @ weights
    return (luminance * LEVELS / 256).long().clamp(0, LEVELS - 1)


def hues(colours: Tensor) -> Tensor:
    """The number in `HUES` of red, green and blue (..., 3) in 0..255: the sixth of the colour circle around each name,
    or grey where the channels differ by less than 32."""
    most, least = colours.amax(-1), colours.amin(-1)
    spread = most - least
    red, green, blue = colours.unbind(-1)
    turns = torch.where(
        most == red,
        (green - blue) / spread,
        torch.where(most == green, 2 + (blue - red) / spread, 4 + (red - green) / spread),
    )
    sixth = turns.nan_to_num(0.0).round().long() % 6
    return torch.where(spread < _GREY, len(HUES) - 1, sixth)


@dataclass
class PatchMeasures:
    """Sums over the predicted patches of many images.

    `luminance` (8, 8) and `chroma` (7, 7) count patches by true (rows) and predicted colour, the mean over the patch;
    None where the target has no colour, and for chroma where images have not 3 channels. `confidence` and `right` (M,)
    are of every cell: the probability of the likeliest bin, and whether it is the true one; empty for regressions.
    Lists hold a tensor a batch.
    """

    luminance: Tensor | None = None
    chroma: Tensor | None = None
    confidence: list[Tensor] = field(default_factory=list)
    right: list[Tensor] = field(default_factory=list)  # of every cell, also of regressions
    index: list[Tensor] = field(default_factory=list)  # (B,): which image
    places: list[Tensor] = field(default_factory=list)  # (B, K): which patch of it
    errors: list[Tensor] = field(default_factory=list)  # (B, K) in 0..255
    best: list[Example] = field(default_factory=list)  # of the images' best patches the 8 best
    worst: list[Example] = field(default_factory=list)  # of the images' worst patches the 8 worst, the worst first


@dataclass(frozen=True)
class Example:
    """A patch and those around it: uint8 (C, h, w) as in the image, with the prediction and the truth in its place,
    which begins `at` (row, column), in pixels."""

    error: float
    at: tuple[int, int]
    around: Tensor
    predicted: Tensor
    true: Tensor


def patch_errors(predicted: Tensor, true: Tensor) -> Tensor:
    """Mean absolute difference of patches as pictures: uint8 (B, K, C, P, P) twice -> (B, K) in 0..255."""
    return reduce((predicted.float() - true.float()).abs(), "b k c p q -> b k", "mean")


@torch.no_grad()
def measure_patches(job: PatchPrediction, batches: Iterable[Batch]) -> PatchMeasures:
    """Predict the patches of some batches, and measure the predictions."""
    found, coloured = PatchMeasures(), colour_part(job.target)
    part = coloured or 0
    for batch in batches:
        predictions, targets = job.predict(job.model, batch)
        predicted, true = job.target.pixels(predictions)[part], job.target.true_pixels(targets)[part]
        found.index.append(batch["index"].cpu())
        found.places.append(job.predicted(batch).cpu())
        found.errors.append(patch_errors(predicted, true).cpu())
        errors = found.errors[-1]
        best = found.best + _examples(job, batch, predicted, true, errors, errors.argmin(1))
        worst = found.worst + _examples(job, batch, predicted, true, errors, errors.argmax(1))
        found.best = sorted(best, key=lambda example: example.error)[:_EXAMPLES]
        found.worst = sorted(worst, key=lambda example: -example.error)[:_EXAMPLES]
        found.right.append((job.target.predicted_bins(predictions) == job.target.bins(targets)).flatten().cpu())
        if (shares := bin_probabilities(job.target, predictions)) is not None:
            found.confidence.append(shares.amax(-1).flatten().cpu())
        if coloured is not None:
            mine, truth = (reduce(x.float(), "b k c p q -> (b k) c", "mean").cpu() for x in (predicted, true))
            found.luminance = _added(found.luminance, luminance_levels(truth), luminance_levels(mine), LEVELS)
            if mine.shape[-1] == 3:
                found.chroma = _added(found.chroma, hues(truth), hues(mine), len(HUES))
    return found


def _added(counts: Tensor | None, true: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """A confusion matrix (classes, classes) with more pairs of classes (M,)."""
    pairs = rearrange(torch.bincount(true * classes + predicted, minlength=classes**2), "(t p) -> t p", t=classes)
    return pairs if counts is None else counts + pairs


def _examples(
    job: PatchPrediction, batch: Batch, predicted: Tensor, true: Tensor, errors: Tensor, chosen: Tensor
) -> list[Example]:
    """A patch of each image of a batch: those numbered `chosen` (B,) among its predicted ones."""
    found, p = [], job.patch_size
    places = job.predicted(batch).cpu()
    for number, k in enumerate(chosen.tolist()):
        row, column = (p * at for at in divmod(int(places[number, k]), job.grid[1]))
        image = batch["images"][number].cpu()
        views = [image]
        for patches in (predicted, true):
            views.append(image.clone())
            views[-1][:, row : row + p, column : column + p] = patches[number, k].cpu()
        top, left = (max(0, min(at - p, side - 3 * p)) for at, side in zip((row, column), image.shape[1:], strict=True))
        views = [view[:, top : top + 3 * p, left : left + 3 * p] for view in views]
        found.append(Example(float(errors[number, k]), (row - top, column - left), *views))
    return found


@dataclass(frozen=True)
class Panels:
    """Some images as a model sees and completes them: images, what it sees, predicted, true, each uint8 (B, C, H, W);
    and the errors (B, h, w) in 0..255, NaN where nothing is predicted."""

    images: list[Tensor]
    errors: Tensor


@torch.no_grad()
def complete(job: PatchPrediction, batch: Batch) -> Panels:
    """Predict a batch as its pictures show it: all hidden patches, in the target's colours where it has any."""
    batch = job.to_picture(batch)
    images, places, part = batch["images"], job.predicted(batch), colour_part(job.target) or 0
    predictions, targets = job.predict(job.model, batch)
    predicted, true = job.target.pixels(predictions)[part], job.target.true_pixels(targets)[part]
    everywhere = torch.full((len(images), job.grid[0] * job.grid[1]), torch.nan, device=images.device)
    errors = everywhere.scatter(1, places, patch_errors(predicted, true))
    rows = torch.arange(len(images), device=images.device)[:, None]
    truth = true_pictures(job.target, images)[part][rows, places]  # not in the bins' colours, of which the errors are
    shown = [images, job.seen(batch), *(paint_patches(images, places, patches) for patches in (predicted, truth))]
    return Panels([each.cpu() for each in shown], rearrange(errors, "b (h w) -> b h w", h=job.grid[0]).cpu())
