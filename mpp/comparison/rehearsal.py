"""--dry-run of a comparison: one run of each kind is rehearsed, so that all can be planned by what was measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from mpp.comparison.budget import kind_of
from mpp.comparison.pieces import Command, Piece, run_piece
from mpp.config.command_line import options_of
from mpp.config.commands import Pretrain, Supervised
from mpp.config.options import PooledModel
from mpp.run.folder import holds_a_run


def rehearsed(pieces: Sequence[Piece], accelerator: Accelerator) -> dict[Path, float]:
    """The seconds of every run that is missing, by its folder. All processes call it."""
    missing = [piece for piece in pieces if not piece.done]
    kinds: dict[str, Piece] = {}
    for piece in missing:
        kinds.setdefault(_kind(piece), piece)
    seconds = {}
    for number, (kind, piece) in enumerate(kinds.items(), start=1):
        alike = sum(_kind(other) == kind for other in missing)
        accelerator.print(f"\n[{number}/{len(kinds)}] {piece.title}" + (f", for {alike} like it" if alike > 1 else ""))
        seconds[kind] = run_piece(as_rehearsal(piece), accelerator)["seconds"]
    return {piece.folder: seconds[_kind(piece)] for piece in missing}


def _kind(piece: Piece) -> str:
    """Runs of one kind take as long as each other: they differ in seeds, weights and labels alone."""
    options: Any = piece.config
    if isinstance(options, Pretrain | Supervised):
        options = dataclasses.replace(options, seed=0, output=None)
        return repr(options)
    return repr((type(options).__name__, kind_of(piece)))


def as_rehearsal(piece: Piece) -> Command:
    """The options of a run that is only rehearsed; where its backbone is still to be trained, of one of its shape."""
    options: Any = dataclasses.replace(piece.config, dry_run=True)
    if isinstance(options, Pretrain | Supervised):
        return options
    if holds_a_run(piece.folder):  # which it would go on with
        options = dataclasses.replace(options, output=f"{piece.folder}-dry-run")
    if hasattr(options, "resume"):
        options = dataclasses.replace(options, resume=False)
    if piece.after is None or piece.after.done:
        return options
    begun: Any = piece.after.config
    model = options.model
    if begun.init == "scratch":
        own = {name: getattr(model, name) for name in ("pool", "dropout", "drop_path")}
        model = options_of(PooledModel, begun.model, **own, img_size=model.img_size or begun.model.img_size)
    return dataclasses.replace(options, init=begun.init, model=model)
