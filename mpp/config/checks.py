"""Refusing options that cannot work, before anything is loaded: one line that names the option and the way out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from mpp.config import Compare, FineTune, LabelledData, LinearProbe, Pretrain, Supervised, flat, height_width, like
from mpp.errors import UserError, renamed


def check(config: Any) -> None:
    """The options that all training has in common."""
    _refuse_huge(config)
    model, train, optim, data = config.model, config.train, config.optim, config.data
    above_zero = {
        "--train.steps": train.steps,
        "--train.batch-size": train.batch_size,
        "--train.accumulate": train.accumulate,
        "--train.max-skips": train.max_skips,
        "--train.log-every": train.log_every,
        "--train.checkpoint-every": train.checkpoint_every,
        "--train.keep-checkpoints": train.keep_checkpoints,
        "--eval.every": config.eval.every,
        "--eval.images": config.eval.images,
        "--eval.batch-size": config.eval.batch_size,
        "--optim.lr": optim.lr,
        "--optim.lr-batch-size": optim.lr_batch_size,
    } | _amounts(config)
    not_negative = {
        "--optim.weight-decay": optim.weight_decay,
        "--optim.warmup-steps": optim.warmup_steps,
        "--optim.clip-norm": optim.clip_norm,
        "--augment.pad": config.augment.pad,
        "--data.workers": data.workers,
        "--seed": config.seed,
    }
    shares = {
        "--data.fraction": data.fraction,
        "--augment.flip": config.augment.flip,
        "--augment.scale": config.augment.scale,
        "--model.dropout": model.dropout,
        "--model.drop-path": model.drop_path,
    }
    _refuse(above_zero, lambda value: value > 0 and math.isfinite(value), "must be above 0")
    _refuse(not_negative, lambda value: value >= 0 and math.isfinite(value), "must not be negative")
    _refuse(shares, lambda value: 0 <= value <= 1, "must be in 0..1")
    _refuse({"--optim.betas": optim.betas}, lambda beta: 0 <= beta < 1, "must each be at least 0 and below 1")
    _refuse({"--train.average": train.average}, lambda decay: 0 <= decay < 1, "must be at least 0 and below 1")
    if config.augment.scale[0] > config.augment.scale[1]:
        raise UserError(f"--augment.scale {config.augment.scale} must be the smallest share, then the largest")
    if getattr(config, "init", "scratch") == "scratch":  # weights bring their own patch size
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


def check_pretrain(config: Pretrain) -> None:
    """`check`, and the options that only masked patch prediction has."""
    from mpp.methods.corrupt import num_corrupted
    from mpp.methods.targets import make_target

    check(config)
    _refuse({"--eval.pictures": config.eval.pictures}, lambda count: count >= 0, "must not be negative")
    c = config.corrupt
    if min(c.mask, c.other, c.keep) < 0 or not abs(c.mask + c.other + c.keep - 1) <= 1e-6:  # not so of nan, too
        raise UserError(
            f"--corrupt.mask {c.mask}, --corrupt.other {c.other} and --corrupt.keep {c.keep} must be shares with sum 1"
        )
    _refuse({"--corrupt.ratio": c.ratio}, lambda ratio: 0 < ratio < 1, "must be above 0 and below 1")
    height, width = height_width(config.model.img_size)
    try:
        num_corrupted(height * width // config.model.patch_size**2, c.ratio)
    except ValueError as error:
        raise UserError(f"--corrupt.ratio {c.ratio}: {error}") from error
    try:
        make_target(config.data.target, config.model.patch_size, config.data.bits)
    except ValueError as error:
        raise UserError(f"--data.target {config.data.target}, --data.bits {config.data.bits}: {error}") from error


def check_labelled(config: Supervised | FineTune) -> None:
    """`check`, and the options that only training on labels has."""
    check(config)
    augment, train = config.augment, config.train
    not_negative = {
        "--augment.randaugment": augment.randaugment,
        "--augment.mixup": augment.mixup,
        "--augment.cutmix": augment.cutmix,
    }
    _refuse(not_negative, lambda value: value >= 0 and math.isfinite(value), "must not be negative")
    _refuse({"--train.label-smoothing": train.label_smoothing}, lambda value: 0 <= value <= 1, "must be in 0..1")


def check_finetune(config: FineTune) -> None:
    """`check_labelled`, and the options that only fine-tuning has."""
    check_labelled(config)
    optim, file = config.optim, config.export_predictions
    _refuse({"--optim.lr-grid": optim.lr_grid}, lambda lr: lr > 0 and math.isfinite(lr), "must each be above 0")
    _refuse({"--optim.layer-decay": optim.layer_decay}, lambda share: 0 < share <= 1, "must be above 0 and at most 1")
    if config.eval_only and config.init == "scratch":
        raise UserError("--eval-only measures a fine-tuned model; name its run with --init")
    if config.eval_only and (config.data.labels is not None or config.model.pool != "mean"):
        raise UserError("--data.labels and --model.pool are for training; --eval-only takes the model as it is")
    if file and not file.endswith((".parquet", ".csv")):
        raise UserError(f"--export-predictions {file} must end in .parquet or .csv")


def check_probe(config: LinearProbe) -> None:
    """The options of the linear probe."""
    _refuse_huge(config)
    model = config.model
    above_zero = {
        "--probe.shots": config.probe.shots,
        "--probe.draws": config.probe.draws,
        "--probe.neighbours": config.probe.neighbours,
        "--probe.eval-images": config.probe.eval_images,
        "--batch-size": config.batch_size,
    } | _amounts(config)
    shares = {
        "--data.fraction": config.data.fraction,
        "--model.dropout": model.dropout,
        "--model.drop-path": model.drop_path,
    }
    _refuse(above_zero, lambda value: value > 0 and math.isfinite(value), "must be above 0")
    _refuse(shares, lambda value: 0 <= value <= 1, "must be in 0..1")
    _refuse({"--seed": config.seed, "--data.workers": config.data.workers}, lambda n: n >= 0, "must not be negative")


def check_compare(config: Compare) -> None:
    """The options of a comparison; those of its runs under the names that they have there."""
    _refuse_huge(config)
    for labels in config.labels:
        if labels != "all" and not (labels.isdecimal() and int(labels)):
            raise UserError(f"--labels {labels} must be numbers above 0, or all")
    for option, given in {"--labels": config.labels, "--seeds": config.seeds}.items():
        if not given or len(set(given)) < len(given):
            raise UserError(f"{option} must be one or more, each given once")
    _refuse({"--probe-labels": config.probe_labels}, lambda count: count > 0, "must be above 0")
    _refuse({"--seeds": config.seeds}, lambda seed: seed >= 0, "must not be negative")
    with renamed("--", "--pretrain."):
        check_pretrain(like(Pretrain, config.pretrain))
    with renamed("--", "--finetune."):
        check_finetune(like(FineTune, config.finetune, init="of an arm"))
    check_probe(LinearProbe(probe=config.probe, data=like(LabelledData, config.data)))


def _amounts(config: Any) -> dict[str, Any]:
    """How much of the data, and how large a model: options that every command but the comparison has."""
    data, model = config.data, config.model
    return {
        "--data.fraction": data.fraction,
        "--data.labels": getattr(data, "labels", None),
        "--model.img-size": model.img_size,
        "--model.patch-size": model.patch_size,
        "--model.mlp-ratio": model.mlp_ratio,
        "--model.depth": model.depth,
        "--model.embed-dim": model.embed_dim,
        "--model.num-heads": model.num_heads,
    }


def _refuse_huge(config: Any) -> None:
    """Raise UserError for a whole number that no tensor, loop or file name here is made for."""
    for name, value in flat(config).items():
        huge = [v for v in (value if isinstance(value, tuple) else (value,)) if isinstance(v, int) and v >= 1 << 31]
        if huge:
            raise UserError(f"--{name.replace('_', '-')} {huge[0]} is too large; the largest is {(1 << 31) - 1}")


def _refuse(options: dict[str, Any], allowed: Callable[[Any], bool], says: str) -> None:
    """Raise UserError for the first value (or part of a tuple) that is not allowed; None is no value."""
    for option, value in options.items():
        if value is not None and not all(map(allowed, value if isinstance(value, tuple) else (value,))):
            raise UserError(f"{option} {value} {says}")
