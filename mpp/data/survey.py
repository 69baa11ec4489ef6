"""Look at a few images of a set before it is used: how many channels they have, and which values."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import numpy as np

from mpp.config.options import Augment, Data, Source
from mpp.data.bands import RANGES, Bands, Range
from mpp.data.decode import Opened, Unreadable, channels_of, is_transparent_tiff, size_as_seen, type_of, values
from mpp.data.images import Images, bands_of
from mpp.data.randomness import Purpose, generator
from mpp.errors import UserError, counted, is_first_process, warn

_FIRST = 16  # images that are tried for one that can be read


LOOKED_AT = 64  # images whose values are looked at


_VALUES = 20_000  # of each of them


_SLIVER = 1 / 8  # of the range: with fewer values than this in use, a bin of 3 bits holds all of them


_PHOTO = 1.5  # times the model's input: images from this size on are cropped at random


SomeAugment = TypeVar("SomeAugment", bound=Augment)


def surveyed(images: Images, data: Source) -> Bands:
    """--data.channels, or those of the first image of a set, and --data.range if it is numbers.

    Raises UserError if the first image cannot have so many channels.
    """
    low_high = data.range if isinstance(data, Data) and isinstance(data.range, tuple) else None
    where, image = _first(images)
    if image is None:  # reading them will say why
        return Bands(data.channels or 3, low_high)
    try:
        there = channels_of(image, data.channels)
    except Unreadable as error:
        raise UserError(f"--data.path {data.path}: {where}: {error}") from error
    if data.channels not in (None, there):
        raise UserError(
            f"--data.path {data.path}: {where} has {counted(there, 'channel')}, not the {data.channels} of "
            f"--data.channels; give other images, or what takes {there}"
        )
    if data.channels is None and is_transparent_tiff(image) and is_first_process():
        warn(
            f"{where} has a channel that is marked as transparency: images are laid on white; if it is infrared, say, "
            f"--data.channels {there + 1} reads it as a channel"
        )
    return Bands(there, low_high)


def settled(images: Images, data: Data) -> Bands:
    """The bands of a set with its range of values settled, by a look at training images.

    --data.range auto takes the percentiles 0.1 and 99.9 of their values. Raises UserError for types without a usual
    range, and warns of values that fill a sliver of it: all would fall into one bin.
    """
    bands, (_, image) = bands_of(images), _first(images)
    if data.range == "auto":
        bands = dataclasses.replace(bands, range=_found_range(images, data))
        if is_first_process():
            print(f"--data.range auto found --data.range {_shown(bands.range)} in {_number(images)} training images")
        return bands
    if image is None or (bands.range is None and type_of(image) == "uint8"):
        return bands
    usual = bands.range or _usual_range(image, data)
    low, high = _percentiles(images)
    if min(high, usual[1]) - max(low, usual[0]) < _SLIVER * (usual[1] - usual[0]) and is_first_process():
        warn(
            f"nearly all values of --data.path {data.path} lie in {_shown((low, high))}, a sliver of the range "
            f"{_shown(usual)} that is read; give --data.range auto, or --data.range LOW HIGH"
        )
    return bands


def noted(config: Any, images: Any) -> Any:
    """The options of a run with the range that --data.range auto has found, for its config.toml."""
    if config.data.range != "auto":
        return config
    data = dataclasses.replace(config.data, range=bands_of(images).range)
    return dataclasses.replace(config, data=data)


def cropped(augment: SomeAugment, images: Images, size: tuple[int, int]) -> SomeAugment:
    """The augmentation with --augment.crop auto settled by a look at the sizes of some images, for a model's `size`
    (H, W)."""
    if augment.crop != "auto":
        return augment
    rng, channels = generator(0, Purpose.SPLIT, 7), bands_of(images).channels
    some = images.read(np.sort(rng.permutation(len(images))[:_FIRST]).tolist())
    sides = [size_as_seen(image, channels) for image in some if not isinstance(image, Unreadable)]
    if not sides or np.median([min(h / size[0], w / size[1]) for h, w in sides]) < _PHOTO:
        return dataclasses.replace(augment, crop="pad")
    if is_first_process():
        height, width = np.median(sides, axis=0)
        print(
            f"images of about {width:.0f} x {height:.0f} are cropped at random to {size[1]} x {size[0]}; "
            f"--augment.crop pad takes their middle instead"
        )
    return dataclasses.replace(augment, crop="resized")


def _usual_range(image: Opened, data: Data) -> Range:
    kind = type_of(image)
    if (found := RANGES.get(kind)) is None:
        raise UserError(
            f"--data.path {data.path} holds {kind} values, which have no usual range: give --data.range LOW HIGH (the "
            f"values that are black and white), or --data.range auto"
        )
    return found


def _found_range(images: Images, data: Data) -> Range:
    low, high = _percentiles(images)
    if not low < high:
        raise UserError(
            f"--data.path {data.path}: --data.range auto finds only the value {low:g}; nothing can be learnt"
        )
    return low, high


def _percentiles(images: Images) -> Range:
    """The percentiles 0.1 and 99.9 of the values of a random sample, of all channels together; (0, 0) of none."""
    channels = bands_of(images).channels
    rng = generator(0, Purpose.SPLIT, 5)
    some = np.sort(rng.permutation(len(images))[:LOOKED_AT]).tolist()
    found = []
    for index in some:
        try:
            image = images.read([index])[0]
            if isinstance(image, Unreadable):
                continue
            array = values(image, size_as_seen(image, channels), channels=channels).reshape(-1)
        except Unreadable:  # training says so, or skips it
            continue
        found.append(array[rng.integers(0, array.size, _VALUES)] if array.size > _VALUES else array)
    if not found:
        return 0.0, 0.0
    low, high = np.percentile(np.concatenate(found), [0.1, 99.9])
    return float(f"{low:.6g}"), float(f"{high:.6g}")


def _first(images: Images) -> tuple[str, Opened | None]:
    """The first image that can be opened, and where it is."""
    for index in range(min(_FIRST, len(images))):
        image = images.read([index])[0]
        if not isinstance(image, Unreadable):
            return images.where(index), image
    return "", None


def _number(images: Images) -> int:
    return min(LOOKED_AT, len(images))


def _shown(low_high: Range | None) -> str:
    return " ".join(f"{value:g}" for value in low_high or ())
