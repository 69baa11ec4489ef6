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
from mpp.config.command_line import write_toml
from mpp.config.dense import Dense
from mpp.data.batches import refuse_too_many
from mpp.data.identity import keep
from mpp.data.images import bands_of
from mpp.data.loader import Batch
from mpp.data.maps import Mapped, open_mapped
from mpp.errors import UserError, printable
from mpp.evaluation.dense import Predictor, bank_of
from mpp.evaluation.dense_measures import Segmentation, Task, figures_of, intervals_of
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
from mpp.run.folder import AGAIN, claimed, finish, named_folder, refuse_to_overwrite, unreadable_line, writing
from mpp.run.log import LOG
from mpp.run.measured import told_bytes

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
    output = named_folder(config.output, "dense")
    with claimed(output, accelerator):
        refuse_to_overwrite(output)
        with LOG.into(output), writing(output, AGAIN):
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
