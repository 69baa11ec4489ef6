"""Which images are trained on, which are held out, which labels are kept, and which of them to make choices by."""

from __future__ import annotations

import dataclasses

import numpy as np

from mpp.config.commands import Pretrain
from mpp.config.derived import images_seen
from mpp.config.options import Data, LabelledData
from mpp.data.images import HeldOut, Images, Subset, bands_of, open_images, with_bands
from mpp.data.pack_cache import packed_if_small
from mpp.data.randomness import Purpose, generator
from mpp.data.sources.labelled_shards import ShardImages
from mpp.data.sources.path import is_stream, is_unlabelled_stream, plain_folder, split_names
from mpp.data.sources.table import TableImages
from mpp.data.streams import Stream, held_out
from mpp.data.survey import LOOKED_AT, settled, surveyed
from mpp.errors import UserError

_HELD_OUT = 0.2  # of the training split, where a labelled set has no other to be measured on


def open_labelled(
    data: LabelledData, size: tuple[int, int], seed: int, seen: int = 0, remembered: set[str] | None = None
) -> tuple[Images, Images]:
    """The labelled images to fit on (`open_fitted`), and those to be measured on: --data.hold-out of the training
    split, or another split (`open_measured`), or a fifth where there is none with labels. A run that goes on with a
    changed set holds out the images that it did before: those `remembered` by name.
    """
    refuse_the_trained_split(data, "an accuracy on images that were learnt says nothing; name another")
    train, held = _fitted(data, size, seed, seen, remembered)
    test = with_bands(open_measured(as_trained(data, train), size) if held is None else held, bands_of(train))
    if train.label_names != test.label_names:
        raise UserError(f"--data.path {data.path}: its classes are not the same in the splits to train and measure on")
    return train, test


def refuse_the_trained_split(data: Data, advice: str) -> None:
    """Raise UserError if what is trained on was asked for as held out."""
    if data.eval_split == data.split:
        raise UserError(
            f"--data.eval-split {data.eval_split} is the split that is trained on, too (--data.split): {advice}"
        )


def open_fitted(data: LabelledData, size: tuple[int, int], seed: int, seen: int = 0) -> Images:
    """The labelled images to fit on: --data.labels of --data.fraction of those that are not held out. `seen` is how
    many images, at `size`, training will look at."""
    return _fitted(data, size, seed, seen)[0]


def _fitted(
    data: LabelledData, size: tuple[int, int], seed: int, seen: int = 0, remembered: set[str] | None = None
) -> tuple[Images, HeldOut | None]:
    """The labelled images to fit on, and those held out of the same split; None if another split is measured on."""
    train = _open(data, data.split, size)
    names = _label_names(train, data.split, data)
    if data.cache:
        train = packed_if_small(train, size, seen, data.cache_limit)
    held = None
    if (why := _why_held_out(data)) or remembered is not None:
        train, held = _held_out_of(train, data, why, remembered)
    if data.fraction < 1:
        train = Subset(train, take_fraction(np.arange(len(train)), data.fraction, seed))
    if len(train) < len(names):
        raise UserError(
            f"--data.path {data.path}: the {len(train):,} images of split {data.split} to be learnt (--data.fraction "
            f"{data.fraction}) are fewer than their {len(names)} classes"
        )
    count = len(train) if data.labels is None else data.labels
    if not len(names) <= count <= len(train):
        raise UserError(f"--data.labels {count} must be from {len(names)} (one a class) to {len(train):,} (all)")
    if count < len(train):
        train = Subset(train, draw_labels(train.labels(range(len(train))), count, seed))
    return with_bands(train, settled(train, data)), held


def open_held_out(data: LabelledData, size: tuple[int, int]) -> HeldOut:
    """The part of the training split that is held out, alone."""
    train = _open(data, data.split, size)
    _label_names(train, data.split, data)
    return _held_out_of(train, data, _why_held_out(data))[1]


def _why_held_out(data: LabelledData) -> str:
    """Why a part of the training split is held out to be measured on; "" if none is."""
    if data.hold_out is not None:
        return f"--data.hold-out {data.hold_out:g}"
    if data.eval_split:
        return ""
    splits = split_names(data.path, data.config)
    spare = [name for name in ("test", "validation") if name in splits and name != data.split]
    if any(open_images(data, name).label_names for name in spare):
        return ""
    why = f"split {' and '.join(spare)} has no labels" if spare else "the set has no split test or validation"
    others = [name for name in splits if name not in (data.split, *spare)]
    return why + (f"; --data.eval-split can name {' or '.join(others)}" if others else "")


def _held_out_of(
    train: Images, data: LabelledData, why: str, remembered: set[str] | None = None
) -> tuple[Subset, HeldOut]:
    """A split in two: what is left to train on, and --data.hold-out of it, class by class, the same for every seed;
    what a smaller share holds out, a larger one does too."""
    share = _HELD_OUT if data.hold_out is None else data.hold_out
    if remembered is None:
        order = generator(0, Purpose.SPLIT, 6).permutation(len(train))
        rest, held = _by_class(train.labels(range(len(train))), order, round(share * len(train)))
    else:
        held = _numbers_of(remembered, train.contents().names, data)
        rest, why = np.setdiff1d(np.arange(len(train)), held), "those that the run held out before"
    if not len(held):
        raise UserError(
            f"--data.path {data.path}: images are to be held out of split {data.split} ({why}), and one a class leaves "
            f"none; add images, or name a split to be measured on with --data.eval-split"
        )
    says = f"held out, class by class: {len(held):,} of the {len(train):,} images of split {data.split} ({why})"
    return Subset(train, rest), HeldOut(train, held, says)


def as_trained(data: Data, train: Images) -> Data:
    """The options of a set whose other images are read as those to train on are."""
    return dataclasses.replace(data, channels=bands_of(train).channels)


def _open(data: Data, split: str, size: tuple[int, int]) -> Images:
    images = open_images(data, split, size)
    return with_bands(images, surveyed(images, data))


def take_fraction(indices: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """--data.fraction of some images, chosen by the seed, the same with labels and without: sorted."""
    kept = max(1, round(len(indices) * fraction))
    return np.sort(generator(seed, Purpose.SPLIT).permutation(np.sort(indices))[:kept])


def open_measured(data: Data, size: tuple[int, int], alone: bool = False, unlabelled: bool = False) -> Images:
    """The labelled images to be measured on: --data.eval-split, else the set's test, else its validation split; with
    nothing learnt from this set (`alone`), its only split will do. `unlabelled`: the images may have no labels."""
    candidates = measured_split(data, alone)
    split, images = candidates[0], _open(data, candidates[0], size)
    if not images.label_names and len(candidates) > 1 and not unlabelled:  # as the test splits of many published sets
        split, images = candidates[1], _open(data, candidates[1], size)
    if not unlabelled:
        _label_names(images, split, data)
    return images


def measured_split(data: Data, alone: bool) -> list[str]:
    """The split to be measured on, and what takes its place if it has no labels: see `open_measured`."""
    splits = split_names(data.path, data.config)
    preferred = splits if alone and len(splits) == 1 else ("test", "validation")
    spare = [name for name in preferred if name in splits and (alone or name != data.split)]
    if not (candidates := [data.eval_split] if data.eval_split else spare):
        others = [name for name in splits if name != data.split]
        raise UserError(
            f"--data.path {data.path} has no split test or validation to be measured on"
            + (f"; name one of {', '.join(others)} with --data.eval-split" if others else "; put images into one")
        )
    return candidates


def open_whole(data: Data, size: tuple[int, int]) -> Images | Stream:
    """All images of --data.split, with labels or without, by index or streamed (shards without labels); of a set with
    one split, all."""
    splits = split_names(data.path, data.config)
    split = splits[0] if len(splits) == 1 and data.split == Data().split else data.split
    if not is_unlabelled_stream(data.path, data.config):
        return _open(data, split, size)
    stream = Stream.open(data.path, split, data.image_column, data.config, data.on_error)
    return with_bands(stream, surveyed(held_out(stream, LOOKED_AT), data))


def at_most(images: Images, count: int | None) -> Images:
    """All images, or `count` of them, the same for every seed."""
    if count is None or len(images) <= count:
        return images
    return Subset(images, np.sort(generator(0, Purpose.SPLIT).permutation(len(images))[:count]))


def draw_labels(labels: np.ndarray, count: int, seed: int, draw: int = 0) -> np.ndarray:
    """Choose `count` images, as evenly over the classes as it goes: their indices, sorted.

    Classes with too few images give all they have; what is missing is filled up from the others.
    """
    rng = generator(seed, Purpose.SPLIT, 2, draw)
    order = rng.permutation(len(labels))
    turns, _ = _turns(labels[order])
    return np.sort(order[np.argsort(turns, kind="stable")[:count]])


def fifth_to_choose_by(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices, sorted, of four fifths of the training labels to fit on and of one to choose by, class by class; of each
    class one at least is to fit on, so that of one label a class none is left to choose by."""
    return _by_class(labels, generator(seed, Purpose.SPLIT, 3).permutation(len(labels)), len(labels) // 5)


def _by_class(labels: np.ndarray, order: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices, sorted, of what is left and of `count` images (one at least) in equal shares of every class, chosen by
    their `order`; of each class one at least is left."""
    turns, sizes = _turns(labels[order])
    ranked = order[np.argsort((turns + 0.5) / sizes + (turns + 1 == sizes), kind="stable")]
    count = min(max(1, count), len(labels) - len(np.unique(labels)))
    return np.sort(ranked[count:]), np.sort(ranked[:count])


def _turns(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each image: how many of its class come before it, and how many its class has."""
    turns, sizes = np.empty((2, len(labels)), dtype=np.int64)
    for name in np.unique(labels):
        of_class = np.flatnonzero(labels == name)
        turns[of_class], sizes[of_class] = np.arange(len(of_class)), len(of_class)
    return turns, sizes


def _label_names(images: Images, split: str, data: Data) -> list[str]:
    names = images.label_names
    if not names:
        why = folder.why_no_labels(split, data.class_level) if (folder := plain_folder(data.path)) else ""
        raise UserError(f"--data.path {data.path} has no labels{why} (split {split}){_why_no_labels(images)}")
    if len(names) < 2:
        raise UserError(f"--data.path {data.path} has one class only ({names[0]}): there is nothing to tell apart")
    if isinstance(images, ShardImages):
        images.labels(range(len(images)))  # one that is missing is told now
    return names


def _why_no_labels(images: Images) -> str:
    """What a set without labels has instead, and what to do."""
    if isinstance(images, TableImages | ShardImages):
        return images.why_no_labels()
    return "; name their column when packing (mpp pack --data.label-column)"


def open_splits(
    config: Pretrain, size: tuple[int, int], remembered: set[str] | None = None
) -> tuple[Images | Stream, Images]:
    """The images to train on and the held-out ones.

    Held out, alike for every seed, is --data.eval-split, or the set's validation or test split; a set with none gives
    up a tenth of its images, but no more than --eval.images, and a stream its last shard. A run that goes on with a
    changed set holds out the images or shards that it did before: those `remembered` by name.
    """
    data = config.data
    splits = split_names(data.path, data.config)
    spare = [name for name in ("validation", "test") if name in splits and name != data.split]
    eval_split = data.eval_split or (spare[0] if spare else None)
    refuse_the_trained_split(data, "name another, or leave it out to hold some images out")
    if is_stream(data.path, data.config):
        return open_stream_splits(config, eval_split, remembered)

    train = _open(data, data.split, size)
    if data.cache:
        train = packed_if_small(train, size, images_seen(config.train), data.cache_limit)
    indices = np.arange(len(train))
    if eval_split is None:
        shuffled = generator(0, Purpose.SPLIT).permutation(indices)
        count = max(1, len(train) // 10)
        count = count if config.eval.images is None else min(config.eval.images, count)
        held = (
            np.sort(shuffled[:count]) if remembered is None else _numbers_of(remembered, train.contents().names, data)
        )
        evaluated: Images = HeldOut(train, held, f"held out: {len(held):,} of the {len(train):,} images")
        indices = np.setdiff1d(indices, held)
    else:
        evaluated = at_most(_open(as_trained(data, train), eval_split, size), config.eval.images)
    if not len(indices):
        raise UserError(f"--data.path {data.path} has one image: none is left to train on")
    if len(chosen := take_fraction(indices, data.fraction, config.seed)) < len(train):
        train = Subset(train, chosen)
    bands = settled(train, data)
    return with_bands(train, bands), with_bands(evaluated, bands)


def _numbers_of(remembered: set[str], names: list[str], data: Data) -> np.ndarray:
    """The numbers, sorted, of the images or shards with these names."""
    if not (found := [number for number, name in enumerate(names) if name in remembered]):
        raise UserError(
            f"--data.path {data.path} holds none any more of the {len(remembered):,} images or shards that this run "
            f"holds out; begin anew with another --output"
        )
    return np.array(found, dtype=np.int64)


def open_stream_splits(
    config: Pretrain, eval_split: str | None, remembered: set[str] | None = None
) -> tuple[Stream, Images]:
    """`open_splits` of WebDataset shards: whole shards are held out, and --data.fraction chooses among shards."""
    data = config.data
    train = Stream.open(data.path, data.split, data.image_column, data.config, data.on_error)
    numbers = np.arange(len(train.indices))
    if eval_split is not None:
        spare = Stream.open(data.path, eval_split, data.image_column, data.config, data.on_error)
    elif len(numbers) > 1:
        held = numbers[-1:] if remembered is None else _numbers_of(remembered, train.shard_names, data)
        spare, numbers = train.part(held), np.setdiff1d(numbers, held)
    else:
        raise UserError(
            f"--data.path {data.path} is one shard, which leaves none to evaluate on; split it in two, or name one "
            f"with --data.eval-split"
        )
    kept = max(1, round(len(numbers) * data.fraction))
    chosen = generator(config.seed, Purpose.SPLIT).permutation(numbers)[:kept]
    train, evaluated = train.part(np.sort(chosen)), held_out(spare, config.eval.images)
    bands = surveyed(evaluated, data)
    if data.range == "auto" or bands.range:
        bands = settled(with_bands(held_out(train, LOOKED_AT), bands), data)
    return with_bands(train, bands), with_bands(evaluated, bands)
