"""--dry-run of a training: a few steps and an evaluation are measured in memory, and nothing is written."""

from __future__ import annotations

import math
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.utils._pytree import tree_leaves

from mpp.commands.dry_run import paint, report, told_batch, told_model
from mpp.config.commands import Trained
from mpp.config.schedule import told
from mpp.data.batches import Feed, next_batch
from mpp.data.loader import Batch, Share
from mpp.data.splits import at_most
from mpp.errors import counted
from mpp.models.backbones import digest_of
from mpp.run.folder import unreadable_line
from mpp.run.machine import dtype_of, gather_dicts, workers_of
from mpp.run.measured import peak_memory, settle, told_bytes, told_devices, told_memory, told_time
from mpp.run.memory import explained_out_of_memory
from mpp.training.auto_batch import fitting_share, what_to_lower
from mpp.training.checkpoints import Checkpoints, Start
from mpp.training.clock import Clock, cuda_mark
from mpp.training.flops import peak_flops
from mpp.training.job import Job
from mpp.training.learner import Learner
from mpp.training.loop import asks_what_is_forgotten, began_as, take_step, what_is_done

_FEWEST, _MOST, _SECONDS = 3, 50, 5.0  # steps that are measured, and for how long
_EVALUATED = 10.0  # seconds, up to which all held-out images are evaluated, else a part


def rehearse(
    job: Job, config: Trained, accelerator: Accelerator, share: Share, output: Path, trials: int = 0
) -> dict[str, Any]:
    """Measure what `train` would do with the same arguments, print it, and return the numbers: seconds (of all, of a
    step, an evaluation, a probe), the steps and evaluations that are to be done, and peak memory in bytes. `trials` are
    trainings of the same length that come before.
    """
    options, device, unreadable = config.train, accelerator.device, dict[str, str]()
    accelerator.free_memory()  # of an earlier run of the same command
    flops = job.flops_an_image()
    learner = Learner(job.model, config, accelerator)
    checkpoints = Checkpoints(output, options.keep_checkpoints, accelerator, digest_of(began_as(config)))
    begun = config.resume and checkpoints.folder.exists()
    start = checkpoints.resume(learner, options.steps, config.resume_anyway) if begun else Start()
    learner.begin(start.step, start.span)
    if options.auto_batch:
        share = fitting_share(job, config, accelerator, learner.bare, share, start.step, start.positions)
    accelerator.gradient_accumulation_steps = share.accumulate
    left, says = options.steps - start.step, what_is_done(start.step + 1, share)
    batch: Batch = {}
    with explained_out_of_memory(lambda: says, what_to_lower(share), device):
        if left:
            batch = next_batch(
                iter(job.data.batches(share, start.step, start.positions)), config.data.on_error, unreadable
            )
        steps = _steps(job, config, share, start, learner, flops)
    way_out = f"lower --eval.batch-size (now {config.eval.batch_size})"
    with explained_out_of_memory(lambda: "evaluating", way_out, device), torch.no_grad():
        evaluation = _evaluation(job, config, learner)
    peak = peak_memory(accelerator)
    unreadable = gather_dicts(accelerator, unreadable | steps.pop("unreadable") | job.unreadable)
    found = {"steps": left, "evaluations": evaluations_of(config, start)} | steps | evaluation
    of_steps = found["steps"] * found["seconds_a_step"]
    of_evaluations = found["evaluations"] * (found["seconds_an_evaluation"] + found["seconds_a_probe"])
    found["seconds"] = (1 + trials) * (of_steps + of_evaluations)
    rows = {
        "images": f"{_counted(job)} to train on, {evaluation['eval_images']:,} held out",
        "left out": unreadable_line(unreadable, None, config.data.path) if unreadable else "",
        "model": f"{told_model(learner.bare)}; {flops / 1e9:.3g} GFLOPs to train on an image",
        "training": told(options, job.data.count) + _goes_on(start, left),
        "first batch": f"{told_batch(batch['images'])}; loss {found['loss']:.4g}" if left else "",
        "picture": paint(config.dry_run_picture, *job.look(batch), accelerator) if left else "",
        "a step": _told_step(found, share) if left else "",
        "evaluation": _told_evaluation(found),
        "memory": told_memory(peak, workers_of(config.data, accelerator), accelerator),
        "disk": _told_disk(found, config) if left else "",
        "time": _told_sum(found, trials, accelerator),
    }
    report(f"nothing is written into {output}", rows, accelerator)
    return {"dry_run": True, "flops_an_image": flops} | found | {f"peak_{of}_bytes": most for of, most in peak.items()}


def evaluations_of(config: Trained, start: Start) -> int:
    """How many evaluations are to come."""
    every, steps = config.eval.every, config.train.steps
    due = steps // every - start.step // every + (steps % every != 0 and start.step < steps)
    return due + (start.unevaluated or start.step >= steps or (start.step == 0 and asks_what_is_forgotten(config)))


def _steps(job: Job, config: Trained, share: Share, start: Start, learner: Learner, flops: int) -> dict[str, Any]:
    """Take some training steps; returns what was measured of the last of them, and the images that were left out."""
    accelerator, workers = learner.accelerator, workers_of(config.data, learner.accelerator)
    best = peak_flops(accelerator.device, dtype_of(accelerator)) * accelerator.num_processes
    clock = Clock(flops / best, cuda_mark if accelerator.device.type == "cuda" else None)
    batches = job.data.batches(share, start.step, start.positions)
    feed = Feed(batches, config.data, job.data.count, accelerator.device, start.unreadable)
    numbers = iter(range(start.step + 1, config.train.steps + 1))
    found: dict[str, Any] = {"seconds_a_step": 0.0}

    def take(count: int) -> None:
        clock.read()
        began = time.perf_counter()
        taken = list(islice(numbers, count))
        for number in taken:
            parts, _ = take_step(job, learner, feed, share, number, clock.waiting_for_data)
            learner.update(skip=False)
            clock.count(config.train.batch_size)
            found.setdefault("loss", parts[0]["loss"])
        settle(accelerator.device)
        if taken:
            each = broadcast_object_list([(time.perf_counter() - began) / len(taken)])[0]
            found.update(clock.read() | {"seconds_a_step": each, "measured_steps": len(taken)})

    take(1)  # which compiles, and starts what reads images
    take(1)
    if (read_ahead := math.ceil(2 * workers / share.accumulate)) * found["seconds_a_step"] < _SECONDS:
        take(read_ahead)  # what is there already must not count as fast reading
    take(max(_FEWEST, min(_MOST, round(_SECONDS / max(1e-3, found["seconds_a_step"])))))
    if "loss" in found:
        parts = [learner.bare, learner.optimizer, *filter(None, [learner.average])]
        leaves = tree_leaves([part.state_dict() for part in parts])
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        found |= {"loss": found["loss"].item(), "checkpoint_bytes": sum(t.numel() * t.element_size() for t in tensors)}
    return found | {"unreadable": feed.unreadable}


def _evaluation(job: Job, config: Trained, learner: Learner) -> dict[str, Any]:
    """Evaluate held-out images, all of them if that is fast, and probe; returns the seconds of each."""
    accelerator = learner.accelerator
    model: Any = learner.evaluated().eval()
    every, asked = job.eval_images, bool(getattr(config.eval, "probe", None))
    probe, job.probe = job.probe, lambda vit: {}

    def seconds(work: Any) -> float:
        began = time.perf_counter()
        work()
        settle(accelerator.device)
        return broadcast_object_list([time.perf_counter() - began])[0]

    job.eval_images = at_most(every, 2 * accelerator.num_processes * config.eval.batch_size)
    each = seconds(lambda: job.evaluate(model)) / len(job.eval_images)
    if each * len(every) < _EVALUATED:
        job.eval_images = every
        each = seconds(lambda: job.evaluate(model)) / len(every)
    sampled, job.eval_images, job.probe = len(job.eval_images), every, probe
    return {
        "eval_images": len(every),
        "evaluated": sampled,
        "seconds_an_evaluation": each * len(every),
        "seconds_a_probe": seconds(lambda: probe(model.vit)) if asked else 0.0,
    }


def _counted(job: Job) -> str:
    return "a stream" if job.data.count is None else f"{job.data.count:,}"


def _goes_on(start: Start, left: int) -> str:
    if not start.step:
        return ""
    return f"; it goes on after step {start.step:,}, with {left:,} to do" if left else "; all steps are done"


def _told_step(found: dict[str, Any], share: Share) -> str:
    return (
        f"{told_time(found['seconds_a_step'])} (the mean of {found['measured_steps']}): "
        f"{counted(len(share.places(0)), 'image')} at a time, {found['speed/images_per_second']:,.0f} a second, "
        f"{found['speed/data_wait']:.0%} of the time waiting for images, {found['speed/mfu']:.0%} of the "
        f"arithmetic that the device can do"
    )


def _told_evaluation(found: dict[str, Any]) -> str:
    some = f" ({found['evaluated']:,} measured)" if found["evaluated"] < found["eval_images"] else ""
    probe = f", and {told_time(found['seconds_a_probe'])} for --eval.probe" if found["seconds_a_probe"] else ""
    return f"{told_time(found['seconds_an_evaluation'])} for {counted(found['eval_images'], 'image')}{some}{probe}"


def _told_disk(found: dict[str, Any], config: Trained) -> str:
    kept = min(config.train.keep_checkpoints, math.ceil(config.train.steps / config.train.checkpoint_every))
    return f"{told_bytes(kept * found['checkpoint_bytes'])} for {counted(kept, 'checkpoint')}"


def _told_sum(found: dict[str, Any], trials: int, accelerator: Accelerator) -> str:
    an_evaluation = found["seconds_an_evaluation"] + found["seconds_a_probe"]
    return (
        f"{told_time(found['seconds'])}: {counted(found['steps'], 'step')} of {told_time(found['seconds_a_step'])} and "
        f"{counted(found['evaluations'], 'evaluation')} of {told_time(an_evaluation)}"
        + (f", {1 + trials} times (--optim.lr-grid)" if trials else "")
        + f", as measured on {told_devices(accelerator)}"
    )
