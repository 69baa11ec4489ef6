"""From a set of images to batches of uint8 tensors: order, decoding, and the draws that belong to each sample.

A batch is a dict of tensors over its samples; `draws` of a job (its corruption) are made here too, beside the decoding
and off the device's path. What a sample gets depends on (seed, step, place in the global batch) alone, so the batches
are the same on any number of processes, workers and accumulation steps, and from any step on.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from einops import rearrange
from torch.utils.data import DataLoader, Dataset

from mpp.augment import Crop, centred_box, randaugmented, random_resized_box, shift_and_flip
from mpp.decode import Unreadable, pixels, size_as_seen
from mpp.draws import Numbers, Purpose, Use, generator
from mpp.images import Images

Batch = dict[str, Any]
Draws = Callable[[Numbers], dict[str, torch.Tensor]]
_MAX_SKIPS_IN_A_ROW = 1000
_OPEN_AT_ONCE = 32  # images: more run into the limit on open files, and hold as many decoded


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
class View:
    """How samples are cropped, to `size` (H, W), and otherwise changed (not at all for evaluation)."""

    size: tuple[int, int]
    crop: Crop = "none"
    pad: int = 0
    scale: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.0
    randaugment: int = 0

    def cut(self, image: Any, numbers: Numbers, number: int) -> np.ndarray:
        """Decode the image of sample `number` into (H, W, 3) uint8. Raises Unreadable."""
        height, width = size_as_seen(image)
        aspect = self.size[1] / self.size[0]
        box = centred_box(height, width, aspect)
        if not self.is_drawn:
            return pixels(image, self.size, box)
        rng = numbers.generator(Use.CUT, number)
        if self.crop == "resized":
            box = random_resized_box(rng, height, width, aspect, self.scale)
        array = pixels(image, self.size, box)
        return randaugmented(array, self.randaugment, rng) if self.randaugment else array

    @property
    def is_drawn(self) -> bool:
        """Whether `cut` leaves something to chance."""
        return self.crop == "resized" or self.randaugment > 0

    def takes_whole(self, images: Any) -> bool:
        """Whether images need nothing from `cut`: packed ones of the size that is wanted."""
        return not self.is_drawn and getattr(images, "packed_size", None) == self.size

    def move(self, images: np.ndarray, numbers: Numbers, kept: Sequence[int]) -> np.ndarray:
        """Shift and flip the images (B, H, W, 3) of the samples `kept` -> (B, 3, H, W)."""
        pad = self.pad if self.crop == "pad" else 0
        if not pad and not self.flip:
            return np.ascontiguousarray(rearrange(images, "b h w c -> b c h w"))
        u = numbers.uniform(Use.MOVE, 3)[kept]
        return shift_and_flip(images, (u[:, :2] * (2 * pad + 1)).astype(np.int64) - pad, u[:, 2] < self.flip)


@dataclass(frozen=True)
class Samples:
    """What to read: the images `indices` (B,) of a set, for `places` of the global batch of `step`."""

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
    stand_in: Callable[[int], int] | None = None,
    labels: bool = False,
) -> Batch:
    """Read samples into a batch.

    The unreadable are named in batch["unreadable"]. In their place the image of index `stand_in(index)` is read, and so
    on; with no `stand_in` they are left out.
    """
    numbers = Numbers(seed, purpose, samples.step, samples.places)
    indices, kept = samples.indices, list(range(len(samples)))  # of the set; among the samples
    unreadable: dict[str, str] = {}
    if view.takes_whole(images):
        arrays = cast(Any, images).arrays(indices)
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
    images: Images, samples: Samples, view: View, numbers: Numbers, stand_in: Callable[[int], int] | None
) -> tuple[list[np.ndarray], np.ndarray, list[int], dict[str, str]]:
    """Read and cut samples one by one: pixels and indices of the readable, which they are, and why others are not."""
    wanted = samples.indices.tolist()
    chunks = (wanted[i : i + _OPEN_AT_ONCE] for i in range(0, len(wanted), _OPEN_AT_ONCE))
    opened = (image for chunk in chunks for image in images.read(chunk))
    arrays: list[np.ndarray] = []
    indices: list[int] = []
    kept: list[int] = []
    unreadable: dict[str, str] = {}
    for number, (index, image) in enumerate(zip(wanted, opened, strict=True)):
        for _ in range(_MAX_SKIPS_IN_A_ROW):
            try:
                if isinstance(image, Unreadable):
                    raise image
                arrays.append(view.cut(image, numbers, number))
                indices.append(index)
                kept.append(number)
                break
            except Unreadable as error:
                unreadable[images.where(index)] = str(error)
                if stand_in is None:
                    break
                index = stand_in(index)
                image = images.read([index])[0]
    return arrays, np.array(indices, dtype=np.int64), kept, unreadable


class SampleReader(Dataset):
    """Turns `Samples` of one set into batches, in the worker processes; with `replace`, the next readable image
    stands in for an unreadable one."""

    def __init__(
        self, images: Images, view: View, draws: Draws, seed: int, purpose: Purpose, labels: bool, replace: bool
    ) -> None:
        self.images, self.view, self.draws = images, view, draws
        self.seed, self.purpose, self.labels, self.replace = seed, purpose, labels, replace

    def __getitems__(self, samples: Samples) -> Batch:
        stand_in = (lambda index: (index + 1) % len(self.images)) if self.replace else None
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
    """Micro-batches of samples for one process, from `start` on: epochs of a fresh permutation each, end to end."""

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
                present = range(int(epochs[0]), int(epochs[-1]) + 1)  # a batch may end an epoch and begin the next
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
    """Batches of training, one for each micro-batch of this process from step `start` to `steps`."""
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
    """Every image once, in batches dealt out to the processes in turn. Draws do not depend on a run's seed, so that all
    runs are measured on the same task; batches do not depend on the number of processes, so that results do not."""
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
    """The draws of a job that needs none beside the view's."""
    return {}


class Subset:
    """Some images of a set, by index."""

    def __init__(self, images: Images, indices: np.ndarray) -> None:
        self.images, self.indices = images, indices

    @property
    def label_names(self) -> list[str] | None:
        return self.images.label_names

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, indices: Sequence[int]) -> Sequence[Any]:
        return self.images.read(self.indices[np.asarray(indices)].tolist())

    @property
    def packed_size(self) -> tuple[int, int] | None:
        """(H, W) of all images, where they are packed and have one."""
        return getattr(self.images, "packed_size", None)

    def arrays(self, indices: Sequence[int]) -> np.ndarray:
        """Images of one size, (B, H, W, 3) uint8."""
        return self.images.arrays(self.indices[np.asarray(indices)])  # type: ignore[attr-defined]

    def labels(self, indices: Sequence[int]) -> np.ndarray:
        return self.images.labels(self.indices[np.asarray(indices)].tolist())

    def where(self, index: int) -> str:
        return self.images.where(int(self.indices[index]))


def as_it_is(batch: Any) -> Any:
    """A batch is collated where it is read."""
    return batch


def leave_signals(worker: int) -> None:
    """Have a worker process leave the signals to stop, which reach the whole group, to the process that trains."""
    for number in (signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGUSR1", signal.SIGTERM)):
        signal.signal(number, signal.SIG_IGN)
