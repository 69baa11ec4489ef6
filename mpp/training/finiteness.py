"""Losses and gradients that are no finite numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from mpp.errors import UserError
from mpp.files import write_whole
from mpp.run.folder import writing


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
