"""Losses and gradients that are not finite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from mpp.config.options import Train
from mpp.data.batches import Samples
from mpp.errors import UserError
from mpp.files import as_json, write_whole
from mpp.run.folder import writing
from mpp.training.learner import Learner


class Diverged(UserError):
    """A loss or gradient is not finite."""


@dataclass(frozen=True)
class Step:
    """A step's losses in this process, still on the device, so that noting them does not wait."""

    number: int
    norm: Tensor  # of the gradient, the same on all processes
    losses: list[Tensor]  # of the micro-batches
    samples: Samples


class Finiteness:
    """Finds losses and gradients that are not finite, and saves which images they come from.

    With --train.on-nonfinite skip it looks at every step, which waits for the device. Otherwise it notes the steps, and
    `refuse` looks at them together.
    """

    def __init__(
        self,
        output: Path,
        accelerator: Accelerator,
        options: Train,
        learner: Learner,
        where: Callable[[int], str],
        warn: Callable[[str], None],
    ) -> None:
        self.output, self.accelerator, self.options = output, accelerator, options
        self.learner, self.where, self.warn = learner, where, warn
        self.noted: list[Step] = []
        self.skipped = self.in_a_row = 0  # since the last `counted`; up to now

    def skips(self, step: int, norm: Tensor, parts: list[dict[str, Tensor]], samples: Samples) -> bool:
        """Note a step; returns whether the optimiser has to skip it. Raises Diverged after too many in a row."""
        self.noted.append(Step(step, norm, [part["loss"] for part in parts], samples))
        if self.options.on_nonfinite != "skip":
            return False
        broken = self.first_broken()
        if broken is None:
            self.in_a_row = 0
            return False
        self.warn(f"step {step} is skipped: {self.save(broken)}")
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self.in_a_row > self.options.max_skips:
            raise Diverged(
                f"more than --train.max-skips {self.options.max_skips} steps in a row had a loss or gradient that is "
                f"not finite, the last is step {step} (see {self.output}/nonfinite_*.json); a lower --optim.lr (now "
                f"{self.learner.schedule.get_last_lr()[0]:.2g}) may help; --resume goes back to the last checkpoint"
            )
        return True

    def counted(self) -> dict[str, float]:
        """How many steps were skipped since the last call, as a metric, if there are any."""
        skipped, self.skipped = self.skipped, 0
        return {"train/skipped": float(skipped)} if skipped else {}

    def refuse(self) -> None:
        """Raise Diverged if a noted step has a loss or gradient that is not finite. Waits for the device."""
        if broken := self.first_broken():
            raise Diverged(
                f"{self.save(broken)}; a lower --optim.lr (now {self.learner.lr:.2g}) or more --optim.warmup-steps may "
                f"help, or --train.on-nonfinite skip; --resume goes back to the last checkpoint, with --resume-anyway "
                f"also with other options of the optimiser"
            )

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
                write_whole(file, as_json(found, indent=1).encode())
        return (
            f"the loss is {mean} and the gradient {step.norm.item()} at step {step.number} (its images are named in "
            f"{file})"
        )
