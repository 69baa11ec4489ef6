"""What a dense probe is measured by: IoU and accuracy of pixels, error of depths, each with an interval over images.

Every image leaves a few sums (a tally), of which all figures are made; so a bootstrap over images adds tallies again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mpp.data.maps import IGNORED, class_shares, mean_depths
from mpp.data.randomness import Purpose, generator

_DRAWS = 1000  # of the bootstrap
_CLOSE = 1.25  # delta_1: depths within this ratio (arXiv 1406.2283)


@dataclass(frozen=True)
class Segmentation:
    """The class of every pixel; IoU is intersection over union of all images' pixels, averaged over the classes that
    are there or predicted."""

    names: tuple[str, ...]
    headline = "miou"

    @property
    def outputs(self) -> int:
        return len(self.names)

    def targets(self, found: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        """The share of each class of each patch: a map (H, W) -> (N, classes) float32."""
        return class_shares(found, grid, len(self.names))

    def best(self, tallies: np.ndarray) -> int:
        """Which of several predictors is best: their tallies (predictors, M, 3, classes)."""
        return int(np.argmax(self.figures(tallies.sum(1))["miou"]))

    def shown(self, scores: Tensor) -> np.ndarray:
        """What scores (classes, H, W) say of each pixel: classes (H, W)."""
        return scores.argmax(0).cpu().numpy()

    def tally(self, scores: Tensor, found: Tensor) -> np.ndarray:
        """Of one image, scores (classes, H, W) and its map (H, W): the pixels of each class that are right, that are
        true and that are predicted: (3, classes)."""
        from torchmetrics.functional.classification import multiclass_confusion_matrix  # its import takes seconds

        counts = multiclass_confusion_matrix(
            scores.argmax(0), found, len(self.names), ignore_index=IGNORED, validate_args=False
        )
        return torch.stack([counts.diagonal(), counts.sum(1), counts.sum(0)]).double().cpu().numpy()

    def figures(self, tallies: np.ndarray) -> dict[str, np.ndarray]:
        """Figures of sums of tallies (R, 3, classes): each (R,)."""
        right, true = tallies[:, 0], tallies[:, 1]
        accuracy = right.sum(1) / np.maximum(1, true.sum(1))
        iou = self.iou(tallies)
        there = ~np.isnan(iou)
        miou = np.where(there, iou, 0).sum(1) / np.maximum(1, there.sum(1))
        return {"miou": miou, "pixel_accuracy": accuracy}

    def iou(self, tallies: np.ndarray) -> np.ndarray:
        """The IoU of each class (R, classes); NaN of a class that is neither there nor predicted."""
        right, true, predicted = tallies[:, 0], tallies[:, 1], tallies[:, 2]
        union = true + predicted - right
        return np.where(union > 0, right / np.maximum(1, union), np.nan)


@dataclass(frozen=True)
class Depth:
    """How far away every pixel is: the root of the mean squared error, and the share of pixels within a ratio of 1.25
    (delta_1), of all images' pixels."""

    outputs = 1
    headline = "depth_rmse"

    def targets(self, found: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        """The mean depth of each patch, and the share of its pixels that have one: a map (H, W) -> (N, 2) float32."""
        return mean_depths(found, grid)

    def best(self, tallies: np.ndarray) -> int:
        """Which of several predictors is best: their tallies (predictors, M, 3)."""
        return int(np.argmin(self.figures(tallies.sum(1))["depth_rmse"]))

    def shown(self, scores: Tensor) -> np.ndarray:
        """What scores (1, H, W) say of each pixel: depths (H, W)."""
        return scores[0].cpu().numpy()

    def tally(self, scores: Tensor, found: Tensor) -> np.ndarray:
        """Of one image, scores (1, H, W) and its map (H, W): pixels with a depth, the sum of their squared errors, and
        how many are within the ratio: (3,)."""
        there = ~found.isnan()
        predicted, true = scores[0][there].double(), found[there].double()
        if not len(true):
            return np.zeros(3)
        close = torch.maximum(predicted / true, true / predicted.clamp_min(1e-9)) < _CLOSE  # none below 0 is
        squared = (predicted - true).square().sum()
        return np.array([len(true), squared.item(), close.sum().item()], dtype=np.float64)

    def figures(self, tallies: np.ndarray) -> dict[str, np.ndarray]:
        """Figures of sums of tallies (R, 3): each (R,)."""
        count, squared, close = (tallies[:, i] for i in range(3))
        count = np.maximum(1, count)
        return {"depth_rmse": np.sqrt(squared / count), "depth_delta1": close / count}


Task = Segmentation | Depth


def enlarged(scores: Tensor, grid: tuple[int, int], size: Sequence[int]) -> Tensor:
    """What is said of an image's patches (N, K), for each pixel of a map: (K, H, W), bilinear as DINOv3 does."""
    maps = rearrange(scores, "(h w) k -> 1 k h w", h=grid[0])
    return F.interpolate(maps.float(), size=tuple(size), mode="bilinear", align_corners=False)[0]


def figures_of(task: Task, tallies: np.ndarray) -> dict[str, float]:
    """The figures of some images' tallies (M, ...)."""
    return {name: float(values[0]) for name, values in task.figures(tallies.sum(0, keepdims=True)).items()}


def intervals_of(task: Task, tallies: np.ndarray) -> dict[str, list[float]]:
    """The 95 % interval of each figure, [low, high], by drawing the images again 1,000 times (bootstrap, percentiles).
    It says what other images of the same kind would give, not what other seeds would."""
    count, shape = len(tallies), tallies.shape[1:]
    times = generator(0, Purpose.EVAL, 1).multinomial(count, np.full(count, 1 / count), size=_DRAWS)
    again = (times @ tallies.reshape(count, -1)).reshape(_DRAWS, *shape)
    return {name: np.percentile(values, [2.5, 97.5]).tolist() for name, values in task.figures(again).items()}
