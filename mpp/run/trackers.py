"""The trackers that follow a run beside its own files, through Accelerate: TensorBoard, and others by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from einops import rearrange
from torch import Tensor
from torch.utils.tensorboard.summary import custom_scalars, hparams

from mpp.config.bounds import Options
from mpp.config.command_line import flattened
from mpp.files import as_json, write_whole

PROJECT = "masked-patch-prediction"  # where the others put their runs
_IDS = "trackers.json"  # in a run's folder: what the others call the run, so that a resumed one goes on there
_CHARTS = {  # one chart for what belongs together
    "accuracy": ["eval/bin_accuracy", "eval/baseline_neighbours", "eval/baseline_majority"],
    "top-1": ["eval/top1", "train/top1"],
    "loss": ["train/loss", "eval/loss"],
}


class Trackers:
    """The open trackers of a run, on the main process."""

    def __init__(self, folder: Path, accelerator: Accelerator, names: tuple[str, ...]) -> None:
        self.folder, self.accelerator, self.names = folder, accelerator, names

    def open(self, step: int, config: Options, headline: str) -> None:
        """Start after `step` steps: TensorBoard hides what an interrupted run logged beyond them, and the others go on
        with the run that they had."""
        options = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in flattened(config).items()
        }
        made: list[GeneralTracker] = []
        self.accelerator.project_configuration.logging_dir = str(self.folder)
        for name in self.names:
            self.accelerator.trackers.clear()
            self.accelerator.log_with = [name]
            project = name if name == "tensorboard" else PROJECT  # TensorBoard's is its folder
            self.accelerator.init_trackers(project, init_kwargs={name: self._options(name, step)})
            made += self.accelerator.trackers
        self.accelerator.trackers[:] = made
        for tracker in made:
            if tracker.name == "tensorboard":
                self._describe(options, headline)
            elif not (step and tracker.name == "mlflow"):  # which takes options once
                tracker.store_init_configuration(options)
        self._keep_ids()

    def log(self, values: dict[str, float], step: int) -> None:
        """Values of a step, to all."""
        self.accelerator.log(values, step=step)

    def picture(self, name: str, picture: Tensor, step: int) -> None:
        """A picture, uint8 (3, H, W), to all that take pictures."""
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.tracker.add_image(name, picture, step)
            elif tracker.name in ("wandb", "swanlab"):
                tracker.log_images({name: [rearrange(picture, "c h w -> h w c").numpy()]}, step=step)

    def close(self) -> None:
        """Have everything logged on the disk, or sent."""
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.trackers.clear()

    def _describe(self, options: dict[str, Any], headline: str) -> None:
        """What TensorBoard shows beside the curves: hyper-parameters, the options as text, and charts of several."""
        writer = self.accelerator.get_tracker("tensorboard", unwrap=True)
        for summary in hparams(options, {headline: 0.0}):
            writer.file_writer.add_summary(summary)
        text = (self.folder / "config.toml").read_text(encoding="utf-8")
        writer.add_text("options", "\n".join(f"    {line}" for line in text.splitlines()))
        writer.file_writer.add_summary(custom_scalars({"a run": {n: ["Multiline", t] for n, t in _CHARTS.items()}}))

    def _options(self, name: str, step: int) -> dict[str, Any]:
        """What a tracker is started with."""
        if name == "tensorboard":
            return {"purge_step": step + 1} if step else {}
        known = self._known() if step else {}
        title = self.folder.resolve().name
        if name == "mlflow":
            return {"run_name": title} | ({"run_id": known[name]} if name in known else {})
        if name == "trackio":
            return {"name": title, "resume": "allow" if step else "never"}
        if name == "swanlab":
            own = {"experiment_name": title, "logdir": str(self.folder / name)}
        else:
            own = {"name": title, "dir": str(self.folder)}
        return own | ({"id": known[name], "resume": "allow"} if name in known else {})

    def _known(self) -> dict[str, str]:
        file = self.folder / _IDS
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    def _keep_ids(self) -> None:
        found = {}
        for tracker in self.accelerator.trackers:
            if tracker.name == "mlflow":
                found[tracker.name] = tracker.tracker.info.run_id
            elif tracker.name in ("wandb", "swanlab"):
                found[tracker.name] = tracker.tracker.id
        if found:
            write_whole(self.folder / _IDS, as_json(found).encode())
