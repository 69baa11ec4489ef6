"""Stop signals belong to the command: whatever it does, it stops there, keeps what it has, and says how to go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from mpp.commands import linear_probe
from mpp.comparison import compare as comparison
from mpp.data import packing
from mpp.methods.classify import Classify
from mpp.methods.masked_patches import MaskedPatches
from mpp.run.folder import read_metrics
from mpp.run.lock import NAME
from recipes.compare import main as compare
from recipes.finetune import main as finetune
from recipes.linear_probe import main as probe
from tests.comparison.test_compare import TINY
from tests.helpers import ROOT, SMALL, pretrain, put, reset_accelerate, without_speeds
from tools.pack import main as pack

SHAPE = ["--model.img-size", "16", "--model.embed-dim", "32", "--model.depth", "2", "--model.num-heads", "2"]
STAGES = {"in the last step": ("training_step", 6), "in an evaluation": ("evaluate", 1), "in the last": ("evaluate", 2)}


def signalled(monkeypatch, owner, name: str, at: int = 1, number: int = signal.SIGTERM) -> list[int]:
    """Have the `at`-th call of a function, once it has done its work, send this process a signal."""
    whole, calls = getattr(owner, name), []

    def function(*args, **options):
        found = whole(*args, **options)
        calls.append(len(calls) + 1)
        if len(calls) == at:
            os.kill(os.getpid(), number)
        return found

    monkeypatch.setattr(owner, name, function)
    return calls


@pytest.mark.parametrize(
    ("stage", "number"), list(zip(STAGES, (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1), strict=True))
)
def test_a_signal_stops_a_training_there_and_it_goes_on_to_the_same_numbers(straight, tmp_path, capsys, stage, number):
    with pytest.MonkeyPatch.context() as patch:
        signalled(patch, MaskedPatches, *STAGES[stage], number)
        pretrain(tmp_path / "run", "--optim.decay", "none")
    step = 3 if stage == "in an evaluation" else 6
    said = capsys.readouterr().out
    assert f"stopped at step {step}; resume with: " in said
    assert "The model" not in said
    assert not (tmp_path / "run" / "result.json").exists()
    assert not (tmp_path / "run" / NAME).exists()
    lines = pretrain(tmp_path / "run", "--optim.decay", "none", "--resume")
    assert without_speeds(lines) == without_speeds(read_metrics(straight))
    ours, theirs = (json.loads((path / "result.json").read_text()) for path in (tmp_path / "run", straight))
    assert ours["eval/loss"] == theirs["eval/loss"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that nobody stops."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    pretrain(folder, "--optim.decay", "none")
    return folder


def test_a_signal_in_a_learning_rate_trial_ends_the_command(tmp_path, monkeypatch, capsys):
    options = [*SHAPE, "--train.steps", "2", "--train.batch-size", "8", "--eval.images", "20", "--data.labels", "40"]
    options += ["--optim.lr-grid", "0.01", "0.001", "--output", str(tmp_path / "run")]
    steps = signalled(monkeypatch, Classify, "training_step", at=2)  # the last step of the first trial
    reset_accelerate()
    assert not finetune(options)
    assert len(steps) == 2
    assert f"resume with: accelerate launch -m mpp finetune --config {tmp_path}/run" in capsys.readouterr().out
    reset_accelerate()
    result = finetune(["--output", str(tmp_path / "run"), "--resume"])
    assert (len(steps), len(result["lr_grid_top1"])) == (6, 2)


def test_a_signal_in_a_probe_ends_it_and_the_same_command_begins_again(tmp_path, monkeypatch, capsys):
    signalled(monkeypatch, linear_probe, "features_of")
    reset_accelerate()
    options = [*SHAPE, "--data.labels", "30", "--probe.eval-images", "20", "--output", str(tmp_path / "run")]
    assert not probe(options)
    assert "stopped; the same command" in capsys.readouterr().out
    assert not (tmp_path / "run" / "result.json").exists()
    reset_accelerate()
    assert probe(options)["eval_images"] == 20


def test_a_signal_while_packing_ends_it_and_the_same_command_goes_on(tmp_path, monkeypatch, capsys):
    for number in range(12):
        put(tmp_path / "set" / "a" / f"{number}.png", number)
    options = ["--data.path", str(tmp_path / "set"), "--out", str(tmp_path / "set.mpp")]
    with monkeypatch.context() as patch:
        signalled(patch, packing, "decoded", at=5)
        assert not pack(options)
    assert "stopped; the same command goes on" in capsys.readouterr().out
    assert not (tmp_path / "set.mpp").exists()
    assert not list(tmp_path.glob("*.lock"))
    assert pack(options) == tmp_path / "set.mpp"


@pytest.mark.parametrize("stage", ["begin", "run_piece", "write_report"])
def test_a_signal_between_two_pieces_of_a_comparison_ends_it(tmp_path, monkeypatch, capsys, stage):
    owner = comparison.Piece if stage == "begin" else comparison
    pieces = signalled(monkeypatch, comparison, "run_piece")
    signalled(monkeypatch, owner, stage)
    options = [*TINY, "--seeds", "0", "--labels", "16", "--supervised", "none", "--output", str(tmp_path / "all")]
    reset_accelerate()
    assert not compare(options)
    assert len(pieces) == {"begin": 0, "run_piece": 1, "write_report": 1}[stage]
    assert f"the work goes on with: --config {tmp_path}/all/config.toml" in capsys.readouterr().out
    assert not (tmp_path / "all" / NAME).exists()


@pytest.mark.parametrize("stage", ["training", "packing"])
def test_ctrl_c_twice_ends_at_once_and_unlocks(tmp_path, stage):
    for number in range(4):
        put(tmp_path / "set" / "a" / f"{number}.png", number)
    function, args = {
        "training": ("methods.masked_patches:MaskedPatches.training_step", ["pretrain", *SMALL, "--output", "run"]),
        "packing": ("data.packing:decoded", ["pack", "--data.path", "set", "--out", "set.mpp"]),
    }[stage]
    swallows = stage == "packing"  # the first Ctrl-C, as code of others may that catches everything
    code = f"""
import pkgutil, sys, time
def hang(*args):
    try:
        print("here", flush=True)
        time.sleep(100)
    except KeyboardInterrupt:
        if not {swallows}:
            raise
    time.sleep(100)
owner, _, name = "mpp.{function}".replace(":", ".").rpartition(".")
setattr(pkgutil.resolve_name(owner), name, hang)
from mpp.console import main
main({args!r})
"""
    here = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while "here" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    while "stopping" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(0.5)  # as a person takes
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    rest = process.stderr.read()
    assert "ended at once" in rest
    assert "Traceback" not in rest
    assert not list(tmp_path.rglob("*.lock"))
