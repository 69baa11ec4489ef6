"""What a backbone costs: seconds a batch, and the largest batch that fits into memory (ViT paper, appendix D.5)."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stdout
from dataclasses import dataclass
from multiprocessing import get_context

import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn

from mpp.config.options import Model
from mpp.errors import UserError
from mpp.models import blocks
from mpp.models.backbones import build_vit
from mpp.run.machine import give_back_freed_memory, in_precision, start_accelerator
from mpp.run.measured import peak_of_process, settle
from mpp.run.memory import is_out_of_memory

_TURN = 0.1  # seconds that a turn takes at least, so that the clock and the launches of a GPU's kernels do not count
_APART = 16 << 20  # bytes between the peaks of two batches from which a line through both is exact to a few per cent
_MOST = 1 << 16  # images a batch that are tried


@dataclass(frozen=True)
class LargestBatch:
    """The largest batch that fits into `memory` bytes, 0 if not even one image does.

    On a GPU it was tried (to 1/16). On a CPU it lies on the line `fixed + batch * an_image` through the peaks that two
    batches were measured to have while freed memory is given back at once: what the tensors need. The heap of a run,
    which keeps freed memory, takes up to a quarter more.
    """

    batch: int
    memory: int
    an_image: float | None = None  # bytes; None if it was tried
    fixed: float | None = None  # bytes: the process itself, weights, and in training gradients and AdamW's two means


def backbone_on(model: Model, accelerator: Accelerator, train: bool) -> nn.Module:
    """A fresh backbone on the device, in the precision of the run."""
    vit = in_precision(build_vit(model).to(accelerator.device), accelerator)
    return vit.train(train)


def pass_over(backbone: nn.Module, images: Tensor, train: bool) -> Callable[[], None]:
    """What goes once over a batch of normalised images (B, C, H, W): forward, and in training backward and a step of
    AdamW. It waits for the device."""
    optimizer = torch.optim.AdamW(backbone.parameters()) if train else None

    def go() -> None:
        with torch.inference_mode(not train):
            features = backbone(images)
        if optimizer:
            features.float().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        settle(images.device)

    return go


def images_for(model: Model, batch: int, accelerator: Accelerator) -> Tensor:
    """Noise in place of normalised images, (B, 3, H, W)."""
    size = (model.img_size, model.img_size) if isinstance(model.img_size, int) else model.img_size
    assert size
    return torch.randn(batch, 3, *size, device=accelerator.device)


def seconds_in_turns(passes: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each pass in each of some rounds, in which they take turns, so that a slow minute of the machine
    meets all alike. The first pass of each warms up; the second says how many make a turn."""
    repeats = {}
    for name, go in passes.items():
        go()
        repeats[name] = max(1, math.ceil(_TURN / _seconds(go)))
    found: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(rounds):
        for name, go in passes.items():
            found[name].append(sum(_seconds(go) for _ in range(repeats[name])) / repeats[name])
    return found


def _seconds(go: Callable[[], None]) -> float:
    started = time.perf_counter()
    go()
    return time.perf_counter() - started


def largest_batch(model: Model, train: bool, memory: int, accelerator: Accelerator) -> LargestBatch:
    """The largest batch of a backbone that fits into so many bytes: of this machine beside a CPU, else of the GPU."""
    if accelerator.device.type == "cpu":
        (less, low), (more, high) = peaks_of(model, train, accelerator.mixed_precision)
        an_image = (high - low) / (more - less)
        fixed = high - more * an_image
        return LargestBatch(max(0, int((memory - fixed) / an_image)), memory, an_image, fixed)
    if accelerator.device.type == "cuda":
        total = torch.cuda.get_device_properties(accelerator.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory / total), accelerator.device)
    backbone = backbone_on(model, accelerator, train)

    def fits(batch: int) -> bool:
        try:
            go = pass_over(backbone, images_for(model, batch, accelerator), train)
            go()
            go()  # with the optimiser's means, which the first step makes
            return True
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            backbone.zero_grad()
            clear_device_cache(garbage_collection=True)

    return LargestBatch(largest_that(fits), memory)


def largest_that(fits: Callable[[int], bool], most: int = _MOST) -> int:
    """The largest batch that fits, at most `most`: by doubling, then by halving the gap down to 1/16. 0 if not even one
    image does."""
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, 2 * high
    if high > most:
        return low
    while high - low > max(1, low // 16):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def peaks_of(model: Model, train: bool, precision: str) -> list[tuple[int, int]]:
    """Two batches, and the peak memory in bytes of a process of its own that passes over each on the CPU."""
    forking = get_context("forkserver")  # each process begins as the same one, which has only imported modules
    forking.set_forkserver_preload(["__main__", __name__])
    try:
        with ProcessPoolExecutor(1, mp_context=forking) as pool:
            return pool.submit(_peaks_here, model, train, precision).result()
    except BrokenProcessPool as error:
        raise UserError(
            f"the process that measures the memory of a step at {model.img_size} pixels has died; if the machine has "
            f"too little for this backbone, leave it out of --backbones"
        ) from error


def _peaks_here(model: Model, train: bool, precision: str) -> list[tuple[int, int]]:
    """Double the batch until the peaks of two are far enough apart. (The peak of a process only ever grows.)"""
    with redirect_stdout(io.StringIO()):
        accelerator = start_accelerator("bf16" if precision == "bf16" else "fp32")
    give_back_freed_memory()
    blocks.MANY_ON_A_CPU = 0  # attention is fused, as in the largest batch: that of small ones needs more an image
    backbone = backbone_on(model, accelerator, train)
    found: list[tuple[int, int]] = []
    while len(found) < 2 or found[-1][1] - found[-2][1] < _APART:
        batch = 2 * found[-1][0] if found else 1
        go = pass_over(backbone, images_for(model, batch, accelerator), train)
        go()
        go()  # with the optimiser's means, which the first step makes
        del go  # and the images
        found.append((batch, peak_of_process()))
    return found[-2:]
