"""Batches on their way to the device, and what becomes of images that cannot be read."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader

from mpp.data.loader import Batch
from mpp.errors import UserError


def next_batch(batches: Iterator[Batch], on_error: str, unreadable: dict[str, str]) -> Batch:
    """The next micro-batch; images that could not be read stop the run, or are noted in `unreadable`."""
    batch = next(batches)
    tried = len(batch["unreadable"])
    note_unreadable(batch, on_error, unreadable)
    if "images" not in batch:
        raise UserError(f"no readable image was found among {tried} in a row; is this the right set?")
    return batch


def note_unreadable(batch: Batch, on_error: str, unreadable: dict[str, str]) -> None:
    """Take the names of unreadable images from a batch; raises UserError unless they are to be skipped."""
    found: dict[str, str] = batch.pop("unreadable")
    if found and on_error == "stop":
        where, why = next(iter(found.items()))
        raise UserError(f"image {where} could not be read ({why}); --data.on-error skip leaves such images out")
    unreadable |= found


def readable(loader: DataLoader, on_error: str, unreadable: dict[str, str]) -> Iterator[Batch]:
    """Batches of an evaluation that have images; what could not be read stops it, or is noted in `unreadable`."""
    for batch in loader:
        note_unreadable(batch, on_error, unreadable)
        if "images" in batch:
            yield batch


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move a batch's tensors; from pinned memory without waiting for the copy."""
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}
