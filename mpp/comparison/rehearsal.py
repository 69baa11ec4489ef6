"""--dry-run of a comparison: one run of each kind is rehearsed, so that all can be planned by what was measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from mpp.commands.rehearsal import evaluations_of
from mpp.comparison.budget import kind_of
from mpp.comparison.pieces import Command, Piece, run_piece
from mpp.config.command_line import options_of
from mpp.config.commands import Pretrain, Supervised
from mpp.config.options import Optim
from mpp.run.folder import holds_a_run
from mpp.training.checkpoints import Start


def rehearsed(pieces: Sequence[Piece], accelerator: Accelerator) -> dict[Path, float]:
    """The seconds of every run that is missing, by its folder. All processes call it."""
    missing = [piece for piece in pieces if not piece.done]
    kinds: dict[str, Piece] = {}
    for piece in missing:
        kinds.setdefault(_kind(piece), piece)
    found = {}
    for number, (kind, piece) in enumerate(kinds.items(), start=1):
        alike = sum(_kind(other) == kind for other in missing)
        accelerator.print(f"\n[{number}/{len(kinds)}] {piece.title}" + (f", for {alike} like it" if alike > 1 else ""))
        found[kind] = run_piece(as_rehearsal(piece), accelerator)
    return {piece.folder: _seconds(piece, found[_kind(piece)]) for piece in missing}


def _seconds(piece: Piece, found: dict[str, Any]) -> float:
    """What a run takes by the steps of one of its kind."""
    if not isinstance(piece.config, Pretrain | Supervised):
        return found["seconds"]
    evaluations = evaluations_of(piece.config, Start()) * (found["seconds_an_evaluation"] + found["seconds_a_probe"])
    return piece.config.train.steps * found["seconds_a_step"] + evaluations


def _kind(piece: Piece) -> str:
    """A step takes as long in all runs of one kind: pretrainings that differ in seeds, lengths and what regularises, or
    measurements that differ in seeds, weights and labels."""
    options: Any = piece.config
    if not isinstance(options, Pretrain | Supervised):
        return repr((type(options).__name__, kind_of(piece)))
    alike: dict[str, Any] = {
        "train": dataclasses.replace(options.train, steps=1),
        "eval": dataclasses.replace(options.eval, every=1),
        "optim": Optim(name=options.optim.name),
        "model": dataclasses.replace(options.model, dropout=0.0, drop_path=0.0),
        "data": dataclasses.replace(options.data, fraction=1.0),
    }
    return repr(dataclasses.replace(options, seed=0, output=None, **alike))


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
        own = {name: getattr(model, name) for name in ("pool", "dropout", "drop_path") if hasattr(model, name)}
        model = options_of(type(model), begun.model, **own, img_size=model.img_size or begun.model.img_size)
    return dataclasses.replace(options, init=begun.init, model=model)
