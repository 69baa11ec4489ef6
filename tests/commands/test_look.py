"""Looking inside a backbone, as a user does, and the numbers behind the pictures."""

from __future__ import annotations

import csv

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
from mpp.models.blocks import split_heads
from tests.helpers import reset_accelerate


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
