"""What learns: the model, its optimiser, the learning-rate schedule and the running mean of the weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mpp.config.commands import Trained
from mpp.run.machine import in_precision
from mpp.training import sharding
from mpp.training.optim import Span, build_optimizer, extended, schedule


class Learner:
    """A model in training, whole on every process or sharded over them (FSDP2).

    Attributes:
        model: as Accelerate wraps it; forward and backward go through it.
        bare: the same without wrappings.
        average: the running mean of the weights, with --train.average.
        lr: the learning rate of the last step.
        span: the steps over which it decays.
    """

    def __init__(self, model: nn.Module, config: Trained, accelerator: Accelerator) -> None:
        self.config, self.accelerator = config, accelerator
        self.sharded = accelerator.is_fsdp2
        if self.sharded:
            sharding.refuse_unsharded(config.train, config.optim)
            sharding.name_parts(model, accelerator)
        optimizer = build_optimizer(model, config.optim, config.train.batch_size)
        self.asked = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        decay = config.train.average
        self.average = running_mean(model, decay, accelerator) if decay else None
        self.gathered: nn.Module | None = None  # a whole copy of a sharded model, to evaluate
        if self.sharded:
            self.gathered = copy.deepcopy(model).to(accelerator.device).requires_grad_(False)
            for each in (model, self.gathered):
                in_precision(each, accelerator)
        if config.train.compile:
            model.compile()
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.bare = accelerator.unwrap_model(self.model, keep_torch_compile=False)
        self.schedule: LRScheduler
        self.span = Span(config.train.steps)
        self.lr = 0.0

    def begin(self, step: int, span: Span | None) -> None:
        """Start the schedule after `step` steps of a run made for `span`, with the options asked for now: a checkpoint
        brings back old ones."""
        for group, asked in zip(self.optimizer.param_groups, self.asked, strict=True):
            group |= asked
        peaks = [asked["lr"] for asked in self.asked]
        bare_optimizer = self.optimizer.optimizer  # without Accelerate's wrapping
        steps, optim = self.config.train.steps, self.config.optim
        self.span, says = extended(span or Span(steps), optim, steps, step, max(peaks))
        if says:
            self.accelerator.print(says)
        self.schedule = schedule(bare_optimizer, peaks, optim, self.span, step)
        self.model.train()

    def clip_gradients(self) -> Tensor:
        """Scale gradients down to --optim.clip-norm if they are above it (0: never); returns their norm before."""
        max_norm = self.config.optim.clip_norm or float("inf")
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), max_norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def update(self, skip: bool) -> None:
        """Take an optimiser step, or with `skip` none; the schedule goes on in both cases."""
        if not skip:
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.lr = float(self.schedule.get_last_lr()[0])
        self.schedule.step()
        if self.average and not skip:
            self.average.update_parameters(self.bare)

    def evaluated(self) -> nn.Module:
        """The model to evaluate and export: bare, so that processes do not wait for each other in it."""
        if self.gathered is not None:
            sharding.gather(self.model, self.gathered)
        return self.gathered or (self.average.module if self.average else self.bare)


def running_mean(model: nn.Module, decay: float, accelerator: Accelerator) -> AveragedModel:
    """A copy of a model that keeps the exponential running mean of its weights.

    After n steps the decay is at most (1 + n) / (10 + n), so that short runs forget their first weights.
    """

    def update(means: Any, weights: Any, count: Tensor | int) -> None:
        n = int(averaged.n_averaged)  # on the CPU; reading `count` may wait for a device
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(means, weights, count)

    averaged = AveragedModel(model.to(accelerator.device), multi_avg_fn=update)
    averaged.requires_grad_(False)
    in_precision(averaged.module, accelerator)
    return averaged


def seed_dropout(seed: int, step: int, rank: int) -> None:
    """Make dropout and drop path functions of the step, so that resuming needs no random state."""
    torch.manual_seed((seed * 1_000_003 + step) * 1_009 + rank)
