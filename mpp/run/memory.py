"""Too little memory, explained in one line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate.utils.memory import should_reduce_batch_size

from mpp.errors import UserError


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device or the machine had no memory left."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)
    return known or should_reduce_batch_size(error)


@contextmanager
def explained_out_of_memory(doing: Callable[[], str], way_out: str, device: torch.device) -> Iterator[None]:
    """Turn an out-of-memory error into one line: what the run was doing, the device's memory, and what to lower."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"out of memory {doing()} on {device}, which has {memory_of(device)}; {way_out}") from error


def memory_of(device: torch.device) -> str:
    """How much memory a device has, and how much of it PyTorch holds in this process."""
    if device.type == "cuda":
        total, held = torch.cuda.get_device_properties(device).total_memory, torch.cuda.max_memory_reserved(device)
        return f"{total / 2**30:.1f} GiB, of which this process held {held / 2**30:.1f}"
    if not hasattr(os, "sysconf"):
        return "too little"
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
