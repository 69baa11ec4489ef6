"""What both methods share: a model predicts the content of patches that it does not see, measured on held-out images.

A method says what the model is given and where it predicts (`masked_patches.py`, `visible_patches.py`); the images,
the loss, the evaluation beside two guesses and the pictures are here.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from einops import repeat
from torch import Tensor, nn
from tqdm.auto import tqdm

from mpp.config.commands import Pretrain
from mpp.config.derived import target_parts
from mpp.data.augment import View
from mpp.data.bands import displayed
from mpp.data.batches import readable, refuse_too_many, to_device
from mpp.data.images import Images, Subset, bands_of
from mpp.data.loader import Batch, Draws, eval_loader
from mpp.data.streams import Stream
from mpp.data.training_set import Reading, training_set
from mpp.errors import UserError
from mpp.evaluation.quick_probe import QuickProbe
from mpp.figures.sheet import paint_rows
from mpp.methods.targets import make_target, mean_of_nearest_visible, paint_patches, true_pictures
from mpp.models.vit import ViT
from mpp.run.machine import workers_of

_MOST_OUTPUTS = 1 << 20  # of the head for a patch: --data.bits 6 of three channels makes 2^18 bins
_ONE_BIN = 0.95  # share of the targets beyond which an accuracy says nothing


def refuse_too_many_bins(outputs: int, vit: ViT, predicted: int, config: Pretrain) -> None:
    """Raise UserError, which names the memory, if the head would predict more values for a patch than make sense."""
    if outputs > _MOST_OUTPUTS:
        patches = config.train.batch_size * predicted
        head, scores = (4 * outputs * width / 2**30 for width in (vit.embed_dim, patches))
        raise UserError(
            f"--data.bits {config.data.bits} with --data.target {config.data.target} asks for {outputs:,} colour bins "
            f"of a patch: {head:,.1f} GiB for the head and {scores:,.1f} GiB for the scores of a batch; give fewer "
            f"--data.bits ({_MOST_OUTPUTS:,} bins are the most)"
        )


def not_measurable(majority: float) -> str | None:
    """Why accuracies say nothing where the commonest bin has this share of the targets; None if they do."""
    if majority <= _ONE_BIN:
        return None
    return (
        f"{majority:.1%} of the targets are one colour bin, so a guess is as good as a model; if the values fill a "
        f"sliver of their range, --data.range auto or --data.range LOW HIGH spreads them"
    )


class PatchPrediction(ABC):
    """A method of patch prediction on one set of images: the `Job` that the training loop is given."""

    in_pairs = False
    heading = "corrupted"  # of what the model sees, in pictures

    def __init__(
        self, config: Pretrain, vit: ViT, accelerator: Accelerator, train: Images | Stream, evaluated: Images
    ) -> None:
        self.config, self.accelerator, self.eval_images = config, accelerator, evaluated
        self.vit, self.size, self.patch_size = vit, vit.img_size, vit.patch_size
        self.bands = bands = bands_of(train)
        vit.activation_checkpointing = config.train.activation_checkpointing
        self.target = make_target(config.data.target, vit.patch_size, config.data.bits, vit.in_chans)
        refuse_too_many_bins(self.target.num_outputs, vit, self.predictions_an_image(config, vit.num_patches), config)
        self.display = displayed(vit.in_chans)
        self.one_bin_looked_for = False
        self.grid = vit.grid
        self.model, self.draw = self.build(config, vit, self.target.num_outputs)
        self.unreadable: dict[str, str] = {}
        self.measured = 0  # held-out images that could be read
        self.probe = QuickProbe.asked_for(config, accelerator, self.unreadable, bands, vit.img_size)
        self.workers = workers_of(config.data, accelerator)
        a = config.augment
        assert a.crop != "auto"
        self.pin_memory = accelerator.device.type == "cuda"
        reading = Reading(
            View(self.size, a.crop, a.pad, a.scale, a.flip),
            self.draw,
            config.seed,
            config.train.steps,
            config.train.batch_size,
            self.workers,
            self.pin_memory,
        )
        self.data = training_set(train, reading)

    @staticmethod
    @abstractmethod
    def build(config: Pretrain, vit: ViT, num_outputs: int) -> tuple[nn.Module, Draws]:
        """The model that is trained, around an encoder, and what draws a batch's choice of patches."""

    @staticmethod
    @abstractmethod
    def flops_of(config: Pretrain, model: Any) -> int:
        """Floating-point operations of training `model` on one image."""

    @staticmethod
    @abstractmethod
    def predictions_an_image(config: Pretrain, num_patches: int) -> int:
        """How many patches of an image are predicted."""

    def flops_an_image(self) -> int:
        return self.flops_of(self.config, self.model)

    @abstractmethod
    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """The model's outputs (B, K, num_outputs) for the predicted patches of a batch."""

    @abstractmethod
    def predicted(self, batch: Batch) -> Tensor:
        """Which patches are predicted (B, K)."""

    @abstractmethod
    def hidden(self, batch: Batch) -> Tensor:
        """Which patches no guess may look at (B, H)."""

    @abstractmethod
    def seen(self, batch: Batch) -> Tensor:
        """What the model sees, to look at: uint8 (B, C, H, W)."""

    def to_picture(self, batch: Batch) -> Batch:
        """The batch whose predictions are pictured."""
        return batch

    def training_step(self, model: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        predictions, targets = self.predict(model, batch)
        loss = self.target.loss(predictions, targets)
        if not self.one_bin_looked_for:  # at the first step: here it waits for the device
            self.one_bin_looked_for = True
            self.warn_of_one_bin(targets, batch["images"])
        with torch.no_grad():
            right = self.target.predicted_bins(predictions) == self.target.bins(targets)
        return loss, {"bin_accuracy": right.float().mean()}

    def warn_of_one_bin(self, targets: Tensor, images: Tensor) -> None:
        """Warn if nearly all targets (B, K, ...) are one bin, as they are where values fill a sliver of the range."""
        bins = self.target.bins(targets)
        share = torch.stack([torch.bincount(cell.flatten()).max() for cell in bins.unbind(-1)]).sum() / bins.numel()
        if (why := not_measurable(share.item())) and self.accelerator.is_main_process:
            low, high = self.bands.range or (0, 255)
            of = f"{low:g}..{high:g}" + ("" if self.bands.range else ", to which all of 8 or 16 bits are scaled")
            least, most = (low + (high - low) / 255 * edge.item() for edge in (images.min(), images.max()))
            tqdm.write(f"warning: {why}; the first batch lies in {least:g}..{most:g} of {of}", file=sys.stderr)

    def predict(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Predictions (B, K, outputs) and targets (B, K, ...) of the patches that are predicted."""
        everywhere = self.target.of(batch["images"])  # (B, N, ...): colours as seen, before normalisation
        rows = torch.arange(len(everywhere), device=everywhere.device)[:, None]
        return self.outputs(model, batch), everywhere[rows, self.predicted(batch)]

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Loss and bin accuracy on the held-out images, beside two guesses: the commonest bin, and the bin of the mean
        of the nearest visible patches. Sums and counts, so that no image counts twice on any number of processes."""
        device = self.accelerator.device
        exact = torch.float32 if device.type == "mps" else torch.float64  # which MPS has not
        sums = torch.zeros(4, dtype=exact, device=device)  # loss, right, right by neighbours, images
        counts = torch.zeros(self.target.cells, self.target.num_bins, dtype=torch.int64, device=device)
        for batch in self.eval_batches(self.accelerator.process_index, self.accelerator.num_processes):
            images = batch["images"]
            predictions, targets = self.predict(model, batch)
            truth = self.target.bins(targets)  # (B, K, cells)
            right = self.target.predicted_bins(predictions) == truth
            clues = mean_of_nearest_visible(
                self.target.clues(images), self.grid, self.predicted(batch), self.hidden(batch)
            )
            guessed = self.target.bins_of_clues(clues) == truth
            means = [self.target.loss(predictions, targets), right.to(exact).mean(), guessed.to(exact).mean()]
            sums += torch.stack([*(mean.to(exact) for mean in means), sums.new_ones(())]) * len(images)
            for cell, count in zip(truth.unbind(-1), counts, strict=True):
                count += torch.bincount(cell.flatten(), minlength=self.target.num_bins)
        sums, counts = self.accelerator.reduce(sums), self.accelerator.reduce(counts)
        self.measured = round(sums[3].item())
        every = len(self.eval_images)
        refuse_too_many(every - self.measured, every, self.config.data, self.unreadable, "held-out images")
        loss, accuracy, neighbours = (sums[:3] / sums[3]).tolist()
        return self.probe(cast(ViT, model.vit)) | {
            "loss": loss,
            "bin_accuracy": accuracy,
            "baseline_majority": (counts.amax(-1).sum() / counts.sum()).item(),
            "baseline_neighbours": neighbours,
        }

    def pictures(self, model: nn.Module) -> dict[str, Tensor]:
        """A sheet of held-out images in rows: input | what the model sees | predicted | true, the last two for each
        part of a summed target."""
        if not self.config.eval.pictures:
            return {}
        batch = next(self.eval_batches(0, 1, self.config.eval.pictures), None)
        if batch is None:  # not one of these images can be read
            return {}
        batch = self.to_picture(batch)
        images, places = batch["images"], self.predicted(batch)
        predictions, _ = self.predict(model, batch)
        rows = torch.arange(len(images), device=images.device)[:, None]
        columns = [images, self.seen(batch)]
        for predicted, true in zip(self.target.pixels(predictions), true_pictures(self.target, images), strict=True):
            columns += [paint_patches(images, places, patches) for patches in (predicted, true[rows, places])]
        row = torch.cat([nn.functional.pad(x[:, self.display], [1] * 4, value=255) for x in columns], dim=-1)
        zoom = max(1, 128 // images.shape[-1])
        sheet = repeat(row, "b c h w -> b c (h y) (w x)", y=zoom, x=zoom).cpu()
        parts = list(target_parts(self.config.data.target))
        each = [("predicted", "true")] if len(parts) == 1 else [(f"{part}: predicted", "true") for part in parts]
        headings = ["input", self.heading, *(heading for pair in each for heading in pair)]
        return {"input_corrupted_predicted_true": paint_rows(sheet, headings)[None]}

    def look(self, batch: Batch) -> tuple[np.ndarray, list[str]]:
        """Each image, and beside it what the model sees of it."""
        images, seen = batch["images"][:, self.display], self.seen(batch)[:, self.display]
        return torch.cat([images, torch.full_like(images[..., :1], 255), seen], dim=-1).numpy(), []

    def eval_batches(self, rank: int, world_size: int, only: int | None = None) -> Iterator[Batch]:
        """A process's batches of the held-out images, or of the first `only` of them, each with its choice of patches:
        always the same."""
        images = (
            self.eval_images if only is None else Subset(self.eval_images, np.arange(min(only, len(self.eval_images))))
        )
        loader = eval_loader(
            images,
            self.size,
            self.draw,
            batch_size=self.config.eval.batch_size,
            rank=rank,
            world_size=world_size,
            workers=0 if only else self.workers,
            pin_memory=self.pin_memory,
        )
        for batch in readable(loader, self.config.data.on_error, self.unreadable):
            yield to_device(batch, self.accelerator.device)
