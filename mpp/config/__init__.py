"""The options of a run: dataclasses that are the command line (`--data.path`), the presets and `config.toml` alike."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from mpp.errors import UserError
from mpp.files import write_whole

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass
class Source:
    """The set of images."""

    path: str = "shapes"
    """Folder of images, parquet, hub id, or `shapes` (built-in scenes)."""
    image_column: str | None = None
    """The column with the image, needed only where several could be meant."""
    label_column: str | None = None
    """The column with the label, likewise; for `shapes`: shape, colour, count or place."""
    on_error: Literal["stop", "skip"] = "stop"
    """An image that cannot be read: stop and name it, or skip it, count it and report at the end."""


@dataclass
class Data(Source):
    """Where the images come from."""

    path: str = "shapes"
    """Folder of images, parquet, folder of WebDataset .tar shards, hub id, or `shapes` (built-in scenes)."""
    split: str = "train"
    """The split to train on, as the set calls it."""
    eval_split: str | None = None
    """The split to evaluate on. Default: validation, else test, else images held out of the training split."""
    fraction: float = 1.0
    """Share of the training images to use, in 0..1, chosen by --seed."""
    cache: bool = True
    """Decode a set of small images once, into a file in ~/.cache/mpp (or $MPP_CACHE), if all are seen at least once."""
    workers: int | None = None
    """Processes that decode images. Default: none when training on a CPU, else one a core, at most 8."""


@dataclass
class LabelledData(Data):
    """Where the labelled images come from."""

    eval_split: str | None = None
    """The split to be measured on. Default: test, else validation."""
    labels: int | None = None
    """How many training labels to use, evenly over the classes, chosen by --seed. Default: all."""


@dataclass
class ComparedData(Data):
    """The labelled set that the arms are judged on."""

    eval_split: str | None = None
    """The split to be measured on. Default: test, else validation."""


@dataclass
class PretrainData(Data):
    """Where the images come from, and what is predicted."""

    target: str = "mean-colour"
    """Predicted of a corrupted patch: `mean-colour`, `4x4` (or another GxG: so many cells), or `pixels`."""
    bits: int = 3
    """Bits a colour channel: 3 gives 8 bins a channel, so 512 colours."""


@dataclass
class Model:
    """The Vision Transformer."""

    variant: Literal["nano", "Ti", "S", "B", "L", "H"] = "nano"
    """Size: nano (1.2 M parameters, for CPUs), Ti (6 M), S (22 M), B (86 M), L (304 M), H (632 M)."""
    img_size: int | tuple[int, int] = 32
    """Side of the images the model sees, in pixels, or height and width; a multiple of the patch size."""
    patch_size: int = 4
    """Side of a patch in pixels."""
    embed_dim: int | None = None
    """Width D of a token, instead of the variant's."""
    depth: int | None = None
    """Number of blocks, instead of the variant's."""
    num_heads: int | None = None
    """Attention heads a block, instead of the variant's."""
    mlp_ratio: float = 4.0
    """Width of a block's hidden layer over D."""
    pos_embed: Literal["1d", "2d", "relative", "none"] = "1d"
    """Position embeddings; the paper found 1d, 2d and relative alike, and none 3 points worse."""
    pos_init: Literal["normal", "sincos"] = "sincos"
    """What 1d and 2d start as: noise, as in the paper's code, or sines and cosines, which learn far sooner."""
    dropout: float = 0.0
    """Probability of dropping a unit after each linear layer, in 0..1."""
    drop_path: float = 0.0
    """Probability of skipping the last block for a sample (less for earlier ones), in 0..1."""


@dataclass
class PooledModel(Model):
    """The Vision Transformer, and what of it stands for an image."""

    pool: Literal["mean", "cls"] = "mean"
    """An image's feature: the mean of its patches' tokens, or the [class] token, which MPP does not train."""


@dataclass
class DownstreamModel(PooledModel):
    """The Vision Transformer. What has a shape comes from --init, and is asked for here only with --init scratch."""

    img_size: int | tuple[int, int] | None = None  # type: ignore[assignment]
    """Size of the images; another than the backbone's interpolates positions. Default: its own; of scratch, 32."""


@dataclass
class Corrupt:
    """Which patches are corrupted, and what becomes of them."""

    ratio: float = 0.5
    """Share of an image's patches that are corrupted and predicted."""
    mask: float = 0.8
    """Of these, the share that becomes the learnt [mask] embedding;"""
    other: float = 0.1
    """that becomes the embedding of a random other patch of the image;"""
    keep: float = 0.1
    """that stays as it is. The three sum to 1."""
    shape: Literal["uniform", "blocks"] = "uniform"
    """Patches one by one, or rectangular blocks of them (BEiT)."""


@dataclass
class Augment:
    """What training does to an image before it is cut into patches."""

    crop: Literal["pad", "resized", "none"] = "pad"
    """pad: the image, shifted by up to --augment.pad; resized: a random part (Inception's crop); none."""
    pad: int = 4
    """Largest shift of crop pad, in pixels of the model's input."""
    scale: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest share of the image's area that crop resized takes."""
    flip: float = 0.5
    """Probability of mirroring left and right."""


@dataclass
class LabelledAugment(Augment):
    """What training does to a labelled image before it is cut into patches."""

    randaugment: int = 0
    """Operations of RandAugment (arXiv 1909.13719, magnitude 9) an image, chosen at random; 0: none."""
    mixup: float = 0.0
    """Blend pairs of images and their labels; the parameter of the Beta distribution (0.8 is usual); 0: no."""
    cutmix: float = 0.0
    """Paste a box of one image into another, labels in proportion, likewise (1.0). With both, one of them a step."""


@dataclass
class Optim:
    """How the weights change."""

    name: Literal["adamw", "adam", "sgd", "muon"] = "muon"
    """adam is the paper's; adamw decays weights apart from the gradient; muon learns most from few steps (with adamw
    for all but the blocks' matrices); sgd, to fine-tune, has momentum betas[0]."""
    lr: float = 3e-3
    """Peak learning rate."""
    lr_batch_size: int | None = None
    """The batch size --optim.lr is meant for: at another, lr is scaled in proportion. Default: no scaling."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the running mean of gradients and of their squares. (For muon's matrices it is 0.95.)"""
    weight_decay: float = 0.05
    """On the weights of linear layers; biases, norms and embeddings are left alone."""
    warmup_steps: int = 50
    """Steps over which lr rises from 0 in a straight line."""
    decay: Literal["cosine", "linear", "none"] = "cosine"
    """How lr falls to 0 after the warm-up."""
    clip_norm: float = 1.0
    """Scale gradients down to this norm; 0 leaves them."""


@dataclass
class FineTuneOptim(Optim):
    """How the weights change."""

    name: Literal["adamw", "adam", "sgd", "muon"] = "adamw"
    """adamw and adam; sgd, the paper's, has momentum betas[0]; muon (with adamw) learns most from few steps."""
    lr: float = 1e-3
    """Peak learning rate."""
    layer_decay: float = 1.0
    """Each block learns at this share of the rate of the one above it; 1: all alike. (0.65 to 0.85 are usual.)"""
    lr_grid: tuple[float, ...] = ()
    """Peak learning rates to try on a fifth of the training labels; the best takes the place of --optim.lr."""


@dataclass
class Train:
    """How long, how fast, and what is kept."""

    steps: int = 900
    """Optimiser steps in all (a resumed run counts those it had)."""
    batch_size: int = 32
    """Images a step, over all processes and accumulation."""
    accumulate: int = 1
    """Parts a step's batch is computed in, one after another, where memory is short."""
    auto_batch: bool = False
    """Try a step at the start, and raise --train.accumulate until it fits into memory: batch and numbers stay."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is no finite number: stop, or leave that step out (waits for the device every step)."""
    max_skips: int = 10
    """How many steps in a row --train.on-nonfinite skip leaves out before it stops, too."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on accelerators that have it, else fp32."""
    activation_checkpointing: bool = False
    """Compute activations again on the way back instead of keeping them: a third slower, for far less memory."""
    compile: bool = False
    """torch.compile the model: a minute at the start, faster steps on GPUs (on CPUs it needs a C++ compiler)."""
    log_every: int = 1
    """Steps between lines in metrics.jsonl and TensorBoard."""
    checkpoint_every: int = 300
    """Steps between checkpoints; there is one at the end and at a stop besides."""
    keep_checkpoints: int = 2
    """How many of the last checkpoints to keep."""
    average: float = 0.0
    """Evaluate and keep a running mean of the weights that forgets at this rate a step (0.999, say); 0: the weights."""


@dataclass
class LabelledTrain(Train):
    """How long, how fast, and what is kept."""

    steps: int = 800
    """Optimiser steps in all (a resumed run counts those it had)."""
    batch_size: int = 128
    """Images a step, over all processes and accumulation."""
    label_smoothing: float = 0.1
    """Share of a label's weight that is spread over all classes, in 0..1."""
    log_every: int = 10
    """Steps between lines in metrics.jsonl and TensorBoard."""


@dataclass
class Eval:
    """Evaluation on held-out images while training."""

    every: int = 300
    """Steps between evaluations; there is one at the end besides."""
    images: int = 2000
    """How many held-out images, at most."""
    batch_size: int = 256
    """Images a batch; the same on any number of processes, so that results are."""


@dataclass
class PretrainEval(Eval):
    """Evaluation on held-out images while training."""

    pictures: int = 8
    """How many images to draw: input, corrupted, predicted colours, true colours."""
    probe: str | None = None
    """A labelled set (as --data.path) on which frozen features are judged at every evaluation: ridge and k-NN."""
    probe_label_column: str | None = None
    """Its label column, needed only where several could be meant; for `shapes`: shape, colour, count or place."""


@dataclass
class LabelledEval(Eval):
    """Evaluation on held-out images while training. Nothing is chosen by it: what counts is the last."""

    images: int | None = None  # type: ignore[assignment]
    """How many held-out images, at most. Default: all."""


@dataclass
class Pretrain:
    """Pretrain a Vision Transformer by masked patch prediction.

    Half the patches of every image are corrupted, and the model learns to tell their colours. With no option it trains
    on built-in images for a few minutes, on whatever this machine has. Example:

      accelerate launch mpp/pretrain.py --config recipes/presets/tiny-imagenet-32.toml --data.path DIR --output runs/tin
    """

    data: PretrainData = field(default_factory=PretrainData)
    model: Model = field(default_factory=Model)
    corrupt: Corrupt = field(default_factory=Corrupt)
    augment: Augment = field(default_factory=Augment)
    optim: Optim = field(default_factory=Optim)
    train: Train = field(default_factory=Train)
    eval: PretrainEval = field(default_factory=PretrainEval)
    seed: int = 0
    """Of all random numbers: weights, order, augmentation, corruption."""
    output: str | None = None
    """The run's folder. Default: runs/pretrain-<date and time>."""
    config: str | None = None
    """A preset (recipes/presets/*.toml) or another run's config.toml; options on the line win over it."""
    resume: bool = False
    """Go on from --output's latest good checkpoint, with that run's options; start fresh if there is none."""
    resume_anyway: bool = False
    """With --resume: go on although options that matter to the numbers are not those that the run began with."""


@dataclass
class Probe:
    """How frozen features are judged."""

    layer: str = "last"
    """`last`, a block's number from 1, or `all`: each block, and the best on a fifth of the training labels."""
    shots: tuple[int, ...] = (1, 5, 10, 25)
    """Labels a class of the few-shot probes."""
    draws: int = 5
    """Random choices of these labels, of which mean and deviation are reported."""
    neighbours: int = 20
    """k of the k-nearest-neighbours classifier."""
    eval_images: int | None = None
    """How many held-out images to be measured on, at most. Default: all."""


@dataclass
class LinearProbe:
    """Judge a backbone by its frozen features: logistic regression, few-shot ridge regression and k-NN.

    Features are extracted once; labels of the evaluation split are looked at once, at the end. Example:

      accelerate launch recipes/linear_probe.py --init runs/tin --data.path DIR --data.eval-split test
    """

    init: str = "scratch"
    """A run's folder, an exported backbone's folder, a hub id, or scratch: random weights of --model.variant."""
    data: LabelledData = field(default_factory=LabelledData)
    model: DownstreamModel = field(default_factory=DownstreamModel)
    probe: Probe = field(default_factory=Probe)
    batch_size: int = 256
    """Images a forward pass."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on accelerators that have it, else fp32."""
    seed: int = 0
    """Of the choice of labels (and of random weights)."""
    output: str | None = None
    """Where result.json goes. Default: runs/linear_probe-<date and time>."""
    config: str | None = None
    """A preset or another run's config.toml; options on the line win over it."""


@dataclass
class Supervised:
    """Pretrain a Vision Transformer on labelled images: what masked patch prediction is compared with.

    The same backbone, loop and augmentation as mpp/pretrain.py, with a head of one hidden tanh layer, and the encoder
    exported in the same form. Example:

      accelerate launch recipes/supervised.py --data.path DIR --train.steps 5000 --output runs/supervised
    """

    data: LabelledData = field(default_factory=LabelledData)
    model: PooledModel = field(default_factory=PooledModel)
    augment: LabelledAugment = field(default_factory=LabelledAugment)
    optim: Optim = field(default_factory=Optim)
    train: LabelledTrain = field(default_factory=LabelledTrain)
    eval: LabelledEval = field(default_factory=LabelledEval)
    seed: int = 0
    """Of all random numbers: weights, order, augmentation, choice of labels."""
    output: str | None = None
    """The run's folder. Default: runs/supervised-<date and time>."""
    config: str | None = None
    """A preset (recipes/presets/*.toml) or another run's config.toml; options on the line win over it."""
    resume: bool = False
    """Go on from --output's latest good checkpoint, with that run's options; start fresh if there is none."""
    resume_anyway: bool = False
    """With --resume: go on although options that matter to the numbers are not those that the run began with."""


@dataclass
class FineTune:
    """Train a backbone and a new linear head on labelled images, or measure a model that was.

    Examples:

      accelerate launch recipes/finetune.py --init runs/tin --data.path DIR --data.labels 1000 --output runs/fine
      accelerate launch recipes/finetune.py --init runs/fine --data.path OTHER --eval-only --export-predictions p.csv
    """

    init: str = "scratch"
    """A run's folder, an exported backbone's folder, a hub id, or scratch: random weights of --model.variant."""
    data: LabelledData = field(default_factory=LabelledData)
    model: DownstreamModel = field(default_factory=DownstreamModel)
    augment: LabelledAugment = field(default_factory=LabelledAugment)
    optim: FineTuneOptim = field(default_factory=FineTuneOptim)
    train: LabelledTrain = field(default_factory=LabelledTrain)
    eval: LabelledEval = field(default_factory=LabelledEval)
    eval_only: bool = False
    """Train nothing: measure the fine-tuned run (or its classifier/) that --init names on the evaluation split."""
    export_predictions: str | None = None
    """A .parquet or .csv file for what is predicted of every evaluation image."""
    seed: int = 0
    """Of all random numbers: head, order, augmentation, choice of labels."""
    output: str | None = None
    """The run's folder. Default: runs/finetune-<date and time>."""
    config: str | None = None
    """A preset (recipes/presets/*.toml) or another run's config.toml; options on the line win over it."""
    resume: bool = False
    """Go on from --output's latest good checkpoint, with that run's options; start fresh if there is none."""
    resume_anyway: bool = False
    """With --resume: go on although options that matter to the numbers are not those that the run began with."""


@dataclass
class ArmPretraining:
    """Pretraining of the arms that are not given: by masked patch prediction and, on the same images, with labels."""

    data: PretrainData = field(default_factory=PretrainData)
    model: Model = field(default_factory=Model)
    corrupt: Corrupt = field(default_factory=Corrupt)
    augment: Augment = field(default_factory=Augment)
    optim: Optim = field(default_factory=Optim)
    train: Train = field(default_factory=lambda: Train(steps=800))
    eval: PretrainEval = field(default_factory=lambda: PretrainEval(every=200))
    seed: int = 0
    """Of pretraining: weights, order, augmentation, corruption, and which --pretrain.data.fraction."""


@dataclass
class ArmFineTuning:
    """Fine-tuning, alike for all arms."""

    model: DownstreamModel = field(default_factory=DownstreamModel)
    augment: LabelledAugment = field(default_factory=LabelledAugment)
    optim: FineTuneOptim = field(default_factory=FineTuneOptim)
    train: LabelledTrain = field(default_factory=lambda: LabelledTrain(steps=150, batch_size=32))
    eval: LabelledEval = field(default_factory=lambda: LabelledEval(every=75, images=1000))


@dataclass
class Compare:
    """What did pretraining buy? From scratch, masked patch prediction and supervised pretraining, side by side.

    Trains what is not given, judges every arm by its frozen features and by fine-tuning at several label counts and
    seeds, and writes report.html, report.md, results.csv. What --output already holds is kept, so that a comparison
    that was cut goes on. With no option it takes the built-in images and under 20 minutes on two CPU cores. Example:

      accelerate launch recipes/compare.py --mpp runs/tin --supervised runs/sup --data.path DIR --labels 1000 5000
    """

    mpp: str | None = None
    """A run of mpp/pretrain.py (or an exported backbone, or a hub id). Default: trained here."""
    supervised: str | None = None
    """A run of recipes/supervised.py, likewise; `none` leaves it out. Default: trained here, as --mpp was."""
    others: tuple[str, ...] = ()
    """Further backbones to compare, each as NAME=INIT."""
    data: ComparedData = field(default_factory=ComparedData)
    """The labelled set to fine-tune on. Of `shapes` the count is told; supervised pretraining learns the shape."""
    labels: tuple[str, ...] = ("100", "1000")
    """Numbers of training labels to fine-tune with, evenly over the classes; `all` is one."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of fine-tuning: choice of labels, head, order, augmentation, and the weights of scratch. Arms share them."""
    probe: Probe = field(default_factory=lambda: Probe(eval_images=2000))
    probe_labels: int = 2000
    """Training labels of the probes of frozen features, at most."""
    pretrain: ArmPretraining = field(default_factory=ArmPretraining)
    finetune: ArmFineTuning = field(default_factory=ArmFineTuning)
    dry_run: bool = False
    """Only print what would be done, and how long it may take."""
    output: str | None = None
    """The comparison's folder; what it holds is kept. Default: runs/compare-<date and time>."""
    config: str | None = None
    """A preset (recipes/presets/*.toml) or another comparison's config.toml; options on the line win over it."""


Config = TypeVar("Config")
Options = TypeVar("Options")


def parse(kind: type[Config], args: list[str] | None = None) -> Config:
    """Read a command line into `kind`, over the preset that --config names. A bad option ends the process with 2."""
    args = sys.argv[1:] if args is None else args
    default = kind()
    path = _value_of("--config", args)
    if path is None and "--resume" in args and (output := _value_of("--output", args)):
        own = Path(output) / "config.toml"  # a run goes on as it began
        path = str(own) if own.exists() else None
    if path:
        values = read_toml(path)
        _refuse_unknown(values, default, path)
        default = _read(as_arguments(values), default, f" (in {path})")
    return _read(args, default)


def _read(args: list[str], default: Config, where: str = "") -> Config:
    """A command line over `default`. What is wrong with it is said in one line, by one of several processes."""
    import tyro

    speaks, said = os.environ.get("RANK", "0") == "0", io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(type(default), args=args, default=default, console_outputs=speaks)
    except SystemExit as end:
        if end.code and speaks:
            print(f"error: {_in_one_line(said.getvalue())}{where}", file=sys.stderr, flush=True)
        raise


def _in_one_line(box: str) -> str:
    """What tyro says in a box: a title, a rule, what is wrong, a rule, options it may be about. (On a terminal in
    colour, and with the title in the frame.)"""
    plain = re.sub(r"^╭.*$", "title\n", re.sub(r"\x1b\[[0-9;]*m", "", box), flags=re.MULTILINE)
    rows = [row.strip(" │") for row in plain.splitlines()]
    sections = "\n".join("" if not row.strip("-─╰╯") else row for row in rows).split("\n\n")
    says = [" ".join(section.split()) for section in sections if section.strip()]
    wrong = says[1] if len(says) > 1 else " ".join(says)
    meant = re.findall(r"^--[a-z][\w.-]*", "\n".join(rows), re.MULTILINE) if "Unrecognized" in wrong else []
    near = f"; did you mean {' or '.join(dict.fromkeys(meant[:3]))}?" if meant else "; --help lists them all"
    return wrong.removeprefix("Error parsing ").removesuffix(".") + (near if "Unrecognized" in wrong else "")


def _refuse_unknown(values: dict[str, Any], default: Any, path: str) -> None:
    """Raise UserError for what in a file is no option of ours: none is to say --help, or to have tyro write files."""
    known = flat(default)
    for name, value in _flatten(values).items():
        option = f"--config {path}: --{_hyphened(name)}"
        if name.replace("-", "_") not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean --{_hyphened(near[0])}?" if near else "; --help lists them all"
            raise UserError(f"{option} is no option{hint}")
        if isinstance(known[name.replace("-", "_")], bool) != isinstance(value, bool):
            raise UserError(f"{option} {value!r}: only switches, and all of them, are true or false")
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, str) and part.startswith("-"):
                raise UserError(f"{option} {part!r} reads like another option")


def _hyphened(name: str) -> str:
    return name.replace("_", "-").encode("unicode_escape").decode()


def read_toml(path: str | Path) -> dict[str, Any]:
    """A preset's or a run's options; raises UserError if the file is missing or no TOML."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # of TOML, of the encoding, of a name or a nesting that cannot be
        raise UserError(f"--config {path} is not TOML: {error}") from error


def write_toml(config: Any, path: Path) -> None:
    """Write a configuration so that `--config path` repeats it. TOML has no None: the default's is left out, and what
    is None instead of something (all, often) is the word that the command line takes."""
    import tomli_w

    def kept(values: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in values.items():
            if isinstance(value, dict):
                found[key] = kept(value, default[key])
            elif value is not None:
                found[key] = value
            elif default[key] is not None:
                found[key] = "None"
        return found

    values = kept(dataclasses.asdict(config), dataclasses.asdict(type(config)()))
    for once in _ONCE:
        values.pop(once, None)
    write_whole(path, tomli_w.dumps(values).encode())


# of one start, not of what is computed
_ONCE = ("config", "resume", "resume_anyway", "output", "export_predictions", "dry_run")


def like(kind: type[Options], source: Any, **own: Any) -> Options:
    """Options of `kind` with the values of those that `source` has, too, and with `own` values before them."""
    shared = {f.name: getattr(source, f.name) for f in dataclasses.fields(kind) if hasattr(source, f.name)}  # type: ignore[arg-type]
    return kind(**shared | own)


def flat(config: Any) -> dict[str, Any]:
    """A configuration as {"data.path": ..., ...}: the names of the command line, without hyphens."""
    return _flatten(dataclasses.asdict(config))


def differences(file: Path, config: Any) -> dict[str, tuple[Any, Any]]:
    """Options whose values in a run's config.toml are not those of `config`: (there, here)."""
    here = {name: value for name, value in flat(config).items() if name not in _ONCE}
    there = flat(parse(type(config), ["--config", str(file)]))
    return {name: (there[name], value) for name, value in here.items() if there[name] != value}


def as_arguments(values: dict[str, Any]) -> list[str]:
    """Nested values as the command line that would set them, so that one parser checks both."""
    arguments = []
    for name, value in _flatten(values).items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            group, _, last = option.rpartition(".")
            arguments.append("--" + ".".join(filter(None, [group, last if value else f"no-{last}"])))
        else:
            arguments += [f"--{option}", *map(str, value if isinstance(value, list | tuple) else [value])]
    return arguments


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = prefix + key
        found |= _flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


def _value_of(option: str, args: list[str]) -> str | None:
    """The value of an option, wherever it stands, given as two words or with '='."""
    for i, arg in enumerate(args):
        if arg == option and i + 1 < len(args):
            return args[i + 1]
        if arg.startswith(f"{option}="):
            return arg.removeprefix(f"{option}=")
    return None


def height_width(img_size: int | tuple[int, int]) -> tuple[int, int]:
    """--model.img-size as (height, width)."""
    return (img_size, img_size) if isinstance(img_size, int) else (img_size[0], img_size[1])


def images_seen(train: Train) -> int:
    """How many images a run trains on, those it sees again counted again."""
    return train.steps * train.batch_size
