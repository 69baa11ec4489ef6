"""The table of a suite of tasks: accuracy by task, the mean of each group and of all, backbone beside backbone."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields

from mpp.comparison.statistics import interval, points
from mpp.errors import escaped
from mpp.evaluation.intervals import interval_of
from mpp.files import csv_cell


@dataclass(frozen=True)
class Score:
    """One fine-tuning: its accuracy `top1`, in 0..1, on so many test images."""

    task: str
    group: str
    backbone: str
    seed: int
    top1: float
    images: int
    classes: int
    labels: int
    steps: int
    lr: float
    seconds: float


@dataclass(frozen=True)
class Row:
    """A task, a group or all tasks: mean and half of the 95 % interval of each backbone, and what chance is."""

    name: str
    group: str
    cells: dict[str, tuple[float, float]]
    chance: float
    is_mean: bool


def rows_of(scores: Sequence[Score]) -> list[Row]:
    """The tasks of a group, their mean, and so on; then the mean of all tasks, in which each counts alike (VTAB).

    Raises ValueError unless every backbone has every task, with the same seeds.
    """
    backbones, tasks = _distinct(s.backbone for s in scores), _distinct(s.task for s in scores)
    met = sorted((s.backbone, s.task, s.seed) for s in scores)
    seeds = _distinct(s.seed for s in scores)
    if met != sorted((b, t, s) for b in backbones for t in tasks for s in seeds):
        raise ValueError("every backbone needs every task, with the same seeds")
    groups = _distinct(s.group for s in scores)
    rows = []
    for group in groups:
        own = _distinct(s.task for s in scores if s.group == group)
        rows += [_row(task, group, [task], scores, backbones, is_mean=False) for task in own]
        rows.append(_row(f"mean of {group}", group, own, scores, backbones))
    return [*rows, _row("mean of all", "", tasks, scores, backbones)]


def mean_over(scores: Iterable[Score], tasks: Sequence[str]) -> tuple[float, float]:
    """Mean accuracy of one backbone over some tasks, and half of its 95 % interval: Student's t over seeds, each of
    which gives one mean. With one seed it is Wilson's, of the test images: tasks are independent, so variances add."""
    mine = [score for score in scores if score.task in tasks]
    seeds = _distinct(score.seed for score in mine)
    mean, half = interval([statistics.fmean(s.top1 for s in mine if s.seed == seed) for seed in seeds])
    if half is None:
        bounds = [interval_of(s.top1, s.images) for s in mine]
        half = sum(((high - low) / 2) ** 2 for low, high in bounds) ** 0.5 / len(bounds)
    return mean, half


def gains(scores: Sequence[Score]) -> dict[str, tuple[float, float | None]]:
    """How far each backbone is above the first in the mean of all tasks, paired by seed: mean, and half of the 95 %
    interval; None with one seed."""
    first, *others = _distinct(s.backbone for s in scores)
    seeds = _distinct(s.seed for s in scores)

    def means(backbone: str) -> list[float]:
        return [statistics.fmean(s.top1 for s in scores if (s.backbone, s.seed) == (backbone, seed)) for seed in seeds]

    base = means(first)
    return {other: interval([a - b for a, b in zip(means(other), base, strict=True)]) for other in others}


def _row(
    name: str, group: str, tasks: list[str], scores: Sequence[Score], backbones: list[str], is_mean: bool = True
) -> Row:
    cells = {b: mean_over([s for s in scores if s.backbone == b], tasks) for b in backbones}
    classes = {s.task: s.classes for s in scores}
    return Row(name, group, cells, statistics.fmean(1 / classes[task] for task in tasks), is_mean)


def as_markdown(title: str, scores: Sequence[Score], how: str) -> str:
    """The table, what its intervals are, and the differences to the first backbone. `how` says how it was made."""
    rows, backbones = rows_of(scores), _distinct(s.backbone for s in scores)
    seeds = _distinct(s.seed for s in scores)
    lines = [f"# {escaped(title)}", "", how, ""]
    lines.append(f"| top-1, % | {' | '.join(map(escaped, backbones))} | chance | test images |")
    lines.append("|---|" + "---|" * (len(backbones) + 2))
    images = {s.task: f"{s.images:,}" for s in scores}
    for row in rows:
        bold = "**" if row.is_mean else ""
        cells = [f"{bold}{points(*row.cells[b])}{bold}" for b in backbones]
        name, of = f"{bold}{escaped(row.name)}{bold}", "" if row.is_mean else images[row.name]
        lines.append(f"| {name} | {' | '.join(cells)} | {points(row.chance)} | {of} |")
    over = (
        f"over the seeds {', '.join(map(str, seeds))} (each draws other labels, and has an order and a head of its own)"
        if len(seeds) > 1
        else "of the test images (Wilson; one seed says nothing of what other labels would give)"
    )
    lines += ["", f"± is half of the 95 % interval {over}. Each task counts alike in a mean."]
    alone = "" if len(seeds) > 1 else " (one seed: no interval)"
    for other, (gain, half) in gains(scores).items():
        names = f"{escaped(other)} minus {escaped(backbones[0])}"
        lines += ["", f"{names}, mean of all: {points(gain, half)} points{alone}."]
    return "\n".join(lines) + "\n"


def as_csv(scores: Sequence[Score]) -> str:
    """One line for each fine-tuning."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Score)], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in asdict(score).items()} for score in scores)
    return text.getvalue()


def _distinct(values: Iterable) -> list:
    return list(dict.fromkeys(values))
