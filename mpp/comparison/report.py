"""The report of a comparison: report.html, report.md, results.csv."""

from __future__ import annotations

import base64
import csv
import dataclasses
import html
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpp.comparison.plots import paint_accuracy, paint_curves, paint_gain
from mpp.comparison.statistics import FINE_TUNED, Finding, cell_values, difference, interval, points, verdict
from mpp.config import Compare

PAPER = (
    "For comparison, the ViT paper (arXiv 2010.11929, section 4.6; ViT-B/16, ImageNet top-1 after fine-tuning): masked "
    "patch prediction 79.9 %, from scratch 77.9 %, supervised pretraining on JFT-300M about 84 %."
)


Block = tuple[str, Any]


@dataclass(frozen=True)
class Cost:
    """What an arm took; None where it is not known."""

    arm: str
    pretraining_images: int | None
    pretraining_seconds: float | None
    pretraining_flops: float | None
    finetuning_images: int
    finetuning_flops: float


@dataclass(frozen=True)
class Comparison:
    """All that a report tells of."""

    config: Compare
    classes: int
    arms: list[str]
    findings: list[Finding]
    costs: list[Cost]
    curves: dict[tuple[str, int, int], list[tuple[int, float]]]  # held-out accuracy by step, of (arm, labels, seed)
    details: dict[str, tuple[Path, dict[str, float]]]  # a fine-tuned run of each arm, and its accuracy of each class
    layers: dict[str, str]  # the blocks whose features were judged
    trained_here: list[str]  # arms whose pretraining is part of the comparison


def write_report(output: Path, found: Comparison) -> str:
    """Write report.md, report.html, results.csv and plots/; returns what the terminal shows."""
    (output / "plots").mkdir(parents=True, exist_ok=True)
    config, arms, findings = found.config, found.arms, found.findings
    counts = sorted({f.labels for f in findings if f.protocol == FINE_TUNED})
    verdicts = [verdict(findings, labels, found.classes) for labels in counts]
    plots = {
        "accuracy.png": paint_accuracy(findings, arms, counts),
        "gain.png": paint_gain(findings, arms, counts),
        "curves.png": paint_curves(found.curves, arms),
    }
    for name, figure in plots.items():
        figure.savefig(output / "plots" / name, dpi=110)
    with (output / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in dataclasses.fields(Finding)])
        writer.writerows(dataclasses.astuple(finding) for finding in findings)

    seeds = ", ".join(map(str, config.seeds))
    task = (
        f"{config.data.path}{f', {config.data.label_column}' if config.data.label_column else ''} "
        f"({found.classes} classes)"
    )
    tuned = table_of(findings, arms, [(FINE_TUNED, labels) for labels in counts])
    frozen = table_of(
        findings, arms, list(dict.fromkeys((f.protocol, f.labels) for f in findings if f.protocol != FINE_TUNED))
    )
    blocks: list[Block] = [
        ("h1", "What did pretraining buy?"),
        *(("p", sentence) for sentence in verdicts),
        ("p", PAPER),
        ("h2", "Fine-tuned"),
        ("p", f"Held-out top-1 in % on {task}: mean over seeds {seeds} ± half the 95 % confidence interval."),
        ("table", tuned),
        ("figure", (output / "plots" / "accuracy.png", "Accuracy against labels, with 95 % confidence intervals")),
        ("figure", (output / "plots" / "gain.png", "Gain over scratch, paired by seed")),
        ("figure", (output / "plots" / "curves.png", "Learning curves: mean over seeds of held-out accuracy")),
        ("h2", "Frozen features"),
        ("p", frozen_note(found)),
        ("table", frozen),
        ("h2", "What it cost"),
        ("table", cost_table(found.costs)),
        ("h2", "What is equal, and what is not"),
        ("p", fairness(found)),
        ("h2", f"Class by class, with {counts[-1]:,} labels, seed {config.seeds[0]}"),
        ("table", class_table(found.details)),
    ]
    for arm, (folder, _) in found.details.items():
        if picture := max((folder / "samples").glob("confusion*.png"), default=None):
            blocks.append(("figure", (picture, f"Confusion of {arm}")))
    (output / "report.md").write_text(as_markdown(blocks, output), encoding="utf-8")
    (output / "report.html").write_text(as_html(blocks), encoding="utf-8")
    shown: list[Block] = [("table", tuned), ("table", frozen), *(("p", sentence) for sentence in verdicts)]
    return f"\n{as_markdown(shown, output)}\nReport: {output / 'report.html'}"


Table = tuple[list[str], list[list[str]]]


def table_of(findings: list[Finding], arms: list[str], rows: list[tuple[str, int]]) -> Table:
    """Arms in columns, and what MPP is above the others."""
    others = [arm for arm in arms if arm != "MPP"]
    header = ["", *arms, *(f"MPP - {arm}" for arm in others)]
    body = []
    for protocol, labels in rows:
        scale = 0.01 if protocol == "effective rank" else 1.0  # a number, not a share
        cells = [interval([scale * v for v in cell_values(findings, arm, protocol, labels)]) for arm in arms]
        gaps = [difference(findings, "MPP", arm, protocol, labels) for arm in others]
        shown = [points(*cell) for cell in cells]
        shown += [points(scale * gap, None if half is None else scale * half) for gap, half in gaps]
        body.append([f"{protocol}, {labels:,} labels", *shown])
    return header, body


def cost_table(costs: list[Cost]) -> Table:
    """Images, seconds and floating-point operations."""
    header = ["", "pretraining: images", "seconds", "TFLOPs", "each fine-tuning: images", "TFLOPs"]
    rows = []
    for cost in costs:
        known = cost.pretraining_images is not None
        rows.append(
            [
                cost.arm,
                f"{cost.pretraining_images:,}" if known else "not known",
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
    """How frozen features were judged."""
    layers = "; ".join(f"{arm} {numbers}" for arm, numbers in found.layers.items())
    return (
        f"The backbone as it came; of scratch, random weights. Features ({found.config.finetune.model.pool}) are those "
        f"after block: {layers}. Penalties of regressions on all labels are chosen on a fifth of them; with few labels "
        f"the penalty is fixed."
    )


def fairness(found: Comparison) -> str:
    """What the arms share."""
    config = found.config
    pretrain, tune = config.pretrain, config.finetune
    grid = (
        f"peak learning rate chosen from {', '.join(map(str, tune.optim.lr_grid))} on a fifth of the labels, arm by arm"
        if tune.optim.lr_grid
        else f"the same learning rate {tune.optim.lr:g} for all, tuned for none"
    )
    here = ""
    if found.trained_here:
        here = (
            f"Pretrained here, each for {pretrain.train.steps:,} steps of {pretrain.train.batch_size} images of "
            f"{pretrain.data.path}, with the same model, augmentation and optimiser ({pretrain.optim.name}, lr "
            f"{pretrain.optim.lr:g}): {', '.join(found.trained_here)}. Supervised pretraining sees labels"
            + (f" ({pretrain.data.label_column})" if pretrain.data.label_column else "")
            + ", masked patch prediction none. "
        )
    if len(found.trained_here) < len(found.arms) - 1:
        here += "A backbone that was given has the budget of its own run, above. "
    return (
        f"{here}Each fine-tuning takes {tune.train.steps:,} steps of {tune.train.batch_size} with {tune.optim.name}, "
        f"{grid}; {tune.model.pool} pooling; the same labels, order and augmentation for all arms of a seed. Scratch "
        f"has no pretraining, so its total budget is smaller. There is one pretraining of each kind, so intervals are "
        f"over fine-tunings alone (and the weights of scratch). Accuracies are those after the last step; nothing was "
        f"chosen by them."
    )


def as_markdown(blocks: list[Block], folder: Path) -> str:
    """Blocks as Markdown, pictures by their path from `folder`."""
    lines = []
    for kind, content in blocks:
        if kind == "table":
            header, rows = content
            lines += [" | ".join(["", *header, ""]).strip(), "|" + "---|" * len(header)]
            lines += [" | ".join(["", *row, ""]).strip() for row in rows]
        elif kind == "figure":
            path, caption = content
            lines.append(f"![{caption}]({path.relative_to(folder).as_posix()})")
        else:
            lines.append({"h1": "# ", "h2": "## "}.get(kind, "") + content)
        lines.append("")
    return "\n".join(lines)


def as_html(blocks: list[Block]) -> str:
    """Blocks as one HTML file that needs no other."""
    parts = []
    for kind, content in blocks:
        if kind == "table":
            header, rows = content
            head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
            body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
            parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
        elif kind == "figure":
            path, caption = content
            data = base64.b64encode(path.read_bytes()).decode()
            text = html.escape(caption)
            parts.append(
                f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'
            )
        else:
            parts.append(f"<{kind}>{html.escape(content)}</{kind}>")
    return _PAGE.replace("BODY", "\n".join(parts))


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>What did pretraining buy?</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0; } img { max-width: 100%; } figcaption { color: #666; font-size: .9rem; }
</style></head><body>
BODY
</body></html>
"""
