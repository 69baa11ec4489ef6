"""How fast training goes, and how much of its time is spent waiting."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Clock:
    """Time spent training, waiting for data, and neither (evaluation, checkpoints: `paused`).

    Args:
        share: what training on one image takes of a second of arithmetic on all devices, at their best.
        device_mark: on a device that works behind the host's back, notes the moment at which it gets here (a recorded
            torch.cuda.Event). Waiting is then what the device waited: the host may be waiting while it still works.
    """

    def __init__(self, share: float, device_mark: Callable[[], Any] | None = None) -> None:
        self.share, self.device_mark = share, device_mark
        self.started = self.mark = time.perf_counter()
        self.waited = self.away = 0.0
        self.gaps: list[tuple[Any, Any]] = []  # on the device: work done, data there
        self.images = 0

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        if self.device_mark:
            work_done = self.device_mark()
            yield
            self.gaps.append((work_done, self.device_mark()))
        else:
            started = time.perf_counter()
            yield
            self.waited += time.perf_counter() - started

    @contextmanager
    def paused(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.away += time.perf_counter() - started

    def count(self, images: int) -> None:
        self.images += images

    def read(self) -> dict[str, float]:
        """Speeds since the last reading: images a second, the share of time (0..1) spent waiting for data, and model
        FLOPs utilisation (arXiv 2204.02311): the arithmetic that training takes over what the devices could do."""
        for work_done, data_there in self.gaps:
            data_there.synchronize()
            self.waited += work_done.elapsed_time(data_there) / 1000  # from milliseconds
        self.gaps.clear()
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


def cuda_mark() -> torch.cuda.Event:
    """`device_mark` of a CUDA device."""
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
