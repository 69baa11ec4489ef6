"""Which weights decay, how fast they learn, and how that changes with time."""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mpp.config import Optim


def scaled_lr(optim: Optim, batch_size: int) -> float:
    """Peak learning rate at a batch size: --optim.lr, in proportion to batch_size / --optim.lr-batch-size if given
    (linear scaling, arXiv 1706.02677)."""
    return optim.lr * (batch_size / optim.lr_batch_size if optim.lr_batch_size else 1.0)


def build_optimizer(model: nn.Module, optim: Optim, batch_size: int) -> Optimizer:
    """SGD, Adam or AdamW over a model's parameters; only the weights of linear layers decay."""
    lr = scaled_lr(optim, batch_size)
    groups = parameter_groups(model, optim.weight_decay, getattr(optim, "layer_decay", 1.0))
    for group in groups:
        group["lr"] = lr * group.pop("lr_scale")
    # fused: one pass over all weights instead of one kernel a tensor
    if optim.name == "sgd":
        return SGD(groups, lr=lr, momentum=optim.betas[0], fused=True)
    return {"adam": Adam, "adamw": AdamW}[optim.name](groups, lr=lr, betas=optim.betas, fused=True)


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Parameters by what they share: weights of linear layers have `weight_decay`; biases, norms and embeddings none.

    With `layer_decay` below 1, block i of L (from 1) learns at the share layer_decay ** (L + 1 - i), "lr_scale"; the
    embeddings come before the first block, the last norm and the head after the last (BEiT, arXiv 2106.08254).
    """
    decayed = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    depth = len(getattr(getattr(model, "vit", model), "blocks", ()))
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = layer_of(name, depth) if layer_decay < 1 else depth + 1
        key = (layer, id(parameter) in decayed)
        groups.setdefault(
            key,
            {
                "params": [],
                "weight_decay": weight_decay if key[1] else 0.0,
                "lr_scale": layer_decay ** (depth + 1 - layer),
            },
        )["params"].append(parameter)
    return list(groups.values())


def layer_of(name: str, depth: int) -> int:
    """A parameter's place from the input (0: embeddings) over the blocks (1..depth) to the head (depth + 1)."""
    parts = name.removeprefix("vit.").split(".")
    if parts[0] == "blocks":
        return int(parts[1]) + 1
    return depth + 1 if parts[0] in ("norm", "head") else 0


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
