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

from mpp.commands.dense import run_dense
from mpp.commands.finetune import run_finetuning
from mpp.commands.linear_probe import run_probe
from mpp.commands.pretrain import run_pretraining
from mpp.commands.supervised import run_supervised
from mpp.config.command_line import options_of
from mpp.config.commands import Compare, FineTune, LinearProbe, Pretrain, Supervised
from mpp.config.dense import Dense
from mpp.config.options import LabelledData, MeasuredData, Model, PooledModel
from mpp.data.identity import Identity
from mpp.files import write_whole
from mpp.models.backbones import digest_of

Command = Pretrain | Supervised | LinearProbe | FineTune | Dense


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
        return str(digest_of(self.config.init))

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


def run_piece(options: Command, accelerator: Accelerator) -> dict[str, Any]:
    """Run a command in this process; returns what it found."""
    config = copy.deepcopy(options)
    if isinstance(config, Pretrain):
        return run_pretraining(config, accelerator)
    if isinstance(config, Supervised):
        return run_supervised(config, accelerator)
    if isinstance(config, LinearProbe):
        return run_probe(config, accelerator)
    if isinstance(config, Dense):
        return run_dense(config, accelerator)
    return run_finetuning(config, accelerator)


def model_of(config: Compare, start: Start) -> PooledModel:
    """Model options of a downstream run; scratch has the shape of what is pretrained."""
    model = dataclasses.replace(config.finetune.model, img_size=start.img_size or config.finetune.model.img_size)
    if start.init != "scratch":
        return model
    shape = config.pretrain.model
    own = {"dropout": model.dropout, "drop_path": model.drop_path, "img_size": model.img_size or shape.img_size}
    return options_of(PooledModel, shape, **own, pool=model.pool)


@dataclass(frozen=True)
class Start:
    """What a downstream run starts from: the backbone of an arm and of one of its pretraining seeds."""

    arm: str
    init: str
    pretraining: Piece | None  # the run that makes it
    img_size: int | None = None  # the side of the images there, if it is the arm's own


def probe_piece(config: Compare, start: Start, seed: int, output: Path, images: Identity) -> Piece:
    """The probes of the frozen features that an arm starts with."""
    folder = output / "probe" / start.arm / f"seed-{seed}"
    data = options_of(LabelledData, config.data, labels=config.probe_labels)
    probe = LinearProbe(
        init=start.init,
        data=data,
        model=model_of(config, start),
        probe=config.probe,
        precision=config.finetune.train.precision,
        seed=seed,
        output=str(folder),
    )
    return Piece(f"frozen features of {start.arm}, seed {seed}", folder, probe, start.pretraining, images)


def dense_piece(config: Compare, start: Start, seed: int, output: Path, images: Identity | None) -> Piece:
    """Segmentation or depth from the frozen patches that an arm starts with."""
    judge, of = config.dense, config.data
    assert judge.path
    folder = output / "dense" / start.arm / f"seed-{seed}"
    data = MeasuredData(path=judge.path, label_column=judge.label_column, channels=of.channels, range=of.range)
    own = {"model": options_of(Model, model_of(config, start)), "seed": seed, "output": str(folder)}
    own |= {"precision": config.finetune.train.precision}
    dense = options_of(Dense, judge, init=start.init, data=dataclasses.replace(data, workers=of.workers), **own)
    return Piece(
        f"{judge.task} from frozen patches of {start.arm}, seed {seed}", folder, dense, start.pretraining, images
    )


def finetune_piece(config: Compare, start: Start, labels: int, seed: int, output: Path, images: Identity) -> Piece:
    """Fine-tuning of what an arm starts with."""
    folder = output / "finetune" / start.arm / f"labels-{labels}" / f"seed-{seed}"
    data = options_of(LabelledData, config.data, labels=labels)
    own = {"init": start.init, "data": data, "model": model_of(config, start), "seed": seed}
    tuning = options_of(FineTune, config.finetune, **own, output=str(folder), resume=True)
    title = f"fine-tuning {start.arm} with {labels:,} labels, seed {seed}"
    return Piece(title, folder, tuning, start.pretraining, images)
