"""The command `dense`: what frozen patch tokens tell of every pixel, its class or its depth."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from mpp.commands.downstream import as_taken_by, block_number
from mpp.commands.dry_run import forward_sample, told_model
from mpp.config.command_line import write_toml
from mpp.config.dense import Dense
from mpp.data.batches import refuse_too_many
from mpp.data.identity import keep
from mpp.data.images import bands_of
from mpp.data.loader import Batch
from mpp.data.maps import Mapped, open_mapped
from mpp.errors import UserError, printable
from mpp.evaluation.dense import PENALTIES, RECIPES, Predictor, bank_of, fit_classes, fit_depths, steps_for
from mpp.evaluation.dense_measures import Segmentation, Task, enlarged, figures_of, intervals_of
from mpp.evaluation.dense_probe import (
    Measured,
    Patches,
    ceiling,
    constant,
    fit_linear,
    gather,
    look_at,
    measure,
    task_of,
)
from mpp.evaluation.probes import refuse_useless
from mpp.figures.dense import paint_dense
from mpp.figures.gallery import Gallery
from mpp.methods.classify import batches_of
from mpp.models.backbone import Backbone
from mpp.models.backbones import digest_of, downstream_vit
from mpp.run.folder import AGAIN, finish, prepared_output, unreadable_line, writing
from mpp.run.measured import settle, told_bytes, told_time

_KEPT = 4 << 30  # bytes of training tokens and pixels in memory
_EXAMPLES = 8  # images of the sheet
_PAINTED: tuple[str, ...] = ("linear", "knn", "raw")
_TITLES = {
    "linear": "linear layer",
    "knn": "k-NN",
    "raw": "raw pixels, linear layer",
    "raw_knn": "raw pixels, k-NN",
    "constant": "",  # the task says what
    "ceiling": "true patches",
}


def run_dense(config: Dense, accelerator: Accelerator) -> dict[str, Any]:
    """Extract, fit, measure, paint, report; returns what result.json says."""
    if accelerator.num_processes > 1:
        raise UserError(f"mpp dense runs on one process, not {accelerator.num_processes}: leave --processes out")
    with prepared_output(config, "dense", False, accelerator) as output:
        return dense_into(output, config, accelerator)


def dense_into(output: Path, config: Dense, accelerator: Accelerator) -> dict[str, Any]:
    """Extract, fit, measure, paint, report, all into a folder of its own."""
    started, device = time.perf_counter(), accelerator.device
    vit, train, test, names = opened(config)
    vit.to(device).eval()
    layer, task = block_number("--layer", config.layer, vit.depth), task_of(names)
    refuse_too_large(config, vit, len(train))
    accelerator.print(
        f"images: {len(train):,} to fit on, {len(test):,} to measure on"
        + (f"; classes: {', '.join(map(printable, names[:12]))}{', ...' if len(names) > 12 else ''}" if names else "")
    )
    if config.dry_run:
        return rehearse_dense(output, vit, layer, train, len(test), task, config, accelerator)
    data = keep(output, train.images, test.images, accelerator)
    unreadable: dict[str, str] = {}

    def patches_of(mapped: Mapped) -> Iterator[tuple[Batch, Patches]]:
        left_out: dict[str, str] = {}
        batches = batches_of(mapped.images, vit, config.data, config.batch_size, accelerator, left_out, False)
        for batch in batches:
            yield batch, look_at(vit, batch, layer, mapped, task, accelerator)
        refuse_too_many(len(left_out), len(mapped), config.data, left_out)
        unreadable.update(left_out)

    known = gather((patches for _, patches in patches_of(train)), len(train))
    refuse_useless(known.flat("tokens", torch.arange(min(64, len(known.places)))), config.init)
    predictors: dict[str, Predictor] = {}
    chosen: dict[str, Any] = {}
    every = torch.arange(len(known.places))
    targets = known.flat("targets", every)
    if not targets.any():
        raise UserError(
            f"--data.path {config.data.path}: every pixel is ignored (--ignore {config.ignore}): give another"
        )
    for name, sees in {"": "tokens", "raw": "raw"}.items():
        linear, chosen[f"{name}_recipe".strip("_")] = fit_linear(known, sees, train, vit, task, config.seed, device)
        predictors[name or "linear"] = linear
        predictors[f"{name}_knn".strip("_")] = bank_of(
            known.flat(sees, every), targets, task.outputs, config.neighbours, config.bank, config.seed, device
        )
    predictors |= {"constant": constant(known, task), "ceiling": ceiling(task)}
    found = measure(predictors, patches_of(test), test, vit, task, _EXAMPLES)

    result: dict[str, Any] = {"command": "dense", "task": config.task, "init": config.init, "layer": layer}
    result |= {"init_sha256": digest_of(config.init), "data": data, "patches": list(vit.grid)}
    result |= {"images": len(known.places), "eval_images": len(found.tallies["linear"])}
    result |= figures(task, found) | chosen | {"unreadable_images": unreadable}
    result["seconds"] = round(time.perf_counter() - started, 1)
    with writing(output, AGAIN):
        write_toml(config, output / "config.toml")
        show(output, config, task, result, found)
    result = finish(output, config, result)
    print(summary(config, task, result, output))
    if unreadable:
        print(unreadable_line(unreadable, len(train) + len(test), config.data.path))
    return result


def opened(config: Dense) -> tuple[Backbone, Mapped, Mapped, list[str]]:
    """The encoder that --init names, the images to fit on and to be measured on, and the names of the classes."""
    set_seed(config.seed)
    vit = downstream_vit(config.init, config.model)
    with as_taken_by(vit, config.init, config.data) as data:
        train, test, names = open_mapped(config, data, vit.img_size)
    bands = bands_of(train.images)
    if config.init == "scratch" and bands.channels != vit.in_chans:
        set_seed(config.seed)
        vit = downstream_vit(config.init, config.model, bands.channels or vit.in_chans)
    vit.pixel_range = bands.range
    return vit, train, test, names


def rehearse_dense(
    output: Path,
    vit: Backbone,
    layer: int,
    train: Mapped,
    tests: int,
    task: Task,
    config: Dense,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Print what the probe would take, from the patches of a sample and fits on them; returns the numbers."""
    unreadable: dict[str, str] = {}
    kept: dict[int, Patches] = {}  # by the first image's number

    def patches(batch: Batch) -> None:
        kept[int(batch["index"][0])] = look_at(vit, batch, layer, train, task, accelerator)

    batches = batches_of(train.images, vit, config.data, config.batch_size, accelerator, unreadable, False)
    found = forward_sample(batches, patches, len(train) + tests, accelerator)
    if not kept:
        raise UserError(f"--data.path {config.data.path}: no readable image was found; is this the right set?")
    fits = seconds_of_fits(gather(kept.values(), found.images), len(train), tests, vit, task, config, accelerator)
    rows = {
        "images": f"{len(train):,} to fit on, {tests:,} to measure on; {config.task}",
        "model": told_model(vit),
        "fits": f"{told_time(fits)} for linear layers, k-NN and the measures of pixels, by those of a sample",
    }
    return found.told(output, rows, fits, [], unreadable, config, config.data, accelerator)


def seconds_of_fits(
    sample: Patches, images: int, tests: int, vit: Backbone, task: Task, config: Dense, accelerator: Accelerator
) -> float:
    """What fitting and measuring would take, by the time on a sample's patches."""
    device, rows, seconds = accelerator.device, images * vit.num_patches, 0.0
    every = torch.arange(len(sample.places))
    targets = sample.flat("targets", every)
    for sees in ("tokens", "raw"):
        x = sample.flat(sees, every)
        began = time.perf_counter()
        if isinstance(task, Segmentation):
            fit_classes(x, targets, RECIPES, 0, device)
            times = steps_for(rows) / steps_for(len(x))
        else:
            fit_depths(x, targets, PENALTIES, device)
            times = rows / len(x)
        settle(device)
        seconds += (time.perf_counter() - began) * times * 2  # on four fifths with every recipe, on all with one
        again = torch.arange(min(config.bank, rows)) % len(x)
        neighbours = bank_of(x[again], targets[again], task.outputs, config.neighbours, config.bank, 0, device)
        began = time.perf_counter()
        neighbours(x[:1024].to(device))
        settle(device)
        seconds += (time.perf_counter() - began) / min(1024, len(x)) * tests * vit.num_patches
    scores = enlarged(torch.zeros(vit.num_patches, task.outputs, device=device), vit.grid, vit.img_size)
    true = torch.zeros(vit.img_size, dtype=torch.int64, device=device)
    task.tally(scores, true)  # the first call imports
    began = time.perf_counter()
    task.tally(scores, true)
    tallies = 2 * images / 5 * len(RECIPES) + len(_TITLES) * tests
    return seconds + (time.perf_counter() - began) * tallies


def refuse_too_large(config: Dense, vit: Backbone, images: int) -> None:
    """Raise UserError if the training patches take too much memory."""
    each = 4 * vit.num_patches * (vit.embed_dim + vit.in_chans * vit.patch_size**2)
    if images * each > _KEPT:
        raise UserError(
            f"--images {config.images}: the patches of {images:,} images take {told_bytes(images * each)} of memory, "
            f"and {told_bytes(_KEPT)} is the most; --images {_KEPT // each} fits"
        )


def figures(task: Task, found: Measured) -> dict[str, Any]:
    """The figures of every predictor with their intervals, as result.json names them: eval/miou for the linear layer,
    eval/knn_miou and so on for the others."""
    result: dict[str, Any] = {}
    for name, each in found.tallies.items():
        tallies, prefix = np.stack(each), "" if name == "linear" else f"{name}_"
        result |= {f"eval/{prefix}{key}": value for key, value in figures_of(task, tallies).items()}
        result |= {f"eval/{prefix}{key}_interval": value for key, value in intervals_of(task, tallies).items()}
        if isinstance(task, Segmentation) and name in ("linear", "knn"):
            iou = task.iou(tallies.sum(0, keepdims=True))[0]
            result[f"{prefix}per_class_iou"] = dict(zip(task.names, iou.tolist(), strict=True))
    return result


def show(output: Path, config: Dense, task: Task, result: dict[str, Any], found: Measured) -> None:
    """The sheet, the table of classes, and the same in TensorBoard."""
    gallery = Gallery(output, "dense")
    names = task.names if isinstance(task, Segmentation) else ()
    titles = {name: f"{_TITLES[name]}\n{_told(task, result, name)}" for name in _PAINTED}
    gallery.figure("sheet", paint_dense(found.examples, titles, names))
    if names:
        rows = [
            [name, *(f"{result[key][name]:.6f}" for key in ("per_class_iou", "knn_per_class_iou"))] for name in names
        ]
        gallery.table("per_class_iou", ["class", "linear", "knn"], rows)
    for key, value in result.items():
        if key.startswith("eval/") and isinstance(value, float):
            gallery.writer.add_scalar(key, value, 0)
    for name, value in result.get("per_class_iou", {}).items():
        gallery.writer.add_scalar(f"per_class_iou/{name}", value, 0)
    gallery.close()


def _told(task: Task, result: dict[str, Any], name: str) -> str:
    """The headline of a predictor, for a title."""
    value = result[f"eval/{'' if name == 'linear' else name + '_'}{task.headline}"]
    return f"{value:.1%} mIoU" if isinstance(task, Segmentation) else f"RMSE {value:.3g}"


def summary(config: Dense, task: Task, result: dict[str, Any], output: Path) -> str:
    """The figures for the terminal."""
    classes = isinstance(task, Segmentation)
    grid = " x ".join(map(str, result["patches"]))
    lines = [
        f"\n{config.init}, layer {result['layer']}, {grid} patches an image: {config.task} of "
        f"{result['eval_images']:,} images, fitted on {result['images']:,}"
    ]
    first, second = ("miou", "pixel_accuracy") if classes else ("depth_rmse", "depth_delta1")
    for name, title in _TITLES.items():
        prefix = "eval/" if name == "linear" else f"eval/{name}_"
        value, (low, high), other = (result[f"{prefix}{key}"] for key in (first, f"{first}_interval", second))
        title = title or ("commonest class" if classes else "mean depth")
        if classes:
            told = f"mIoU {value:6.1%}   (95 % interval {low:.1%} to {high:.1%}; {other:.1%} of the pixels)"
        else:
            told = f"RMSE {value:7.4g}   (95 % interval {low:.4g} to {high:.4g}; {other:.1%} within a ratio of 1.25)"
        lines.append(f"  {title:26}{told}")
    if classes:
        iou = sorted(result["per_class_iou"].items(), key=lambda item: -1 if item[1] != item[1] else -item[1])
        told = ", ".join(f"{printable(name)} {value:.0%}" for name, value in iou[:12] if value == value)
        lines.append(f"IoU of the linear layer: {told}{', ...' if len(iou) > 12 else ''}")
    return "\n".join([*lines, f"sheet.png and TensorBoard in {output}; all numbers in {output}/result.json"])
