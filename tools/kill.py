"""Kill a run many times and check that it loses nothing: `python tools/kill.py --kills 100`.

The tool sends SIGKILL to all processes of a small pretraining, at random moments and while it writes a checkpoint, and
resumes it until it is done. It then compares metrics.jsonl and the last weights, bit for bit, with those of a run that
was never killed. Exit code 1 if anything differs, or if a kill leaves a damaged checkpoint under a name that --resume
would choose.
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

# Every run is a fork of a process that has already imported everything: it starts in 0.1 s instead of 5 s.
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
    """Number of kills. When a run is done before the last kill, another run starts."""
    seed: int = 0
    """Seed of the random moments."""


@dataclass
class Tally:
    """Counts of what was done, and the differences found."""

    kills: int = 0
    in_a_checkpoint: int = 0  # kills that left a half-written checkpoint
    resumes: int = 0
    lines: int = 0
    differences: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"kills {self.kills} ({self.in_a_checkpoint} while writing a checkpoint), resumes "
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
    """Start mpp/pretrain.py, or one of its ranks, in a new process with its own process group. Appends its output to
    `log`. The new process calls `prepare` first, which may inject a fault."""
    process = _SERVER.Process(target=_run, args=(args, log, rank, world_size, port, prepare))
    process.start()
    return process


def _run(
    args: list[str], log: Path, rank: int, world_size: int, port: int, prepare: Callable[[], object] | None
) -> None:
    os.setsid()
    set_start_method(None, force=True)  # the run's own workers use the system's default
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if world_size > 1:
        sizes = {"WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size, "RANK": rank, "LOCAL_RANK": rank}
        os.environ |= {name: str(value) for name, value in sizes.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    tqdm.set_lock(threading.RLock())  # tqdm's default is a semaphore, which a killed process leaks
    if prepare:
        prepare()
    run_command(lambda: pretrain(args))


def kill(process: ForkServerProcess) -> bool:
    """Send SIGKILL to a process group; False if the process had already ended."""
    assert process.pid is not None
    if process.exitcode is None:
        for send in (os.killpg, os.kill):  # os.kill: before the process has its own group
            with suppress(ProcessLookupError):
                send(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode == -signal.SIGKILL


def drafts(folder: Path) -> set[tuple[str, int]]:
    """Half-written checkpoints, of a live or a killed run: name and modification time in ns."""
    found = set()
    for path in folder.glob("checkpoints/*.tmp"):
        with suppress(FileNotFoundError):  # the run has just renamed it
            found.add((path.name, path.stat().st_mtime_ns))
    return found


def wait_for_a_moment(process: ForkServerProcess, folder: Path, whole: float, rng: random.Random) -> None:
    """Wait until it is time to kill a run of about `whole` seconds: any moment, or while it writes a checkpoint."""
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
    """Add to `tally` every difference between a killed run and the reference, which was never killed."""
    mine, theirs = ([_without_speeds(line) for line in read_metrics(path)] for path in (folder, reference))
    tally.lines += len(theirs)
    if [line["step"] for line in mine] != [line["step"] for line in theirs]:
        tally.differences.append(f"{folder}: metrics.jsonl has other steps: {[line['step'] for line in mine]}")
    pairs = zip(mine, theirs, strict=False)
    tally.differences += [f"{folder}: {a} instead of {b}" for a, b in pairs if a != b]
    last = [checkpoints.written(path / "checkpoints")[-1] / checkpoints.WEIGHTS for path in (folder, reference)]
    if last[0].read_bytes() != last[1].read_bytes():
        tally.differences.append(f"{last[0]}: different weights")
    if not (folder / "result.json").exists():
        tally.differences.append(f"{folder}: no result.json")


def _without_speeds(line: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in line.items() if not name.startswith("speed/")}


def last_line(log: Path) -> str:
    """The last line of a run's output."""
    return next(reversed(log.read_text(errors="replace").strip().splitlines()), "no output")


def torture(options: Options, work: Path) -> Tally:
    """Kill runs `options.kills` times, resume them and compare the results; all folders stay in `work`."""
    rng, tally, log = random.Random(options.seed), Tally(), work / "output.txt"
    reference = work / "unkilled"
    for folder in (work / "first", reference):  # not timed: the first start waits for the imports
        started = time.monotonic()
        process = begin([*RUN, "--output", str(folder)], log)
        process.join()
        seconds = time.monotonic() - started
        if process.exitcode:
            raise UserError(f"the run without kills ended with exit code {process.exitcode}: {last_line(log)}")
    number = 0
    while tally.kills < options.kills:
        number, done = number + 1, False
        folder = work / f"killed-{number}"
        while not done:
            before = drafts(folder)
            options_of_run = [] if (folder / "config.toml").exists() else RUN  # --resume reads that config.toml
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
    """Run the tool; returns its tally."""
    options = parse(Options, args)
    if options.kills < 1:
        raise UserError(f"--kills {options.kills} must be above 0")
    with tempfile.TemporaryDirectory(prefix="mpp-kill-", ignore_cleanup_errors=True) as work:
        tally = torture(options, Path(work))
    print("\n".join([*tally.differences, str(tally)]))
    return tally


if __name__ == "__main__":
    run_command(lambda: sys.exit(bool(main().differences)))
