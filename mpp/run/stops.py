"""Signals that ask a run to stop."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator


class StopSignals:
    """Ctrl-C, SIGTERM and SIGUSR1 ask for a clean stop with a checkpoint; Ctrl-C again, a second later: at once."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.requested_at: float | None = None
        self.previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        return self.requested_at is not None

    def __enter__(self) -> StopSignals:
        for number in filter(None, (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGUSR1", None))):
            self.previous[number] = signal.signal(number, self._request)
        if {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"} & os.environ.keys() and sys.platform == "linux":
            # `accelerate launch` of one process does not pass SIGTERM on, nor do torchrun and that of several pass on
            # SIGUSR1: they end by it. Have the system send SIGTERM when they do
            pr_set_pdeathsig = 1  # of linux/prctl.h
            ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if os.getpid() != self.process:
            return  # a worker, forked with this handler: the process that trains has the signal, too, and decides
        if self.requested_at is None:
            self.requested_at = now
            print(
                "\nstopping within a few steps, with a checkpoint (Ctrl-C again: at once)", file=sys.stderr, flush=True
            )
        elif number == signal.SIGINT and now - self.requested_at > 1:  # launchers repeat the signal straight away
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt

    def agreed(self, accelerator: Accelerator, due: bool) -> bool:
        """Whether to stop now. Several processes agree on it when `due`, because agreeing waits for the device."""
        if accelerator.num_processes == 1:
            return self.requested
        if not due:
            return False
        return bool(accelerator.reduce(torch.tensor(float(self.requested), device=accelerator.device)) > 0)
