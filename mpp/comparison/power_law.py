"""The power law of error against compute, with its uncertainty, and the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 1000  # bootstrap samples


@dataclass(frozen=True)
class PowerLaw:
    """error = exp(intercept) * compute ** -exponent, the line of log error on log compute by least squares."""

    exponent: float
    intercept: float
    low: float | None = None  # the exponent's 95 % interval, by bootstrap over seeds; None for one seed
    high: float | None = None
    bootstrap: tuple[tuple[float, float], ...] = ()  # (exponent, intercept) of each bootstrap sample

    def accuracy(self, compute: np.ndarray) -> np.ndarray:
        """The accuracy in 0..1 at each compute."""
        return 1 - np.exp(self.intercept) * compute**-self.exponent

    def band(self, compute: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """The 95 % band of the accuracy at each compute, or None for one seed."""
        if not self.bootstrap:
            return None
        lines = np.stack([PowerLaw(*line).accuracy(compute) for line in self.bootstrap])  # (draws, len(compute))
        low, high = np.percentile(lines, [2.5, 97.5], axis=0)
        return low, high


def power_law(points: Sequence[tuple[float, Sequence[float]]], seed: int = 0) -> PowerLaw:
    """Fit a power law to (compute, accuracies of its seeds), at least two computes. A bootstrap sample draws as many
    seeds of each compute, with replacement."""
    exponent, intercept = _line(points)
    if min(len(values) for _, values in points) < 2:
        return PowerLaw(exponent, intercept)
    rng = np.random.default_rng(seed)
    draws = tuple(
        _line([(compute, rng.choice(values, len(values))) for compute, values in points]) for _ in range(DRAWS)
    )
    low, high = np.percentile([draw[0] for draw in draws], [2.5, 97.5])
    return PowerLaw(exponent, intercept, float(low), float(high), draws)


def _line(points: Sequence[tuple[float, Sequence[float] | np.ndarray]]) -> tuple[float, float]:
    x = np.log([compute for compute, _ in points])
    y = np.log([max(1 - float(np.mean(values)), 1e-6) for _, values in points])
    slope, intercept = np.polyfit(x, y, 1)
    return float(-slope), float(intercept)


def pareto_front(points: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """The names whose accuracy no other reaches with less or equal compute, from the cheapest on, with their accuracy.
    Values of `points` are (compute, accuracy)."""
    front: dict[str, float] = {}
    best = -np.inf
    for name in sorted(points, key=lambda name: (points[name][0], -points[name][1])):
        if points[name][1] > best:
            best = front[name] = points[name][1]
    return front
