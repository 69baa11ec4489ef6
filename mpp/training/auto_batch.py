"""How many parts to compute a batch in, so that a step fits into memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn

from mpp.config.commands import Trained
from mpp.data.batches import next_batch
from mpp.data.loader import Batch, Share
from mpp.data.streams import Positions
from mpp.errors import UserError
from mpp.run.memory import is_out_of_memory
from mpp.training.job import Job


def fitting_share(
    job: Job,
    config: Trained,
    accelerator: Accelerator,
    model: nn.Module,
    share: Share,
    first: int,
    positions: Positions,
) -> Share:
    """The share with as many parts a batch as fit into memory (--train.auto-batch), tried on the first micro-batch."""
    batch = next_batch(iter(job.data.batches(share, first, positions)), config.data.on_error, {})
    batch = {name: value for name, value in batch.items() if isinstance(value, Tensor) and name != "index"}

    def step(model: nn.Module, batch: Batch) -> Tensor:
        return job.training_step(model, batch, first + 1)[0]

    found = find_parts(share, batch, step, model, job.in_pairs, accelerator)
    accelerator.print(f"{len(found.places(0))} images at a time fit into memory: --train.accumulate {found.accumulate}")
    return found


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
