"""Training on labels: the `Job` of recipes/supervised.py and recipes/finetune.py, and what both do with its outcome."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mpp.augment import mixed, normalise
from mpp.config import FineTune, LabelledAugment, Supervised
from mpp.draws import Purpose, generator
from mpp.errors import UserError
from mpp.flops import flops_an_image
from mpp.images import Images
from mpp.labelled import at_most
from mpp.loader import Batch, Share, View, eval_loader, no_draws, train_loader
from mpp.loop import Outcome, readable
from mpp.machine import workers_of
from mpp.models import Classifier
from mpp.predictions import Predictions, draw_confusion, predict
from mpp.records import write_folder
from mpp.streams import Positions


class ClassifyJob:
    """Classification of one set of images, measured on held-out ones."""

    def __init__(
        self,
        model: Classifier,
        train: Images,
        test: Images,
        config: Supervised | FineTune,
        accelerator: Accelerator,
    ) -> None:
        self.model, self.config, self.accelerator = model, config, accelerator
        self.train_images, self.eval_images = train, at_most(test, config.eval.images)
        self.unreadable: dict[str, str] = {}
        self.predictions: Predictions | None = None  # of the last evaluation
        a = config.augment
        self.view = View(model.vit.img_size, a.crop, a.pad, a.scale, a.flip, a.randaugment)

    def batches(self, share: Share, start: int, positions: Positions) -> DataLoader:
        return train_loader(
            self.train_images,
            self.view,
            no_draws,
            seed=self.config.seed,
            share=share,
            start=start,
            steps=self.config.train.steps,
            workers=workers_of(self.config.data, self.accelerator),
            labels=True,
            pin_memory=self.accelerator.device.type == "cuda",
        )

    def flops_an_image(self) -> int:
        return flops_an_image(self.model)

    def epoch(self, step: int, positions: Positions) -> float:
        return step * self.config.train.batch_size / len(self.train_images)

    def where(self, index: int) -> str:
        return self.train_images.where(index)

    def training_step(self, model: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        images = normalise(batch["images"])
        weights = F.one_hot(batch["labels"], len(self.model.classes)).float()  # (B, classes)
        augment = self.config.augment
        if augment.mixup or augment.cutmix:
            rng = generator(self.config.seed, Purpose.MIX, step)
            images, weights = mixed(images, weights, augment.mixup, augment.cutmix, rng)
        scores = model(images)
        loss = F.cross_entropy(scores, weights, label_smoothing=self.config.train.label_smoothing)
        with torch.no_grad():
            top1 = weights.gather(1, scores.argmax(-1, keepdim=True)).mean()  # the weight of the class predicted
        return loss, {"top1": top1}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        self.predictions = predict_set(
            cast(Classifier, model), self.eval_images, self.config, self.accelerator, self.unreadable
        )
        return self.predictions.metrics()

    def pictures(self, model: nn.Module) -> dict[str, Tensor]:
        return draw_confusion(self.predictions, self.model.classes) if self.predictions else {}


def refuse_odd_pairs(augment: LabelledAugment, share: Share) -> None:
    """Raise UserError if pairs of images are to be mixed and a process has an odd number at a time."""
    count = len(share.places(0))
    if (augment.mixup or augment.cutmix) and count % 2:
        raise UserError(
            f"--augment.mixup and --augment.cutmix mix pairs of images, but a process has {count} at a time; make "
            f"--train.batch-size an even multiple of processes x --train.accumulate"
        )


def predict_set(
    model: Classifier, images: Images, config: Any, accelerator: Accelerator, unreadable: dict[str, str]
) -> Predictions:
    """What a `Classifier` says of a labelled set, whose classes are among the model's, in whatever order."""
    names, number_of = images.label_names or [], {name: number for number, name in enumerate(model.classes)}
    if unknown := [name for name in names if name not in number_of]:
        raise UserError(
            f"--data.path {config.data.path} has classes that the model does not know ({', '.join(unknown[:5])}); "
            f"it knows: {', '.join(model.classes[:10])}{', ...' if len(model.classes) > 10 else ''}"
        )
    loader = eval_loader(
        images,
        model.vit.img_size,
        no_draws,
        batch_size=config.eval.batch_size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        workers=workers_of(config.data, accelerator),
        labels=True,
        pin_memory=accelerator.device.type == "cuda",
    )
    relabel = torch.tensor([number_of[name] for name in names])
    batches = readable(loader, config.data.on_error, unreadable)
    return predict(model, batches, relabel, accelerator, len(images))


def write_result(job: ClassifyJob, command: str, output: Path, outcome: Outcome) -> dict[str, Any]:
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
        "labels": len(job.train_images),
        "classes": len(model.classes),
        "eval_images": len(job.predictions.index),
        "per_class_top1": job.predictions.per_class(model.classes),
        "backbone_parameters": sum(p.numel() for p in model.vit.parameters()),
        "unreadable_images": outcome.unreadable,
    }


def closing_summary(result: dict[str, Any], output: Path, title: str, then: str = "") -> str:
    """What a run on labels says last."""
    accuracies = sorted(result["per_class_top1"].items(), key=lambda item: item[1])
    (worst, low), (best, high) = accuracies[0], accuracies[-1]
    lines = [
        f"\n{title}: of {result['eval_images']:,} held-out images of {result['classes']} classes are told right",
        f"  the class               {result['eval/top1']:6.1%}   (chance {1 / result['classes']:.1%})",
        f"  among the first five    {result['eval/top5']:6.1%}",
        f"best: {best} {high:.1%}, worst: {worst} {low:.1%}",
    ]
    if unread := result["unreadable_images"]:
        where, why = next(iter(unread.items()))
        lines.append(f"{len(unread):,} images could not be read and were left out, the first: {where} ({why})")
    lines.append(f"Confusion matrix: {output / 'samples'}    all numbers: {output / 'result.json'}")
    return "\n".join([*lines, then] if then else lines)
