"""Speeds, and the share of time that training waits for data."""

from __future__ import annotations

import time

import pytest

from mpp.training.clock import Clock


class Mark:
    """Stands for a recorded torch.cuda.Event: a moment of a device's own time, in milliseconds."""

    def __init__(self, at: float) -> None:
        self.at = at

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, later: Mark) -> float:
        return later.at - self.at


def test_waiting_is_the_share_of_training_time_without_evaluation():
    clock = Clock(share=0.001)
    with clock.waiting_for_data():
        time.sleep(0.05)
    time.sleep(0.05)
    with clock.paused():
        time.sleep(0.2)
    clock.count(10)
    speeds = clock.read()
    assert speeds["speed/data_wait"] == pytest.approx(0.5, abs=0.1)
    assert speeds["speed/images_per_second"] == pytest.approx(100, rel=0.2)
    assert speeds["speed/mfu"] == pytest.approx(speeds["speed/images_per_second"] * 0.001)


def test_a_device_that_still_works_while_the_host_waits_for_data_does_not_wait():
    marks = iter([Mark(1000), Mark(1000), Mark(1070), Mark(1080)])  # no gap, then one of 10 ms
    clock = Clock(share=0.0, device_mark=lambda: next(marks))
    for _ in range(2):
        with clock.waiting_for_data():
            time.sleep(0.05)
    waited = clock.read()["speed/data_wait"]
    assert waited == pytest.approx(0.1, rel=0.2)
    assert clock.read()["speed/data_wait"] == 0  # told once
