"""Disturb runs many times and check that they lose nothing: `python tools/kill.py --kills 100`.

--mode kill: the tool sends SIGKILL to all processes of a small pretraining, at random moments and while it writes a
checkpoint, and resumes it until it is done. It then compares metrics.jsonl and the last weights, bit for bit, with
those of a run that was never killed. --mode two: a second run starts in the folder of the first, at the same time or
later; one of them has to be refused and the other to be as if it was alone. --mode signals: a comparison gets stop
signals at random moments; it has to end soon, with exit code 0, and to go on to the same results. --mode data: a run
is killed and its images are changed before it is resumed; it has to be refused, and to go on once they are put back.

Exit code 1 if anything differs, or if a kill leaves a damaged checkpoint under a name that --resume would choose.
"""

from __future__ import annotations

import os
import random
import shutil
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
from typing import Literal

from tqdm import tqdm

from mpp.config.command_line import parse
from mpp.console import command
from mpp.errors import UserError
from mpp.run.command import run_command
from mpp.run.folder import read_metrics
from mpp.training import checkpoints

# Every run is a fork of a process that has already imported everything: it starts in 0.1 s instead of 5 s.
_SERVER = get_context("forkserver")
_SERVER.set_forkserver_preload(["mpp.comparison.compare", "torch.utils.tensorboard", "tyro"])

RUN = [
    *("--model.img-size", "16", "--model.embed-dim", "32", "--model.depth", "2", "--model.num-heads", "2"),
    *("--model.dropout", "0.1", "--data.fraction", "0.001", "--augment.crop", "resized"),
    *("--train.steps", "40", "--train.batch-size", "8", "--train.checkpoint-every", "2", "--optim.warmup-steps", "5"),
    *("--eval.every", "7", "--eval.images", "20", "--eval.pictures", "1"),
]

COMPARISON = [
    *("--labels", "16", "--seeds", "0", "--probe-labels", "80", "--probe.eval-images", "60", "--probe.shots", "1"),
    *("--finetune.train.steps", "20", "--finetune.eval.every", "10", "--finetune.eval.images", "60"),
    *("--finetune.optim.lr-grid", "0.01", "0.001", "--pretrain.model.img-size", "16", "--pretrain.model.depth", "2"),
    *("--pretrain.model.embed-dim", "32", "--pretrain.model.num-heads", "2", "--pretrain.train.steps", "20"),
    *("--pretrain.train.batch-size", "8", "--pretrain.eval.images", "20", "--pretrain.eval.every", "10"),
]
PATIENCE = 60  # seconds in which a command has to end once it was told to stop


@dataclass
class Options:
    """Disturb small runs at random moments and compare them with runs that nobody disturbed."""

    kills: int = 20
    """Number of kills, second runs, signals or changes. When a run is done before the last, another run starts."""
    mode: Literal["kill", "two", "signals", "data"] = "kill"
    """SIGKILL; two runs in one folder; stop signals to a comparison; changed images before a run is resumed."""
    seed: int = 0
    """Seed of the random moments."""


@dataclass
class Tally:
    """Counts of what was done, and the differences found."""

    kills: int = 0
    in_a_checkpoint: int = 0  # kills that left a half-written checkpoint
    resumes: int = 0
    lines: int = 0
    refused: int = 0
    stages: set[str] = field(default_factory=set)  # the pieces of a comparison that signals stopped
    differences: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        if self.stages:
            return (
                f"signals {self.kills} in {len(self.stages)} stages, lines compared {self.lines}, "
                f"differences {len(self.differences)}"
            )
        if self.refused:
            return f"refused {self.refused}, lines compared {self.lines}, differences {len(self.differences)}"
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
    name: str = "pretrain",
) -> ForkServerProcess:
    """Start a command, or one of its ranks, in a new process with its own process group. Appends its output to `log`.
    The new process calls `prepare` first, which may inject a fault."""
    process = _SERVER.Process(target=_run, args=(args, log, rank, world_size, port, prepare, name))
    process.start()
    return process


def _run(
    args: list[str], log: Path, rank: int, world_size: int, port: int, prepare: Callable[[], object] | None, name: str
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
    run_command(lambda: command(name)(args))


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


def undisturbed(args: list[str], name: str, work: Path) -> tuple[Path, float]:
    """The folder of a run that nobody disturbs, and how many seconds it takes."""
    seconds, log, folder = 0.0, work / "output.txt", work
    for folder in (work / "first", work / "undisturbed"):  # not timed: the first start waits for the imports
        started = time.monotonic()
        process = begin([*args, "--output", str(folder)], log, name=name)
        process.join()
        seconds = time.monotonic() - started
        if process.exitcode:
            raise UserError(f"the undisturbed run ended with exit code {process.exitcode}: {last_line(log)}")
    return folder, seconds


def torture(options: Options, work: Path) -> Tally:
    """Kill runs `options.kills` times, resume them and compare the results; all folders stay in `work`."""
    rng, tally, log = random.Random(options.seed), Tally(), work / "output.txt"
    reference, seconds = undisturbed(RUN, "pretrain", work)
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


def run_twice(options: Options, work: Path) -> Tally:
    """Start a second run in the folder of a first, at once or later: one has to be refused, the other to be whole."""
    rng, tally = random.Random(options.seed), Tally()
    reference, seconds = undisturbed(RUN, "pretrain", work)
    for number in range(options.kills):
        folder, pair = work / f"two-{number}", []
        logs = [work / f"two-{number}-{name}.txt" for name in ("a", "b")]
        for log in logs:
            pair.append(begin([*RUN, "--output", str(folder), *rng.choice([[], ["--resume"]])], log))
            time.sleep(rng.choice([0, rng.uniform(0, seconds)]))
        for process in pair:
            process.join()
        ends, said = [process.exitcode for process in pair], [log.read_text(errors="replace") for log in logs]
        tally.refused += sum("is in use by another run: process" in text for text in said)
        late = "already holds a run" in said[1] or (ends == [0, 0] and "resuming" in said[1])  # the first was done
        if not late and (sorted(map(str, ends)) != ["0", "2"] or sum("is in use" in text for text in said) != 1):
            tally.differences.append(f"{folder}: exit codes {ends}: {[last_line(log) for log in logs]}")
        compare(folder, reference, tally)
    return tally


def stop_often(options: Options, work: Path) -> Tally:
    """Send stop signals to a comparison at random moments and let it go on until it is done."""
    rng, tally = random.Random(options.seed), Tally()
    reference, seconds = undisturbed(COMPARISON, "compare", work)
    theirs = (reference / "results.csv").read_text()
    number = 0
    while tally.kills < options.kills:
        folder, number, done = work / f"stopped-{number}", number + 1, False
        while not done:
            log = work / f"stopped-{number}-{tally.kills}.txt"
            process = begin([*COMPARISON, "--output", str(folder)], log, name="compare")
            process.join(rng.uniform(0.2, seconds / 3) if tally.kills < options.kills else None)
            if process.exitcode is None:
                assert process.pid is not None
                os.kill(process.pid, rng.choice([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]))
                tally.kills += 1
                process.join(PATIENCE)
            said = log.read_text(errors="replace")
            done = "Report: " in said
            tally.stages.add(next((line for line in reversed(said.splitlines()) if line.startswith("[")), "the start"))
            signalled = process.exitcode == -signal.SIGTERM and "stopping" not in said  # before the command began
            if (process.exitcode and not signalled) or "Traceback" in said or list(folder.rglob("run.lock")):
                tally.differences.append(f"{folder}: exit code {process.exitcode}: {last_line(log)}")
                kill(process)
                done = True
        tally.lines += len(theirs.splitlines())
        if not (folder / "results.csv").exists() or (folder / "results.csv").read_text() != theirs:
            tally.differences.append(f"{folder}: another results.csv")
    return tally


def change_images(options: Options, work: Path) -> Tally:
    """Kill a run, change its images, resume it: it has to be refused, and to go on once they are put back."""
    from mpp.data.images import load_images  # heavy

    rng, tally, images = random.Random(options.seed), Tally(), work / "images"
    images.mkdir()
    for number, image in enumerate(load_images("shapes", size=(16, 16)).read(range(60))):
        image.save(images / f"{number:02d}.png")  # type: ignore[union-attr]
    args = [*RUN, "--data.fraction", "1", "--data.path", str(images)]
    reference, seconds = undisturbed(args, "pretrain", work)
    for number in range(options.kills):
        folder, log = work / f"changed-{number}", work / f"changed-{number}.txt"
        process = begin([*args, "--output", str(folder)], log)
        while process.exitcode is None and not list(folder.glob("checkpoints/step_????????")):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, seconds / 4))
        kill(process)
        kept = shutil.copytree(images, work / f"kept-{number}")
        victim = images / f"{rng.randrange(60):02d}.png"
        change = rng.choice(["removed", "added", "replaced", "copied"])
        if change == "removed":
            victim.unlink()
        elif change == "added":
            shutil.copy(victim, images / "new.png")
        elif change == "replaced":  # by bytes of the same number and the same time
            before = victim.stat()
            victim.write_bytes(bytes(reversed(victim.read_bytes())))
            os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns))
        process = begin(["--output", str(folder), "--resume"], log)
        process.join()
        if change != "copied":
            tally.refused += 1
            if process.exitcode != 2 or (victim.name not in last_line(log) and "new.png" not in last_line(log)):
                tally.differences.append(f"{folder}: {change}: exit code {process.exitcode}: {last_line(log)}")
        shutil.rmtree(images)
        shutil.copytree(kept, images, copy_function=shutil.copyfile)  # with new times
        process = begin(["--output", str(folder), "--resume"], log)
        process.join()
        if process.exitcode:
            tally.differences.append(f"{folder}: put back: exit code {process.exitcode}: {last_line(log)}")
        compare(folder, reference, tally)
    return tally


MODES = {"kill": torture, "two": run_twice, "signals": stop_often, "data": change_images}


def main(args: list[str] | None = None) -> Tally:
    """Run the tool; returns its tally."""
    options = parse(Options, args)
    if options.kills < 1:
        raise UserError(f"--kills {options.kills} must be above 0")
    with tempfile.TemporaryDirectory(prefix="mpp-kill-", ignore_cleanup_errors=True) as work:
        tally = MODES[options.mode](options, Path(work))
    print("\n".join([*tally.differences, str(tally)]))
    return tally


if __name__ == "__main__":
    run_command(lambda: sys.exit(bool(main().differences)))
