"""The comparison: which pieces of work it takes, doing those that are missing, and collecting what they found."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from mpp.budget import cost_of, plan
from mpp.classify_job import refuse_odd_pairs
from mpp.config import (
    ArmPretraining,
    Compare,
    DownstreamModel,
    FineTune,
    LabelledAugment,
    LabelledData,
    LabelledEval,
    LabelledTrain,
    LinearProbe,
    Model,
    PooledModel,
    Pretrain,
    Supervised,
    height_width,
    like,
    parse,
    write_toml,
)
from mpp.errors import UserError, renamed
from mpp.finetune_job import run_finetuning, run_supervised
from mpp.images import Images
from mpp.labelled import open_fitted, open_labelled
from mpp.loop import named_folder, share_of
from mpp.models import build_vit, digest_of, fitted, load_backbone, refuse_shape_options
from mpp.pretrain_job import run_pretraining
from mpp.probe_job import probe_layers, refuse_more_shots_than_images, run_probe
from mpp.records import read_metrics, refuse_other_options
from mpp.report import Comparison, Finding, write_report

Command = Pretrain | Supervised | LinearProbe | FineTune
_STAMP = "init.sha256"  # in a piece's folder: of the weights that it started from


@dataclass(frozen=True)
class Piece:
    """One run of a command, in a folder of its own."""

    title: str
    folder: Path
    config: Command
    after: Piece | None = None  # the pretraining whose backbone it starts from

    @property
    def done(self) -> bool:
        """Whether there is a result, and of the backbone as it is now."""
        return (self.folder / "result.json").exists() and self.is_of_this_backbone()

    def is_of_this_backbone(self) -> bool:
        """Whether what the folder holds was begun from the weights that --init names now."""
        if self.after and not self.after.done:
            return False
        stamp = self.folder / _STAMP
        return not stamp.exists() or stamp.read_text() == str(digest_of(getattr(self.config, "init", "scratch")))

    def begin(self) -> None:
        """Clear away what an older backbone left, and note which it is now."""
        if not self.is_of_this_backbone():
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / _STAMP).write_text(str(digest_of(getattr(self.config, "init", "scratch"))))

    def result(self) -> dict[str, Any]:
        return json.loads((self.folder / "result.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Arm:
    """One backbone that is compared."""

    name: str
    init: str  # as --init takes it
    pretraining: Piece | None = None  # none of a backbone that was given


def run_comparison(config: Compare, accelerator: Accelerator) -> Path | None:
    """Do what is missing, then write the report; returns its folder, or None if a signal or --dry-run ended it."""
    output = named_folder(config.output, "compare")
    adopt(config)
    if config.data.path == "shapes" and config.data.label_column is None:
        config.data.label_column = "count"  # of another kind than colours, and than the shape, supervised's default
    with accelerator.main_process_first():
        images = open_downstream(config)
    counts = sorted({len(images) if labels == "all" else int(labels) for labels in config.labels})
    arms = arms_of(config, output)
    check_ahead(config, arms, accelerator)
    probes = {(arm.name, seed): probe_piece(config, arm, seed, output) for arm in arms for seed in config.seeds}
    tunings = {
        (arm.name, labels, seed): finetune_piece(config, arm, labels, seed, output)
        for labels in counts
        for seed in config.seeds
        for arm in arms
    }
    pieces = [arm.pretraining for arm in arms if arm.pretraining] + [*probes.values(), *tunings.values()]
    for piece in pieces:
        refuse_other_options(piece.folder, piece.config, remade=True)
    if accelerator.is_main_process:
        print(plan(config, [(piece.title, piece.config, piece.done) for piece in pieces], accelerator))
    if config.dry_run:
        return None
    if accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        write_toml(config, output / "config.toml")
    for number, piece in enumerate(pieces, start=1):
        if piece.done:
            continue
        accelerator.wait_for_everyone()  # all have looked, before the main process clears away
        if accelerator.is_main_process:
            piece.begin()
        accelerator.wait_for_everyone()
        accelerator.print(f"\n[{number}/{len(pieces)}] {piece.title}")
        run_piece(piece, accelerator)
        accelerator.wait_for_everyone()
        if not piece.done:
            accelerator.print(f"the comparison goes on with: --config {output / 'config.toml'} --output {output}")
            return None
    if accelerator.is_main_process:
        last = {arm.name: tunings[arm.name, counts[-1], config.seeds[0]] for arm in arms}
        layers = {arm.name: {probes[arm.name, seed].result()["layer"] for seed in config.seeds} for arm in arms}
        classes = len(images.label_names or [])
        found = Comparison(
            config=config,
            classes=classes,
            arms=[arm.name for arm in arms],
            findings=[*probe_findings(probes), *tuning_findings(tunings)],
            costs=[cost_of(arm.name, arm.init, config, classes) for arm in arms],
            curves={key: learning_curve(piece) for key, piece in tunings.items()},
            details={name: (piece.folder, piece.result()["per_class_top1"]) for name, piece in last.items()},
            layers={name: ", ".join(map(str, sorted(numbers))) for name, numbers in layers.items()},
            trained_here=[arm.name for arm in arms if arm.pretraining],
        )
        print(write_report(output, found))
    accelerator.wait_for_everyone()
    return output


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


def open_downstream(config: Compare) -> Images:
    """The training images of the downstream task. Raises UserError, before anything is trained, if it has no labels or
    too few."""
    size = height_width(config.finetune.model.img_size or config.pretrain.model.img_size)
    images, _ = open_labelled(like(LabelledData, config.data), size, seed=0)
    classes = len(images.label_names or [])
    for labels in config.labels:
        if labels != "all" and not classes <= int(labels) <= len(images):
            raise UserError(f"--labels {labels} must be from {classes} (one a class) to {len(images):,}")
    config.probe_labels = min(config.probe_labels, len(images))
    if config.probe_labels < classes:
        raise UserError(f"--probe-labels {config.probe_labels} must be at least {classes}, one a class")
    for seed in config.seeds:
        refuse_more_shots_than_images(
            config.probe, open_fitted(like(LabelledData, config.data, labels=config.probe_labels), size, seed)
        )
    return images


def check_ahead(config: Compare, arms: list[Arm], accelerator: Accelerator) -> None:
    """Raise UserError now for what would otherwise end the comparison after hours."""
    precisions = config.pretrain.train.precision, config.finetune.train.precision
    if any(arm.pretraining for arm in arms) and precisions[0] != precisions[1]:
        raise UserError(
            f"--pretrain.train.precision {precisions[0]} and --finetune.train.precision {precisions[1]} must be the "
            f"same where an arm is pretrained here"
        )
    for arm in arms:
        if arm.pretraining or arm.init == "scratch":
            vit = build_vit(config.pretrain.model)
        else:
            with renamed("--init", {"MPP": "--mpp", "supervised": "--supervised"}.get(arm.name, "--others")):
                vit = load_backbone(arm.init)
        with renamed("--model", "--finetune.model"):
            fitted(vit, config.finetune.model.img_size)
        probe_layers(config.probe.layer, vit.depth)
        if arm.pretraining and isinstance(supervised := arm.pretraining.config, Supervised):
            try:
                with renamed("--data", "--pretrain.data"):
                    open_labelled(supervised.data, height_width(supervised.model.img_size), seed=0)
            except UserError as error:
                raise UserError(
                    f"the supervised arm cannot be trained: {error}; --supervised none leaves it out"
                ) from error
    with renamed("--model", "--finetune.model"):
        refuse_shape_options("a backbone that is fine-tuned", config.finetune.model)
    if any(arm.pretraining for arm in arms):
        with renamed("--", "--pretrain."):
            share_of(config.pretrain.train, accelerator)
    with renamed("--", "--finetune."):
        refuse_odd_pairs(config.finetune.augment, share_of(config.finetune.train, accelerator))


def adopt(config: Compare) -> None:
    """Take the options of pretraining from the run that --mpp gives, so that an arm trained here gets its budget."""
    if config.supervised not in (None, "none") and not config.mpp:
        raise UserError("--supervised is compared with masked patch prediction: name its run, too, with --mpp")
    if not config.mpp:
        return
    if not (file := Path(config.mpp) / "config.toml").exists():
        if config.supervised is None:
            raise UserError(
                f"--mpp {config.mpp} is no run, so its budget is not known to train a supervised arm with: name one "
                f"with --supervised, or leave it out with --supervised none"
            )
        with renamed("--init", "--mpp"):
            hub = load_backbone(config.mpp).hub_config()
        shape = {option.name: hub[option.name] for option in dataclasses.fields(Model) if option.name in hub}
        config.pretrain.model = Model(**shape | {"img_size": tuple(hub["img_size"])})
        return
    run = parse(Pretrain, ["--config", str(file)])
    of_run = like(ArmPretraining, run)
    if config.pretrain not in (ArmPretraining(), of_run):
        raise UserError(f"--pretrain options are those of the run that --mpp gives ({config.mpp}); leave them out")
    config.pretrain = of_run


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


def pretrain_piece(config: Compare, output: Path) -> Piece:
    """Masked patch prediction with the --pretrain options."""
    folder = output / "pretrain" / "mpp"
    pretraining = like(Pretrain, config.pretrain, output=str(folder), resume=True)
    return Piece("pretraining by masked patch prediction", folder, pretraining)


def supervised_piece(config: Compare, output: Path) -> Piece:
    """Supervised pretraining with the same images, model, augmentation, optimiser and number of steps."""
    from_mpp = config.pretrain
    folder = output / "pretrain" / "supervised"
    supervised = Supervised(
        data=like(LabelledData, from_mpp.data),
        model=like(PooledModel, from_mpp.model, pool=config.finetune.model.pool),
        augment=like(LabelledAugment, from_mpp.augment),
        optim=from_mpp.optim,
        train=like(LabelledTrain, from_mpp.train),
        eval=like(LabelledEval, from_mpp.eval),
        seed=from_mpp.seed,
        output=str(folder),
        resume=True,
    )
    return Piece("pretraining with labels", folder, supervised)


def model_of(config: Compare, arm: Arm) -> DownstreamModel:
    """Model options of a downstream run; scratch has the shape of what is pretrained."""
    model = config.finetune.model
    if arm.init != "scratch":
        return model
    shape = config.pretrain.model
    own = {"dropout": model.dropout, "drop_path": model.drop_path, "img_size": model.img_size or shape.img_size}
    return like(DownstreamModel, shape, **own, pool=model.pool)


def probe_piece(config: Compare, arm: Arm, seed: int, output: Path) -> Piece:
    """The probes of an arm's frozen features."""
    folder = output / "probe" / arm.name / f"seed-{seed}"
    data = like(LabelledData, config.data, labels=config.probe_labels)
    probe = LinearProbe(
        init=arm.init,
        data=data,
        model=model_of(config, arm),
        probe=config.probe,
        precision=config.finetune.train.precision,
        seed=seed,
        output=str(folder),
    )
    return Piece(f"frozen features of {arm.name}, seed {seed}", folder, probe, arm.pretraining)


def finetune_piece(config: Compare, arm: Arm, labels: int, seed: int, output: Path) -> Piece:
    """Fine-tuning of an arm."""
    folder = output / "finetune" / arm.name / f"labels-{labels}" / f"seed-{seed}"
    data = like(LabelledData, config.data, labels=labels)
    own = {"init": arm.init, "data": data, "model": model_of(config, arm), "seed": seed}
    tuning = like(FineTune, config.finetune, **own, output=str(folder), resume=True)
    return Piece(f"fine-tuning {arm.name} with {labels:,} labels, seed {seed}", folder, tuning, arm.pretraining)


def learning_curve(piece: Piece) -> list[tuple[int, float]]:
    """Held-out top-1 after steps, of a fine-tuning."""
    return [(int(line["step"]), line["eval/top1"]) for line in read_metrics(piece.folder) if "eval/top1" in line]


def probe_findings(probes: dict[tuple[str, int], Piece]) -> Iterator[Finding]:
    """What the probes of frozen features found."""
    for (arm, seed), piece in probes.items():
        options: Any = piece.config
        result, labels = piece.result(), options.data.labels  # asked for: unreadable images may be missing
        for name, title in {
            "top1": "logistic regression",
            "ridge_top1": "ridge regression",
            "knn_top1": "k-NN",
        }.items():
            yield Finding(arm, title, labels, seed, result[f"eval/{name}"])
        for name, value in result.items():
            if name.startswith("eval/few_shot") and name.endswith("_top1"):
                shots = int(name.split("_")[2])
                yield Finding(
                    arm, f"{shots} label{'s' if shots > 1 else ''} a class", shots * result["classes"], seed, value
                )
        yield Finding(arm, "effective rank", labels, seed, result["effective_rank"])


def tuning_findings(tunings: dict[tuple[str, int, int], Piece]) -> Iterator[Finding]:
    """What the fine-tunings found."""
    for (arm, _, seed), piece in tunings.items():
        result = piece.result()
        yield Finding(arm, "fine-tuned", result["labels"], seed, result["eval/top1"])
