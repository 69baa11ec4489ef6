"""Crops and flips: what each draws, and the fast one against a slow loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mpp.data.augment import centred_box, normalise, random_resized_box, shift_and_flip


def images_of(shape, seed=0):
    """Random uint8 images (B, H, W, C)."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def channels_first(images):
    """(B, H, W, C) -> (B, C, H, W)"""
    return images.transpose(0, 3, 1, 2)


def shifted_and_flipped_slowly(images, shift, flip):
    """`shift_and_flip` an image at a time: pad by reflection, crop, mirror."""
    results = []
    for image, (down, right), mirror in zip(images, shift.tolist(), flip.tolist(), strict=True):
        height, width = image.shape[:2]
        pad_h, pad_w = abs(down), abs(right)
        padded = np.pad(image, ((pad_h, pad_h), (pad_w, pad_w), (0, 0)), mode="reflect")
        top, left = pad_h - down, pad_w - right
        crop = padded[top : top + height, left : left + width]
        results.append(crop[:, ::-1] if mirror else crop)
    return channels_first(np.stack(results))


@pytest.mark.parametrize(
    ("height", "width", "pad"),
    [(32, 32, 4), (24, 40, 23), (7, 12, 3), (8, 8, 30), (1, 5, 2)],  # the last two are reflected more than once
)
def test_shift_and_flip_equals_a_loop_over_padded_images(height, width, pad):
    images = images_of((40, height, width, 3))
    shift = np.random.default_rng(1).integers(-pad, pad + 1, (40, 2))
    flip = np.arange(40) % 2 == 1
    shift[:4] = [[pad, pad], [-pad, -pad], [pad, -pad], [-pad, pad]]
    moved = shift_and_flip(images, shift, flip)
    assert moved.dtype == np.uint8
    assert moved.flags.c_contiguous
    assert np.array_equal(moved, shifted_and_flipped_slowly(images, shift, flip))


def test_no_shift_and_no_flip_leave_images_as_they_are():
    images = images_of((5, 9, 14, 3))
    nothing = shift_and_flip(images, np.zeros((5, 2), int), np.zeros(5, bool))
    assert np.array_equal(nothing, channels_first(images))


def test_a_shift_is_down_and_right_and_a_flip_swaps_left_and_right():
    image = np.arange(12).reshape(1, 3, 4, 1)
    moved = shift_and_flip(image, np.array([[1, 2]]), np.array([False]))
    assert moved[0, 0, 1, 2:].tolist() == [0, 1]
    flipped = shift_and_flip(image, np.array([[0, 0]]), np.array([True]))
    assert np.array_equal(flipped, channels_first(image[:, :, ::-1]))


def test_only_the_flipped_images_of_a_batch_are_mirrored():
    images = images_of((4, 6, 6, 3))
    flip = np.array([True, False, False, True])
    moved = shift_and_flip(images, np.zeros((4, 2), int), flip)
    assert np.array_equal(moved[flip], channels_first(images)[flip][..., ::-1])
    assert np.array_equal(moved[~flip], channels_first(images)[~flip])


@pytest.mark.parametrize("aspect", [1.0, 2.0, 0.4])
@pytest.mark.parametrize(
    ("height", "width"), [(32, 32), (240, 320), (320, 240), (3000, 10), (10, 3000), (1, 1), (1, 50), (2, 3)]
)
def test_a_resized_box_stays_inside_the_image(height, width, aspect):
    rng = np.random.default_rng(0)
    for _ in range(300):
        left, top, right, bottom = random_resized_box(rng, height, width, aspect, (0.05, 1.0))
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height


@pytest.mark.parametrize(
    ("height", "width", "aspect", "scale"),
    [(480, 640, 1.0, (0.2, 1.0)), (640, 480, 1.0, (0.08, 0.5)), (300, 600, 2.0, (0.2, 1.0))],
)
def test_a_resized_box_has_an_area_and_a_shape_in_range(height, width, aspect, scale):
    rng = np.random.default_rng(0)
    boxes = np.array([random_resized_box(rng, height, width, aspect, scale) for _ in range(2000)])
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, shape = w * h / (height * width), w / h / aspect
    assert area.min() > scale[0] * 0.98
    assert area.max() < scale[1] * 1.02
    assert shape.min() > 3 / 4 * 0.98
    assert shape.max() < 4 / 3 * 1.02
    assert area.min() < scale[0] * 1.1  # the whole range is used
    assert shape.min() < 0.78
    assert shape.max() > 1.28


def test_small_boxes_have_uniform_areas_and_lie_anywhere():
    rng = np.random.default_rng(0)
    boxes = np.array([random_resized_box(rng, 500, 500, 1.0, (0.1, 0.3)) for _ in range(3000)])
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert np.histogram(w * h / 500**2, bins=4, range=(0.1, 0.3))[0] == pytest.approx(750, abs=150)
    assert abs(np.log(w / h).mean()) < 0.03  # wide and tall alike
    for start, room in [(boxes[:, 0], 500 - w), (boxes[:, 1], 500 - h)]:
        assert np.histogram(start / room, bins=4, range=(0, 1))[0] == pytest.approx(750, abs=150)


def test_an_image_too_thin_for_any_draw_gives_the_centred_box():
    box = random_resized_box(np.random.default_rng(0), 3000, 10, 1.0, (0.5, 1.0))
    assert box == centred_box(3000, 10, 1.0) == (0, 1495, 10, 1505)


def test_the_same_generator_gives_the_same_box():
    draws = [random_resized_box(np.random.default_rng(3), 100, 80, 1.0, (0.2, 1.0)) for _ in range(2)]
    assert draws[0] == draws[1]
    assert all(isinstance(edge, int) for edge in draws[0])


@pytest.mark.parametrize(
    ("height", "width", "aspect", "box"),
    [
        (10, 10, 1.0, (0, 0, 10, 10)),
        (10, 20, 1.0, (5, 0, 15, 10)),
        (21, 10, 1.0, (0, 5.5, 10, 15.5)),
        (10, 20, 2.0, (0, 0, 20, 10)),
        (20, 20, 2.0, (0, 5, 20, 15)),
        (20, 20, 0.5, (5, 0, 15, 20)),
        (1, 1, 2.0, (0, 0.25, 1, 0.75)),
    ],
)
def test_the_centred_box_is_the_largest_of_its_shape_in_the_middle(height, width, aspect, box):
    assert centred_box(height, width, aspect) == box


@pytest.mark.parametrize(("height", "width"), [(333, 500), (500, 333), (7, 3001)])
def test_a_centred_box_never_leaves_the_image(height, width):
    for aspect in [1.0, 4 / 3, 3 / 4, 16 / 9, math.pi]:
        left, top, right, bottom = centred_box(height, width, aspect)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert (right - left) / (bottom - top) == pytest.approx(aspect)


def test_normalising_maps_black_to_minus_one_and_white_to_one():
    values = normalise(torch.arange(256, dtype=torch.uint8))
    assert values.dtype == torch.float32
    assert values[0] == -1
    assert values[255] == 1
    assert torch.allclose(values, torch.linspace(-1, 1, 256), atol=1e-6)
