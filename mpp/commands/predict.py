"""The command `predict`: what a fine-tuned model says of images, with labels or without, as a table."""

from __future__ import annotations

from collections import Counter
from typing import Any

from accelerate import Accelerator

from mpp.commands.downstream import as_taken_by
from mpp.config.commands import Predict
from mpp.data.images import Images
from mpp.data.sources.classes import class_name
from mpp.data.splits import open_measured
from mpp.errors import listed, renamed, warn
from mpp.evaluation.predictions import Predictions, refuse_unwritable, write_table
from mpp.methods.classify import Classifier, load_classifier, predict_set
from mpp.run.folder import unreadable_line
from mpp.run.machine import gather_dicts


def run_predict(config: Predict, accelerator: Accelerator) -> dict[str, Any]:
    """Predict every image of a set and write the table; returns how many there are, and the accuracy if it is known."""
    with renamed("--export-predictions", "--out", [config.out]):
        refuse_unwritable(config.out, config.overwrite, accelerator)
    model = load_classifier(config.init)
    model.to(accelerator.device).eval()
    with accelerator.main_process_first(), as_taken_by(model.vit, config.init, config.data, fitted=False) as data:
        images = open_measured(data, model.vit.img_size, alone=True, unlabelled=True)
    labelled = has_its_classes(images, model, accelerator)
    unreadable: dict[str, str] = {}
    top = min(config.top, len(model.classes))
    found = predict_set(model, images, config.data, config.batch_size, accelerator, unreadable, labelled, top)
    unreadable = gather_dicts(accelerator, unreadable)
    metrics = found.metrics() if labelled else {}
    if accelerator.is_main_process:
        write_table(table_of(found, images, model.classes), config.out, config.overwrite)
        print(summary(config, found, model.classes, metrics))
        if unreadable:
            print(unreadable_line(unreadable, len(images), config.data.path))
    return {"images": len(found.index), "out": config.out} | {f"eval/{name}": value for name, value in metrics.items()}


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


def table_of(found: Predictions, images: Images, classes: list[str]) -> dict[str, list[Any]]:
    """The columns: image, label (if there are labels), class, probability, class_2, probability_2 and so on."""
    columns: dict[str, list[Any]] = {"image": [images.where(int(index)) for index in found.index]}
    if found.labelled:
        columns["label"] = [classes[k] for k in found.label]
    for place, (best, probability) in enumerate(zip(found.best.T, found.probabilities.T, strict=True), start=1):
        end = f"_{place}" if place > 1 else ""
        columns |= {f"class{end}": [classes[k] for k in best], f"probability{end}": probability.tolist()}
    return columns


def summary(config: Predict, found: Predictions, classes: list[str], metrics: dict[str, float]) -> str:
    """What the command says last."""
    counts = Counter(classes[k] for k in found.best[:, 0]).most_common()
    lines = [f"{config.out}: {len(found.index):,} images: {listed(f'{name} {count:,}' for name, count in counts)}"]
    if metrics:
        lines.append(f"accuracy: top 1 {metrics['top1']:.1%}, top 5 {metrics['top5']:.1%}")
    return "\n".join(lines)
