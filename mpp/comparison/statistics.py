"""Means, intervals and paired differences over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scipy.stats import t as student_t

FINE_TUNED = "fine-tuned"


@dataclass(frozen=True)
class Finding:
    """One result: the value of `protocol` for one arm, number of labels and seed. Accuracies are in 0..1."""

    arm: str
    protocol: str
    labels: int
    seed: int
    value: float


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and half the width of its 95 % confidence interval (Student's t) or None for a single value."""
    if len(values) < 2:
        return values[0], None
    half = student_t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.fmean(values), float(half)


def cell_values(findings: Iterable[Finding], arm: str, protocol: str, labels: int) -> list[float]:
    """The values of one cell of the table, sorted by seed."""
    cell = [f for f in findings if (f.arm, f.protocol, f.labels) == (arm, protocol, labels)]
    return [f.value for f in sorted(cell, key=lambda f: f.seed)]


def difference(
    findings: Iterable[Finding], arm: str, other: str, protocol: str, labels: int
) -> tuple[float, float | None]:
    """Gain of `arm` over `other`, paired by seed: its mean and half its interval, as `interval` returns them, but
    None if two seeds differ alike."""
    mine, theirs = cell_values(findings, arm, protocol, labels), cell_values(findings, other, protocol, labels)
    gains = [a - b for a, b in zip(mine, theirs, strict=True)]
    mean, half = interval(gains)
    alike = len(gains) == 2 and math.isclose(*gains)  # by chance, perhaps: accuracies are steps of one image
    return mean, None if alike else half


def verdict(findings: list[Finding], labels: int, classes: int) -> str:
    """Compare MPP with scratch and supervised pretraining after fine-tuning on `labels` labels, in one sentence."""
    gain, half = difference(findings, "MPP", "scratch", FINE_TUNED, labels)
    if half is None:
        says = f"With {labels:,} labels, MPP minus scratch is {points(gain)} points ({why_none(findings, labels)})"
    elif abs(gain) <= half:
        says = f"With {labels:,} labels, MPP does not differ significantly from scratch ({points(gain, half)} points)"
    else:
        does = "beats" if gain > 0 else "is behind"
        says = f"MPP {does} scratch by {points(abs(gain), half)} points with {labels:,} labels"
    if cell_values(findings, "supervised", FINE_TUNED, labels):
        behind, half = difference(findings, "MPP", "supervised", FINE_TUNED, labels)
        if half is None:
            says += f"; MPP minus supervised pretraining is {points(behind)} points ({why_none(findings, labels)})"
        elif abs(behind) <= half:
            says += f"; it does not differ significantly from supervised pretraining ({points(behind, half)})"
        else:
            stands = "ahead of" if behind > 0 else "behind"
            says += f"; it is {points(abs(behind), half)} {stands} supervised pretraining"
    return says + f"; chance is {100 / classes:.1f} %."


def why_none(findings: list[Finding], labels: int) -> str:
    """Why a difference has no interval."""
    seeds = len(cell_values(findings, "MPP", FINE_TUNED, labels))
    return "one seed: no interval" if seeds == 1 else "the same with both seeds: no interval"


def points(value: float, half: float | None = None) -> str:
    """A share in 0..1 as percentage points: "3.1 ± 0.4"."""
    return f"{100 * value:.1f}" + ("" if half is None else f" ± {100 * half:.1f}")
