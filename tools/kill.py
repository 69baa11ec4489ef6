"""Kill a run again and again and see that nothing is lost: `python tools/kill.py --kills 100`.

A small pretraining gets SIGKILL, all its processes at once, at random moments and in the midst of writing checkpoints,
and is resumed until it is done. What it then has in metrics.jsonl and its last weights are compared, bit for bit, with
those of a run that nobody killed. Exit code 1 if anything differs, or if a checkpoint that was ever there to be chosen
is not whole.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context, set_start_method
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from tqdm import tqdm

from mpp.config.command_line import parse
from mpp.errors import UserError
from mpp.pretrain import main as pretrain
from mpp.run.command import run_command
from mpp.run.folder import read_metrics
from mpp.training import checkpoints

# Every start is a fork of a process that has imported everything and run nothing: 0.1 s instead of 5.
_SERVER = get_context("forkserver")
_SERVER.set_forkserver_preload(["mpp.commands.pretrain", "torch.utils.tensorboard", "tyro"])

RUN = [
    *("--model.img-size", "16", "--model.embed-dim", "32", "--model.depth", "2", "--model.num-heads", "2"),
    *("--model.dropout", "0.1", "--data.fraction", "0.001", "--augment.crop", "resized"),
    *("--train.steps", "40", "--train.batch-size", "8", "--train.checkpoint-every", "2", "--optim.warmup-steps", "5"),
    *("--eval.every", "7", "--eval.images", "20", "--eval.pictures", "1"),
]


@dataclass
class Options:
    """Kill a small pretraining at random moments, resume it until it is done, and compare it with an unkilled run."""

    kills: int = 20
    """How often to kill. Runs that are done before are followed by others."""
    seed: int = 0
    """Of the moments."""


@dataclass
class Tally:
    """What was done, and what was found wrong."""

    kills: int = 0
    in_a_checkpoint: int = 0  # kills that left one half written
    resumes: int = 0
    lines: int = 0
    differences: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"kills {self.kills} ({self.in_a_checkpoint} in the midst of writing a checkpoint), resumes "
            f"{self.resumes}, metrics lines compared {self.lines}, differences {len(self.differences)}"
        )


def begin(
    args: list[str],
    log: Path,
    rank: int = 0,
    world_size: int = 1,
    port: int = 0,
    prepare: Callable[[], object] | None = None,
) -> ForkServerProcess:
    """Start mpp/pretrain.py in a process, and process group, of its own, or one rank of several of them; what it prints
    is appended to `log`. `prepare` is called there before, to have something go wrong."""
    process = _SERVER.Process(target=_run, args=(args, log, rank, world_size, port, prepare))
    process.start()
    return process


def _run(
    args: list[str], log: Path, rank: int, world_size: int, port: int, prepare: Callable[[], object] | None
) -> None:
    os.setsid()
    set_start_method(None, force=True)  # of a run's own workers: the system's default, as ever
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if world_size > 1:
        sizes = {"WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size, "RANK": rank, "LOCAL_RANK": rank}
        os.environ |= {name: str(value) for name, value in sizes.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a killed process leaves to the system
    if prepare:
        prepare()
    run_command(lambda: pretrain(args))


def kill(process: ForkServerProcess) -> bool:
    """SIGKILL to a process group; False if it had ended by itself."""
    assert process.pid is not None
    if process.exitcode is None:
        for send in (os.killpg, os.kill):  # the second for a process that is not yet a group
            with suppress(ProcessLookupError):
                send(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode == -signal.SIGKILL


def drafts(folder: Path) -> set[tuple[str, int]]:
    """Checkpoints that are being written, or were when a run was killed: name and time."""
    found = set()
    for path in folder.glob("checkpoints/*.tmp"):
        with suppress(FileNotFoundError):  # renamed meanwhile
            found.add((path.name, path.stat().st_mtime_ns))
    return found


def wait_for_a_moment(process: ForkServerProcess, folder: Path, whole: float, rng: random.Random) -> None:
    """Wait for a moment to kill at, in a run of about `whole` seconds: any, or while a checkpoint is being written."""
    before, end = drafts(folder), time.monotonic() + rng.uniform(0, whole / 2)
    if rng.random() < 0.5:
        while time.monotonic() < end and process.exitcode is None:
            time.sleep(0.001)
        return
    while process.exitcode is None:
        if time.monotonic() > end and drafts(folder) - before:
            time.sleep(rng.uniform(0, 0.004))
            return
        time.sleep(0.0002)


def compare(folder: Path, reference: Path, tally: Tally) -> None:
    """Note where a run that was killed is not the same as one that was not."""
    mine, theirs = ([_without_speeds(line) for line in read_metrics(path)] for path in (folder, reference))
    tally.lines += len(theirs)
    if [line["step"] for line in mine] != [line["step"] for line in theirs]:
        tally.differences.append(f"{folder}: the lines are of steps {[line['step'] for line in mine]}")
    pairs = zip(mine, theirs, strict=False)
    tally.differences += [f"{folder}: {a} instead of {b}" for a, b in pairs if a != b]
    last = [checkpoints.written(path / "checkpoints")[-1] / checkpoints.WEIGHTS for path in (folder, reference)]
    if last[0].read_bytes() != last[1].read_bytes():
        tally.differences.append(f"{last[0]}: other weights")
    if not (folder / "result.json").exists():
        tally.differences.append(f"{folder}: no result.json")


def _without_speeds(line: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in line.items() if not name.startswith("speed/")}


def last_line(log: Path) -> str:
    """The last thing that a run said."""
    return next(reversed(log.read_text(errors="replace").strip().splitlines()), "it said nothing")


def torture(options: Options, work: Path) -> Tally:
    """Kill `options.kills` times and compare what came of it; every folder stays in `work`."""
    rng, tally, log = random.Random(options.seed), Tally(), work / "output.txt"
    reference = work / "unkilled"
    for folder in (work / "first", reference):  # the first start waits for the imports
        started = time.monotonic()
        process = begin([*RUN, "--output", str(folder)], log)
        process.join()
        seconds = time.monotonic() - started
        if process.exitcode:
            raise UserError(f"the run that nobody killed ended with exit code {process.exitcode}: {last_line(log)}")
    number = 0
    while tally.kills < options.kills:
        number, done = number + 1, False
        folder = work / f"killed-{number}"
        while not done:
            before = drafts(folder)
            options_of_run = [] if (folder / "config.toml").exists() else RUN  # a run knows its own
            process = begin([*options_of_run, "--output", str(folder), "--resume"], log)
            if tally.kills < options.kills:
                wait_for_a_moment(process, folder, seconds, rng)
                killed = kill(process)
            else:
                process.join()
                killed = False
            if killed:
                tally.kills += 1
                tally.resumes += 1
                tally.in_a_checkpoint += bool(drafts(folder) - before)
                with warnings.catch_warnings(record=True) as found:
                    warnings.simplefilter("always")
                    checkpoints.latest(folder / "checkpoints")
                tally.differences += [str(warning.message) for warning in found]
            elif process.exitcode:
                raise UserError(f"a run ended with exit code {process.exitcode}: {last_line(log)}")
            done = not killed
        compare(folder, reference, tally)
    return tally


def main(args: list[str] | None = None) -> Tally:
    """Run the tool; returns what it found."""
    options = parse(Options, args)
    if options.kills < 1:
        raise UserError(f"--kills {options.kills} must be above 0")
    with tempfile.TemporaryDirectory(prefix="mpp-kill-", ignore_cleanup_errors=True) as work:
        tally = torture(options, Path(work))
    print("\n".join([*tally.differences, str(tally)]))
    return tally


if __name__ == "__main__":
    run_command(lambda: sys.exit(bool(main().differences)))
