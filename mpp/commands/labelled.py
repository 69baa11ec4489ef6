"""What training on labels has in common: supervised pretraining and fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import Accelerator

from mpp.config.commands import FineTune, Supervised
from mpp.data.images import Images
from mpp.data.loader import share_of
from mpp.errors import UserError, printable
from mpp.methods.classify import Classifier, Classify, refuse_odd_pairs
from mpp.models.sizes import refuse_odd_classes
from mpp.models.vit import ViT
from mpp.run.folder import unreadable_line, write_folder
from mpp.training.job import Outcome
from mpp.training.loop import train


def train_classifier(
    config: Supervised | FineTune,
    vit: ViT,
    head: str,
    images: Images,
    test: Images,
    output: Path,
    accelerator: Accelerator,
) -> tuple[Outcome, Classify]:
    """Put a fresh head on an encoder and train both."""
    share = share_of(config.train, accelerator)
    try:
        refuse_odd_classes(images.label_names)
    except ValueError as error:
        raise UserError(f"--data.path {config.data.path}: {error}") from error
    model = Classifier(vit, images.label_names or [], config.model.pool, head)
    refuse_odd_pairs(config.augment, share)
    job = Classify(model, images, test, config, accelerator)
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
        "labels": outcome.images,
        "classes": len(model.classes),
        "eval_images": len(job.predictions.index),
        "per_class_top1": job.predictions.per_class(model.classes),
        "backbone_parameters": sum(p.numel() for p in model.vit.parameters()),
        "unreadable_images": outcome.unreadable,
    }


def closing_summary(result: dict[str, Any], path: str, output: Path, title: str, then: str = "") -> str:
    """What a run on labels says last."""
    accuracies = sorted(result["per_class_top1"].items(), key=lambda item: item[1])
    (worst, low), (best, high) = accuracies[0], accuracies[-1]
    lines = [
        f"\n{title}: accuracy on {result['eval_images']:,} held-out images of {result['classes']} classes:",
        f"  top 1    {result['eval/top1']:6.1%}   (chance {1 / result['classes']:.1%})",
        f"  top 5    {result['eval/top5']:6.1%}",
        f"best: {printable(best)} {high:.1%}, worst: {printable(worst)} {low:.1%}",
    ]
    if unread := result["unreadable_images"]:
        lines.append(unreadable_line(unread, None, path))
    lines.append(f"Confusion matrix: {output / 'samples'}    all numbers: {output / 'result.json'}")
    return "\n".join([*lines, then] if then else lines)
