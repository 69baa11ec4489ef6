"""The command `compare`: do the pieces of work that are missing, and collect what they found."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from mpp.commands.downstream import as_taken_by
from mpp.commands.labelled import tell_classes
from mpp.commands.linear_probe import probe_layers, refuse_more_shots_than_images
from mpp.comparison.budget import cost_of, plan
from mpp.comparison.pieces import Arm, Piece, arms_of, finetune_piece, probe_piece, run_piece, with_identity
from mpp.comparison.report import Comparison, write_report
from mpp.comparison.statistics import Finding
from mpp.config.checks import texts
from mpp.config.command_line import options_of, parse, write_toml
from mpp.config.commands import Compare, Pretrain, Pretraining, Supervised
from mpp.config.derived import height_width
from mpp.config.options import LabelledData, Model
from mpp.data.identity import Identity
from mpp.data.images import Images, bands_of
from mpp.data.loader import share_of
from mpp.data.splits import open_fitted, open_labelled
from mpp.data.survey import noted
from mpp.errors import UserError, renamed
from mpp.methods.classify import refuse_odd_pairs
from mpp.models.backbones import build_vit, fitted, load_backbone, refuse_shape_options
from mpp.run.folder import claimed, named_folder, read_metrics, refuse_other_options
from mpp.run.stops import Stopped


def run_comparison(config: Compare, accelerator: Accelerator) -> Path | None:
    """Do what is missing, then write the report; returns its folder, or None after --dry-run."""
    output = named_folder(config.output, "compare")
    config = read_alike(adopted(config))
    with accelerator.main_process_first():
        images, measured = open_downstream(config)
    tell_classes(options_of(LabelledData, config.data), images, measured, accelerator)
    config = noted(dataclasses.replace(config, probe_labels=min(config.probe_labels, len(images))), images)
    counts = sorted({len(images) if labels == "all" else int(labels) for labels in config.labels})
    arms = arms_of(config, output)
    check_ahead(config, arms, accelerator)
    looked = None
    if accelerator.is_main_process:  # one process looks at the images
        looked = [with_identity(arm) for arm in arms], Identity.of(images, measured, labels=True)
    arms, data = broadcast_object_list([looked])[0]
    probes = {(arm.name, seed): probe_piece(config, arm, seed, output, data) for arm in arms for seed in config.seeds}
    tunings = {
        (arm.name, labels, seed): finetune_piece(config, arm, labels, seed, output, data)
        for labels in counts
        for seed in config.seeds
        for arm in arms
    }
    pieces = [arm.pretraining for arm in arms if arm.pretraining] + [*probes.values(), *tunings.values()]
    for piece in (piece for piece in pieces if not piece.changes):
        refuse_other_options(piece.folder, piece.config, remade=True)
    if accelerator.is_main_process:
        print(plan(config, [(piece.title, piece.config, piece.done) for piece in pieces], accelerator))
    if config.dry_run:
        return None
    with claimed(output, accelerator):
        try:
            if accelerator.is_main_process:
                write_toml(config, output / "config.toml")
            do_what_is_missing(pieces, accelerator)
            if accelerator.is_main_process:
                found = collect(config, arms, probes, tunings, images)
                print(write_report(output, found))
            accelerator.wait_for_everyone()
        except Stopped as stop:
            stop.way_on = f"the comparison goes on with: --config {output / 'config.toml'} --output {output}"
            raise
    return output


def do_what_is_missing(pieces: list[Piece], accelerator: Accelerator) -> None:
    """Run the pieces that have no result yet."""
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


def collect(
    config: Compare,
    arms: list[Arm],
    probes: dict[tuple[str, int], Piece],
    tunings: dict[tuple[str, int, int], Piece],
    images: Images,
) -> Comparison:
    """What all pieces found."""
    classes, channels = len(images.label_names or []), bands_of(images).channels or 3
    most = max(labels for _, labels, _ in tunings)
    last = {arm.name: tunings[arm.name, most, config.seeds[0]] for arm in arms}
    layers = {arm.name: {probes[arm.name, seed].result()["layer"] for seed in config.seeds} for arm in arms}
    return Comparison(
        config=config,
        classes=classes,
        arms=[arm.name for arm in arms],
        findings=[*probe_findings(probes), *tuning_findings(tunings)],
        costs=[cost_of(arm.name, arm.init, config, classes, channels) for arm in arms],
        curves={key: learning_curve(piece) for key, piece in tunings.items()},
        details={name: (piece.folder, piece.result()["per_class_top1"]) for name, piece in last.items()},
        layers={name: ", ".join(map(str, sorted(numbers))) for name, numbers in layers.items()},
        trained_here=[arm.name for arm in arms if arm.pretraining],
    )


def open_downstream(config: Compare) -> tuple[Images, Images]:
    """The images of the downstream task, to train and be measured on. Raises UserError, before anything is trained, if
    they have no labels or too few."""
    size = height_width(config.finetune.model.img_size or config.pretrain.model.img_size)
    images, measured = open_labelled(options_of(LabelledData, config.data), size, seed=0)
    classes = len(images.label_names or [])
    for count in config.labels:
        if count != "all" and not classes <= int(count) <= len(images):
            raise UserError(f"--labels {count} must be from {classes} (one a class) to {len(images):,}")
    if config.probe_labels < classes:
        raise UserError(f"--probe-labels {config.probe_labels} must be at least {classes}, one a class")
    labels = min(config.probe_labels, len(images))
    for seed in config.seeds:
        refuse_more_shots_than_images(
            config.probe, open_fitted(options_of(LabelledData, config.data, labels=labels), size, seed)
        )
    return images, measured


def check_ahead(config: Compare, arms: list[Arm], accelerator: Accelerator) -> None:
    """Raise UserError now for what would otherwise end the comparison after hours."""
    typed = texts(config)
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
            with renamed("--init", {"MPP": "--mpp", "supervised": "--supervised"}.get(arm.name, "--others"), typed):
                vit = load_backbone(arm.init)
                with as_taken_by(vit, arm.init, options_of(LabelledData, config.data)) as data:
                    open_fitted(data, vit.img_size, seed=0)
        with renamed("--model", "--finetune.model", typed):
            fitted(vit, config.finetune.model.img_size)
        probe_layers(config.probe.layer, vit.depth)
        if arm.pretraining and isinstance(supervised := arm.pretraining.config, Supervised):
            try:
                with renamed("--data", "--pretrain.data", typed):
                    open_labelled(supervised.data, height_width(supervised.model.img_size), seed=0)
            except UserError as error:
                raise UserError(
                    f"the supervised arm cannot be trained: {error}; --supervised none leaves it out"
                ) from error
    with renamed("--model", "--finetune.model", typed):
        refuse_shape_options("a backbone that is fine-tuned", config.finetune.model)
    if any(arm.pretraining for arm in arms):
        with renamed("--", "--pretrain.", typed):
            share_of(config.pretrain.train, accelerator)
    with renamed("--", "--finetune.", typed):
        refuse_odd_pairs(config.finetune.augment, share_of(config.finetune.train, accelerator))


def adopted(config: Compare) -> Compare:
    """The options of a comparison, with what they leave open: the label of the built-in images, and the pretraining of
    the run that --mpp gives, so that an arm trained here gets its budget."""
    if config.data.path == "shapes" and config.data.label_column is None:
        # count differs from colour, which MPP predicts, and from shape, which supervised pretraining learns
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, label_column="count"))
    if config.supervised not in (None, "none") and not config.mpp:
        raise UserError("--supervised is compared with masked patch prediction: name its run, too, with --mpp")
    if not config.mpp:
        return config
    if not (file := Path(config.mpp) / "config.toml").exists():
        if config.supervised is None:
            raise UserError(
                f"--mpp {config.mpp} is no run, so its budget is not known to train a supervised arm with: name one "
                f"with --supervised, or leave it out with --supervised none"
            )
        with renamed("--init", "--mpp", texts(config)):
            hub = load_backbone(config.mpp).hub_config()
        shape = {option.name: hub[option.name] for option in dataclasses.fields(Model) if option.name in hub}
        model = Model(**shape | {"img_size": tuple(hub["img_size"])})
        return dataclasses.replace(config, pretrain=dataclasses.replace(config.pretrain, model=model))
    run = parse(Pretrain, ["--config", str(file)])
    of_run = options_of(Pretraining, run)
    if config.pretrain not in (Compare().pretrain, of_run):
        raise UserError(f"--pretrain options are those of the run that --mpp gives ({config.mpp}); leave them out")
    return dataclasses.replace(config, pretrain=of_run)


def read_alike(config: Compare) -> Compare:
    """The options of a comparison in which all arms read the labelled images as the pretraining read its own: with its
    channels and its range of values, unless --data.channels and --data.range say others."""
    channels, low_high = config.pretrain.data.channels, config.pretrain.data.range
    if config.mpp and not low_high:
        with renamed("--init", "--mpp", texts(config)):
            vit = load_backbone(config.mpp)
        channels, low_high = channels or (vit.in_chans if vit.in_chans != 3 else None), vit.pixel_range
    data = config.data
    data = dataclasses.replace(data, channels=data.channels or channels, range=data.range or low_high)
    return dataclasses.replace(config, data=data)


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
            "attentive_top1": "attentive probe",
        }.items():
            if f"eval/{name}" not in result:  # --probe.attentive is off
                continue
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
