"""Commands from Python, on images in memory, with targets and methods of one's own."""

from __future__ import annotations

import csv
import inspect
import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

import mpp
from mpp.comparison.arms import trained_here
from mpp.console import command
from mpp.data.images import load_images
from mpp.errors import UserError
from recipes import examples
from tests.helpers import reset_accelerate

RNG = np.random.default_rng(0)
ARRAYS = RNG.integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)
LABELS = np.arange(30) % 3
NAMES = ["ant", "bee", "cow"]


class Pairs(torch.utils.data.Dataset):
    """A torch Dataset of (picture, label)."""

    def __len__(self) -> int:
        return len(ARRAYS)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(ARRAYS[index]), int(LABELS[index])


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number, array in enumerate(ARRAYS):
        Image.fromarray(array).save(folder / f"{number:02d}.png")
    return [folder / f"{number:02d}.png" for number in range(30)]


def forms(paths):
    """The same images with the same labels, in every form."""
    pictures = [Image.fromarray(array) for array in ARRAYS]
    named = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["0", "1", "2"])})
    return {
        "array": (ARRAYS, LABELS),
        "channels first": (ARRAYS.transpose(0, 3, 1, 2), LABELS.tolist()),
        "tensor": (torch.from_numpy(ARRAYS.transpose(0, 3, 1, 2).copy()), torch.from_numpy(LABELS)),
        "pictures": (pictures, LABELS),
        "paths": (paths, LABELS),
        "pairs": [(picture, int(label)) for picture, label in zip(pictures, LABELS, strict=True)],
        "torch Dataset": Pairs(),
        "datasets.Dataset": datasets.Dataset.from_dict({"image": pictures, "label": LABELS}, features=named),
        "of paths": datasets.Dataset.from_dict({"image": list(map(str, paths)), "label": LABELS}, features=named),
    }


def test_every_form_in_memory_is_read_as_the_same_images_and_labels(paths):
    for form, given in forms(paths).items():
        images = load_images(mpp.from_memory(given))
        assert len(images) == 30, form
        assert images.label_names == ["0", "1", "2"], form
        assert images.labels(range(30)).tolist() == LABELS.tolist(), form
        assert np.array_equal(np.asarray(images.read([7])[0].convert("RGB")), ARRAYS[7]), form


def test_the_name_follows_from_the_content_and_names_of_classes_are_kept():
    name = mpp.from_memory({"train": (ARRAYS, [NAMES[n] for n in LABELS]), "test": (ARRAYS[:6], ["cow", "ant"] * 3)})
    assert name == mpp.from_memory(
        {"train": (ARRAYS.copy(), [NAMES[n] for n in LABELS]), "test": (ARRAYS[:6], ["cow", "ant"] * 3)}
    )
    assert name != mpp.from_memory(ARRAYS)
    test = load_images(name, "test")
    assert test.label_names == NAMES
    assert test.labels([0, 1]).tolist() == [2, 0]
    grey = load_images(mpp.from_memory(RNG.integers(0, 65536, (5, 8, 8), dtype=np.uint16)))
    assert (len(grey), grey.label_names) == (5, None)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (3.5, "float is no set of images in memory; give an array"),
        (np.zeros((4, 4), np.uint8), r"has the shape \(N, H, W, C\), .* not \(4, 4\)"),
        ((ARRAYS, LABELS[:7]), "has 30 images, and 7 labels"),
        (ARRAYS[:0], "split train in memory has no images"),
        ((ARRAYS, LABELS, 3), "not 3 things"),
    ],
)
def test_what_is_no_set_is_named_in_one_line(given, says):
    with pytest.raises(UserError, match=says):
        mpp.from_memory(given)


def test_values_without_a_usual_range_need_one():
    reset_accelerate()
    tiny = {"model": {"img_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2}, "train": {"steps": 1}}
    with pytest.raises(UserError, match=r"float32 values, which have no usual range: give --data.range LOW HIGH"):
        mpp.pretrain(data=ARRAYS.astype(np.float32) / 255, **tiny)
    with pytest.raises(UserError, match=r"memory:0123 is a set in the memory of another Python process"):
        mpp.pretrain(data={"path": "memory:0123"}, **tiny)
    with pytest.raises(UserError, match=r"--data.target python:Gone is a class of a Python program"):
        mpp.pretrain(data={"path": ARRAYS, "target": "python:Gone"}, **tiny)


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    reset_accelerate()
    (tmp_path / "bad.png").write_bytes(b"no picture")
    given = [*(Image.fromarray(array) for array in ARRAYS), tmp_path / "bad.png"]
    with pytest.raises(UserError, match="in memory"):
        mpp.pretrain(
            data=given,
            model={"img_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2},
            train={"steps": 4, "batch_size": 16},
            output=str(tmp_path / "run"),
        )


def test_the_examples_run_top_to_bottom(tmp_path, capsys):
    reset_accelerate()
    examples.main([str(tmp_path)])
    said = capsys.readouterr().out
    for words in ("pretrained: ", "frozen features: ", "fine-tuned: ", "tokens: (2, 65, 64)", "everything is in"):
        assert words in said
    with (tmp_path / "predictions.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 100
    results = {name: json.loads((tmp_path / name / "result.json").read_text()) for name in ("own-target", "own-method")}
    assert results["own-target"]["target"] == "python:Brightness"
    assert results["own-method"]["method"] == "python:TwoViews"
    assert results["own-target"]["eval/bin_accuracy"] > results["own-target"]["eval/baseline_majority"]
    assert "MPP - mine" in (tmp_path / "compared" / "report.md").read_text()
    assert mpp.show(tmp_path / "pretrained").size[0] > 500
    for own in (examples.Brightness, examples.TwoViews):
        assert len(inspect.getsource(own).splitlines()) < 30


def test_a_run_on_memory_goes_on_with_the_same_images_and_with_no_others(tmp_path):
    reset_accelerate()
    tiny = {
        "model": {"img_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2},
        "optim": {"warmup_steps": 1, "extend": "continue"},
        "output": str(tmp_path / "run"),
    }
    train = {"batch_size": 8, "checkpoint_every": 2}
    mpp.pretrain(data=ARRAYS, train=train | {"steps": 2}, **tiny)
    found = mpp.pretrain(data=ARRAYS.copy(), train=train | {"steps": 4}, **tiny, resume=True)
    assert found["step"] == 4
    with pytest.raises(UserError, match=r"--data.path"):
        mpp.pretrain(data=ARRAYS[::-1].copy(), train=train | {"steps": 6}, **tiny, resume=True)


def test_a_run_by_a_method_of_ones_own_goes_on_with_the_class_and_nowhere_else(tmp_path, monkeypatch):
    reset_accelerate()
    options = {
        "method": examples.TwoViews,
        "data": {"path": ARRAYS, "target": examples.Brightness},
        "model": {"img_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2},
        "optim": {"warmup_steps": 1, "extend": "continue"},
        "output": str(tmp_path / "run"),
    }
    train = {"batch_size": 8, "checkpoint_every": 2}
    mpp.pretrain(train=train | {"steps": 2}, **options)
    found = mpp.pretrain(train=train | {"steps": 4}, **options, resume=True)
    assert (found["step"], found["method"], found["target"]) == (4, "python:TwoViews", "python:Brightness")
    with pytest.raises(UserError, match=r"other options .*--method python:TwoViews, now mpp"):
        mpp.pretrain(train=train | {"steps": 6}, **options | {"method": "mpp"}, resume=True)
    monkeypatch.setattr("mpp.config.own._OWN", {})  # as in another process
    with pytest.raises(UserError, match="--method python:TwoViews is a class of a Python program: go on from there"):
        command("pretrain")(["--output", str(tmp_path / "run"), "--resume"])


def test_a_method_of_ones_own_is_an_arm_of_a_comparison(monkeypatch):
    started = []
    monkeypatch.setattr("mpp.console.start", started.append)
    mpp.compare(data=(ARRAYS, LABELS), arms={"mpp": None, "mine": examples.TwoViews, "given": "runs/b"})
    assert started[0].arms == ("mpp", "mine=python:TwoViews", "given=runs/b")
    arms = trained_here(started[0])
    assert {name: options.method for name, options in arms.items()} == {"mpp": "mpp", "mine": "python:TwoViews"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": 3}, "method takes a name or a class with a method 'training_step', not 3"),
        ({"method": "vsible"}, "--method 'vsible' is none of mpp, visible"),
        ({"data": {"path": ARRAYS, "target": object}}, "data.target takes a name or a class with a method 'of'"),
    ],
)
def test_what_is_no_method_or_target_is_named_in_one_line(options, says):
    with pytest.raises(UserError, match=says):
        mpp.pretrain(**options)
    with pytest.raises(UserError, match=r"--pretrain\.method python:TwoViews: name it as an arm"):
        mpp.compare(pretrain={"method": examples.TwoViews})
