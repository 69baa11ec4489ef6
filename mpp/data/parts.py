"""A split in parts, read once and in order: so many images by index, or one shard of a stream. Work on it can be cut
between parts, and processes can share it: what a part holds depends on the set alone."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import islice

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mpp.data.augment import View
from mpp.data.images import Images
from mpp.data.loader import Batch, Samples, as_it_is, leave_signals, no_draws, read_batch
from mpp.data.randomness import Purpose
from mpp.data.streams import Kept, Stream

_IMAGES = 1024  # of a part of a set that is read by index: a second of the nano model on one core


class Parts:
    """The parts of a split."""

    def __init__(self, images: Images | Stream) -> None:
        self.images = images
        if isinstance(images, Stream):
            self.count, self.total = len(images.indices), None
            self.label_names = None
        else:
            self.count, self.total = -(-len(images) // _IMAGES), len(images)
            self.label_names = images.label_names

    def images_in(self, part: int) -> int:
        """How many images a part of a set that is read by index has."""
        assert self.total is not None
        return min(self.total, (part + 1) * _IMAGES) - part * _IMAGES

    def windows(self, part: int, most: int) -> Iterator[tuple[Images, np.ndarray]]:
        """The images of a part, at most so many at a time: a set, and indices into it."""
        images = self.images
        if isinstance(images, Stream):
            samples = images.part(np.array([part])).samples(0)
            while window := list(islice(samples, most)):
                yield Kept(window, images), np.arange(len(window))
        else:
            indices = np.arange(part * _IMAGES, min(len(images), (part + 1) * _IMAGES))
            for start in range(0, len(indices), most):
                yield images, indices[start : start + most]

    def loader(self, parts: list[int], size: tuple[int, int], batch_size: int, workers: int) -> DataLoader:
        """Batches of uint8 images of these parts, in order. Beside what `read_batch` gives, a batch has its "part",
        and the "names" and "labels" (texts; None without labels) of its images; {"part": n, "done": True} ends one."""
        return DataLoader(
            PartReader(self, parts, View(size), batch_size),
            batch_size=None,
            collate_fn=as_it_is,
            num_workers=workers,
            worker_init_fn=leave_signals,
        )

    def pick(self, rows: set[int], left_out: Collection[str], size: tuple[int, int]) -> Iterator[np.ndarray]:
        """uint8 images (C, H, W), centred and scaled to `size`: those numbered `rows` among the images of the split
        that are not `left_out` by name. A stream is read from its start, and only these are decoded."""
        number, view = 0, View(size)
        for part in range(self.count):
            for images, indices in self.windows(part, 64):
                kept = [i for i in indices.tolist() if not left_out or images.where(i) not in left_out]
                some = np.array([i for place, i in enumerate(kept, start=number) if place in rows], dtype=np.int64)
                number += len(kept)
                if len(some):
                    yield from read_batch(images, _samples(some), view, no_draws, 0, Purpose.EVAL)["images"].numpy()
                if number > max(rows, default=-1):
                    return


class PartReader(IterableDataset):
    """Reads parts into batches. Workers take batches in turn; of a stream, each reads all and decodes its own."""

    def __init__(self, parts: Parts, numbers: list[int], view: View, batch_size: int) -> None:
        self.parts, self.numbers, self.view, self.batch_size = parts, numbers, view, batch_size

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        mine, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        turn = 0
        for part in self.numbers:
            for images, indices in self.parts.windows(part, self.batch_size):
                if turn % workers == mine:
                    yield self._read(images, indices) | {"part": part}
                turn += 1
            if turn % workers == mine:
                yield {"part": part, "done": True}
            turn += 1

    def _read(self, images: Images, indices: np.ndarray) -> Batch:
        batch = read_batch(images, _samples(indices), self.view, no_draws, 0, Purpose.EVAL)
        found = batch["index"].tolist()
        batch["names"] = [images.where(index) for index in found]
        batch["labels"] = labels_of(images, found)
        return batch


def labels_of(images: Images, indices: list[int]) -> list[str | None] | None:
    """The class names of some images, None for one without; None if the set has no labels."""
    if not (names := images.label_names):
        return None
    numbers = getattr(images, "labels_or_none", images.labels)(indices)
    return [names[number] if number >= 0 else None for number in numbers]


def _samples(indices: np.ndarray) -> Samples:
    return Samples(indices, 0, range(len(indices)))
