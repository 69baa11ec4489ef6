"""The plots of a comparison."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, StrMethodFormatter

from mpp.comparison.power_law import PowerLaw
from mpp.comparison.statistics import FINE_TUNED, Finding, cell_values, difference, interval
from mpp.comparison.suite import Row

# told apart by the colour-blind: Okabe and Ito, https://jfly.uni-koeln.de/color
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = "osD^vPX"


def _style(number: int) -> dict[str, Any]:
    """How an arm looks in every plot, by its place among the arms."""
    return {"color": _COLOURS[number % len(_COLOURS)], "marker": _MARKERS[number % len(_MARKERS)], "markersize": 5}


def _axes(title: str, width: float = 6.4) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize="medium")
    axes.grid(alpha=0.3)
    return figure, axes


def paint_accuracy(findings: list[Finding], arms: list[str], counts: list[int], classes: int) -> Figure:
    """Held-out accuracy against the number of labels, and chance. The arms stand a little beside one another."""
    figure, axes = _axes("Fine-tuned")
    axes.axhline(100 / classes, color="grey", linestyle=":", label="chance")
    for k, arm in enumerate(arms):
        cells = [interval(cell_values(findings, arm, FINE_TUNED, labels)) for labels in counts]
        places = [labels * 1.03 ** (k - (len(arms) - 1) / 2) for labels in counts]
        axes.plot(places, [100 * mean for mean, _ in cells], label=arm, **_style(k))
        for place, (mean, half) in zip(places, cells, strict=True):
            if half is not None:
                axes.errorbar(place, 100 * mean, 100 * half, capsize=4, color=_style(k)["color"])
    axes.set(
        xscale="log", xlabel="labels", ylabel="held-out top-1, %", xticks=counts, xticklabels=[f"{n:,}" for n in counts]
    )
    axes.set_xlim(counts[0] / 1.5, counts[-1] * 1.5)
    axes.set_ylim(bottom=max(0, axes.get_ylim()[0]))
    axes.minorticks_off()
    axes.legend()
    return figure


def paint_gain(findings: list[Finding], arms: list[str], counts: list[int]) -> Figure:
    """Gain over scratch in percentage points: a group of bars for each number of labels."""
    others = [arm for arm in arms if arm != "scratch"]
    figure, axes = _axes("Gain over training from scratch")
    width = 0.8 / len(others)
    for k, arm in enumerate(others):
        colour = _style(arms.index(arm))["color"]
        for i, labels in enumerate(counts):
            gain, half = difference(findings, arm, "scratch", FINE_TUNED, labels)
            place = i + (k - (len(others) - 1) / 2) * width
            axes.bar(place, 100 * gain, width, label=None if i else arm, color=colour, alpha=0.8)
            if half is not None:
                axes.errorbar(place, 100 * gain, 100 * half, capsize=4, color="black")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(
        xlabel="labels",
        ylabel="points above scratch",
        xticks=range(len(counts)),
        xticklabels=[f"{n:,}" for n in counts],
    )
    axes.legend()
    return figure


def paint_curves(curves: dict[tuple[str, int, int], list[tuple[int, float]]], arms: list[str]) -> Figure:
    """Held-out accuracy during fine-tuning, mean over seeds; one panel for each number of labels."""
    counts = list(dict.fromkeys(labels for _, labels, _ in curves))
    figure = Figure(figsize=(3.6 * len(counts) + 1, 3.6), layout="constrained")
    for axes, labels in zip(figure.subplots(1, len(counts), squeeze=False, sharey=True)[0], counts, strict=True):
        for k, arm in enumerate(arms):
            runs = [dict(curve) for (name, count, _), curve in curves.items() if (name, count) == (arm, labels)]
            steps = sorted(set.intersection(*(set(run) for run in runs)))  # steps at which every seed was evaluated
            means = [100 * statistics.fmean(run[step] for run in runs) for step in steps]
            axes.plot(steps, means, label=arm, **_style(k))
        axes.set(title=f"{labels:,} labels", xlabel="step")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("held-out top-1, %")
    figure.axes[0].legend()
    return figure


def paint_quality(qualities: dict[str, list[list[tuple[float, float]]]], arms: list[str]) -> Figure:
    """Accuracy of frozen features against seconds of pretraining: the mean over pretraining seeds, and their range."""
    figure, axes = _axes("What the frozen features are worth, as pretraining goes on")
    for k, arm in enumerate(arms):
        if not (runs := [run for run in qualities[arm] if run]):
            continue
        points = list(zip(*runs, strict=False))  # the evaluations that all seeds have
        seconds = [statistics.fmean(second for second, _ in point) for point in points]
        axes.plot(seconds, [_mean(point) for point in points], label=arm, **_style(k))
        if len(runs) > 1:
            low, high = ([100 * f(value for _, value in point) for point in points] for f in (min, max))
            axes.fill_between(seconds, low, high, color=_style(k)["color"], alpha=0.15, linewidth=0)
    axes.set(xlabel="seconds of pretraining", ylabel="ridge regression on training images, top-1, %")
    axes.set_xlim(left=0)
    axes.legend()
    return figure


def paint_differences(findings: list[Finding], arms: list[str], protocol: str) -> Figure:
    """Difference of every arm to the first in points, a row for each."""
    labels = next(f.labels for f in findings if f.protocol == protocol)
    figure = Figure(figsize=(7.2, 1.2 + 0.3 * len(arms)), layout="constrained")
    axes = figure.subplots()
    for row, arm in enumerate(arms):
        gap, half = difference(findings, arm, arms[0], protocol, labels)
        axes.plot(100 * gap, row, "o", color=_COLOURS[1])
        if half is not None and row:
            axes.errorbar(100 * gap, row, xerr=100 * half, capsize=3, color=_COLOURS[1])
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(
        yticks=range(len(arms)), yticklabels=arms, xlabel=f"points of {protocol} beside {arms[0]}", ylim=(len(arms), -1)
    )
    axes.grid(alpha=0.3, axis="x")
    return figure


def paint_scaling(
    points: dict[str, list[tuple[float, list[float]]]],
    laws: dict[str, PowerLaw],
    front: list[tuple[float, float]],
    judge: str,
) -> Figure:
    """Accuracy against pretraining FLOPs on a log axis: a curve for each model with its power law and band, and the
    Pareto front."""
    figure, axes = _axes("What pretraining compute buys")
    for k, (curve, each) in enumerate(points.items()):
        style = _style(k)
        for compute, values in each:
            mean, half = interval(values)
            axes.errorbar(compute, 100 * mean, 100 * half if half else None, capsize=3, **style)
        if curve not in laws:
            axes.plot([], [], label=curve, **style)
            continue
        grid = np.geomspace(each[0][0], each[-1][0], 50)
        axes.plot(grid, 100 * laws[curve].accuracy(grid), color=style["color"], linewidth=1)
        axes.plot([], [], label=f"{curve}: error ~ compute$^{{{-laws[curve].exponent:.2f}}}$", **style)
        if (band := laws[curve].band(grid)) is not None:
            axes.fill_between(grid, 100 * band[0], 100 * band[1], color=style["color"], alpha=0.15, linewidth=0)
    axes.step(*zip(*((x, 100 * y) for x, y in front), strict=True), where="post", color="grey", ls="--", label="Pareto")
    axes.set(xscale="log", xlabel="pretraining FLOPs", ylabel=f"{judge}, top-1, %")
    axes.legend(fontsize="small")
    return figure


def paint_shares(points: list[tuple[float, list[float]]], judge: str) -> Figure:
    """Accuracy against the share of the pretraining images."""
    figure, axes = _axes("What more images buy")
    cells = [interval(values) for _, values in points]
    shares = [100 * share for share, _ in points]
    axes.plot(shares, [100 * mean for mean, _ in cells], **_style(1))
    for share, (mean, half) in zip(shares, cells, strict=True):
        if half is not None:
            axes.errorbar(share, 100 * mean, 100 * half, capsize=3, color=_style(1)["color"])
    axes.set(
        xscale="log",
        xlabel="share of the pretraining images, %",
        ylabel=f"{judge}, top-1, %",
        xticks=shares,
        xticklabels=[f"{share:g}" for share in shares],
    )
    axes.minorticks_off()
    return figure


def paint_suite(rows: list[Row], title: str) -> Figure:
    """Accuracy of every backbone on every task, the means of groups and of all on grey, and chance; a row for each."""
    backbones = list(rows[0].cells)
    figure = Figure(figsize=(7.2, 1.3 + len(rows) * (0.2 + 0.12 * len(backbones))), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize="medium")
    axes.grid(alpha=0.3, axis="x")
    axes.plot([100 * row.chance for row in rows], range(len(rows)), "|", color="grey", markersize=11, label="chance")
    for place, row in enumerate(rows):
        if row.is_mean:
            axes.axhspan(place - 0.5, place + 0.5, color="grey", alpha=0.15, linewidth=0)
        for k, backbone in enumerate(backbones):
            mean, half = row.cells[backbone]
            beside = place + 0.6 * ((k + 0.5) / len(backbones) - 0.5)
            axes.errorbar(100 * mean, beside, xerr=100 * half, capsize=3, linestyle="none", **_style(k))
    for k, backbone in enumerate(backbones):
        axes.plot([], [], linestyle="none", label=backbone, **_style(k))
    axes.set(yticks=range(len(rows)), yticklabels=[row.name for row in rows], ylim=(len(rows) - 0.5, -0.5))
    axes.set(xlabel="top-1 on the test split, %", xlim=(0, None))
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    return figure


def paint_against_size(panels: dict[str, dict[str, list[tuple[int, float]]]], ylabel: str, note: str) -> Figure:
    """A quantity against the side of the input on log axes (figure 12 of the ViT paper): a panel for each mode, in it a
    curve for each backbone, of (pixels, value)."""
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    for axes, (mode, curves) in zip(
        figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels.items(), strict=True
    ):
        for k, (backbone, points) in enumerate(curves.items()):
            axes.plot(*zip(*points, strict=True), label=backbone, **_style(k))
        sides = sorted({side for points in curves.values() for side, _ in points})
        axes.set(xscale="log", yscale="log", title=mode, xlabel="side of the input, pixels")
        axes.set_xticks(sides, [str(side) for side in sides])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.axes[0].yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))  # of both: the axis is shared
    figure.axes[0].yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    figure.axes[0].set_ylabel(ylabel)
    figure.axes[0].legend(fontsize="small")
    figure.supxlabel(note, fontsize="x-small", color="#444444")
    return figure


def _mean(point: Sequence[tuple[float, float]]) -> float:
    return 100 * statistics.fmean(value for _, value in point)
