"""Numbers that follow from options."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import TypeVar

from mpp.config.bounds import LARGEST
from mpp.config.commands import Pretrain, Supervised
from mpp.config.options import Model, Train
from mpp.config.own import is_own, own

Sized = TypeVar("Sized", Pretrain, Supervised)


def height_width(img_size: int | Sequence[int] | None) -> tuple[int, int]:
    """An image size, one side or two, as (height, width) in pixels; None is 32."""
    img_size = 32 if img_size is None else img_size
    sides = (img_size,) if isinstance(img_size, int) else img_size
    height, width = (*sides, *sides)[:2]
    return int(height), int(width)


def is_resnet(model: Model) -> bool:
    """Whether the options are those of a ResNet, and of no Vision Transformer."""
    return model.variant.startswith("bit-")


def sized(config: Sized) -> Sized:
    """The options of a pretraining with the image size of scratch where none is given: weights have their own."""
    if config.init != "scratch" or config.model.img_size is not None:
        return config
    return dataclasses.replace(config, model=dataclasses.replace(config.model, img_size=height_width(None)[0]))


def images_seen(train: Train) -> int:
    """How many images a run trains on, at least; repeats count. An epoch that is not counted yet is as many as there
    are."""
    if (train.epochs or 0) >= 1 or not train.steps:
        return LARGEST
    return 0 if train.epochs else train.steps * train.batch_size


def num_corrupted(num_patches: int, ratio: float) -> int:
    """K = round(ratio * N). Raises ValueError unless at least one patch is corrupted and one is not."""
    count = round(ratio * num_patches)
    if not 0 < count < num_patches:
        raise ValueError(
            f"ratio {ratio} corrupts {count} of {num_patches} patches; at least one must be corrupted, and one not"
        )
    return count


def num_visible(num_patches: int, keep: float) -> int:
    """V = round(keep * N). Raises ValueError unless at least one patch is visible and one is hidden."""
    count = round(keep * num_patches)
    if not 0 < count < num_patches:
        raise ValueError(
            f"a share of {keep} keeps {count} of {num_patches} patches; at least one must stay, and one not"
        )
    return count


def num_predicted(num_patches: int, keep: float, predict: float) -> int:
    """K = round(predict * hidden patches), at least one."""
    return max(1, round(predict * (num_patches - num_visible(num_patches, keep))))


def target_parts(target: str) -> dict[str, float]:
    """The targets that --data.target sums, with their weights: "hog+0.1*pixels" -> {"hog": 1, "pixels": 0.1}.
    Raises ValueError for a weight that is no number above 0, or a target given twice."""
    parts: dict[str, float] = {}
    for term in target.split("+"):
        weight, name = term.split("*", 1) if "*" in term else ("1", term)
        try:
            parts[name] = float(weight) if name not in parts else 0.0
        except ValueError:
            parts[name] = 0.0
        if not 0 < parts[name] < math.inf:
            raise ValueError(f"{term!r} must be one target, given once, with a weight above 0: hog+0.1*pixels")
    return parts


def cells_a_side(target: str, patch_size: int) -> int:
    """How many colour cells a side of a patch has in a target; 0 if it has none. Raises ValueError for a name that is
    no target, or cells that do not divide the patch."""
    if target in ("pixels", "normalised-pixels", "hog"):
        return 0
    if is_own(target):
        own("--data.target", target)
        return 0
    grid = re.fullmatch(r"(\d+)x\1", target)
    if target != "mean-colour" and not grid:
        raise ValueError(
            f"unknown target {target!r}; the targets are: mean-colour, 4x4 (or another square), pixels, "
            f"normalised-pixels, hog, and sums of them as in hog+0.1*pixels"
        )
    cells = int(grid[1]) if grid else 1
    if cells < 1 or patch_size % cells:
        raise ValueError(f"a patch of {patch_size}x{patch_size} pixels does not divide into {target} cells")
    return cells
