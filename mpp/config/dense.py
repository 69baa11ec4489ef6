"""The options of the dense probe: a command of its own, and a judge of a comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mpp.config.bounds import Count, Positive, Whole, but
from mpp.config.options import MeasuredData, Model, Place, Rehearsed, Seeded


@dataclass
class OfPixels:
    """What is measured of pixels."""

    task: Literal["segmentation", "depth"] = "segmentation"
    """segmentation: the class of every pixel (palette or grey PNG of class numbers; their names may stand in
    classes.txt, a line each); depth: how far away it is (grey PNG of 8 or 16 bits)."""
    layer: str = "last"  # `last`, or a block's number from 1; the last norm comes after it.
    masks: str = "masks"  # The name of the folders with masks or depths.
    ignore: Whole | None = None
    """The value in a mask of pixels that count for nothing. Default: 255, and for depth 0, where nothing was
    measured."""
    depth_unit: Positive = 1.0  # What 1 in a file of depths is: 0.001 for millimetres, to be told in metres.
    neighbours: Count = 20  # k of k-NN.
    bank: Count = 32_768  # Training patches that k-NN compares with, at most, drawn by --seed.
    images: Count = 2000  # Images to fit on, at most, drawn by --seed.
    eval_images: Count = 1000  # Images to measure on, at most, the same for every seed.


@dataclass
class PixelJudge(OfPixels):
    """Segmentation (or depth) from the frozen patches of every arm, as `mpp dense` measures it."""

    path: str | None = None
    """A folder of images with masks, or `shapes`. Each arm is measured once for each pretraining seed; mIoU joins the
    results. Default: nothing is measured so."""
    label_column: str | None = None  # For `shapes`: shape, colour, count or place.


@dataclass
class Dense(Place, Seeded, Rehearsed, OfPixels):
    """Measure frozen patches pixel by pixel: the class of each pixel, or how far away it is.

    A linear layer and k-NN read the patches' tokens, as CAPI and DINOv3 do; their scores are enlarged to the mask.
    Beside them stand raw pixels in place of tokens, the commonest class (or the mean depth), and what the true shares
    of the classes in each patch (or its true mean depth) would give. Images lie in folders `images`, their masks in
    folders `masks` beside them with the same names and .png; splits may be above or below (train/images, images/train).
    Examples:

      mpp dense runs/tin scenes --output runs/dense
      mpp dense runs/tin scenes --task depth --masks depth --depth-unit 0.001
    """

    init: str = "scratch"
    """A run's folder, an exported backbone, a hub id, hf:, timm: or torchvision:NAME, a .safetensors or .npz of others,
    or scratch: random weights of --model.variant."""
    data: MeasuredData = but(MeasuredData)
    """The images. For `shapes`, masks have the background and the classes of --data.label-column (default: shape), and
    depth is the order of painting. Measured on is --data.eval-split, else test, else validation, else a fifth."""
    model: Model = but(Model, img_size=None)
    batch_size: Count = 64  # Images a forward pass.
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on accelerators that have it, else fp32.
