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
    pretrain_seed: int = 0


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and half the width of its 95 % confidence interval (Student's t) or None for a single value."""
    if len(values) < 2:
        return values[0], None
    half = student_t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.fmean(values), float(half)


def cell_values(findings: Iterable[Finding], arm: str, protocol: str, labels: int) -> list[float]:
    """The independent values of one cell of the table, sorted by seed. With several pretraining seeds these are the
    means over each one's downstream runs, whose seeds are their own: their spread is that of both kinds of seed."""
    cell = sorted(
        (f for f in findings if (f.arm, f.protocol, f.labels) == (arm, protocol, labels)), key=lambda f: f.seed
    )
    pretrained = sorted({f.pretrain_seed for f in cell})
    if len(pretrained) < 2:
        return [f.value for f in cell]
    return [statistics.fmean(f.value for f in cell if f.pretrain_seed == seed) for seed in pretrained]


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


def subject_of(arms: Sequence[str]) -> str:
    """The arm that a comparison is about: the first that is pretrained."""
    return next((arm for arm in arms if arm != "scratch"), arms[0])


def verdict(
    findings: list[Finding], labels: int, classes: int, arms: Sequence[str] = ("scratch", "MPP", "supervised")
) -> str:
    """Compare the first pretrained arm with the others after fine-tuning on `labels` labels, in one sentence."""
    subject = subject_of(arms)
    others = [arm for arm in arms if arm != subject and cell_values(findings, arm, FINE_TUNED, labels)]
    says = [_against(findings, labels, subject, other, first=other == others[0]) for other in others]
    return "; ".join([*says, f"chance is {100 / classes:.1f} %."])


def _against(findings: list[Finding], labels: int, subject: str, other: str, first: bool) -> str:
    """How one arm does beside another; the first sentence names both and the labels."""
    gain, half = difference(findings, subject, other, FINE_TUNED, labels)
    name = {"supervised": "supervised pretraining"}.get(other, other)
    begin = f"With {labels:,} labels, " if first else ""
    if half is None:
        return f"{begin}{subject} minus {name} is {points(gain)} points ({why_none(findings, labels, subject)})"
    if abs(gain) <= half:
        who = subject if first else "it"
        return f"{begin}{who} does not differ significantly from {name} ({points(gain, half)} points)"
    if first:
        does = "beats" if gain > 0 else "is behind"
        return f"{subject} {does} {name} by {points(abs(gain), half)} points with {labels:,} labels"
    return f"it is {points(abs(gain), half)} {'ahead of' if gain > 0 else 'behind'} {name}"


def why_none(findings: list[Finding], labels: int, arm: str) -> str:
    """Why a difference has no interval."""
    seeds = len(cell_values(findings, arm, FINE_TUNED, labels))
    return "one seed: no interval" if seeds == 1 else "the same with both seeds: no interval"


def points(value: float, half: float | None = None) -> str:
    """A share in 0..1 as percentage points: "3.1 ± 0.4"."""
    return f"{100 * value:.1f}" + ("" if half is None else f" ± {100 * half:.1f}")
