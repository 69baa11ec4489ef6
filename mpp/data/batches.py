"""Batches on their way to the device, and images that cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mpp.data.loader import Batch
from mpp.data.streams import Positions
from mpp.errors import UserError

Samples = list[tuple[Tensor, list[str] | None]]  # of each micro-batch: the images' indices (B,), their names if known


class Feed:
    """The micro-batches of a training, moved to the device.

    It keeps what is not for the model: `samples` of the last step, `positions` in a stream, and `unreadable` images.
    """

    def __init__(self, loader: DataLoader, on_error: str, device: torch.device) -> None:
        self.on_error, self.device = on_error, device
        self.batches = iter(loader)  # draws a random number, so it comes before the first step seeds dropout
        self.samples: Samples = []
        self.positions: Positions = {}
        self.unreadable: dict[str, str] = {}  # where -> why

    def take(self, parts: int, waiting: Callable[[], AbstractContextManager[None]]) -> Iterator[Batch]:
        """The next `parts` micro-batches, on the device; `waiting` measures the time they take to come."""
        self.samples = []
        for _ in range(parts):
            with waiting():
                batch = next_batch(self.batches, self.on_error, self.unreadable)
                self.positions |= batch.pop("positions", {})
                index = batch.pop("index").clone()  # what comes from a worker keeps a file open
                self.samples.append((index, batch.pop("where", None)))
                batch = to_device(batch, self.device)
            yield batch


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
