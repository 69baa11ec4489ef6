"""The report of a comparison: report.html, report.md, results.csv."""

from __future__ import annotations

import base64
import csv
import dataclasses
import html
import io
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mpp.comparison.plots import paint_accuracy, paint_curves, paint_gain, paint_quality
from mpp.comparison.statistics import (
    FINE_TUNED,
    Finding,
    cell_values,
    difference,
    interval,
    points,
    subject_of,
    verdict,
)
from mpp.config.commands import Compare, Pretrain, Supervised
from mpp.errors import escaped, printable
from mpp.files import csv_cell, write_whole

PAPER = (
    "For comparison, the ViT paper (arXiv 2010.11929, section 4.6; ViT-B/16, ImageNet top-1 after fine-tuning): masked "
    "patch prediction 79.9 %, from scratch 77.9 %, supervised pretraining on JFT-300M about 84 %."
)


RANK = "effective rank"
Block = tuple[str, Any]


@dataclass(frozen=True)
class Cost:
    """Cost of an arm; None for an unknown value."""

    arm: str
    pretraining_images: int | None
    pretraining_seconds: float | None
    pretraining_flops: float | None
    finetuning_images: int
    finetuning_flops: float


@dataclass(frozen=True)
class Comparison:
    """Everything that a report shows."""

    config: Compare
    classes: int
    arms: list[str]
    findings: list[Finding]
    costs: list[Cost]
    curves: dict[tuple[str, int, int], list[tuple[int, float]]]  # (arm, labels, seed) -> (step, held-out accuracy)
    details: dict[str, tuple[Path, dict[str, float]]]  # arm -> a fine-tuned run, accuracy by class
    qualities: dict[str, list[list[tuple[float, float]]]]  # arm -> of each pretraining: (seconds, accuracy of a probe)
    layers: dict[str, str]  # arm -> the blocks whose features the probes use
    trained_here: dict[str, Pretrain | Supervised]  # arm -> options, of the arms pretrained as part of the comparison


def write_report(output: Path, found: Comparison) -> str:
    """Write report.md, report.html, results.csv and plots/; returns the text for the terminal."""
    (output / "plots").mkdir(parents=True, exist_ok=True)
    config, arms, findings = found.config, found.arms, found.findings
    counts = sorted({f.labels for f in findings if f.protocol == FINE_TUNED})
    verdicts = [verdict(findings, labels, found.classes, arms) for labels in counts]
    plots = {
        "accuracy.png": (
            paint_accuracy(findings, arms, counts, found.classes),
            "Accuracy by number of labels, with 95 % intervals",
        ),
        "curves.png": (paint_curves(found.curves, arms), "Learning curves: mean over seeds of held-out accuracy"),
    }
    if "scratch" in arms and len(arms) > 1:
        plots["gain.png"] = paint_gain(findings, arms, counts), "Gain over scratch, paired by seed"
    if any(map(any, found.qualities.values())):
        plots["quality.png"] = paint_quality(found.qualities, arms), quality_note(found)
    for name, (figure, _) in plots.items():
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=110)
        write_whole(output / "plots" / name, png.getvalue())
    write_whole(output / "results.csv", results_csv(findings))
    task = (
        f"{config.data.path}{f', {config.data.label_column}' if config.data.label_column else ''} "
        f"({found.classes} classes)"
    )
    tuned = table_of(findings, arms, [(FINE_TUNED, labels) for labels in counts])
    frozen_rows = list(dict.fromkeys((f.protocol, f.labels) for f in findings if f.protocol != FINE_TUNED))
    frozen = table_of(findings, arms, [row for row in frozen_rows if row[0] != RANK])
    ranks = table_of(findings, arms, [row for row in frozen_rows if row[0] == RANK])
    blocks: list[Block] = [
        ("h1", "What is the gain from pretraining?"),
        *(("p", sentence) for sentence in verdicts),
        ("p", PAPER),
        ("h2", "Fine-tuned"),
        ("p", f"Held-out top-1 in % on {task}: {what_the_intervals_are(config)}"),
        ("table", tuned),
        *(("figure", (output / "plots" / name, caption)) for name, (_, caption) in plots.items()),
        ("h2", "Frozen features"),
        ("p", frozen_note(found)),
        ("table", frozen),
        ("p", "How many directions the features use (RankMe, arXiv 2210.02885), from 1 to their width; no accuracy:"),
        ("table", ranks),
        ("h2", "Cost"),
        ("table", cost_table(found.costs)),
        ("h2", "What is equal, and what is not"),
        ("p", fairness(found)),
        ("h2", f"Accuracy by class, with {counts[-1]:,} labels, seed {config.seeds[0]}"),
        ("table", class_table(found.details)),
    ]
    for arm, (folder, _) in found.details.items():
        if picture := max((folder / "samples").glob("confusion*.png"), default=None):
            blocks.append(("figure", (picture, f"Confusion matrix of {arm}")))
    blocks += [("h2", "Made by"), ("p", made_by(output))]
    write_whole(output / "report.md", as_markdown(blocks, output, escaped).encode())
    write_whole(output / "report.html", as_html(blocks).encode())
    shown: list[Block] = [("table", tuned), ("table", frozen), *(("p", sentence) for sentence in verdicts)]
    return f"\n{as_markdown(shown, output)}\nReport: {output / 'report.html'}"


def made_by(output: Path) -> str:
    """When, by which command, with which versions and on which hardware a report was made."""
    return f"{made_with()} mpp compare --config {output / 'config.toml'} --output {output}"


def made_with() -> str:
    """When, with which versions and on which hardware something is made."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("masked-patch-pretraining", "torch", "accelerate"))
    gpus = ", ".join(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
    model = Path("/proc/cpuinfo")
    lines = model.read_text(encoding="utf-8").splitlines() if model.exists() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return (
        f"{datetime.now():%Y-%m-%d %H:%M}; {packages}, Python {platform.python_version()}; "
        f"{gpus or f'{os.cpu_count()} cores of {cpu}'}."
    )


def results_csv(findings: list[Finding]) -> bytes:
    """All numbers as a CSV file."""
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow([field.name for field in dataclasses.fields(Finding)])
    writer.writerows(map(csv_cell, dataclasses.astuple(finding)) for finding in findings)
    return table.getvalue().encode()


Table = tuple[list[str], list[list[str]]]


def table_of(findings: list[Finding], arms: list[str], rows: list[tuple[str, int]]) -> Table:
    """A column for each arm, then for the gain of the first pretrained one over each other; a row for each (protocol,
    labels)."""
    subject = subject_of(arms)
    others = [arm for arm in arms if arm != subject]
    header = ["", *arms, *(f"{subject} - {arm}" for arm in others)]
    body = []
    for protocol, labels in rows:
        scale = 0.01 if protocol == RANK else 1.0  # not a share: cancels the factor 100 of `points`
        cells = [interval([scale * v for v in cell_values(findings, arm, protocol, labels)]) for arm in arms]
        gaps = [difference(findings, subject, arm, protocol, labels) for arm in others]
        shown = [points(*cell) for cell in cells]
        shown += [points(scale * gap, None if half is None else scale * half) for gap, half in gaps]
        body.append([f"{protocol}, {labels:,} labels", *shown])
    return header, body


def cost_table(costs: list[Cost]) -> Table:
    """Images, seconds and floating-point operations of each arm."""
    header = ["", "pretraining: images", "seconds", "TFLOPs", "each fine-tuning: images", "TFLOPs"]
    rows = []
    for cost in costs:
        known = cost.pretraining_images is not None
        rows.append(
            [
                cost.arm,
                f"{cost.pretraining_images:,}" if known else "unknown",
                "-" if cost.pretraining_seconds is None else f"{cost.pretraining_seconds:,.0f}",
                "-" if cost.pretraining_flops is None else f"{cost.pretraining_flops / 1e12:,.3g}",
                f"{cost.finetuning_images:,}",
                f"{cost.finetuning_flops / 1e12:,.3g}",
            ]
        )
    return header, rows


def class_table(details: dict[str, tuple[Path, dict[str, float]]]) -> Table:
    """Accuracy of every class, in %."""
    names = list(dict.fromkeys(name for _, accuracies in details.values() for name in accuracies))
    rows = [[name, *(points(found[name]) if name in found else "-" for _, found in details.values())] for name in names]
    return ["class", *details], rows


def frozen_note(found: Comparison) -> str:
    """How frozen features are evaluated."""
    layers = "; ".join(f"{arm} {numbers}" for arm, numbers in found.layers.items())
    return (
        f"The backbones before fine-tuning; scratch has random weights. Features ({found.config.finetune.model.pool}) "
        f"are taken after block: {layers}. Regressions on all labels choose their penalty on a held-out fifth of them; "
        f"with few labels the penalty is fixed.{of_pixels(found.config)}"
    )


def of_pixels(config: Compare) -> str:
    """How pixels are measured, if they are."""
    judge = config.dense
    if judge.path is None:
        return ""
    figure = "mean IoU of its classes" if judge.task == "segmentation" else "share of pixels whose depth is within 1.25"
    return (
        f" The rows of {judge.task} are of {judge.path}: {figure}, from patch tokens after block {judge.layer}, by a "
        f"linear layer and by k-NN, one run for each pretraining seed; their labels are images with a mask."
    )


def what_the_intervals_are(config: Compare) -> str:
    """Over which seeds the means are, and what the intervals cover."""
    several = ", ".join(map(str, config.pretrain_seeds))
    if len(config.pretrain_seeds) < 2:
        return f"mean over seeds {', '.join(map(str, config.seeds))} ± half the 95 % confidence interval."
    tunings = len(config.seeds)
    each = "one downstream run" if tunings == 1 else f"the mean of {tunings} downstream runs"
    return (
        f"mean over pretraining seeds {several} ± half the 95 % confidence interval (Student's t over these seeds). Of "
        f"each seed it is {each} with labels and order of its own, so the interval covers both kinds of seed; that of "
        f"one given backbone, and of scratch, covers the downstream runs."
    )


def quality_note(found: Comparison) -> str:
    """What the curves of quality show."""
    return (
        f"Ridge regression on frozen features of a few training images of {found.config.data.path}, measured on others "
        f"of its training split while pretraining went on: mean over pretraining seeds, and their range. Seconds are "
        f"those of training steps, without evaluations"
    )


def fairness(found: Comparison) -> str:
    """What is equal for all arms and what is not."""
    config = found.config
    pretrain, tune = config.pretrain, config.finetune
    grid = (
        f"each arm's peak learning rate chosen from {', '.join(map(str, tune.optim.lr_grid))} on a fifth of the labels"
        if tune.optim.lr_grid
        else f"the same untuned learning rate {tune.optim.lr:g} for all arms"
    )
    here = ""
    if found.trained_here:
        trained = "; ".join(map(how_trained, found.trained_here, found.trained_here.values()))
        equal = {
            None: "",
            "images": "They see equally many images. ",
            "flops": "Their steps are chosen to take equal arithmetic. ",
            "seconds": "Their steps are chosen to take equal time, by the seconds of a step measured before. ",
        }
        labelled = f" ({pretrain.data.label_column})" if pretrain.data.label_column else ""
        here = f"Pretrained here on {pretrain.data.path}: {trained}. {equal[config.equal]}" + (
            f"Supervised pretraining sees labels{labelled}, the others do not. "
            if "supervised" in found.trained_here
            else ""
        )
    if len(found.trained_here) < len([arm for arm in found.arms if arm != "scratch"]):
        here += "A given backbone has the budget of its own run, see the cost table. "
    once = (
        "Each kind is pretrained once, so the intervals cover the variation between fine-tunings (and between the "
        "initial weights of scratch) only. "
        if len(config.pretrain_seeds) < 2
        else ""
    )
    return (
        f"{here}Each fine-tuning takes {tune.train.steps:,} steps of {tune.train.batch_size} with {tune.optim.name}, "
        f"{grid}; {tune.model.pool} pooling; with the same seed all arms have the same labels, order and augmentation. "
        f"Scratch has no pretraining, so its total budget is smaller. {once}Accuracies are measured after the last "
        f"step and are not used to choose anything."
    )


def how_trained(arm: str, options: Pretrain | Supervised) -> str:
    """The length and the optimiser of an arm's pretraining."""
    train, optim = options.train, options.optim
    target = f", target {options.data.target}" if isinstance(options, Pretrain) else ""
    start, how = "" if options.init == "scratch" else f" from {options.init}", f"{optim.name}, lr {optim.lr:g}{target}"
    return f"{arm}{start} for {train.steps:,} steps of {train.batch_size} images ({how})"


def as_markdown(blocks: list[Block], folder: Path, to: Callable[[str], str] = printable) -> str:
    """Blocks as Markdown for a terminal, or `to` a file: `escaped`. Picture paths are relative to `folder`."""
    lines = []
    for kind, content in blocks:
        if kind == "table":
            header, rows = [*map(to, content[0])], [[*map(to, row)] for row in content[1]]
            lines += [" | ".join(["", *header, ""]).strip(), "|" + "---|" * len(header)]
            lines += [" | ".join(["", *row, ""]).strip() for row in rows]
        elif kind == "figure":
            path, caption = content
            lines.append(f"![{to(caption)}]({path.relative_to(folder).as_posix()})")
        else:
            lines.append({"h1": "# ", "h2": "## "}.get(kind, "") + to(content))
        lines.append("")
    return "\n".join(lines)


def as_html(blocks: list[Block], title: str = "What is the gain from pretraining?") -> str:
    """Blocks as one HTML file with the pictures in it."""
    parts = []
    for kind, content in blocks:
        if kind == "table":
            header, rows = content
            head = "".join(f"<th>{html.escape(printable(cell))}</th>" for cell in header)
            body = "".join(
                "<tr>" + "".join(f"<td>{html.escape(printable(cell))}</td>" for cell in row) + "</tr>" for row in rows
            )
            parts.append(f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>")
        elif kind == "figure":
            path, caption = content
            data = base64.b64encode(path.read_bytes()).decode()
            text = html.escape(printable(caption))
            parts.append(
                f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'
            )
        else:
            parts.append(f"<{kind}>{html.escape(printable(content))}</{kind}>")
    return _PAGE.replace("TITLE", html.escape(title)).replace("BODY", "\n".join(parts))


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>TITLE</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0; } img { max-width: 100%; } figcaption { color: #666; font-size: .9rem; }
</style></head><body>
BODY
</body></html>
"""
