"""What is predicted of a patch: the three targets of the ViT paper's appendix B.1.2, HOG, and weighted sums;
the guess from the nearest visible patches; and patches painted into images.

Targets are computed on the device from uint8 images after crop and flip, never from normalised pixels: almost all of
their colours would fall into one bin.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import Tensor

from mpp.config.derived import cells_a_side, target_parts
from mpp.config.own import is_own, own
from mpp.methods.regressions import Hog, NormalisedPixels, Regression
from mpp.models.blocks import gather


class Target(Protocol):
    """What to predict about a patch. An image has N patches, K of them corrupted."""

    num_outputs: int  # width of the prediction head
    cells: int  # cells per patch; each cell has one bin
    num_bins: int  # number of possible bins of a cell

    def of(self, images: Tensor) -> Tensor:
        """Targets of all patches from uint8 images: (B, C, H, W) -> (B, N, ...)."""
        ...

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of predictions (B, K, num_outputs) against targets (B, K, ...): a scalar."""
        ...

    def bins(self, targets: Tensor) -> Tensor:
        """Bins of targets: (B, K, ...) -> (B, K, cells) int64. Accuracies and baselines compare these."""
        ...

    def predicted_bins(self, predictions: Tensor) -> Tensor:
        """Predicted bins: (B, K, num_outputs) -> (B, K, cells) int64."""
        ...

    def clues(self, images: Tensor) -> Tensor:
        """What a guess averages over a patch's neighbours: uint8 images (B, C, H, W) -> (B, N, F) floats."""
        ...

    def bins_of_clues(self, clues: Tensor) -> Tensor:
        """Bins of such averages: (B, K, F) -> (B, K, cells) int64."""
        ...

    def pixels(self, predictions: Tensor) -> list[Tensor]:
        """Predictions as patches to look at: (B, K, num_outputs) -> (B, K, C, P, P) uint8, one for each part."""
        ...

    def true_pixels(self, targets: Tensor) -> list[Tensor]:
        """Targets as patches to look at: (B, K, ...) -> (B, K, C, P, P) uint8, one for each part."""
        ...


def make_target(name: str, patch_size: int, bits: int = 3, channels: int = 3) -> Target:
    """Make a target by name: "mean-colour" (the paper's default), "4x4" (or any "GxG" cells per patch), "pixels",
    "normalised-pixels", "hog", or a sum of them, each with a weight if given: "hog+0.1*mean-colour".
    `mpp.config.derived.cells_a_side` checks the names.

    `bits` is per channel: 3 gives 8 bins per channel, and 512 colours of 3 channels. Raises ValueError for a wrong
    name or size.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"bits per channel must be in 1..8, not {bits}")
    parts = [(weight, _one_target(part, patch_size, bits, channels)) for part, weight in target_parts(name).items()]
    return parts[0][1] if len(parts) == 1 else WeightedSum(parts)


def _one_target(name: str, patch_size: int, bits: int, channels: int) -> Target:
    if is_own(name):
        mine = own("--data.target", name)
        return mine(patch_size, bits, channels) if isinstance(mine, type) else mine
    if name == "hog":
        return Hog(patch_size, channels)
    if name == "pixels":
        return Pixels(patch_size, bits, channels)
    if name == "normalised-pixels":
        return NormalisedPixels(patch_size, channels)
    return ColourBins(patch_size, cells_a_side(name, patch_size), bits, channels)


def mean_colours(images: Tensor, patch_size: int) -> Tensor:
    """Mean colour of every patch: uint8 images (B, C, H, W) -> (B, N, C) in 0..255."""
    return reduce(images.float(), "b c (h p) (w q) -> b (h w) c", "mean", p=patch_size, q=patch_size)


_MOST_JOINT = 3  # channels whose bins are classes together


class ColourBins:
    """The mean colour's bin of each of a patch's grid x grid cells: classification into 2^(bits * channels) classes.

    grid 1 is the paper's mean colour (512 classes at 3 bits), grid 4 its 4 x 4 downsized patch (16 x 512 in parallel).

    That many classes cannot be for more than 3 channels: then each channel of a cell has its own 2^bits, and counts as
    a cell of its own. So the loss is the mean over channels, and an accuracy the share of their bins that is right.
    """

    def __init__(self, patch_size: int, grid: int, bits: int, channels: int = 3) -> None:
        self.patch_size, self.grid, self.bits, self.channels = patch_size, grid, bits, channels
        self.joint = channels <= _MOST_JOINT
        self.cells = grid * grid * (1 if self.joint else channels)
        self.num_bins = 2 ** (bits * channels if self.joint else bits)
        self.num_outputs = self.cells * self.num_bins

    def of(self, images: Tensor) -> Tensor:
        cell = self.patch_size // self.grid
        cells = reduce(
            images.to(torch.int32),
            "b c (h gy y) (w gx x) -> b (h w) (gy gx) c",
            "sum",
            gy=self.grid,
            gx=self.grid,
            y=cell,
            x=cell,
        )
        return self._classes(cells // (cell * cell * 2 ** (8 - self.bits)))  # exact: floor(mean / 32) in integers

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self._logits(predictions).float().flatten(0, -2), targets.flatten())

    def bins(self, targets: Tensor) -> Tensor:
        return targets

    def predicted_bins(self, predictions: Tensor) -> Tensor:
        return self._logits(predictions).argmax(-1)

    def clues(self, images: Tensor) -> Tensor:
        return mean_colours(images, self.patch_size)

    def bins_of_clues(self, clues: Tensor) -> Tensor:
        levels = (clues / 2 ** (8 - self.bits)).long()
        return self._classes(repeat(levels, "b k c -> b k cells c", cells=self.grid**2))

    def pixels(self, predictions: Tensor) -> list[Tensor]:
        return self.true_pixels(self.predicted_bins(predictions))

    def true_pixels(self, targets: Tensor) -> list[Tensor]:
        if self.joint:
            shifts = torch.arange(self.channels - 1, -1, -1, device=targets.device) * self.bits
            levels = (targets[..., None] >> shifts) & (2**self.bits - 1)  # (B, K, grid * grid, C)
        else:
            levels = rearrange(targets, "b k (cells c) -> b k cells c", c=self.channels)
        width = 2 ** (8 - self.bits)
        colours = (levels * width + width // 2).to(torch.uint8)  # the middle of the bin
        cell = self.patch_size // self.grid
        return [repeat(colours, "b k (gy gx) c -> b k c (gy y) (gx x)", gy=self.grid, y=cell, x=cell)]

    def _classes(self, levels: Tensor) -> Tensor:
        """Levels (B, K, grid * grid, C) -> classes (B, K, cells). Of joint channels the first has the highest bits."""
        if not self.joint:
            return rearrange(levels, "b k cells c -> b k (cells c)").long()
        classes = torch.zeros_like(levels[..., 0], dtype=torch.int64)
        for channel in range(self.channels):
            classes = (classes << self.bits) | levels[..., channel]
        return classes

    def _logits(self, predictions: Tensor) -> Tensor:
        return rearrange(predictions, "b k (cells classes) -> b k cells classes", classes=self.num_bins)


class Pixels(Regression):
    """Regression of the raw pixels, scaled to -1..1, by mean squared error. The bins are those of the mean colour."""

    def __init__(self, patch_size: int, bits: int, channels: int = 3) -> None:
        self.patch_size, self.channels = patch_size, channels
        self.num_outputs = channels * patch_size**2
        self.colours = ColourBins(patch_size, 1, bits, channels)
        self.cells, self.num_bins = self.colours.cells, self.colours.num_bins

    def of(self, images: Tensor) -> Tensor:
        p = self.patch_size
        return rearrange(images / 127.5 - 1, "b c (h y) (w x) -> b (h w) (c y x)", y=p, x=p)

    def bins(self, targets: Tensor) -> Tensor:
        pixels = self.true_pixels(targets)[0]
        return self.colours.of(rearrange(pixels, "b k c y x -> (b k) c y x")).view(*targets.shape[:2], self.cells)

    def clues(self, images: Tensor) -> Tensor:
        return self.colours.clues(images)

    def bins_of_clues(self, clues: Tensor) -> Tensor:
        return self.colours.bins_of_clues(clues)

    def true_pixels(self, targets: Tensor) -> list[Tensor]:
        pixels = ((targets.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return [rearrange(pixels, "b k (c y x) -> b k c y x", c=self.channels, y=self.patch_size)]


class WeightedSum:
    """Several targets at once: their outputs side by side, their losses summed by weight.

    Bins are those of the first part that has a colour, else of the first part. Every part has its picture.
    """

    def __init__(self, parts: list[tuple[float, Target]]) -> None:
        self.weights, self.parts = zip(*parts, strict=True)
        self.widths = [part.num_outputs for part in self.parts]
        self.num_outputs = sum(self.widths)
        coloured = [i for i, part in enumerate(self.parts) if isinstance(part, ColourBins | Pixels)]
        self.main = coloured[0] if coloured else 0
        self.cells, self.num_bins = self.parts[self.main].cells, self.parts[self.main].num_bins

    def of(self, images: Tensor) -> Tensor:
        """Targets side by side as floats, which hold every class number exactly: (B, N, sum of the parts' numbers)."""
        return torch.cat([part.of(images).to(torch.float32) for part in self.parts], dim=-1)

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        apart = zip(self.weights, self.parts, self._outputs(predictions), self._targets(targets), strict=True)
        return torch.stack([weight * part.loss(mine, true) for weight, part, mine, true in apart]).sum()

    def bins(self, targets: Tensor) -> Tensor:
        return self.parts[self.main].bins(self._targets(targets)[self.main])

    def predicted_bins(self, predictions: Tensor) -> Tensor:
        return self.parts[self.main].predicted_bins(self._outputs(predictions)[self.main])

    def clues(self, images: Tensor) -> Tensor:
        return self.parts[self.main].clues(images)

    def bins_of_clues(self, clues: Tensor) -> Tensor:
        return self.parts[self.main].bins_of_clues(clues)

    def pixels(self, predictions: Tensor) -> list[Tensor]:
        apart = zip(self.parts, self._outputs(predictions), strict=True)
        return [picture for part, mine in apart for picture in part.pixels(mine)]

    def true_pixels(self, targets: Tensor) -> list[Tensor]:
        apart = zip(self.parts, self._targets(targets), strict=True)
        return [picture for part, true in apart for picture in part.true_pixels(true)]

    def _outputs(self, predictions: Tensor) -> list[Tensor]:
        return list(predictions.split(self.widths, dim=-1))

    def _targets(self, targets: Tensor) -> list[Tensor]:
        counts = [part.cells if isinstance(part, ColourBins) else part.num_outputs for part in self.parts]
        apart = targets.split(counts, dim=-1)
        return [
            each.long() if isinstance(part, ColourBins) else each for part, each in zip(self.parts, apart, strict=True)
        ]


def colour_part(target: Target) -> int | None:
    """Which of a target's parts shows colours; None if none does."""
    if isinstance(target, WeightedSum):
        return target.main if colour_part(target.parts[target.main]) is not None else None
    return 0 if isinstance(target, ColourBins | Pixels) else None


def true_pictures(target: Target, images: Tensor) -> list[Tensor]:
    """What a prediction of every patch is compared with by eye, a picture for each part: uint8 images (B, C, H, W) ->
    (B, N, C, P, P). Colours are means, not the middles of their bins: rounding would make the truth look noisier."""
    if isinstance(target, WeightedSum):
        return [picture for part in target.parts for picture in true_pictures(part, images)]
    if not isinstance(target, ColourBins):
        return target.true_pixels(target.of(images))
    cell = target.patch_size // target.grid
    means = reduce(images.float(), "b c (h y) (w x) -> b c h w", "mean", y=cell, x=cell).round().to(torch.uint8)
    grid = target.grid
    return [repeat(means, "b c (h gy) (w gx) -> b (h w) c (gy y) (gx x)", gy=grid, gx=grid, y=cell, x=cell)]


def bin_probabilities(target: Target, predictions: Tensor) -> Tensor | None:
    """The probability of every bin: (B, K, num_outputs) -> (B, K, cells, num_bins); None for regressions."""
    if isinstance(target, WeightedSum):
        return bin_probabilities(target.parts[target.main], target._outputs(predictions)[target.main])
    return target._logits(predictions).float().softmax(-1) if isinstance(target, ColourBins) else None


def mean_of_nearest_visible(clues: Tensor, grid: tuple[int, int], indices: Tensor, hidden: Tensor) -> Tensor:
    """The neighbours baseline: guess each predicted patch from the nearest visible patches.

    The guess is the average of the clues of all visible patches at the smallest distance in the patch grid.
    Shapes: clues (B, N, F), predicted patches (B, K), hidden ones (B, H) -> (B, K, F).
    """
    y, x = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    places = torch.stack([y.flatten(), x.flatten()], dim=-1).to(clues.device)  # (N, 2)
    distances = (places[:, None] - places[None]).square().sum(-1)  # (N, N), exact integers
    distances = distances[indices]  # (B, K, N)
    unseen = torch.zeros(clues.shape[:2], dtype=torch.bool, device=clues.device).scatter(1, hidden, True)
    distances = distances.masked_fill(unseen[:, None], torch.iinfo(distances.dtype).max)
    nearest = (distances == distances.amin(-1, keepdim=True)).float()  # (B, K, N)
    return nearest @ clues / nearest.sum(-1, keepdim=True)


def paint_patches(images: Tensor, indices: Tensor, patches: Tensor) -> Tensor:
    """Paint patches (B, K, C, P, P) into images (B, C, H, W) at patch numbers `indices` (B, K); returns new images."""
    p = patches.shape[-1]
    height = images.shape[-2] // p
    cells = rearrange(images, "b c (h y) (w x) -> b (h w) (c y x)", y=p, x=p)
    flat = rearrange(patches, "b k c y x -> b k (c y x)")
    cells = cells.scatter(1, repeat(indices, "b k -> b k d", d=flat.shape[-1]), flat)
    return rearrange(cells, "b (h w) (c y x) -> b c (h y) (w x)", h=height, y=p, x=p)


def paint_corrupted(images: Tensor, indices: Tensor, sources: Tensor, patch_size: int) -> Tensor:
    """Paint what the model sees: [mask] is grey, replaced patches show their replacement. uint8 in and out."""
    patches = rearrange(images, "b c (h y) (w x) -> b (h w) (c y x)", y=patch_size, x=patch_size)
    with_mask = torch.cat([patches, torch.full_like(patches[:, :1], 128)], dim=1)
    shown = rearrange(gather(with_mask, sources), "b k (c y x) -> b k c y x", y=patch_size, x=patch_size)
    return paint_patches(images, indices, shown)
