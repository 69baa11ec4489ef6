"""How fast training goes, and how much of its time is spent waiting."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Time spent training, waiting for data, and neither (evaluation, checkpoints: `paused`). `share` is what training
    on one image takes of a second of arithmetic on all devices, at their best."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.started = self.mark = time.perf_counter()
        self.waited = self.away = 0.0
        self.images = 0

    def waiting_for_data(self) -> _Stopwatch:
        return _Stopwatch(lambda seconds: setattr(self, "waited", self.waited + seconds))

    def paused(self) -> _Stopwatch:
        return _Stopwatch(lambda seconds: setattr(self, "away", self.away + seconds))

    def count(self, images: int) -> None:
        self.images += images

    def read(self) -> dict[str, float]:
        """Speeds since the last reading: images a second, the share of time (0..1) spent waiting for data, and model
        FLOPs utilisation (arXiv 2204.02311): the arithmetic that training takes over what the devices could do."""
        now = time.perf_counter()
        busy = max(1e-9, now - self.mark - self.away)
        rate = self.images / busy
        speeds = {
            "speed/images_per_second": rate,
            "speed/data_wait": self.waited / busy,
            "speed/mfu": rate * self.share,
        }
        self.mark, self.waited, self.away, self.images = now, 0.0, 0.0, 0
        return speeds

    def total(self) -> float:
        return time.perf_counter() - self.started


class _Stopwatch:
    def __init__(self, done: Callable[[float], None]) -> None:
        self.done = done

    def __enter__(self) -> None:
        self.started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.done(time.perf_counter() - self.started)
