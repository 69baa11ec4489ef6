"""Labelled sets that lie on the disk once a library or a Debian package is installed: tasks without a download."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mpp.data.randomness import Purpose, generator

Splits = tuple[Mapping[str, tuple[Any, Sequence[int]]], list[str]]

FASHION = Path("/usr/share/dataset-fashion-mnist")  # of Debian's package dataset-fashion-mnist
_CLOTHES = ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
_TEST = 297  # of the 1,797 digits
_VIEWS, _SIDE = 100, 64  # squares cut from each half of a picture, and their side in pixels
_PICTURES = [
    "astronaut",
    "brick",
    "camera",
    "cat",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "moon",
    "page",
    "rocket",
    "text",
]


def digits(folder: Path) -> Splits:
    """Handwritten digits (8 x 8 pixels) of the package scikit-learn, which needs no folder."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = (found.images * (255 / 16)).round().astype(np.uint8)[..., None].repeat(3, axis=-1)
    order = generator(0, Purpose.SPLIT, 8).permutation(len(images))
    parts = {"train": np.sort(order[_TEST:]), "test": np.sort(order[:_TEST])}
    return {name: (images[of], found.target[of].tolist()) for name, of in parts.items()}, [str(n) for n in range(10)]


def fashion_mnist(folder: Path) -> Splits:
    """The four .gz files of Fashion-MNIST in the folder, or where Debian's package dataset-fashion-mnist has them."""
    here = folder if (folder / "train-images-idx3-ubyte.gz").exists() else FASHION
    found = {}
    for split, stem in (("train", "train"), ("test", "t10k")):
        images = idx(here / f"{stem}-images-idx3-ubyte.gz")[..., None].repeat(3, axis=-1)
        found[split] = (images, idx(here / f"{stem}-labels-idx1-ubyte.gz").tolist())
    return found, _CLOTHES


def idx(file: Path) -> np.ndarray:
    """An array of bytes as MNIST's page has it: two zeros, the type (8), the number of dimensions, these, values."""
    with gzip.open(file) as opened:
        content = opened.read()
    zero, kind, dimensions = struct.unpack_from(">HBB", content)
    if (zero, kind) != (0, 8):
        raise ValueError(f"{file.name} is no idx file of bytes")
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def pictures(folder: Path) -> Splits:
    """Squares cut from 12 pictures of the package scikit-image, which needs no folder; the label is the picture."""
    from skimage import data

    rng = generator(0, Purpose.SPLIT, 8)
    found: dict[str, tuple[list[Image.Image], list[int]]] = {"train": ([], []), "test": ([], [])}
    for number, name in enumerate(_PICTURES):
        picture = Image.fromarray(getattr(data, name)()).convert("RGB")
        half = picture.width // 2
        for split, left in (("train", 0), ("test", half)):
            for _ in range(_VIEWS):
                x, y = left + int(rng.integers(half - _SIDE)), int(rng.integers(picture.height - _SIDE))
                found[split][0].append(picture.crop((x, y, x + _SIDE, y + _SIDE)))
                found[split][1].append(number)
    return found, list(_PICTURES)
