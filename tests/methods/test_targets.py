"""Targets: hand-made colours for every edge, from the images as seen."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from einops import rearrange, reduce
from skimage.feature import hog

from mpp.data.augment import normalise
from mpp.methods.corrupt import Corruption
from mpp.methods.targets import (
    make_target,
    mean_colours,
    mean_of_nearest_visible,
    paint_corrupted,
    paint_patches,
    true_pictures,
)


def flat_image(*colours: tuple[int, int, int], patch: int = 4) -> torch.Tensor:
    """One image (1, 3, patch, patch * n) whose n patches are of one colour each."""
    patches = [torch.tensor(colour, dtype=torch.uint8)[:, None, None].expand(3, patch, patch) for colour in colours]
    return torch.cat(patches, dim=-1)[None]


@pytest.mark.parametrize(
    ("colour", "levels"),
    [
        ((0, 0, 0), (0, 0, 0)),
        ((31, 31, 31), (0, 0, 0)),
        ((32, 32, 32), (1, 1, 1)),
        ((255, 255, 255), (7, 7, 7)),
        ((0, 31, 32), (0, 0, 1)),
        ((255, 0, 128), (7, 0, 4)),
        ((127, 224, 223), (3, 7, 6)),
    ],
)
def test_the_class_of_a_colour_is_floor_of_mean_over_32_a_channel(colour, levels):
    r, g, b = levels
    assert make_target("mean-colour", 4).of(flat_image(colour)).tolist() == [[[64 * r + 8 * g + b]]]


def test_the_mean_is_exact_at_a_bins_edge():
    """15 pixels of 32 and one of 31 have a mean just under 32: the lower bin, with no rounding."""
    image = flat_image((32, 32, 32))
    assert make_target("mean-colour", 4).of(image).item() == 64 + 8 + 1
    image[0, :, 0, 0] = 31
    assert make_target("mean-colour", 4).of(image).item() == 0


def test_classes_are_those_of_the_uint8_image_and_spread_where_normalised_pixels_collapse():
    """The bug of other repositories: bins computed from normalised pixels fall nearly all into one class."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (16, 3, 1, 1), dtype=torch.uint8).expand(16, 3, 32, 32).contiguous()
    target = make_target("mean-colour", 4)
    assert len(target.of(images).unique()) >= 14
    assert len(target.of(normalise(images)).unique()) == 1  # what must not be done: everything lands in one bin


@pytest.mark.parametrize(("bits", "classes"), [(1, 8), (2, 64), (3, 512), (4, 4096)])
def test_bits_a_channel_are_an_option(bits, classes):
    target = make_target("mean-colour", 4, bits)
    assert target.num_outputs == classes
    assert target.of(flat_image((255, 255, 255))).item() == classes - 1
    below, above = 2 ** (8 - bits) - 1, 2 ** (8 - bits)
    assert target.of(flat_image((0, 0, below), (0, 0, above))).flatten().tolist() == [0, 1]


def test_patches_are_numbered_row_by_row():
    top = flat_image((0, 0, 0), (32, 0, 0))
    bottom = flat_image((64, 0, 0), (96, 0, 0))
    target = make_target("mean-colour", 4).of(torch.cat([top, bottom], dim=-2))
    assert (target.flatten() // 64).tolist() == [0, 1, 2, 3]


def test_the_4x4_target_has_a_class_for_each_cell_in_reading_order():
    image = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    for cell in range(16):
        y, x = 4 * (cell // 4), 4 * (cell % 4)
        image[0, 2, y : y + 4, x : x + 4] = 32 * (cell % 8)
    target = make_target("4x4", 16)
    assert target.num_outputs == 16 * 512
    assert target.of(image).flatten().tolist() == [cell % 8 for cell in range(16)]


def test_the_4x4_target_of_4_pixel_patches_is_every_pixel():
    image = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    classes = make_target("4x4", 4).of(image)  # (2, 4, 16)
    r, g, b = (image[1, :, 5, 2] // 32).tolist()  # patch 2 (below left), its row 1, column 2
    assert classes[1, 2, 1 * 4 + 2].item() == 64 * r + 8 * g + b


@pytest.mark.parametrize("name", ["mean-colour", "4x4", "2x2"])
def test_the_loss_of_knowing_nothing_is_the_log_of_the_number_of_classes(name):
    target = make_target(name, 8)
    predictions = torch.zeros(2, 3, target.num_outputs)
    truth = torch.randint(0, 512, (2, 3, target.cells))
    assert target.loss(predictions, truth).item() == pytest.approx(math.log(512), abs=1e-5)


@pytest.mark.parametrize("name", ["mean-colour", "4x4"])
def test_the_loss_equals_cross_entropy_cell_by_cell(name):
    torch.manual_seed(0)
    target = make_target(name, 4)
    predictions = torch.randn(2, 3, target.num_outputs)
    truth = torch.randint(0, 512, (2, 3, target.cells))
    losses = [
        -torch.log_softmax(predictions[b, k, 512 * c : 512 * (c + 1)], dim=0)[truth[b, k, c]]
        for b in range(2)
        for k in range(3)
        for c in range(target.cells)
    ]
    assert target.loss(predictions, truth).item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_pixels_are_regressed_by_mean_squared_error_between_minus_1_and_1():
    target = make_target("pixels", 4)
    truth = target.of(flat_image((0, 255, 128)))
    assert truth.shape == (1, 1, 48)
    assert (truth.min(), truth.max()) == (-1, 1)
    assert target.loss(truth + 0.5, truth).item() == pytest.approx(0.25)
    assert target.bins(truth).item() == 0 * 64 + 7 * 8 + 4
    assert torch.equal(target.true_pixels(truth)[0][0, 0], flat_image((0, 255, 128))[0])


@pytest.mark.parametrize("name", ["mean-colour", "4x4", "pixels"])
def test_a_perfect_prediction_is_counted_right_and_painted_within_half_a_bin(name):
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 4, 8), dtype=torch.uint8)
    target = make_target(name, 4)
    truth = target.of(images)
    predictions = truth if name == "pixels" else torch.nn.functional.one_hot(truth, 512).flatten(2).float()
    assert torch.equal(target.predicted_bins(predictions), target.bins(truth))
    painted = target.pixels(predictions)[0]
    assert torch.equal(painted, target.true_pixels(truth)[0])
    shown = paint_patches(images, torch.arange(2).expand(2, -1), painted)
    if name != "mean-colour":
        assert (shown.int() - images.int()).abs().max() <= 16


@pytest.mark.parametrize(
    ("name", "patch_size"),
    [
        ("colour", 4),
        ("3x3", 4),
        ("4x2", 4),
        ("0x0", 4),
        ("hog+colour", 4),
        ("hog+hog", 4),
        ("hog+0*pixels", 4),
        ("-1*hog", 4),
        ("x*hog", 4),
        ("hog+", 4),
    ],
)
def test_targets_that_do_not_exist_or_fit_are_refused(name, patch_size):
    with pytest.raises(ValueError, match=r"target|divide"):
        make_target(name, patch_size)


def test_neighbours_guess_is_the_mean_of_the_nearest_visible_patches():
    images = flat_image((10, 0, 0), (0, 0, 0), (50, 0, 0), (0, 0, 0), (200, 0, 0))
    colours = mean_of_nearest_visible(mean_colours(images, 4), (1, 5), *[torch.tensor([[1, 3]])] * 2)
    assert colours[0, 0].tolist() == [30, 0, 0]  # between 10 and 50
    assert colours[0, 1].tolist() == [125, 0, 0]
    far = mean_of_nearest_visible(mean_colours(images, 4), (1, 5), *[torch.tensor([[0, 1, 2, 3]])] * 2)
    assert far[0].tolist() == [[200, 0, 0]] * 4


def test_neighbours_guess_equals_a_slow_loop():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (3, 3, 16, 12), dtype=torch.uint8)
    indices = torch.stack([torch.randperm(12)[:6].sort().values for _ in range(3)])
    colours = mean_of_nearest_visible(mean_colours(images, 4), (4, 3), indices, indices)
    for b in range(3):
        visible = [n for n in range(12) if n not in indices[b]]
        for k, n in enumerate(indices[b].tolist()):
            distance = {v: (v // 3 - n // 3) ** 2 + (v % 3 - n % 3) ** 2 for v in visible}
            nearest = [v for v in visible if distance[v] == min(distance.values())]
            means = [images[b, :, v // 3 * 4 :, v % 3 * 4 :][:, :4, :4].float().mean((1, 2)) for v in nearest]
            assert torch.allclose(colours[b, k], torch.stack(means).mean(0), atol=1e-3)


def test_the_picture_of_a_corruption_shows_grey_for_mask_and_the_replacement_for_replaced():
    images = flat_image((255, 0, 0), (0, 255, 0), (0, 0, 255))
    corruption = Corruption(torch.tensor([[0, 1, 2]]), torch.tensor([[3, 2, 2]]))
    shown = paint_corrupted(images, corruption.indices, corruption.sources, 4)
    assert torch.equal(shown, flat_image((128, 128, 128), (0, 0, 255), (0, 0, 255)))


@pytest.mark.parametrize(("name", "grid"), [("mean-colour", 1), ("2x2", 2), ("pixels", 1)])
@pytest.mark.parametrize("channels", [4, 13, 64])
def test_more_than_three_channels_have_bins_of_their_own(name, grid, channels):
    target = make_target(name, patch_size=4, bits=3, channels=channels)
    assert (target.cells, target.num_bins) == (grid**2 * channels, 8)
    if name != "pixels":
        assert target.num_outputs == grid**2 * channels * 8
    images = torch.randint(0, 256, (2, channels, 8, 8), dtype=torch.uint8)
    means = (
        images.float().unfold(2, 4 // grid, 4 // grid).unfold(3, 4 // grid, 4 // grid).mean((-1, -2))
    )  # (B, C, y, x)
    levels = rearrange(means // 32, "b c (h y) (w x) -> b (h w) (y x c)", y=grid, x=grid).long()
    targets = target.of(images)
    assert torch.equal(target.bins(targets), levels)
    if grid == 1:
        assert torch.equal(target.bins_of_clues(rearrange(means, "b c h w -> b (h w) c")), levels)
    if name == "pixels":
        return
    shown = target.true_pixels(targets)[0]  # the middle of each bin
    assert shown.shape == (2, 4, channels, 4, 4)
    assert torch.equal(
        reduce(shown.long(), "b k c (y p) (x q) -> b k (y x c)", "max", y=grid, x=grid), levels * 32 + 16
    )


def test_the_loss_of_many_channels_is_the_mean_of_their_cross_entropies():
    target = make_target("mean-colour", patch_size=4, bits=2, channels=5)
    predictions, targets = torch.randn(2, 3, 20), torch.randint(0, 4, (2, 3, 5))
    each = [
        torch.nn.functional.cross_entropy(predictions[..., 4 * c : 4 * c + 4].flatten(0, 1), targets[..., c].flatten())
        for c in range(5)
    ]
    torch.testing.assert_close(target.loss(predictions, targets), torch.stack(each).mean())
    assert torch.equal(target.predicted_bins(predictions)[..., 2], predictions[..., 8:12].argmax(-1))


# HOG, normalised pixels, sums


@pytest.mark.parametrize(("patch_size", "cells"), [(4, 2), (16, 2), (5, 1)])
def test_hog_is_scikit_images_with_the_patch_as_its_block(patch_size, cells):
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 3 * patch_size, 2 * patch_size), dtype=torch.uint8)
    found = make_target("hog", patch_size).of(images)
    assert found.shape == (2, 6, 9 * cells**2)
    for image, mine in zip(images, found, strict=True):
        grey = image.double().sum(0).numpy()
        side = patch_size // cells
        blocks = hog(grey, 9, (side, side), (cells, cells), block_norm="L2", feature_vector=False)  # (rows, cols, ...)
        theirs = torch.from_numpy(blocks[::cells, ::cells].reshape(6, -1))
        # ours is of a smaller norm where edges are weak
        torch.testing.assert_close(mine.double() / mine.double().norm(dim=-1, keepdim=True), theirs, atol=1e-4, rtol=0)


def test_hog_knows_the_direction_of_an_edge_and_leaves_flat_patches_at_zero():
    image = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    target = make_target("hog", 16)
    assert target.of(image).abs().max() == 0
    rows, upright = image.clone(), image.clone()
    rows[..., 8:, :] = 255  # a gradient downwards: 90 degrees, the fifth of nine
    upright[..., 8:] = 255  # a gradient to the right: 0 degrees
    assert [target.bins(target.of(x)).item() for x in (rows, upright)] == [4, 0]


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("name", ["hog", "normalised-pixels", "pixels", "hog+0.5*pixels", "hog+normalised-pixels"])
def test_every_regression_has_a_loss_of_zero_at_the_truth_bins_and_pictures_for_any_channels(name, channels):
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, channels, 12, 12), dtype=torch.uint8)
    target = make_target(name, 6, 1, channels)
    truth = target.of(images)
    assert truth.shape == (2, 4, target.num_outputs)
    assert target.loss(truth, truth) == 0
    assert target.loss(truth + 1, truth) > 0
    assert torch.equal(target.predicted_bins(truth), target.bins(truth))
    assert target.bins(truth).shape == (2, 4, target.cells)
    assert 0 <= target.bins(truth).min() <= target.bins(truth).max() < target.num_bins
    assert target.bins_of_clues(target.clues(images)).shape == (2, 4, target.cells)
    pictures = target.pixels(truth)
    assert len(pictures) == 1 + name.count("+")
    for mine, true in zip(pictures, target.true_pixels(truth), strict=True):
        assert torch.equal(mine, true)
        assert paint_patches(images, torch.arange(4).expand(2, -1), mine).shape == images.shape


def test_normalised_pixels_have_mean_0_and_deviation_1_and_do_not_see_contrast():
    images = torch.from_numpy(np.random.default_rng(0).integers(60, 120, (1, 3, 8, 8), dtype=np.uint8))
    target = make_target("normalised-pixels", 8)
    once, twice = target.of(images), target.of(images * 2)
    assert once.mean().item() == pytest.approx(0, abs=1e-5)
    assert once.std(correction=0).item() == pytest.approx(1, abs=0.02)
    torch.testing.assert_close(once, twice, atol=0.03, rtol=0)
    assert target.of(torch.full_like(images, 7)).abs().max() < 1e-3


def test_a_sum_weighs_its_losses_and_takes_its_bins_from_the_colour():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    both, edges, colour = (make_target(name, 4) for name in ("hog+0.1*mean-colour", "hog", "mean-colour"))
    outputs = torch.randn(2, 4, both.num_outputs)
    apart = outputs.split([edges.num_outputs, colour.num_outputs], dim=-1)
    losses = [target.loss(mine, target.of(images)) for target, mine in zip((edges, colour), apart, strict=True)]
    assert both.loss(outputs, both.of(images)).item() == pytest.approx((losses[0] + 0.1 * losses[1]).item(), rel=1e-5)
    assert torch.equal(both.bins(both.of(images)), colour.of(images))
    assert torch.equal(both.predicted_bins(outputs), colour.predicted_bins(apart[1]))


@pytest.mark.parametrize("name", ["mean-colour", "2x2", "pixels", "hog+0.1*mean-colour"])
def test_the_true_picture_has_the_means_of_the_cells_and_not_the_middles_of_bins(name):
    images = torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture = true_pictures(make_target(name, 8), images)[-1]  # (2, 6, 3, 8, 8)
    assert picture.shape == (2, 6, 3, 8, 8)
    assert picture.dtype == torch.uint8
    patch = images[1, :, 8:16, 16:24].float()  # the last of its image
    side = {"mean-colour": 8, "2x2": 4, "pixels": 1}.get(name, 8)
    means = torch.nn.functional.avg_pool2d(patch, side)
    assert torch.equal(picture[1, -1].float(), means.round().repeat_interleave(side, 1).repeat_interleave(side, 2))
