"""The structured tasks of VTAB, whose labels are made from what is known of a scene: how many, how far, which way.

Thresholds, numbers of classes and shares of the splits are those of github.com/google-research/task_adaptation
(data/clevr.py, kitti.py, dsprites.py, smallnorb.py, dmlab.py).
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mpp.data.randomness import Purpose, generator
from mpp.data.sources.memory import Squared

Splits = tuple[Mapping[str, tuple[Any, Sequence[int]]], list[str]]

_CLEVR_BOUNDS = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0)
_KITTI_BOUNDS = (-100.0, 8.0, 20.0, 999.0)
_NO_VEHICLE = 1000.0  # metres, for a street without one
_VEHICLES = ("Car", "Van", "Truck")
_TEST_VIDEOS = 10  # percent of KITTI's videos
_TEST_SPRITES = 10  # percent of dSprites
_NORB: dict[int, Any] = {507333717: np.uint8, 507333716: "<i4"}  # how a file of smallNORB begins: bytes, integers


def bin_of(value: float, bounds: Sequence[float]) -> int:
    """The number of the last bound that a value is above."""
    return int(np.flatnonzero(np.asarray(bounds) < value).max())


def squared(path: Path | str) -> Squared:
    """The picture in a file, as VTAB resizes it: to a square, however wide it is."""
    return Squared(partial(Path.read_bytes, Path(path)))


# CLEVR


def clevr_count(folder: Path) -> Splits:
    """`clevr/CLEVR_v1.0` with images/ and scenes/, as torchvision downloads it; the label is the number of objects."""
    return _clevr(folder, lambda objects: len(objects) - 3), [str(count) for count in range(3, 11)]


def clevr_distance(folder: Path) -> Splits:
    """`clevr/CLEVR_v1.0` with images/ and scenes/, as torchvision downloads it; the label is the nearest's distance."""
    splits = _clevr(folder, lambda objects: bin_of(min(o["pixel_coords"][2] for o in objects), _CLEVR_BOUNDS))
    return splits, [f"{low:g} to {high:g}" for low, high in pairwise(_CLEVR_BOUNDS)]


def _clevr(folder: Path, label: Callable[[list[dict[str, Any]]], int]) -> dict[str, tuple[Any, Sequence[int]]]:
    here = folder / "clevr" / "CLEVR_v1.0"
    found: dict[str, tuple[Any, Sequence[int]]] = {}
    for split, part in (("train", "train"), ("test", "val")):  # CLEVR's own test part has no scenes
        scenes = json.loads((here / "scenes" / f"CLEVR_{part}_scenes.json").read_text(encoding="utf-8"))["scenes"]
        pictures = [squared(here / "images" / part / scene["image_filename"]) for scene in scenes]
        found[split] = (pictures, [label(scene["objects"]) for scene in scenes])
    return found


# KITTI


def kitti_distance(folder: Path) -> Splits:
    """`Kitti/raw` with training/image_2, training/label_2 and devkit_object.zip's mapping/, as on KITTI's own page."""
    here = folder / "Kitti" / "raw"
    tested = _test_images(here / "mapping")
    found: dict[str, tuple[Any, list[int]]] = {"train": ([], []), "test": ([], [])}
    for file in sorted((here / "training" / "label_2").glob("*.txt")):
        rows = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
        nearest = min((float(row[13]) for row in rows if row and row[0] in _VEHICLES), default=_NO_VEHICLE)
        pictures, labels = found["test" if int(file.stem) in tested else "train"]
        pictures.append(squared(here / "training" / "image_2" / f"{file.stem}.png"))
        labels.append(bin_of(nearest, _KITTI_BOUNDS))
    return found, ["below 8 m", "8 to 20 m", "above 20 m", "no vehicle"]


def _test_images(mapping: Path) -> set[int]:
    """The images of a tenth of the videos, those that TensorFlow's copy of KITTI tests on (its `_build_splits`)."""
    lines = (mapping / "train_mapping.txt").read_text(encoding="utf-8").splitlines()
    numbers = (mapping / "train_rand.txt").read_text(encoding="utf-8").split(",")
    images = defaultdict(list)
    for image, number in enumerate(numbers):
        images[lines[int(number) - 1].split()[1]].append(image)
    count = max(1, _TEST_VIDEOS * len(images) // 100)
    tested = np.random.RandomState(123).choice(sorted(images), count, replace=False)
    return {image for video in tested for image in images[video]}


# dSprites


class Sprites:
    """Pictures of 64 x 64 that are black and white, a bit a pixel: all 737,280 are 378 MB."""

    def __init__(self, bits: np.ndarray, indices: np.ndarray) -> None:
        self.bits, self.indices = bits, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Image.Image:
        bits = np.unpackbits(self.bits[self.indices[index]]).reshape(64, 64)
        return Image.fromarray(bits * np.uint8(255)).convert("RGB")


def dsprites_location(folder: Path) -> Splits:
    """`dsprites/dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz`; the label is the x position, in 16 bins."""
    return _dsprites(folder, column=4, values=32)


def dsprites_orientation(folder: Path) -> Splits:
    """`dsprites/dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz`; the label is the orientation, in 16 bins."""
    return _dsprites(folder, column=3, values=40)


def _dsprites(folder: Path, column: int, values: int) -> Splits:
    bits, latents = _sprites(folder / "dsprites" / "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz")
    labels = (latents[:, column] / (values / 16)).astype(np.int64)
    order = generator(0, Purpose.SPLIT, 8).permutation(len(bits))
    tested = len(bits) * _TEST_SPRITES // 100
    parts = {"train": np.sort(order[tested:]), "test": np.sort(order[:tested])}
    return {name: (Sprites(bits, of), labels[of].tolist()) for name, of in parts.items()}, [str(n) for n in range(16)]


@cache
def _sprites(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """All pictures as bits (N, 512), and their latent classes (N, 6), read in pieces: unpacked they are 3 GB."""
    with np.load(file, allow_pickle=False) as arrays:
        latents = arrays["latents_classes"]
    with zipfile.ZipFile(file) as archive, archive.open("imgs.npy") as images:
        np.lib.format.read_magic(images)
        (count, *size), *_ = np.lib.format.read_array_header_1_0(images)
        bits = np.empty((count, int(np.prod(size)) // 8), np.uint8)
        for start in range(0, count, 4096):
            piece = np.frombuffer(images.read(min(4096, count - start) * int(np.prod(size))), np.uint8)
            bits[start : start + 4096] = np.packbits(piece.reshape(-1, int(np.prod(size))), axis=1)
    return bits, latents


# smallNORB


def norb_azimuth(folder: Path) -> Splits:
    """`smallnorb` with the -dat.mat and -info.mat files of smallNORB, unpacked; the label is the azimuth, of 18."""
    return _norb(folder, column=2, step=2), [f"{20 * n} degrees" for n in range(18)]


def norb_elevation(folder: Path) -> Splits:
    """`smallnorb` with the -dat.mat and -info.mat files of smallNORB, unpacked; the label is the elevation, of 9."""
    return _norb(folder, column=1, step=1), [f"{30 + 5 * n} degrees" for n in range(9)]


def _norb(folder: Path, column: int, step: int) -> dict[str, tuple[Any, Sequence[int]]]:
    """The left camera's pictures. Half of the toys' test part is trained on, too, as in VTAB."""
    images, labels = {}, {}
    for part, toys in (("training", "46789"), ("testing", "01235")):
        stem = folder / "smallnorb" / f"smallnorb-5x{toys}x9x18x6x2x96x96-{part}"
        images[part] = norb_matrix(Path(f"{stem}-dat.mat"))[:, 0]
        labels[part] = norb_matrix(Path(f"{stem}-info.mat"))[:, column] // step
    order = generator(0, Purpose.SPLIT, 8).permutation(len(labels["testing"]))
    more, test = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
    every = [(images["training"], number) for number in range(len(labels["training"]))]
    train = Greys([*every, *((images["testing"], int(number)) for number in more)])
    return {
        "train": (train, [*labels["training"].tolist(), *labels["testing"][more].tolist()]),
        "test": (Greys([(images["testing"], int(number)) for number in test]), labels["testing"][test].tolist()),
    }


class Greys:
    """Grey pictures, each an array on the disk and its number in it."""

    def __init__(self, places: list[tuple[np.ndarray, int]]) -> None:
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Image.Image:
        images, number = self.places[index]
        return Image.fromarray(images[number]).convert("RGB")


def norb_matrix(file: Path) -> np.ndarray:
    """A matrix in the format of smallNORB's page: magic, number of dimensions, at least three of them, values."""
    with file.open("rb") as opened:
        magic, dimensions = struct.unpack("<ii", opened.read(8))
        if magic not in _NORB:
            raise ValueError(f"{file.name} is no unpacked matrix of smallNORB")
        shape = struct.unpack(f"<{dimensions}i", opened.read(4 * dimensions))
    return np.memmap(file, _NORB[magic], "r", offset=8 + 4 * max(3, dimensions), shape=shape)


# DMLab


def dmlab(folder: Path) -> Splits:
    """`dmlab` with dmlab-train.tfrecord* and those of validation and test, from VTAB's dmlab.tar.gz."""
    found: dict[str, tuple[Any, list[int]]] = {}
    for split, parts in (("train", ("train", "validation")), ("test", ("test",))):
        files = [file for part in parts for file in sorted((folder / "dmlab").glob(f"dmlab-{part}.tfrecord*"))]
        if not files:
            raise FileNotFoundError(f"no dmlab-{parts[0]}.tfrecord there")
        places = [(file, *place) for file in files for place in records(file)]
        labels = [_example(*place).features.feature["label"].int64_list.value[0] for place in places]
        found[split] = ([Squared(partial(_picture, *place)) for place in places], labels)
    return found, [str(number) for number in range(6)]


def records(file: Path) -> list[tuple[int, int]]:
    """Offset and length of every record of a TFRecord file: length, its checksum, the record, its checksum."""
    found, at, size = [], 0, file.stat().st_size
    with file.open("rb") as opened:
        while at < size:
            opened.seek(at)
            (length,) = struct.unpack("<Q", opened.read(8))
            found.append((at + 12, length))
            at += 12 + length + 4
    if at != size:
        raise ValueError(f"{file.name} is cut short")
    return found


def _picture(file: Path, offset: int, length: int) -> bytes:
    return _example(file, offset, length).features.feature["image"].bytes_list.value[0]


def _example(file: Path, offset: int, length: int) -> Any:
    with file.open("rb") as opened:
        opened.seek(offset)
        return example_message().FromString(opened.read(length))


@cache
def example_message() -> Any:
    """The message tf.train.Example (tensorflow/core/example/example.proto): features by name, each a list."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="mpp_example.proto", package="mpp_example", syntax="proto3")
    kinds = {"BytesList": 12, "FloatList": 2, "Int64List": 3}  # bytes, float, int64
    for name, kind in kinds.items():
        file.message_type.add(name=name).field.add(name="value", number=1, type=kind, label=3)
    feature = file.message_type.add(name="Feature")
    for number, (field, name) in enumerate(zip(("bytes_list", "float_list", "int64_list"), kinds, strict=True), 1):
        feature.field.add(name=field, number=number, type=11, label=1, type_name=f".mpp_example.{name}")
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=9, label=1)
    entry.field.add(name="value", number=2, type=11, label=1, type_name=".mpp_example.Feature")
    features.field.add(name="feature", number=1, type=11, label=3, type_name=".mpp_example.Features.FeatureEntry")
    example = file.message_type.add(name="Example")
    example.field.add(name="features", number=1, type=11, label=1, type_name=".mpp_example.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("mpp_example.Example"))
