"""What a run tells while it trains: the progress bar, metrics, evaluations, pictures and speeds."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torchvision.utils import make_grid
from tqdm.auto import tqdm

from mpp.config.commands import Trained
from mpp.config.options import PretrainEval
from mpp.data.bands import displayed
from mpp.data.loader import Batch
from mpp.data.streams import Positions
from mpp.run.folder import Records
from mpp.run.machine import TRAINING, dtype_of, wait_at_most
from mpp.run.memory import explained_out_of_memory
from mpp.run.stops import STOP
from mpp.training.clock import Clock, cuda_mark
from mpp.training.flops import peak_flops
from mpp.training.job import Job
from mpp.training.learner import Learner

_NO_SHARES = {"eval/loss", "eval/effective_rank"}  # other metrics of an evaluation are shares, told in percent


class Progress:
    """The telling side of a training, from its first step to its last."""

    def __init__(
        self,
        job: Job,
        learner: Learner,
        config: Trained,
        accelerator: Accelerator,
        output: Path,
        first: int,
        headline: str,
        flops: int,
    ) -> None:
        self.job, self.learner, self.config, self.accelerator = job, learner, config, accelerator
        self.records = Records(output, accelerator, config)
        self.records.open(first, headline)
        self.first = self.step = first
        self.metrics: dict[str, float] = {}  # of the last evaluation
        best = peak_flops(accelerator.device, dtype_of(accelerator)) * accelerator.num_processes
        self.clock = Clock(flops / best, cuda_mark if accelerator.device.type == "cuda" else None)
        self.bar = tqdm(
            total=config.train.steps,
            initial=first,
            unit="step",
            disable=not accelerator.is_main_process,
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 10,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        self.records.close()

    def advance(self, step: int) -> None:
        """Count a step that is done."""
        if step == self.first + 1:  # it may have compiled the model, and read a stream up to its position
            wait_at_most(TRAINING)
        self.step = step
        self.clock.count(self.config.train.batch_size)
        self.bar.update()

    def show(self, batch: Batch) -> None:
        """Some images of the first batch as the model is given them, to TensorBoard and other trackers."""
        count = getattr(self.config.eval, "pictures", PretrainEval.pictures)
        if self.accelerator.is_main_process and count:
            with self.clock.paused():
                images, _ = self.job.look({name: values[:count].cpu() for name, values in batch.items()})
                shown = torch.from_numpy(images[:, displayed(images.shape[1])])
                self.records.sheet("first_batch", make_grid(shown, nrow=8, padding=4, pad_value=255), self.step)

    def measure(self, parts: list[dict[str, Tensor]], norm: Tensor, skipped: bool) -> dict[str, float]:
        """Metrics of the last step, and speeds since the last call. Waits for the device."""
        values = {"optim/lr": self.learner.lr} | self.clock.read()
        if skipped:
            return values
        means = {f"train/{name}": value for name, value in mean_over_group(self.accelerator, parts).items()}
        speed = f"{values['speed/images_per_second']:.0f} images/s"
        self.bar.set_postfix_str(f"loss {means['train/loss']:.3f}, {speed}", refresh=False)
        return means | {"optim/grad_norm": float(norm)} | values

    def evaluate(self) -> dict[str, float]:
        """Metrics on held-out images, also as a line on the terminal, and pictures; nothing if a stop cuts it."""
        with STOP.cutting(self.accelerator):
            return self._evaluate()
        return {}

    def _evaluate(self) -> dict[str, float]:
        doing, device = f"evaluating after step {self.step}", self.accelerator.device
        way_out = f"lower --eval.batch-size (now {self.config.eval.batch_size})"
        with self.clock.paused(), explained_out_of_memory(lambda: doing, way_out, device):
            model = self.learner.evaluated().eval()
            with torch.no_grad():
                self.metrics = {f"eval/{name}": value for name, value in self.job.evaluate(model).items()}
                if self.accelerator.is_main_process:
                    self.records.pictures(self.step, self.job.pictures(model))
            self.learner.model.train()
        if self.accelerator.is_main_process and self.step > self.first:
            self.bar.write(summary_line(self.step, self.config.train.steps, self.metrics), file=sys.stdout)
        return self.metrics

    def log(self, values: dict[str, float], positions: Positions) -> None:
        """A line of metrics.jsonl and TensorBoard, if there are values."""
        if values:
            self.records.log(self.step, {"epoch": self.job.data.epoch(self.step, positions)} | values)

    def add(self, values: dict[str, float], positions: Positions) -> None:
        """What an evaluation found that a stop had cut: into the line of its step."""
        self.records.add(self.step, {"epoch": self.job.data.epoch(self.step, positions)} | values)

    def warn(self, text: str) -> None:
        """Print a warning above the bar, on the main process."""
        if self.accelerator.is_main_process:
            self.bar.write(f"warning: {text}", file=sys.stderr)


def mean_over_group(accelerator: Accelerator, parts: list[dict[str, Tensor]]) -> dict[str, float]:
    """Means of a step's metrics over its micro-batches and all processes: one transfer for all of them."""
    names = list(parts[0])
    values = torch.stack([torch.stack([part[name].float() for name in names]) for part in parts]).mean(0)
    return dict(zip(names, accelerator.reduce(values, "mean").tolist(), strict=True))


def summary_line(step: int, steps: int, metrics: dict[str, float]) -> str:
    """An evaluation in one line for the terminal."""
    told = (f"{name} {value:.4g}" if name in _NO_SHARES else f"{name} {value:.1%}" for name, value in metrics.items())
    return f"step {step}/{steps}: " + ", ".join(told)
