"""The images that a training learns from: read by index or streamed, behind one interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch.utils.data import DataLoader

from mpp.data.augment import View
from mpp.data.images import Images
from mpp.data.loader import Draws, Share, train_loader
from mpp.data.streams import Positions, Stream, stream_loader


class TrainingSet(Protocol):
    """What the training loop reads."""

    @property
    def count(self) -> int | None:
        """How many images there are; None for a stream."""
        ...

    def batches(self, share: Share, start: int, positions: Positions) -> DataLoader:
        """This process's micro-batches from step `start` on; a stream goes on at `positions`."""
        ...

    def epoch(self, step: int, positions: Positions) -> float:
        """How often training has seen the images after `step` steps."""
        ...

    def where(self, index: int) -> str:
        """The file or row of an image. (Batches of a stream name their images themselves.)"""
        ...


@dataclass(frozen=True)
class Reading:
    """How images become batches: see `mpp.data.loader`."""

    view: View
    draws: Draws
    seed: int
    steps: int
    batch_size: int
    workers: int
    pin_memory: bool
    labels: bool = False


@dataclass(frozen=True)
class IndexedSet:
    """A set that is read by index, in a fresh order every epoch."""

    images: Images
    reading: Reading

    @property
    def count(self) -> int:
        return len(self.images)

    def batches(self, share: Share, start: int, positions: Positions) -> DataLoader:
        r = self.reading
        return train_loader(
            self.images,
            r.view,
            r.draws,
            seed=r.seed,
            share=share,
            start=start,
            steps=r.steps,
            workers=r.workers,
            labels=r.labels,
            pin_memory=r.pin_memory,
        )

    def epoch(self, step: int, positions: Positions) -> float:
        return step * self.reading.batch_size / len(self.images)

    def where(self, index: int) -> str:
        return self.images.where(index)


@dataclass(frozen=True)
class StreamedSet:
    """WebDataset shards, read from front to back."""

    stream: Stream
    reading: Reading
    count = None

    def batches(self, share: Share, start: int, positions: Positions) -> DataLoader:
        r = self.reading
        return stream_loader(
            self.stream,
            r.view,
            r.draws,
            seed=r.seed,
            share=share,
            start=start,
            steps=r.steps,
            workers=r.workers,
            positions=positions,
            pin_memory=r.pin_memory,
        )

    def epoch(self, step: int, positions: Positions) -> float:
        return sum(epoch for epoch, _ in positions.values()) / len(positions)  # the length is not known

    def where(self, index: int) -> str:
        return f"{self.stream.path}, sample {index}"


def training_set(images: Images | Stream, reading: Reading) -> TrainingSet:
    """Images that are opened already, as the training loop reads them."""
    return StreamedSet(images, reading) if isinstance(images, Stream) else IndexedSet(images, reading)
