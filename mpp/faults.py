"""What goes wrong inside a step: losses that are no finite numbers, and memory that does not suffice."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn

from mpp.errors import UserError
from mpp.files import write_whole
from mpp.loader import Batch, Share
from mpp.records import writing


class Diverged(UserError):
    """A loss or gradient was no finite number."""


@dataclass(frozen=True)
class Step:
    """What a step came to in this process: still on the device, so that noting it does not wait."""

    number: int
    norm: Tensor  # of the gradient, the same on all processes
    losses: list[Tensor]  # of the micro-batches
    samples: list[tuple[Tensor, list[str] | None]]  # of each: the images' indices (B,), and their names if known


class Finiteness:
    """Looks after losses and gradients, and saves which images those that are not finite came of.

    Steps are only noted, and read together when the device is waited for anyway.
    """

    def __init__(self, output: Path, accelerator: Accelerator, where: Callable[[int], str]) -> None:
        self.output, self.accelerator, self.where = output, accelerator, where
        self.noted: list[Step] = []

    def note(self, step: Step) -> None:
        """Remember a step until the next `first_broken`."""
        self.noted.append(step)

    def first_broken(self) -> Step | None:
        """The first step since the last call whose loss or gradient is not finite, on any process. Waits for the
        device."""
        noted, self.noted = self.noted, []
        if not noted:
            return None
        finite = [
            torch.stack([step.norm.float(), *(loss.float() for loss in step.losses)]).isfinite() for step in noted
        ]
        broken = self.accelerator.reduce(torch.stack([~each.all() for each in finite]).float()).tolist()
        return next((step for step, count in zip(noted, broken, strict=True) if count), None)

    def save(self, step: Step) -> str:
        """Write a step's images to nonfinite_<step>.json in the run's folder; returns what to say of it."""
        mine = [
            {
                "rank": self.accelerator.process_index,
                "micro_batch": number,
                "loss": str(loss.item()),  # JSON has no nan
                "images": [
                    {"index": index, "image": name}
                    for index, name in zip(indices.tolist(), names or map(self.where, indices.tolist()), strict=True)
                ],
            }
            for number, (loss, (indices, names)) in enumerate(zip(step.losses, step.samples, strict=True))
        ]
        batches = gather_object(mine)
        mean = sum(float(batch["loss"]) for batch in batches) / len(batches)
        file = self.output / f"nonfinite_{step.number:08d}.json"
        if self.accelerator.is_main_process:
            found = {"step": step.number, "grad_norm": str(step.norm.item()), "batches": batches}
            with writing(self.output):
                write_whole(file, json.dumps(found, indent=1).encode())
        return (
            f"the loss is {mean} and the gradient {step.norm.item()} at step {step.number} (its images are named in "
            f"{file})"
        )


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device or the machine had no memory left."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)
    return known or should_reduce_batch_size(error)


@contextmanager
def out_of_memory_told(doing: Callable[[], str], way_out: str, device: torch.device) -> Iterator[None]:
    """Turn what a lack of memory raises into one line: what was being done, the device's memory, what to lower."""
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


def smaller_parts(share: Share) -> list[int]:
    """The numbers above share.accumulate of equal parts that a process's images of a batch divide into."""
    images = share.batch_size // share.world_size
    return [parts for parts in range(share.accumulate + 1, images + 1) if images % parts == 0]


def what_to_lower(share: Share) -> str:
    """What makes a step need less memory."""
    if finer := smaller_parts(share):
        return (
            f"--train.accumulate {finer[0]} computes the same in smaller parts (--train.auto-batch finds how many are "
            f"needed), or lower --train.batch-size"
        )
    return "its parts are single images already: choose a smaller --model.variant or --model.img-size"


def find_parts(
    share: Share,
    first: Batch,
    step: Callable[[nn.Module, Batch], Tensor],
    model: nn.Module,
    even: bool,
    accelerator: Accelerator,
) -> Share:
    """The share with the fewest parts a batch, from share.accumulate on, that each fit into memory on all processes.

    `first` is a micro-batch of `share` on the CPU; `step` gives a micro-batch's loss. It is tried forward and backward,
    beside stand-ins for the two means that the optimiser will keep; `model` is the bare one, which waits for no other
    process, because one may run out of memory while another does not. With `even`, parts are of an even number of
    images.
    """
    images = share.batch_size // share.world_size

    def fits(size: int) -> bool:
        try:
            _means = [torch.empty_like(p) for p in model.parameters() if p.requires_grad for _ in range(2)]
            step(model, {name: value[:size].to(accelerator.device) for name, value in first.items()}).backward()
            return True
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return False

    sizes = {parts: images // parts for parts in [share.accumulate, *smaller_parts(share)]}
    sizes = {parts: size for parts, size in sizes.items() if not (even and size % 2)}
    for parts, size in sizes.items():
        fitting = torch.tensor(float(fits(size)), device=accelerator.device)
        model.zero_grad()
        clear_device_cache(garbage_collection=True)
        if accelerator.reduce(fitting).item() == accelerator.num_processes:
            return replace(share, accumulate=parts)
    raise UserError(
        f"--train.auto-batch: not even {min(sizes.values(), default=images)} image(s) at a time fit into memory; "
        f"choose a smaller --model.variant or --model.img-size"
    )
