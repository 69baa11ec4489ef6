"""How long a run trains: steps, or epochs of its images, or what fits the number of its labels."""

from __future__ import annotations

import dataclasses
import math
from typing import TypeVar

from mpp.config.bounds import LARGEST
from mpp.config.options import Optim, Train
from mpp.errors import UserError, counted, is_first_process, warn

SomeTrain = TypeVar("SomeTrain", bound=Train)
EPOCHS, FEWEST, MOST, EPOCHS_OF_MANY = 60, 200, 2000, 5  # of fine-tuning: passes, steps, steps, passes
SMALLEST_BATCH, LARGEST_BATCH, STEPS_AN_EPOCH = 16, 128, 8


def timed(train: SomeTrain, images: int | None, optim: Optim) -> SomeTrain:
    """The options of a training on so many images (None: unknown), with the steps and the batch that they leave open.

    Warns if the learning rate does not reach its peak in these steps.
    """
    if train.epochs is None and train.steps and train.batch_size:
        return train
    if images is None:
        raise UserError(
            f"--train.epochs {train.epochs:g} counts images, and how many shards hold is known only after reading "
            f"them; give --train.steps"
        )
    batch = train.batch_size or batch_for(images)
    steps = train.steps or steps_for(images, batch)
    if train.epochs is not None:
        steps = math.ceil(round(train.epochs * images / batch, 6))
        if steps > LARGEST:
            raise UserError(f"--train.epochs {train.epochs:g} are {steps:,} steps, and {LARGEST:,} are the most")
    elif is_first_process():
        print(
            f"the {images:,} labels give {steps:,} steps of {batch} images; --train.epochs, --train.steps and "
            f"--train.batch-size choose others"
        )
    found = dataclasses.replace(train, steps=steps, batch_size=batch, epochs=None)
    warn_of_long_warmup(optim, found)
    return found


def batch_for(labels: int) -> int:
    """The images a step of a fine-tuning: a power of two, so that an epoch has 8 steps or more, from 16 to 128."""
    fits = 1 << max(1, labels // STEPS_AN_EPOCH).bit_length() - 1
    return min(max(fits, SMALLEST_BATCH), LARGEST_BATCH)


def steps_for(labels: int, batch: int) -> int:
    """The steps of a fine-tuning: 60 epochs, but from 200 to 2,000 steps; 5 epochs where those are more."""
    epoch = labels / batch
    return max(min(max(math.ceil(EPOCHS * epoch), FEWEST), MOST), math.ceil(EPOCHS_OF_MANY * epoch))


def told(train: Train, images: int | None) -> str:
    """Steps, batch and, of a set whose images are counted, epochs."""
    steps = f"{counted(train.steps, 'step')} of {train.batch_size:,} images"
    if not images:
        return steps
    epochs = train.steps * train.batch_size / images
    return f"{steps}: {epochs:,.{1 if epochs >= 0.95 else 2}f} epochs of {images:,}"


def warn_of_long_warmup(optim: Optim, train: Train, of: str = "") -> None:
    """Warn, once for all processes, if training ends before the learning rate has risen to its peak."""
    warmup, steps = optim.warmup_steps, train.steps
    if train.epochs is None and 0 < steps <= warmup and is_first_process():
        warn(
            f"--{of}optim.warmup-steps {warmup} is not below --{of}train.steps {steps}: the learning rate rises to "
            f"{optim.lr * steps / warmup:.2g} of --{of}optim.lr {optim.lr:g} and never falls; give fewer warm-up steps"
        )


def refuse_epochs(train: Train, of: str = "") -> None:
    """Raise UserError if a training of a comparison, which plans and counts ahead in steps, is given in epochs."""
    if train.epochs is not None:
        raise UserError(f"--{of}train.epochs {train.epochs:g}: a comparison plans in --{of}train.steps; give those")
