"""The command `ablate`: change one option of a pretraining at a time, and measure its frozen features."""

from __future__ import annotations

import io
from itertools import product
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from mpp.comparison.arms import trained_here
from mpp.comparison.budget import cost_of
from mpp.comparison.compare import Work, finished, prepared, read_alike, with_label
from mpp.comparison.findings import probe_findings
from mpp.comparison.plots import paint_differences
from mpp.comparison.report import Cost, Table, as_markdown, escaped, results_csv
from mpp.comparison.statistics import Finding, cell_values, difference, interval, points
from mpp.config.bounds import check_bounds
from mpp.config.checks import check_pretraining, refuse_odd_shape, texts
from mpp.config.command_line import options_of, overlaid
from mpp.config.commands import Ablate, Compare, FineTuning, Pretrain, Scaling, Supervised
from mpp.config.options import LabelledTrain
from mpp.data.images import bands_of
from mpp.errors import UserError, renamed
from mpp.files import write_whole
from mpp.run.folder import named_folder

JUDGE = "logistic regression"  # on which differences are taken


def run_ablation(config: Ablate, accelerator: Accelerator) -> Path | None:
    """Do what is missing, then write the tables; returns their folder, or None after --dry-run."""
    output = named_folder(config.output, "ablate")
    compare = read_alike(with_label(as_compare(config)))
    work = prepared(compare, variants(config, compare), output, accelerator, config.img_sizes)
    return finished(work, config, output, accelerator, lambda: write_tables(output, config, work))


def as_compare(config: Ablate | Scaling) -> Compare:
    """The comparison of frozen features that an ablation, or a study of scaling, is."""
    tuning = FineTuning(train=LabelledTrain(precision=config.pretrain.train.precision))
    arms = (config.arm,) if isinstance(config, Scaling) else config.arms
    return options_of(Compare, config, arms=arms, labels=(), seeds=(0,), finetune=tuning)


def variants(config: Ablate, compare: Compare) -> dict[str, Pretrain | Supervised]:
    """The options of every pretraining: the arms', then those of the first with each change of --over."""
    arms = trained_here(compare, curves=False)
    first = config.arms[0].partition("=")[0]
    if first not in arms:
        raise UserError(f"--arms {config.arms[0]}: the first arm is pretrained here, so that --over can change it")
    found = dict(arms)
    for entry in config.over:
        words = [word.partition("=") for word in entry.split()]
        if not words or not all(name and values for name, _, values in words):
            raise UserError(f"--over {entry!r} must be OPTION=VALUE,VALUE,..., as in corrupt.ratio=0.25,0.75")
        options = [name.removeprefix("--").replace("-", "_") for name, _, _ in words]
        for values in product(*(values.split(",") for _, _, values in words)):
            changes = dict(zip(options, values, strict=True))
            name = " ".join(f"{option}={value}" for option, value in changes.items())
            found[name.replace("/", "_")] = changed(arms[first], changes, "--over", name)
    return found


def changed(options: Any, changes: dict[str, str], option: str, name: str) -> Any:
    """Options with other values, each given by its dotted name as text; `option` and `name` are for messages."""
    nested: dict[str, Any] = {}
    for changing, text in changes.items():
        *groups, last = changing.split(".")
        group = nested
        for part in groups:
            group = group.setdefault(part, {})
        group[last] = {"true": True, "false": False}.get(text, text)
    found = overlaid(options, nested, option, name)
    with renamed("--", f"{option} {name}: --", texts(found)):
        check_bounds(found)
        if isinstance(found, Pretrain):
            check_pretraining(found)
        elif isinstance(found, Supervised):
            refuse_odd_shape(found.model)
    return found


def write_tables(output: Path, config: Ablate, work: Work) -> str:
    """Write ablation.md, ablation.png and results.csv; returns the text for the terminal."""
    classes, channels = len(work.images.label_names or []), bands_of(work.images).channels or 3
    findings = list(probe_findings(work.probes, work.pretrain_seed))
    costs = [cost_of(arm.name, arm.inits, work.config, classes, channels) for arm in work.arms]
    arms = [cost.arm for cost in costs]
    write_whole(output / "results.csv", results_csv(findings))
    table = table_of(findings, costs, {arm.name: work.trained(arm) for arm in work.arms if arm.pretrainings})
    picture = output / "ablation.png"
    png = io.BytesIO()
    paint_differences(findings, arms, JUDGE).savefig(png, format="png", dpi=110)
    write_whole(picture, png.getvalue())
    seeds = ", ".join(map(str, config.pretrain_seeds))
    share = config.data.hold_out
    judged = (
        f"Frozen features of the last block on {config.data.path}, accuracy in %: fitted on training labels, measured "
        f"on {f'{share:g} of the training split, which is held out' if share else 'the evaluation split'}. Means over "
        f"pretraining seeds {seeds} ± half the 95 % confidence interval; differences, of {JUDGE}, are paired by seed."
    )
    blocks = [
        ("h1", "Which choices matter?"),
        ("p", judged),
        ("table", table),
        ("figure", (picture, f"Difference to {arms[0]} in points, with 95 % intervals")),
    ]
    write_whole(output / "ablation.md", as_markdown(blocks, output, escaped).encode())
    return f"\n{as_markdown([('table', table)], output)}\nTable: {output / 'ablation.md'}"


def table_of(findings: list[Finding], costs: list[Cost], trained: dict[str, Pretrain | Supervised]) -> Table:
    """A row for each pretraining: its length and cost, what its features are worth, and how far from the first."""
    protocols = protocols_of(findings)
    judge = next(found for found in protocols if found[0] == JUDGE)
    header = ["", "steps of images", "seconds", "TFLOPs", *(name for name, _ in protocols), "difference"]
    rows = []
    for cost in costs:
        train = trained[cost.arm].train if cost.arm in trained else None
        gap = difference(findings, cost.arm, costs[0].arm, *judge)
        rows.append(
            [
                cost.arm,
                f"{train.steps:,} of {train.batch_size}" if train else "-",
                "-" if cost.pretraining_seconds is None else f"{cost.pretraining_seconds:,.0f}",
                "-" if cost.pretraining_flops is None else f"{cost.pretraining_flops / 1e12:,.3g}",
                *value_cells(findings, cost.arm, protocols),
                "-" if cost is costs[0] else points(*gap),
            ]
        )
    return header, rows


def protocols_of(findings: list[Finding]) -> list[tuple[str, int]]:
    """What was measured, each with its number of labels, in order."""
    return list(dict.fromkeys((f.protocol, f.labels) for f in findings))


def value_cells(findings: list[Finding], arm: str, protocols: list[tuple[str, int]]) -> list[str]:
    """An arm's cells of a table: a mean with its interval for each protocol."""
    cells = []
    for protocol, labels in protocols:
        scale = 0.01 if protocol == "effective rank" else 1.0
        cells.append(points(*interval([scale * value for value in cell_values(findings, arm, protocol, labels)])))
    return cells
