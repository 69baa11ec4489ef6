"""The cost of a comparison: a time estimate before it; images, seconds and floating-point operations after it."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

from mpp.comparison.equal import flops_of
from mpp.comparison.pieces import Piece
from mpp.comparison.report import Cost
from mpp.config.command_line import parse
from mpp.config.commands import Compare, FineTune, LinearProbe, Pretrain, Supervised
from mpp.config.derived import height_width
from mpp.methods.classify import Classifier
from mpp.models.backbones import build_vit, load_backbone
from mpp.models.vit import ViT
from mpp.run.machine import in_precision
from mpp.training.flops import flops_an_image

_UNKNOWN = 10_000  # assumed number of images where no option gives it


def plan(config: Compare, pieces: list[Piece], accelerator: Accelerator) -> str:
    """List the runs with their estimated times, from the speed of a step of each model on this device in this
    precision."""
    device = accelerator.device
    speeds: dict[str, tuple[float, float]] = {}  # of each shape
    seconds = []
    for piece in pieces:
        pretrained = piece.after.config.model if piece.after else config.pretrain.model
        own = piece.config.model if isinstance(piece.config, Pretrain | Supervised) else pretrained
        shape = dataclasses.replace(own, img_size=piece.config.model.img_size or own.img_size)
        if not piece.done and repr(shape) not in speeds:
            vit = build_vit(shape).to(device)
            in_precision(vit, accelerator)
            speeds[repr(shape)] = seconds_an_image(vit, device)
        seconds.append(0.0 if piece.done else estimate(piece.config, *speeds[repr(shape)]))
    lines = [f"The comparison takes {len(pieces)} runs, of which {sum(piece.done for piece in pieces)} are done:"]
    for piece, needs in zip(pieces, seconds, strict=True):
        lines.append(f"  {'     done' if piece.done else f'{needs / 60:5.1f} min'}  {piece.title}")
    return "\n".join([*lines, f"about {sum(seconds) / 60:.0f} minutes in all, with one process on this device"])


def estimate(options: Pretrain | Supervised | LinearProbe | FineTune, train: float, forward: float) -> float:
    """Estimated seconds of a run; `train` and `forward` are seconds per image. Includes the start of the run."""
    if isinstance(options, LinearProbe):
        return 5 + ((options.probe.eval_images or _UNKNOWN) + (options.data.labels or _UNKNOWN)) * forward
    evaluations = -(-options.train.steps // options.eval.every) * (options.eval.images or _UNKNOWN)
    once = 1 + options.train.steps * options.train.batch_size * train * share_of_plain(options) + evaluations * forward
    return once * (1 + len(getattr(options.optim, "lr_grid", ())))


def share_of_plain(options: Pretrain | Supervised | FineTune) -> float:
    """The arithmetic of training on one image over that of the bare encoder, which the speed is measured with."""
    if not isinstance(options, Pretrain):
        return 1.0
    vit = build_vit(options.model, options.data.channels or 3)
    return flops_of(options, vit) / flops_an_image(Classifier(vit, [""]))


def seconds_an_image(vit: ViT, device: torch.device, batch: int = 8) -> tuple[float, float]:
    """Seconds per image of a training step and of a forward pass, each the faster of two trials."""
    images = torch.zeros(batch, vit.in_chans, *vit.img_size, device=device)

    def seconds(train: bool) -> float:
        started = time.perf_counter()
        with torch.set_grad_enabled(train):
            tokens = vit(images)
            if train:
                tokens.sum().backward()
        tokens.sum().item()  # waits for the device
        return (time.perf_counter() - started) / batch

    return min(seconds(True), seconds(True)), min(seconds(False), seconds(False))


def cost_of(arm: str, inits: Sequence[str], config: Compare, classes: int, channels: int) -> Cost:
    """Cost of an arm: one pretraining (seconds: the mean over its seeds), if its run recorded it, and one fine-tuning
    with all learning rate trials."""
    init = inits[0]
    vit = build_vit(config.pretrain.model, channels) if init == "scratch" else load_backbone(init)
    vit.resize(height_width(config.finetune.model.img_size or vit.img_size))
    runs = 1 + len(config.finetune.optim.lr_grid)
    tuned = runs * config.finetune.train.steps * config.finetune.train.batch_size
    flops = tuned * flops_an_image(Classifier(vit, [""] * classes))
    if init == "scratch":
        return Cost(arm, 0, None, None, tuned, flops)
    found = [run for init in inits if (run := _pretraining_of(Path(init)))]
    if not found:
        return Cost(arm, None, None, None, tuned, flops)
    images, _, spent = found[0]
    return Cost(arm, images, statistics.fmean(run[1] for run in found), spent, tuned, flops)


def _pretraining_of(folder: Path) -> tuple[int, float, int] | None:
    """Images seen, seconds and FLOPs of a run of mpp/pretrain.py or recipes/supervised.py, else None."""
    if not ((folder / "result.json").exists() and (folder / "config.toml").exists()):
        return None
    run = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    kinds: dict[str, type[Pretrain | Supervised]] = {"pretrain": Pretrain, "supervised": Supervised}
    if (kind := kinds.get(run.get("command"))) is None:
        return None
    if (flops := run.get("flops")) is None:  # runs of earlier versions do not say
        options = parse(kind, ["--config", str(folder / "config.toml")])
        flops = run["images_seen"] * flops_of(options, load_backbone(str(folder)), run.get("classes"))
    return run["images_seen"], run["seconds"], flops
