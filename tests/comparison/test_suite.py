"""The table of a suite of tasks: means, their intervals, differences."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_rel

from mpp.comparison.plots import paint_suite
from mpp.comparison.suite import Score, as_csv, as_markdown, gains, mean_over, rows_of

TASKS = {"pets": ("natural", 37), "svhn": ("natural", 10), "count": ("structured", 8)}


def scores(seeds=(0, 1, 2), backbones=("scratch", "ours")):
    """Accuracies that differ by task, backbone and seed."""
    rng = np.random.default_rng(0)
    return [
        Score(task, group, backbone, seed, float(rng.uniform(0.2, 0.8)), 2000, classes, 1000, 300, 1e-3, 60.0)
        for task, (group, classes) in TASKS.items()
        for backbone in backbones
        for seed in seeds
    ]


def test_groups_follow_each_other_and_every_task_counts_alike_in_the_mean_of_all():
    found = scores()
    rows = {row.name: row for row in rows_of(found)}
    assert list(rows) == ["pets", "svhn", "mean of natural", "count", "mean of structured", "mean of all"]
    for backbone in ("scratch", "ours"):
        top1 = {task: np.mean([s.top1 for s in found if (s.task, s.backbone) == (task, backbone)]) for task in TASKS}
        assert rows["svhn"].cells[backbone][0] == pytest.approx(top1["svhn"])
        assert rows["mean of natural"].cells[backbone][0] == pytest.approx((top1["pets"] + top1["svhn"]) / 2)
        assert rows["mean of all"].cells[backbone][0] == pytest.approx(np.mean(list(top1.values())))
    assert rows["mean of natural"].chance == pytest.approx((1 / 37 + 1 / 10) / 2)


def test_intervals_are_students_over_the_means_of_seeds():
    mine = [score for score in scores() if score.backbone == "ours"]
    of_seed = [np.mean([s.top1 for s in mine if s.seed == seed]) for seed in range(3)]
    low, high = ttest_1samp(of_seed, 0).confidence_interval(0.95)
    mean, half = mean_over(mine, list(TASKS))
    assert (mean - half, mean + half) == pytest.approx((low, high))


def test_one_seed_has_the_interval_of_its_test_images():
    found = [score for score in scores(seeds=(0,)) if score.backbone == "ours"]
    _, half = mean_over(found, list(TASKS))
    normal = sum(1.96**2 * s.top1 * (1 - s.top1) / s.images for s in found) ** 0.5 / len(found)
    assert half == pytest.approx(normal, rel=0.01)  # Wilson's is close to the normal one for 2,000 images


def test_the_difference_to_the_first_backbone_is_paired_by_seed():
    found = scores()

    def of(backbone):
        return [np.mean([s.top1 for s in found if (s.backbone, s.seed) == (backbone, n)]) for n in range(3)]

    gain, half = gains(found)["ours"]
    low, high = ttest_rel(of("ours"), of("scratch")).confidence_interval(0.95)
    assert (gain - half, gain + half) == pytest.approx((low, high))
    assert gains(scores(seeds=(0,)))["ours"][1] is None


def test_the_table_says_what_its_intervals_are_and_the_lines_hold_all_numbers():
    found = scores()
    text = as_markdown("A suite", found, "Made so.")
    assert text.startswith("# A suite\n\nMade so.\n\n| top-1, % | scratch | ours | chance | test images |")
    assert "| **mean of all** | **" in text
    assert "over the seeds 0, 1, 2" in text
    assert "ours minus scratch, mean of all: " in text
    alone = as_markdown("A suite", scores(seeds=(0,)), "")
    assert "of the test images (Wilson" in alone
    assert "points (one seed: no interval)." in alone
    rows = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert [float(row["top1"]) for row in rows] == [score.top1 for score in found]
    with pytest.raises(ValueError, match="every backbone needs every task"):
        rows_of(found[:-1])


def test_the_plot_has_a_row_for_each_task_and_mean_and_a_point_for_each_backbone():
    figure = paint_suite(rows_of(scores()), "A suite")
    axes = figure.axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["pets", "svhn", "mean of natural", "count", "mean of structured", "mean of all"]
    assert len(axes.containers) == 12
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"chance", "scratch", "ours"}
