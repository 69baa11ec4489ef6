"""The pieces of work of a comparison: which runs it takes, and in which folders."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from mpp.commands.finetune import run_finetuning
from mpp.commands.linear_probe import run_probe
from mpp.commands.pretrain import run_pretraining
from mpp.commands.supervised import run_supervised
from mpp.config.command_line import options_of
from mpp.config.commands import Compare, FineTune, LinearProbe, Pretrain, Supervised
from mpp.config.derived import height_width
from mpp.config.options import LabelledAugment, LabelledData, LabelledTrain, PooledModel, ProbedEval
from mpp.data.identity import Identity
from mpp.data.splits import open_labelled, open_splits
from mpp.errors import UserError
from mpp.files import write_whole
from mpp.models.backbones import digest_of

Command = Pretrain | Supervised | LinearProbe | FineTune


_STAMP = "init.sha256"  # in a piece's folder: of the weights that it started from


@dataclass(frozen=True)
class Piece:
    """One run of a command, in a folder of its own."""

    title: str
    folder: Path
    config: Command
    after: Piece | None = None  # the pretraining whose backbone it starts from
    data: Identity | None = None  # of its images as they are now

    @property
    def done(self) -> bool:
        """Whether there is a result, and of the backbone and the images as they are now."""
        return (self.folder / "result.json").exists() and self.is_of_this_backbone() and not self.changes

    @property
    def changes(self) -> str:
        """What has changed in the images since the piece was begun, in words; "" if nothing has."""
        return self.data.changes(self.folder) if self.data else ""

    @property
    def digest(self) -> str:
        """The checksum of the weights that the piece starts from; "None" of random ones."""
        return str(digest_of(self.config.init if isinstance(self.config, LinearProbe | FineTune) else "scratch"))

    def is_of_this_backbone(self) -> bool:
        """Whether what the folder holds was begun from the weights that --init names now."""
        if self.after and not self.after.done:
            return False
        stamp = self.folder / _STAMP
        return not stamp.exists() or stamp.read_text() == self.digest

    def begin(self) -> None:
        """Clear away what an older backbone or other images left, and note which it is now."""
        if changes := self.changes:
            print(f"{self.folder} is made again, as its images have changed ({changes})")
        if changes or not self.is_of_this_backbone():
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / _STAMP, self.digest.encode())

    def result(self) -> dict[str, Any]:
        return json.loads((self.folder / "result.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Arm:
    """One backbone that is compared."""

    name: str
    init: str  # as --init takes it
    pretraining: Piece | None = None  # none of a backbone that was given


def run_piece(piece: Piece, accelerator: Accelerator) -> None:
    """Run a piece's command in this process."""
    config = copy.deepcopy(piece.config)
    if isinstance(config, Pretrain):
        run_pretraining(config, accelerator)
    elif isinstance(config, Supervised):
        run_supervised(config, accelerator)
    elif isinstance(config, LinearProbe):
        run_probe(config, accelerator)
    else:
        run_finetuning(config, accelerator)


def arms_of(config: Compare, output: Path) -> list[Arm]:
    """Scratch, MPP, supervised, and --others."""
    arms = [Arm("scratch", "scratch")]
    for name, given, piece in (
        ("MPP", config.mpp, pretrain_piece(config, output)),
        ("supervised", config.supervised, supervised_piece(config, output)),
    ):
        if given != "none":
            arms.append(Arm(name, given) if given else Arm(name, str(piece.folder), piece))
    for other in config.others:
        name, _, init = other.partition("=")
        if not (name.isidentifier() and init) or name in [arm.name for arm in arms]:
            raise UserError(f"--others {other} must be NAME=INIT, with a name of its own, in letters and digits")
        arms.append(Arm(name, init))
    return arms


def with_identity(arm: Arm) -> Arm:
    """An arm whose pretraining knows what its images are now."""
    if arm.pretraining is None:
        return arm
    config = arm.pretraining.config
    if isinstance(config, Pretrain):
        uncached = dataclasses.replace(config, data=dataclasses.replace(config.data, cache=False))
        data = Identity.of(*open_splits(uncached, height_width(config.model.img_size)))
    else:
        data = Identity.of(*open_labelled(config.data, height_width(config.model.img_size), config.seed), labels=True)
    return dataclasses.replace(arm, pretraining=dataclasses.replace(arm.pretraining, data=data))


def pretrain_piece(config: Compare, output: Path) -> Piece:
    """Masked patch prediction with the --pretrain options."""
    folder = output / "pretrain" / "mpp"
    pretraining = options_of(Pretrain, config.pretrain, output=str(folder), resume=True)
    return Piece("pretraining by masked patch prediction", folder, pretraining)


def supervised_piece(config: Compare, output: Path) -> Piece:
    """Supervised pretraining with the same images, model, augmentation, optimiser and number of steps."""
    from_mpp = config.pretrain
    folder = output / "pretrain" / "supervised"
    supervised = Supervised(
        data=options_of(LabelledData, from_mpp.data),
        model=options_of(PooledModel, from_mpp.model, pool=config.finetune.model.pool),
        augment=options_of(LabelledAugment, from_mpp.augment),
        optim=from_mpp.optim,
        train=options_of(LabelledTrain, from_mpp.train),
        eval=options_of(ProbedEval, from_mpp.eval),
        seed=from_mpp.seed,
        output=str(folder),
        resume=True,
    )
    return Piece("pretraining with labels", folder, supervised)


def model_of(config: Compare, arm: Arm) -> PooledModel:
    """Model options of a downstream run; scratch has the shape of what is pretrained."""
    model = config.finetune.model
    if arm.init != "scratch":
        return model
    shape = config.pretrain.model
    own = {"dropout": model.dropout, "drop_path": model.drop_path, "img_size": model.img_size or shape.img_size}
    return options_of(PooledModel, shape, **own, pool=model.pool)


def probe_piece(config: Compare, arm: Arm, seed: int, output: Path, images: Identity) -> Piece:
    """The probes of an arm's frozen features."""
    folder = output / "probe" / arm.name / f"seed-{seed}"
    data = options_of(LabelledData, config.data, labels=config.probe_labels)
    probe = LinearProbe(
        init=arm.init,
        data=data,
        model=model_of(config, arm),
        probe=config.probe,
        precision=config.finetune.train.precision,
        seed=seed,
        output=str(folder),
    )
    return Piece(f"frozen features of {arm.name}, seed {seed}", folder, probe, arm.pretraining, images)


def finetune_piece(config: Compare, arm: Arm, labels: int, seed: int, output: Path, images: Identity) -> Piece:
    """Fine-tuning of an arm."""
    folder = output / "finetune" / arm.name / f"labels-{labels}" / f"seed-{seed}"
    data = options_of(LabelledData, config.data, labels=labels)
    own = {"init": arm.init, "data": data, "model": model_of(config, arm), "seed": seed}
    tuning = options_of(FineTune, config.finetune, **own, output=str(folder), resume=True)
    return Piece(f"fine-tuning {arm.name} with {labels:,} labels, seed {seed}", folder, tuning, arm.pretraining, images)
