"""The options of commands that use a backbone, or look at a set of images, without training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mpp.config.bounds import Count, Once, Share, Whole, but
from mpp.config.options import Data, Place, Rehearsed, Source


@dataclass
class Predict(Rehearsed):
    """Write what a fine-tuned model says of images, with labels or without, to a table.

    A row an image: its name, the likeliest class and its probability, and the next classes. With labels that are the
    model's classes, the accuracy is printed. Any number of processes writes the same table. Examples:

      mpp predict runs/fine photos --out predictions.csv
      mpp predict --init runs/fine --data.path DIR --data.eval-split test --top 1
      mpp predict runs/fine photos --out predictions.csv --sheet predictions.png --reject-below 0.7
    """

    init: str = ""  # A run of finetune or supervised, its classifier/ folder, or a hub id.
    data: Data = but(Data)
    """The images: the split --data.eval-split, else the only one, else test, else validation."""
    out: str = "predictions.csv"
    """The .csv or .parquet file to write: columns image, (label,) class, probability, class_2, probability_2, ..."""
    overwrite: Once[bool] = False  # Replace the files that --out and --sheet name, if there are any.
    sheet: Once[str | None] = None
    """A .png file to paint: up to 120 of the images from the least to the most confident prediction."""
    top: Count = 5  # How many classes an image, the likeliest first.
    reject_below: Share = 0.0
    """Leave the class empty where its probability is below this, in 0..1. (`finetune --calibrate` makes probabilities
    that can be believed.)"""
    batch_size: Count = 256  # Images a forward pass.
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on accelerators that have it, else fp32.


@dataclass
class Embed(Rehearsed):
    """Write the features of images to a table, and look at them: nearest images, a projector, principal components.

    A row an image: its name, its label if it has one, and its embedding. A cut command goes on where it was, and any
    number of processes writes the same table. If --out is there, only the looking is done. Examples:

      mpp embed runs/tin photos --out photos.parquet
      mpp embed runs/tin photos --out photos.parquet --similar photos/cat/17.jpg
      mpp embed runs/tin photos --out photos.parquet --projector --pca
    """

    init: str = ""
    """A run's folder, an exported backbone, a hub id, hf:, timm: or torchvision:NAME, .safetensors, .npz of others."""
    data: Data = but(Data)
    """The images: --data.split, or the only split."""
    out: str = "embeddings.parquet"
    """The file to write: .parquet with the columns image, (label,) embedding; or .npy, with a .csv of the names beside
    it. What it was made of is in .about.json beside it."""
    pool: Literal["mean", "cls", "patches"] = "mean"
    """An image's embedding: the mean of its patch tokens, the [class] token (which MPP does not train), or all patch
    tokens."""
    layer: str = "last"  # `last`, or a block's number from 1; the last norm comes after it.
    img_size: Count | tuple[Count, Count] | None = None
    """Side of the images in pixels, or height and width. Default: the backbone's; others interpolate its positions."""
    similar: Once[str | None] = None
    """An image's file, or its name in the table: print the 12 nearest by cosine, and paint them to OUT.similar.png."""
    projector: Once[bool] = False
    """Write OUT.projector for `tensorboard --logdir`: up to 5,000 images with thumbnails, names and labels."""
    pca: Once[bool] = False
    """Paint the first three principal components of the patches of the first 16 images as colours, to OUT.pca.png."""
    overwrite: Once[bool] = False  # Replace the file that --out names, if it holds something else.
    batch_size: Count = 256  # Images a forward pass.
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on accelerators that have it, else fp32.


@dataclass
class Look(Place):
    """Look inside a backbone, and at what a pretraining run predicts, as pictures with their numbers.

    What the ViT paper shows of the inside (figure 7 and appendix D): principal components of the patch-embedding
    filters, similarity of position embeddings, how far each head looks by depth, attention rollout, and the patches'
    features as colours. Of a pretraining run, which has its head in its checkpoints, also its predictions with the best
    and the worst patches, and which colours it takes for which. PNG and CSV files, and TensorBoard. Examples:

      mpp look runs/tin --output runs/look
      mpp look runs/tin photos --only predictions confusion --images 1000
      mpp look timm:vit_base_patch16_224.augreg_in21k photos --only distance rollout --beside runs/tin
    """

    init: str = ""
    """A run's folder, an exported backbone, a hub id, hf:, timm: or torchvision:NAME, .safetensors, .npz of others."""
    data: Data = but(Data, path="")
    """The images. Default: those that the pretraining run of --init held out; of other backbones `shapes`."""
    only: tuple[Literal["filters", "positions", "distance", "rollout", "predictions", "confusion", "features"], ...] = (
        "filters",
        "positions",
        "distance",
        "rollout",
        "predictions",
        "confusion",
        "features",
    )
    """What to look at. predictions and confusion need a pretraining run; what is left out is said."""
    beside: str = ""  # A second backbone, as --init, whose attention distance is painted beside the first one's.
    images: Count = 128  # Images that are measured; the first 16 are painted.
    img_size: Count | tuple[Count, Count] | None = None
    """Side of the images in pixels, or height and width. Default: the backbone's; others interpolate its positions.
    Predictions are made at the size of the training."""
    batch_size: Count = 32  # Images a forward pass.


@dataclass
class Convert:
    """Write a run as timm, transformers, torchvision, ONNX or the ViT authors have it, or read a pickle safely.

    A fine-tuned run goes out with its classifier. The other library opens the folder, and how far its outputs differ is
    printed. Whatever --init of other commands takes can be converted. Examples:

      mpp convert runs/fine --to hf fine-hf
      mpp convert runs/tin --to timm tin-timm
      mpp convert --from-pth mae_pretrain_vit_base.pth
    """

    init: str = ""  # A run's folder, an exported backbone or classifier, or weights of another library.
    to: Once[tuple[str, str] | None] = None
    """The form, one of timm, hf, torchvision, npz, onnx and torch-export, and the folder to write."""
    from_pth: Once[str | None] = None
    """A pickle (.pth, .pt, .bin) whose tensors are written as .safetensors beside it, for --init. Nothing in it is
    run."""


@dataclass
class Pack:
    """Pack every split of a set into one file of uint8 pixels, which --data.path takes.

    A packed file opens in milliseconds and needs no decoding. A cut packing goes on where it was. Example:

      mpp pack DIR --out runs/set.mpp
    """

    out: str | None = None  # The file to write.
    data: Source = but(Source)
    size: Whole | None = None  # Shrink larger images to this short side (antialiased). Default: 256; 0 keeps all sizes.
    verify: bool = False  # Only compare --out with its checksum.
    dry_run: Once[bool] = False  # Write nothing: print images, size of the file, and the time, from a sample.


@dataclass
class Doctor:
    """Look at every image of a set: what is broken, odd or there twice, and how to begin pretraining on it.

    It counts images, sizes, values and classes, names those that cannot be read, finds copies and images that look
    alike within and between the splits, and proposes a command line. Examples:

      mpp doctor photos
      mpp doctor photos --against benchmark --out doctor.csv
    """

    data: Source = but(Source)
    """The set; all of its splits are looked at."""
    against: str | None = None  # Another set, as --data.path: which of its images are in this one?
    init: str = ""
    """A run or backbone by whose features images look alike (cosine 0.95), instead of by a hash of the picture."""
    out: Once[str | None] = None
    """A .csv or .parquet file for every pair and every image that cannot be read: kind, image, other, their splits and
    labels."""
    overwrite: Once[bool] = False  # Replace the file that --out names, if there is one.
    workers: Whole | None = None  # Processes that decode images. Default: one a core, at most 8; few images: none.


@dataclass
class Cache:
    """List the sets of small images that training has decoded into its cache, or remove them.

    The cache is ~/.cache/mpp, or $MPP_CACHE. --data.cache-limit bounds it. Example:

      mpp cache --clear
    """

    clear: bool = False  # Remove all sets but those in use: training decodes them again when it needs them.
