"""A set with few labels in memory, for semi-supervised learning: a few labelled images, many without, some held out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from einops import rearrange

from mpp.config.options import LabelledData
from mpp.data.images import Images, Subset
from mpp.data.loader import eval_loader, no_draws
from mpp.data.randomness import Purpose, generator
from mpp.data.splits import at_most, draw_labels, open_labelled
from mpp.errors import UserError


@dataclass(frozen=True)
class FewLabels:
    """Images (N, H, W, C) uint8 and class numbers (N,) of three parts that share no image."""

    classes: list[str]
    labelled: tuple[np.ndarray, np.ndarray]
    unlabelled: np.ndarray
    hidden: np.ndarray  # the labels of `unlabelled`, which no training sees: to say how good a guess of them is
    held_out: tuple[np.ndarray, np.ndarray]


def few_labels(
    path: str, label_column: str | None, size: int, labels: int, unlabelled: int, held_out: int, seed: int
) -> FewLabels:
    """Draw `labels` images with labels, balanced over the classes, and `unlabelled` others from the training split by
    the seed, and read them as a model of `size` pixels does. What is held out (`held_out` images of the evaluation
    split at most) is the same for every seed."""
    train, test = open_labelled(LabelledData(path=path, label_column=label_column), (size, size), seed)
    if labels + unlabelled > len(train):
        raise UserError(
            f"--labels {labels} and --unlabelled {unlabelled} are more than the {len(train):,} training images of "
            f"{path}; give fewer"
        )
    pool = Subset(train, generator(seed, Purpose.SPLIT, 7).permutation(len(train))[: labels + unlabelled])
    every = pool.labels(range(len(pool)))
    chosen = draw_labels(every, labels, seed)
    others = np.setdiff1d(np.arange(len(pool)), chosen)
    test = at_most(test, held_out)
    return FewLabels(
        train.label_names or [],
        (_pixels(Subset(pool, chosen), size), every[chosen]),
        _pixels(Subset(pool, others), size),
        every[others],
        (_pixels(test, size), test.labels(range(len(test)))),
    )


def _pixels(images: Images, size: int) -> np.ndarray:
    """All images as a model is given them, (N, H, W, C) uint8."""
    batches = [batch["images"] for batch in eval_loader(images, (size, size), no_draws, batch_size=256)]
    found = np.concatenate([rearrange(batch.numpy(), "b c h w -> b h w c") for batch in batches])
    if len(found) < len(images):
        raise UserError(f"{len(images) - len(found)} of {len(images):,} images cannot be read; `mpp doctor` names them")
    return found
