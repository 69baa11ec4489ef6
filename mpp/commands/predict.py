"""The command `predict`: what a fine-tuned model says of images, with labels or without, as a table."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from mpp.commands.downstream import as_taken_by, new_to
from mpp.commands.dry_run import rehearse_prediction
from mpp.config.options import Data
from mpp.config.using import Predict
from mpp.data.batches import note_unreadable, refuse_too_many
from mpp.data.images import HeldOut, Images
from mpp.data.loader import Batch
from mpp.data.parts import Parts
from mpp.data.sources.classes import class_name
from mpp.data.sources.path import is_unlabelled_stream
from mpp.data.splits import measured_split, open_measured, open_whole
from mpp.data.streams import Stream
from mpp.errors import listed, renamed, warn
from mpp.evaluation.intervals import told_interval
from mpp.evaluation.predictions import Predictions, refuse_unwritable, write_table
from mpp.figures.sheet import paint_sheet
from mpp.methods.classify import Classifier, batches_of, load_classifier, predict_batches
from mpp.models.backbone import Backbone
from mpp.run.folder import AGAIN, save_picture, unreadable_line, writing
from mpp.run.machine import gather_dicts, workers_of

_PLACES = 32  # bits of an image's number in a stream that count its place in the shard; doubles hold 21 more
_PAINTED, _SIDE = 120, 112  # images of a sheet, and the longer side of each in pixels


def run_predict(config: Predict, accelerator: Accelerator) -> dict[str, Any]:
    """Predict every image of a set and write the table; returns how many there are, and the accuracy if it is known."""
    with renamed("--export-predictions", "--out", [config.out]):
        refuse_unwritable(config.out, config.overwrite, accelerator)
    if config.sheet:
        with renamed("--export-predictions", "--sheet", [config.sheet]):
            refuse_unwritable(config.sheet, config.overwrite, accelerator)
    model = load_classifier(config.init)
    model.to(accelerator.device).eval()
    with accelerator.main_process_first(), as_taken_by(model.vit, config.init, config.data, fitted=False) as data:
        images = open_predicted(data, model.vit.img_size)
    unreadable: dict[str, str] = {}
    names: dict[int, str] = {}
    labelled, total, classes = False, None, None
    top = min(config.top, len(model.classes))
    if isinstance(images, Stream):
        batches = batches_of_shards(Parts(images), model.vit, config, accelerator, unreadable, names)
    else:
        labelled, total = has_its_classes(images, model, accelerator), len(images)
        new = new_to(config.init, images, accelerator) if labelled else images
        if isinstance(new, HeldOut) and accelerator.is_main_process:
            warn(f"the accuracy is not that on new images ({new.says}); finetune --eval-only measures those held out")
        classes = images.label_names if labelled else None
        batches = batches_of(images, model.vit, config.data, config.batch_size, accelerator, unreadable, labelled)
    if config.dry_run:
        return rehearse_prediction(config.out, model, batches, total, classes, unreadable, config, accelerator)
    found = predict_batches(model, batches, classes, accelerator, total, top)
    unreadable = gather_dicts(accelerator, unreadable)
    bad, of = len(unreadable), len(found.index) + len(unreadable)
    refuse_too_many(bad, of, config.data, unreadable)
    names = gather_dicts(accelerator, names)
    metrics = found.metrics() if labelled else {}
    if accelerator.is_main_process:
        where = names.__getitem__ if isinstance(images, Stream) else images.where
        write_table(table_of(found, where, model.classes, config.reject_below), config.out, config.overwrite)
        if config.sheet:
            write_sheet(config, found, Parts(images), unreadable, model)
        print(summary(config, found, model.classes, metrics))
        if unreadable:
            print(unreadable_line(unreadable, of, config.data.path))
    result = {"images": len(found.index), "out": config.out}
    if config.reject_below:
        result |= {"rejected": int((found.confidence < config.reject_below).sum())}
    if labelled:
        result |= {"calibration_error": found.calibration_error()}
    return result | {f"eval/{name}": value for name, value in metrics.items()}


def open_predicted(data: Data, size: tuple[int, int]) -> Images | Stream:
    """The images to predict, with labels or without: the split --data.eval-split, else the only one, else test, else
    validation. WebDataset shards without labels are read in order."""
    if not is_unlabelled_stream(data.path, data.config):
        return open_measured(data, size, alone=True, unlabelled=True)
    split = measured_split(data, alone=True)[0]
    return open_whole(dataclasses.replace(data, split=split, eval_split=None), size)


def batches_of_shards(
    parts: Parts,
    vit: Backbone,
    config: Predict,
    accelerator: Accelerator,
    unreadable: dict[str, str],
    names: dict[int, str],
) -> Iterator[Batch]:
    """This process's batches of a stream, as an encoder takes them. An image's number, which orders the table, is made
    of its shard's and of its place in it; its name goes into `names`."""
    mine = list(range(parts.count))[accelerator.process_index :: accelerator.num_processes]
    places: Counter[int] = Counter()  # images of each shard until now
    for batch in parts.loader(mine, vit.img_size, config.batch_size, workers_of(config.data, accelerator)):
        if not batch.get("done"):
            note_unreadable(batch, config.data.on_error, unreadable)
        if "images" in batch:
            part, count = batch["part"], len(batch["images"])
            batch["index"] = (part << _PLACES) + places[part] + torch.arange(count)
            places[part] += count
            names.update(zip(batch["index"].tolist(), batch["names"], strict=True))
            yield batch


def has_its_classes(images: Images, model: Classifier, accelerator: Accelerator) -> bool:
    """Whether a set has labels that are the model's classes; warns if they are others."""
    names = images.label_names or []
    others = [name for name in names if class_name(name) not in set(map(class_name, model.classes))]
    if others and accelerator.is_main_process:
        warn(
            f"{listed(others)}: no class of the model is called so, and no accuracy is given; it knows "
            f"{listed(model.classes)}"
        )
    return bool(names) and not others


def table_of(
    found: Predictions, where: Callable[[int], str], classes: list[str], reject_below: float = 0
) -> dict[str, list[Any]]:
    """The columns: image (`where` names it by its number), label (if there are labels), class (None where it is less
    probable than `reject_below`), probability, class_2, probability_2 and so on."""
    columns: dict[str, list[Any]] = {"image": [where(int(index)) for index in found.index]}
    if found.labelled:
        columns["label"] = [classes[k] for k in found.label]
    for place, (best, probability) in enumerate(zip(found.best.T, found.probabilities.T, strict=True), start=1):
        end = f"_{place}" if place > 1 else ""
        columns |= {f"class{end}": [classes[k] for k in best], f"probability{end}": probability.tolist()}
    columns["class"] = [
        name if probability >= reject_below else None
        for name, probability in zip(columns["class"], columns["probability"], strict=True)
    ]
    return columns


def write_sheet(
    config: Predict, found: Predictions, parts: Parts, unreadable: dict[str, str], model: Classifier
) -> None:
    """Paint images from the least to the most confident prediction, with class, probability and, where it is another
    one, label in brackets; of many, some at even distances in this order."""
    order = np.argsort(found.confidence, kind="stable")
    order = order[np.linspace(0, len(order) - 1, min(len(order), _PAINTED)).round().astype(int)]
    captions = []
    for row in order:
        name = model.classes[found.predicted[row]] if found.confidence[row] >= config.reject_below else "?"
        other = found.labelled and found.label[row] != found.predicted[row]
        captions.append(
            f"{found.confidence[row]:.2f} {name}" + (f" ({model.classes[found.label[row]]})" if other else "")
        )
    scale = min(1.0, _SIDE / max(model.vit.img_size))
    size = (max(1, round(model.vit.img_size[0] * scale)), max(1, round(model.vit.img_size[1] * scale)))
    rows = sorted(order.tolist())
    pictures = dict(zip(rows, parts.pick(set(rows), unreadable, size), strict=True))
    with writing(Path(config.sheet or ""), AGAIN):
        sheet = paint_sheet([pictures[row] for row in order.tolist()], captions, columns=10, side=_SIDE)
        save_picture(sheet, Path(config.sheet or ""))


def summary(config: Predict, found: Predictions, classes: list[str], metrics: dict[str, float]) -> str:
    """What the command says last."""
    counts = Counter(classes[k] for k in found.predicted[found.confidence >= config.reject_below]).most_common()
    lines = [f"{config.out}: {len(found.index):,} images: {listed(f'{name} {count:,}' for name, count in counts)}"]
    sure = found.confidence >= config.reject_below
    if config.reject_below:
        lines.append(f"{(~sure).sum():,} of them without a class: less probable than {config.reject_below:g}")
    if metrics:
        told = told_interval(metrics["top1"], len(found.index))
        top5 = f", top 5 {metrics['top5']:.1%}" if len(classes) > 5 else ""
        lines.append(f"accuracy: top 1 {metrics['top1']:.1%} ({told}){top5}")
        if config.reject_below and sure.any():
            lines[-1] += f"; top 1 of those with a class {np.mean(found.rank[sure] < 1):.1%}"
        lines.append(f"expected calibration error of the probabilities: {found.calibration_error():.1%}")
    return "\n".join(lines)
