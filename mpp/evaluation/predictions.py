"""A classifier's predictions for a whole set: computed, measured and exported."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from tqdm import tqdm

from mpp.data.augment import normalise
from mpp.data.images import Images
from mpp.data.loader import Batch
from mpp.errors import UserError
from mpp.files import write_whole
from mpp.run.folder import why_unwritable, writing


@dataclass(frozen=True)
class Predictions:
    """One entry per image, in the order of the set. All arrays have shape (M,)."""

    index: np.ndarray  # position of the image in its set
    label: np.ndarray
    predicted: np.ndarray  # the class with the highest score
    confidence: np.ndarray  # probability of the predicted class, in 0..1
    rank: np.ndarray  # number of classes that score above the true one
    loss: np.ndarray  # cross-entropy

    def metrics(self) -> dict[str, float]:
        """Mean loss, and top-1 and top-5 accuracy in 0..1."""
        top1, top5 = np.mean(self.rank < 1), np.mean(self.rank < 5)
        return {"loss": float(np.mean(self.loss)), "top1": float(top1), "top5": float(top5)}

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
    model: nn.Module, batches: Iterable[Batch], relabel: Tensor, accelerator: Accelerator, total: int
) -> Predictions:
    """Predict a set. Each process predicts its own batches; all return the whole set, each image exactly once.

    `relabel` maps the set's class numbers to the model's: (classes of the set,). `total` is for the progress bar.
    """
    mine: list[np.ndarray] = []
    hide = not accelerator.is_main_process
    with tqdm(total=total, unit="image", desc="evaluation", disable=hide, leave=False, mininterval=1) as bar:
        for batch in batches:
            with accelerator.autocast():
                scores = model(normalise(batch["images"].to(accelerator.device)))
            scores, labels = scores.float(), relabel[batch["labels"]].to(accelerator.device)
            confidence, predicted = scores.softmax(-1).max(-1)
            rank = rank_of(labels, scores)
            loss = F.cross_entropy(scores, labels, reduction="none")
            rows = [batch["index"], labels, predicted, confidence, rank, loss]
            mine.append(np.stack([row.cpu().double().numpy() for row in rows]))
            bar.update(len(batch["index"]) * accelerator.num_processes)
    every = gather_object(mine) if accelerator.num_processes > 1 else mine
    table = np.concatenate(every, axis=1)
    table = table[:, np.argsort(table[0])]  # the same order, and so the same sums, on any number of processes
    index, label, predicted, confidence, rank, loss = table
    return Predictions(
        index.astype(np.int64), label.astype(np.int64), predicted.astype(np.int64), confidence, rank, loss
    )


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
    """Write one row per image: origin, label, prediction and confidence. `file` ends in .parquet or .csv."""
    from datasets import Dataset

    columns: dict[str, list[Any]] = {
        "index": predictions.index.tolist(),
        "image": [images.where(int(index)) for index in predictions.index],
        "label": [classes[k] for k in predictions.label],
        "predicted": [classes[k] for k in predictions.predicted],
        "confidence": predictions.confidence.tolist(),
    }
    table = Dataset.from_dict(columns)
    with writing(Path(file)):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        table.to_parquet(content) if file.endswith(".parquet") else table.to_csv(content)
        write_whole(Path(file), content.getvalue(), overwrite)
