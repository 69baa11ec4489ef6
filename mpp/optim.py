"""Which weights decay, how fast they learn, and how that changes with time."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mpp.config import Optim


def scaled_lr(optim: Optim, batch_size: int) -> float:
    """Peak learning rate at a batch size: --optim.lr, in proportion to batch_size / --optim.lr-batch-size if given
    (linear scaling, arXiv 1706.02677)."""
    return optim.lr * (batch_size / optim.lr_batch_size if optim.lr_batch_size else 1.0)


def build_optimizer(model: nn.Module, optim: Optim, batch_size: int) -> Optimizer:
    """Adam or AdamW over a model's parameters; only the weights of linear layers decay."""
    kind = {"adam": Adam, "adamw": AdamW}[optim.name]
    groups = parameter_groups(model, optim.weight_decay)
    # fused: one pass over all weights instead of one kernel a tensor
    return kind(groups, lr=scaled_lr(optim, batch_size), betas=optim.betas, fused=True)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups: weights of linear layers with `weight_decay`; biases, norms and embeddings with none."""
    decayed = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if id(p) in decayed], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) not in decayed], "weight_decay": 0.0},
    ]


def schedule(optimizer: Optimizer, peaks: list[float], optim: Optim, steps: int, done: int = 0) -> LambdaLR:
    """Linear warm-up to each group's peak, then decay to 0 at `steps`; goes on after `done` steps."""
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        group["initial_lr"] = peak
    return LambdaLR(optimizer, lambda step: lr_factor(step, optim, steps), last_epoch=done - 1)


def lr_factor(step: int, optim: Optim, steps: int) -> float:
    """Share of the peak learning rate that step number `step` (from 0) of `steps` trains with, in 0..1."""
    if step < optim.warmup_steps:
        return (step + 1) / optim.warmup_steps
    progress = (step - optim.warmup_steps) / max(1, steps - optim.warmup_steps)
    return {"cosine": 0.5 + 0.5 * math.cos(math.pi * min(1, progress)), "linear": max(0, 1 - progress), "none": 1.0}[
        optim.decay
    ]
