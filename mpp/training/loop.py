"""The training loop of every job, over Accelerate: accumulate, step, log, evaluate, checkpoint, resume, stop.

A job says what is learnt (`Job`); the loop owns everything else, and reads from top to bottom in `train`.
"""

from __future__ import annotations

import copy
import shutil
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from tqdm import tqdm

from mpp.config.options import Train
from mpp.data.batches import next_batch, to_device
from mpp.data.loader import Share
from mpp.data.streams import Positions
from mpp.errors import UserError
from mpp.models.vit import ViT
from mpp.run.folder import Records
from mpp.run.machine import TRAINING, dtype_of, gather_dicts, in_precision, wait_at_most
from mpp.run.memory import out_of_memory_told
from mpp.run.stops import StopSignals
from mpp.training import checkpoints, sharding
from mpp.training.auto_batch import fitting, what_to_lower
from mpp.training.clock import Clock, cuda_mark
from mpp.training.finiteness import Diverged, Finiteness, Step
from mpp.training.flops import peak_flops
from mpp.training.job import Job, Outcome
from mpp.training.learner import clip_gradients, running_mean
from mpp.training.optim import build_optimizer, schedule
from mpp.training.progress import mean_over_group, summary_line


def train(job: Job, config: Any, accelerator: Accelerator, share: Share, output: Path, headline: str) -> Outcome:
    """Train a job to its last step or to a stop signal, leaving everything in `output`.

    `headline` is the evaluation metric that the hyper-parameter table of TensorBoard shows.
    """
    options: Train = config.train
    accelerator.free_memory()  # of a run before, where a command makes several
    accelerator.gradient_accumulation_steps = options.accumulate
    sharded = accelerator.is_fsdp2
    if sharded:
        sharding.refuse_unsharded(options, config.optim)
    optimizer = build_optimizer(job.model, config.optim, options.batch_size)
    peaks = [group["lr"] for group in optimizer.param_groups]
    options_asked = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    average = running_mean(job.model, options.average, accelerator) if options.average else None
    # one process looks, because looking reads the whole of a checkpoint
    look = config.resume and accelerator.is_main_process
    found = broadcast_object_list([checkpoints.latest(output / "checkpoints") if look else None])[0]
    if found and not found[0].exists():
        raise UserError(f"{found[0]} is not to be seen from here: --output must be on a disk that all machines share")
    in_shards = found is not None and sharding.has_shards(found[0])
    if found and sharded and not in_shards:
        raise UserError(f"{found[0]} was not saved by a run with FSDP2; go on without, or give another --output")
    if found and not in_shards:
        checkpoints.load(found[0], job.model, optimizer, average)
        for group, asked in zip(optimizer.param_groups, options_asked, strict=True):
            group |= asked  # loading brings back the options of the run that was cut
    first, before = (found[1]["step"], found[1]["seconds"]) if found else (0, 0.0)
    accelerator.print(f"resuming {found[0]} at step {first}" if found else f"training from step 0 into {output}")
    lr = schedule(optimizer, peaks, config.optim, options.steps, first)
    flops = job.flops_an_image()
    if options.activation_checkpointing:
        cast(ViT, job.model.vit).activation_checkpointing = True
    whole: nn.Module | None = None
    if sharded:
        whole = copy.deepcopy(job.model).to(accelerator.device).requires_grad_(False)
        for each in (job.model, whole):
            in_precision(each, accelerator)
    if options.compile:
        job.model.compile()
    model, optimizer = accelerator.prepare(job.model, optimizer)
    bare = accelerator.unwrap_model(model, keep_torch_compile=False)  # compiled by Accelerate's own wish, if it is
    resumed: Positions = {int(lane): tuple(at) for lane, at in found[1]["positions"].items()} if found else {}
    if options.auto_batch:
        share = fitting(job, config, accelerator, bare, share, first, resumed)
        options.accumulate = accelerator.gradient_accumulation_steps = share.accumulate
    if found and in_shards:
        sharding.read(found[0], bare, optimizer)
    # without gradients or weights to share, so with no group to wait for
    evaluated = whole or (average.module if average else bare)
    records = Records(output, accelerator, config)
    accelerator.wait_for_everyone()
    records.open(first, headline)
    loader = job.batches(share, first, resumed)
    positions: Positions = {}  # of this process's lanes; every batch of a stream brings them
    finiteness = Finiteness(output, accelerator, job.where)
    skips = skips_in_a_row = 0  # steps left out: since the last line of metrics, and the last in a row
    best = peak_flops(accelerator.device, dtype_of(accelerator)) * accelerator.num_processes
    clock = Clock(flops / best, cuda_mark if accelerator.device.type == "cuda" else None)
    outcome = Outcome(first, {}, 0.0, stopped=False, model=evaluated)
    bar = tqdm(
        total=options.steps,
        initial=first,
        unit="step",
        disable=not accelerator.is_main_process,
        dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 10,
    )

    def evaluate(step: int) -> dict[str, float]:
        way_out = f"lower --eval.batch-size (now {config.eval.batch_size})"
        with clock.paused(), out_of_memory_told(lambda: f"evaluating after step {step}", way_out, accelerator.device):
            if whole is not None:
                sharding.gather(model, whole)
            evaluated.eval()
            with torch.no_grad():
                metrics = {f"eval/{name}": value for name, value in job.evaluate(evaluated).items()}
                if accelerator.is_main_process:
                    records.pictures(step, job.pictures(evaluated))
            model.train()
            return metrics

    def warn(text: str) -> None:
        if accelerator.is_main_process:
            bar.write(f"warning: {text}", file=sys.stderr)

    def save(step: int, needed: bool) -> None:
        with clock.paused():
            state = {"positions": gather_dicts(accelerator, positions), "seconds": before + clock.total()}
            folder, drafts, reason = output / "checkpoints", output / "checkpoints" / "shards.tmp", None
            try:
                shards = sharding.write(drafts, model, optimizer, accelerator) if sharded else None
                if accelerator.is_main_process:
                    checkpoints.save(folder, step, bare, optimizer, state, options.keep_checkpoints, average, shards)
            except OSError as error:  # a full disk, say
                if accelerator.is_main_process:
                    shutil.rmtree(drafts, ignore_errors=True)
                reason = f"the checkpoint of step {step} could not be written ({error.strerror or error})"
            if reason := broadcast_object_list([reason])[0]:
                last = checkpoints.whole(folder)
                reason += f"; the last one is {last[-1]}" if last else "; there is none before it"
                if needed:
                    raise UserError(f"{reason}: make room on the disk, and --resume goes on from there")
                warn(f"{reason}; training goes on")

    def refuse_broken_steps() -> None:
        if broken := finiteness.first_broken():
            raise Diverged(
                f"{finiteness.save(broken)}; a lower --optim.lr (now {used_lr:.2g}) or more --optim.warmup-steps may "
                f"help, or --train.on-nonfinite skip; --resume goes back to the last checkpoint, with --resume-anyway "
                f"and other options of the optimiser, too"
            )

    def doing() -> str:
        return (
            f"at step {outcome.step + 1} with --train.batch-size {options.batch_size}: {len(share.places(0))} images "
            f"at a time ({accelerator.num_processes} process(es), --train.accumulate {options.accumulate})"
        )

    model.train()
    with (
        closing(records),
        StopSignals() as stop,
        bar,
        out_of_memory_told(doing, what_to_lower(share), accelerator.device),
    ):
        batches = iter(loader)
        for step in range(first + 1, options.steps + 1):
            seed_dropout(config.seed, step, accelerator.process_index)
            parts: list[dict[str, Tensor]] = []
            samples: list[tuple[Tensor, list[str] | None]] = []
            skipped = False
            for _ in range(options.accumulate):
                with clock.waiting_for_data():
                    batch = next_batch(batches, config.data.on_error, outcome.unreadable)
                    positions |= batch.pop("positions", {})
                    index = batch.pop("index").clone()  # because what comes from a worker keeps a file open
                    samples.append((index, batch.pop("where", None)))
                    batch = to_device(batch, accelerator.device)
                with accelerator.accumulate(model):
                    loss, metrics = job.training_step(model, batch, step)
                    accelerator.backward(loss)
                    parts.append({"loss": loss.detach()} | metrics)
                    if accelerator.sync_gradients:
                        norm = clip_gradients(accelerator, model, config.optim.clip_norm)
                        finiteness.note(Step(step, norm, [part["loss"] for part in parts], samples))
                        if options.on_nonfinite == "skip" and (broken := finiteness.first_broken()):
                            skipped = True
                            warn(f"step {step} is left out: {finiteness.save(broken)}")
                    if not skipped:
                        optimizer.step()
                    optimizer.zero_grad()
            used_lr = lr.get_last_lr()[0]
            lr.step()
            skips, skips_in_a_row = skips + skipped, (skips_in_a_row + 1) * skipped
            if skips_in_a_row > options.max_skips:
                raise Diverged(
                    f"more than --train.max-skips {options.max_skips} steps in a row had a loss or gradient that is no "
                    f"finite number, the last is step {step} (see {output}/nonfinite_*.json); a lower --optim.lr (now "
                    f"{used_lr:.2g}) may help; --resume goes back to the last checkpoint"
                )
            if average and not skipped:
                average.update_parameters(bare)
            if step == first + 1:  # which may have compiled the model, and read a stream up to where it was left
                wait_at_most(TRAINING)
            outcome.step = step
            clock.count(options.batch_size)
            bar.update()

            last = step == options.steps
            values: dict[str, float] = {}
            if step % options.log_every == 0 or last:  # here the loop waits for the device, and nowhere else but below
                refuse_broken_steps()
                values = {"optim/lr": float(used_lr)} | clock.read()
                speed = f"{values['speed/images_per_second']:.0f} images/s"
                if not skipped:
                    means = {f"train/{name}": value for name, value in mean_over_group(accelerator, parts).items()}
                    values = means | {"optim/grad_norm": float(norm)} | values
                    bar.set_postfix_str(f"loss {values['train/loss']:.3f}, {speed}", refresh=False)
                if skips:
                    values["train/skipped"], skips = float(skips), 0
            if step % config.eval.every == 0 or last:
                refuse_broken_steps()
                outcome.metrics = evaluate(step)
                values |= outcome.metrics
                if accelerator.is_main_process:
                    bar.write(summary_line(step, options.steps, outcome.metrics), file=sys.stdout)
            if values:
                records.log(step, {"epoch": job.epoch(step, positions)} | values)
            due = step % options.log_every == 0 or step % 10 == 0
            outcome.stopped = not last and stop.agreed(accelerator, due)
            if step % options.checkpoint_every == 0 or last or outcome.stopped:
                refuse_broken_steps()
                save(step, needed=last or outcome.stopped)
            if outcome.stopped:
                break
        if outcome.step == first and not outcome.stopped:  # resumed after the last step: nothing was left to train
            outcome.metrics = evaluate(outcome.step)

    outcome.seconds = before + clock.total()
    outcome.unreadable = gather_dicts(accelerator, outcome.unreadable | job.unreadable)
    return outcome


def seed_dropout(seed: int, step: int, rank: int) -> None:
    """Make dropout and drop path functions of the step, so that resuming needs no random state."""
    torch.manual_seed((seed * 1_000_003 + step) * 1_009 + rank)
