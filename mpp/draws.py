"""Random numbers as functions of (seed, purpose, step, place): alike on any number of processes and workers."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a stream of random numbers is for; streams of different purposes are independent."""

    ORDER = 0  # the order of samples in an epoch
    TRAIN = 1  # augmentation and corruption of a training sample
    EVAL = 2  # corruption of an evaluation sample
    SHAPES = 3  # a scene of the built-in images
    SPLIT = 4  # which images are held out, which labels are kept
    MIX = 5  # how a batch of labelled images is mixed


def generator(seed: int, purpose: Purpose, step: int = 0, place: int = 0) -> np.random.Generator:
    """A generator of its own for one sample: `place` in the global batch of `step` (or image, or epoch).

    Philox is counter-based, so a generator costs about 15 microseconds and no state has to be kept or saved.
    """
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=[0, place, step, 0]))
