"""The built-in images: procedural scenes of textured coloured shapes on textured backgrounds, made by index.

There are no files: image `i` of a split depends only on (split, i, size). A scene holds one to four shapes of one kind
and one colour name; the first is the largest. All else (shade, texture, angle, size, place, background, lighting)
varies freely, so no single patch reveals a label. Labels: shape, colour, count, and the place of the largest shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image

from mpp.data.contents import Contents
from mpp.data.randomness import Purpose, generator

SPLITS = {"train": 100_000, "validation": 10_000, "test": 10_000}


LABELS: dict[str, list[str]] = {
    "shape": ["disk", "square", "triangle", "star", "cross", "flower", "ring", "frame"],
    "colour": ["red", "orange", "yellow", "green", "cyan", "blue", "purple", "grey"],
    "count": ["one", "two", "three", "four"],
    "place": ["top left", "top right", "bottom left", "bottom right"],
}


_HUES = np.array([0, 30, 55, 120, 185, 225, 285, 0]) / 360  # of the colour names, as a fraction of the circle


_MAX_COUNT = 4


_NUM_DRAWS = 24 + 8 * _MAX_COUNT


class Shapes:
    """One split of the built-in set, of `size` = (height, width) in pixels, with one of `LABELS` as its label."""

    def __init__(self, split: str, size: tuple[int, int], label: str = "shape") -> None:
        self.split, self.size, self.label = split, size, label
        self.label_names = LABELS[label]

    def __len__(self) -> int:
        return SPLITS[self.split]

    def read(self, indices: Sequence[int]) -> list[Image.Image]:
        draws = scene_draws(self.split, indices)
        labels = scene_labels(draws)
        return [Image.fromarray(image) for image in render(draws, labels, self.size)]

    def labels(self, indices: Sequence[int]) -> np.ndarray:
        if len(indices) > len(self) // 10:  # cached, because this is asked repeatedly
            return _all_labels(self.split, len(self))[self.label][np.asarray(indices)]
        return scene_labels(scene_draws(self.split, indices))[self.label]

    def masks(self, indices: Sequence[int]) -> np.ndarray:
        """What each pixel shows: (B, H, W) int64, 0 for the background, else 1 + the scene's label."""
        draws = scene_draws(self.split, indices)
        labels = scene_labels(draws)
        shown = objects_shown(draws, labels, self.size)
        return np.where(shown > 0, 1 + labels[self.label][:, None, None], 0)

    def depths(self, indices: Sequence[int]) -> np.ndarray:
        """How far away each pixel's object is, by the order of painting: (B, H, W) float32, 1 for the background, 0.8
        for the first shape, and 0.2 less for each that is painted later."""
        draws = scene_draws(self.split, indices)
        shown = objects_shown(draws, scene_labels(draws), self.size)
        return (1 - shown / (_MAX_COUNT + 1)).astype(np.float32)

    def where(self, index: int) -> str:
        return f"shapes, {self.split}, scene {index}"

    def contents(self, labels: bool = False) -> Contents:
        """The scenes are always the same; their size is the model's."""
        return Contents(self.split, "scene", len(self), [], [], f"label {self.label}" if labels else "")


def scene_draws(split: str, indices: Sequence[int]) -> np.ndarray:
    """Random numbers in 0..1 that determine scenes: (len(indices), _NUM_DRAWS), from split and index alone."""
    number = list(SPLITS).index(split)
    return np.stack([generator(0, Purpose.SHAPES, number, int(i)).random(_NUM_DRAWS) for i in indices])


@cache
def _all_labels(split: str, count: int) -> dict[str, np.ndarray]:
    return scene_labels(scene_draws(split, range(count)))


def scene_labels(draws: np.ndarray) -> dict[str, np.ndarray]:
    """The labels of scenes from their draws (B, _NUM_DRAWS) in 0..1: name -> (B,) int64, all classes equally likely."""
    return {name: (draws[:, i] * len(names)).astype(np.int64) for i, (name, names) in enumerate(LABELS.items())}


def render(draws: np.ndarray, labels: dict[str, np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Paint scenes: draws (B, _NUM_DRAWS) and their labels -> (B, H, W, 3) uint8."""
    y, x = _pixels(size)
    draws = draws.astype(np.float32)
    scene, objects = draws[:, 4:24], _objects(draws)

    ground = _palette(scene[:, 0], scene[:, 1], scene[:, 2])
    image = _textured(ground, _palette(scene[:, 9], scene[:, 10], scene[:, 11]), scene[:, 3:7], y, x)  # (B, H, W, 3)

    hue = _HUES[labels["colour"]].astype(np.float32)
    saturation = np.where(labels["colour"] == 7, 0.0, 0.9).astype(np.float32)
    bright = _colours(hue, saturation, 0.8 + 0.2 * scene[:, 16])
    dark = _colours(hue, saturation, 0.45 + 0.2 * scene[:, 17])
    painted = _textured(bright, dark, scene[:, 12:16], y, x)

    for k in range(_MAX_COUNT):
        inside = _covered(objects, labels, k, y, x)  # (B, H, W)
        tint = 0.85 + 0.3 * objects[:, k, 5]
        image += inside[..., None] * (painted * tint[:, None, None, None] - image)

    light = 1 + 0.06 * (scene[:, 18, None, None] - 0.5) * (y[None] - 0.5) * 2
    light = light + 0.06 * (scene[:, 19, None, None] - 0.5) * (x[None] - 0.5) * 2
    return (np.clip(image * light[..., None], 0, 1) * 255).astype(np.uint8)


def objects_shown(draws: np.ndarray, labels: dict[str, np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Which shape each pixel of the scenes shows: (B, H, W) int64, 0 for the background, k for the k-th painted. What
    covers more than half of a pixel is shown."""
    y, x = _pixels(size)
    objects = _objects(draws.astype(np.float32))
    shown = np.zeros((len(draws), *size), np.int64)
    for k in range(_MAX_COUNT):
        shown[_covered(objects, labels, k, y, x) > 0.5] = k + 1
    return shown


def _pixels(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The places y and x of the pixels' centres, in units of the image: each (H, W) float32."""
    height, width = size
    y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    return y.astype(np.float32), x.astype(np.float32)


def _objects(draws: np.ndarray) -> np.ndarray:
    """The draws of the shapes: (B, _NUM_DRAWS) -> (B, _MAX_COUNT, 8)."""
    return draws[:, 24:].reshape(len(draws), _MAX_COUNT, 8)


def _covered(objects: np.ndarray, labels: dict[str, np.ndarray], k: int, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The share of each pixel that a scene's k-th shape covers, 0..1; nothing if there are fewer: (B, H, W)."""
    radius, cy, cx, angle = _place(objects, labels["place"], k)
    dy, dx = y[None] - cy[:, None, None], x[None] - cx[:, None, None]
    inside = _inside(labels["shape"], dy, dx, radius, angle, sharpness=min(y.shape))
    return inside * (labels["count"] >= k)[:, None, None]  # class 0 is one shape


def _place(objects: np.ndarray, place: np.ndarray, k: int) -> tuple[np.ndarray, ...]:
    """Radius, centre (in units of the image) and angle (radians) of each scene's k-th shape, each (B,). The first lies
    in the labelled quarter. The others are smaller and use the other quarters in turn, so that shapes are countable."""
    quarter = place if k == 0 else (place + np.array([0, 3, 1, 2])[k]) % 4
    radius = (0.17 + 0.07 * objects[:, k, 0]) * (1 if k == 0 else 0.72)
    cy = 0.25 + 0.5 * (quarter // 2) + (objects[:, k, 1] - 0.5) * 0.16
    cx = 0.25 + 0.5 * (quarter % 2) + (objects[:, k, 2] - 0.5) * 0.16
    return radius, cy.astype(np.float32), cx.astype(np.float32), 2 * np.pi * objects[:, k, 3]


def _inside(
    shape: np.ndarray, dy: np.ndarray, dx: np.ndarray, radius: np.ndarray, angle: np.ndarray, sharpness: float
) -> np.ndarray:
    """The share of each pixel that a shape covers, 0..1 (antialiased): (B, H, W). Outlines are radii by angle."""
    distance = np.sqrt(dy * dy + dx * dx)
    theta = np.arctan2(dy, dx) + angle[:, None, None]
    turn = ((theta / (2 * np.pi)) % 1 * len(_OUTLINES[0])).astype(np.int64) % len(_OUTLINES[0])
    outline = _OUTLINES[shape[:, None, None], turn] * radius[:, None, None]
    inside = np.clip((outline - distance) * sharpness + 0.5, 0, 1)
    hole = outline * _HOLES[shape][:, None, None]
    return inside * np.clip((distance - hole) * sharpness + 0.5, 0, 1)


def _textured(first: np.ndarray, second: np.ndarray, style: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Mix two colours (B, 3) by a pattern -> (B, H, W, 3). `style` (B, 4) in 0..1 gives its angle, scale, phase and
    kind: waves, bars, checks or dots. An image shows only a few of them, so that their course is visible."""
    angle, frequency, phase = style[:, 0] * np.pi, 0.8 + 1.4 * style[:, 1], style[:, 2]
    along = y[None] * np.sin(angle)[:, None, None] + x[None] * np.cos(angle)[:, None, None]
    across = y[None] * np.cos(angle)[:, None, None] - x[None] * np.sin(angle)[:, None, None]
    wave = np.sin(2 * np.pi * (frequency[:, None, None] * along + phase[:, None, None]))
    cross = np.sin(2 * np.pi * (frequency[:, None, None] * across + phase[:, None, None] * 3))
    kind = (style[:, 3] * 4).astype(np.int64)[:, None, None]
    pattern = np.select(
        [kind == 0, kind == 1, kind == 2],
        [0.5 + 0.5 * wave, np.clip(4 * wave + 0.5, 0, 1), np.clip(8 * wave * cross + 0.5, 0, 1)],
        np.clip(4 * (wave + cross) - 1.5, 0, 1),
    ).astype(np.float32)
    return first[:, None, None] + pattern[..., None] * (second - first)[:, None, None]


def _palette(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """One of 72 background colours from three draws (B,) in 0..1 -> RGB (B, 3) in 0..1. There are few, so that a model
    sees each often enough to learn it within minutes."""
    return _colours(np.floor(hue * 12) / 12, 0.25 + 0.35 * np.floor(saturation * 2), 0.25 + 0.3 * np.floor(value * 3))


def _colours(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """HSV, each (B,) in 0..1 -> RGB (B, 3) in 0..1."""
    k = (np.array([5, 3, 1])[None] + hue[:, None] * 6) % 6
    rgb = value[:, None] * (1 - saturation[:, None] * np.clip(np.minimum(k, 4 - k), 0, 1))
    return rgb.astype(np.float32)


def _outlines(steps: int = 720) -> np.ndarray:
    """Radius of each kind of shape by angle, at most 1.1: (kinds, steps)."""
    theta = np.arange(steps) / steps * 2 * np.pi

    def polygon(sides: int) -> np.ndarray:
        sector = 2 * np.pi / sides
        return np.cos(sector / 2) / np.cos(theta % sector - sector / 2)

    star = 0.42 + 0.58 * np.abs(1 - (theta * 5 / np.pi) % 2) ** 1.5
    near_axis = np.abs((theta + np.pi / 4) % (np.pi / 2) - np.pi / 4)  # angle to the nearest arm
    cross = np.minimum(1 / np.cos(near_axis), 0.32 / np.maximum(np.sin(near_axis), 1e-6))
    flower = 0.75 + 0.25 * np.cos(6 * theta)
    disk = np.full(steps, 0.9)
    outlines = [disk, polygon(4), polygon(3) * 1.1, star * 1.1, cross, flower, disk, polygon(4)]
    return np.stack(outlines).astype(np.float32)


_OUTLINES = _outlines()


_HOLES = np.array([0, 0, 0, 0, 0, 0, 0.55, 0.55], dtype=np.float32)  # share of the outline's radius: ring and frame
