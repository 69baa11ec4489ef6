"""What a run writes for people and programs to read: config.toml, metrics.jsonl, TensorBoard, pictures, result.json."""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import make_grid

from mpp.config.bounds import Mark, Options, marked, option_name
from mpp.config.command_line import differences, flattened, write_toml
from mpp.config.commands import Run, Trained
from mpp.config.options import Seeded, Training
from mpp.errors import UserError
from mpp.files import as_json, clear_drafts, draft_of, is_special, write_whole
from mpp.run.command import quoted, spelled
from mpp.run.lock import NAME, locked_folder, refuse_if_held
from mpp.run.log import FILE, LOG
from mpp.run.machine import PREPARING, wait_at_most
from mpp.run.stops import Stopped
from mpp.run.trackers import Trackers

_PACKAGES = ("torch", "torchvision", "accelerate", "datasets", "numpy", "masked-patch-pretraining")


class Records:
    """The writing side of a run's folder. Only the main process writes; the others' calls do nothing."""

    def __init__(self, folder: Path, accelerator: Accelerator, config: Trained) -> None:
        self.folder, self.accelerator, self.config = folder, accelerator, config
        self.trackers = Trackers(folder, accelerator, config.log.trackers)
        self.metrics_file = folder / "metrics.jsonl"

    def open(self, step: int, headline: str) -> None:
        """Start writing after `step` steps: what an interrupted run wrote beyond them is taken back."""
        self.accelerator.wait_for_everyone()  # all have looked at what the folder holds
        if not self.accelerator.is_main_process:
            return
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_toml(self.config, self.folder / "config.toml")
            (self.folder / "result.json").unlink(missing_ok=True)  # of a run that goes on: not its last evaluation
            self._take_back(step)
            self.trackers.open(step, self.config, headline)

    def log(self, step: int, values: dict[str, float]) -> None:
        """One line of metrics.jsonl, and the same names in TensorBoard."""
        if not self.accelerator.is_main_process:
            return
        with writing(self.folder):
            with self.metrics_file.open("a", encoding="utf-8") as file:
                file.write(as_json({"step": step} | values) + "\n")
            self.trackers.log({name: value for name, value in values.items() if name != "epoch"}, step)

    def pictures(self, step: int, pictures: dict[str, Tensor]) -> None:
        """Pictures by name, uint8 (B, C, H, W), to samples/ as one PNG a name and to TensorBoard."""
        if not self.accelerator.is_main_process:
            return
        for name, images in pictures.items():
            grid = make_grid(images.cpu(), nrow=2, padding=4, pad_value=255)
            with writing(self.folder):
                save_picture(grid, self.folder / "samples" / f"{name}_{step:08d}.png")
                self.trackers.picture(f"samples/{name}", grid, step)

    def sheet(self, name: str, picture: Tensor, step: int) -> None:
        """A picture, uint8 (3, H, W), to TensorBoard alone."""
        with writing(self.folder):
            self.trackers.picture(name, picture, step)

    def add(self, step: int, values: dict[str, float]) -> None:
        """Values of `step` that belong into a line of metrics.jsonl which an interrupted run wrote without them."""
        if not self.accelerator.is_main_process:
            return
        with writing(self.folder):
            *lines, last = (read_metrics(self.folder) if self.metrics_file.exists() else []) or [{}]
            merged = [*lines, last | values] if last.get("step") == step else [*lines, last, {"step": step} | values]
            write_whole(self.metrics_file, "".join(as_json(line) + "\n" for line in filter(None, merged)).encode())
            self.trackers.log({name: value for name, value in values.items() if name != "epoch"}, step)

    def close(self) -> None:
        """Have everything logged on the disk."""
        with writing(self.folder):
            self.trackers.close()

    def _take_back(self, step: int) -> None:
        """Keep only the lines of metrics.jsonl up to `step`, whole ones."""
        if not self.metrics_file.exists():
            return
        kept = []
        for line in self.metrics_file.read_text(encoding="utf-8").splitlines(keepends=True):
            try:
                if line.endswith("\n") and json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError):
                continue
        write_whole(self.metrics_file, "".join(kept).encode())


RESUMED = "--resume goes on from the last checkpoint"  # once there is room on the disk again
AGAIN = "give the command again"  # of what is written at once, at the end


@contextmanager
def writing(folder: Path, then: str = RESUMED) -> Iterator[None]:
    """Turn what a full disk, or one that has gone, raises into one line that names the folder, and what goes on once
    there is room."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{folder} can no longer be written ({reason}); make room on the disk, and {then}") from error


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def save_picture(picture: Tensor, path: Path) -> None:
    """Write a picture, uint8 (3, H, W), as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    to_pil_image(picture).save(file, "PNG")
    write_whole(path, file.getvalue())


def show(run: str | Path) -> Image.Image:
    """The last picture of a run, which a notebook displays: input, what the model sees, predicted, true.

    Raises UserError if the run has none.
    """
    if not (found := sorted(Path(run).glob("samples/*.png"), key=lambda file: file.stem.rpartition("_")[2])):
        raise UserError(f"{run} has no pictures in samples/: name a run of mpp pretrain, with --eval.pictures above 0")
    with Image.open(found[-1]) as picture:
        return picture.copy()


def write_folder(folder: Path, save: Callable[[Path], object], then: str = RESUMED) -> None:
    """Have `save` write a folder; readers see the old one, the new one or for a moment none, never a part."""
    draft = draft_of(folder)
    with writing(folder, then):
        save(draft)
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)


def finish(folder: Path, config: Seeded, result: dict[str, Any]) -> dict[str, Any]:
    """Write a run's result.json: `result`, the seed and the versions of the packages. Returns what it holds."""
    packages = {name: version(name) for name in _PACKAGES}
    result = result | {"seed": config.seed, "packages": packages}
    with writing(folder):
        write_whole(folder / "result.json", as_json(result, indent=1).encode())
    return result


def why_unwritable(folder: Path) -> str | None:
    """Why no run can be written into a folder that may not be there yet, or None; tried out, and left as it was."""
    made: list[Path] = []
    try:
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
    except OSError as error:
        return error.strerror or str(error)
    finally:
        remove_if_empty(made)
    return None


def holds_a_run(folder: Path) -> bool:
    """Whether a run has written into a folder."""
    return any((folder / name).exists() for name in ("metrics.jsonl", "checkpoints", "lr_grid", "result.json"))


def refuse_to_overwrite(folder: Path) -> None:
    """Raise UserError if a folder already holds a run."""
    if holds_a_run(folder):
        raise UserError(f"--output {folder} already holds a run; --resume goes on with it, or give another folder")


def refuse_other_options(folder: Path, config: Run, *, remade: bool = False) -> None:
    """Raise UserError if a run was begun with other options than are asked for now, and the numbers depend on them.

    --resume-anyway insists. With `remade`, more steps are another run, too: one to be made again, not to go on with.
    """
    if isinstance(config, Training) and config.resume_anyway:
        return
    if not (folder / "config.toml").exists():
        if (folder / "checkpoints").exists():
            raise UserError(
                f"{folder} holds checkpoints but no config.toml to say of which options; --resume-anyway goes on with "
                f"those asked for now, or give another --output"
            )
        return
    found = differences(folder / "config.toml", config)
    if flattened(config)["data.range"] == "auto":  # of which the run keeps the numbers
        found.pop("data.range", None)
    found.pop("train.epochs", None)  # of which the run keeps the steps
    if flattened(config).get("augment.crop") == "auto":  # of which the run keeps what it found
        found.pop("augment.crop", None)
    if flattened(config).get("train.batch_size") == 0:  # for which the run chose one
        found.pop("train.batch_size", None)
    if flattened(config).get("optim.lr_grid"):  # from which the run chose its lr
        found.pop("optim.lr", None)
    allowed = marked(config, Mark.HARMLESS) | (set() if remade else {"train.steps"})
    named = [f"{option_name(name)} {then}, now {now}" for name, (then, now) in found.items() if name not in allowed]
    if named:
        way_out = (
            "give another --output, or remove that folder to have it made again"
            if remade
            else "leave them out to go on as it began, insist with --resume-anyway, or give another --output"
        )
        raise UserError(
            f"{folder} was made with other options than are asked for now ({', '.join(named[:5])}"
            f"{f' and {len(named) - 5} more' if len(named) > 5 else ''}); {way_out}"
        )


def named_folder(output: str | None, command: str) -> Path:
    """--output, or a new name, the same on all processes."""
    return Path(broadcast_object_list([output or f"runs/{command}-{datetime.now():%Y%m%d-%H%M%S}"])[0])


@contextmanager
def prepared_output(config: Run, command: str, resume: bool, accelerator: Accelerator) -> Iterator[Path]:
    """The run's folder, the same on all processes and for this run alone. Raises UserError if it cannot be written, is
    in use, or holds a run that is not to be resumed, or was begun with other options."""
    if config.output is None and resume:
        raise UserError("--resume goes on with the run in --output; name that folder")
    wait_at_most(PREPARING)
    folder = named_folder(config.output, command)
    with left_alone(folder, accelerator) if config.dry_run else claimed(folder, accelerator):
        if resume:
            refuse_other_options(folder, config)
        else:
            refuse_to_overwrite(folder)
        accelerator.wait_for_everyone()  # before the main process writes into it
        try:
            with nullcontext() if config.dry_run else LOG.into(folder):
                yield folder
        except Stopped as stop:
            if isinstance(config, Training) and not config.dry_run and holds_a_run(folder):
                stop.way_on = how_to_resume(command, stop.step, folder, config)
            raise


@contextmanager
def claimed(folder: Path, accelerator: Accelerator, option: str = "--output") -> Iterator[None]:
    """Keep other runs out of a folder, that of an `option`, meanwhile; what a killed one left half-written in it is
    removed. All processes call it, and the main one holds the lock."""
    reason = None
    with ExitStack() as stack:
        if accelerator.is_main_process:
            if why := why_unwritable(folder):
                reason = f"{option} {folder} cannot be written ({why}); name another folder"
            else:
                stack.callback(remove_if_empty, [path for path in (folder, *folder.parents) if not path.exists()])
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(locked_folder(folder, f"{option} {folder}"))
                    refuse_links(folder)
                    clear_drafts(folder)
                except UserError as error:
                    reason = str(error)
        if reason := broadcast_object_list([reason])[0]:
            raise UserError(reason)
        yield


@contextmanager
def left_alone(folder: Path, accelerator: Accelerator, option: str = "--output") -> Iterator[None]:
    """Raise UserError where `claimed` would, and leave the folder as it is, or not made: for --dry-run."""
    reason = None
    if accelerator.is_main_process:
        there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            reason = f"{option} {folder} cannot be written ({there} is no folder to write into); name another folder"
        try:
            for file in (place / NAME for place in (folder, *folder.resolve().parents)):
                if os.path.lexists(file):
                    refuse_if_held(file, f"{option} {folder}")
            refuse_links(folder)
        except UserError as error:
            reason = str(error)
    if reason := broadcast_object_list([reason])[0]:
        raise UserError(reason)
    yield


def remove_if_empty(folders: list[Path]) -> None:
    """Remove folders, the innermost first, that hold nothing."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


_FILES = (
    "config.toml",
    "data.json",
    FILE,
    "metrics.jsonl",
    "result.json",
    "report.md",
    "report.html",
    "results.csv",
)
_FOLDERS = ("checkpoints", "tensorboard", "samples", "backbone", "classifier", "lr_grid")
_OF_COMPARISONS = ("pretrain", "probe", "finetune", "plots")


def refuse_links(folder: Path) -> None:
    """Raise UserError if a name that a run writes is a link, a pipe or a device in its folder: it leads elsewhere."""
    for name in (*_FILES, *_FOLDERS, *_OF_COMPARISONS):
        for path in ((folder / name), *(folder / name).rglob("*")) if name not in _FILES else [folder / name]:
            if path.is_symlink() or is_special(path):
                raise UserError(
                    f"{path} is a link, a pipe or a device, which a run does not write through; remove it, or give "
                    f"another --output"
                )


_PATHS = {"path", "probe", "init", "labels_file"}  # options that may name files


def how_to_resume(name: str, step: int | None, output: Path, config: Options) -> str:
    """What a stopped run says last: the command that goes on with it, from any folder."""
    named = [value for option, value in flattened(config).items() if option.rpartition(".")[2] in _PATHS and value]
    relative = any(not os.path.isabs(value) and os.path.exists(value) for value in named)
    there = f"cd {quoted('.')} && " if relative else ""
    processes = PartialState().num_processes
    launched = f" (with the launch options it began with: {processes} processes)" if processes > 1 else ""
    return (
        f"stopped{'' if step is None else f' at step {step}'}; resume with: {there}{spelled(name)} "
        f"--config {quoted(output / 'config.toml')} --output {quoted(output)} --resume{launched}"
    )


def unreadable_line(unreadable: dict[str, str], total: int | None, path: str) -> str:
    """How many images a run left out, of how many, and the first of them."""
    where, why = next(iter(unreadable.items()))
    of = "" if total is None else f" of {total:,}"
    return f"{len(unreadable):,}{of} images in {path} could not be read and were left out, the first: {where} ({why})"
