"""What --init and the labelled images have in common: the channels of an image, and its range of values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed

from mpp.config.commands import FineTune, LinearProbe, Pretrain, Supervised
from mpp.config.options import Data
from mpp.data.identity import trained_on
from mpp.data.images import HeldOut, Images, bands_of
from mpp.data.splits import open_labelled
from mpp.errors import UserError, counted, renamed, warn
from mpp.models.backbone import Backbone
from mpp.models.backbones import downstream_vit
from mpp.run.folder import read_metrics

SomeData = TypeVar("SomeData", bound=Data)


def open_downstream(
    config: FineTune | LinearProbe, accelerator: Accelerator, seen: int = 0, remembered: set[str] | None = None
) -> tuple[Backbone, Images, Images]:
    """The encoder that --init names, and the labelled images to fit on and to be measured on, read as it takes them.
    `remembered` are the names of images to be measured on."""
    set_seed(config.seed)
    vit = downstream_vit(config.init, config.model)
    with accelerator.main_process_first(), as_taken_by(vit, config.init, config.data) as data:
        images, test = open_labelled(data, vit.img_size, config.seed, seen, remembered)
    bands = bands_of(images)
    if config.init == "scratch" and bands.channels != vit.in_chans:
        set_seed(config.seed)
        vit = downstream_vit(config.init, config.model, bands.channels or vit.in_chans)
    vit.pixel_range = bands.range
    return vit, images, test


def measured_before(output: Path, config: Pretrain | Supervised) -> dict[str, float]:
    """What --eval.probe found before the first step of a run that began with other weights; empty if it did not."""
    if config.init == "scratch" or not config.eval.probe:
        return {}
    first = next((line for line in read_metrics(output) if line["step"] == 0), {})
    return {name: first[name] for name in ("eval/probe_top1", "eval/knn_top1", "eval/effective_rank") if name in first}


def block_number(option: str, layer: str, depth: int, names: str = "last") -> int:
    """The block, from 1, that an option names: `last`, or its number."""
    number = str(depth) if layer == "last" else layer
    if not (number.isdecimal() and 1 <= int(number) <= depth):
        raise UserError(f"{option} {layer} is none of: {names}, 1 to {depth}")
    return int(number)


@contextmanager
def as_taken_by(vit: Backbone | None, init: str, data: SomeData, *, fitted: bool = True) -> Iterator[SomeData]:
    """The data options with the channels and the range of the encoder that --init names; `fitted` says whether there
    are training images. A message about another number of channels names both."""
    if data.range == "auto" and not fitted:
        raise UserError("--data.range auto looks at training images; leave it out: the model has its range")
    if init == "scratch" or vit is None:
        yield data
        return
    if data.channels not in (None, vit.in_chans):
        raise UserError(
            f"--data.channels {data.channels}: --init {init} takes images of {counted(vit.in_chans, 'channel')}; leave "
            f"the option out, or pretrain on such images"
        )
    if vit.pixel_range and data.range not in (None, vit.pixel_range):
        low, high = vit.pixel_range
        warn(f"--init {init} was trained with --data.range {low:g} {high:g}; leave the option out to read images so")
    with renamed("--data.channels", f"--init {init}", [data.path] if data.channels is None else []):
        yield dataclasses.replace(data, channels=vit.in_chans, range=data.range or vit.pixel_range)


def new_to(init: str, images: Images, accelerator: Accelerator) -> Images:
    """The images of a set that the model of --init did not learn from. Where those are the images of its own run, they
    are what it held out; if it held out none of them, the user is warned. All processes call it."""
    kept: list[int] | None = None
    if accelerator.is_main_process:  # one process looks at the images
        for folder in (Path(init), Path(init).parent):
            if (left := trained_on(folder, images)) is not None:
                kept = [number for number, name in enumerate(images.contents().names) if name in left]
    if (kept := broadcast_object_list([kept])[0]) is None:
        return images
    if not kept:
        if accelerator.is_main_process:
            warn(f"--init {init} was trained on these images: its accuracy on them is not that on new ones")
        return images
    says = f"held out by {init} when it was trained: {len(kept):,} of these {len(images):,} images"
    return HeldOut(images, np.array(kept), says)
