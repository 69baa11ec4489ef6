"""Batches on their way to the device, and images that cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mpp.config.options import Source
from mpp.data.loader import Batch
from mpp.data.streams import Positions
from mpp.errors import UserError

Samples = list[tuple[Tensor, list[str] | None]]  # of each micro-batch: the images' indices (B,), their names if known


_ENOUGH_TO_TELL = 10_000  # images of a stream, of which one shard may be bad and come first


class Feed:
    """The micro-batches of a training, moved to the device.

    It keeps the `latest` of them, and what is not for the model: `samples` of the last step, `positions` in a stream,
    and `unreadable` images, which may be no more than --data.max-bad of the set's `count`, or of what was read of a
    stream (None).
    """

    def __init__(
        self, loader: DataLoader, data: Source, count: int | None, device: torch.device, unreadable: dict[str, str]
    ) -> None:
        self.data, self.count, self.device = data, count, device
        self.batches = iter(loader)  # draws a random number, so it comes before the first step seeds dropout
        self.latest: Batch = {}
        self.samples: Samples = []
        self.positions: Positions = {}
        self.unreadable = dict(unreadable)  # where -> why; those that were found before the run was resumed
        self.read = self.bad = 0  # images of a stream

    def take(self, parts: int, waiting: Callable[[], AbstractContextManager[None]]) -> Iterator[Batch]:
        """The next `parts` micro-batches, on the device; `waiting` measures the time they take to come."""
        self.samples = []
        for _ in range(parts):
            found: dict[str, str] = {}
            with waiting():
                batch = next_batch(self.batches, self.data.on_error, found)
                self._count(found, len(batch["index"]))
                self.positions |= batch.pop("positions", {})
                index = batch.pop("index").clone()  # what comes from a worker keeps a file open
                self.samples.append((index, batch.pop("where", None)))
                self.latest = to_device(batch, self.device)
            yield self.latest

    def _count(self, found: dict[str, str], images: int) -> None:
        """Note the unreadable images that a batch names. Raises UserError once they are too many."""
        self.unreadable |= found
        self.read, self.bad = self.read + images, self.bad + min(len(found), images)
        if self.count is not None:
            refuse_too_many(len(self.unreadable), self.count, self.data, self.unreadable)
        elif self.read >= _ENOUGH_TO_TELL:
            refuse_too_many(self.bad, self.read, self.data, self.unreadable)

    def judge(self, unreadable: dict[str, str], counts: Iterable[tuple[int, int]]) -> None:
        """Raise UserError if too much could not be read of the part of a stream that all processes have read; `counts`
        are `bad` and `read` of each."""
        bad, read = (sum(column) for column in zip(*counts, strict=True))
        if self.count is None:
            refuse_too_many(bad, read, self.data, unreadable)


def refuse_too_many(bad: int, of: int, data: Source, unreadable: Mapping[str, str], kind: str = "images") -> None:
    """Raise UserError if more images than --data.max-bad allows, or all, could not be read."""
    if bad and (bad >= of or bad > data.max_bad * of):
        first = "".join(f", the first: {where} ({why})" for where, why in list(unreadable.items())[:1])
        raise UserError(
            f"{bad:,} of {of:,} {kind} in {data.path} could not be read{first}; is this the right set?"
            + ("" if bad >= of else f" --data.max-bad {data.max_bad:g} allows no more")
        )


def next_batch(batches: Iterator[Batch], on_error: str, unreadable: dict[str, str]) -> Batch:
    """The next micro-batch. Images that cannot be read stop the run, or are noted in `unreadable`."""
    batch = next(batches)
    tried = len(batch["unreadable"])
    note_unreadable(batch, on_error, unreadable)
    if "images" not in batch:
        raise UserError(f"no readable image was found among {tried} in a row; is this the right set?")
    return batch


def note_unreadable(batch: Batch, on_error: str, unreadable: dict[str, str]) -> None:
    """Move the names of unreadable images from a batch to `unreadable`. Raises UserError unless they are skipped."""
    found: dict[str, str] = batch.pop("unreadable")
    if found and on_error == "stop":
        where, why = next(iter(found.items()))
        raise UserError(f"image {where} could not be read ({why}); --data.on-error skip leaves such images out")
    unreadable |= found


def readable(loader: DataLoader, on_error: str, unreadable: dict[str, str]) -> Iterator[Batch]:
    """The batches of an evaluation that have images. Images that cannot be read stop it, or are noted."""
    for batch in loader:
        note_unreadable(batch, on_error, unreadable)
        if "images" in batch:
            yield batch


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move a batch's tensors; from pinned memory without waiting for the copy."""
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}
