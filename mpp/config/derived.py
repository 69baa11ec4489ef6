"""Numbers that follow from options."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mpp.config.options import Train


def height_width(img_size: int | Sequence[int] | None) -> tuple[int, int]:
    """An image size, one side or two, as (height, width) in pixels; None is 32."""
    img_size = 32 if img_size is None else img_size
    sides = (img_size,) if isinstance(img_size, int) else img_size
    height, width = (*sides, *sides)[:2]
    return int(height), int(width)


def images_seen(train: Train) -> int:
    """How many images a run trains on; repeats count."""
    return train.steps * train.batch_size


def num_corrupted(num_patches: int, ratio: float) -> int:
    """K = round(ratio * N). Raises ValueError unless at least one patch is corrupted and one is not."""
    count = round(ratio * num_patches)
    if not 0 < count < num_patches:
        raise ValueError(
            f"ratio {ratio} corrupts {count} of {num_patches} patches; at least one must be corrupted, and one not"
        )
    return count


def cells_a_side(target: str, patch_size: int) -> int:
    """How many colour cells a side of a patch has in --data.target; 0 for raw pixels. Raises ValueError for a name that
    is no target, or cells that do not divide the patch."""
    if target == "pixels":
        return 0
    grid = re.fullmatch(r"(\d+)x\1", target)
    if target != "mean-colour" and not grid:
        raise ValueError(f"unknown target {target!r}; the targets are: mean-colour, 4x4 (or another square), pixels")
    cells = int(grid[1]) if grid else 1
    if cells < 1 or patch_size % cells:
        raise ValueError(f"a patch of {patch_size}x{patch_size} pixels does not divide into {target} cells")
    return cells
