"""A classifier's predictions for a whole set: computed, measured and exported."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from pyarrow import parquet
from torch import Tensor, nn
from tqdm.auto import tqdm

from mpp.data.augment import normalise
from mpp.data.images import Images
from mpp.data.loader import Batch
from mpp.errors import UserError
from mpp.evaluation.calibration import calibration_error
from mpp.files import csv_cell, write_whole
from mpp.run.folder import AGAIN, why_unwritable, writing


@dataclass(frozen=True)
class Predictions:
    """One entry per image, in the order of the set. All arrays have shape (M,)."""

    index: np.ndarray  # position of the image in its set
    label: np.ndarray
    predicted: np.ndarray  # the class with the highest score
    confidence: np.ndarray  # probability of the predicted class, in 0..1
    rank: np.ndarray  # number of classes that score above the true one
    loss: np.ndarray  # cross-entropy
    best: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))  # the likeliest classes, best first: (M, top)
    probabilities: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))  # theirs, in 0..1: (M, top)

    @property
    def labelled(self) -> bool:
        """Whether the labels are known; without, label is -1 and rank and loss mean nothing."""
        return bool((self.label >= 0).all())

    def metrics(self) -> dict[str, float]:
        """Mean loss, and top-1 and top-5 accuracy in 0..1."""
        top1, top5 = np.mean(self.rank < 1), np.mean(self.rank < 5)
        return {"loss": float(np.mean(self.loss)), "top1": float(top1), "top5": float(top5)}

    def calibration_error(self) -> float:
        """How far the probabilities of the predicted classes are from the accuracy, in 0..1 (15 bins)."""
        return calibration_error(self.confidence, self.rank < 1)

    def per_class(self, classes: list[str]) -> dict[str, float]:
        """Accuracy of each class in 0..1, by class name; classes without images are left out."""
        right = self.rank < 1
        return {name: float(right[self.label == k].mean()) for k, name in enumerate(classes) if (self.label == k).any()}

    def confusion(self, classes: int) -> np.ndarray:
        """Number of images for each true class (row) and predicted class (column): (classes, classes) int64."""
        counts = np.bincount(self.label * classes + self.predicted, minlength=classes**2)
        return counts.reshape(classes, classes)


@torch.no_grad()
def predict(
    model: nn.Module,
    batches: Iterable[Batch],
    relabel: Tensor | None,
    accelerator: Accelerator,
    total: int | None,
    top: int = 1,
) -> Predictions:
    """Predict a set. Each process predicts its own batches; all return the whole set, each image exactly once.

    `relabel` maps the set's class numbers to the model's: (classes of the set,); None if there are no labels. `total`
    is for the progress bar (None: not known); `top` is the number of likeliest classes to keep.
    """
    mine: list[np.ndarray] = []
    hide = not accelerator.is_main_process
    with tqdm(total=total, unit="image", desc="evaluation", disable=hide, leave=False, mininterval=1) as bar:
        for batch in batches:
            with accelerator.autocast():
                scores = model(normalise(batch["images"].to(accelerator.device)))
            scores = scores.float()
            confidence, predicted = scores.softmax(-1).max(-1)
            if relabel is None:
                labels, rank, loss = torch.full_like(predicted, -1), predicted, confidence
            else:
                labels = relabel[batch["labels"]].to(accelerator.device)
                rank, loss = rank_of(labels, scores), F.cross_entropy(scores, labels, reduction="none")
            likeliest = scores.softmax(-1).sort(descending=True, stable=True)  # of equal ones the first, as `max`
            best = [*likeliest.indices[:, :top].T, *likeliest.values[:, :top].T]
            rows = [batch["index"], labels, predicted, confidence, rank, loss, *best]
            mine.append(np.stack([row.cpu().double().numpy() for row in rows]))
            bar.update(len(batch["index"]) * accelerator.num_processes)
    every = (gather_object(mine) if accelerator.num_processes > 1 else mine) or [np.empty((6 + 2 * top, 0))]
    table = np.concatenate(every, axis=1)
    table = table[:, np.argsort(table[0])]  # the same order, and so the same sums, on any number of processes
    index, label, predicted, confidence, rank, loss = table[:6]
    best, probabilities = table[6 : 6 + top].T.astype(np.int64), table[6 + top :].T
    numbers = (index.astype(np.int64), label.astype(np.int64), predicted.astype(np.int64))
    return Predictions(*numbers, confidence, rank, loss, best, probabilities)


def rank_of(labels: Tensor, scores: Tensor) -> Tensor:
    """Number of classes ranked before the true one: scores (B, classes) -> (B,). Ties go to the lower class number, as
    in argmax. A NaN score ranks before the true class; if the true class scores NaN, every class does."""
    own = scores.gather(1, labels[:, None])
    before = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    return (~(scores <= own) | (before & (scores == own))).sum(-1)


def refuse_unwritable(file: str | None, overwrite: bool, accelerator: Accelerator) -> None:
    """Raise UserError on all processes if --export-predictions cannot be written. Call before any computation."""
    reason = None
    if file and accelerator.is_main_process:  # one process only: the check creates folders
        if os.path.lexists(file) and not (Path(file).is_file() or Path(file).is_symlink()):
            reason = "it is a folder, a pipe or a device"
        elif os.path.lexists(file) and not overwrite:
            reason = "it exists; --overwrite replaces it"
        else:
            reason = why_unwritable(Path(file).parent)
    if reason := broadcast_object_list([reason])[0]:
        raise UserError(f"--export-predictions {file} cannot be written ({reason})")


def export(predictions: Predictions, images: Images, classes: list[str], file: str, overwrite: bool) -> None:
    """Write one row per image: origin, label (if known), prediction and confidence."""
    columns: dict[str, list[Any]] = {
        "index": predictions.index.tolist(),
        "image": [images.where(int(index)) for index in predictions.index],
        "label": [classes[k] for k in predictions.label] if predictions.labelled else [],
        "predicted": [classes[k] for k in predictions.predicted],
        "confidence": predictions.confidence.tolist(),
    }
    write_table({name: column for name, column in columns.items() if column}, file, overwrite)


def write_table(columns: dict[str, list[Any]], file: str, overwrite: bool) -> None:
    """Write columns to a file that ends in .parquet or .csv."""
    if file.endswith(".parquet"):
        content = pa.BufferOutputStream()
        parquet.write_table(pa.table(columns), content)
        written = content.getvalue().to_pybytes()
    else:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(map(csv_cell, row) for row in zip(*columns.values(), strict=True))
        written = text.getvalue().encode()
    with writing(Path(file), AGAIN):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        write_whole(Path(file), written, overwrite)
