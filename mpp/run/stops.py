"""Signals that ask a command to stop: SIGTERM, SIGUSR1 and Ctrl-C. `mpp.training.loop` stops with a checkpoint."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelerate import Accelerator


class Stopped(KeyboardInterrupt):
    """A signal has stopped the command. On its way up it learns how to go on, which the user is told at the end."""

    def __init__(self, step: int | None = None) -> None:
        super().__init__()
        self.step = step  # of a training that was stopped
        self.way_on = "stopped; the same command goes on"


class StopSignals:
    """Ctrl-C, SIGTERM and SIGUSR1 stop a command where it is: they raise `Stopped`, or wait for a section that `holds`
    them, as training does for its checkpoint. Ctrl-C again ends the command at once."""

    def __init__(self) -> None:
        self.process = 0
        self.requested_at: float | None = None
        self.holding = False
        self.previous: dict[int, Any] = {}
        self.launched = False

    @property
    def requested(self) -> bool:
        return self.requested_at is not None

    def __enter__(self) -> StopSignals:
        self.process, self.requested_at, self.holding = os.getpid(), None, False
        if threading.current_thread() is not threading.main_thread():  # which alone has signals
            return self
        for number in filter(None, (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGUSR1", None))):
            self.previous[number] = signal.signal(number, self._request)
        self.launched = bool({"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"} & os.environ.keys())
        if self.launched and sys.platform == "linux":
            # `accelerate launch` of one process does not pass SIGTERM on, nor do torchrun and that of several pass on
            # SIGUSR1: they end by it. Have the system send SIGTERM when they do
            pr_set_pdeathsig = 1  # of linux/prctl.h
            ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
        return self

    def __exit__(self, *_: object) -> None:
        while self.previous:
            signal.signal(*self.previous.popitem())

    def _request(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if os.getpid() != self.process:
            return  # a worker, forked with this handler: the process that trains has the signal, too, and decides
        if self.requested_at is None:
            self.requested_at = now
            how = " within a few steps, with a checkpoint" if self.holding else ""
            print(f"\nstopping{how} (Ctrl-C again: at once)", file=sys.stderr, flush=True)
            if not self.holding:
                raise Stopped
        elif number == signal.SIGINT and now - self.requested_at > self.launched:  # launchers repeat it straight away
            raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """Have a stop wait for the end of a section, which asks whether one is `requested`."""
        self.holding = True
        try:
            yield
        finally:
            self.holding = False
        if self.requested:
            raise Stopped

    @contextmanager
    def cutting(self, accelerator: Accelerator) -> Iterator[None]:
        """Within a held section: have a stop end this part of it, quietly. Several processes wait for each other in it,
        so none of them may leave it alone: there it goes on to its end."""
        self.holding = accelerator.num_processes > 1
        try:
            if self.requested and not self.holding:
                raise Stopped
            yield
        except Stopped:
            pass
        finally:
            self.holding = True

    def agreed(self, accelerator: Accelerator, due: bool) -> bool:
        """Whether to stop now. Several processes agree on it when `due`, because agreeing waits for the device."""
        if accelerator.num_processes == 1:
            return self.requested
        if not due:
            return False
        import torch

        return bool(accelerator.reduce(torch.tensor(float(self.requested), device=accelerator.device)) > 0)


STOP = StopSignals()  # of this process
