"""S4L-Rotation (Zhai et al., arXiv 1905.03670), small: `python recipes/s4l.py [--data PATH]`.

One model learns classes from 32 labelled images a step and, by a second head, how far --turned of all images are turned
(in the paper also the labelled 32). "scratch" has the labels alone, "scratch, longer" as much arithmetic as S4L.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import mpp
from mpp.comparison.beside import BATCH, OneSeed, fine_tuning, of_few_labels, over_seeds, top1_of
from mpp.console import run_file
from mpp.data.augment import normalise
from mpp.data.few_labels import FewLabels
from mpp.data.loader import Batch
from mpp.data.randomness import Purpose, generator
from mpp.methods.classify import Classifier, Classify
from mpp.models.backbone import pool_tokens
from mpp.run.folder import read_metrics


class TwoHeads(nn.Module):
    """A classifier with a second head: images (B, C, H, W) -> scores of classes and of four rotations (B, K + 4)."""

    vit = property(lambda self: self.classifier.vit)

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier, self.rotation = classifier, nn.Linear(classifier.vit.embed_dim, 4)
        self.classes, self.save_pretrained = classifier.classes, classifier.save_pretrained

    def forward(self, images: Tensor) -> Tensor:
        features = pool_tokens(self.vit(images), self.classifier.pool)  # (B, D)
        return torch.cat([self.classifier.head(features), self.rotation(features)], dim=-1)


class S4L(Classify):
    """The joint loss as a method: what `mpp.finetune(method=S4L)` trains."""

    images: Tensor  # all that may be turned, uint8 (N, C, H, W)
    turned: int  # how many of them a step turns

    def __init__(self, model: Classifier, *others: Any) -> None:
        super().__init__(model, *others)
        self.model: Any = TwoHeads(model)

    def training_step(self, model: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        upright, labels = batch["images"], batch["labels"]
        rng = generator(self.config.seed, Purpose.MIX, step, self.accelerator.process_index)
        some = self.images[rng.integers(len(self.images), size=self.turned)].to(upright.device)
        every = torch.cat([torch.rot90(some, turns, (-2, -1)) for turns in range(4)])  # (4 R, C, H, W)
        angles = torch.arange(4, device=upright.device).repeat_interleave(self.turned)
        scores = model(normalise(torch.cat([upright, every])))
        of_classes, of_angles = scores[: len(upright), :-4], scores[len(upright) :, -4:]
        right = {"top1": of_classes.argmax(-1) == labels, "rotation": of_angles.argmax(-1) == angles}
        shares = {name: each.float().mean() for name, each in right.items()}
        self.learnt.append(shares["top1"])
        return cross_entropy(of_classes, labels) + cross_entropy(of_angles, angles), shares

    def flops_an_image(self) -> int:
        return round(super().flops_an_image() * (1 + 4 * self.turned / BATCH))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return super().evaluate(model.classifier)  # type: ignore[arg-type]


def main(args: list[str] | None = None) -> None:
    """Train every arm for every seed, and compare them on the same held-out images."""
    parser = of_few_labels(__doc__, steps=150, output="runs/s4l")
    parser.add_argument("--turned", type=int, default=16, help="images a step that are turned, each in four ways")
    given = parser.parse_args(args)
    over_seeds(given, "S4L-Rotation", one_seed, 3 + 8 * given.turned / BATCH, mpp.finetune)


def one_seed(given: argparse.Namespace, images: FewLabels, seed: int) -> OneSeed:
    """Held-out accuracy of every arm, and how many rotations are told."""
    every = torch.from_numpy(np.concatenate([images.labelled[0], images.unlabelled]))
    S4L.images, S4L.turned = rearrange(every, "n h w c -> n c h w"), given.turned
    data = mpp.from_memory({"train": images.labelled, "test": images.held_out}, label_names=images.classes)
    folder, longer = given.output / f"seed-{seed}", round(given.steps * (1 + 4 * given.turned / BATCH))

    top1, n = dict[str, float](), given.steps
    for arm, steps, method in (("scratch", n, {}), ("scratch, longer", longer, {}), ("S4L", n, {"method": S4L})):
        options = fine_tuning(given, seed, steps) | method | {"data": data}
        top1[arm] = top1_of(folder / arm.replace(", ", "-"), mpp.finetune, **options)
    told = np.mean([line["train/rotation"] for line in read_metrics(folder / "S4L")[-5:]])
    return top1, f"S4L tells {told:.1%} of the training images' rotations, where chance is 25 %"


if __name__ == "__main__":
    run_file(__file__, main)
