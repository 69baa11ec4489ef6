"""The training loop of every method, over Accelerate: accumulate, step, log, evaluate, checkpoint, stop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor

from mpp.config.commands import Trained
from mpp.config.schedule import told
from mpp.data.batches import Feed
from mpp.data.loader import Share
from mpp.models.backbones import digest_of
from mpp.run.machine import gather_dicts
from mpp.run.memory import explained_out_of_memory
from mpp.run.stops import STOP, Stopped
from mpp.training.auto_batch import fitting_share, what_to_lower
from mpp.training.checkpoints import Checkpoints
from mpp.training.finiteness import Finiteness
from mpp.training.job import Job, Outcome
from mpp.training.learner import Learner, seed_dropout
from mpp.training.progress import Progress


def train(job: Job, config: Trained, accelerator: Accelerator, share: Share, output: Path, headline: str) -> Outcome:
    """Train a job to its last step, leaving everything in `output`. A stop signal ends it with a checkpoint.

    `share` is what this process computes of every batch; `headline` is the evaluation metric that TensorBoard's
    hyper-parameter table shows.
    """
    options = config.train
    accelerator.free_memory()  # of an earlier run of the same command
    flops = job.flops_an_image()  # before the model may be sharded
    learner = Learner(job.model, config, accelerator)
    checkpoints = Checkpoints(output, options.keep_checkpoints, accelerator, digest_of(began_as(config)))
    start = checkpoints.resume(learner, options.steps, config.resume_anyway) if config.resume else checkpoints.fresh()
    accelerator.print(told(options, job.data.count))
    learner.begin(start.step, start.span)
    if options.auto_batch:
        share = fitting_share(job, config, accelerator, learner.bare, share, start.step, start.positions)
        config = dataclasses.replace(config, train=dataclasses.replace(options, accumulate=share.accumulate))  # type: ignore[arg-type]
    accelerator.gradient_accumulation_steps = share.accumulate
    progress = Progress(job, learner, config, accelerator, output, start.step, headline, flops)
    batches = job.data.batches(share, start.step, start.positions)
    feed = Feed(batches, config.data, job.data.count, accelerator.device, start.unreadable)
    nonfinite = Finiteness(output, accelerator, options, learner, job.data.where, progress.warn)
    out_of_memory = explained_out_of_memory(
        lambda: what_is_done(progress.step + 1, share), what_to_lower(share), accelerator.device
    )

    with progress, STOP.held(), out_of_memory:
        if start.unevaluated or start.step >= options.steps:  # the latter: resumed after the last step
            if not (evaluated := progress.evaluate()):
                raise Stopped(start.step)
            if start.unevaluated:
                progress.add(evaluated, start.positions)
        elif start.step == 0 and asks_what_is_forgotten(config):
            if not (evaluated := progress.evaluate()):
                raise Stopped(0)
            progress.add(evaluated, start.positions)
        for step in range(start.step + 1, options.steps + 1):
            parts, norm = take_step(job, learner, feed, share, step, progress.clock.waiting_for_data)
            skipped = nonfinite.skips(step, norm, parts, feed.samples)
            learner.update(skipped)
            progress.advance(step)
            if step == 1:
                progress.show(feed.latest)

            last = step == options.steps
            metrics: dict[str, float] = {}
            if step % options.log_every == 0 or last:  # here the loop waits for the device
                nonfinite.refuse()
                metrics |= progress.measure(parts, norm, skipped) | nonfinite.counted()
            due = step % config.eval.every == 0 or last
            stopped = STOP.agreed(accelerator, due or step % options.log_every == 0 or step % 10 == 0)
            evaluated = {}
            if due and not stopped:
                nonfinite.refuse()
                evaluated = progress.evaluate()
                stopped = STOP.agreed(accelerator, due)
            progress.log(metrics | evaluated, feed.positions)
            if step % options.checkpoint_every == 0 or last or stopped:
                nonfinite.refuse()
                with progress.clock.paused():
                    seconds = start.seconds + progress.clock.total()
                    owed = due and not evaluated
                    here = dataclasses.replace(
                        start,
                        step=step,
                        seconds=seconds,
                        positions=feed.positions,
                        unevaluated=owed,
                        unreadable=feed.unreadable,
                    )
                    if trouble := checkpoints.save(here, learner, needed=last or stopped):
                        progress.warn(trouble)
            if stopped:
                raise Stopped(step)

    seconds = start.seconds + progress.clock.total()
    unreadable = gather_dicts(accelerator, feed.unreadable)
    feed.judge(unreadable, gather_dicts(accelerator, {accelerator.process_index: (feed.bad, feed.read)}).values())
    used = None if job.data.count is None else job.data.count - len(unreadable)
    unreadable |= gather_dicts(accelerator, job.unreadable)
    flops *= progress.step * options.batch_size
    trained = learner.evaluated()
    return Outcome(progress.step, progress.metrics, seconds, trained, used, unreadable, flops, start.init_sha256)


def take_step(
    job: Job,
    learner: Learner,
    feed: Feed,
    share: Share,
    step: int,
    waiting: Callable[[], AbstractContextManager[None]],
) -> tuple[list[dict[str, Tensor]], Tensor]:
    """Go forward and backward over this process's share of a batch. Returns loss and metrics of each micro-batch, and
    the norm of the gradients before clipping; the weights stay until `learner.update`."""
    accelerator = learner.accelerator
    seed_dropout(learner.config.seed, step, accelerator.process_index)
    parts: list[dict[str, Tensor]] = []
    for batch in feed.take(share.accumulate, waiting):
        with accelerator.accumulate(learner.model):
            loss, values = job.training_step(learner.model, batch, step)
            accelerator.backward(loss)
        parts.append({"loss": loss.detach()} | values)
    return parts, learner.clip_gradients()


def asks_what_is_forgotten(config: Trained) -> bool:
    """Whether features are to be measured before training, too: of a pretraining that goes on from other weights."""
    return began_as(config) != "scratch" and bool(getattr(config.eval, "probe", None))


def began_as(config: Trained) -> str:
    """--init, of a command that has it."""
    return getattr(config, "init", "scratch")


def what_is_done(step: int, share: Share) -> str:
    """A training step, for a message about memory."""
    return (
        f"at step {step} with --train.batch-size {share.batch_size}: {len(share.places(0))} images at a time "
        f"({share.world_size} process(es), --train.accumulate {share.accumulate})"
    )
