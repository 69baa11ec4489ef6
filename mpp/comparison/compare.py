"""The command `compare`: do the pieces of work that are missing, and collect what they found."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from mpp.commands.downstream import as_taken_by
from mpp.commands.labelled import tell_classes
from mpp.commands.linear_probe import probe_layers, refuse_more_shots_than_images
from mpp.comparison.arms import (
    Arm,
    arms_of,
    encoder_of,
    preset_of,
    pretrain_seeds,
    shape_of,
    sources,
    trained_here,
    with_identity,
)
from mpp.comparison.budget import cost_of, plan
from mpp.comparison.dense import identity_of_masks
from mpp.comparison.equal import Options, with_equal_compute
from mpp.comparison.findings import dense_findings, learning_curve, probe_findings, quality_curve, tuning_findings
from mpp.comparison.pieces import Piece, dense_piece, finetune_piece, probe_piece, run_piece
from mpp.comparison.rehearsal import rehearsed
from mpp.comparison.report import Comparison, write_report
from mpp.config.checks import check_patches, texts
from mpp.config.command_line import options_of, parse, write_toml
from mpp.config.commands import Ablate, Compare, Pretrain, Pretraining, Scaling, Supervised
from mpp.config.derived import height_width
from mpp.config.options import LabelledData
from mpp.data.identity import Identity
from mpp.data.images import Images, bands_of, open_images
from mpp.data.loader import share_of
from mpp.data.sources.path import is_unlabelled_stream
from mpp.data.splits import open_fitted, open_labelled
from mpp.data.survey import noted
from mpp.errors import UserError, is_first_process, renamed
from mpp.methods.classify import refuse_odd_pairs
from mpp.models.backbone import Backbone
from mpp.models.backbones import as_built, as_vit, build_vit, fitted, load_backbone, refuse_shape_options
from mpp.run.folder import claimed, named_folder, refuse_other_options
from mpp.run.log import LOG
from mpp.run.stops import Stopped


def run_comparison(config: Compare, accelerator: Accelerator) -> Path | None:
    """Do what is missing, then write the report; returns its folder, or None after --dry-run."""
    output = named_folder(config.output, "compare")
    with accelerator.main_process_first():
        config = read_alike(as_labels_allow(adopted(config)))
    work = prepared(config, trained_here(config), output, accelerator)
    return finished(
        work, config, output, accelerator, lambda: write_report(output, collect(work.config, work, work.images))
    )


def prepared(
    config: Compare,
    trained: Options,
    output: Path,
    accelerator: Accelerator,
    img_sizes: Sequence[int] = (),
    downstream: Path | None = None,
) -> Work:
    """All runs of a comparison, some perhaps done, after whatever would end it later has been looked for; prints how
    long the others may take. Features are measured at each of `img_sizes`, too; `downstream` has these runs, by default
    `output`."""
    with accelerator.main_process_first():
        images, measured = open_downstream(config)
    tell_classes(options_of(LabelledData, config.data), images, measured, accelerator)
    config = noted(dataclasses.replace(config, probe_labels=min(config.probe_labels, len(images))), images)
    check_ahead(config, arms_of(config, trained, output, img_sizes), accelerator)
    trained = with_equal_compute(config, trained, output, accelerator)
    masks = identity_of_masks(config, accelerator)
    found = None
    if accelerator.is_main_process:  # one process looks at the images
        arms = [with_identity(arm) for arm in arms_of(config, trained, output, img_sizes)]
        found = arms, Identity.of(images, measured, labels=True)
    arms, data = broadcast_object_list([found])[0]
    work = Work.of(config, arms, downstream or output, images, data, masks)
    for piece in (piece for piece in work.pieces if not piece.changes):
        refuse_other_options(piece.folder, piece.config, remade=True)
    seconds = rehearsed(work.pieces, accelerator) if config.dry_run else {}
    if accelerator.is_main_process:
        print(plan(work.pieces, accelerator, seconds))
    return work


def finished(
    work: Work, config: Compare | Ablate | Scaling, output: Path, accelerator: Accelerator, report: Callable[[], str]
) -> Path | None:
    """Do what is missing of some work and print its report, unless this is a dry run."""
    if config.dry_run:
        return None
    with claimed(output, accelerator), LOG.into(output):
        try:
            if accelerator.is_main_process:
                write_toml(work.config if isinstance(config, Compare) else config, output / "config.toml")
            do_what_is_missing(work.pieces, accelerator)
            if accelerator.is_main_process:
                print(report())
            accelerator.wait_for_everyone()
        except Stopped as stop:
            stop.way_on = f"the work goes on with: --config {output / 'config.toml'} --output {output}"
            raise
    return output


@dataclass(frozen=True)
class Work:
    """All runs of a comparison."""

    config: Compare  # with what was found about the images
    images: Images  # of the downstream task, to train on
    arms: list[Arm]
    probes: dict[tuple[str, int], Piece]  # (arm, seed)
    tunings: dict[tuple[str, int, int], Piece]  # (arm, labels, seed)
    pretrain_seed: dict[int, int]  # of a downstream seed
    dense: dict[tuple[str, int], Piece]  # (arm, seed): once for each pretraining seed

    @classmethod
    def of(
        cls,
        config: Compare,
        arms: list[Arm],
        output: Path,
        images: Images,
        data: Identity,
        masks: Identity | None = None,
    ) -> Work:
        """The runs that options ask for; `masks` are the images whose pixels are measured.

        Each pretraining seed has downstream seeds of its own, so that its results are independent of the others'.
        """
        counts = sorted({len(images) if labels == "all" else int(labels) for labels in config.labels})
        each = max(config.seeds) + 1
        seeds = [(k, seed, seed + k * each) for k in range(len(pretrain_seeds(config))) for seed in config.seeds]
        starts = {arm.name: arm.starts() for arm in arms}
        return cls(
            config=config,
            images=images,
            arms=arms,
            probes={
                (arm, seed): probe_piece(config, starts[arm][k], seed, output, data)
                for arm in starts
                for k, _, seed in seeds
            },
            tunings={
                (arm, labels, seed): finetune_piece(config, starts[arm][k], labels, seed, output, data)
                for labels in counts
                for k, _, seed in seeds
                for arm in starts
            },
            pretrain_seed={seed: pretrain_seeds(config)[k] for k, _, seed in seeds},
            dense={
                (arm, seed): dense_piece(config, starts[arm][k], seed, output, masks)
                for arm in starts
                for k, own, seed in seeds
                if masks and own == config.seeds[0]
            },
        )

    @staticmethod
    def trained(arm: Arm) -> Pretrain | Supervised:
        """The options of an arm that is pretrained here."""
        config = arm.pretrainings[0].config
        assert isinstance(config, Pretrain | Supervised)
        return config

    @property
    def pieces(self) -> list[Piece]:
        """All runs, in the order in which they are made."""
        pretrainings = {piece.folder: piece for arm in self.arms for piece in arm.pretrainings}  # arms may share them
        return [*pretrainings.values(), *self.probes.values(), *self.dense.values(), *self.tunings.values()]


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
        run_piece(piece.config, accelerator)
        accelerator.wait_for_everyone()


def collect(config: Compare, work: Work, images: Images) -> Comparison:
    """What all pieces found."""
    classes, channels = len(images.label_names or []), bands_of(images).channels or 3
    names = [arm.name for arm in work.arms]
    most = max((labels for _, labels, _ in work.tunings), default=0)
    last = {name: work.tunings[name, most, config.seeds[0]] for name in names if most}
    layers: dict[str, set[int]] = {name: set() for name in names}
    for (name, _), piece in work.probes.items():
        layers[name].add(piece.result()["layer"])
    return Comparison(
        config=config,
        classes=classes,
        arms=names,
        findings=[
            *probe_findings(work.probes, work.pretrain_seed),
            *dense_findings(work.dense, work.pretrain_seed),
            *tuning_findings(work.tunings, work.pretrain_seed),
        ],
        costs=[cost_of(arm.name, arm.inits, config, classes, channels) for arm in work.arms],
        curves={key: learning_curve(piece) for key, piece in work.tunings.items()},
        qualities={arm.name: [quality_curve(Path(init)) for init in dict.fromkeys(arm.inits)] for arm in work.arms},
        details={name: (piece.folder, piece.result()["per_class_top1"]) for name, piece in last.items()},
        layers={name: ", ".join(map(str, sorted(numbers))) for name, numbers in layers.items()},
        trained_here={arm.name: work.trained(arm) for arm in work.arms if arm.pretrainings},
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
    if any(arm.pretrainings for arm in arms) and precisions[0] != precisions[1]:
        raise UserError(
            f"--pretrain.train.precision {precisions[0]} and --finetune.train.precision {precisions[1]} must be the "
            f"same where an arm is pretrained here"
        )
    option = dict.fromkeys((arm.name for arm in arms), "--arms" if config.arms else "--others")
    if not config.arms:
        option |= {"MPP": "--mpp", "supervised": "--supervised"}
    for arm in arms:
        for init in dict.fromkeys(arm.inits):
            if arm.pretrainings:
                with renamed("--", f"--arms {arm.name}: --", typed):
                    vit = begun(Work.trained(arm))
            elif init == "scratch":
                vit = build_vit(config.pretrain.model)
            else:
                with renamed("--init", option[arm.name], typed):
                    vit = load_backbone(init)
                    with as_taken_by(vit, init, options_of(LabelledData, config.data)) as data:
                        open_fitted(data, vit.img_size, seed=0)
            with renamed("--model.img-size", "--img-sizes" if arm.img_size else "--finetune.model.img-size", typed):
                fitted(vit, arm.img_size or config.finetune.model.img_size)
            probe_layers(config.probe.layer, vit.depth)
        if arm.pretrainings and isinstance(supervised := arm.pretrainings[0].config, Supervised):
            try:
                with renamed("--data", "--pretrain.data", typed):
                    open_labelled(supervised.data, height_width(supervised.model.img_size), seed=0)
            except UserError as error:
                way_out = "leave it out of --arms" if config.arms else "--supervised none leaves it out"
                raise UserError(f"the supervised arm cannot be trained: {error}; {way_out}") from error
    with renamed("--model", "--finetune.model", typed):
        refuse_shape_options("a backbone that is fine-tuned", config.finetune.model)
    if any(arm.pretrainings for arm in arms):
        with renamed("--", "--pretrain.", typed):
            share_of(config.pretrain.train, accelerator)
    with renamed("--", "--finetune.", typed):
        refuse_odd_pairs(config.finetune.augment, share_of(config.finetune.train, accelerator))


def begun(options: Pretrain | Supervised) -> Backbone:
    """The encoder that a pretraining begins with, after a look whether its patches suit the options."""
    vit = encoder_of(options)
    if isinstance(options, Pretrain):
        vit = as_vit(vit, options.init, "it has no patches to mask")
        check_patches(dataclasses.replace(options, model=as_built(options.model, vit)))
    return vit


def adopted(config: Compare) -> Compare:
    """The options of a comparison, with what they leave open: `with_label`, and the pretraining of the run that --mpp
    gives, so that an arm trained here gets its budget."""
    config = with_label(config)
    if config.supervised not in (None, "none") and not config.mpp:
        raise UserError("--supervised is compared with masked patch prediction: name its run, too, with --mpp")
    init, option = given_run(config)
    if not init:
        return config
    if not (file := Path(init) / "config.toml").exists():
        if "" in sources(config).values():
            raise UserError(
                f"{option} {init} is no run, so its budget is not known to train a supervised arm with: name one "
                f"with --supervised, or leave it out with --supervised none"
            )
        with renamed("--init", option, texts(config)):
            model = shape_of(load_backbone(init).hub_config())
        return dataclasses.replace(config, pretrain=dataclasses.replace(config.pretrain, model=model))
    run = parse(Pretrain, ["--config", str(file)])
    of_run = options_of(Pretraining, run)
    if config.pretrain not in (Compare().pretrain, of_run):
        raise UserError(f"--pretrain options are those of the run that {option} gives ({init}); leave them out")
    return dataclasses.replace(config, pretrain=of_run)


def as_labels_allow(config: Compare) -> Compare:
    """The options of a comparison, without the supervised arm if nobody asked for it and the images of pretraining have
    no labels."""
    if config.arms or config.supervised is not None:
        return config
    data = config.pretrain.data
    with renamed("--data", "--pretrain.data", texts(config)):
        if not is_unlabelled_stream(data.path, data.config):
            names = open_images(data, data.split, height_width(config.pretrain.model.img_size)).label_names or []
            if len(names) > 1:
                return config
    if is_first_process():
        print(f"the supervised arm is left out: --pretrain.data.path {data.path} has no labels of two classes or more")
    return dataclasses.replace(config, supervised="none")


def with_label(config: Compare) -> Compare:
    """The options of a comparison with the label of the built-in images, unless they name one."""
    if config.data.path != "shapes" or config.data.label_column is not None:
        return config
    # count differs from colour, which MPP predicts, and from shape, which supervised pretraining learns
    return dataclasses.replace(config, data=dataclasses.replace(config.data, label_column="count"))


def given_run(config: Compare) -> tuple[str, str]:
    """The run whose pretraining the arms trained here follow, and the option that gives it: --mpp's, or that of the arm
    mpp in --arms; "" if there is none."""
    source = sources(config).get("mpp", "")
    if not source or preset_of(source)[0]:
        return "", ""
    init = source.replace("{seed}", str(pretrain_seeds(config)[0]))
    return init, "--arms mpp =" if config.arms else "--mpp"


def read_alike(config: Compare) -> Compare:
    """The options of a comparison in which all arms read the labelled images as the pretraining read its own: with its
    channels and its range of values, unless --data.channels and --data.range say others."""
    channels, low_high = config.pretrain.data.channels, config.pretrain.data.range
    init, option = given_run(config)
    if init and not low_high:
        with renamed("--init", option, texts(config)):
            vit = load_backbone(init)
        channels, low_high = channels or (vit.in_chans if vit.in_chans != 3 else None), vit.pixel_range
    data = config.data
    data = dataclasses.replace(data, channels=data.channels or channels, range=data.range or low_high)
    return dataclasses.replace(config, data=data)
