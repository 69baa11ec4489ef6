"""What commands that need labels have in common: the classes they name first, training, and the result."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
from accelerate import Accelerator

from mpp.config.commands import FineTune, Supervised
from mpp.config.options import Data
from mpp.config.own import is_own, own
from mpp.data.images import HeldOut, Images
from mpp.data.loader import Share, share_of
from mpp.data.sources.path import plain_folder
from mpp.errors import UserError, counted, listed, printable, warn
from mpp.evaluation.intervals import interval_of, told_interval
from mpp.methods.classify import Classifier, Classify, refuse_odd_pairs
from mpp.models.backbone import Backbone
from mpp.models.sizes import refuse_odd_classes
from mpp.run.folder import unreadable_line, write_folder
from mpp.training.job import Outcome
from mpp.training.loop import train

_FAR = 0.25  # training accuracy above held-out accuracy, from which on it is told


def tell_classes(data: Data, train: Images | None, test: Images, accelerator: Accelerator) -> None:
    """Print what is held out, the classes, and how many images each has to train on (without `train`: to be measured
    on). Warn if other folders could be meant, and of classes that are measured but not trained on."""
    if not accelerator.is_main_process:
        return
    names = test.label_names or []
    if isinstance(test, HeldOut):
        print(test.says)
    if data.path == "shapes":  # which has images of all
        print(f"classes: {listed(names)} ({len(names)})")
        return
    measured = images_by_class(test)
    trained = measured if train is None else images_by_class(train)
    print(f"classes: {listed(f'{name} {count}' for name, count in trained.items())} ({len(trained)})")
    folder = plain_folder(data.path) if data.class_level is None else None
    if folder and (choice := folder.classes().choice()):
        warn(choice)
    if missing := {name: count for name, count in measured.items() if name not in trained}:
        alike = {_bare(name): name for name in trained}
        twins = [f"{alike[_bare(name)]} for {name}" for name in missing if _bare(name) in alike]
        some = "1 class is measured but has" if len(missing) == 1 else f"{len(missing):,} classes are measured but have"
        counts = (f"{name} ({counted(count, 'image')})" for name, count in missing.items())
        under = f"; under another spelling there is {listed(twins)}: give a class one name" if twins else ""
        warn(f"{some} no training image, without which a class cannot be learnt: {listed(counts)}{under}")


def images_by_class(images: Images) -> dict[str, int]:
    """The number of images of each class that has any."""
    names = images.label_names or []
    counts = np.bincount(images.labels(range(len(images))), minlength=len(names))
    return {name: int(count) for name, count in zip(names, counts, strict=True) if count}


def _bare(name: str) -> str:
    """A class's name without case, spaces and marks: T-Shirt, t_shirt -> tshirt."""
    return re.sub(r"[\W_]+", "", normalize("NFKC", name).casefold()) or name


def classifier_job(
    config: Supervised | FineTune, vit: Backbone, head: str, images: Images, test: Images, accelerator: Accelerator
) -> tuple[Classify, Share]:
    """A fresh head on an encoder, to be trained together, and what this process computes of every batch."""
    share = share_of(config.train, accelerator)
    try:
        refuse_odd_classes(images.label_names)
    except ValueError as error:
        raise UserError(f"--data.path {config.data.path}: {error}") from error
    model = Classifier(vit, images.label_names or [], config.model.pool, head)
    refuse_odd_pairs(config.augment, share)
    return method_of(config)(model, images, test, config, accelerator), share


def method_of(config: Supervised | FineTune) -> type[Classify]:
    """What is trained on labels: `Classify`, or a method of a Python program."""
    name = config.method if isinstance(config, FineTune) else "classify"
    return own("--method", name) if is_own(name) else Classify


def train_classifier(
    config: Supervised | FineTune,
    vit: Backbone,
    head: str,
    images: Images,
    test: Images,
    output: Path,
    accelerator: Accelerator,
) -> tuple[Outcome, Classify]:
    """Put a fresh head on an encoder and train both."""
    job, share = classifier_job(config, vit, head, images, test, accelerator)
    return train(job, config, accelerator, share, output, headline="eval/top1"), job


def write_result(job: Classify, command: str, output: Path, outcome: Outcome) -> dict[str, Any]:
    """Export the encoder to `backbone/` and the whole model to `classifier/`; returns what result.json says."""
    model: Any = outcome.model
    write_folder(output / "backbone", model.vit.save_pretrained)
    write_folder(output / "classifier", model.save_pretrained)
    assert job.predictions is not None
    return outcome.metrics | {
        "command": command,
        "step": outcome.step,
        "images_seen": outcome.step * job.config.train.batch_size,
        "seconds": round(outcome.seconds, 1),
        "flops": outcome.flops,
        "labels": outcome.images,
        "classes": len(model.classes),
        "eval_images": (measured := len(job.predictions.index)),
        "eval/top1_interval": interval_of(outcome.metrics["eval/top1"], measured),
        "train_top1": job.train_top1,
        "per_class_top1": job.predictions.per_class(model.classes),
        "backbone_parameters": sum(p.numel() for p in model.vit.parameters()),
        "unreadable_images": outcome.unreadable,
    }


def closing_summary(result: dict[str, Any], path: str, output: Path, title: str, then: str = "") -> str:
    """What a run on labels says last."""
    accuracies = sorted(result["per_class_top1"].items(), key=lambda item: item[1])
    (worst, low), (best, high) = accuracies[0], accuracies[-1]
    images = result["eval_images"]
    lines = [
        f"\n{title}: accuracy on {counted(images, 'held-out image')} of {result['classes']} classes:",
        f"  top 1    {result['eval/top1']:6.1%}   ({told_interval(result['eval/top1'], images)}; chance "
        f"{1 / result['classes']:.1%})",
        *([f"  top 5    {result['eval/top5']:6.1%}"] if result["classes"] > 5 else []),
        f"best: {printable(best)} {high:.1%}, worst: {printable(worst)} {low:.1%}",
    ]
    if "temperature" in result:
        lines.append(
            f"probabilities: expected calibration error {result['calibration_error']:.1%}, before "
            f"{result['calibration_error_before']:.1%} (temperature {result['temperature']:g})"
        )
    if (learnt := result.get("train_top1") or 0.0) - result["eval/top1"] > _FAR:
        lines.append(
            f"training accuracy is {learnt:.1%}: the model knows its {result['labels']:,} labelled images by heart; "
            f"more labels, --augment.mixup 0.8 with --augment.randaugment 2, or fewer --train.steps can narrow the gap"
        )
    if unread := result["unreadable_images"]:
        lines.append(unreadable_line(unread, None, path))
    lines.append(f"Confusion matrix: {output / 'samples'}    all numbers: {output / 'result.json'}")
    return "\n".join([*lines, then] if then else lines)
