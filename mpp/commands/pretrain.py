"""The command `pretrain`: prepare, train, export, report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from accelerate import Accelerator
from accelerate.utils import set_seed

from mpp.commands.cards import write_cards
from mpp.commands.downstream import as_taken_by, measured_before
from mpp.commands.rehearsal import rehearse
from mpp.config.checks import check_patches
from mpp.config.commands import Pretrain
from mpp.config.derived import height_width, sized, target_parts
from mpp.config.own import is_own, own
from mpp.config.schedule import timed
from mpp.data.bands import Bands
from mpp.data.identity import held_out_before, keep
from mpp.data.images import bands_of
from mpp.data.loader import Share, share_of
from mpp.data.splits import open_splits
from mpp.data.streams import Stream
from mpp.data.survey import cropped, noted
from mpp.errors import counted
from mpp.evaluation.quick_probe import QuickProbe
from mpp.methods.masked_patches import MaskedPatches
from mpp.methods.patch_prediction import PatchPrediction, not_measurable
from mpp.methods.visible_patches import VisiblePatches
from mpp.models.backbones import as_built, as_vit, build_vit, downstream_vit
from mpp.models.vit import ViT
from mpp.run.command import quoted, spelled
from mpp.run.folder import finish, prepared_output, unreadable_line, write_folder
from mpp.training.job import Outcome
from mpp.training.loop import train

METHODS: dict[str, type[PatchPrediction]] = {"mpp": MaskedPatches, "visible": VisiblePatches}


def method_of(name: str) -> type[PatchPrediction]:
    """The method of a name, or of a Python program."""
    return own("--method", name) if is_own(name) else METHODS[name]


def run_pretraining(config: Pretrain, accelerator: Accelerator) -> dict[str, Any]:
    """Pretrain; returns what result.json says."""
    share, config = share_of(config.train, accelerator), sized(config)
    with prepared_output(config, "pretrain", config.resume, accelerator) as output:
        return pretrain_into(output, share, config, accelerator)


def pretrain_into(output: Path, share: Share, config: Pretrain, accelerator: Accelerator) -> dict[str, Any]:
    """Prepare, train, export, report, all into a folder of its own."""
    set_seed(config.seed)
    vit = None
    if config.init != "scratch":
        vit = as_vit(downstream_vit(config.init, config.model), config.init, "it has no patches to mask")
    with accelerator.main_process_first():  # it fills the cache of `datasets`, the others read it
        remembered = held_out_before(output) if config.resume_anyway else None
        size = vit.img_size if vit else height_width(config.model.img_size)
        with as_taken_by(vit, config.init, config.data) as source:
            images, held_out = open_splits(replace(config, data=source), size, remembered)
        count = None if isinstance(images, Stream) else len(images)
        augment = cropped(config.augment, held_out if isinstance(images, Stream) else images, size)
        train_options = timed(config.train, count, config.optim)
        config = replace(noted(config, images), train=train_options, augment=augment)
        job = method_of(config.method)(*with_encoder(config, vit, bands_of(images)), accelerator, images, held_out)
    if config.eval.pictures and (channels := job.vit.in_chans) not in (1, 3):
        shown = ", ".join(str(number + 1) for number in job.display)
        accelerator.print(f"pictures show channels {shown} of {channels} as red, green and blue")
    again = {"resume": config.resume, "insist": config.resume_anyway, "dry_run": config.dry_run}
    data = keep(output, images, held_out, accelerator, **again)
    if config.dry_run:
        return rehearse(job, config, accelerator, share, output)
    outcome = train(job, config, accelerator, share, output, headline="eval/bin_accuracy")
    if accelerator.is_main_process:
        before = measured_before(output, config)
        result = write_result(job, config, output, outcome) | {"data": data} | ({"before": before} if before else {})
        result = finish(output, config, result)
        write_cards(output, config, result)
        print(closing_summary(config, job, output, outcome, before))
        return result
    return dict(outcome.metrics)


def with_encoder(config: Pretrain, vit: ViT | None, bands: Bands) -> tuple[Pretrain, ViT]:
    """The options with the shape of the encoder that is trained, and this encoder: `vit`, or a fresh one."""
    if vit is None:
        return config, cast(ViT, build_vit(config.model, bands.channels or 3, bands.range))
    vit.pixel_range = bands.range
    config = replace(config, model=as_built(config.model, vit))
    check_patches(config)
    return config, vit


def write_result(job: PatchPrediction, config: Pretrain, output: Path, outcome: Outcome) -> dict[str, Any]:
    """Export the encoder to `backbone/`; returns what result.json says of the run."""
    model: Any = outcome.model
    write_folder(output / "backbone", model.vit.save_pretrained)
    return (
        outcome.metrics
        | {
            "command": "pretrain",
            "step": outcome.step,
            "images_seen": outcome.step * config.train.batch_size,
            "seconds": round(outcome.seconds, 1),
            "flops": outcome.flops,
            "train_images": outcome.images,
            "eval_images": job.measured,
            "init": config.init,
            "init_sha256": outcome.init_sha256,
            "method": config.method,
            "target": config.data.target,
            "channels": model.vit.in_chans,
            "backbone_parameters": sum(p.numel() for p in model.vit.parameters()),
            "unreadable_images": outcome.unreadable,
        }
        | ({"not_measurable": why} if (why := not_measurable(outcome.metrics["eval/baseline_majority"])) else {})
    )


def closing_summary(
    config: Pretrain, job: PatchPrediction, output: Path, outcome: Outcome, before: dict[str, float]
) -> str:
    """What a run says last: the model beside both guesses, and what to do next."""
    m = outcome.metrics
    model, majority, neighbours = m["eval/bin_accuracy"], m["eval/baseline_majority"], m["eval/baseline_neighbours"]
    better = max(neighbours, majority)
    kind = "colour" if target_parts(config.data.target).keys() - {"hog", "normalised-pixels"} else "bin"
    what = "hidden" if config.method == "visible" else "corrupted"
    lines = [
        f"\nAfter {outcome.step:,} steps ({outcome.step * config.train.batch_size:,} images, {outcome.seconds:.0f} s), "
        f"accuracy on the {what} patches of {counted(job.measured, 'held-out image')}:",
        f"  guessing the commonest {kind:<16}{majority:6.1%}",
        f"  guessing from the nearest visible      {neighbours:6.1%}",
        f"  the model                              {model:6.1%}",
        f"The model beats the better guess by {100 * (model - better):.1f} points."
        if model > better
        else "The model does not beat both guesses yet: train for more --train.steps, or with another --optim.lr.",
    ]
    if why := not_measurable(majority):
        lines[1:] = [f"  not measurable: {why}"]
    lines += QuickProbe.closing_lines(config, m, before)
    if outcome.unreadable:
        total = None if job.data.count is None else job.data.count + len(job.eval_images)
        lines.append(unreadable_line(outcome.unreadable, total, config.data.path))
    labelled = "--data.labels 2000" if config.data.path == "shapes" else "--data.path LABELLED_IMAGES"
    return "\n".join(
        [
            *lines,
            f"Pictures: {output / 'samples'}    Curves: tensorboard --logdir {output.parent}",
            f"Next:     {spelled('probe')} --init {quoted(output)} {labelled}",
        ]
    )
