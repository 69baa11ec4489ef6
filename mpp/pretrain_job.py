"""What masked patch prediction trains and how it is measured: the `Job` that mpp/pretrain.py gives to the loop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mpp.augment import normalise
from mpp.config import Pretrain, height_width
from mpp.corrupt import Corruption, MaskShape, draw_corruption
from mpp.draws import Numbers, Purpose, generator
from mpp.errors import UserError
from mpp.flops import flops_an_image
from mpp.images import Images, load_images, split_names
from mpp.labelled import at_most, refuse_the_trained_split, take_fraction
from mpp.loader import Batch, Share, Subset, View, eval_loader, train_loader
from mpp.loop import Outcome, how_to_resume, images_seen, prepare_output, readable, share_of, to_device, train
from mpp.machine import workers_of
from mpp.models import MaskedPatchModel, build_vit
from mpp.pack_cache import packed_if_small
from mpp.quick_probe import QuickProbe
from mpp.records import finish, write_folder
from mpp.streams import Positions, Stream, held_out, is_stream, stream_loader
from mpp.targets import draw_corrupted, draw_patches, make_target, nearest_visible_colours


@dataclass(frozen=True)
class CorruptionDraws:
    """The corruption of a batch, from its samples' numbers: what the loader draws for this job."""

    grid: tuple[int, int]
    ratio: float
    fates: tuple[float, float, float]
    shape: MaskShape

    def __call__(self, numbers: Numbers) -> dict[str, Tensor]:
        return draw_corruption(numbers, self.grid, self.ratio, self.fates, self.shape)._asdict()


class PretrainJob:
    """Masked patch prediction on one set of images, measured on held-out ones against two guesses without a model."""

    def __init__(self, config: Pretrain, accelerator: Accelerator) -> None:
        self.config, self.accelerator = config, accelerator
        self.size = height_width(config.model.img_size)
        vit = build_vit(config.model)
        self.target = make_target(config.data.target, vit.patch_size, config.data.bits)
        self.model = MaskedPatchModel(vit, self.target.num_outputs)
        self.train_images, self.eval_images = open_splits(config, self.size)
        self.unreadable: dict[str, str] = {}
        self.probe = QuickProbe(config, accelerator, self.unreadable) if config.eval.probe else None
        self.workers = workers_of(config.data, accelerator)
        c = config.corrupt
        self.draw = CorruptionDraws(vit.grid, c.ratio, (c.mask, c.other, c.keep), c.shape)
        a = config.augment
        self.view = View(self.size, a.crop, a.pad, a.scale, a.flip)

    def batches(self, share: Share, start: int, positions: Positions) -> DataLoader:
        options: dict[str, Any] = {
            "seed": self.config.seed,
            "share": share,
            "start": start,
            "steps": self.config.train.steps,
            "workers": self.workers,
            "pin_memory": self.accelerator.device.type == "cuda",
        }
        if isinstance(self.train_images, Stream):
            return stream_loader(self.train_images, self.view, self.draw, positions=positions, **options)
        return train_loader(self.train_images, self.view, self.draw, **options)

    def flops_an_image(self) -> int:
        return flops_an_image(self.model, self.config.corrupt.ratio)

    def epoch(self, step: int, positions: Positions) -> float:
        if isinstance(self.train_images, Stream):  # of unknown length: the epoch that its lanes are in
            return sum(epoch for epoch, _ in positions.values()) / len(positions)
        return step * self.config.train.batch_size / len(self.train_images)

    def where(self, index: int) -> str:
        return cast(Images, self.train_images).where(index)

    def training_step(self, model: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        predictions, targets = self.predict(model, batch["images"], Corruption(batch["indices"], batch["sources"]))
        loss = self.target.loss(predictions, targets)
        with torch.no_grad():
            right = self.target.predicted_bins(predictions) == self.target.bins(targets)
        return loss, {"bin_accuracy": right.float().mean()}

    def predict(self, model: nn.Module, images: Tensor, corruption: Corruption) -> tuple[Tensor, Tensor]:
        """Predictions (B, K, outputs) and targets (B, K, ...) of uint8 images' corrupted patches."""
        everywhere = self.target.of(images)  # (B, N, ...): colours as seen, before normalisation
        rows = torch.arange(len(images), device=images.device)[:, None]
        return model(normalise(images), corruption), everywhere[rows, corruption.indices]

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Loss and bin accuracy on the held-out images, beside two guesses: the commonest bin, and the bin of the mean
        colour of the nearest uncorrupted patches. Sums and counts, so that no image counts twice on any number of
        processes."""
        device = self.accelerator.device
        exact = torch.float32 if device.type == "mps" else torch.float64  # which MPS has not
        sums = torch.zeros(4, dtype=exact, device=device)  # loss, right, right by neighbours, images
        counts = torch.zeros(self.target.cells, self.target.num_bins, dtype=torch.int64, device=device)
        for batch in self._eval_batches(self.accelerator.process_index, self.accelerator.num_processes):
            images, corruption = batch["images"], Corruption(batch["indices"], batch["sources"])
            predictions, targets = self.predict(model, images, corruption)
            truth = self.target.bins(targets)  # (B, K, cells)
            right = self.target.predicted_bins(predictions) == truth
            colours = nearest_visible_colours(images, corruption.indices, self.config.model.patch_size)
            guessed = self.target.bins_of_colours(colours) == truth
            means = [self.target.loss(predictions, targets), right.to(exact).mean(), guessed.to(exact).mean()]
            sums += torch.stack([*(mean.to(exact) for mean in means), sums.new_ones(())]) * len(images)
            for cell, count in zip(truth.unbind(-1), counts, strict=True):
                count += torch.bincount(cell.flatten(), minlength=self.target.num_bins)
        sums, counts = self.accelerator.reduce(sums), self.accelerator.reduce(counts)
        loss, accuracy, neighbours = (sums[:3] / sums[3]).tolist()
        probed = self.probe(model.vit) if self.probe else {}  # type: ignore[arg-type]
        return probed | {
            "loss": loss,
            "bin_accuracy": accuracy,
            "baseline_majority": (counts.amax(-1).sum() / counts.sum()).item(),
            "baseline_neighbours": neighbours,
        }

    def pictures(self, model: nn.Module) -> dict[str, Tensor]:
        """Held-out images in rows: input | corrupted | predicted colours | true colours."""
        if not self.config.eval.pictures:
            return {}
        batch = next(iter(self._eval_batches(0, 1, self.config.eval.pictures)), None)
        if batch is None:  # not one of these images can be read
            return {}
        images, corruption = batch["images"], Corruption(batch["indices"], batch["sources"])
        predictions, targets = self.predict(model, images, corruption)
        seen = draw_corrupted(images, corruption.indices, corruption.sources, self.config.model.patch_size)
        predicted = draw_patches(images, corruption.indices, self.target.pixels(predictions))
        true = draw_patches(images, corruption.indices, self.target.true_pixels(targets))
        zoom = max(1, 128 // images.shape[-1])
        row = torch.cat([nn.functional.pad(x, [1] * 4, value=255) for x in (images, seen, predicted, true)], dim=-1)
        row = row.repeat_interleave(zoom, -1).repeat_interleave(zoom, -2)
        return {"input_corrupted_predicted_true": row}

    def _eval_batches(self, rank: int, world_size: int, only: int | None = None) -> Any:
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
            pin_memory=self.accelerator.device.type == "cuda",
        )
        for batch in readable(loader, self.config.data.on_error, self.unreadable):
            yield to_device(batch, self.accelerator.device)


def run_pretraining(config: Pretrain, accelerator: Accelerator) -> Outcome:
    """Prepare, train, export, report: the command, but for its options and devices."""
    share = share_of(config.train, accelerator)
    output = prepare_output(config, "pretrain", config.resume, accelerator)
    set_seed(config.seed)
    with accelerator.main_process_first():  # it fills the cache of `datasets`, the others read it
        job = PretrainJob(config, accelerator)
    outcome = train(job, config, accelerator, share, output, headline="eval/bin_accuracy")
    if outcome.stopped:
        accelerator.print(how_to_resume("mpp/pretrain.py", outcome, output))
    elif accelerator.is_main_process:
        finish(output, config, write_result(job, config, output, outcome))
        print(closing_summary(config, job, output, outcome))
    return outcome


def open_splits(config: Pretrain, size: tuple[int, int]) -> tuple[Images | Stream, Images]:
    """The images to train on and the held-out ones.

    Held out, alike for every seed, is --data.eval-split, or the set's validation or test split; a set with none gives
    up a tenth of its images, but no more than --eval.images, and a stream its last shard.
    """
    data = config.data
    splits = split_names(data.path)
    spare = [name for name in ("validation", "test") if name in splits and name != data.split]
    eval_split = data.eval_split or (spare[0] if spare else None)
    refuse_the_trained_split(data, "name another, or leave it out to hold some images out")
    if is_stream(data.path):
        return open_stream_splits(config, eval_split)

    columns = {"size": size, "image_column": data.image_column, "label_column": data.label_column}
    train = load_images(data.path, data.split, **columns)  # type: ignore[arg-type]
    if data.cache:
        train = packed_if_small(train, size, images_seen(config.train))
    indices = np.arange(len(train))
    if eval_split is None:
        shuffled = generator(0, Purpose.SPLIT).permutation(indices)
        count = min(config.eval.images, max(1, len(train) // 10))
        evaluated: Images = Subset(train, np.sort(shuffled[:count]))
        indices = shuffled[count:]
    else:
        evaluated = at_most(load_images(data.path, eval_split, **columns), config.eval.images)  # type: ignore[arg-type]
    if not len(indices):
        raise UserError(f"--data.path {data.path} has one image: none is left to train on")
    if len(chosen := take_fraction(indices, data.fraction, config.seed)) < len(train):
        train = Subset(train, chosen)
    return train, evaluated


def open_stream_splits(config: Pretrain, eval_split: str | None) -> tuple[Stream, Images]:
    """`open_splits` of WebDataset shards: whole shards are held out, and --data.fraction chooses among shards."""
    data = config.data
    train = Stream.open(data.path, data.split, data.image_column)
    numbers = np.arange(len(train.indices))
    if eval_split is not None:
        spare = Stream.open(data.path, eval_split, data.image_column)
    elif len(numbers) > 1:
        spare, numbers = train.part(numbers[-1:]), numbers[:-1]
    else:
        raise UserError(
            f"--data.path {data.path} is one shard, which leaves none to evaluate on; split it in two, or name one "
            f"with --data.eval-split"
        )
    kept = max(1, round(len(numbers) * data.fraction))
    chosen = generator(config.seed, Purpose.SPLIT).permutation(numbers)[:kept]
    return train.part(np.sort(chosen)), held_out(spare, config.eval.images)


def write_result(job: PretrainJob, config: Pretrain, output: Path, outcome: Outcome) -> dict[str, Any]:
    """Export the encoder to `backbone/`; returns what result.json says of the run."""
    model: Any = outcome.model
    write_folder(output / "backbone", model.vit.save_pretrained)
    return outcome.metrics | {
        "command": "pretrain",
        "step": outcome.step,
        "images_seen": outcome.step * config.train.batch_size,
        "seconds": round(outcome.seconds, 1),
        "train_images": None if isinstance(job.train_images, Stream) else len(job.train_images),
        "eval_images": len(job.eval_images),
        "target": config.data.target,
        "backbone_parameters": sum(p.numel() for p in model.vit.parameters()),
        "unreadable_images": outcome.unreadable,
    }


def closing_summary(config: Pretrain, job: PretrainJob, output: Path, outcome: Outcome) -> str:
    """What a run says last: what was learnt against the two baselines, and what to do next."""
    m = outcome.metrics
    model, majority, neighbours = m["eval/bin_accuracy"], m["eval/baseline_majority"], m["eval/baseline_neighbours"]
    learnt = (
        f"It beats guessing from the nearest visible patches by {100 * (model - neighbours):.1f} points."
        if model > max(neighbours, majority)
        else "It has not beaten both guesses yet: train for more --train.steps, or with another --optim.lr."
    )
    probed = (
        f"On frozen features, {config.eval.probe} is told right by ridge regression {m.get('eval/probe_top1', 0):.1%}, "
        f"by nearest neighbours {m.get('eval/knn_top1', 0):.1%}."
    )
    lines = [
        f"\nAfter {outcome.step:,} steps ({outcome.step * config.train.batch_size:,} images, {outcome.seconds:.0f} s), "
        f"the colours of corrupted patches of {len(job.eval_images):,} held-out images are told right by",
        f"  the commonest colour     {majority:6.1%}",
        f"  the nearest visible      {neighbours:6.1%}",
        f"  the model                {model:6.1%}",
        learnt,
        *([probed] if config.eval.probe else []),
        f"Pictures: {output / 'samples'}    Curves: tensorboard --logdir {output.parent}",
        f"Next:     accelerate launch recipes/linear_probe.py --init {output}"
        + (" --data.labels 2000" if config.data.path == "shapes" else " --data.path LABELLED_IMAGES"),
    ]
    if outcome.unreadable:
        where, why = next(iter(outcome.unreadable.items()))
        total = "" if isinstance(job.train_images, Stream) else f" of {len(job.train_images) + len(job.eval_images):,}"
        lines.insert(
            1,
            f"{len(outcome.unreadable):,}{total} images in {config.data.path} could not be read and were left out, "
            f"the first: {where} ({why})",
        )
    return "\n".join(lines)
