"""The built-in scenes: made by index, and true to their labels."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mpp.data.sources.shapes import LABELS, SPLITS, Shapes, render, scene_draws, scene_labels

HUES = np.array([0, 30, 55, 120, 185, 225, 285]) / 360  # of the colour names but grey, in turns


def arrays(images):
    """Images as one array (B, H, W, 3)."""
    return np.stack([np.asarray(image) for image in images])


def plain_draws(batch):
    """Draws of scenes that vary in nothing but their labels: bright shapes on a dark background, textured faintly."""
    draws = np.full((batch, scene_draws("train", [0]).shape[1]), 0.5)
    scene = draws[:, 4:24]
    scene[:, [2, 6, 7, 15, 16]] = 0.0  # the background's value, both textures' kind (a slope) and contrast
    scene[:, [9, 11]] = 1.0  # the shapes' saturation and value
    return draws


def all_labels(**given):
    """Labels of scenes as `render` takes them: class 0, and one shape, where not given."""
    given = {name: np.atleast_1d(values) for name, values in given.items()}
    batch = max([len(values) for values in given.values()], default=1)
    return {name: np.broadcast_to(given.get(name, np.zeros(1, np.int64)), batch) for name in LABELS}


def painted(draws, labels, size):
    """Scenes (B, H, W, 3), and how far each pixel is from the same scene without its shapes (B, H, W)."""
    scenes = render(draws, labels, size)
    bare = render(draws, labels | {"count": np.full(len(draws), -1)}, size)
    return scenes, np.abs(scenes.astype(int) - bare).max(-1)


def count_regions(mask):
    """The number of connected regions of a boolean picture."""
    picture, found = Image.fromarray(mask.astype(np.uint8) * 255).copy(), 0
    while (left := np.argwhere(np.asarray(picture) == 255)).size:
        ImageDraw.floodfill(picture, (int(left[0, 1]), int(left[0, 0])), 0)
        found += 1
    return found


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (17, 23)])
def test_a_scene_is_the_same_in_whatever_batch_it_is_read(size):
    shapes = Shapes("train", size)
    together = arrays(shapes.read(range(21)))
    assert together.shape == (21, *size, 3)
    assert together.dtype == np.uint8
    in_threes = arrays([image for i in range(0, 21, 3) for image in shapes.read([i, i + 1, i + 2])])
    alone_backwards = arrays([shapes.read([i])[0] for i in reversed(range(21))])[::-1]
    np.testing.assert_array_equal(in_threes, together)
    np.testing.assert_array_equal(alone_backwards, together)


def test_a_label_is_the_same_in_whatever_batch_it_is_read():
    shapes = Shapes("validation", (8, 8), "colour")
    alone = [int(shapes.labels([i])[0]) for i in range(50)]
    assert shapes.labels(range(50)).tolist() == alone
    assert shapes.labels(range(50)).dtype == np.int64


def test_scenes_and_splits_differ():
    scenes = np.concatenate([arrays(Shapes(split, (16, 16)).read(range(40))) for split in SPLITS])
    assert len({scene.tobytes() for scene in scenes}) == 40 * len(SPLITS)


def test_the_same_scene_is_painted_at_every_size():
    small, large = (arrays(Shapes("train", size).read(range(30))) for size in [(32, 32), (64, 64)])
    halved = large.reshape(30, 32, 2, 32, 2, 3).mean((2, 4))
    assert np.abs(halved - small).mean() < 10


@pytest.mark.parametrize("label", LABELS)
def test_every_class_is_about_as_frequent_as_any_other(label):
    shapes = Shapes("train", (8, 8), label)
    counts = np.bincount(shapes.labels(range(4000)), minlength=len(shapes.label_names))
    expected = 4000 / len(shapes.label_names)
    assert len(counts) == len(shapes.label_names) == len(LABELS[label])
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_labels_are_independent_of_one_another():
    labels = scene_labels(scene_draws("train", range(4000)))
    values = np.stack([labels[name] for name in LABELS])
    assert np.abs(np.corrcoef(values) - np.eye(len(LABELS))).max() < 0.08


def test_the_largest_shape_lies_in_the_quarter_called_place():
    draws = scene_draws("train", range(400))
    labels = scene_labels(draws)
    _, change = painted(draws, labels, (64, 64))
    quarters = (change > 0).reshape(400, 2, 32, 2, 32).sum((2, 4)).reshape(400, 4)
    right = quarters.argmax(1) == labels["place"]
    assert right[labels["count"] == 0].all()
    assert right.mean() > 0.98


def test_the_hue_of_the_painted_pixels_is_called_colour():
    draws = scene_draws("test", range(400))
    labels = scene_labels(draws)
    scenes, change = painted(draws, labels, (48, 48))
    seen = []
    for scene, there in zip(scenes, change > 30, strict=True):
        hue, saturation, _ = colorsys.rgb_to_hsv(*(np.median(scene[there], axis=0) / 255))
        distance = np.abs((hue - HUES + 0.5) % 1 - 0.5)
        seen.append(7 if saturation < 0.25 else distance.argmin())
    right = np.array(seen) == labels["colour"]
    assert right.mean() > 0.95
    assert all(right[labels["colour"] == colour].mean() > 0.8 for colour in range(8))


def test_there_are_as_many_shapes_as_count_says():
    kinds, counts, places = (grid.ravel() for grid in np.meshgrid(np.arange(8), np.arange(4), np.arange(4)))
    labels = all_labels(shape=kinds, count=counts, place=places)
    _, change = painted(plain_draws(len(kinds)), labels, (64, 64))
    assert [count_regions(there > 60) for there in change] == (counts + 1).tolist()


def test_shapes_cover_a_visible_part_of_every_scene():
    draws = scene_draws("train", range(200))
    _, change = painted(draws, scene_labels(draws), (32, 32))
    share = (change > 0).mean((1, 2))
    assert share.min() > 0.03
    assert share.max() < 0.6


# Turned by 1 / corners of a circle, a shape stays as it is, by half as much not; `waist` is its inner / outer radius.
@pytest.mark.parametrize(
    ("shape", "corners", "waist", "hollow"),
    [
        ("disk", None, 1.0, False),
        ("square", 4, 0.71, False),
        ("triangle", 3, 0.5, False),
        ("star", 5, 0.42, False),
        ("cross", 4, 0.45, False),
        ("flower", 6, 0.5, False),
        ("ring", None, 1.0, True),
        ("frame", 4, 0.71, True),
    ],
)
def test_a_shape_has_the_corners_the_waist_and_the_hole_of_its_name(shape, corners, waist, hollow):
    draws = plain_draws(3)
    draws[:, 24 + 3] = 0.1 + np.array([0, 1, 0.5]) / (corners or 7)  # the first shape's angle
    _, change = painted(draws, all_labels(shape=np.full(3, LABELS["shape"].index(shape))), (128, 128))
    still, whole_turn, half_turn = change > 60
    assert (still ^ whole_turn).sum() < 0.03 * still.sum()
    assert ((still ^ half_turn).sum() > 0.08 * still.sum()) == (corners is not None)
    y, x = np.mgrid[:128, :128] - 31.5
    distance = np.sqrt(y * y + x * x)  # from the shape's centre, in the middle of the top left quarter
    outer = distance[still].max()
    assert still[distance < 0.3 * outer].any() != hollow
    inner = distance[~still & (distance > 0.6 * outer * hollow)].min()
    assert inner / outer == pytest.approx(waist, abs=0.06)


def test_a_scene_is_named_by_its_split_and_number():
    assert Shapes("test", (8, 8)).where(17) == "shapes, test, scene 17"
    assert [len(Shapes(split, (8, 8))) for split in SPLITS] == list(SPLITS.values())


def test_masks_say_what_the_images_show():
    shapes = Shapes("test", (48, 40), "colour")
    draws = scene_draws("test", range(60))
    labels = scene_labels(draws)
    _, change = painted(draws, labels, (48, 40))
    masks = shapes.masks(range(60))
    assert masks.dtype == np.int64
    near = np.pad(masks > 0, ((0, 0), (1, 1), (1, 1)))
    near = np.lib.stride_tricks.sliding_window_view(near, (3, 3), axis=(1, 2)).any((3, 4))
    assert (change[~near] == 0).all()  # out of every mask is the background, but for what covers half a pixel or less
    assert (change[masks > 0] > 0).mean() > 0.97  # a shape may have the colour of its background here and there
    for mask, colour in zip(masks, labels["colour"], strict=True):
        assert set(np.unique(mask)) == {0, colour + 1}


def test_depths_follow_the_order_of_painting():
    shapes = Shapes("validation", (64, 64))
    depths, masks = shapes.depths(range(40)), shapes.masks(range(40))
    counts = scene_labels(scene_draws("validation", range(40)))["count"] + 1
    assert depths.dtype == np.float32
    assert ((depths == 1) == (masks == 0)).all()
    for depth, count in zip(depths, counts, strict=True):
        np.testing.assert_allclose(np.unique(depth)[::-1], 1 - np.arange(count + 1) / 5, atol=1e-6)
    largest = depths == np.float32(0.8)  # the first is painted first, and is the largest
    assert (largest.sum((1, 2)) >= (depths == np.float32(0.6)).sum((1, 2))).all()
