"""Segmentation or depth as a judge of a comparison: what is looked for before anything is trained."""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator

from mpp.comparison.pieces import Start, dense_piece
from mpp.config.commands import Compare
from mpp.config.dense import Dense
from mpp.config.derived import height_width
from mpp.data.identity import Identity
from mpp.data.maps import open_mapped
from mpp.errors import UserError, renamed


def identity_of_masks(config: Compare, accelerator: Accelerator) -> Identity | None:
    """What the images are on which pixels are measured; None if none are. Raises UserError, before anything is trained,
    if there are no masks."""
    if config.dense.path is None:
        return None
    if accelerator.num_processes > 1:
        raise UserError(
            f"--dense.path {config.dense.path} is measured on one process, not {accelerator.num_processes}: leave "
            f"it or --processes out"
        )
    size = height_width(config.finetune.model.img_size or config.pretrain.model.img_size)
    options = dense_piece(config, Start("", "scratch", None), 0, Path(), None).config
    assert isinstance(options, Dense)
    path = [config.dense.path]
    with (
        renamed("--masks", "--dense.masks", path),
        renamed("--ignore", "--dense.ignore", path),
        renamed("--data", "--dense", path),
    ):
        train, test, _ = open_mapped(options, options.data, size)
    return Identity.of(train.images, test.images)
