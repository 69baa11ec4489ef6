"""Looking inside a backbone, as a user does, and the numbers behind the pictures."""

from __future__ import annotations

import colorsys
import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import mpp
from mpp.errors import UserError
from mpp.evaluation.attention import (
    attention_distances,
    attention_weights,
    filter_components,
    pixel_distances,
    position_similarity,
    rollout,
    weights_of_blocks,
)
from mpp.evaluation.calibration import calibration_error, calibration_table
from mpp.methods.patch_measures import HUES, hues, luminance_levels
from mpp.models.blocks import split_heads
from tests.helpers import pretrain, reset_accelerate


def small(**options) -> mpp.ViT:
    torch.manual_seed(0)
    shape = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return mpp.ViT("nano", **shape | options).eval()


@pytest.mark.parametrize("options", [{}, {"pos_embed": "relative"}, {"class_token": False, "registers": 2}])
def test_the_weights_times_the_values_are_what_the_block_computes(options):
    vit = small(**options)
    torch.nn.init.normal_(vit.blocks[0].attn.qkv.bias)
    x = torch.randn(3, 16 + vit.first + vit.registers, 32)
    attention = vit.blocks[0].attn
    weights = attention_weights(attention, x)
    v = split_heads(attention.qkv(x), 3, 2)[2]
    mixed = torch.einsum("bhqk,bhkd->bqhd", weights, v).flatten(2)
    torch.testing.assert_close(attention.proj(mixed), attention(x), atol=1e-5, rtol=1e-5)


def test_uniform_attention_looks_the_mean_distance_and_attention_to_oneself_none():
    distances = pixel_distances((3, 5), 4)
    assert distances[0, 14] == pytest.approx((8**2 + 16**2) ** 0.5)
    uniform = torch.full((2, 1, 16, 16), 1 / 16)
    found = attention_distances(uniform, 1, distances)
    assert torch.allclose(found, distances.mean().expand(2, 1))
    assert attention_distances(torch.eye(16).expand(1, 1, -1, -1), 1, distances).abs().max() == 0


def test_rollout_of_uniform_attention_is_even_and_follows_what_class_attends_to():
    uniform = [torch.full((1, 2, 10, 10), 0.1)] * 3
    assert torch.allclose(rollout(uniform, 1, 9), torch.full((1, 9), 1 / 9))
    only = torch.eye(10).repeat(1, 2, 1, 1)
    only[..., 0, :] = torch.eye(10)[4]  # [class] attends to token 4, the fourth patch
    assert rollout([only], 1, 9).argmax() == 3
    maps = rollout(weights_of_blocks(small(), torch.rand(2, 3, 16, 16)), 1, 16)
    assert torch.allclose(maps.sum(-1), torch.ones(2))


def test_components_of_filters_are_those_of_numpy():
    weight = torch.randn(40, 48)
    components, shares = filter_components(weight, 3, 4)
    covariance = torch.cov(weight.T.double())
    values, axes = torch.linalg.eigh(covariance)
    assert torch.allclose(shares.double(), values.flip(0)[:28] / values.sum(), atol=1e-6)
    assert abs((components[0].flatten().double() * axes[:, -1]).sum()) == pytest.approx(1, abs=1e-5)


def test_positions_of_all_kinds_have_their_similarity():
    same = position_similarity(small())
    assert torch.allclose(same.diagonal(), torch.ones(16))
    assert position_similarity(small(pos_embed="2d")).shape == (16, 16)
    offsets = position_similarity(small(pos_embed="relative"))
    assert offsets.shape == (2, 7, 7)
    assert offsets[0, 3, 3] == pytest.approx(1)
    assert position_similarity(small(pos_embed="none")) is None


def test_look_paints_everything_with_numbers_beside_it(tmp_path, capsys):
    reset_accelerate()
    small().save_pretrained(tmp_path / "vit")
    found = mpp.look(init=str(tmp_path / "vit"), images=20, output=str(tmp_path / "look"))
    names = ["filters", "positions", "distance", "rollout", "features"]
    assert {f"{name}.png" for name in names} | {f"{name}.csv" for name in names[:3]} == set(found["files"])
    for name in names:
        assert min(Image.open(tmp_path / "look" / f"{name}.png").size) > 100
    with (tmp_path / "look" / "distance.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["block"], row["head"]) for row in rows] == [("1", "1"), ("1", "2"), ("2", "1"), ("2", "2")]
    assert 0 < float(rows[0]["pixels"]) < 2 * found["uniform_distance"]
    tags = EventAccumulator(str(tmp_path / "look" / "tensorboard")).Reload().Tags()["images"]
    assert tags == [f"look/{name}" for name in names]
    with pytest.raises(UserError, match="--init names the run or backbone"):
        mpp.look(init="")


def rows_of(file) -> list[dict[str, str]]:
    with file.open(encoding="utf-8") as text:
        return list(csv.DictReader(text))


@pytest.mark.parametrize(
    ("options", "has_bins"),
    [
        (("--train.average", "0.5"), True),
        (("--method", "visible", "--data.target", "hog+0.1*pixels"), False),
        (("--method", "visible", "--data.target", "hog+0.1*2x2"), True),
    ],
)
def test_look_measures_the_predictions_of_a_run_as_the_run_did(tmp_path, capsys, options, has_bins):
    run, look = tmp_path / "run", tmp_path / "look"
    pretrain(run, *options)
    reset_accelerate()
    found = mpp.look(init=str(run / "backbone"), images=50, only=("predictions", "confusion"), output=str(look))
    result = json.loads((run / "result.json").read_text())
    assert found["bin_accuracy"] == pytest.approx(result["eval/bin_accuracy"], abs=1e-6)  # of all 20 held-out images

    patches = rows_of(look / "predictions.csv")
    assert len({row["image"] for row in patches}) == 20
    assert len({(row["image"], row["row"], row["column"]) for row in patches}) == len(patches)
    for kind, classes in {"luminance": 8, "hue": 7}.items():
        counts = [int(row["patches"]) for row in rows_of(look / "confusion.csv") if row["kind"] == kind]
        assert (len(counts), sum(counts)) == (classes**2, len(patches))
    assert (look / "calibration.csv").exists() == has_bins
    if has_bins:
        bins = rows_of(look / "calibration.csv")
        right = sum(float(row["bins"]) * float(row["accuracy"]) for row in bins)
        assert right / sum(float(row["bins"]) for row in bins) == pytest.approx(found["bin_accuracy"], abs=1e-4)
    else:
        assert "calibration: left out, because --data.target hog+0.1*pixels is a regression" in capsys.readouterr().out
    for name in ("predictions", "patches", "confusion"):
        assert min(Image.open(look / f"{name}.png").size) > 300


def test_look_says_why_predictions_are_left_out(tmp_path, capsys):
    run = tmp_path / "run"
    pretrain(run, "--data.target", "hog")
    for init, why in {
        run: "confusion: left out, because --data.target hog has no colours",
        tmp_path / "vit": f"left out, because {tmp_path / 'vit'} is no run of mpp pretrain",
    }.items():
        reset_accelerate()
        small().save_pretrained(tmp_path / "vit")
        mpp.look(init=str(init), data={"path": "shapes"}, images=4, only=("confusion",), output=str(tmp_path / "look"))
        assert why in capsys.readouterr().out


def test_a_second_backbone_has_its_own_distances_beside_the_first(tmp_path):
    small().save_pretrained(tmp_path / "a")
    small(pos_embed="relative", depth=3, patch_size=8).save_pretrained(tmp_path / "b")
    for init, beside, output in (("a", "b", "both"), ("b", "", "alone")):
        reset_accelerate()
        mpp.look(
            init=str(tmp_path / init),
            beside=str(tmp_path / beside) if beside else "",
            images=6,
            only=("distance", "positions"),
            output=str(tmp_path / output),
        )
    alone = rows_of(tmp_path / "alone" / "distance.csv")
    assert rows_of(tmp_path / "both" / "distance-beside.csv") == alone
    assert len(alone) == 6
    offsets = rows_of(tmp_path / "alone" / "positions.csv")
    assert {row["cosine"] for row in offsets if row["rows"] == row["columns"] == "0"} == {"1.000000"}
    assert len(offsets) == 3 * 3 * 3


def test_hues_and_levels_are_those_of_colorsys():
    colours = np.random.default_rng(0).integers(0, 256, (500, 3))
    named = [HUES[number] for number in hues(torch.from_numpy(colours).float()).tolist()]
    for (red, green, blue), name in zip(colours.tolist(), named, strict=True):
        if max(red, green, blue) - min(red, green, blue) < 32:
            assert name == "grey"
        else:
            sixth = 6 * colorsys.rgb_to_hsv(red, green, blue)[0]
            assert name == HUES[round(sixth) % 6]
    levels = luminance_levels(torch.tensor([[0.0, 0, 0], [255, 255, 255], [0, 255, 0], [0, 0, 255]]))
    assert levels.tolist() == [0, 7, 4, 0]  # green 149.7, blue 29.1


def test_the_table_of_calibration_adds_up_to_its_error():
    rng = np.random.default_rng(0)
    confidence = rng.random(300)
    right = rng.random(300) < confidence**2
    table = calibration_table(confidence, right)
    gaps = sum(many * abs(mean - accuracy) for _, _, many, mean, accuracy in table) / 300
    assert gaps == pytest.approx(calibration_error(confidence, right))
    assert all(low <= mean <= high for low, high, _, mean, _ in table)
