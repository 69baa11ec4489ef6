"""The comparison: which pieces of work it takes, doing those that are missing, and collecting what they found."""

from __future__ import annotations

import copy
import dataclasses
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode

from mpp.config import (
    ArmPretraining,
    Compare,
    DownstreamModel,
    FineTune,
    LabelledData,
    LabelledTrain,
    LinearProbe,
    Model,
    PooledModel,
    Pretrain,
    Supervised,
    differences,
    height_width,
    parse,
    write_toml,
)
from mpp.corrupt import draw_corruption
from mpp.draws import Purpose, generator
from mpp.errors import UserError
from mpp.finetune_job import run_finetuning, run_supervised
from mpp.images import Images
from mpp.labelled import open_labelled
from mpp.loop import named_folder
from mpp.models import Classifier, MaskedPatchModel, build_vit, downstream_vit
from mpp.pretrain_job import run_pretraining
from mpp.probe_job import run_probe
from mpp.records import read_metrics
from mpp.report import Cost, Finding, write_report
from mpp.targets import make_target
from mpp.vit import ViT

Command = Pretrain | Supervised | LinearProbe | FineTune


@dataclass(frozen=True)
class Piece:
    """One run of a command, in a folder of its own."""

    title: str
    folder: Path
    config: Command

    @property
    def done(self) -> bool:
        return (self.folder / "result.json").exists()

    def refuse_other_options(self) -> None:
        """Raise UserError if what is done was done with other options than are asked for now."""
        found = differences(self.folder / "config.toml", self.config)
        if getattr(getattr(self.config, "optim", None), "lr_grid", ()):  # which the run resolved
            found = {name: values for name, values in found.items() if name not in ("optim.lr", "optim.lr_grid")}
        if found:
            raise UserError(
                f"{self.folder} was made with other options than are asked for now ("
                + ", ".join(f"{name} {then}, now {now}" for name, (then, now) in list(found.items())[:3])
                + "); give another --output, or remove that folder to have it made again"
            )

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
    images = open_downstream(config)
    arms = arms_of(config, output)
    probes = {(arm.name, seed): probe_piece(config, arm, seed, output) for arm in arms for seed in config.seeds}
    tunings = {
        (arm.name, labels, seed): finetune_piece(config, arm, labels, seed, output)
        for labels in config.labels
        for seed in config.seeds
        for arm in arms
    }
    pieces = [arm.pretraining for arm in arms if arm.pretraining] + [*probes.values(), *tunings.values()]
    if accelerator.is_main_process:
        print(plan(config, pieces))
    if config.dry_run:
        return None
    if accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        write_toml(config, output / "config.toml")
    for number, piece in enumerate(pieces, start=1):
        if piece.done:
            piece.refuse_other_options()
            continue
        accelerator.print(f"\n[{number}/{len(pieces)}] {piece.title}")
        run_piece(piece, accelerator)
        accelerator.wait_for_everyone()
        if not piece.done:
            accelerator.print(f"the comparison goes on with: --config {output / 'config.toml'} --output {output}")
            return None
    if accelerator.is_main_process:
        findings = [*probe_findings(probes), *tuning_findings(tunings)]
        costs = {arm.name: cost_of(arm, config, images.label_names or []) for arm in arms}
        curves = {key: learning_curve(piece) for key, piece in tunings.items()}
        last = config.labels[-1]
        details = {arm.name: tunings[arm.name, last, config.seeds[0]] for arm in arms}
        print(
            write_report(
                output,
                config,
                findings,
                costs,
                curves,
                {name: (piece.folder, piece.result()["per_class_top1"]) for name, piece in details.items()},
            )
        )
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
    images, _ = open_labelled(LabelledData(**dataclasses.asdict(config.data)), size, seed=0)
    for labels in config.labels:
        if labels != "all" and not len(images.label_names or []) <= int(labels) <= len(images):
            raise UserError(
                f"--labels {labels} must be from {len(images.label_names or [])} (one a class) to {len(images):,}"
            )
    config.probe_labels = min(config.probe_labels, len(images))
    return images


def adopt(config: Compare) -> None:
    """Take the options of pretraining from the run that --mpp gives, so that arms trained here get its budget."""
    if not config.mpp:
        return
    if (file := Path(config.mpp) / "config.toml").exists():
        run = parse(Pretrain, ["--config", str(file)])
        config.pretrain = ArmPretraining(
            **{part.name: getattr(run, part.name) for part in dataclasses.fields(ArmPretraining)}
        )
        return
    hub = downstream_vit(config.mpp, DownstreamModel()).hub_config()
    shape = {option.name: hub[option.name] for option in dataclasses.fields(Model) if option.name in hub}
    config.pretrain.model = Model(**shape | {"img_size": tuple(hub["img_size"])})


def arms_of(config: Compare, output: Path) -> list[Arm]:
    """Scratch, MPP, supervised, and --others."""
    arms = [Arm("scratch", "scratch")]
    for name, given, piece in (
        ("MPP", config.mpp, pretrain_piece(config, output)),
        ("supervised", config.supervised, supervised_piece(config, output)),
    ):
        arms.append(Arm(name, given) if given else Arm(name, str(piece.folder), piece))
    for other in config.others:
        name, _, init = other.partition("=")
        if not (name.isidentifier() and init) or name in [arm.name for arm in arms]:
            raise UserError(f"--others {other} must be NAME=INIT, with a name of its own, in letters and digits")
        arms.append(Arm(name, init))
    return arms


def pretrain_piece(config: Compare, output: Path) -> Piece:
    """Masked patch prediction with the --pretrain options."""
    options = {field.name: getattr(config.pretrain, field.name) for field in dataclasses.fields(config.pretrain)}
    folder = output / "pretrain" / "mpp"
    return Piece("pretraining by masked patch prediction", folder, Pretrain(**options, output=str(folder), resume=True))


def supervised_piece(config: Compare, output: Path) -> Piece:
    """Supervised pretraining with the same images, model, augmentation, optimiser and number of steps."""
    from_mpp = config.pretrain
    data = {field.name: getattr(from_mpp.data, field.name) for field in dataclasses.fields(LabelledData)[:-1]}
    folder = output / "pretrain" / "supervised"
    supervised = Supervised(
        data=LabelledData(**data),
        model=PooledModel(**dataclasses.asdict(from_mpp.model), pool=config.finetune.model.pool),
        optim=from_mpp.optim,
        train=LabelledTrain(**dataclasses.asdict(from_mpp.train)),
        output=str(folder),
        resume=True,
    )
    for part in ("augment", "eval"):
        shared = {field.name for field in dataclasses.fields(getattr(supervised, part))}
        values = {k: v for k, v in dataclasses.asdict(getattr(from_mpp, part)).items() if k in shared}
        setattr(supervised, part, dataclasses.replace(getattr(supervised, part), **values))
    return Piece("pretraining with labels", folder, supervised)


def model_of(config: Compare, arm: Arm) -> DownstreamModel:
    """Model options of a downstream run; scratch has the shape of what is pretrained."""
    model = config.finetune.model
    if arm.init != "scratch":
        return dataclasses.replace(model)
    shape = dataclasses.asdict(config.pretrain.model)
    own = {"dropout": model.dropout, "drop_path": model.drop_path, "img_size": model.img_size or shape["img_size"]}
    return DownstreamModel(**shape | own, pool=model.pool)


def probe_piece(config: Compare, arm: Arm, seed: int, output: Path) -> Piece:
    """The probes of an arm's frozen features."""
    folder = output / "probe" / arm.name / f"seed-{seed}"
    data = LabelledData(**dataclasses.asdict(config.data), labels=config.probe_labels)
    probe = LinearProbe(
        init=arm.init,
        data=data,
        model=model_of(config, arm),
        probe=config.probe,
        precision=config.finetune.train.precision,
        seed=seed,
        output=str(folder),
    )
    return Piece(f"frozen features of {arm.name}, seed {seed}", folder, probe)


def finetune_piece(config: Compare, arm: Arm, labels: str, seed: int, output: Path) -> Piece:
    """Fine-tuning of an arm."""
    folder = output / "finetune" / arm.name / f"labels-{labels}" / f"seed-{seed}"
    data = LabelledData(**dataclasses.asdict(config.data), labels=None if labels == "all" else int(labels))
    options = {part: getattr(config.finetune, part) for part in ("augment", "optim", "train", "eval")}
    tuning = FineTune(
        **options, init=arm.init, data=data, model=model_of(config, arm), seed=seed, output=str(folder), resume=True
    )
    return Piece(f"fine-tuning {arm.name} with {labels} labels, seed {seed}", folder, tuning)


def plan(config: Compare, pieces: list[Piece]) -> str:
    """What will be done and how long it may take, from the speed of a step on this machine."""
    vit = build_vit(config.pretrain.model)
    sizes = {vit.img_size, height_width(config.finetune.model.img_size or config.pretrain.model.img_size)}
    speeds = {size: seconds_an_image(vit.resize(size)) for size in sizes}
    seconds = [0.0 if piece.done else estimate(config, piece, speeds) for piece in pieces]
    lines = [f"The comparison takes {len(pieces)} runs, of which {sum(piece.done for piece in pieces)} are done:"]
    for piece, needs in zip(pieces, seconds, strict=True):
        lines.append(f"  {'     done' if piece.done else f'{needs / 60:5.1f} min'}  {piece.title}")
    return "\n".join([*lines, f"about {sum(seconds) / 60:.0f} minutes in all, on one process like this one"])


def estimate(config: Compare, piece: Piece, speeds: dict[tuple[int, int], tuple[float, float]]) -> float:
    """Seconds that a piece may take: its images, at the speed of the model that is pretrained, and a start."""
    options = piece.config
    train, forward = speeds[height_width(options.model.img_size or config.pretrain.model.img_size)]
    if isinstance(options, LinearProbe):
        return (options.probe.eval_images + (options.data.labels or 0)) * forward + 5
    evaluations = -(-options.train.steps // options.eval.every)
    runs = 1 + len(getattr(options.optim, "lr_grid", ()))
    return runs * (
        1 + options.train.steps * options.train.batch_size * train + evaluations * options.eval.images * forward
    )


def seconds_an_image(vit: ViT, batch: int = 32) -> tuple[float, float]:
    """Seconds that training on an image takes this process, and looking at one: the faster of two goes."""
    images = torch.zeros(batch, vit.in_chans, *vit.img_size)

    def seconds(train: bool) -> float:
        started = time.perf_counter()
        with torch.set_grad_enabled(train):
            tokens = vit(images)
            if train:
                tokens.sum().backward()
        return (time.perf_counter() - started) / batch

    return min(seconds(True), seconds(True)), min(seconds(False), seconds(False))


def cost_of(arm: Arm, config: Compare, classes: list[str]) -> Cost:
    """What an arm took: pretraining, where its run says so, and fine-tuning at one label count."""
    tune, tuned = config.finetune.train, build_vit(model_of(config, Arm("scratch", "scratch")))
    tuning_flops = tune.steps * tune.batch_size * flops_an_image(Classifier(tuned, classes))
    folder = Path(arm.init)
    if arm.init == "scratch" or not (folder / "result.json").exists():
        return Cost(
            arm.name, 0 if arm.init == "scratch" else None, None, None, tune.steps * tune.batch_size, tuning_flops
        )
    run = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    model: torch.nn.Module
    if run["command"] == "pretrain":
        pretraining = parse(Pretrain, ["--config", str(folder / "config.toml")])
        vit = build_vit(pretraining.model)
        target = make_target(pretraining.data.target, vit.patch_size, pretraining.data.bits)
        model = MaskedPatchModel(vit, target.num_outputs)
        drawn = draw_corruption([generator(0, Purpose.EVAL)], vit.grid, pretraining.corrupt.ratio, (1.0, 0.0, 0.0))
        flops = flops_an_image(model, drawn)
    else:
        model = Classifier(
            build_vit(parse(Supervised, ["--config", str(folder / "config.toml")]).model), classes, head="mlp"
        )
        flops = flops_an_image(model)
    seen = run["images_seen"]
    return Cost(arm.name, seen, run["seconds"], seen * flops, tune.steps * tune.batch_size, tuning_flops)


def flops_an_image(model: Any, *more: Any) -> int:
    """Floating-point operations of training on one image, forward and backward."""
    images = torch.zeros(1, model.vit.in_chans, *model.vit.img_size)
    with FlopCounterMode(display=False) as counter:
        model(images, *more).sum().backward()
    return counter.get_total_flops()


def learning_curve(piece: Piece) -> list[tuple[int, float]]:
    """Held-out top-1 after steps, of a fine-tuning."""
    return [(int(line["step"]), line["eval/top1"]) for line in read_metrics(piece.folder) if "eval/top1" in line]


def probe_findings(probes: dict[tuple[str, int], Piece]) -> Iterator[Finding]:
    """What the probes of frozen features found."""
    for (arm, seed), piece in probes.items():
        result = piece.result()
        for name, title in {
            "top1": "logistic regression",
            "ridge_top1": "ridge regression",
            "knn_top1": "k-NN",
        }.items():
            yield Finding(arm, title, result["labels"], seed, result[f"eval/{name}"])
        for name, value in result.items():
            if name.startswith("eval/few_shot") and name.endswith("_top1"):
                shots = int(name.split("_")[2])
                yield Finding(
                    arm, f"{shots} label{'s' if shots > 1 else ''} a class", shots * result["classes"], seed, value
                )
        yield Finding(arm, "effective rank", result["labels"], seed, result["effective_rank"])


def tuning_findings(tunings: dict[tuple[str, str, int], Piece]) -> Iterator[Finding]:
    """What the fine-tunings found."""
    for (arm, _, seed), piece in tunings.items():
        result = piece.result()
        yield Finding(arm, "fine-tuned", result["labels"], seed, result["eval/top1"])
