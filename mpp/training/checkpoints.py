"""Checkpoints: all that resuming needs, written so that a half one is never taken for a whole one.

A checkpoint is a folder `step_00001000/` with `model.safetensors`, `optimizer.pt`, `state.json` and, where there is a
running mean of the weights, `average.safetensors`; under FSDP2 with a `shard-*.safetensors` a process. It is written
under a `.tmp` name, flushed to the disk and then renamed; `state.json` holds the checksum of every other file and its
own, and a checkpoint whose files do not match is passed over for the one before it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from mpp.errors import UserError
from mpp.files import flush, sha256_of

WEIGHTS, AVERAGE, OPTIMIZER, STATE = "model.safetensors", "average.safetensors", "optimizer.pt", "state.json"


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
    place of the weights' and the optimiser's (see `mpp.sharding`); they are moved. Raises OSError if it cannot be
    written (a full disk, say), and leaves the earlier checkpoints as they are.
    """
    final = folder / name_of(step)
    draft = final.with_name(final.name + ".tmp")
    shutil.rmtree(draft, ignore_errors=True)
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
        (draft / STATE).write_text(json.dumps(state | {"sha256": sha256_of_state(state)}, indent=1))
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
    kept = [path for path in whole(folder) if path.name <= final.name]  # newer ones were damaged, and gone back from
    for old in set(whole(folder)) - set(kept[-keep:]):
        old.rename(old.with_name(old.name + ".tmp"))  # first, so that what a kill leaves of it is not taken for whole
    for rest in folder.glob("*.tmp"):
        shutil.rmtree(rest, ignore_errors=True)
    return final


def name_of(step: int) -> str:
    """The folder of a step's checkpoint."""
    return f"step_{step:08d}"


def whole(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first; drafts that a kill left behind are not among them."""
    return sorted(path for path in folder.glob("step_*") if path.is_dir() and path.suffix != ".tmp")


def latest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint whose files have their checksums, and its state; damaged ones are named in a warning."""
    for path in reversed(whole(folder)):
        try:
            state = json.loads((path / STATE).read_text())
            digest = state.pop("sha256", None)  # which checkpoints of older versions have not
            if path.name != name_of(state["step"]) or digest not in (None, sha256_of_state(state)):
                raise ValueError(f"{STATE} does not say what was written")
            damaged = [name for name, digest in state["files"].items() if sha256_of(path / name) != digest]
        except (OSError, ValueError, KeyError, TypeError) as error:
            damaged = [str(error)]
        if not damaged:
            return path, state
        warnings.warn(f"checkpoint {path} is damaged ({', '.join(damaged)}) and passed over", stacklevel=2)
    return None


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
