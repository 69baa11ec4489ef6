"""Groups of options, each written once: the command line (`--data.path`), presets and config.toml are made of them.

The comment behind an option, or the text below it, is its --help.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mpp.config.bounds import (
    Below1,
    Bits,
    Channels,
    Count,
    Harmless,
    Inside,
    NotNegative,
    Once,
    Positive,
    Share,
    UpTo1,
    Whole,
    but,
)


@dataclass
class Source:
    """The set of images."""

    path: str = "shapes"
    """Folder of images, parquet, folder of WebDataset .tar shards, packed file, hub id, or `shapes` (built in)."""
    config: str | None = None  # The configuration to read, of a set that has several.
    image_column: str | None = None  # The column with the image. Needed only if several columns could be meant.
    label_column: str | None = None  # The column with the label, likewise. For `shapes`: shape, colour, count or place.
    class_level: Count | None = None
    """Which folders of a folder of images are its classes: those 1 (default), 2, ... levels below the split. Single
    folders that hold all images are not counted."""
    labels_file: str | None = None
    """A table with the labels of a folder of images (csv, tsv, jsonl, parquet): one column with each image's path, name
    or id (its name without the extension), and one with its label, which --data.label-column names."""
    channels: Channels | None = None
    """Channels of an image, 1..64. Default: those of the first image; grey pictures become 3 equal ones, transparent
    ones are laid on white (1 keeps grey, 4 takes transparency as a channel). Every image must have them."""
    on_error: Harmless[Literal["stop", "skip"]] = "stop"
    """If an image cannot be read: stop and name it, or skip it, count it and report the count at the end."""
    max_bad: Harmless[Share] = 0.5
    """The share of images, in 0..1, that --data.on-error skip may leave out; more end the command."""


@dataclass
class Data(Source):
    """Where the images come from."""

    split: str = "train"  # The split to train on, as the set calls it.
    eval_split: str | None = None
    """The split to evaluate on. Default: pretraining takes validation, else test, else images that it holds out of
    the training split; commands that need labels take test, else validation, else hold out a fifth, class by class."""
    range: tuple[float, float] | Literal["auto"] | None = None
    """The values that become black and white, for 12 bits in 16, reflectances, floats: LOW HIGH, or `auto`: percentiles
    0.1 and 99.9 of training images. Default: the backbone's, else all of 8 or 16 bits. Floats need it."""
    fraction: UpTo1 = 1.0  # Share of the training images to use, above 0 and at most 1, chosen by --seed.
    cache: Harmless[bool] = True
    """Decode a set of small images once, into a file in ~/.cache/mpp (or $MPP_CACHE), if training sees all of it."""
    cache_limit: Harmless[NotNegative] = 20.0
    """Most GB of that folder. What was not used for the longest time goes first; `mpp cache` lists what is there."""
    workers: Harmless[Whole | None] = None
    """Processes that decode images. Default: 0 when training on a CPU, else one a core, at most 8."""


@dataclass
class MeasuredData(Data):
    """Where the labelled images come from."""

    hold_out: Inside | None = None
    """Hold this share of the training split out, class by class, and measure on it in place of an evaluation split: for
    choices that must not look at the test set. The same images for every seed. Default: a fifth where the set has no
    evaluation split with labels, else none."""


@dataclass
class LabelledData(MeasuredData):
    """Where the labelled images come from."""

    labels: Count | None = None
    """How many training labels to use, balanced over the classes, chosen by --seed. Default: all."""


@dataclass
class PretrainData(Data):
    """Where the images come from, and what the model predicts."""

    target: str = "mean-colour"
    """What is predicted of a patch: `mean-colour`, `4x4` (or another GxG: the colour of each cell), `pixels`,
    `normalised-pixels` (MAE's), `hog` (edges by orientation), or a weighted sum: `hog+0.1*pixels`."""
    bits: Bits = 3
    """Bits a colour channel, 1..8: 3 gives 8 bins a channel, so 512 colours. More than 3 channels are predicted one by
    one."""


ViTVariant = Literal["nano", "Ti", "S", "B", "L", "H"]
ResNetVariant = Literal["bit-nano", "bit-50x1", "bit-50x3", "bit-101x1", "bit-101x3", "bit-152x2", "bit-152x4"]


@dataclass
class Model:
    """The Vision Transformer."""

    variant: Literal[ViTVariant, ResNetVariant] = "nano"
    """Size: nano (1.2 M parameters, for CPUs), Ti (6 M), S (22 M), B (86 M), L (304 M), H (632 M). bit-...: a ResNet
    for commands with labels, the baseline of the paper (BiT); bit-nano (1 M) is for CPUs."""
    img_size: Count | tuple[Count, Count] | None = 32
    """Side of the images in pixels, or height and width; a multiple of the patch size. None: the size of the backbone
    that --init names, and 32 for scratch. Another size than the backbone's interpolates position embeddings."""
    patch_size: Count = 4  # Side of a patch in pixels; of a ResNet its stride: 32, for small images 16 or 8.
    stem: Literal["none", "conv", "r26", "r50"] = "none"
    """Convolutions before the tokens, a hybrid: conv (a few of stride 2), r26 or r50 (ResNets); a token then stands for
    --model.patch-size pixels of the image. The paper's R50+ViT-B/16 is variant B, stem r50, patch size 16."""
    embed_dim: Count | None = None  # Width D of a token. Default: the variant's.
    depth: Count | None = None  # Number of blocks. Default: the variant's.
    num_heads: Count | None = None  # Attention heads a block. Default: the variant's.
    mlp_ratio: Positive = 4.0  # Width of a block's hidden layer over D.
    pos_embed: Literal["1d", "2d", "relative", "none"] = "1d"
    """Position embeddings. In the paper 1d, 2d and relative are alike, and none is 3 points worse."""
    pos_init: Literal["normal", "sincos"] = "sincos"
    """How 1d and 2d start: as noise (the paper's code), or as sines and cosines, which learn far sooner."""
    dropout: Share = 0.0  # Probability of dropping a unit after each linear layer, in 0..1.
    drop_path: Share = 0.0  # Probability of skipping the last block for a sample, in 0..1; earlier blocks have less.


SHAPE = ("variant", "patch_size", "stem", "embed_dim", "depth", "num_heads", "mlp_ratio", "pos_embed", "pos_init")
"""The options of a model that weights fix."""


@dataclass
class PooledModel(Model):
    """The Vision Transformer. Options that set a shape apply to scratch only; a backbone from --init has its own."""

    pool: Literal["mean", "cls"] = "mean"
    """An image's feature: the mean of its patch tokens, or the [class] token, which MPP does not train."""


@dataclass
class Corrupt:
    """Which patches are corrupted, and how."""

    ratio: Inside = 0.5  # Share of an image's patches that are corrupted and predicted, above 0 and below 1.
    mask: Share = 0.8  # Share of the corrupted patches whose embedding becomes the learnt [mask] embedding.
    other: Share = 0.1  # Share that gets the embedding of a random other patch of the image.
    keep: Share = 0.1  # Share that keeps its embedding. --corrupt.mask, .other and .keep sum to 1.
    shape: Literal["uniform", "blocks"] = "uniform"  # Choose patches one by one, or in rectangular blocks (BEiT).
    decoder_depth: Whole = 0  # Blocks between encoder and head, thrown away after pretraining; the paper has none.


@dataclass
class Visible:
    """What --method visible hides (in the form of --corrupt.shape), and the decoder, which is thrown away."""

    keep: Inside = 0.25  # Share of an image's patches that the encoder sees, above 0 and below 1.
    predict: UpTo1 = 0.5  # Share of the hidden patches that are predicted, above 0 and at most 1.
    decoder: Literal["cross", "self"] = "cross"
    """cross: each predicted patch attends to the visible ones (CrossMAE); self: all attend to all (MAE)."""
    width: Count | None = None  # Width of the decoder, a multiple of 4. Default: that of the encoder, at most 512.
    depth: Count = 1  # Blocks of the decoder.


@dataclass
class Augment:
    """How training changes an image before it is cut into patches."""

    crop: Literal["auto", "pad", "resized", "none"] = "auto"
    """pad: shift the image's middle by up to --augment.pad; resized: take a random part (Inception's crop); none. auto:
    resized where images are 1.5 times the model's input or more, of which pad would never see the borders, else pad."""
    pad: Whole = 4  # Largest shift of crop pad, in pixels of the model's input.
    scale: tuple[Share, Share] = (0.2, 1.0)  # Smallest and largest share of the image's area that crop resized takes.
    flip: Share = 0.5  # Probability of mirroring left and right.


@dataclass
class LabelledAugment(Augment):
    """How training changes a labelled image before it is cut into patches."""

    randaugment: Whole = 0  # Random operations of RandAugment (arXiv 1909.13719, magnitude 9) on each image; 0: none.
    mixup: NotNegative = 0.0
    """Blend pairs of images and their labels; the parameter of the Beta distribution (0.8 is usual); 0: off."""
    cutmix: NotNegative = 0.0
    """Paste a box of one image into another and share the labels in proportion (1.0 is usual); 0: off. With both on,
    each step uses one of them."""


@dataclass
class Optim:
    """How the weights change."""

    name: Literal["adamw", "adam", "sgd", "muon"] = "muon"
    """adam is the paper's; adamw decouples weight decay; muon learns most from few steps (it updates the blocks'
    matrices, adamw the rest); sgd is for fine-tuning, with momentum betas[0]."""
    lr: Positive = 3e-3  # Peak learning rate.
    lr_batch_size: Count | None = None
    """The batch size that --optim.lr is meant for: at another, the rate scales in proportion. Default: no scaling."""
    betas: tuple[Below1, Below1] = (0.9, 0.95)
    """Decay of the running mean of gradients and of their squares. (Muon's matrices use 0.95.)"""
    weight_decay: NotNegative = 0.05  # On the weights of linear layers and convolutions alone.
    warmup_steps: Whole = 50  # Steps over which the learning rate rises linearly from 0 to its peak.
    decay: Literal["cosine", "linear", "none"] = "cosine"  # How the learning rate falls to 0 after the warm-up.
    extend: Harmless[Literal["restart", "continue"]] = "restart"
    """The learning rate of a run that is resumed with other --train.steps: that of a run begun with them (restart), or
    the last one, decaying to 0 over the steps that remain (continue)."""
    clip_norm: NotNegative = 1.0  # Scale gradients down to this norm; 0: never.
    layer_decay: UpTo1 = 1.0
    """Each block learns at this share of the rate of the block above it; 1: all alike. (0.65 to 0.85 are usual for
    weights that --init names.)"""


@dataclass
class FineTuneOptim(Optim):
    """How the weights change."""

    lr_grid: tuple[Positive, ...] = ()
    """Peak learning rates to try on a fifth of the training labels; the best one replaces --optim.lr."""


@dataclass
class Train:
    """How long, how fast, and what is kept."""

    steps: Count = 900  # Optimiser steps in all; a resumed run counts the steps it already has.
    epochs: Positive | None = None
    """Passes over the training images. --train.steps follows from it: give one of them."""
    batch_size: Count = 32  # Images a step, over all processes and accumulation.
    accumulate: Harmless[Count] = 1  # Compute a step's batch in this many parts, one after another, to save memory.
    auto_batch: Harmless[bool] = False
    """Try a step at the start and raise --train.accumulate until it fits into memory; the numbers stay the same."""
    on_nonfinite: Harmless[Literal["stop", "skip"]] = "stop"
    """If a loss or gradient is not finite: stop, or skip that step (this waits for the device at every step)."""
    max_skips: Harmless[Count] = 10  # How many steps in a row --train.on-nonfinite skip may skip before the run stops.
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on accelerators that have it, else fp32.
    activation_checkpointing: Harmless[bool] = False
    """Recompute activations in the backward pass instead of keeping them: a third slower, far less memory."""
    compile: Harmless[bool] = False
    """torch.compile the model: a minute at the start, faster steps on GPUs (on CPUs it needs a C++ compiler)."""
    log_every: Harmless[Count] = 1  # Steps between lines in metrics.jsonl and TensorBoard.
    checkpoint_every: Harmless[Count] = 300  # Steps between checkpoints; the end and a stop also save one.
    keep_checkpoints: Harmless[Count] = 2  # How many of the last checkpoints to keep.
    average: Below1 = 0.0
    """Evaluate and export a running mean of the weights with this decay a step (0.999, say); 0: the weights."""


@dataclass
class LabelledTrain(Train):
    """How long, how fast, and what is kept."""

    label_smoothing: Share = 0.1  # Share of a label's weight that is spread over all classes, in 0..1.


@dataclass
class FineTuneTrain(LabelledTrain):
    """How long, how fast, and what is kept."""

    steps: Whole = 0
    """Optimiser steps in all; a resumed run counts the steps it already has. 0: 60 epochs of the labels, but from 200
    to 2,000 steps, and 5 epochs where those are more."""
    batch_size: Whole = 0
    """Images a step, over all processes and accumulation. 0: a power of two from 16 to 128, so that an epoch of the
    labels has 8 steps or more."""


@dataclass
class Eval:
    """Evaluation on held-out images while training. It chooses nothing: the last evaluation is the result."""

    every: Harmless[Count] = 300  # Steps between evaluations; the end has one too.
    images: Count | None = 2000  # How many held-out images, at most; None: all.
    batch_size: Count = 256  # Images a batch. It is the same on any number of processes, so results are too.


@dataclass
class ProbedEval(Eval):
    """Evaluation on held-out images while training."""

    probe: str | None = None
    """A labelled set (as --data.path) on which every evaluation measures frozen features: ridge regression and k-NN."""
    probe_label_column: str | None = None
    """Its label column. Needed only if several could be meant; for `shapes`: shape, colour, count or place."""


@dataclass
class PretrainEval(ProbedEval):
    """Evaluation on held-out images while training."""

    pictures: Harmless[Whole] = 8  # How many images to picture: input, corrupted, predicted colours, true colours.


@dataclass
class Probe:
    """How frozen features are measured."""

    layer: str = "last"
    """`last`, a block's number from 1, or `all`: every block, and the best on a fifth of the training labels."""
    shots: tuple[Count, ...] = (1, 5, 10, 25)
    """Labels a class for the few-shot probe; numbers that are too many are left out."""
    draws: Count = 5  # Draws of these labels; the mean and the deviation over draws are reported.
    neighbours: Count = 20  # k of the k-NN classifier.
    attentive: bool = False
    """Train an attentive probe, too: a learnt query over the frozen patch tokens (eval/attentive_top1). It takes longer
    than all others together; tokens of more than 2 GiB are computed anew in each pass over the images."""
    eval_images: Count | None = None  # How many images to measure on, at most. Default: all.


@dataclass
class Place:
    """What every command has."""

    output: Once[str | None] = None  # The run's folder. Default: runs/<command>-<date and time>.
    config: Once[str | None] = None
    """A preset, by name (`mpp presets` lists them) or file, or a run's config.toml; options on the line win over it."""


@dataclass
class Seeded:
    """What every run has."""

    seed: Whole = 0
    """Seed of all random numbers: weights, order, augmentation, corruption, choice of images and labels."""


@dataclass
class Rehearsed:
    """What every long command has that goes over images with a model."""

    dry_run: Once[bool] = False
    """Write nothing and make no folder: print images, classes and model, and the time and memory that the whole would
    take, from a few measured steps."""
    dry_run_picture: Once[str | None] = None  # With --dry-run: a .png file for the first batch as the model gets it.


@dataclass
class Log:
    """Who follows the run beside its own files."""

    trackers: Harmless[tuple[Literal["tensorboard", "wandb", "mlflow", "trackio", "swanlab"], ...]] = ("tensorboard",)
    """Where metrics, options and pictures go, too; others than TensorBoard are installed apart, and set up by their own
    environment variables. metrics.jsonl has the same numbers."""


@dataclass
class Training(Place, Seeded, Rehearsed):
    """What every training has."""

    log: Log = but(Log)
    resume: Once[bool] = False
    """Go on from --output's latest good checkpoint, with that run's options; start fresh if there is none."""
    resume_anyway: Once[bool] = False
    """With --resume: go on although options that change the numbers differ from those that the run began with."""
