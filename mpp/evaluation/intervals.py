"""How exact an accuracy on some images is."""

from __future__ import annotations

from scipy.stats import binomtest


def interval_of(accuracy: float, images: int) -> list[float]:
    """The 95 % interval of an accuracy in 0..1 on so many images, by Wilson: [low, high], in 0..1. It says what other
    images of the same kind would give, not what other seeds would."""
    found = binomtest(round(accuracy * images), images).proportion_ci(0.95, "wilson")
    return [float(found.low), float(found.high)]


def told_interval(accuracy: float, images: int) -> str:
    """`interval_of` for the terminal."""
    low, high = interval_of(accuracy, images)
    return f"95 % interval {low:.1%} to {high:.1%}"
