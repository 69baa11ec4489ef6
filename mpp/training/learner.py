"""What learns: the model, its optimiser, its schedule and the running mean of its weights."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mpp.run.machine import in_precision


def clip_gradients(accelerator: Accelerator, model: nn.Module, max_norm: float) -> Tensor:
    """Scale gradients down to `max_norm` if they are above it (0: never); returns their norm before."""
    norm = accelerator.clip_grad_norm_(model.parameters(), max_norm or float("inf"))
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def running_mean(model: nn.Module, decay: float, accelerator: Accelerator) -> AveragedModel:
    """A copy of a model for the running mean of its weights (exponential).

    Early steps are forgotten sooner, at (1 + n) / (10 + n) after n, so that fresh weights do not linger in short runs.
    """

    def update(means: Any, weights: Any, count: Tensor | int) -> None:
        n = int(averaged.n_averaged)  # on the CPU, where `count` may be on a device that reading it would wait for
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(means, weights, count)

    averaged = AveragedModel(model.to(accelerator.device), multi_avg_fn=update)
    averaged.requires_grad_(False)
    in_precision(averaged.module, accelerator)
    return averaged
