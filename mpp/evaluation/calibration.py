"""Whether a classifier's probabilities can be believed, and the temperature that makes them so (arXiv 1706.04599)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from mpp.data.augment import normalise
from mpp.data.loader import Batch

_COOLEST, _HOTTEST = 0.05, 20.0  # temperatures that are looked at


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error in 0..1: how far the accuracy is from the mean confidence, in bins of equal width,
    weighted by their images. Shapes: confidences (M,) in 0..1 and whether each prediction is right (M,)."""
    places = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(places, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / max(1, len(confidence)))


def calibration_table(
    confidence: np.ndarray, right: np.ndarray, bins: int = 15
) -> list[tuple[float, float, int, float, float]]:
    """Bins of confidence of equal width that hold any: (from, to, how many, mean confidence, accuracy), of (M,)."""
    places = np.minimum((confidence * bins).astype(int), bins - 1)
    found = []
    for place in np.unique(places):
        here = places == place
        mean, accuracy = float(confidence[here].mean()), float(right[here].mean())
        found.append((place / bins, (place + 1) / bins, int(here.sum()), mean, accuracy))
    return found


def best_temperature(scores: Tensor, labels: Tensor) -> float:
    """The temperature by which scores (M, classes) are divided for the lowest cross-entropy of labels (M,)."""
    scores = scores.double()

    def loss(log_temperature: float) -> float:
        return F.cross_entropy(scores / np.exp(log_temperature), labels).item()

    found = minimize_scalar(loss, bounds=(np.log(_COOLEST), np.log(_HOTTEST)), method="bounded")
    return float(f"{np.exp(found.x):.4g}")


@torch.no_grad()
def scores_of(model: nn.Module, batches: Iterable[Batch], accelerator: Accelerator) -> tuple[Tensor, Tensor]:
    """Scores (M, classes) and labels (M,) of a whole set on the CPU, in its order, the same on all processes."""
    mine = []
    for batch in batches:
        with accelerator.autocast():
            scores = model(normalise(batch["images"].to(accelerator.device)))
        mine.append((batch["index"], scores.float().cpu(), batch["labels"]))
    every = gather_object(mine) if accelerator.num_processes > 1 else mine
    index, scores, labels = (torch.cat(part) for part in zip(*every, strict=True))
    order = index.argsort()
    return scores[order], labels[order]
