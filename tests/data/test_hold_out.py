"""Which labelled images are held out where a set has no evaluation split, or where --data.hold-out asks for some."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import shutil

import numpy as np
import pytest

from mpp.config.options import LabelledData
from mpp.console import call, command
from mpp.data.identity import Identity
from mpp.data.images import HeldOut
from mpp.data.splits import open_fitted, open_labelled
from mpp.errors import Notice, UserError
from mpp.evaluation.intervals import interval_of
from tests.helpers import one_line, put, reset_accelerate

SIZE = (8, 8)
MODEL = {"model.embed_dim": 32, "model.depth": 1, "model.num_heads": 2, "model.img_size": 8}


@pytest.fixture(scope="module")
def unsplit(tmp_path_factory):
    """Class folders without splits: 30 cats, 10 dogs, 1 owl."""
    folder = tmp_path_factory.mktemp("unsplit")
    for name, count in {"cat": 30, "dog": 10, "owl": 1}.items():
        for number in range(count):
            put(folder / name / f"{number:02}.png", number + 100 * (name == "dog"))
    return folder


def data_of(folder, **options):
    """The set as the probe opens it."""
    return LabelledData(path=str(folder), cache=False, **options)


def names(images):
    """Where the images of a set come from."""
    return [images.where(number) for number in range(len(images))]


def by_class(images):
    """How many images each class has."""
    return np.bincount(images.labels(range(len(images))), minlength=3).tolist()


def test_a_fifth_of_each_class_is_held_out_where_no_split_is_there_to_measure_on(unsplit):
    train, test = open_labelled(data_of(unsplit), SIZE, seed=0)
    assert by_class(test) == [6, 2, 0]
    assert by_class(train) == [24, 8, 1]
    assert sorted(names(train) + names(test)) == sorted(map(str, unsplit.rglob("*.png")))
    assert isinstance(test, HeldOut)
    assert "8 of the 41 images of split train (the set has no split test or validation)" in test.says


@pytest.mark.parametrize("options", [{}, {"labels": 5}, {"fraction": 0.5}, {"fraction": 0.5, "labels": 4}])
def test_what_is_held_out_is_the_same_for_every_seed_and_number_of_labels_and_never_trained_on(unsplit, options):
    _, first = open_labelled(data_of(unsplit), SIZE, seed=0)
    for seed in (0, 1):
        train, test = open_labelled(data_of(unsplit, **options), SIZE, seed)
        assert names(test) == names(first)
        assert not set(names(train)) & set(names(test))
        assert names(open_fitted(data_of(unsplit, **options), SIZE, seed)) == names(train)


def test_a_larger_share_holds_out_what_a_smaller_one_does(unsplit):
    small, large = (names(open_labelled(data_of(unsplit, hold_out=s), SIZE, seed=0)[1]) for s in (0.1, 0.4))
    assert set(small) < set(large)
    assert (len(small), len(large)) == (4, 16)


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_one_image_is_held_out_at_least_and_each_class_keeps_one(unsplit, share):
    train, test = open_labelled(data_of(unsplit, hold_out=share), SIZE, seed=0)
    assert min(by_class(train)) == 1
    assert len(test) == (1 if share < 0.5 else 38)


def test_a_share_is_held_out_in_place_of_the_test_split(unsplit, tmp_path):
    for split, count in {"train": 10, "test": 3}.items():
        for kind in "ab":
            for number in range(count):
                put(tmp_path / split / kind / f"{number}.png", number)
    assert len(open_labelled(data_of(tmp_path), SIZE, seed=0)[1]) == 6
    train, test = open_labelled(data_of(tmp_path, hold_out=0.1), SIZE, seed=0)
    assert (by_class(train), by_class(test)) == ([9, 9, 0], [1, 1, 0])
    assert all("/train/" in name for name in names(test))


def test_a_test_split_without_labels_is_not_measured_on(tmp_path):
    for number in range(10):
        put(tmp_path / "train" / "ab"[number % 2] / f"{number}.png", number)
    put(tmp_path / "test" / "unknown.png", 3)
    _, test = open_labelled(data_of(tmp_path), SIZE, seed=0)
    assert by_class(test)[:2] == [1, 1]
    assert "split test has no labels" in test.says


def test_one_image_a_class_leaves_none_to_hold_out(tmp_path):
    put(tmp_path / "a" / "0.png", 0)
    put(tmp_path / "b" / "0.png", 1)
    with pytest.raises(UserError) as error:
        open_labelled(data_of(tmp_path), SIZE, seed=0)
    assert "one a class leaves none; add images, or name a split to be measured on with --data.eval-split" in one_line(
        error
    )


@pytest.mark.parametrize("name", ["probe", "finetune", "supervised"])
def test_a_share_and_a_split_to_measure_on_are_not_both_taken(name):
    with pytest.raises(UserError, match=r"--data.hold-out 0.1 .* and --data.eval-split test .*: give one of them"):
        command(name)(["--data.hold-out", "0.1", "--data.eval-split", "test"])
    with pytest.raises(UserError, match=r"--data.hold-out 1.0 must be above 0 and below 1"):
        command(name)(["--data.hold-out", "1"])


def test_a_run_remembers_by_name_what_it_held_out(unsplit, tmp_path):
    shutil.copytree(unsplit, tmp_path / "set")
    data = data_of(tmp_path / "set")
    before = Identity.of(*open_labelled(data, SIZE, seed=0), labels=True).held_out
    for number in range(30, 60):
        put(tmp_path / "set" / "cat" / f"{number}.png", number)
    train, test = open_labelled(data, SIZE, seed=0, remembered=set(before))
    assert Identity.of(train, test, labels=True).held_out == before
    assert by_class(train) == [54, 8, 1]


def test_bands_of_a_range_found_do_not_lose_what_is_held_out(unsplit):
    data = dataclasses.replace(data_of(unsplit), range="auto")
    train, test = open_labelled(data, SIZE, seed=0)
    assert len(Identity.of(train, test).held_out) == len(test)


@pytest.fixture(scope="module")
def tuned(unsplit, tmp_path_factory):
    """A run of fine-tuning on the set without splits, and what it returned."""
    reset_accelerate()
    output = tmp_path_factory.mktemp("tuned") / "run"
    options = {"data.path": unsplit, "output": output, "train.steps": 2, "train.batch_size": 8, "eval.every": 2}
    return output, call("finetune", MODEL | options | {"optim.warmup_steps": 1})


def test_fine_tuning_measures_on_what_it_held_out_and_says_how_exact_that_is(tuned):
    output, result = tuned
    assert (result["eval_images"], result["labels"]) == (8, 33)
    low, high = result["eval/top1_interval"]
    assert 0 <= low <= result["eval/top1"] <= high <= 1
    assert json.loads((output / "result.json").read_text())["eval/top1_interval"] == [low, high]
    assert "eval/top1_interval" not in (output / "metrics.jsonl").read_text()
    assert len(json.loads((output / "data.json").read_text())["held_out"]) == 8


def test_a_model_is_measured_again_on_what_its_run_held_out_alone(tuned, unsplit, tmp_path, capsys):
    output, result = tuned
    reset_accelerate()
    file = tmp_path / "p.csv"
    options = {"init": output, "data.path": unsplit, "eval_only": True, "export_predictions": file}
    again = call("finetune", options | {"output": tmp_path / "again"})
    assert "8 of these 41 images" in capsys.readouterr().out
    assert again["eval/top1"] == result["eval/top1"]
    assert again["eval_images"] == 8
    with file.open() as table:
        exported = {row["image"] for row in csv.DictReader(table)}
    assert exported == set(names(open_labelled(data_of(unsplit), SIZE, seed=0)[1]))


def test_predictions_of_a_models_own_images_say_what_their_accuracy_is_worth(tuned, unsplit, tmp_path):
    reset_accelerate()
    with pytest.warns(Notice, match=r"not that on new images .*8 of these 41 images.*eval-only measures those"):
        found = call("predict", {"init": tuned[0], "data.path": unsplit, "out": tmp_path / "p.csv"})
    assert found["images"] == 41


def test_the_probe_measures_on_a_share_that_is_held_out(unsplit, tmp_path, capsys):
    reset_accelerate()
    found = call("probe", MODEL | {"data.path": unsplit, "data.hold_out": 0.25, "output": tmp_path})
    said = capsys.readouterr().out
    assert "10 of the 41 images of split train (--data.hold-out 0.25)" in said
    assert found["eval_images"] == 10
    low, high = found["eval/top1_interval"]
    assert f"95 % interval {low:.1%} to {high:.1%}" in said


@pytest.mark.parametrize(("accuracy", "images"), [(0.625, 64), (0.0, 10), (1.0, 10), (0.5, 10_000)])
def test_an_interval_is_wilsons(accuracy, images):
    z = 1.959963984540054
    centre = (accuracy + z**2 / (2 * images)) / (1 + z**2 / images)
    half = z / (1 + z**2 / images) * math.sqrt(accuracy * (1 - accuracy) / images + z**2 / (4 * images**2))
    assert interval_of(accuracy, images) == pytest.approx([centre - half, centre + half], abs=1e-12)
