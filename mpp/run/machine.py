"""The machine that a command runs on: devices, processes, FSDP2, precision, threads and memory."""

from __future__ import annotations

import ctypes
import os
import sys
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import (
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    broadcast_object_list,
    convert_outputs_to_fp32,
    gather_object,
    parse_flag_from_env,
)
from torch import distributed, nn
from torch.distributed.fsdp import MixedPrecisionPolicy

from mpp.config.hub import Config, pinned
from mpp.config.options import Data
from mpp.errors import UserError

PREPARING = timedelta(hours=2)  # in which one process may prepare a large set, and the others wait


TRAINING = timedelta(minutes=10)  # in which a checkpoint must be written


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h


def start_accelerator(precision: str) -> Accelerator:
    """Set up devices, processes and precision, and say which they are.

    Several processes on a machine without an accelerator form one gloo group: Accelerate has to be told (`cpu=True`),
    or each would train alone and write the same files.
    """
    gpu = torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")  # accelerate launch --cpu
    bf16 = precision == "bf16" or (
        precision == "auto" and gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    )
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    gpus = torch.cuda.device_count() if gpu else 0
    own = gpus == 1 and "CUDA_VISIBLE_DEVICES" in os.environ  # a launcher gave each process its own
    if gpu and here > gpus and not own:
        raise UserError(
            f"{here} processes were launched on a machine with {gpus} GPU(s), and each needs its own: --num_processes "
            f"{gpus}, or hide the GPUs with CUDA_VISIBLE_DEVICES= for the CPU"
        )
    plugin = fsdp_plugin()
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available() and world_size > 1,
        fsdp_plugin=plugin,
        mixed_precision="bf16" if bf16 else "no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(1, sync_with_dataloader=False),  # `train` says how many
        log_with="tensorboard",
        project_config=ProjectConfiguration(logging_dir="."),  # `Records` says where
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PREPARING)],
    )
    if accelerator.num_processes != world_size:
        raise UserError(f"{world_size} processes were launched, but {accelerator.num_processes} found each other")
    where = accelerator.device.type
    hint = ""
    use_all_cores()
    if where == "cpu":
        keep_freed_memory()
        if plugin:
            shard_on_cpu(accelerator, plugin)
        where = f"the CPU with {torch.get_num_threads()} threads each"
        if has_bf16_units() != bf16:
            faster = "fp32" if bf16 else "bf16"
            hint = f" (this CPU is faster in {faster}: precision {faster})"
    elif where == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for what is left in fp32: several times as fast
    how = ("bf16" if bf16 else "fp32") + (", sharded by FSDP2" if accelerator.is_fsdp2 else "")
    accelerator.print(f"processes: {accelerator.num_processes}, on {where}, in {how}{hint}")
    return accelerator


def has_bf16_units() -> bool:
    """Whether this CPU multiplies matrices in bf16 (AMX, or AVX-512's dot products: AMD since Zen 4): 1.6 to 2 times as
    fast as in fp32, in a training step."""
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(found.get("amx_bf16") or found.get("avx512_bf16"))


def pinned_by_one(config: Config, accelerator: Accelerator) -> Config:
    """`pinned`, asked for by one process, so that all have the same revisions."""
    found: list[Config | UserError | None] = [None]
    if accelerator.is_main_process:
        try:
            found = [pinned(config)]
        except UserError as error:
            found = [error]
    answer = broadcast_object_list(found)[0]
    if isinstance(answer, UserError):
        raise answer
    assert answer is not None
    return answer


def let_go(accelerator: Accelerator) -> None:
    """Forget devices and precision after a command, so that the next one in this process sets up its own."""
    if accelerator.num_processes == 1:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def dtype_of(accelerator: Accelerator) -> torch.dtype:
    """What matrices are multiplied in."""
    return torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32


def wait_at_most(time: timedelta) -> None:
    """How long a process waits for the others from now on before it takes them for dead."""
    if distributed.is_initialized():
        getattr(distributed, "set_timeout", distributed.distributed_c10d._set_pg_timeout)(time)


def workers_of(data: Data, accelerator: Accelerator) -> int:
    """Processes that decode: --data.workers, or none beside training on a CPU, else one a core, at most 8."""
    if data.workers is not None:
        return data.workers
    return 0 if accelerator.device.type == "cpu" else min(8, cores_a_process())


def cores_a_process() -> int:
    """CPU cores there are for each process on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def use_all_cores() -> None:
    """Threads for what the CPU computes: training, or beside a GPU the probes of frozen features.

    `accelerate launch` and torchrun set OMP_NUM_THREADS=1 where nothing else is said, which halves the speed on two
    cores; a larger number is somebody's wish and stays. OpenMP takes a list, too ("2,1"), of which the first counts.
    """
    if os.environ.get("OMP_NUM_THREADS", "1").partition(",")[0].strip() in ("", "1"):
        torch.set_num_threads(cores_a_process())


def keep_freed_memory() -> None:
    """Keep freed blocks of memory instead of giving them back to the system after every tensor, which saves page
    faults: 10 to 30 % of a step of the nano model at batch 256 (glibc only)."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "mallopt"):
        return
    # glibc refuses more than 32 MiB in older versions; and if it took none, the other option alone would slow it down
    if libc.mallopt(_MMAP_THRESHOLD, 1 << 30) or libc.mallopt(_MMAP_THRESHOLD, 32 << 20):
        libc.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)


def give_back_freed_memory() -> None:
    """Give every freed tensor of 64 KiB or more back to the system at once, so that the peak memory of this process is
    what its tensors need (glibc; slower, see `keep_freed_memory`)."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None and hasattr(libc, "mallopt"):
        libc.mallopt(_MMAP_THRESHOLD, 64 << 10)


def fsdp_plugin() -> FullyShardedDataParallelPlugin | None:
    """FSDP2 as `accelerate launch` was told to run it; None if it was not."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return None
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        os.environ["ACCELERATE_USE_FSDP"] = (
            "false"  # there is nobody to share with; Accelerate would shard all the same
        )
        return None
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError(
            "FSDP of version 1 is not supported; launch with --fsdp_version 2 (fsdp_version: 2 in the file)"
        )
    # Weights travel in fp32, and `in_precision` has matrices multiplied in bf16, as with DDP: norms, sums and gradients
    # stay in fp32, and the losses are the same. (A policy of bf16 would halve the traffic and round all of these.)
    # Every process makes the whole model, the same from the same seed, and keeps its rows: nothing has to be sent.
    return FullyShardedDataParallelPlugin(
        mixed_precision_policy=MixedPrecisionPolicy(), cpu_ram_efficient_loading=False
    )


def in_precision(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Have a model compute in the run's precision and return fp32, as Accelerate does for all but FSDP2."""
    if accelerator.mixed_precision != "no":
        model.forward = convert_outputs_to_fp32(accelerator.autocast()(model.forward))
    return model


def shard_on_cpu(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin) -> None:
    """Turn FSDP2 on for processes on CPUs, where Accelerate (to 1.15 at least) passes over it without a word."""
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin


def gather_dicts(accelerator: Accelerator, mine: dict[Any, Any]) -> dict[Any, Any]:
    """The dicts of all processes in one."""
    return dict(gather_object(list(mine.items()))) if accelerator.num_processes > 1 else mine
