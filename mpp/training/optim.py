"""The optimiser: weight decay, layer-wise learning rates, and the learning-rate schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mpp.config.options import Optim
from mpp.training.muon import BatchedMuon


def scaled_lr(optim: Optim, batch_size: int) -> float:
    """Peak learning rate at a batch size: --optim.lr, in proportion to batch_size / --optim.lr-batch-size if given
    (linear scaling, arXiv 1706.02677)."""
    return optim.lr * (batch_size / optim.lr_batch_size if optim.lr_batch_size else 1.0)


def build_optimizer(model: nn.Module, optim: Optim, batch_size: int) -> Optimizer:
    """--optim.name over a model's parameters; only the weights of linear layers and convolutions decay."""
    lr = scaled_lr(optim, batch_size)
    groups = parameter_groups(model, optim.weight_decay, optim.layer_decay)
    matrices: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for group in groups:
        group["lr"] = lr * group.pop("lr_scale")
        (matrices if group.pop("matrices") else others).append(group)
    # fused: one pass over all weights instead of one kernel a tensor
    if optim.name == "sgd":
        return SGD(groups, lr=lr, momentum=optim.betas[0], fused=True)
    if optim.name == "muon" and matrices:  # a ResNet has none
        # Muon's updates are scaled to the size of AdamW's, so that one learning rate serves both
        muon = BatchedMuon(matrices, lr=lr)
        return Together([muon, AdamW(others, lr=lr, betas=optim.betas, fused=True)])
    return {"adam": Adam}.get(optim.name, AdamW)(groups, lr=lr, betas=optim.betas, fused=True)


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Parameters by what they share: weights of linear layers and convolutions have `weight_decay`; biases, norms and
    embeddings none.

    With `layer_decay` below 1, block i of L (from 1) learns at the share layer_decay ** (L + 1 - i), "lr_scale"; the
    embeddings come before the first block, the last norm and what stands outside the encoder (heads, decoders, [mask])
    after the last (BEiT, arXiv 2106.08254).
    "matrices" are the weights of the blocks' linear layers, which Muon is for.
    """
    kinds = {id(m.weight): type(m) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    encoder = getattr(model, "vit", model)
    depth, inside = len(getattr(encoder, "blocks", ())), "" if encoder is model else "vit."
    groups: dict[tuple[float, bool, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = layer_of(name.removeprefix(inside), depth) if name.startswith(inside) else depth + 1
        decays = id(parameter) in kinds
        scale = layer_decay ** (depth + 1 - layer)
        matrices = kinds.get(id(parameter)) is nn.Linear and "blocks" in name.split(".")  # of encoder or decoder
        group = {"weight_decay": weight_decay if decays else 0.0, "lr_scale": scale, "matrices": matrices}
        groups.setdefault((scale, decays, matrices), group | {"params": []})["params"].append(parameter)
    return list(groups.values())


def layer_of(name: str, depth: int) -> int:
    """An encoder's parameter's place from the input (0: embeddings) over the blocks (1..depth) to the last norm."""
    parts = name.split(".")
    if parts[0] == "blocks":
        return int(parts[1]) + 1
    return depth + 1 if parts[0] == "norm" else 0


class Together(Optimizer):
    """Several optimisers as one, for a loop, a schedule and a checkpoint that know of one."""

    def __init__(self, optimizers: list[Optimizer]) -> None:
        self.optimizers = optimizers

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def state(self) -> dict[Any, Any]:  # type: ignore[override]
        return {key: value for optimizer in self.optimizers for key, value in optimizer.state.items()}

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)


@dataclass(frozen=True)
class Span:
    """The steps over which the learning rate decays to 0: after the warm-up, or with --optim.extend continue from
    `share` of the peak, that of the last step before `start`."""

    end: int
    start: int = 0
    share: float = 1.0


def schedule(optimizer: Optimizer, peaks: list[float], optim: Optim, span: Span, done: int = 0) -> LambdaLR:
    """Linear warm-up to each group's peak, then decay over `span`; goes on after `done` steps."""
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        group["initial_lr"] = peak
    return LambdaLR(optimizer, lambda step: lr_factor(step, optim, span), last_epoch=done - 1)


def lr_factor(step: int, optim: Optim, span: Span) -> float:
    """Share of the peak learning rate that step number `step` (from 0) trains with, in 0..1."""
    if step < optim.warmup_steps:
        return (step + 1) / optim.warmup_steps
    begin = span.start - 1 if span.start else optim.warmup_steps
    progress = (step - begin) / max(1, span.end - begin)
    decayed = {"cosine": 0.5 + 0.5 * math.cos(math.pi * min(1, progress)), "linear": max(0, 1 - progress), "none": 1.0}
    return span.share * decayed[optim.decay]


def extended(before: Span, optim: Optim, steps: int, done: int, peak: float) -> tuple[Span, str | None]:
    """The span of a run of `steps` that goes on after `done` steps of one made for `before`, as --optim.extend says;
    and a line for the user if the choice changes the learning rate of the next step."""
    if not done or steps == before.end:
        return before if done else Span(steps), None
    last = lr_factor(done - 1, optim, before)
    restart, go_on = Span(steps), Span(steps, done, last)
    new = lr_factor(done, optim, restart)
    if done <= optim.warmup_steps or new == lr_factor(done, optim, go_on):
        return restart, None
    fold = f" {new / last:.3g}-fold" if new / (last or 1) > 1 else ""
    jumps = f"jumps{fold} from {last * peak:.2g} to {new * peak:.2g}"
    falls = f"goes on from {last * peak:.2g}{'' if optim.decay == 'none' else f' and falls to 0 at step {steps:,}'}"
    if optim.extend == "continue":
        span, says = go_on, f"{falls} (--optim.extend continue); with --optim.extend restart it {jumps}"
    else:
        span, says = restart, f"{jumps} (--optim.extend restart); with --optim.extend continue it {falls}"
    return span, f"--train.steps {steps} was {before.end} when this run was last saved: the learning rate {says}"
