"""Turn a set of images into batches of uint8 tensors: order, decoding, and the random draws of each sample.

A batch is a dict of tensors over its samples. The `draws` of a job (its corruption) are made here too, by the workers,
so that the device does not wait for them. They depend only on (seed, step, place in the global batch): batches are the
same on any number of processes, workers and accumulation steps, and after a resume from any step.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset

from mpp.config.options import Train
from mpp.data.augment import View
from mpp.data.decode import Unreadable
from mpp.data.images import Images, bands_of
from mpp.data.randomness import Numbers, Purpose, generator
from mpp.errors import UserError

Batch = dict[str, Any]


Draws = Callable[[Numbers], dict[str, torch.Tensor]]


StandIn = Callable[[int, Unreadable], int | None]  # the image that is read for one that cannot be, and why; None: none


_OPEN_AT_ONCE = 32  # images: more reach the limit on open files, and all stay in memory decoded


@dataclass(frozen=True)
class Share:
    """The part of every global batch that one process computes, in `accumulate` micro-batches."""

    batch_size: int  # global
    rank: int = 0
    world_size: int = 1
    accumulate: int = 1

    def places(self, micro: int) -> range:
        """Places in the global batch of this process's micro-batch number `micro`."""
        size = self.batch_size // (self.world_size * self.accumulate)
        start = (self.rank * self.accumulate + micro) * size
        return range(start, start + size)


@dataclass(frozen=True)
class Samples:
    """The images to read: `indices` (B,) of a set, for `places` of the global batch of `step`."""

    indices: np.ndarray
    step: int
    places: range

    def __len__(self) -> int:
        return len(self.places)


def read_batch(
    images: Images,
    samples: Samples,
    view: View,
    draws: Draws,
    seed: int,
    purpose: Purpose,
    *,
    stand_in: StandIn | None = None,
    labels: bool = False,
) -> Batch:
    """Read samples into a batch.

    batch["unreadable"] names unreadable images. `stand_in` says which image replaces each, and so on until one is
    readable. Without `stand_in`, they are left out.
    """
    numbers = Numbers(seed, purpose, samples.step, samples.places)
    indices, kept = samples.indices, list(range(len(samples)))  # in the set; in `samples`
    unreadable: dict[str, str] = {}
    arrays: np.ndarray | list[np.ndarray]
    if view.takes_whole(images):
        arrays = bands_of(images).pixels(cast(Any, images).arrays(indices))
    else:
        arrays, indices, kept, unreadable = _cut(images, samples, view, numbers, stand_in)
    batch: Batch = {"unreadable": unreadable, "index": torch.from_numpy(indices)}
    if not len(arrays) or (stand_in and len(arrays) < len(samples)):
        return batch  # nothing to train on; the caller sees why in "unreadable"
    batch["images"] = torch.from_numpy(view.move(np.asarray(arrays), numbers, kept))
    if labels:
        batch["labels"] = torch.from_numpy(images.labels(indices.tolist()))
    return batch | {name: value[kept] for name, value in draws(numbers).items()}


def _cut(
    images: Images, samples: Samples, view: View, numbers: Numbers, stand_in: StandIn | None
) -> tuple[list[np.ndarray], np.ndarray, list[int], dict[str, str]]:
    """Read and crop samples one by one: pixels, indices and numbers of the readable, and where -> why of the others."""
    wanted, bands = samples.indices.tolist(), bands_of(images)
    chunks = (wanted[i : i + _OPEN_AT_ONCE] for i in range(0, len(wanted), _OPEN_AT_ONCE))
    opened = (image for chunk in chunks for image in images.read(chunk))
    arrays: list[np.ndarray] = []
    indices: list[int] = []
    kept: list[int] = []
    unreadable: dict[str, str] = {}
    for number, (first, image) in enumerate(zip(wanted, opened, strict=True)):
        index = first
        while True:
            try:
                if isinstance(image, Unreadable):
                    raise image
                arrays.append(view.cut(image, bands, numbers, number))
                indices.append(index)
                kept.append(number)
                break
            except Unreadable as error:
                unreadable[images.where(index)] = str(error)
                if stand_in is None:
                    break
                if (other := stand_in(index, error)) in (None, first):  # there is none
                    return arrays, np.array(indices, dtype=np.int64), kept, unreadable
                index = other
                image = images.read([index])[0]
    return arrays, np.array(indices, dtype=np.int64), kept, unreadable


class SampleReader(Dataset):
    """Turns `Samples` of one set into batches, in the worker processes. With `replace`, the next readable image
    replaces an unreadable one."""

    def __init__(
        self, images: Images, view: View, draws: Draws, seed: int, purpose: Purpose, labels: bool, replace: bool
    ) -> None:
        self.images, self.view, self.draws = images, view, draws
        self.seed, self.purpose, self.labels, self.replace = seed, purpose, labels, replace

    def __getitems__(self, samples: Samples) -> Batch:
        stand_in = (lambda index, error: (index + 1) % len(self.images)) if self.replace else None
        return read_batch(
            self.images,
            samples,
            self.view,
            self.draws,
            self.seed,
            self.purpose,
            stand_in=stand_in,
            labels=self.labels,
        )


class TrainOrder:
    """Micro-batches of samples for one process, from step `start` on. Each epoch is a new permutation, without gaps."""

    def __init__(self, num_images: int, seed: int, share: Share, start: int, steps: int) -> None:
        self.num_images, self.seed, self.share = num_images, seed, share
        self.start, self.steps = start, steps

    def __len__(self) -> int:
        return (self.steps - self.start) * self.share.accumulate

    def __iter__(self) -> Iterator[Samples]:
        orders: dict[int, np.ndarray] = {}
        for step in range(self.start, self.steps):
            for micro in range(self.share.accumulate):
                places = self.share.places(micro)
                epochs, positions = np.divmod(step * self.share.batch_size + np.asarray(places), self.num_images)
                present = range(int(epochs[0]), int(epochs[-1]) + 1)  # a batch may span epochs
                orders = {epoch: self._order(epoch) if epoch not in orders else orders[epoch] for epoch in present}
                parts = [orders[epoch][positions[epochs == epoch]] for epoch in present]
                yield Samples(np.concatenate(parts), step, places)

    def _order(self, epoch: int) -> np.ndarray:
        return generator(self.seed, Purpose.ORDER, epoch).permutation(self.num_images)


def train_loader(
    images: Images,
    view: View,
    draws: Draws,
    *,
    seed: int,
    share: Share,
    start: int,
    steps: int,
    workers: int,
    labels: bool = False,
    pin_memory: bool = False,
) -> DataLoader:
    """Training batches: one for each micro-batch of this process, from step `start` to `steps`."""
    return DataLoader(
        SampleReader(images, view, draws, seed, Purpose.TRAIN, labels, replace=True),
        batch_sampler=cast(Any, TrainOrder(len(images), seed, share, start, steps)),
        collate_fn=as_it_is,
        num_workers=workers,
        worker_init_fn=leave_signals,
        pin_memory=pin_memory,
    )


def eval_loader(
    images: Images,
    size: tuple[int, int],
    draws: Draws,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    labels: bool = False,
    pin_memory: bool = False,
) -> DataLoader:
    """Read every image once, in batches that go to the processes in turn. Draws do not depend on a run's seed, so all
    runs are measured on the same task. Batches, and so results, do not depend on the number of processes."""
    starts = range(0, len(images), batch_size)
    places = [range(start, min(start + batch_size, len(images))) for start in starts]
    batches: list[Any] = [Samples(np.asarray(part), 0, part) for part in places]
    return DataLoader(
        SampleReader(images, View(size), draws, 0, Purpose.EVAL, labels, replace=False),
        batch_sampler=batches[rank::world_size],
        collate_fn=as_it_is,
        num_workers=workers,
        worker_init_fn=leave_signals,
        pin_memory=pin_memory,
    )


def no_draws(numbers: Numbers) -> dict[str, torch.Tensor]:
    """The draws of a job that needs only those of the view."""
    return {}


def as_it_is(batch: Any) -> Any:
    """Return a batch as it is: reading it has collated it."""
    return batch


def leave_signals(worker: int) -> None:
    """Ignore stop signals in a worker process: they reach the whole group, and the training process handles them."""
    for number in (signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGUSR1", signal.SIGTERM)):
        signal.signal(number, signal.SIG_IGN)


def share_of(train: Train, accelerator: Accelerator) -> Share:
    """The part of every batch that this process computes. Raises UserError if a batch does not divide."""
    parts = accelerator.num_processes * train.accumulate
    if train.batch_size % parts:
        raise UserError(
            f"--train.batch-size {train.batch_size} does not divide into {accelerator.num_processes} processes x "
            f"--train.accumulate {train.accumulate}; {train.batch_size // parts * parts or parts} does"
        )
    return Share(train.batch_size, accelerator.process_index, accelerator.num_processes, train.accumulate)
