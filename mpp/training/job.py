"""What the training loop is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from mpp.data.images import Images
from mpp.data.loader import Batch
from mpp.data.training_set import TrainingSet


class Job(Protocol):
    """A method on a set of images: what it trains, and how it measures that."""

    eval_images: Images  # held out
    probe: Callable[[Any], dict[str, float]]  # what an evaluation measures of the encoder's features; may be nothing
    unreadable: dict[str, str]  # evaluation images that were left out: where -> why
    in_pairs: bool  # whether a micro-batch must have an even number of images

    @property
    def model(self) -> nn.Module: ...

    @property
    def data(self) -> TrainingSet: ...

    def flops_an_image(self) -> int:
        """Floating-point operations of training on one image."""
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

    def look(self, batch: Batch) -> tuple[np.ndarray, list[str]]:
        """A batch of training images to look at, uint8 (B, C, H, W), and a line for each; none if there is nothing to
        say."""
        ...


@dataclass
class Outcome:
    """How training ended."""

    step: int
    metrics: dict[str, float]  # of the last evaluation
    seconds: float  # of all starts of the command
    model: nn.Module  # with the weights that were evaluated: the last, or their running mean
    images: int | None  # of the training set, without those that could not be read; None for a stream
    unreadable: dict[str, str] = field(default_factory=dict)  # images left out: where -> why
    flops: int = 0  # floating-point operations of the training, forward and backward
    init_sha256: str | None = None  # of the weights that --init named when the run began
