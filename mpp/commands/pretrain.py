"""Pretraining: prepare, train, export, report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed

from mpp.config.commands import Pretrain
from mpp.data.loader import share_of
from mpp.data.streams import Stream
from mpp.methods.masked_patches import PretrainJob
from mpp.run.folder import finish, how_to_resume, prepare_output, write_folder
from mpp.training.job import Outcome
from mpp.training.loop import train


def run_pretraining(config: Pretrain, accelerator: Accelerator) -> Outcome:
    """Prepare, train, export, report: the command, but for its options and devices."""
    share = share_of(config.train, accelerator)
    output = prepare_output(config, "pretrain", config.resume, accelerator)
    set_seed(config.seed)
    with accelerator.main_process_first():  # it fills the cache of `datasets`, the others read it
        job = PretrainJob(config, accelerator)
    outcome = train(job, config, accelerator, share, output, headline="eval/bin_accuracy")
    if outcome.stopped:
        accelerator.print(how_to_resume("mpp/pretrain.py", outcome.step, output))
    elif accelerator.is_main_process:
        finish(output, config, write_result(job, config, output, outcome))
        print(closing_summary(config, job, output, outcome))
    return outcome


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
