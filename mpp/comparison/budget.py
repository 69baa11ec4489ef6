"""The cost of a comparison: a time estimate before it; images, seconds and floating-point operations after it."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from mpp.comparison.equal import flops_of
from mpp.comparison.pieces import Piece
from mpp.comparison.report import Cost
from mpp.config.command_line import parse
from mpp.config.commands import Compare, LinearProbe, Pretrain, Supervised
from mpp.config.dense import Dense
from mpp.config.derived import height_width
from mpp.config.options import SHAPE
from mpp.methods.classify import Classifier
from mpp.models.backbone import Backbone
from mpp.models.backbones import build_vit, downstream_vit, fitted, load_backbone
from mpp.run.machine import in_precision
from mpp.run.measured import told_time
from mpp.training.flops import flops_an_image

_UNKNOWN = 10_000  # assumed number of images where no option gives it


def plan(pieces: Sequence[Piece], accelerator: Accelerator, measured: Mapping[Path, float]) -> str:
    """List the runs with their times: those `measured` by their folder, else estimated from the speed of a step on this
    device in this precision."""
    speeds: dict[str, tuple[float, float]] = {}
    seconds = []
    for piece in pieces:
        if piece.done:
            seconds.append(0.0)
        elif piece.folder in measured:
            seconds.append(measured[piece.folder])
        else:
            if (kind := repr(kind_of(piece))) not in speeds:
                vit = begun_by(piece).to(accelerator.device)
                in_precision(vit, accelerator)
                speeds[kind] = seconds_an_image(vit, accelerator.device)
            seconds.append(estimate(piece, *speeds[kind]))
    done, how = (
        sum(piece.done for piece in pieces),
        "measured" if measured else "guessed from bare encoders in one process",
    )
    lines = [f"The comparison takes {len(pieces)} runs, of which {done} are done:"]
    for piece, needs in zip(pieces, seconds, strict=True):
        lines.append(f"  {'done' if piece.done else told_time(needs):>12}  {piece.title}")
    return "\n".join([*lines, f"about {told_time(sum(seconds))} in all on this device, {how}"])


def kind_of(piece: Piece) -> tuple[object, ...]:
    """What the speed of a run depends on: its encoder and its image size."""
    options: Any = (piece.after or piece).config
    size = piece.config.model.img_size or options.model.img_size
    return options.init, [getattr(options.model, name) for name in SHAPE], size, options.data.channels


def begun_by(piece: Piece) -> Backbone:
    """The encoder that a run begins with, or one of its shape, at the run's image size."""
    options = (piece.after or piece).config
    vit = downstream_vit(options.init, options.model, options.data.channels or 3)
    return fitted(vit, piece.config.model.img_size)


def estimate(piece: Piece, train: float, forward: float) -> float:
    """Estimated seconds of a run; `train` and `forward` are seconds per image. Includes the start of the run."""
    options = piece.config
    if isinstance(options, LinearProbe):
        return 5 + ((options.probe.eval_images or _UNKNOWN) + (options.data.labels or _UNKNOWN)) * forward
    if isinstance(options, Dense):  # whose fits take longer than its features: for each image to fit on about 10 passes
        return 5 + (10 * options.images + options.eval_images) * forward
    if isinstance(options, Pretrain):  # whose arithmetic is not that of the bare encoder, which the speed is of
        vit = begun_by(piece)
        train *= flops_of(options, vit) / flops_an_image(Classifier(vit, [""]))
    evaluations = -(-options.train.steps // options.eval.every) * (options.eval.images or _UNKNOWN)
    once = 1 + options.train.steps * options.train.batch_size * train + evaluations * forward
    return once * (1 + len(getattr(options.optim, "lr_grid", ())))


def seconds_an_image(vit: Backbone, device: torch.device, batch: int = 8) -> tuple[float, float]:
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
