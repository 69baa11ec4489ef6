"""What people type: short forms of options, values without a name, timm's names of models, names of other tools."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence
from itertools import takewhile

from mpp.config.bounds import option_name
from mpp.errors import UserError

SHORT = {
    "data": "data.path",
    "steps": "train.steps",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "lr": "optim.lr",
}  # of commands that have no option of that name

MEANT = {
    "data.path": "dataset data_dir data_path images image_dir image_folder folder train_dir root",
    "data.labels": "num_labels n_labels label_count shots_total",
    "data.workers": "workers num_workers j",
    "data.label_column": "label target_column",
    "train.steps": "max_steps num_steps iterations iters max_iters total_steps",
    "train.epochs": "epoch num_epochs max_epochs num_train_epochs",
    "train.batch_size": "bs batch b per_device_train_batch_size train_batch_size",
    "train.accumulate": "gradient_accumulation_steps accum accum_iter grad_accum",
    "train.precision": "amp fp16 bf16 dtype mixed_precision",
    "train.compile": "torch_compile torchcompile",
    "optim.lr": "learning_rate lr_rate learningrate base_lr blr peak_lr",
    "optim.name": "optimizer optimiser opt",
    "optim.weight_decay": "wd",
    "optim.warmup_steps": "warmup num_warmup_steps warmup_iters warmup_epochs",
    "optim.decay": "scheduler lr_scheduler sched",
    "optim.clip_norm": "clip clip_grad max_grad_norm gradient_clip",
    "model.variant": "model arch architecture vit model_name size",
    "model.img_size": "image_size input_size resolution imgsize img",
    "corrupt.ratio": "mask_ratio masking_ratio corrupt_ratio",
    "output": "out output_dir outdir out_dir save_dir save logdir log_dir",
    "init": "checkpoint ckpt weights pretrained pretrained_model finetune from_pretrained backbone run",
    "config": "preset cfg",
    "resume": "continue resume_from_checkpoint auto_resume",
}  # option -> what other tools call it

_TIMM = re.compile(r"(?:vit|deit)_(tiny|small|base|large|huge)_patch(\d+)_(\d+)(\..+)?")
_SIZES = {"tiny": "Ti", "small": "S", "base": "B", "large": "L", "huge": "H"}


def spelt_out(words: Sequence[str], known: Collection[str], in_place: Sequence[str] = ()) -> list[str]:
    """A command line in the options' own names: with those of the values that it begins with (`mpp predict RUN DATA`),
    of short forms (`--lr`), and with what timm's name of a model says. `known` are the options, as "optim.lr"."""
    first = list(takewhile(lambda word: not word.startswith("-"), words))
    options = in_place[: len(first)]
    found = [word for pair in zip(options, first, strict=False) for word in pair]
    for word in words[len(options) :]:
        name, equals, value = word.partition("=")
        long = SHORT.get(_plain(name), "") if name.startswith("--") and _plain(name) not in known else ""
        found.append(option_name(long) + equals + value if long in known else word)
    return _without_timm(found)


def given(words: Sequence[str]) -> set[str]:
    """The options that a command line in their own names gives, as "train.steps"."""
    return {_plain(word.partition("=")[0]) for word in words if word.startswith("--")}


def nearest(option: str, known: Collection[str]) -> list[str]:
    """The known options that one that is not may mean: by what other tools call them, by the end of their names, by
    spelling."""
    name = _plain(option.partition("=")[0])
    last = name.rpartition(".")[2]
    called = {word: meant for meant, words in MEANT.items() for word in words.split()} | SHORT
    for end in filter(None, (called.get(last), "." not in name and last)):
        if found := [long for long in known if f".{long}".endswith(f".{end}")]:
            return [option_name(long) for long in found[:3]]
    if last in called:
        return []
    ends = {} if "." in name else {long.rpartition(".")[2]: long for long in reversed(list(known))}
    spelt = ends | {long: long for long in known}
    return [option_name(spelt[near]) for near in difflib.get_close_matches(name, spelt, 1, 0.7)]


def _plain(option: str) -> str:
    """--train.batch-size -> train.batch_size."""
    return option.lstrip("-").replace("-", "_")


def _without_timm(words: list[str]) -> list[str]:
    """A command line with --model.variant vit_small_patch16_224 as variant, patch size and image size; options that
    are given win."""
    found: list[str] = []
    rest = iter(words)
    for word in rest:
        option, equals, value = word.partition("=")
        if not (option.startswith("--") and _plain(option).endswith("model.variant")):
            found.append(word)
            continue
        values = [value] if equals else [value for value in [next(rest, None)] if value is not None]
        if not values or (named := _TIMM.fullmatch(values[0])) is None:
            found += [word] if equals else [word, *values]
            continue
        size, patch, side, weights = named.groups()
        if weights:
            raise UserError(
                f"{option} {values[0]} names trained weights, and {option} builds an untrained model: leave "
                f"{weights} off"
            )
        found += [option, _SIZES[size]]
        for name, number in {"patch-size": patch, "img-size": side}.items():
            other = option.removesuffix("variant") + name
            found += [] if _plain(other) in given(words) else [other, number]
    return found
