"""Probes: equal to scikit-learn's, on the same features; the command, as a user runs it."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier

from mpp.config.options import LabelledData
from mpp.console import command
from mpp.data.sources.shapes import SPLITS
from mpp.data.splits import draw_labels, fifth_to_choose_by, open_labelled
from mpp.errors import UserError
from mpp.evaluation.probes import (
    Scaler,
    effective_rank,
    knn,
    logistic_regression,
    one_vs_rest,
    refuse_useless,
    ridge,
    top_k,
)
from mpp.run.folder import read_metrics
from recipes.linear_probe import main
from tests.helpers import SMALL, one_and_two_processes, pretrain, reset_accelerate


def features(count: int = 1500, dim: int = 20, classes: int = 5) -> tuple[torch.Tensor, ...]:
    """Features of overlapping classes, two thirds to fit and one third to test."""
    x, y = make_classification(
        count, dim, n_informative=8, n_classes=classes, n_clusters_per_class=2, class_sep=0.7, random_state=0
    )
    x, y, cut = torch.from_numpy(x).float(), torch.from_numpy(y).long(), count * 2 // 3
    return x[:cut], y[:cut], x[cut:], y[cut:]


@pytest.mark.parametrize("penalty", [1e-4, 1e-2, 1.0])
def test_logistic_regression_equals_scikit_learns(penalty):
    x, y, test_x, test_y = features()
    weights, biases = logistic_regression(x, y, 5, penalty)
    theirs = LogisticRegression(C=1 / (len(x) * penalty), max_iter=5000, tol=1e-8).fit(x.numpy(), y.numpy())
    ours = (test_x @ weights + biases).softmax(1).numpy()
    assert np.abs(ours - theirs.predict_proba(test_x.numpy())).max() < 1e-3
    assert top_k(test_x @ weights + biases, test_y) == pytest.approx(
        theirs.score(test_x.numpy(), test_y.numpy()), abs=1e-3
    )


@pytest.mark.parametrize(("count", "dim"), [(300, 20), (15, 40)])  # in the space of features, of samples
@pytest.mark.parametrize("penalty", [0.1, 1024.0])
def test_ridge_regression_equals_scikit_learns(count, dim, penalty):
    x, y, test_x, _ = features(count * 3 // 2, dim)
    targets = one_vs_rest(y, 5)
    weights, biases = ridge(x, targets, penalty)
    theirs = Ridge(alpha=penalty).fit(x.double().numpy(), targets.double().numpy())
    assert np.allclose(weights.numpy(), theirs.coef_.T, atol=1e-4)
    assert np.allclose((test_x @ weights + biases).numpy(), theirs.predict(test_x.double().numpy()), atol=1e-3)


def test_nearest_neighbours_equal_scikit_learns():
    x, y, test_x, _ = features()
    votes = knn(x, y, test_x, 5, k=20)
    theirs = KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    expected = theirs.fit(x.numpy(), y.numpy()).predict(test_x.numpy())
    assert (votes.argmax(1).numpy() == expected).mean() > 0.998


def test_the_effective_rank_counts_directions_of_equal_weight():
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(200, 30)).Q
    assert effective_rank(basis[:, :7] @ torch.linalg.qr(torch.randn(30, 30)).Q[:7]) == pytest.approx(7, rel=1e-3)
    assert effective_rank(torch.ones(50, 10)) == pytest.approx(1, rel=1e-3)


def test_a_constant_feature_is_not_scaled_up():
    """In single precision its mean is off by rounding, which a tiny deviation would blow up."""
    x = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
    x[:, 1], x[:, 2] = 0.1, 1e4 + 1e-3 * x[:, 0]
    scaler = Scaler.of(x)
    assert scaler.mean[1].item() == pytest.approx(0.1, abs=1e-8)
    assert scaler.std[1:].tolist() == [1, 1]
    assert scaler(x)[:, 1].abs().max() < 1e-6
    assert scaler(torch.tensor([[0.0, 0.1001, 1e4]]))[0, 1].abs() < 1e-3
    assert (scaler(x)[:, 0].mean().abs() < 1e-6, scaler(x)[:, 0].std(correction=0)) == (True, pytest.approx(1))


@pytest.mark.parametrize(
    ("features", "says"),
    [
        (torch.zeros(9, 4), "are all zero, so nothing can be learnt"),
        (torch.full((9, 4), 0.3), "are the same for every image, so nothing can be learnt"),
        (torch.tensor([[1.0, 2.0], [1.0, torch.nan]]), "are not finite"),
    ],
)
def test_features_that_say_nothing_are_refused(features, says):
    with pytest.raises(UserError, match=f"--init runs/x: its features {says}"):
        refuse_useless(features, "runs/x")
    refuse_useless(torch.eye(3), "runs/x")


def test_the_effective_rank_of_nothing_is_a_number():
    assert effective_rank(torch.zeros(9, 4)) == pytest.approx(1, abs=1e-4)


def test_labels_are_drawn_evenly_over_the_classes_and_by_the_seed():
    labels = np.repeat([0, 1, 2], [5, 100, 100])
    chosen = draw_labels(labels, 30, seed=0)
    assert len(set(chosen.tolist())) == 30
    assert np.bincount(labels[chosen]).tolist()[0] == 5
    assert sorted(np.bincount(labels[chosen]).tolist()[1:]) == [12, 13]
    assert np.bincount(labels[draw_labels(labels, 12, 0)]).tolist() == [4, 4, 4]
    assert np.array_equal(chosen, draw_labels(labels, 30, seed=0))
    assert not np.array_equal(chosen, draw_labels(labels, 30, seed=1))


def test_a_fifth_of_every_class_is_held_out():
    labels = np.repeat([0, 1, 2], [50, 100, 250])
    rest, held = fifth_to_choose_by(labels, seed=0)
    assert sorted([*rest, *held]) == list(range(400))
    assert np.bincount(labels[held]).tolist() == [10, 20, 50]
    rest, held = fifth_to_choose_by(np.repeat([0, 1, 2, 3], [90, 90, 5, 15]), seed=1)
    assert np.bincount(np.repeat([0, 1, 2, 3], [90, 90, 5, 15])[rest]).tolist() == [72, 72, 4, 12]


def test_of_every_class_something_is_left_to_fit_on():
    rest, held = fifth_to_choose_by(np.repeat([0, 1, 2], [1, 1, 9]), seed=0)
    assert np.unique(np.repeat([0, 1, 2], [1, 1, 9])[rest]).tolist() == [0, 1, 2]
    assert len(held) == 2
    rest, held = fifth_to_choose_by(np.arange(10), seed=0)
    assert (len(rest), len(held)) == (10, 0)


def test_one_label_a_class_leaves_nothing_to_choose_by(backbone, tmp_path):
    options = ["--init", str(backbone), *OPTIONS, "--data.labels", "8", "--probe.shots", "1"]
    reset_accelerate()
    result = main([*options, "--output", str(tmp_path / "last")])
    assert (result["logistic_penalty"], result["logistic_validation_top1"]) == (1e-3, None)
    reset_accelerate()
    with pytest.raises(UserError, match=r"--probe\.layer all chooses on held-out training labels"):
        main([*options, "--output", str(tmp_path / "all"), "--probe.layer", "all"])


def test_top_k_counts_labels_among_the_highest_scores():
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.8, 0.1, 0.3], [0.2, 0.3, 0.4]])
    labels = torch.tensor([1, 2, 0])
    assert [top_k(scores, labels, k) for k in (1, 2, 3, 9)] == pytest.approx([1 / 3, 2 / 3, 1, 1])


OPTIONS = ["--data.split", "validation", "--data.eval-split", "test", "--data.labels", "203", "--batch-size", "64"]
OPTIONS += ["--data.label-column", "colour", "--probe.shots", "1", "5", "--probe.draws", "2"]


def test_the_command_judges_a_backbone_and_writes_its_result(backbone, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(SPLITS, "test", 203)
    reset_accelerate()
    result = main(["--init", str(backbone), *OPTIONS, "--output", str(tmp_path / "run"), "--probe.layer", "all"])
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (written["labels"], written["classes"], written["eval_images"]) == (203, 8, 203)
    names = ["top1", "top5", "ridge_top1", "knn_top1", "few_shot_1_top1", "few_shot_5_top1"]
    assert all(0 <= written[f"eval/{name}"] <= 1 for name in names)
    assert written["eval/top1"] > 0.18  # colours can be told even by random weights; chance is 0.125
    assert result["layer"] in (1, 2)
    said = capsys.readouterr().out
    assert "logistic regression" in said
    assert re.search(r"^classes: .* \(8\)$", said, re.MULTILINE)


def test_two_processes_find_exactly_what_one_finds(backbone, tmp_path):
    options = ["--init", str(backbone), *OPTIONS, "--data.split", "test", "--data.eval-split", "validation"]
    options.append("--probe.attentive")
    one_and_two_processes(main, "recipes/linear_probe.py", tmp_path, lambda _: options)
    one, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two"))
    assert one["eval_images"] == 10_000
    assert one.pop("effective_rank") == pytest.approx(
        two.pop("effective_rank"), rel=1e-9
    )  # singular values, by threads
    assert {k: v for k, v in one.items() if k != "seconds"} == {k: v for k, v in two.items() if k != "seconds"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"labels": 3}, "--data.labels 3 must be from 8"),
        ({"labels": 10**6}, "--data.labels 1000000 must be from 8"),
        ({"eval_split": "night"}, "has no split 'night'"),
        ({"label_column": "size"}, "has no label column 'size'"),
    ],
)
def test_what_cannot_be_probed_is_said_in_one_line(options, says):
    with pytest.raises(UserError, match=says):
        open_labelled(LabelledData(**options), (16, 16), seed=0)


@pytest.mark.parametrize("init", ["./nowhere", "a/b/c"])
def test_a_backbone_that_does_not_exist_is_said_in_one_line(init):
    reset_accelerate()
    with pytest.raises(UserError, match=f"--init {init} does not exist"):
        main(["--init", init])


@pytest.mark.parametrize("how", ["without labels", "with labels"])
def test_features_are_judged_while_pretraining(tmp_path, capsys, how):
    probe = ["--eval.probe", "shapes", "--eval.probe-label-column", "colour"]
    if how == "without labels":
        pretrain(tmp_path / "run", *probe)
    else:
        reset_accelerate()
        command("supervised")([*SMALL, *probe, "--output", str(tmp_path / "run")])
    lines = read_metrics(tmp_path / "run")
    judged = [line for line in lines if "eval/probe_top1" in line]
    assert [line["step"] for line in judged] == [3, 6]
    for line in judged:
        assert line["eval/probe_top1"] > 0.2  # of 8 colours, even random weights tell some
        assert 0 < line["eval/knn_top1"] < 1
        assert 1 <= line["eval/effective_rank"] <= 32
    assert "Frozen features on shapes: accuracy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--probe.shots", "0"], "--probe.shots \\(0,\\) must be above 0"),
        (["--batch-size", "0"], "--batch-size 0 must be above 0"),
        (["--probe.layer", "9"], "--probe.layer 9 is none of: last, all, 1 to 6"),
    ],
)
def test_wrong_options_of_the_probe_are_named(options, says):
    reset_accelerate()
    with pytest.raises(UserError, match=says):
        main(options)
