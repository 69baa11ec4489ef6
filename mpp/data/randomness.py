"""Random numbers as functions of (seed, purpose, step, place): the same on any number of processes and workers."""

from __future__ import annotations

from dataclasses import dataclass
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


class Use(IntEnum):
    """What a sample's numbers decide; numbers of different uses are independent."""

    CUT = 1  # the box of crop "resized", RandAugment
    MOVE = 2  # shift and flip
    PATCHES = 3  # which patches are corrupted
    FATES = 4  # how each of these patches is corrupted


@dataclass(frozen=True)
class Numbers:
    """The random numbers of the samples at `places` of the global batch of `step`.

    A sample's numbers do not depend on the batch it is read in. Philox is counter-based: one call makes all numbers of
    a process's share, starting at its first place, without a loop over samples and without state to save.
    """

    seed: int
    purpose: Purpose
    step: int
    places: range

    def uniform(self, use: Use, count: int) -> np.ndarray:
        """Numbers in 0..1, `count` per sample: (B, count) float64."""
        blocks = -(-count // 4)  # Philox makes four numbers per counter value
        bits = np.random.Philox(key=[self.seed, self.purpose], counter=[self.places.start * blocks, 0, self.step, use])
        return np.random.Generator(bits).random((len(self.places), 4 * blocks))[:, :count]

    def generator(self, use: Use, number: int) -> np.random.Generator:
        """A generator for sample `number` of these, which may draw any count of numbers."""
        counter = [0, 1 + self.places[number], self.step, use]
        return np.random.Generator(np.random.Philox(key=[self.seed, self.purpose], counter=counter))


def generator(seed: int, purpose: Purpose, step: int = 0, place: int = 0) -> np.random.Generator:
    """An independent generator for each (`step`, `place`), which can number epochs, scenes or draws of labels."""
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=[0, place, step, 0]))
