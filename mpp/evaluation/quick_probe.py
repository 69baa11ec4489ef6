"""Probe frozen features at every evaluation of a pretraining, on few images so that it costs little time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from mpp.config.commands import Pretrain, Supervised
from mpp.config.options import LabelledData
from mpp.data.bands import Bands
from mpp.data.batches import readable, refuse_too_many
from mpp.data.images import Images, Subset
from mpp.data.loader import eval_loader, no_draws
from mpp.data.splits import draw_labels, open_fitted
from mpp.errors import renamed
from mpp.evaluation.probes import FEW_SHOT_PENALTY, effective_rank, knn, pooled, ridge_top1, top_k
from mpp.models.backbone import Backbone

FIT, MEASURE = 400, 800  # images: 2 seconds of the nano model on two CPU cores


class QuickProbe:
    """Decodes a few labelled images of --eval.probe once; each call probes the current features on them."""

    @classmethod
    def asked_for(
        cls,
        config: Pretrain | Supervised,
        accelerator: Accelerator,
        unreadable: dict[str, str],
        bands: Bands,
        size: tuple[int, int],
    ) -> Callable[[Backbone], dict[str, float]]:
        """The probe, or what finds nothing without --eval.probe."""
        return cls(config, accelerator, unreadable, bands, size) if config.eval.probe else lambda vit: {}

    def __init__(
        self,
        config: Pretrain | Supervised,
        accelerator: Accelerator,
        unreadable: dict[str, str],
        bands: Bands,
        size: tuple[int, int],
    ) -> None:
        self.config, self.accelerator, self.size = config, accelerator, size
        data = LabelledData(path=config.eval.probe or "", label_column=config.eval.probe_label_column)
        data.channels, data.range = bands.channels, bands.range
        with renamed("--data.path", "--eval.probe"), renamed("--data.label-column", "--eval.probe-label-column"):
            images = open_fitted(data, size, seed=0)
        self.classes = len(images.label_names or [])
        labels = images.labels(range(len(images)))
        # both parts come from the training split, so that choices made by the probe do not use test labels
        chosen = draw_labels(labels, min(len(labels), max(FIT, self.classes) + MEASURE), seed=0)
        fit = chosen[draw_labels(labels[chosen], min(max(FIT, self.classes), len(chosen) // 2), seed=0, draw=1)]
        self.fit, self.fit_labels = self._decoded(Subset(images, fit), unreadable)
        self.test, self.test_labels = self._decoded(Subset(images, np.setdiff1d(chosen, fit)), unreadable)

    def __call__(self, vit: Backbone) -> dict[str, float]:
        """Top-1 accuracy of ridge regression and of k-NN, and the effective rank; the same on all processes."""
        x, test_x = self._features(vit, self.fit), self._features(vit, self.test)
        votes = knn(x, self.fit_labels, test_x, self.classes)
        return {
            "probe_top1": ridge_top1(x, self.fit_labels, test_x, self.test_labels, self.classes, FEW_SHOT_PENALTY),
            "knn_top1": top_k(votes, self.test_labels),
            "effective_rank": effective_rank(test_x),
        }

    @staticmethod
    def closing_lines(
        config: Pretrain | Supervised, metrics: dict[str, float], before: dict[str, float] | None = None
    ) -> list[str]:
        """What a run says last of its features, if they were probed; `before`: of the weights that it began with."""
        if not config.eval.probe:
            return []
        before = before or {}

        def told(name: str, by: str) -> str:
            then = f"{before[name]:.1%} before, " if name in before else ""
            return f"{then}{metrics[name]:.1%}{' now' if then else ''} by {by}"

        ridge, knn = told("eval/probe_top1", "ridge regression"), told("eval/knn_top1", "k-NN")
        return [f"Frozen features on {config.eval.probe}: accuracy {ridge}, {knn}."]

    def _decoded(self, images: Images, unreadable: dict[str, str]) -> tuple[Tensor, Tensor]:
        loader = eval_loader(
            images,
            self.size,
            no_draws,
            batch_size=self.config.eval.batch_size,
            labels=True,
        )
        left_out: dict[str, str] = {}
        batches = list(readable(loader, self.config.data.on_error, left_out))
        read = sum(len(batch["images"]) for batch in batches)
        data = dataclasses.replace(self.config.data, path=self.config.eval.probe or "")
        refuse_too_many(len(images) - read, len(images), data, left_out)
        unreadable |= left_out
        return torch.cat([batch["images"] for batch in batches]), torch.cat([batch["labels"] for batch in batches])

    def _features(self, vit: Backbone, images: Tensor) -> Tensor:
        parts = images.split(self.config.eval.batch_size)
        return torch.cat([pooled(vit, part, "mean", [vit.depth], self.accelerator)[0] for part in parts])
