"""What every --dry-run has: its lines, its picture, and how fast a model goes forward over images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from mpp.config.commands import FineTune
from mpp.config.options import Data, Rehearsed
from mpp.config.using import Predict
from mpp.data.augment import normalise
from mpp.data.loader import Batch
from mpp.errors import counted
from mpp.figures.sheet import paint_sheet
from mpp.methods.classify import Classifier
from mpp.models.backbone import Backbone
from mpp.run.folder import AGAIN, save_picture, unreadable_line, writing
from mpp.run.machine import gather_dicts, workers_of
from mpp.run.measured import peak_memory, settle, told_devices, told_memory, told_time

_PAINTED = 24  # images of the first batch
_BATCHES, _SECONDS = 8, 5.0  # that are measured, at most


def report(what: str, rows: Mapping[str, str], accelerator: Accelerator | None = None) -> None:
    """Print what a dry run found, a line for each fact that there is."""
    if accelerator is None or accelerator.is_main_process:
        width = max(map(len, rows))
        lines = [f"  {name:<{width}}  {text}" for name, text in rows.items() if text]
        print("\n".join([f"\ndry run: {what}", *lines]), flush=True)


def told_batch(images: Tensor) -> str:
    """What the first batch is, uint8 (B, C, H, W)."""
    low, high = images.min().item(), images.max().item()
    return f"{tuple(images.shape)} uint8 of {low}..{high}, mean {images.float().mean():.0f}"


def told_model(model: Any) -> str:
    """Sizes of an encoder (`model`, or its `vit`), and of the model around it."""
    vit: Backbone = getattr(model, "vit", model)
    (height, width), size = vit.img_size, sum(p.numel() for p in vit.parameters())
    whole = sum(p.numel() for p in model.parameters())
    around = f", {whole:,} with the head" if whole > size else ""
    return (
        f"{vit.depth} blocks of width {vit.embed_dim}, {size:,} parameters{around}; images of {width} x {height}, "
        f"{counted(vit.in_chans, 'channel')}, are {vit.num_patches:,} patches of {vit.patch_size} x {vit.patch_size}"
    )


def paint(file: str | None, images: np.ndarray, captions: Sequence[str], accelerator: Accelerator) -> str:
    """Paint the first images of a batch, uint8 (B, C, H, W), to --dry-run-picture; returns what to say of it."""
    if file is None or not accelerator.is_main_process:
        return ""
    some = list(images[:_PAINTED])
    captions = [*captions[:_PAINTED], *[""] * (len(some) - len(captions))]
    wide = max(1, round(some[0].shape[2] / some[0].shape[1]))
    with writing(Path(file), AGAIN):
        save_picture(paint_sheet(some, captions, columns=max(1, 8 // wide), side=112 * wide), Path(file))
    return f"{file} shows {counted(len(some), 'image')} of the first batch"


@dataclass(frozen=True)
class Sample:
    """How a model went forward over some images of a set."""

    each: float  # seconds an image, of all processes together
    images: int  # that were measured
    total: int | None  # of the whole; None for a stream
    first: Batch  # empty on a process without one

    def told(
        self,
        output: str | Path,
        rows: Mapping[str, str],
        more: float,
        captions: Sequence[str],
        unreadable: dict[str, str],
        config: Rehearsed,
        data: Data,
        accelerator: Accelerator,
    ) -> dict[str, Any]:
        """Print `rows`, then what was measured; returns the numbers. `more` are seconds beside going forward. All
        processes call it."""
        peak, unreadable = peak_memory(accelerator), gather_dicts(accelerator, unreadable)
        found: dict[str, Any] = {"dry_run": True, "images": self.total, "seconds_an_image": self.each}
        found["seconds"] = None if self.total is None else self.total * self.each + more
        pace = f"{1 / max(1e-9, self.each):,.0f} images a second ({self.images:,} measured)"
        of = f" and {told_time(more)} of fits" if more else ""
        time = f"{told_time(1e6 * self.each)} for a million images, as the shards do not say how many they hold"
        if found["seconds"] is not None:
            time = f"{told_time(found['seconds'])}: {self.total:,} images of {told_time(self.each)}{of}"
        file = config.dry_run_picture
        last = {
            "left out": unreadable_line(unreadable, None, data.path) if unreadable else "",
            "first batch": told_batch(self.first["images"]) if self.first else "",
            "picture": paint(file, self.first["images"].numpy(), captions, accelerator) if self.first else "",
            "speed": pace,
            "memory": told_memory(peak, workers_of(data, accelerator), accelerator),
            "time": f"{time}, as measured on {told_devices(accelerator)}",
        }
        report(f"nothing is written into {output}", {**rows, **last}, accelerator)
        return found | {f"peak_{of}_bytes": most for of, most in peak.items()}


@torch.no_grad()
def forward_sample(
    batches: Iterable[Batch], forward: Callable[[Batch], object], total: int | None, accelerator: Accelerator
) -> Sample:
    """Read some batches and go forward over them: the first, which warms up, twice, and it counts only if it is alone.
    All processes call it."""
    device, images, first, seconds = accelerator.device, 0, Batch(), 0.0
    began = time.perf_counter()
    for number, batch in enumerate(islice(batches, _BATCHES)):
        read = time.perf_counter() - began
        if not number:
            first = batch
            forward(batch)
            settle(device)
        started = time.perf_counter()
        forward(batch)
        settle(device)
        if number == 1:
            images, seconds = 0, 0.0
        images, seconds = images + len(batch["images"]), seconds + read + time.perf_counter() - started
        began = time.perf_counter()
        if seconds > _SECONDS:
            break
    each = broadcast_object_list([seconds / images if images else 0.0])[0]  # the first process has images if any has
    return Sample(each / accelerator.num_processes, images, total, first)


def rehearse_prediction(
    output: str | Path,
    model: Classifier,
    batches: Iterable[Batch],
    total: int | None,
    names: list[str] | None,
    unreadable: dict[str, str],
    config: FineTune | Predict,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Print what predicting a set would take, from some of its batches; returns the numbers. `names` are its classes if
    it is labelled."""

    def forward(batch: Batch) -> Tensor:
        with accelerator.autocast():
            return model(normalise(batch["images"].to(accelerator.device)))

    found = forward_sample(batches, forward, total, accelerator)
    captions = [names[label] for label in found.first["labels"].tolist()] if names and found.first else []
    many = "a stream" if total is None else f"{total:,}"
    rows = {
        "images": f"{many} to predict, {'with' if names else 'without'} labels of the model's classes",
        "model": f"{told_model(model)}; it knows {counted(len(model.classes), 'class', 'classes')}",
    }
    return found.told(output, rows, 0.0, captions, unreadable, config, config.data, accelerator)
