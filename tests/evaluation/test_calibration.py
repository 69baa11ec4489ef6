"""Probabilities that can be believed: the error of them, the temperature, and what the commands make of both."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

import mpp
from mpp import Classifier, ViT, load_images
from mpp.errors import UserError
from mpp.evaluation.calibration import best_temperature, calibration_error
from mpp.methods.classify import load_classifier
from recipes.finetune import main as finetune
from tests.helpers import reset_accelerate

SHAPE = ["--model.img-size", "16", "--model.embed-dim", "32", "--model.depth", "1", "--model.num-heads", "2"]
SMALL = ["--train.steps", "12", "--train.batch-size", "8", "--optim.warmup-steps", "2", "--eval.images", "60"]


def test_the_calibration_error_is_the_mean_gap_of_the_bins():
    confidence = np.array([0.9, 0.9, 0.9, 0.9, 0.5, 0.5, 0.2, 1.0])
    right = np.array([True, True, False, False, True, True, False, True])
    gaps = 4 * abs(0.9 - 0.5) + 2 * abs(0.5 - 1) + 0.2 + 0  # the bins of 0.9, 0.5, 0.2 and 1.0, each by its images
    assert calibration_error(confidence, right) == pytest.approx(gaps / 8)


def test_the_temperature_that_made_scores_too_sure_is_found():
    generator = torch.Generator().manual_seed(0)
    scores = 2 * torch.randn(20_000, 5, generator=generator)
    labels = torch.multinomial(scores.softmax(-1), 1, generator=generator)[:, 0]
    assert best_temperature(3 * scores, labels) == pytest.approx(3, rel=0.05)
    assert best_temperature(scores / 2, labels) == pytest.approx(0.5, rel=0.05)


def test_a_model_keeps_its_temperature_and_its_classes(tmp_path):
    torch.manual_seed(0)
    model = Classifier(ViT("nano", img_size=16, patch_size=4, embed_dim=32, depth=1, num_heads=2), ["a", "b"]).eval()
    torch.nn.init.normal_(model.head[0].weight)
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        before = model(images)
        model.calibrate(2.5)
        model.save_pretrained(tmp_path)
        torch.testing.assert_close(load_classifier(str(tmp_path)).eval()(images), before / 2.5)
    config = json.loads((tmp_path / "config.json").read_text())
    for wrong in (0, -1, "hot", float("nan")):
        (tmp_path / "config.json").write_text(json.dumps(config | {"temperature": wrong}))
        with pytest.raises(UserError, match="temperature must be"):
            load_classifier(str(tmp_path))


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """A fine-tuning with --calibrate, in its folder."""
    folder = tmp_path_factory.mktemp("runs") / "fine"
    reset_accelerate()
    finetune([*SHAPE, *SMALL, "--data.labels", "80", "--calibrate", "--output", str(folder)])
    return folder


def test_a_fifth_of_the_labels_chooses_the_temperature_and_is_not_trained_on(calibrated, capsys):
    result = json.loads((calibrated / "result.json").read_text())
    assert (result["labels"], result["calibration_labels"]) == (64, 16)
    assert json.loads((calibrated / "classifier" / "config.json").read_text())["temperature"] == result["temperature"]
    assert 0 <= result["calibration_error"] <= 1
    reset_accelerate()
    found = mpp.finetune({"init": str(calibrated), "eval_only": True, "eval.images": 60, "output": f"{calibrated}-2"})
    assert found["calibration_error"] == pytest.approx(result["calibration_error"])
    assert found["eval/top1"] == result["eval/top1"]  # a temperature changes no class
    reset_accelerate()
    with pytest.raises(UserError, match="one a class leaves none"):
        finetune([*SHAPE, *SMALL, "--data.labels", "8", "--calibrate", "--output", f"{calibrated}-3"])


def test_classes_that_are_not_sure_are_left_empty_and_the_sheet_goes_from_low_to_high(calibrated, tmp_path, capsys):
    for number, image in enumerate(load_images("shapes", "test", size=(16, 16)).read(range(13))):
        image.save(tmp_path / f"{number:02}.png")
    out, sheet = tmp_path / "p.csv", tmp_path / "p.sheet.png"
    options = {"init": str(calibrated), "data.path": str(tmp_path), "out": str(out), "top": 1}
    reset_accelerate()
    mpp.predict(options)
    rows = list(csv.DictReader(out.open()))
    middle = sorted(float(row["probability"]) for row in rows)[6]
    reset_accelerate()
    found = mpp.predict(options | {"overwrite": True, "reject_below": middle, "sheet": str(sheet)})
    assert found == {"images": 13, "out": str(out), "rejected": 6}
    assert "6 of them without a class" in capsys.readouterr().out
    again = list(csv.DictReader(out.open()))
    for row, before in zip(again, rows, strict=True):
        assert row["probability"] == before["probability"]
        assert row["class"] == (before["class"] if float(before["probability"]) >= middle else "")
    pixels = np.asarray(Image.open(sheet))  # ten a row; the least sure image comes first, in nearest pixels
    least = min(rows, key=lambda row: float(row["probability"]))["image"]
    assert np.array_equal(pixels[6 : 6 + 112 : 7, 6 : 6 + 112 : 7], np.asarray(Image.open(least)))
    reset_accelerate()
    with pytest.raises(UserError, match=r"--sheet \S+p.sheet.png cannot be written \(it exists"):
        mpp.predict(options | {"out": str(tmp_path / "q.csv"), "sheet": str(sheet)})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sheet": "p.jpg"}, "--sheet p.jpg must end in .png"),
        ({"reject_below": 1.5}, "--reject-below 1.5 must be in 0..1"),
    ],
)
def test_wrong_options_are_told(options, says):
    with pytest.raises(UserError, match=says):
        mpp.predict({"init": "x"} | options)
