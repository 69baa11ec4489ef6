"""Images with a map each: the class of every pixel, or its depth. From `shapes`, or from files beside the images."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from mpp.config.dense import Dense
from mpp.config.options import MeasuredData
from mpp.data.augment import centred_box
from mpp.data.decode import Unreadable, size_as_seen
from mpp.data.images import HeldOut, Images, Subset, bands_of, open_images, with_bands
from mpp.data.randomness import Purpose, generator
from mpp.data.sources.path import plain_folder, split_names
from mpp.data.sources.shapes import Shapes
from mpp.data.splits import refuse_the_trained_split, take_fraction
from mpp.data.survey import settled, surveyed
from mpp.errors import UserError, counted, printable

CLASSES = "classes.txt"  # in a set's folder: the names of the classes, a line each
IGNORED = -1  # the class of pixels that count for nothing
_HELD_OUT = 0.2  # of the training split, where there is no other with maps
_GREY = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")  # modes of PNG with one number a pixel


class Maps(Protocol):
    """The maps of a split's images."""

    def map(self, number: int) -> np.ndarray:
        """The map of an image at its own size (H, W): classes, int64 with IGNORED, or depths, float32 with NaN."""
        ...


@dataclass(frozen=True)
class Mapped:
    """Some images of a split, each with a map."""

    images: Images
    numbers: np.ndarray  # of the images in their split
    maps: Maps

    def __len__(self) -> int:
        return len(self.numbers)

    def part(self, places: np.ndarray) -> Mapped:
        """Some of these images."""
        return Mapped(Subset(self.images, places), self.numbers[places], self.maps)

    def map(self, place: int, size: tuple[int, int]) -> np.ndarray:
        """The map of the part of an image that a model of input `size` (H, W) sees, in the map's own resolution."""
        found = self.maps.map(int(self.numbers[place]))
        left, top, right, bottom = map(round, centred_box(found.shape[0], found.shape[1], size[1] / size[0]))
        return found[top : max(bottom, top + 1), left : max(right, left + 1)]


@dataclass(frozen=True)
class ShapeMaps:
    """What the built-in scenes show."""

    shapes: Shapes
    task: str

    def map(self, number: int) -> np.ndarray:
        return (self.shapes.masks if self.task == "segmentation" else self.shapes.depths)([number])[0]


@dataclass(frozen=True)
class FileMaps:
    """PNG files in folders called `folder` beside those of the images, or in place of one of them."""

    images: Images
    root: Path
    config: Dense
    names: tuple[str, ...] = ()  # of the classes; () if they are not known

    def candidates(self, number: int) -> list[Path]:
        """Where the map of an image may lie: its own place with another folder in place of one, the innermost first."""
        *folders, file = self._place(number).with_suffix(".png").parts
        replaced = [[*folders[:i], self.config.masks, *folders[i + 1 :]] for i in reversed(range(len(folders)))]
        return [self.root.joinpath(*parts, file) for parts in [*replaced, [*folders, self.config.masks]]]

    def file(self, number: int) -> Path | None:
        """The map of an image; None if there is none."""
        return next((path for path in self.candidates(number) if path.is_file()), None)

    def is_image(self, number: int) -> bool:
        """Whether a picture of the set is an image, and no map itself."""
        return self.config.masks not in self._place(number).parts[:-1]

    def map(self, number: int) -> np.ndarray:
        if (file := self.file(number)) is None:
            raise self.none_there([number])
        values = _values(file)
        image = self.images.read([number])[0]
        if not isinstance(image, Unreadable) and (size := size_as_seen(image)) != values.shape:
            raise UserError(
                f"{printable(str(file))} is {values.shape[1]} x {values.shape[0]}, and its image "
                f"{self.images.where(number)} {size[1]} x {size[0]}: they must be of one size"
            )
        if self.config.task == "depth":
            ignored = values == (0 if self.config.ignore is None else self.config.ignore)
            return np.where(ignored, np.nan, values * self.config.depth_unit).astype(np.float32)
        return self._classes(values, file)

    def _classes(self, values: np.ndarray, file: Path) -> np.ndarray:
        ignored = values == (255 if self.config.ignore is None else self.config.ignore)
        found = np.where(ignored, IGNORED, values).astype(np.int64)
        if self.names and found.max() >= len(self.names):
            source = "classes.txt" if (self.root / CLASSES).is_file() else "the training masks"
            raise UserError(
                f"{printable(str(file))} has class {found.max()}, and by {source} the classes are 0 to "
                f"{len(self.names) - 1}; name it in classes.txt, or --ignore {found.max()}"
            )
        return found

    def none_there(self, missing: list[int]) -> UserError:
        """What is said of images without a map."""
        first = [printable(str(path)) for path in self.candidates(missing[0])]
        return UserError(
            f"--data.path {self.root}: {counted(len(missing), 'image')} without a mask, the first: "
            f"{self.images.where(missing[0])}; it would be {' or '.join(first[:3])} (--masks names other folders)"
        )

    def _place(self, number: int) -> Path:
        return Path(self.images.where(number)).relative_to(self.root)


def _values(file: Path) -> np.ndarray:
    """The numbers in a PNG, (H, W)."""
    try:
        with Image.open(file, formats=["PNG"]) as picture:
            if picture.mode in _GREY:
                return np.asarray(picture).astype(np.int64)
            mode = picture.mode
    except Exception as error:  # PIL raises nearly any exception on damaged files
        raise UserError(f"{printable(str(file))} could not be read ({error}); put a whole PNG in its place") from error
    raise UserError(
        f"{printable(str(file))} is a colour picture ({mode}), which does not say what its colours mean: a mask is a "
        f"palette or grey PNG of class numbers, a depth a grey one of 8 or 16 bits"
    )


@contextmanager
def masks_are_read() -> Iterator[None]:
    """Leave out the notice that pictures beside the images are no images, where it is of these alone: here they are
    read."""
    with warnings.catch_warnings():
        notice = r"[\d,]+ files? (is|are) left out[^;]*\(labels, masks or predictions of the images beside them[^;]*$"
        warnings.filterwarnings("ignore", notice)
        yield


@masks_are_read()
def open_mapped(config: Dense, data: MeasuredData, size: tuple[int, int]) -> tuple[Mapped, Mapped, list[str]]:
    """The images to fit on and to be measured on, and the names of the classes (of depth none). `data` are the options
    as the backbone takes them, `size` its input (H, W)."""
    if data.path != "shapes" and plain_folder(data.path) is None:
        raise UserError(f"--data.path {data.path}: masks are read for `shapes`, or from a folder of images and masks")
    refuse_the_trained_split(data, "what was learnt from these masks says nothing of others; name another")
    train = _open(config, data, data.split, size)
    held = _split_with_maps(config, data, size, train)
    if held is None:
        train, held = _held_out_of(train, data)
    bands = settled(train.images, data)
    train = dataclasses.replace(train, images=with_bands(train.images, bands))
    held = dataclasses.replace(held, images=with_bands(held.images, bands))
    if data.fraction < 1:
        train = train.part(take_fraction(np.arange(len(train)), data.fraction, config.seed))
    if len(train) > config.images:
        order = generator(config.seed, Purpose.SPLIT, 9).permutation(len(train))
        train = train.part(np.sort(order[: config.images]))
    if len(held) > config.eval_images:
        held = held.part(np.sort(generator(0, Purpose.SPLIT).permutation(len(held))[: config.eval_images]))
    if len(train) < 5:
        raise UserError(
            f"--data.path {data.path}: {counted(len(train), 'image')} to fit on are too few; give 5 or more"
        )
    if config.task == "depth":
        return train, held, []
    names = class_names(config, train)
    return _with_names(train, names), _with_names(held, names), names


def class_names(config: Dense, train: Mapped) -> list[str]:
    """The names of the classes: those of `shapes`, of classes.txt, or numbers up to the highest in a training mask."""
    if isinstance(train.maps, ShapeMaps):
        return ["background", *train.maps.shapes.label_names]
    assert isinstance(train.maps, FileMaps)
    file = train.maps.root / CLASSES
    if file.is_file():
        names = [line.strip() for line in file.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()]
    else:
        highest = max(int(train.maps.map(int(number)).max()) for number in train.numbers)
        names = [f"class {number}" for number in range(highest + 1)]
    if len(names) < 2:
        raise UserError(
            f"--data.path {config.data.path}: its masks have one class only: there is nothing to tell apart"
        )
    return names


def _open(config: Dense, data: MeasuredData, split: str, size: tuple[int, int]) -> Mapped:
    """All images of a split that have a map; all must, if one has."""
    images = open_images(data, split, size)
    images = with_bands(images, surveyed(images, data))
    if isinstance(images, Shapes):
        return Mapped(images, np.arange(len(images)), ShapeMaps(images, config.task))
    maps = FileMaps(images, Path(data.path).expanduser().absolute(), config)
    numbers = [number for number in range(len(images)) if maps.is_image(number)]
    if missing := [number for number in numbers if maps.file(number) is None]:
        raise maps.none_there(missing)
    return Mapped(Subset(images, np.array(numbers, np.int64)), np.array(numbers, np.int64), maps)


def _split_with_maps(config: Dense, data: MeasuredData, size: tuple[int, int], train: Mapped) -> Mapped | None:
    """The split to be measured on: --data.eval-split, else test, else validation if its images have maps; None if a
    part of the training split is to be held out."""
    if data.hold_out is not None:
        return None
    data = dataclasses.replace(data, channels=bands_of(train.images).channels)
    if data.eval_split:
        return _open(config, data, data.eval_split, size)
    splits = [name for name in ("test", "validation") if name in split_names(data.path) and name != data.split]
    for number, split in enumerate(splits):
        try:
            return _open(config, data, split, size)
        except UserError:  # as the test splits of many published sets, whose masks are kept back
            if number + 1 == len(splits):
                raise
    return None


def _held_out_of(train: Mapped, data: MeasuredData) -> tuple[Mapped, Mapped]:
    """A split in two: what is left to fit on, and --data.hold-out of it (a fifth), the same for every seed."""
    share = _HELD_OUT if data.hold_out is None else data.hold_out
    order = generator(0, Purpose.SPLIT, 6).permutation(len(train))
    count = min(max(1, round(share * len(train))), len(train) - 1)
    rest, places = np.sort(order[count:]), np.sort(order[:count])
    says = f"held out: {count:,} of the {len(train):,} images of split {data.split}"
    held = Mapped(HeldOut(train.images, places, says), train.numbers[places], train.maps)
    return train.part(rest), held


def _with_names(mapped: Mapped, names: list[str]) -> Mapped:
    if isinstance(mapped.maps, FileMaps):
        return dataclasses.replace(mapped, maps=dataclasses.replace(mapped.maps, names=tuple(names)))
    return mapped


def patches_of(found: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The number of the patch that each pixel of a map belongs to, by its centre: (H, W) int64."""
    height, width = found.shape
    rows = ((np.arange(height) + 0.5) / height * grid[0]).astype(np.int64)
    columns = ((np.arange(width) + 0.5) / width * grid[1]).astype(np.int64)
    return rows[:, None] * grid[1] + columns[None]


def class_shares(found: np.ndarray, grid: tuple[int, int], classes: int) -> np.ndarray:
    """The share of each patch's pixels that each class has; they sum to less than 1 where pixels are ignored: classes
    (H, W) -> (N, classes) float32."""
    patch, counted_in = patches_of(found, grid), found != IGNORED
    size = grid[0] * grid[1]
    counts = np.bincount(patch[counted_in] * classes + found[counted_in], minlength=size * classes)
    pixels = np.bincount(patch.reshape(-1), minlength=size)
    return (counts.reshape(size, classes) / np.maximum(1, pixels)[:, None]).astype(np.float32)


def mean_depths(found: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The mean depth of each patch and the share of its pixels that have one: (H, W) -> (N, 2) float32."""
    patch, there = patches_of(found, grid), ~np.isnan(found)
    size = grid[0] * grid[1]
    count = np.bincount(patch[there], minlength=size)
    total = np.bincount(patch[there], weights=found[there], minlength=size)
    pixels = np.bincount(patch.reshape(-1), minlength=size)
    return np.stack([total / np.maximum(1, count), count / np.maximum(1, pixels)], axis=1).astype(np.float32)
