"""Nothing lost: exact resume, kills, faults while running, weights from others, several processes.

Most runs here are forks of a process that has imported everything (`tools.kill.begin`), because a start costs 5 seconds
otherwise; they are processes of their own, with the real command in them.
"""

from __future__ import annotations

import socket
from itertools import product
from pathlib import Path

import pytest

from mpp.errors import UserError
from mpp.records import read_metrics
from recipes.finetune import main as finetune
from recipes.supervised import main as supervised
from tests.test_pretrain import SMALL, losses, pretrain, reset_accelerate, without_speeds
from tools.kill import Options, begin, torture

# 30 images, in batches of 8: epochs end between and within batches, and a cut is in the middle of one
EPOCHS = ["--data.fraction", "0.0003", "--augment.crop", "resized", "--eval.pictures", "0"]


def together(count: int, output: Path, *options: str, log: Path | None = None) -> list[dict[str, float]]:
    """Run the command on `count` processes to its end; returns the lines of metrics.jsonl."""
    log = log or output.with_suffix(".log")
    args = [*SMALL, "--output", str(output), *options]
    port = free_port()
    processes = [begin(args, log, rank, count, port) for rank in range(count)]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * count, log.read_text()
    return read_metrics(output)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def cut_and_resumed(count: int, output: Path, *options: str) -> list[dict[str, float]]:
    """As `together`, but stopped after three steps and gone on with."""
    cut = ["--optim.decay", "none", "--train.steps", "3"]  # without decay, a shorter run begins as the longer one
    together(count, output, *options, *cut)
    return together(count, output, *options, "--optim.decay", "none", "--resume")


@pytest.mark.parametrize(("processes", "accumulate"), list(product([1, 2], [1, 2])))
def test_resuming_gives_the_same_metrics_to_the_last_bit(tmp_path, processes, accumulate):
    options = [*EPOCHS, "--model.dropout", "0.1", "--train.accumulate", str(accumulate)]
    straight = without_speeds(together(processes, tmp_path / "straight", *options, "--optim.decay", "none"))
    assert [line["step"] for line in straight] == [1, 2, 3, 4, 5, 6]
    assert 0 < straight[2]["epoch"] < 1 < straight[-1]["epoch"]
    for workers in ("0", "2"):
        resumed = cut_and_resumed(processes, tmp_path / workers, *options, "--data.workers", workers)
        assert without_speeds(resumed) == straight


def test_a_run_goes_on_with_other_processes_accumulation_and_workers(tmp_path):
    straight = together(1, tmp_path / "straight", *EPOCHS, "--optim.decay", "none")
    steps = {2: (2, ["--data.workers", "1"]), 4: (1, ["--train.accumulate", "4"]), 6: (2, ["--train.accumulate", "2"])}
    for step, (processes, options) in steps.items():
        length = ["--optim.decay", "none", "--train.steps", str(step), "--resume"]
        changed = together(processes, tmp_path / "changed", *EPOCHS, *length, *options)
    assert losses(changed) == pytest.approx(losses(straight), abs=1e-4)
    assert [line["epoch"] for line in changed] == [line["epoch"] for line in straight]


def run(command, output: Path, *options: str) -> None:
    """Run a command of recipes/ in this process."""
    reset_accelerate()
    small = ["--train.steps", "4", "--train.batch-size", "8", "--eval.images", "60", "--data.labels", "40"]
    command([*small, "--output", str(output), *options])


SHAPE = ["--model.img-size", "16", "--model.embed-dim", "32", "--model.depth", "2", "--model.num-heads", "2"]


@pytest.mark.parametrize("command", ["pretrain", "supervised", "finetune"])
def test_resuming_with_options_that_change_the_numbers_is_refused_with_both_values(tmp_path, command):
    def go(*options: str) -> None:
        if command == "pretrain":
            pretrain(tmp_path / "run", *options)
        else:
            run({"supervised": supervised, "finetune": finetune}[command], tmp_path / "run", *SHAPE, *options)

    go("--optim.lr", "1e-3")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError) as refusal:
        go("--resume", "--optim.lr", "2e-3", "--augment.flip", "0.25", "--train.steps", "8")
    says = str(refusal.value)
    assert "--augment.flip 0.5, now 0.25" in says
    assert "--optim.lr 0.001, now 0.002" in says
    assert "--train.steps" not in says
    assert "--resume-anyway" in says
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    go("--resume", "--resume-anyway", "--optim.lr", "2e-3", "--train.steps", "8")
    assert read_metrics(tmp_path / "run")[-1]["step"] == 8


def test_resuming_with_options_that_do_not_change_the_numbers_is_allowed(tmp_path):
    pretrain(tmp_path / "run")
    other = ["--train.steps", "8", "--train.accumulate", "2", "--train.checkpoint-every", "3", "--eval.every", "4"]
    other += ["--train.keep-checkpoints", "1", "--train.log-every", "2", "--data.workers", "1"]
    pretrain(tmp_path / "run", "--resume", *other)
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6, 8]


def test_a_run_killed_twenty_times_is_the_same_as_one_that_nobody_killed(tmp_path):
    tally = torture(Options(kills=20), tmp_path)
    assert tally.differences == []
    assert (tally.kills, tally.resumes) == (20, 20)
    assert tally.in_a_checkpoint >= 3
    assert tally.lines >= 40
