"""The command `scaling`: accuracy of frozen features against pretraining compute, and against the share of images."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from accelerate import Accelerator
from matplotlib.figure import Figure

from mpp.comparison.ablate import JUDGE, as_compare, changed, protocols_of, value_cells
from mpp.comparison.arms import trained_here
from mpp.comparison.budget import cost_of
from mpp.comparison.compare import Work, finished, prepared, read_alike, with_label
from mpp.comparison.findings import probe_findings
from mpp.comparison.plots import paint_scaling, paint_shares
from mpp.comparison.power_law import PowerLaw, pareto_front, power_law
from mpp.comparison.report import Block, Table, as_markdown, escaped, results_csv
from mpp.comparison.statistics import cell_values, interval
from mpp.config.command_line import options_of
from mpp.config.commands import Compare, Pretrain, Scaling, Supervised
from mpp.config.options import MeasuredData
from mpp.data.images import bands_of
from mpp.errors import UserError
from mpp.files import write_whole
from mpp.run.folder import named_folder

HELD_OUT = 0.2  # of the labelled training split, to choose regularisers by
Trainings = dict[str, Pretrain | Supervised]


def run_scaling(config: Scaling, accelerator: Accelerator) -> Path | None:
    """Do what is missing, then write tables and plots; returns their folder, or None after --dry-run."""
    output = named_folder(config.output, "scaling")
    compare = read_alike(with_label(as_compare(config)))
    for part in config.parts:
        {"compute": study_compute, "data": study_data}[part](config, compare, output, accelerator)
    return None if config.dry_run else output


def study_compute(config: Scaling, compare: Compare, output: Path, accelerator: Accelerator) -> None:
    """Accuracy against FLOPs: every model, pretrained for every length."""
    curves = curves_of(config, the_arm(config, compare))
    trained = {name: options for curve in curves.values() for name, options in curve.items()}
    work = prepared(compare, trained, output / "compute", accelerator)
    finished(work, config, output, accelerator, lambda: write_compute(output, config, work, curves))


def curves_of(config: Scaling, arm: Pretrain | Supervised) -> dict[str, Trainings]:
    """The pretrainings of each curve, from the shortest to the longest."""
    found: dict[str, Trainings] = {}
    for entry in config.curves:
        curve, *words = entry.split() or [""]
        if not curve.replace("-", "_").isidentifier() or curve in found:
            raise UserError(
                f"--curves {entry!r} must be a name of its own, then OPTION=VALUE, as in wide model.embed_dim=256"
            )
        changes = named_changes("--curves", entry, words)
        found[curve] = {
            f"{curve}-{steps}": changed(arm, changes | {"train.steps": str(steps)}, "--curves", entry)
            for steps in sorted(config.steps)
        }
    return found


def study_data(config: Scaling, compare: Compare, output: Path, accelerator: Accelerator) -> None:
    """Accuracy against the share of the images: regularisers are chosen with one seed, then measured with all."""
    arm, place = the_arm(config, compare), output / "data"
    tried = {f"{share:g}": regularised(config, arm, share) for share in sorted(config.shares)}
    every = {name: options for one in tried.values() for name, options in one.items()}
    held_out = options_of(MeasuredData, compare.data, hold_out=HELD_OUT)
    choosing = options_of(Compare, compare, data=held_out, pretrain_seeds=config.pretrain_seeds[:1])
    work = prepared(choosing, every, place, accelerator, downstream=place / "choosing")
    if not finished(work, config, output, accelerator, lambda: ""):
        return
    findings = [finding for finding in probe_findings(work.probes, work.pretrain_seed) if finding.protocol == JUDGE]
    worth = {finding.arm: finding.value for finding in findings}
    chosen = {share: max(one, key=lambda name: worth[name]) for share, one in tried.items()}
    measured = prepared(compare, {name: every[name] for name in chosen.values()}, place, accelerator)
    finished(measured, config, output, accelerator, lambda: write_data(output, config, measured, chosen))


def regularised(config: Scaling, arm: Pretrain | Supervised, share: float) -> Trainings:
    """The pretrainings on a share of the images, one for each combination of regularisers."""
    default = ["optim.weight_decay=0.03,0.3", "model.dropout=0,0.1"]
    if isinstance(arm, Supervised):
        default.append("train.label_smoothing=0,0.1")
    axes = {}
    for entry in config.regularisers or default:
        [(option, texts)] = named_changes("--regularisers", entry, [entry]).items()
        axes[option] = texts.split(",")
    found = {}
    for values in product(*axes.values()):
        changes = dict(zip(axes, values, strict=True))
        name = " ".join(f"{option.rpartition('.')[2]}={value}" for option, value in changes.items())
        options = changes | {"data.fraction": f"{share:g}"}
        found[f"{share:g} {name}"] = changed(arm, options, "--regularisers", name)
    return found


def the_arm(config: Scaling, compare: Compare) -> Pretrain | Supervised:
    """The options of the pretraining that --arm names."""
    if not (found := trained_here(compare, curves=False)):
        raise UserError(f"--arm {config.arm} is pretrained here: name mpp, visible, supervised, or NAME=PRESET")
    return next(iter(found.values()))


def named_changes(option: str, entry: str, words: Sequence[str]) -> dict[str, str]:
    """Dotted options and their values from OPTION=VALUE words."""
    pairs = [word.partition("=") for word in words]
    if not all(name and value for name, _, value in pairs):
        raise UserError(f"{option} {entry!r}: {' '.join(words)} must be OPTION=VALUE, as in model.depth=2")
    return {name.removeprefix("--").replace("-", "_"): value for name, _, value in pairs}


def write_compute(output: Path, config: Scaling, work: Work, curves: dict[str, Trainings]) -> str:
    """Write scaling.md, scaling.png and compute.csv; returns the text for the terminal."""
    classes, channels = len(work.images.label_names or []), bands_of(work.images).channels or 3
    findings = list(probe_findings(work.probes, work.pretrain_seed))
    labels = next(finding.labels for finding in findings if finding.protocol == JUDGE)
    costs = {arm.name: cost_of(arm.name, arm.inits, work.config, classes, channels) for arm in work.arms}
    flops = {name: cost.pretraining_flops or 0 for name, cost in costs.items()}
    points = {
        curve: [(flops[name], cell_values(findings, name, JUDGE, labels)) for name in trained]
        for curve, trained in curves.items()
    }
    laws = {curve: power_law(each) for curve, each in points.items() if len({compute for compute, _ in each}) > 1}
    means = {name: interval(cell_values(findings, name, JUDGE, labels))[0] for name in flops}
    front = pareto_front({name: (flops[name], means[name]) for name in flops})
    names = [name for trained in curves.values() for name in trained]
    protocols = protocols_of(findings)
    header = ["", "steps", "seconds", "TFLOPs", *(name for name, _ in protocols), "Pareto front"]
    rows = [
        [
            name,
            f"{work.trained(arm).train.steps:,}",
            f"{costs[name].pretraining_seconds or 0:,.0f}",
            f"{flops[name] / 1e12:,.3g}",
            *value_cells(findings, name, protocols),
            "yes" if name in front else "",
        ]
        for name, arm in zip(names, work.arms, strict=True)
    ]
    write_whole(output / "compute.csv", results_csv(findings))
    figure = paint_scaling(points, laws, [(flops[name], front[name]) for name in front], f"{JUDGE}, {labels:,} labels")
    title = "Accuracy against pretraining compute"
    return _written(output, config, "scaling", title, (header, rows), figure, sentences(laws))


def sentences(laws: dict[str, PowerLaw]) -> list[str]:
    """What the power laws say, one sentence a curve."""
    found = []
    for curve, law in laws.items():
        spread = "one seed: no interval" if law.low is None else f"95 % interval {law.low:.3f} to {law.high:.3f}"
        found.append(f"{curve}: the error falls as compute to the power of {-law.exponent:.3f} ({spread}).")
    return found


def write_data(output: Path, config: Scaling, work: Work, chosen: dict[str, str]) -> str:
    """Write data.md, data.png and data.csv; returns the text for the terminal."""
    findings = list(probe_findings(work.probes, work.pretrain_seed))
    protocols = protocols_of(findings)
    labels = next(labels for name, labels in protocols if name == JUDGE)
    rows = [[share, name.partition(" ")[2], *value_cells(findings, name, protocols)] for share, name in chosen.items()]
    header = ["share of the images", "chosen on held-out labels", *(name for name, _ in protocols)]
    write_whole(output / "data.csv", results_csv(findings))
    points = [(float(share), cell_values(findings, name, JUDGE, labels)) for share, name in chosen.items()]
    figure = paint_shares(points, f"{JUDGE}, {labels:,} labels")
    return _written(output, config, "data", "Accuracy against the share of the images", (header, rows), figure, [])


def _written(
    output: Path, config: Scaling, name: str, title: str, table: Table, figure: Figure, says: list[str]
) -> str:
    """Write a part's page and plot; returns the text for the terminal."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    write_whole(output / f"{name}.png", png.getvalue())
    seeds = ", ".join(map(str, config.pretrain_seeds))
    note = (
        f"Pretraining: {config.arm} on {config.pretrain.data.path}. Frozen features of the last block on "
        f"{config.data.path}, accuracy in %: means over pretraining seeds {seeds} ± half the 95 % confidence interval."
    )
    blocks: list[Block] = [
        ("h1", title),
        ("p", note),
        ("table", table),
        *(("p", sentence) for sentence in says),
        ("figure", (output / f"{name}.png", title)),
    ]
    write_whole(output / f"{name}.md", as_markdown(blocks, output, escaped).encode())
    lines = "\n".join(says)
    return f"\n{as_markdown([('table', table)], output)}\n{lines}\nTable: {output / f'{name}.md'}"
