"""What the training loop is given, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn
from torch.utils.data import DataLoader

from mpp.data.loader import Batch, Share
from mpp.data.streams import Positions


class Job(Protocol):
    """What a command trains and how it is measured."""

    unreadable: dict[str, str]  # evaluation images that were left out: where, why

    @property
    def model(self) -> nn.Module: ...

    def batches(self, share: Share, start: int, positions: Positions) -> DataLoader:
        """This process's micro-batches from step `start` on; `positions` are those of a stream's last batch."""
        ...

    def flops_an_image(self) -> int:
        """Floating-point operations of training on one image."""
        ...

    def epoch(self, step: int, positions: Positions) -> float:
        """How often the training images have been seen after `step` steps."""
        ...

    def where(self, index: int) -> str:
        """The file or row that a training image comes from (a stream's batches bring that themselves)."""
        ...

    def training_step(self, model: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a micro-batch of `step`, and further metrics of it, all scalars on the device."""
        ...

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Metrics on held-out images, the same on all processes."""
        ...

    def pictures(self, model: nn.Module) -> dict[str, Tensor]:
        """Pictures by name, uint8 (B, C, H, W)."""
        ...


@dataclass
class Outcome:
    """How training ended."""

    step: int
    metrics: dict[str, float]  # of the last evaluation
    seconds: float  # of all starts of the command
    stopped: bool  # by a signal, before the last step
    model: nn.Module  # with the weights that were evaluated: the last, or their running mean
    unreadable: dict[str, str] = field(default_factory=dict)  # images left out: where, why
