"""Weights, gradients and optimiser state spread over the processes (FSDP2), and checkpoints of their parts.

`accelerate launch` says whether (`fsdp_config` of a file in recipes/launch). Every process keeps some rows of every
parameter and, in a checkpoint, writes them to a file of its own: `shard-00001-of-00008.safetensors`. Put one below the
other in the order of the files, the rows are the whole parameter, so a checkpoint can be read on any number of
processes, and also without FSDP2. There is no pickle in it, unlike in those of `torch.distributed.checkpoint`.
`mpp.run.machine` turns FSDP2 on, `mpp.training.learner` wraps the model.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from mpp.config.options import Optim, Train
from mpp.errors import UserError
from mpp.files import draft_of, flush, sha256_of

# The loss does nothing in place to what the model returns, of which torch warns at every start.
warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


def refuse_unsharded(train: Train, optim: Optim) -> None:
    """Raise UserError for options that do not go with parameters in parts."""
    if optim.name == "sgd":
        raise UserError("--optim.name sgd cannot update parameters in parts (FSDP2); take adamw, adam or muon")
    if train.auto_batch:
        raise UserError("--train.auto-batch tries a step on each process alone, which FSDP2 cannot; leave it out")
    if train.average:
        raise UserError("--train.average keeps a whole second model, which FSDP2 is to avoid; leave it out")


def name_parts(model: nn.Module, accelerator: Accelerator) -> None:
    """Say what of a model is gathered at a time: the classes that the launch file names, as far as the model has them,
    and the stages of a ResNet, which such a file need not know."""
    asked = [*os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "").split(","), "ResNetStage"]
    there = {type(module).__name__ for module in model.modules()}
    accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = [name for name in asked if name in there]


def gather(model: nn.Module, whole: nn.Module) -> None:
    """Bring the parameters of a sharded model together in a plain copy of it. All processes have to call it."""
    with torch.no_grad():
        parts: dict[str, Any] = dict(_parameters(model))
        for name, parameter in _parameters(whole):
            parameter.copy_(parts[name].full_tensor())


def has_shards(checkpoint: Path) -> bool:
    """Whether a checkpoint was written by `write`."""
    return bool(files_of(checkpoint))


def write(folder: Path, model: nn.Module, optimizer: Optimizer, accelerator: Accelerator) -> dict[Path, str]:
    """Write every process's rows into a draft in `folder`; returns the files of all and their checksums.

    All processes have to call it, on a file system that they share. Raises OSError on all of them if one fails.
    """
    made: Path | str | None = None
    if accelerator.is_main_process:
        made = draft_of(folder / "shards")
        try:
            made.mkdir(parents=True)
        except OSError as error:
            made = str(error)
    if isinstance(made := broadcast_object_list([made])[0], str):
        raise OSError(made)
    assert made
    file = made / f"shard-{accelerator.process_index + 1:05d}-of-{accelerator.num_processes:05d}.safetensors"
    try:
        save_file({name: _local(tensor).contiguous() for name, tensor in _tensors(model, optimizer)}, file)
        flush(file)
        mine: dict[Path, str] | str = {file: sha256_of(file)}
    except (OSError, SafetensorError) as error:  # the latter is what a full disk is to safetensors
        mine = f"process {accelerator.process_index}: {error}"
    parts = gather_object([mine])
    if failed := [part for part in parts if isinstance(part, str)]:
        raise OSError(failed[0])
    return {path: digest for part in parts for path, digest in part.items()}


def read(checkpoint: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Put this process's rows of a checkpoint that `write` made into a model and its optimiser, sharded or not."""
    with ExitStack() as stack:
        files: list[Any] = [stack.enter_context(safe_open(path, "pt")) for path in files_of(checkpoint)]
        names = set(files[0].keys())
        theirs = {name for name in names if name.startswith("model.")}
        if theirs != {f"model.{name}" for name, _ in _parameters(model)}:
            raise _other_model(checkpoint)
        for name, parameter, state in _with_state(model, optimizer):
            with torch.no_grad():
                _copy_rows(files, f"model.{name}", parameter, checkpoint)
            for key in (key for key in names if key.startswith(f"optimizer.{name}:")):
                if files[0].get_slice(key).get_shape():
                    tensor = torch.zeros_like(parameter, requires_grad=False)
                    _copy_rows(files, key, tensor, checkpoint)
                else:  # a count of steps
                    tensor = files[0].get_tensor(key).to(parameter.device)
                state[key.rpartition(":")[2]] = tensor


def files_of(checkpoint: Path) -> list[Path]:
    """The files of a checkpoint that hold a process's rows each, in the order of the rows."""
    return sorted(checkpoint.glob("shard-*-of-*.safetensors"))


def _copy_rows(files: list[Any], name: str, into: Tensor, checkpoint: Path) -> None:
    """Copy the rows of a tensor that this process keeps from whichever files have them."""
    slices = [file.get_slice(name) for file in files]
    shapes = [piece.get_shape() for piece in slices]
    if [sum(shape[0] for shape in shapes), *shapes[0][1:]] != list(into.shape):
        raise _other_model(checkpoint)
    local = _local(into)
    first = _first_row(into)
    start = 0
    for piece, shape in zip(slices, shapes, strict=True):
        low, high = max(first, start), min(first + len(local), start + shape[0])
        if low < high:
            local[low - first : high - first].copy_(piece[low - start : high - start])
        start += shape[0]


def _first_row(tensor: Tensor) -> int:
    """Which row of the whole is the first of this process's: FSDP2 shares rows out as `torch.chunk` does."""
    if not isinstance(tensor, DTensor):
        return 0
    mesh = tensor.device_mesh
    return min(len(tensor), mesh.get_local_rank() * -(-len(tensor) // mesh.size()))


def _local(tensor: Tensor) -> Tensor:
    """What of a tensor is on this process, sharing its memory."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def _tensors(model: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    for name, parameter, state in _with_state(model, optimizer):
        yield f"model.{name}", parameter
        for key, value in state.items():
            if isinstance(value, Tensor):
                yield f"optimizer.{name}:{key}", value


def _with_state(model: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, nn.Parameter, dict[str, Any]]]:
    inner: Any = getattr(optimizer, "optimizer", optimizer)  # of Accelerate's wrapping
    parts = getattr(inner, "optimizers", [inner])
    states = {p: part.state for part in parts for group in part.param_groups for p in group["params"]}
    for name, parameter in _parameters(model):
        yield name, parameter, states[parameter][parameter]


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters by the names that they have without the wrappings of activation checkpointing and torch.compile."""
    for name, parameter in model.named_parameters():
        yield name.replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", ""), parameter


def _other_model(checkpoint: Path) -> UserError:
    return UserError(
        f"{checkpoint} is of another model than the options ask for; leave out the --model options to go on with the "
        f"run's own"
    )
