"""Larger than one process: the files in recipes/launch, FSDP2 on two processes of the CPU, the script for clusters."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from safetensors.torch import load_file, save_file
from torch import nn

from mpp.config.options import Optim, Train
from mpp.errors import UserError
from mpp.run.folder import read_metrics
from mpp.run.machine import fsdp_plugin
from mpp.training import checkpoints, sharding
from tests.helpers import ROOT, command, launch, losses, pretrain, two_processes

LAUNCH = ROOT / "recipes" / "launch"
FILES = sorted(path.stem for path in LAUNCH.glob("*.yaml"))
OPTIONS = ["--optim.name", "adamw", "--optim.decay", "none", "--eval.every", "2"]


def launcher(file: str) -> tuple[str, ...]:
    """`accelerate launch` with a file of recipes/launch, at a port of this test's own."""
    port = two_processes()[-1]
    accelerate = str(Path(sys.executable).with_name("accelerate"))
    return accelerate, "launch", "--config_file", str(LAUNCH / f"{file}.yaml"), "--main_process_port", port


def understood(file: str) -> argparse.Namespace:
    """What `accelerate launch` makes of a file."""
    args = launch_command_parser().parse_args(["--config_file", str(LAUNCH / f"{file}.yaml"), "mpp/pretrain.py"])
    return _validate_launch_command(args)[0]


# Files for `accelerate launch`


def test_there_is_a_file_for_every_size():
    assert FILES == [
        "eight-gpus",
        "many-nodes-fsdp2",
        "one-gpu",
        "two-cpu-processes",
        "two-cpu-processes-fsdp2",
    ]


@pytest.mark.parametrize("file", FILES)
def test_accelerate_reads_every_file_and_knows_all_of_its_keys(file):
    config = load_config_from_file(str(LAUNCH / f"{file}.yaml"))  # raises for a key that it does not know
    known = {name.removeprefix("fsdp_") for name in vars(understood(file))}
    assert {name.removeprefix("fsdp_") for name in getattr(config, "fsdp_config", None) or {}} <= known


@pytest.mark.parametrize(
    ("file", "processes", "machines", "fsdp", "precision"),
    [
        ("one-gpu", 1, 1, False, "bf16"),
        ("eight-gpus", 8, 1, False, "bf16"),
        ("many-nodes-fsdp2", 16, 2, True, "bf16"),
        ("two-cpu-processes", 2, 1, False, "no"),
        ("two-cpu-processes-fsdp2", 2, 1, True, "no"),
    ],
)
def test_every_file_asks_for_what_its_name_says(file, processes, machines, fsdp, precision):
    args = understood(file)
    assert (args.num_processes, args.num_machines, args.use_fsdp) == (processes, machines, fsdp)
    assert (args.mixed_precision, args.multi_gpu) == (precision, processes > 1 and not fsdp)
    if fsdp:
        assert (args.fsdp_version, args.fsdp_transformer_layer_cls_to_wrap) == (2, "Block")


def test_two_processes_of_the_file_form_one_group(tmp_path):
    done = launch(*OPTIONS, "--output", str(tmp_path / "two"), launcher=launcher("two-cpu-processes"))
    assert done.returncode == 0, done.stderr
    assert "processes: 2, on the CPU" in done.stdout
    alone = pretrain(tmp_path / "one", *OPTIONS)
    assert losses(read_metrics(tmp_path / "two")) == pytest.approx(losses(alone), abs=1e-4)


# FSDP2


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A run on two processes with FSDP2, of 6 steps, in its folder."""
    return run_sharded(tmp_path_factory.mktemp("fsdp") / "run")


def run_sharded(folder: Path, *options: str) -> Path:
    """Train on two processes with FSDP2."""
    line = [*OPTIONS, "--output", str(folder), *options]
    done = launch(*line, launcher=launcher("two-cpu-processes-fsdp2"))
    assert done.returncode == 0, done.stderr
    assert "processes: 2, on the CPU with 1 threads each, in fp32, sharded by FSDP2" in done.stdout
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same run on one process without FSDP2."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    pretrain(folder, *OPTIONS)
    return folder


def test_sharded_training_evaluation_and_backbone_equal_those_of_one_process(sharded, alone):
    lines, expected = read_metrics(sharded), read_metrics(alone)
    for name in ("train/loss", "optim/grad_norm"):
        assert [line[name] for line in lines] == pytest.approx([line[name] for line in expected], abs=1e-4)
    for one, other in zip(lines, expected, strict=True):
        assert one.get("eval/loss") == pytest.approx(other.get("eval/loss"), abs=1e-4)
    theirs, ours = (load_file(folder / "backbone" / "model.safetensors") for folder in (alone, sharded))
    assert set(theirs) == set(ours)
    for name, tensor in ours.items():
        if name.endswith("qkv.bias"):  # attention does not change with the keys' biases: Adam follows rounding there
            tensor[32:64] = theirs[name][32:64]
        torch.testing.assert_close(tensor, theirs[name], atol=1e-4, rtol=0)
    assert len(list((sharded / "samples").glob("*.png"))) == 3


def test_every_process_keeps_and_saves_its_half(sharded):
    checkpoint = checkpoints.latest(sharded / "checkpoints")[0]
    assert sorted(path.name for path in checkpoint.iterdir()) == [
        "shard-00001-of-00002.safetensors",
        "shard-00002-of-00002.safetensors",
        "state.json",
    ]
    first, second = (load_file(path) for path in sorted(checkpoint.glob("shard-*")))
    assert set(first) == set(second)
    for name in ("model.head.weight", "optimizer.head.weight:exp_avg", "optimizer.head.weight:exp_avg_sq"):
        assert first[name].shape == second[name].shape == (256, 32)
    assert not (sharded / "checkpoints" / "shards.tmp").exists()


def test_a_damaged_shard_is_named_and_the_checkpoint_before_is_taken(sharded, tmp_path):
    folder = tmp_path / "checkpoints"
    subprocess.run(["cp", "-r", str(sharded / "checkpoints"), str(folder)], check=True)
    path = folder / "step_00000006" / "shard-00002-of-00002.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="step_00000006 is damaged"):
        assert checkpoints.latest(folder)[1]["step"] == 4


def test_a_sharded_run_resumes_to_the_last_bit_also_on_one_process_to_rounding(sharded, tmp_path):
    folder = tmp_path / "cut"
    run_sharded(folder, "--train.steps", "4")
    subprocess.run(["cp", "-r", str(folder), str(tmp_path / "one")], check=True)
    run_sharded(folder, "--resume")
    assert losses(read_metrics(folder)) == losses(read_metrics(sharded))
    mine, theirs = (load_file(run / "backbone" / "model.safetensors") for run in (folder, sharded))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    lines = pretrain(tmp_path / "one", *OPTIONS, "--resume")
    assert losses(lines) == pytest.approx(losses(read_metrics(sharded)), abs=1e-4)


def test_a_full_disk_is_told_by_all_and_leaves_no_draft(tmp_path):
    line = shlex.join(command(*OPTIONS, "--output", str(tmp_path), launcher=launcher("two-cpu-processes-fsdp2")))
    limited = f"ulimit -f 120; exec {line}"  # 120 KiB a file: enough for pictures, too little for a shard
    done = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, timeout=180)
    assert done.returncode != 0
    for rank in (0, 1):
        assert f"error (rank {rank} of 2): the checkpoint of step 6 could not be written" in done.stderr
    assert 'Traceback (most recent call last):\n  File "' + str(ROOT / "mpp" / "pretrain.py") not in done.stderr
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_what_does_not_go_with_shards_is_refused(tmp_path):
    options = ["--optim.name", "sgd", "--output", str(tmp_path / "run")]
    done = launch(*options, launcher=launcher("two-cpu-processes-fsdp2"))
    assert done.returncode != 0
    for rank in (0, 1):
        assert f"error (rank {rank} of 2): --optim.name sgd cannot update parameters in parts (FSDP2)" in done.stderr
    assert "UserError" not in done.stderr
    with pytest.raises(UserError, match=r"--train\.average"):
        sharding.refuse_unsharded(Train(average=0.9), Optim())
    with pytest.raises(UserError, match=r"--train\.auto-batch"):
        sharding.refuse_unsharded(Train(auto_batch=True), Optim())


def test_fsdp_of_version_1_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="fsdp_version: 2"):
        fsdp_plugin()


def after_a_step(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A small model after a step of AdamW."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 7), nn.Linear(7, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_shards_of_any_number_of_processes_make_the_whole(tmp_path, processes):
    model, optimizer = after_a_step(0)
    for rank in range(processes):
        rows = {}
        for name, tensor in sharding._tensors(model, optimizer):
            size = -(-len(tensor) // processes) if tensor.dim() else 0  # as torch.chunk
            rows[name] = tensor.detach()[rank * size : (rank + 1) * size].contiguous() if tensor.dim() else tensor
        save_file(rows, tmp_path / f"shard-{rank + 1:05d}-of-{processes:05d}.safetensors")
    other, its_optimizer = after_a_step(1)
    sharding.read(tmp_path, other, its_optimizer)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        for key, value in optimizer.state[ours].items():
            assert torch.equal(value, its_optimizer.state[theirs][key])


@pytest.mark.parametrize("layers", [(nn.Linear(3, 7),), (nn.Linear(3, 7), nn.Linear(7, 3)), (nn.Linear(3, 6),)])
def test_shards_of_another_model_are_refused(tmp_path, layers):
    model, optimizer = after_a_step(0)
    tensors = {name: tensor.detach().clone() for name, tensor in sharding._tensors(model, optimizer)}
    save_file(tensors, tmp_path / "shard-00001-of-00001.safetensors")
    other = nn.Sequential(*layers)
    with pytest.raises(UserError, match="is of another model"):
        sharding.read(tmp_path, other, torch.optim.AdamW(other.parameters()))


# The script for clusters


def run_slurm(folder: Path, *options: str, finishes: bool = True, fails: bool = False) -> tuple[int, str, str]:
    """Run slurm.sh where srun runs a command as node 1 of 2; returns the exit code, what was launched, what was asked
    of the scheduler."""
    stubs = folder / "bin"
    stubs.mkdir(parents=True)
    scripts = {
        "srun": 'SLURM_NODEID=1 "$@"',
        "accelerate": f'echo "$@" > {folder}/launched; {"exit 1" if fails else ""}\n'
        f"{f'mkdir -p {folder}/run; touch {folder}/run/result.json' if finishes else ''}",
        "scontrol": f'if [ "$1" = show ]; then echo node7; echo node8; else echo "$@" >> {folder}/asked; fi',
    }
    for name, body in scripts.items():
        (stubs / name).write_text(f"#!/bin/sh\n{body}\n")
        (stubs / name).chmod(0o755)
    variables = {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "123456"}
    env = os.environ | variables | {"PATH": f"{stubs}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", str(LAUNCH / "slurm.sh"), *options], env=env, check=False, timeout=60)
    launched, asked = (
        (folder / name).read_text() if (folder / name).exists() else "" for name in ("launched", "asked")
    )
    return done.returncode, launched, asked


def test_the_cluster_script_is_bash():
    subprocess.run(["bash", "-n", str(LAUNCH / "slurm.sh")], check=True)


def test_the_cluster_script_launches_every_machine_of_the_job_and_resumes(tmp_path):
    options = ["--data.path", "a folder", "--output", str(tmp_path / "run")]
    code, launched, asked = run_slurm(tmp_path, *options)
    assert (code, asked) == (0, "")
    assert launched.split("mpp/pretrain.py")[0].split() == [
        *("launch", "--config_file", "recipes/launch/many-nodes-fsdp2.yaml", "--num_machines", "2"),
        *("--num_processes", "16", "--machine_rank", "1", "--main_process_ip", "node7", "--main_process_port", "23456"),
    ]
    assert launched.endswith(f"mpp/pretrain.py --data.path a folder --output {tmp_path / 'run'} --resume\n")


def test_the_cluster_script_queues_a_stopped_run_again_and_no_failed_one(tmp_path):
    options = ["--output", str(tmp_path / "stopped" / "run")]
    assert run_slurm(tmp_path / "stopped", *options, finishes=False)[::2] == (0, "requeue 123456\n")
    code, _, asked = run_slurm(tmp_path / "failed", *options, finishes=False, fails=True)
    assert (code != 0, asked) == (True, "")


def test_the_cluster_script_wants_a_folder_to_go_on_in(tmp_path):
    code, launched, _ = run_slurm(tmp_path)
    assert (code, launched) == (2, "")
