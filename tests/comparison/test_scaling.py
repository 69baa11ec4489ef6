"""The study of scaling, as a user runs it, and its power law."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from mpp.comparison.power_law import pareto_front, power_law
from mpp.errors import UserError
from recipes.scaling import main
from tests.comparison.test_ablate import TINY
from tests.helpers import reset_accelerate


def scaling(output: Path, *options: str) -> Path | None:
    """Run the command in this process."""
    reset_accelerate()
    return main([*TINY, "--probe.shots", "--output", str(output), *options])


def test_a_power_law_is_found_again_and_its_interval_covers_it():
    rng = np.random.default_rng(0)
    computes = [1e12, 3e12, 1e13, 3e13]
    exact = power_law([(c, [1 - 5 * c**-0.08]) for c in computes])
    assert exact.exponent == pytest.approx(0.08, abs=1e-9)
    assert exact.low is None
    assert exact.band(np.array(computes)) is None
    noisy = power_law([(c, (1 - 5 * c**-0.08 + rng.normal(0, 0.005, 5)).tolist()) for c in computes])
    assert noisy.low < 0.08 < noisy.high
    low, high = noisy.band(np.array([1e12, 1e13]))
    assert (low < high).all()


def test_the_pareto_front_has_what_nothing_cheaper_reaches():
    points = {"a": (1.0, 0.3), "b": (2.0, 0.25), "c": (3.0, 0.4), "d": (3.0, 0.35), "e": (9.0, 0.4)}
    assert pareto_front(points) == {"a": 0.3, "c": 0.4}


@pytest.fixture(scope="module")
def scaled(tmp_path_factory):
    """Both parts of a small study, in its folder."""
    folder = tmp_path_factory.mktemp("runs") / "scaled"
    curves = ("wide", "narrow model.embed_dim=16 model.num_heads=1")
    parts = ("--parts", "compute", "data", "--shares", "0.5", "1", "--regularisers", "model.dropout=0,0.1")
    scaling(folder, "--curves", *curves, "--steps", "2", "4", *parts)
    return folder


def test_accuracy_stands_beside_compute_for_each_model_and_length(scaled):
    text = (scaled / "scaling.md").read_text()
    for words in ("wide-2", "narrow-4", "TFLOPs", "Pareto front", "the error falls as compute to the power of -"):
        assert words in text
    assert (scaled / "scaling.png").stat().st_size > 10_000
    with (scaled / "compute.csv").open() as file:
        assert {row["arm"] for row in csv.DictReader(file)} == {"wide-2", "wide-4", "narrow-2", "narrow-4"}


def test_regularisers_are_chosen_at_each_share_on_held_out_labels(scaled):
    runs = {path.parent.name for path in scaled.glob("data/pretrain/*/result.json")}
    assert {"0.5 dropout=0", "0.5 dropout=0.1", "1 dropout=0", "1 dropout=0.1"} <= runs
    assert len(runs) == 6, "the second seed is trained with what was chosen alone"
    rows = [line.split("|")[1:3] for line in (scaled / "data.md").read_text().splitlines() if "dropout=" in line]
    assert [share.strip() for share, _ in rows] == ["0.5", "1"]
    with (scaled / "data.csv").open() as file:
        arms = {row["arm"] for row in csv.DictReader(file)}
    assert arms == {f"{share.strip()} {chosen.strip()}" for share, chosen in rows}


def test_wrong_curves_are_named(tmp_path):
    for curves, says in {
        ("wide model.depth",): r"--curves 'wide model.depth': model.depth must be OPTION=VALUE",
        ("a", "a model.depth=1"): r"--curves 'a model.depth=1' must be a name of its own",
        ("a model.depth=0",): r"--curves a model.depth=0: --model.depth 0 must be",
    }.items():
        with pytest.raises(UserError, match=says):
            scaling(tmp_path / "no", "--curves", *curves)
