"""Time and memory as they are measured and told: what --dry-run is made of."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from mpp.errors import UserError, counted

_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes, of what getrusage counts in
_UNITS = (("days", 86_400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1))


def told_time(seconds: float) -> str:
    """A time in the units that say most of it: 4.2 ms, 1.2 s, 12 s, 3 min 5 s, 7 h 20 min, 2 days 3 h."""
    for unit, size, less, part in _UNITS:
        if (parts := round(seconds / part)) >= size // part * (2 if unit == "days" else 1):
            many, rest = divmod(parts, size // part)
            return f"{many:,} {unit}" + (f" {rest} {less}" if rest else "")
    if seconds < 0.095:
        return f"{1000 * seconds:.2g} ms"
    return f"{seconds:.{0 if seconds >= 9.5 else 1 if seconds >= 0.95 else 2}f} s"


def told_bytes(count: float) -> str:
    """Bytes as KiB, MiB or GiB."""
    if count >= 2**30:
        return f"{count / 2**30:,.1f} GiB"
    return f"{count / 2**20:,.3g} MiB" if count >= 2**20 else f"{count / 2**10:,.3g} KiB"


def told_devices(accelerator: Accelerator) -> str:
    """The devices that something was measured on."""
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"the {device.type.upper()}"
    threads = f" with {counted(torch.get_num_threads(), 'thread')}" if device.type == "cpu" else ""
    each = f" in each of {accelerator.num_processes} processes" if accelerator.num_processes > 1 else ""
    return f"{name}{threads}{each}, in {'bf16' if accelerator.mixed_precision == 'bf16' else 'fp32'}"


def settle(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def peak_of_process() -> int:
    """The most memory in bytes of this machine that this process has had until now.

    Linux counts it for the program that runs. What getrusage says there begins with what the parent had when it started
    the process. Raises UserError on Windows, which says neither.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        raise UserError("peak memory is not measured on Windows")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT


def peak_memory(accelerator: Accelerator) -> dict[str, int]:
    """The most memory in bytes that this process has had until now: of the machine ("process"), of its GPU ("gpu"), and
    each process that read images for it and has ended ("reader"). Of several processes the largest. All call it."""
    found = {}
    if sys.platform != "win32":
        import resource  # which Windows has not

        found["process"] = peak_of_process()
        found["reader"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * _UNIT
    if accelerator.device.type == "cuda":
        found["gpu"] = torch.cuda.max_memory_reserved(accelerator.device)
    every = gather_object([found]) if accelerator.num_processes > 1 else [found]
    return {name: max(each[name] for each in every) for name in found}


def told_memory(peak: Mapping[str, int], readers: int, accelerator: Accelerator) -> str:
    """Peak memory in words, beside what there is."""
    parts = []
    if "gpu" in peak:
        total = torch.cuda.get_device_properties(accelerator.device).total_memory
        parts.append(f"{told_bytes(peak['gpu'])} of the GPU's {told_bytes(total)}")
    if "process" in peak:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        parts.append(f"{told_bytes(peak['process'])} of the machine's {told_bytes(total)}")
    if readers and "reader" in peak:
        parts.append(f"{told_bytes(peak['reader'])} for each of {counted(readers, 'process', 'processes')} that read")
    each = ", for each process" if accelerator.num_processes > 1 else ""
    return f"{', '.join(parts)} at the peak{each}" if parts else "not measured on this system"
