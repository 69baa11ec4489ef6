"""Corruption: exactly half the patches, 80/10/10, before position embeddings."""

from __future__ import annotations

import pytest
import torch

from mpp.data.randomness import Numbers, Purpose
from mpp.methods.corrupt import Corruption, corrupt, draw_corruption, num_corrupted
from mpp.methods.masked_patches import MaskedPatchModel
from mpp.models.vit import ViT


def numbers(count: int, first: int = 0) -> Numbers:
    """The numbers of `count` samples, as the loader has them."""
    return Numbers(0, Purpose.TRAIN, 0, range(first, first + count))


@pytest.mark.parametrize("shape", ["uniform", "blocks"])
@pytest.mark.parametrize(
    ("grid", "ratio", "count"), [((14, 14), 0.5, 98), ((8, 8), 0.15, 10), ((5, 3), 0.4, 6), ((2, 1), 0.5, 1)]
)
def test_exactly_round_ratio_n_patches_of_every_image_are_corrupted(shape, grid, ratio, count):
    indices, sources = draw_corruption(numbers(50), grid, ratio, shape=shape)
    assert indices.shape == sources.shape == (50, count)
    assert all(len(set(row.tolist())) == count for row in indices)
    assert indices.min() >= 0
    assert indices.max() < grid[0] * grid[1]
    assert torch.equal(indices, indices.sort(dim=1).values)


def test_every_patch_is_corrupted_equally_often():
    indices = draw_corruption(numbers(20_000), (4, 5), 0.5).indices
    shares = torch.bincount(indices.flatten(), minlength=20) / 20_000
    assert (shares - 0.5).abs().max() < 5 * (0.25 / 20_000) ** 0.5  # five standard deviations


def test_pairs_of_patches_are_corrupted_together_as_often_as_chance_says():
    chosen = torch.zeros(20_000, 12).scatter(1, draw_corruption(numbers(20_000), (3, 4), 0.5).indices, 1.0)
    together = chosen.T @ chosen / 20_000
    expected = 0.5 * 5 / 11  # without replacement
    off_diagonal = together[~torch.eye(12, dtype=torch.bool)]
    assert (off_diagonal - expected).abs().max() < 5 * (expected / 20_000) ** 0.5


@pytest.mark.parametrize("fates", [(0.8, 0.1, 0.1), (0.2, 0.5, 0.3), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)])
def test_corrupted_patches_become_mask_another_or_themselves_in_the_given_shares(fates):
    indices, sources = draw_corruption(numbers(10_000), (4, 4), 0.5, fates)
    shares = [(sources == 16), (sources != 16) & (sources != indices), (sources == indices)]
    for share, fate in zip(shares, fates, strict=True):
        assert abs(share.float().mean().item() - fate) <= 5 * (fate * (1 - fate) / sources.numel()) ** 0.5


def test_a_random_other_patch_is_never_the_patch_itself_and_any_other_equally_often():
    indices, sources = draw_corruption(numbers(40_000), (2, 3), 0.5, (0.0, 1.0, 0.0))
    assert (sources != indices).all()
    pairs = torch.bincount((indices * 6 + sources).flatten(), minlength=36).reshape(6, 6).float()
    shares = pairs / pairs.sum(1, keepdim=True)
    off_diagonal = shares[~torch.eye(6, dtype=torch.bool)]
    assert (off_diagonal - 0.2).abs().max() < 0.02


def test_blocks_are_blocks():
    """Corrupted patches have far more corrupted neighbours with blocks than one by one."""

    def neighbours(shape: str) -> float:
        mask = torch.zeros(500, 196).scatter(1, draw_corruption(numbers(500), (14, 14), 0.5, shape=shape).indices, 1.0)
        mask = mask.reshape(500, 14, 14)
        return ((mask[:, :, 1:] * mask[:, :, :-1]).sum() / mask[:, :, 1:].sum()).item()

    assert 0.45 < neighbours("uniform") < 0.55
    assert neighbours("blocks") > 0.75


def test_a_sample_gets_the_same_corruption_whatever_batch_it_is_in():
    whole = draw_corruption(numbers(8), (4, 4))
    part = draw_corruption(numbers(3, first=5), (4, 4))
    assert torch.equal(whole.indices[5:], part.indices)
    assert torch.equal(whole.sources[5:], part.sources)


@pytest.mark.parametrize(("num_patches", "ratio"), [(64, 0.0), (64, 1.0), (64, 0.001), (1, 0.5), (64, -0.5)])
def test_a_ratio_that_leaves_no_patch_on_one_side_is_refused(num_patches, ratio):
    with pytest.raises(ValueError, match="at least one"):
        num_corrupted(num_patches, ratio)


def test_shares_that_do_not_sum_to_one_are_refused():
    with pytest.raises(ValueError, match="sum to 1"):
        draw_corruption(numbers(2), (4, 4), 0.5, (0.8, 0.1, 0.2))


def test_corrupt_equals_a_slow_loop():
    torch.manual_seed(0)
    embeddings, mask = torch.randn(6, 12, 5), torch.randn(5)
    corruption = draw_corruption(numbers(6), (3, 4), 0.5, (0.4, 0.3, 0.3))
    expected = embeddings.clone()
    for b in range(6):
        for index, source in zip(corruption.indices[b], corruption.sources[b], strict=True):
            expected[b, index] = mask if source == 12 else embeddings[b, source]
    assert torch.equal(corrupt(embeddings, mask, corruption), expected)


def test_position_embeddings_are_added_after_corruption():
    """A masked patch still knows its place: with all patches alike, [mask] tokens differ only by position."""
    vit = ViT("nano", img_size=8, patch_size=4, depth=1)
    model = MaskedPatchModel(vit, 8)
    seen = {}
    vit.blocks[0].register_forward_pre_hook(lambda _, args: seen.update(tokens=args[0]))
    corruption = Corruption(torch.tensor([[0, 1]]), torch.tensor([[4, 4]]))
    model(torch.rand(1, 3, 8, 8), corruption)
    expected = model.mask_token + vit.pos_embed[0, 1:3]
    assert torch.allclose(seen["tokens"][0, 1:3], expected, atol=1e-6)


def test_gradients_reach_mask_positions_class_token_and_every_weight():
    model = MaskedPatchModel(ViT("nano", img_size=16, patch_size=4, depth=2), 512)
    corruption = draw_corruption(numbers(4), (4, 4))
    model(torch.randn(4, 3, 16, 16), corruption).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_predictions_come_from_the_corrupted_patches_own_tokens_and_no_other():
    torch.manual_seed(0)
    model = MaskedPatchModel(ViT("nano", img_size=16, patch_size=4, depth=2), 7).eval()
    images, corruption = torch.randn(3, 3, 16, 16), draw_corruption(numbers(3), (4, 4), 0.25)
    predictions = model(images, corruption)
    assert predictions.shape == (3, 4, 7)
    tokens = model.vit.encode(corrupt(model.vit.embed(images), model.mask_token, corruption))
    for b in range(3):
        for k, index in enumerate(corruption.indices[b]):
            assert torch.allclose(predictions[b, k], model.head(tokens[b, 1 + index]), atol=1e-5)


def test_thrown_away_blocks_see_all_tokens_and_only_the_corrupted_are_predicted():
    torch.manual_seed(0)
    model = MaskedPatchModel(ViT("nano", img_size=16, patch_size=4, depth=2), 7, decoder_depth=2).eval()
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    drawn = draw_corruption(numbers(3), (4, 4))
    tokens = model.vit.encode(corrupt(model.vit.embed(images), model.mask_token, drawn))  # (3, 1 + 16, D)
    for block in model.decoder:
        tokens = block(tokens)
    every = model.head(model.norm(tokens[:, 1:]))
    own = torch.stack([every[i, places] for i, places in enumerate(drawn.indices)])
    assert torch.allclose(model(images, drawn), own, atol=1e-5)
    plain = MaskedPatchModel(model.vit, 7)
    assert model.flops_an_image() > 1.5 * plain.flops_an_image()
