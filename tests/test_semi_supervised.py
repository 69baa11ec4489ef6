"""Noisy Student and S4L in small, and what they are made of."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch

import mpp
from mpp.comparison.beside import beside
from mpp.data.few_labels import few_labels
from mpp.errors import UserError
from recipes import noisy_student, s4l
from tests.helpers import one_line, reset_accelerate

COLOURS = mpp.load_images("shapes", label_column="colour").label_names
SMALL = ["--labels", "16", "--unlabelled", "24", "--held-out", "12", "--size", "8", "--steps", "2", "--seeds", "0"]
SMALL += ["--model", "embed_dim=16", "depth=1", "num_heads=1"]


def test_a_student_is_taught_compared_and_not_trained_twice(tmp_path, capsys):
    reset_accelerate()
    words = [*SMALL, "--threshold", "0", "--student", "depth=2", "--randaugment", "2", "--output", str(tmp_path)]
    noisy_student.main([*words, "--dry-run"])
    assert "in all: as long as 3 of these for each of 1 seed" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    noisy_student.main(words)
    with (tmp_path / "results.csv").open() as file:
        top1 = {row["arm"]: float(row["top1"]) for row in csv.DictReader(file)}
    runs = {arm: tmp_path / "seed-0" / arm.replace(" ", "-") for arm in top1}
    assert list(top1) == ["teacher", "noise alone", "student-1"]
    results = {arm: json.loads((run / "result.json").read_text()) for arm, run in runs.items()}
    assert {arm: result["eval/top1"] for arm, result in results.items()} == top1
    assert results["teacher"]["labels"] == results["noise alone"]["labels"] == 16
    kept, _ = noisy_student.pseudo_labels(runs["teacher"].with_suffix(".csv"), COLOURS, 0)
    assert results["student-1"]["labels"] == 16 + len(kept) > 16
    assert "randaugment = 2" in (runs["student-1"] / "config.toml").read_text()
    assert "depth = 2" in (runs["student-1"] / "config.toml").read_text()
    assert "randaugment = 0" in (runs["teacher"] / "config.toml").read_text()
    assert f"{len(set(kept))} of 24 labels of teacher kept" in (tmp_path / "results.md").read_text()
    capsys.readouterr()
    noisy_student.main(words)
    assert "training from step" not in capsys.readouterr().out
    with pytest.raises(UserError) as error:
        noisy_student.main([*words, "--steps", "3"])
    assert "was begun with --steps 2, not 3" in one_line(error)


def test_the_surest_labels_are_kept_as_many_of_every_class(tmp_path):
    rows = [("a", 0.9), ("a", 0.8), ("a", 0.7), ("a", 0.95), ("b", 0.6), ("b", 0.2), ("c", 0.1)]
    lines = ["image,class,probability", *(f"{k},{name},{sure}" for k, (name, sure) in enumerate(rows))]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    kept, labels = noisy_student.pseudo_labels(tmp_path / "table.csv", ["a", "b", "c"], 0.5)
    assert kept.tolist() == [3, 0, 4, 4], "five sure ones of three classes: two each, the surest of a, copies of b"
    assert labels.tolist() == [0, 0, 1, 1]


def test_s4l_exports_a_plain_classifier_that_also_learnt_rotations(tmp_path):
    reset_accelerate()
    s4l.main([*SMALL, "--turned", "2", "--output", str(tmp_path)])
    with (tmp_path / "results.csv").open() as file:
        assert [row["arm"] for row in csv.DictReader(file)] == ["scratch", "scratch, longer", "S4L"]
    run = tmp_path / "seed-0" / "S4L"
    model = mpp.Classifier.from_pretrained(str(run / "classifier"))
    assert model(torch.zeros(1, 3, 8, 8)).shape == (1, 8)
    flops = {each: json.loads((run.parent / each / "result.json").read_text())["flops"] for each in ("S4L", "scratch")}
    assert flops["S4L"] == pytest.approx(flops["scratch"] * 1.25, rel=0.01), "2 x 4 turned images beside 32"
    assert "of the training images' rotations" in (tmp_path / "results.md").read_text()


def test_turned_images_are_what_the_rotation_head_is_asked_of():
    """The loss of S4L is that of both heads, computed apart from the same images."""
    image = torch.arange(2 * 3 * 8 * 8, dtype=torch.uint8).reshape(2, 3, 8, 8) % 251
    job = object.__new__(s4l.S4L)
    job.images, job.turned, job.learnt = image, 1, []
    job.config, job.accelerator = type("C", (), {"seed": 0}), type("A", (), {"process_index": 0})
    asked = []

    def model(images):
        asked.append(images)
        return torch.arange(len(images) * 7.0).reshape(-1, 7).sin()

    labels = torch.tensor([2, 0])
    loss, shares = job.training_step(model, {"images": image, "labels": labels}, 1)
    scores = torch.arange(6 * 7.0).reshape(-1, 7).sin()
    by_hand = -(scores[:2, :3].log_softmax(-1)[[0, 1], labels]).mean()
    by_hand -= scores[2:, 3:].log_softmax(-1).diagonal().mean()
    assert loss == pytest.approx(by_hand)
    assert set(shares) == {"top1", "rotation"}
    turned = asked[0][2:]
    for turns in range(1, 4):
        assert np.array_equal(np.rot90(turned[0], turns, (1, 2)), turned[turns])


def test_parts_of_a_set_with_few_labels_share_no_image_and_labels_are_balanced():
    first, again, other = (few_labels("shapes", "colour", 16, 16, 30, 20, seed) for seed in (0, 0, 1))
    images = [image.tobytes() for part in (first.labelled[0], first.unlabelled, first.held_out[0]) for image in part]
    assert len(set(images)) == 16 + 30 + 20
    assert np.array_equal(first.unlabelled, again.unlabelled)
    assert not np.array_equal(first.labelled[0], other.labelled[0])
    assert np.array_equal(first.held_out[0], other.held_out[0])
    assert np.bincount(first.labelled[1]).max() <= 3
    with pytest.raises(UserError, match="--labels 90000 and --unlabelled 20000 are more than the 100,000"):
        few_labels("shapes", None, 16, 90_000, 20_000, 20, 0)


def test_arms_stand_beside_the_first_with_intervals():
    header, rows = beside({"a": [0.5, 0.6, 0.7], "b": [0.6, 0.7, 0.9]}, 100)
    assert header == ["", "top-1, %", "beside a, points"]
    assert rows == [["a", "60.0 ± 24.8", ""], ["b", "73.3 ± 37.9", "13.3 ± 14.3"]]
    header, rows = beside({"a": [0.5], "b": [0.6]}, 100)
    assert rows == [["a", "50.0", "40.4 to 59.6", ""], ["b", "60.0", "50.2 to 69.1", "10.0"]]
