"""Checkpoints: all that resuming needs, written so that a half one is never taken for a whole one.

A checkpoint is a folder `step_00001000/` with `model.safetensors`, `optimizer.pt`, `state.json` and, where there is a
running mean of the weights, `average.safetensors`; under FSDP2 with a `shard-*.safetensors` a process. It is written
under a draft's name, flushed to the disk and then renamed; `state.json` holds the checksum of every other file and its
own, and a checkpoint whose files do not match is passed over for the one before it.
`state.json` also has the step, the seconds, a stream's positions and the span of the learning rate.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from mpp.data.identity import recorded_digests
from mpp.data.streams import Positions
from mpp.errors import UserError, warn
from mpp.files import as_json, clear_drafts, draft_of, flush, is_draft, ordinary_modes, sha256_of
from mpp.models.pretrained import not_finite
from mpp.run.machine import gather_dicts
from mpp.training import sharding
from mpp.training.learner import Learner
from mpp.training.optim import Span

WEIGHTS, AVERAGE, OPTIMIZER, STATE = "model.safetensors", "average.safetensors", "optimizer.pt", "state.json"


@dataclass(frozen=True)
class Start:
    """Where a run goes on: after so many steps and seconds, at these positions of a stream, with the learning rate
    decaying over this span (None: checkpoints of older versions do not say)."""

    step: int = 0
    seconds: float = 0.0
    positions: Positions = field(default_factory=dict)
    span: Span | None = None
    unevaluated: bool = False  # a stop cut the evaluation after that step
    unreadable: dict[str, str] = field(default_factory=dict)  # training images found so far: where -> why
    init_sha256: str | None = None  # of the weights that --init named when the run began


class Checkpoints:
    """The checkpoints of a run, for all its processes."""

    def __init__(self, output: Path, keep: int, accelerator: Accelerator, init_sha256: str | None = None) -> None:
        self.output, self.keep, self.accelerator, self.init_sha256 = output, keep, accelerator, init_sha256
        self.folder = output / "checkpoints"

    def fresh(self) -> Start:
        """Begin at step 0."""
        self.accelerator.print(f"training from step 0 into {self.output}")
        return Start(init_sha256=self.init_sha256)

    def resume(self, learner: Learner, steps: int, insist: bool = False) -> Start:
        """Put the latest good checkpoint into a learner that goes on to `steps`; a fresh start if there is none. All
        processes call it. One that learnt from other images is refused unless the user insists."""
        main = self.accelerator.is_main_process  # one process looks: looking reads the whole checkpoint
        found = broadcast_object_list([latest(self.folder) if main else None])[0]
        if found is None:
            return self.fresh()
        path, state = found
        if not path.exists():
            raise UserError(f"{path} cannot be seen from here: --output must be on a disk that all machines share")
        if state["step"] > steps:
            raise UserError(
                f"--train.steps {steps} is fewer than the {state['step']} that {path} has done; give at least as many, "
                f"or another --output to begin anew"
            )
        known = recorded_digests(self.output)
        other = [name for name, digest in state.get("data", {}).items() if known.get(name, digest) != digest]
        if other and not insist:
            raise UserError(
                f"{path} learnt from other images than --data.path holds now (split {other[0]}); put the set back, "
                f"give another --output, or insist with --resume-anyway"
            )
        in_shards = sharding.has_shards(path)
        if learner.sharded and not in_shards:
            raise UserError(f"{path} was not saved by a run with FSDP2; go on without, or give another --output")
        if in_shards:
            sharding.read(path, learner.bare, learner.optimizer)
        else:
            load(path, learner.bare, learner.optimizer.optimizer, learner.average)
        if broken := not_finite(learner.bare.state_dict()):
            raise UserError(
                f"{path} holds weights that are not finite ({broken}); remove it to go on from the one before it, or "
                f"give another --output to begin anew"
            )
        self.accelerator.print(f"resuming {path} at step {state['step']}")
        positions = {int(lane): tuple(at) for lane, at in state["positions"].items()}
        span = Span(**state["span"]) if "span" in state else None
        owed, unreadable = state.get("unevaluated", False), state.get("unreadable", {})
        began_with = state.get("init_sha256", self.init_sha256)
        if began_with != self.init_sha256:
            self.accelerator.print("the weights that --init names are others now; this run goes on from its checkpoint")
        return Start(state["step"], state["seconds"], positions, span, owed, unreadable, began_with)

    def save(self, start: Start, learner: Learner, needed: bool) -> str | None:
        """Save where a run may go on; returns what to warn of if it cannot be written. All processes call it.

        Raises UserError instead of returning where the checkpoint is `needed` to go on.
        """
        accelerator, reason = self.accelerator, None
        state = {"positions": gather_dicts(accelerator, start.positions), "seconds": start.seconds}
        state["data"] = recorded_digests(self.output)
        state["span"] = dataclasses.asdict(learner.span)
        if start.init_sha256:
            state["init_sha256"] = start.init_sha256
        state |= {"unevaluated": start.unevaluated, "unreadable": gather_dicts(accelerator, start.unreadable)}
        model, optimizer = learner.model, learner.optimizer
        try:
            shards = sharding.write(self.folder, model, optimizer, accelerator) if learner.sharded else None
            if accelerator.is_main_process:
                save(self.folder, start.step, learner.bare, optimizer, state, self.keep, learner.average, shards)
        except OSError as error:  # a full disk, for example
            if accelerator.is_main_process:
                clear_drafts(self.folder)
            reason = f"the checkpoint of step {start.step} could not be written ({error.strerror or error})"
        if reason := broadcast_object_list([reason])[0]:
            last = written(self.folder)
            reason += f"; the last one is {last[-1]}" if last else "; there is none before it"
            if needed:
                raise UserError(f"{reason}: make room on the disk, and --resume goes on from there")
            return f"{reason}; training goes on"
        return None


def save(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: Optimizer,
    state: dict[str, Any],
    keep: int,
    average: nn.Module | None = None,
    shards: dict[Path, str] | None = None,
) -> Path:
    """Write the checkpoint of `step` into `folder`, and then delete all but the last `keep`.

    `state` is whatever else the run has to remember, as JSON. `shards` are files and their checksums that take the
    place of the weights' and the optimiser's (see `mpp.training.sharding`); they are moved. Raises OSError if it
    cannot be written (a full disk, say), and leaves the earlier checkpoints as they are.
    """
    final = folder / name_of(step)
    draft = draft_of(final)
    draft.mkdir(parents=True)
    try:
        if shards is None:
            for name, weights in {WEIGHTS: model, AVERAGE: average}.items():
                if weights is not None:
                    save_file({key: tensor.contiguous() for key, tensor in weights.state_dict().items()}, draft / name)
            torch.save(optimizer.state_dict(), draft / OPTIMIZER)
            files = {path.name: sha256_of(path) for path in sorted(draft.iterdir())}
        else:
            files = {path.rename(draft / path.name).name: digest for path, digest in sorted(shards.items())}
        state = {"step": step, "files": files} | state
        (draft / STATE).write_text(as_json(state | {"sha256": sha256_of_state(state)}, indent=1))
        ordinary_modes(draft)
        for path in draft.iterdir():
            flush(path)
        shutil.rmtree(final, ignore_errors=True)
        draft.rename(final)
        flush(folder)
    except BaseException as error:
        room = shutil.disk_usage(folder).free
        shutil.rmtree(draft, ignore_errors=True)
        if isinstance(error, SafetensorError | RuntimeError):  # what a full disk is to these two libraries
            raise OSError(f"{error}; {room / 2**20:.1f} MiB were free") from error
        raise
    kept = [path for path in written(folder) if path.name <= final.name]  # newer ones were damaged, and gone back from
    for old in set(written(folder)) - set(kept[-keep:]):
        old.rename(draft_of(old))  # first, so that what a kill leaves of it is not taken for whole
    clear_drafts(folder)
    return final


def name_of(step: int) -> str:
    """The folder of a step's checkpoint."""
    return f"step_{step:08d}"


def written(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first; drafts that a kill left behind and links are not among them."""
    found = (path for path in folder.glob("step_*") if path.is_dir() and not path.is_symlink())
    return sorted(path for path in found if not is_draft(path))


def latest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint whose files have their checksums, and its state; damaged ones are named in a warning."""
    for path in reversed(written(folder)):
        try:
            refuse_others_files(path, [STATE])
            state = json.loads((path / STATE).read_text())
            digest = state.pop("sha256", None)  # which checkpoints of older versions have not
            if path.name != name_of(state["step"]) or digest not in (None, sha256_of_state(state)):
                raise ValueError(f"{STATE} does not say what was written")
            ours = [file.name for file in path.iterdir() if file.name in (WEIGHTS, AVERAGE, OPTIMIZER)]
            refuse_others_files(path, [*state["files"], *ours, *(file.name for file in sharding.files_of(path))])
            damaged = [name for name, digest in state["files"].items() if sha256_of(path / name) != digest]
            damaged += sorted(set(ours) - state["files"].keys())
        except (OSError, ValueError, KeyError, TypeError) as error:
            damaged = [str(error)]
        if not damaged:
            return path, state
        warn(f"checkpoint {path} is damaged ({', '.join(damaged)}); the one before it is used")
    return None


def refuse_others_files(checkpoint: Path, names: list[str]) -> None:
    """Raise ValueError unless all names are of ordinary files in a checkpoint's folder itself: a link, or a name with
    a folder in it, leads elsewhere, and a pipe would be waited for."""
    for name in names:
        if Path(name).name != name or not stat.S_ISREG((checkpoint / name).lstat().st_mode):
            raise ValueError(f"{name} is no file of its own")


def load(path: Path, model: nn.Module, optimizer: Optimizer, average: nn.Module | None = None) -> None:
    """Put a checkpoint's weights and optimiser state into place, on whatever device they are."""
    try:
        model.load_state_dict(load_file(path / WEIGHTS))
    except RuntimeError as error:
        raise UserError(
            f"{path} is of another model than the options ask for ({str(error).splitlines()[-1].strip()}); leave out "
            f"the --model options to go on with the run's own"
        ) from error
    if average is not None:
        if not (path / AVERAGE).exists():
            raise UserError(f"{path} has no running mean of the weights to go on with; leave out --train.average")
        average.load_state_dict(load_file(path / AVERAGE))
    state = torch.load(path / OPTIMIZER, map_location="cpu", weights_only=True)
    if _means(state) != _means(optimizer.state_dict()):
        raise UserError(
            f"{path} was saved with another --optim.name (or --optim.layer-decay), whose running means this one cannot "
            f"go on with; give the run's own, or another --output to begin anew"
        )
    optimizer.load_state_dict(state)


def _means(state: dict[str, Any]) -> list[list[tuple[int, bool]]]:
    """Of an optimiser, or of several as one: how many parameters each group has, and whether it keeps Adam's two means
    of them."""
    parts = state.get("optimizers", [state])
    return [[(len(group["params"]), "betas" in group) for group in part["param_groups"]] for part in parts]


def sha256_of_state(state: dict[str, Any]) -> str:
    """The checksum of a state, as JSON keeps it."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(state)), sort_keys=True).encode()).hexdigest()
