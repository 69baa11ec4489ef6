"""The plots of a comparison."""

from __future__ import annotations

import statistics

from matplotlib.figure import Figure

from mpp.comparison.statistics import FINE_TUNED, Finding, cell_values, difference, interval


def paint_accuracy(findings: list[Finding], arms: list[str], counts: list[int]) -> Figure:
    """Held-out accuracy against the number of labels."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for arm in arms:
        cells = [interval(cell_values(findings, arm, FINE_TUNED, labels)) for labels in counts]
        axes.errorbar(
            counts, [100 * m for m, _ in cells], [100 * (h or 0) for _, h in cells], label=arm, marker="o", capsize=4
        )
    axes.set(
        xscale="log", xlabel="labels", ylabel="held-out top-1, %", xticks=counts, xticklabels=[f"{n:,}" for n in counts]
    )
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def paint_gain(findings: list[Finding], arms: list[str], counts: list[int]) -> Figure:
    """Gain over scratch in percentage points: a group of bars for each number of labels."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    others = [arm for arm in arms if arm != "scratch"]
    width = 0.8 / len(others)
    for k, arm in enumerate(others):
        cells = [difference(findings, arm, "scratch", FINE_TUNED, labels) for labels in counts]
        places = [i + (k - (len(others) - 1) / 2) * width for i in range(len(counts))]
        heights, errors = [100 * m for m, _ in cells], [100 * (h or 0) for _, h in cells]
        axes.bar(places, heights, width, yerr=errors, label=arm, capsize=4, color=f"C{k + 1}")
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
            axes.plot(steps, means, label=arm, marker=".", color=f"C{k}")
        axes.set(title=f"{labels:,} labels", xlabel="step")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("held-out top-1, %")
    figure.axes[0].legend()
    return figure
