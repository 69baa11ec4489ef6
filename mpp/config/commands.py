"""The options of each command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from mpp.config.bounds import Count, Once, OneOf, UpTo1, Whole, but
from mpp.config.dense import Dense, PixelJudge
from mpp.config.options import (
    Augment,
    Corrupt,
    Eval,
    FineTuneOptim,
    FineTuneTrain,
    LabelledAugment,
    LabelledData,
    LabelledTrain,
    MeasuredData,
    Model,
    Optim,
    Place,
    PooledModel,
    PretrainData,
    PretrainEval,
    Probe,
    ProbedEval,
    Rehearsed,
    Seeded,
    Train,
    Training,
    Visible,
)
from mpp.config.using import Cache, Convert, Doctor, Embed, Look, Pack, Predict


@dataclass
class Pretraining(Seeded):
    """Pretraining of the arms that are not given: by masked patch prediction and, on the same images, with labels."""

    method: Annotated[str, OneOf(("mpp", "visible"))] = "mpp"
    """mpp: the encoder sees corrupted patches among the others (the ViT paper); visible: it sees a quarter of the
    patches and a light decoder predicts hidden ones (after MAE), which learns more in the same time."""
    data: PretrainData = but(PretrainData)
    model: Model = but(Model)
    corrupt: Corrupt = but(Corrupt)
    visible: Visible = but(Visible)
    augment: Augment = but(Augment)
    optim: Optim = but(Optim)
    train: Train = but(Train)
    eval: PretrainEval = but(PretrainEval)


@dataclass
class FineTuning:
    """Fine-tuning, the same for all arms."""

    model: PooledModel = but(PooledModel, img_size=None)
    augment: LabelledAugment = but(LabelledAugment)
    optim: FineTuneOptim = but(FineTuneOptim, name="adamw", lr=1e-3)
    train: LabelledTrain = but(LabelledTrain, steps=800, batch_size=128, log_every=10)
    eval: Eval = but(Eval, images=None)


@dataclass
class Pretrain(Training, Pretraining):
    """Pretrain a Vision Transformer by masked patch prediction.

    Half the patches of every image are corrupted, and the model learns to predict their colours. Without options it
    trains on built-in images for a few minutes, on whatever this machine has. Example:

      mpp pretrain photos --config tiny-imagenet-32 --output runs/tin
      mpp pretrain photos --config continue --init hf:facebook/dinov2-small --output runs/continued
    """

    init: str = "scratch"
    """Go on from the weights of a run, an exported backbone, a hub id, hf:, timm: or torchvision:NAME, .safetensors or
    .npz of others, which fix the shape; or scratch."""
    model: Model = but(Model, img_size=None)


@dataclass
class LinearProbe(Place, Seeded, Rehearsed):
    """Measure a backbone by its frozen features: logistic regression, few-shot ridge regression, k-NN, attention.

    Features are extracted once. The labels of the evaluation split are used once, at the end. Example:

      mpp probe runs/tin labelled --data.eval-split test
    """

    init: str = "scratch"
    """A run's folder, an exported backbone, a hub id, hf:, timm: or torchvision:NAME, a .safetensors or .npz of others,
    or scratch: random weights of --model.variant."""
    data: LabelledData = but(LabelledData)
    model: PooledModel = but(PooledModel, img_size=None)
    probe: Probe = but(Probe)
    batch_size: Count = 256  # Images a forward pass.
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on accelerators that have it, else fp32.


@dataclass
class Supervised(Training):
    """Pretrain a Vision Transformer on labelled images, as the baseline of masked patch prediction.

    It has the same backbone, loop and augmentation as mpp/pretrain.py, a head with one hidden tanh layer, and exports
    the encoder in the same form. Example:

      mpp supervised labelled --train.steps 5000 --output runs/supervised
    """

    init: str = "scratch"
    """Go on from the weights of a run, an exported backbone, a hub id, hf:, timm: or torchvision:NAME, .safetensors or
    .npz of others, which fix the shape; or scratch."""
    data: LabelledData = but(LabelledData)
    model: PooledModel = but(PooledModel, img_size=None)
    augment: LabelledAugment = but(LabelledAugment)
    optim: Optim = but(Optim)
    train: LabelledTrain = but(LabelledTrain, steps=800, batch_size=128, log_every=10)
    eval: ProbedEval = but(ProbedEval, images=None)


@dataclass
class FineTune(Training, FineTuning):
    """Train a backbone and a new linear head on labelled images, or measure a model that is fine-tuned already.

    Examples:

      mpp finetune runs/tin labelled --data.labels 1000 --output runs/fine
      mpp finetune runs/fine other --eval-only --export-predictions p.csv
    """

    init: str = "scratch"
    """A run's folder, an exported backbone, a hub id, hf:, timm: or torchvision:NAME, a .safetensors or .npz of others,
    or scratch: random weights of --model.variant."""
    method: Annotated[str, OneOf(("classify",))] = "classify"
    """What is trained on labels: a head on the encoder. From Python a class in place of the name is a method of one's
    own: see recipes/s4l.py."""
    data: LabelledData = but(LabelledData)
    train: FineTuneTrain = but(FineTuneTrain, log_every=10)
    eval_only: bool = False
    """Train nothing: measure the fine-tuned run (or its classifier/) that --init names on the evaluation split."""
    calibrate: bool = False
    """Keep a fifth of the training labels out of training, and choose on it the temperature that makes the model's
    probabilities fit. result.json has the expected calibration error before and after."""
    export_predictions: Once[str | None] = None  # A .parquet or .csv file for the prediction of every evaluation image.
    overwrite: Once[bool] = False  # Replace the file that --export-predictions names, if there is one.


@dataclass
class Compare(Place):
    """What does pretraining buy? From scratch, masked patch prediction and supervised pretraining, side by side.

    It trains what is not given, measures every arm by its frozen features and by fine-tuning at several label counts
    and seeds, and writes report.html, report.md and results.csv. It keeps what --output already holds, so a cut
    comparison goes on. Without options it uses the built-in images, about 12 minutes on two CPU cores. Example:

      mpp compare labelled --mpp runs/tin --supervised runs/sup --labels 1000 5000
    """

    mpp: str | None = None  # A run of mpp/pretrain.py (or an exported backbone, or a hub id). Default: trained here.
    supervised: str | None = None
    """A run of recipes/supervised.py, likewise; `none` leaves it out. Default: trained here, with --mpp's budget."""
    others: tuple[str, ...] = ()  # Further backbones to compare, each as NAME=INIT.
    arms: tuple[str, ...] = ()
    """All backbones to compare, in place of the three options above: scratch, mpp, visible and supervised by name, each
    trained here with the --pretrain options (visible: with target hog+0.1*pixels); NAME=PRESET, trained here with
    a preset over them (the images stay --pretrain's; a ResNet with labels); NAME=PRESET@ARM, likewise but from the
    weights of another arm, as in continued=continue@public public=timm:X; NAME=INIT, a given backbone, where {seed} in
    INIT stands for each of --pretrain-seeds. Differences are taken from the first that is not scratch."""
    equal: Literal["images", "flops", "seconds"] | None = None
    """Give the arms that are trained here as many steps as make them equal to the first: in images seen, arithmetic, or
    seconds (a step is measured before). Default: each trains as its options say."""
    pretrain_seeds: tuple[Whole, ...] = ()
    """Seeds of pretraining; each has --seeds of its own to fine-tune with, and intervals are over these seeds, so that
    they cover both. Default: --pretrain.seed alone, and intervals over the fine-tunings."""
    data: MeasuredData = but(MeasuredData)
    """The labelled set to fine-tune on. For `shapes` its label is count; supervised pretraining learns shape."""
    labels: tuple[str, ...] = ("100", "1000")
    """Numbers of training labels to fine-tune with, balanced over the classes; `all` is one."""
    seeds: tuple[Whole, ...] = (0, 1, 2)
    """Seeds of fine-tuning: choice of labels, head, order, augmentation, weights of scratch. All arms share them."""
    probe: Probe = but(Probe, eval_images=2000)
    probe_labels: Count = 2000  # Training labels of the probes of frozen features, at most.
    dense: PixelJudge = but(PixelJudge)
    pretrain: Pretraining = but(Pretraining, train=Train(steps=800), eval=PretrainEval(every=200))
    finetune: FineTuning = but(
        FineTuning,
        train=LabelledTrain(steps=150, batch_size=32, log_every=10),
        eval=Eval(every=75, images=1000),
    )
    dry_run: Once[bool] = False
    """Write nothing: list the runs and, from a few measured steps of each kind of run, their time and memory."""


@dataclass
class Ablate(Place):
    """Which choices matter? Changes one option of a pretraining at a time, and measures frozen features each time.

    Every variant is pretrained with several seeds and, by default, for equal arithmetic. Features are measured on a
    part of the training split that is held out, so that choices do not look at test images. The output holds
    ablation.md, ablation.png and results.csv; what it already holds is kept, so a cut ablation goes on. Example:

      mpp ablate --arms visible --over visible.keep=0.15,0.4 data.target=pixels,hog --pretrain.data.path UNLABELLED
        --data.path LABELLED --output runs/ablated
    """

    arms: tuple[str, ...] = ("mpp",)
    """The pretraining that --over changes, then others to stand beside it: mpp, visible, supervised, NAME=PRESET or
    NAME=INIT, as for `mpp compare --arms`."""
    over: tuple[str, ...] = ()
    """What to change: OPTION=VALUE,VALUE,..., as corrupt.ratio=0.25,0.75; several in one text, separated by spaces, are
    changed together: "method=mpp data.target=hog,pixels"."""
    equal: Literal["images", "flops", "seconds"] | None = "flops"
    """What all variants have as much of as the first arm: images, arithmetic or seconds. None: as their options say."""
    pretrain_seeds: tuple[Whole, ...] = (0, 1, 2)  # Seeds of pretraining; intervals are over them.
    img_sizes: tuple[Count, ...] = ()
    """Further sides in pixels at which the features are measured: patches stay as large, so there are more of them, and
    position embeddings are interpolated."""
    data: MeasuredData = but(MeasuredData, hold_out=0.2)
    """The labelled set whose training split, four fifths and one, the features are measured on."""
    probe: Probe = but(Probe, shots=(), eval_images=10_000)
    probe_labels: Count = 10_000  # Training labels of the probes, at most.
    pretrain: Pretraining = but(Pretraining, train=Train(steps=800), eval=PretrainEval(every=200, pictures=0))
    dry_run: Once[bool] = False
    """Write nothing: list the runs and, from a few measured steps of each kind of run, their time and memory."""


@dataclass
class Scaling(Place):
    """What do more compute and more images buy? Pretrains models of several sizes and lengths, and measures each.

    Part `compute` draws accuracy against pretraining FLOPs, a curve for each model, with a power law and its
    uncertainty, and the Pareto front. Part `data` draws accuracy against the share of the images, with weight decay,
    dropout and label smoothing chosen at each share on held-out training labels. What --output already holds is kept,
    so a cut study goes on. Example:

      mpp scaling --curves nano "narrow model.embed_dim=64 model.num_heads=2" --steps 200 400 800
        --pretrain.data.path UNLABELLED --data.path LABELLED --output runs/scaling
    """

    parts: tuple[Literal["compute", "data"], ...] = ("compute",)  # What to study: compute, data, or both.
    arm: str = "mpp"  # How to pretrain: mpp, visible, supervised, or NAME=PRESET, as for `mpp compare --arms`.
    curves: tuple[str, ...] = ("nano", "narrow model.embed_dim=64 model.num_heads=2")
    """The models: a name each, and the options that make it, as in "narrow model.embed_dim=64 model.num_heads=2"."""
    steps: tuple[Count, ...] = (100, 200, 400, 800)  # Lengths of pretraining, each with its own schedule.
    shares: tuple[UpTo1, ...] = (0.1, 0.3, 1.0)  # Shares of the images to pretrain on, for part data.
    regularisers: tuple[str, ...] = ()
    """What is chosen at each share, for part data: OPTION=VALUE,VALUE,..., all combinations. Default:
    optim.weight_decay=0.03,0.3 and model.dropout=0,0.1, and train.label_smoothing=0,0.1 for supervised."""
    pretrain_seeds: tuple[Whole, ...] = (0, 1, 2)  # Seeds of pretraining; intervals are over them.
    data: MeasuredData = but(MeasuredData)
    """The labelled set that the features are measured on."""
    probe: Probe = but(Probe, shots=(5,), eval_images=10_000)
    probe_labels: Count = 10_000  # Training labels of the probes, at most.
    pretrain: Pretraining = but(Pretraining, train=Train(steps=800), eval=PretrainEval(every=100_000, pictures=0))
    dry_run: Once[bool] = False
    """Write nothing: list the runs and, from a few measured steps of each kind of run, their time and memory."""


Trained = Pretrain | Supervised | FineTune
Run = Trained | LinearProbe | Dense  # each leaves a run's folder
Plain = Convert | Pack | Cache | Doctor  # each does without devices
AnyCommand = Run | Compare | Ablate | Scaling | Look | Predict | Embed | Plain
