"""Rules between options: combinations that cannot work are refused before anything is loaded."""

from __future__ import annotations

import math
import os
from importlib.util import find_spec

from mpp.config.bounds import Options, check_bounds, option_name, walk
from mpp.config.command_line import flattened
from mpp.config.commands import (
    Ablate,
    Compare,
    Dense,
    FineTune,
    FineTuning,
    LinearProbe,
    Pretrain,
    Pretraining,
    Scaling,
    Supervised,
)
from mpp.config.derived import cells_a_side, height_width, is_resnet, num_corrupted, num_visible, target_parts
from mpp.config.options import Augment, Data, MeasuredData, Model, Rehearsed, Source, Training
from mpp.config.own import is_own
from mpp.config.schedule import refuse_epochs, warn_of_long_warmup
from mpp.config.using import Convert, Doctor, Embed, Look, Predict
from mpp.errors import UserError, renamed


def check(config: Options) -> None:
    """Raise UserError, which names the option and the way out, for options that cannot work."""
    check_bounds(config)
    for name, value, _ in walk(config):
        if name.endswith("data.range") and isinstance(value, tuple) and not -math.inf < value[0] < value[1] < math.inf:
            raise UserError(f"{option_name(name)} {value[0]} {value[1]} must be the lowest value, then a higher one")
    if isinstance(config, Rehearsed):
        _check_rehearsed(config)
    if isinstance(config, Training):
        _check_trackers(config.log.trackers)
    if isinstance(config, Supervised | FineTune | LinearProbe | Dense | Compare | Ablate | Scaling):
        _check_held_out(config.data)
    if isinstance(config, Pretrain | Supervised) and not config.init:
        raise UserError("--init names the weights that this preset goes on from; give it")
    if isinstance(config, Pretrain):
        check_corruption(config)
        if config.init == "scratch":  # else the weights fix the shape
            check_patches(config)
        warn_of_long_warmup(config.optim, config.train)
    elif isinstance(config, Supervised):
        warn_of_long_warmup(config.optim, config.train)
        _check_scale(config.augment)
        if config.init == "scratch":
            refuse_odd_shape(config.model)
    elif isinstance(config, FineTune):
        _check_fine_tune(config)
    elif isinstance(config, Compare):
        _check_compare(config)
    elif isinstance(config, Ablate):
        _check_ablate(config)
    elif isinstance(config, Scaling):
        _check_scaling(config)
    elif isinstance(config, Predict):
        _check_predict(config)
    elif isinstance(config, Embed):
        _check_embed(config)
    elif isinstance(config, Look) and config.init in ("", "scratch"):
        raise UserError("--init names the run or backbone to look into; give it")
    elif isinstance(config, Doctor):
        _check_doctor(config)
    elif isinstance(config, Convert):
        _check_convert(config)


def _check_trackers(names: tuple[str, ...]) -> None:
    if len(set(names)) < len(names):
        raise UserError(f"--log.trackers {' '.join(names)} must be given once each")
    for name in names:
        if find_spec(name) is None:
            raise UserError(f"--log.trackers {name}: its package is not installed; pip install {name}, or leave it out")


def _check_rehearsed(config: Rehearsed) -> None:
    if (file := config.dry_run_picture) and not config.dry_run:
        raise UserError(f"--dry-run-picture {file} is painted by --dry-run: give both, or leave it out")
    if file and not file.endswith(".png"):
        raise UserError(f"--dry-run-picture {file} must end in .png")
    if file and os.path.lexists(file):
        raise UserError(f"--dry-run-picture {file} is there already; remove it, or give another name")


FORMS = ("timm", "hf", "torchvision", "npz", "onnx", "torch-export")


def _check_convert(config: Convert) -> None:
    if bool(config.init and config.to) == bool(config.from_pth):
        raise UserError("give a run and --to FORM FOLDER, or --from-pth FILE alone")
    if config.to and config.to[0] not in FORMS:
        raise UserError(f"--to {config.to[0]} {config.to[1]}: the form is none of {', '.join(FORMS)}")


def _check_held_out(data: MeasuredData) -> None:
    if data.hold_out is not None and data.eval_split is not None:
        raise UserError(
            f"--data.hold-out {data.hold_out:g} measures on a part of split {data.split}, and --data.eval-split "
            f"{data.eval_split} on another split: give one of them"
        )


def check_pretraining(config: Pretraining) -> None:
    """Raise UserError for options of pretraining that do not go together."""
    check_corruption(config)
    check_patches(config)


def check_corruption(config: Pretraining) -> None:
    """Raise UserError for options of pretraining that do not go together, whatever the shape of the model."""
    corrupt = config.corrupt
    _check_scale(config.augment)
    if not abs(corrupt.mask + corrupt.other + corrupt.keep - 1) <= 1e-6:
        raise UserError(
            f"--corrupt.mask {corrupt.mask}, --corrupt.other {corrupt.other} and --corrupt.keep {corrupt.keep} must be "
            f"shares with sum 1"
        )


def check_patches(config: Pretraining) -> None:
    """Raise UserError for options of pretraining that do not go together with the image and patch size."""
    corrupt, model, data = config.corrupt, config.model, config.data
    height, width = height_width(model.img_size)
    if is_resnet(model):
        raise UserError(
            f"--model.variant {model.variant} is a ResNet, which has no patches to mask: it is for commands with "
            f"labels (mpp supervised, finetune); take a Vision Transformer, or a hybrid by --model.stem"
        )
    refuse_odd_shape(model)
    try:
        num_corrupted(height * width // model.patch_size**2, corrupt.ratio)
    except ValueError as error:
        raise UserError(f"--corrupt.ratio {corrupt.ratio}: {error}") from error
    if config.method == "visible":
        _check_visible(config, height * width // model.patch_size**2)
    try:
        for part in target_parts(data.target):
            cells_a_side(part, model.patch_size)
    except ValueError as error:
        raise UserError(f"--data.target {data.target}: {error}") from error


def _check_visible(config: Pretraining, num_patches: int) -> None:
    if config.model.pos_embed == "relative":
        raise UserError("--model.pos-embed relative needs all patches in the encoder: choose 1d or 2d, or --method mpp")
    if (width := config.visible.width) and width % (4 if width < 64 else 32):
        raise UserError(f"--visible.width {width} must be a multiple of 32 (below 64: of 4)")
    try:
        num_visible(num_patches, config.visible.keep)
    except ValueError as error:
        raise UserError(f"--visible.keep {config.visible.keep}: {error}") from error


def _check_fine_tune(config: FineTune) -> None:
    _check_fine_tuning(config)
    if not config.eval_only:
        warn_of_long_warmup(config.optim, config.train)
    if config.init == "scratch":  # a backbone has a patch size of its own
        refuse_odd_shape(config.model)
    if config.eval_only and config.init == "scratch":
        raise UserError("--eval-only measures a fine-tuned model; name its run with --init")
    if config.eval_only and (config.data.labels is not None or config.model.pool != "mean"):
        raise UserError("--data.labels and --model.pool are for training; --eval-only takes the model as it is")
    if config.eval_only and config.calibrate:
        raise UserError(
            "--calibrate needs training labels that were not learnt: fine-tune with it, without --eval-only"
        )
    if (file := config.export_predictions) and not file.endswith((".parquet", ".csv")):
        raise UserError(f"--export-predictions {file} must end in .parquet or .csv")


def _check_fine_tuning(config: FineTuning) -> None:
    _check_scale(config.augment)


def _check_predict(config: Predict) -> None:
    if config.init in ("", "scratch"):
        raise UserError("--init names the fine-tuned run that predicts; give it")
    if config.data.split != Data().split or config.data.fraction < 1:
        raise UserError("--data.split and --data.fraction are for training; --data.eval-split names what to predict")
    if not config.out.endswith((".parquet", ".csv")):
        raise UserError(f"--out {config.out} must end in .parquet or .csv")
    if config.sheet is not None and not config.sheet.endswith(".png"):
        raise UserError(f"--sheet {config.sheet} must end in .png")


def _check_doctor(config: Doctor) -> None:
    if config.out and not config.out.endswith((".parquet", ".csv")):
        raise UserError(f"--out {config.out} must end in .parquet or .csv")
    if (config.data.on_error, config.data.max_bad) != (Source.on_error, Source.max_bad):
        raise UserError(
            "--data.on-error and --data.max-bad are for training: doctor names what cannot be read; leave out"
        )


def _check_embed(config: Embed) -> None:
    if config.init in ("", "scratch"):
        raise UserError("--init names the run or backbone whose features are written; give it")
    if config.data.eval_split is not None or config.data.fraction < 1:
        raise UserError("--data.eval-split and --data.fraction are for training; --data.split names what to embed")
    if not config.out.endswith((".parquet", ".npy")):
        raise UserError(f"--out {config.out} must end in .parquet or .npy")
    for option, given in {"--similar": config.similar is not None, "--projector": config.projector}.items():
        if given and config.pool == "patches":
            raise UserError(
                f"{option} compares whole images, and --pool patches writes their patches: take mean or cls"
            )


def _check_compare(config: Compare) -> None:
    for labels in config.labels:
        if labels != "all" and not (labels.isdecimal() and int(labels)):
            raise UserError(f"--labels {labels} must be numbers above 0, or all")
    for option, given in {"--labels": config.labels, "--seeds": config.seeds}.items():
        if not given or len(set(given)) < len(given):
            raise UserError(f"{option} must be one or more, each given once")
    if config.arms and (config.mpp or config.supervised or config.others):
        raise UserError("--arms names every arm: say --arms mpp=RUN in place of --mpp, --supervised and --others")
    _check_pretraining_of(config)
    refuse_epochs(config.finetune.train, "finetune.")
    with renamed("--", "--finetune.", texts(config)):
        _check_fine_tuning(config.finetune)
    warn_of_long_warmup(config.pretrain.optim, config.pretrain.train, "pretrain.")
    warn_of_long_warmup(config.finetune.optim, config.finetune.train, "finetune.")


def _check_ablate(config: Ablate) -> None:
    if not config.over and len(config.arms) < 2:
        raise UserError("--over names what is changed, as in --over corrupt.ratio=0.25,0.75; give it")
    _check_pretraining_of(config)


def _check_scaling(config: Scaling) -> None:
    many = {"--curves": config.curves, "--steps": config.steps, "--shares": config.shares, "--parts": config.parts}
    for option, given in (many | {"--pretrain-seeds": config.pretrain_seeds}).items():
        if not given or len(set(given)) < len(given):
            raise UserError(f"{option} must be one or more, each given once")
    if config.data.hold_out is not None:
        raise UserError("--data.hold-out: part data holds labels out by itself to choose by; leave it out")
    _check_pretraining_of(config)


def _check_pretraining_of(config: Compare | Ablate | Scaling) -> None:
    """The arms that are pretrained as part of a command."""
    if len(set(config.pretrain_seeds)) < len(config.pretrain_seeds):
        raise UserError("--pretrain-seeds must be one or more, each given once")
    if is_own(config.pretrain.method):
        raise UserError(
            f"--pretrain.method {config.pretrain.method}: name it as an arm, as in arms={{'mine': ItsClass}}"
        )
    refuse_epochs(config.pretrain.train, "pretrain.")
    with renamed("--", "--pretrain.", texts(config)):
        check_pretraining(config.pretrain)


def _check_scale(augment: Augment) -> None:
    if augment.scale[0] > augment.scale[1]:
        raise UserError(f"--augment.scale {augment.scale} must be the smallest share, then the largest")


def refuse_odd_shape(model: Model) -> None:
    """Raise UserError if images do not divide into patches, or a stem does not make patches of that size."""
    if is_resnet(model):
        if model.patch_size not in (8, 16, 32):
            raise UserError(
                f"--model.variant {model.variant} is a ResNet of stride 8, 16 or 32, not of --model.patch-size "
                f"{model.patch_size}: give 8 for images of 32 pixels, 32 for photos"
            )
        plain = Model()
        of_vits = ("stem", "embed_dim", "depth", "num_heads", "mlp_ratio", "pos_embed")
        for name in of_vits:
            if getattr(model, name) != getattr(plain, name):
                raise UserError(
                    f"{option_name(f'model.{name}')} is of Vision Transformers: leave it out, or take another variant"
                )
    sizes = {"none": [model.patch_size], "conv": [2, 4, 8, 16, 32, 64]}.get(model.stem, [4, 8, 16, 32])
    if model.patch_size not in sizes:
        raise UserError(
            f"--model.stem {model.stem} makes tokens of {', '.join(map(str, sizes[:-1]))} or {sizes[-1]} pixels, "
            f"not of --model.patch-size {model.patch_size}; choose one of these"
        )
    refuse_cut_patches(model.img_size, model.patch_size)


def refuse_cut_patches(img_size: int | tuple[int, int] | None, patch_size: int) -> None:
    """Raise UserError if images of a size do not divide into patches."""
    for side in height_width(img_size) if img_size is not None else ():
        if side < patch_size or side % patch_size:
            near = sorted({max(1, side // patch_size) * patch_size, (side // patch_size + 1) * patch_size})
            raise UserError(
                f"--model.img-size {side} is not a multiple of the patch size (--model.patch-size), {patch_size}; "
                f"the nearest that are: {', '.join(map(str, near))}"
            )


def texts(config: Options) -> list[str]:
    """What a user typed as text: no message may change it."""
    values = (part for v in flattened(config).values() for part in (v if isinstance(v, tuple) else (v,)))
    return [value for value in values if isinstance(value, str)]
