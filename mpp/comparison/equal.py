"""Equal compute: how many steps each arm trains, so that all see as many images, or take as much arithmetic or time."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import statistics
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from mpp.commands.pretrain import method_of
from mpp.comparison.arms import encoder_of, pretrain_seeds, seeded
from mpp.comparison.pieces import run_piece
from mpp.config.commands import Compare, Pretrain, Supervised
from mpp.config.derived import height_width
from mpp.data.splits import open_labelled
from mpp.files import write_whole
from mpp.methods.classify import Classifier
from mpp.methods.targets import make_target
from mpp.models.backbone import Backbone
from mpp.models.backbones import as_vit
from mpp.run.folder import read_metrics
from mpp.training.flops import flops_an_image

_STEPS, _ROUNDS = 20, 3  # of each arm, in turns, to measure a step

Options = dict[str, Pretrain | Supervised]


def with_equal_compute(config: Compare, arms: Options, output: Path, accelerator: Accelerator) -> Options:
    """The arms with the steps that --equal gives them: the first trains as its options say, the others for as long.

    Evaluations are as many as the first arm's. The measured seconds a step are kept in `output`, so that a cut
    comparison goes on with the same steps.
    """
    if config.equal is None or len(arms) < 2:
        return arms
    now = {name: seeded(options, pretrain_seeds(config)[0]) for name, options in arms.items()}
    if config.equal == "images":
        price = {name: float(options.train.batch_size) for name, options in arms.items()}
    elif config.equal == "flops":
        price = {name: options.train.batch_size * float(flops_of(options)) for name, options in now.items()}
    else:
        price = seconds_a_step(now, output, accelerator, config.dry_run)
    first, start = next(iter(arms)), next(iter(arms.values()))
    return {
        name: options if name == first else _lasting(options, start, price[first] / price[name])
        for name, options in arms.items()
    }


def _lasting(options: Any, start: Pretrain | Supervised, ratio: float) -> Any:
    """Options with the steps of `start` times a ratio, and as many evaluations."""
    steps = max(1, round(start.train.steps * ratio))
    every = max(1, round(start.eval.every * steps / start.train.steps))
    train, evaluation = options.train, options.eval
    return dataclasses.replace(
        options,
        train=dataclasses.replace(train, steps=steps),
        eval=dataclasses.replace(evaluation, every=every),
    )


def flops_of(options: Pretrain | Supervised, vit: Backbone | None = None, classes: int | None = None) -> int:
    """Floating-point operations of training on one image; of a run, with its encoder and number of classes."""
    vit = vit or encoder_of(options)
    if isinstance(options, Pretrain):
        vit = as_vit(vit, options.init, "it has no patches to mask")
        target = make_target(options.data.target, vit.patch_size, options.data.bits, vit.in_chans)
        method = method_of(options.method)
        return method.flops_of(options, method.build(options, vit, target.num_outputs)[0])
    if classes is None:
        images, _ = open_labelled(options.data, height_width(options.model.img_size), options.seed)
        classes = len(images.label_names or [])
    return flops_an_image(Classifier(vit, [""] * classes, head="mlp"))


def seconds_a_step(arms: Options, output: Path, accelerator: Accelerator, dry_run: bool) -> dict[str, float]:
    """Median seconds of a training step of each arm, measured by short runs in turns, or as `output` says. A `dry_run`
    measures each once, without a folder."""
    file = output / "seconds_a_step.json"
    known: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}
    if set(arms) <= set(known):
        return known
    accelerator.print("measuring the steps of the arms, in turns")
    if dry_run:
        return {name: _rehearsed(options, output / "measured" / name, accelerator) for name, options in arms.items()}
    steps: dict[str, list[float]] = {name: [] for name in arms}
    folder = output / "measured"
    for _ in range(_ROUNDS):
        for name, options in arms.items():
            steps[name] += _timed(options, folder / name, accelerator)
    accelerator.wait_for_everyone()
    found = {name: statistics.median(times) for name, times in steps.items()}
    if accelerator.is_main_process:
        shutil.rmtree(folder)
        write_whole(file, json.dumps(found, indent=2).encode())
    accelerator.wait_for_everyone()
    return found


def _rehearsed(options: Any, folder: Path, accelerator: Accelerator) -> float:
    """Seconds of a step by --dry-run, without waiting for images."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        found = run_piece(dataclasses.replace(options, output=str(folder), dry_run=True), accelerator)
    return found["seconds_a_step"] * (1 - found["speed/data_wait"])


def _timed(options: Any, folder: Path, accelerator: Accelerator) -> list[float]:
    """Seconds of the steps of a short run, without those in which it warms up, and without waiting for images."""
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
    accelerator.wait_for_everyone()
    short: Any = dataclasses.replace(
        options,
        output=str(folder),
        optim=dataclasses.replace(options.optim, warmup_steps=0),
        train=dataclasses.replace(options.train, steps=_STEPS, log_every=1),
        eval=dataclasses.replace(options.eval, every=_STEPS, images=options.eval.batch_size, probe=None),
        resume=False,
    )
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        run_piece(short, accelerator)
    accelerator.wait_for_everyone()
    return [
        options.train.batch_size / line["speed/images_per_second"] * (1 - line["speed/data_wait"])
        for line in read_metrics(folder)[_STEPS // 4 :]
    ]
