"""The command `doctor`: what is wrong with a set of images, what is in it twice, and how to pretrain on it."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpp.commands.advice import Seen, advised, as_line
from mpp.commands.embed import embeddings
from mpp.commands.twins import FLAT, Twins
from mpp.config.options import Source
from mpp.config.using import Doctor
from mpp.data.bands import RANGES, Bands
from mpp.data.examine import Examined, examine
from mpp.data.images import Images, open_images, with_bands
from mpp.data.parts import Parts
from mpp.data.sources.path import is_stream, is_unlabelled_stream, split_names
from mpp.data.streams import Stream
from mpp.errors import UserError, counted, listed, printable, renamed, warn
from mpp.evaluation.predictions import write_table
from mpp.models.backbones import load_backbone
from mpp.run.folder import why_unwritable
from mpp.run.machine import cores_a_process, let_go, start_accelerator

_WORTH_WORKERS = 4096  # images: for fewer, starting the processes takes longer than they save


def run_doctor(config: Doctor) -> dict[str, Any]:
    """Examine, compare, print, advise; returns the counts."""
    started = time.perf_counter()
    if config.out and (why := _why_not(Path(config.out), config.overwrite)):
        raise UserError(f"--out {config.out} cannot be written ({why})")
    mine = looked_through(config.data, config.workers)
    with renamed("--data.path", "--against", [config.against or ""]):
        theirs = looked_through(Source(path=config.against), config.workers) if config.against else []
    splits = [*mine, *theirs]
    if not any(map(len, splits)):
        raise UserError(f"--data.path {config.data.path}: none of its images can be read")
    twins = Twins(splits, features_of(splits, config.init) if config.init else None)
    for number, split in enumerate(mine):
        print("\n".join([*told(split, config.data.path), *twins.told(number, number)]))
    for other in range(1, len(splits)):
        for one in range(min(other, len(mine))):
            of = "" if other < len(mine) else f" of {printable(config.against or '')}"
            print(f"split {printable(splits[other].split)}{of} beside split {printable(splits[one].split)}:")
            print("\n".join(twins.told(one, other)))
    seen = seen_for_advice(mine, config.data)
    words, reasons = advised(seen, config.data)
    print(f"\nto begin with:\n  {as_line(words)}")
    print("\n".join(f"  {reason}" for reason in reasons))
    if config.out:
        write_table(twins.table(), config.out, config.overwrite)
        print(f"{config.out}: every pair, and every image that cannot be read")
    print(f"{sum(map(len, splits)):,} images looked at in {time.perf_counter() - started:.0f} s")
    everywhere = [(one, other) for other in range(len(splits)) for one in range(other + 1)]
    return {
        "images": {split.split: len(split) for split in mine},
        "unreadable": sum(len(split.unreadable) for split in mine),
        "identical": sum(len(twins.identical(*pair)) for pair in everywhere),
        "alike": sum(len(twins.alike(*pair)) for pair in everywhere),
        "command": as_line(words),
    }


def _why_not(out: Path, overwrite: bool) -> str | None:
    if out.exists() and not (out.is_file() and overwrite):
        return "it exists; --overwrite replaces it" if out.is_file() else "it is a folder, a pipe or a device"
    return why_unwritable(out.parent)


def looked_through(data: Source, workers: int | None) -> list[Examined]:
    """Every split of a set, examined."""
    found = []
    for split in split_names(data.path, data.config):
        parts = Parts(_opened(data, split))
        many = parts.total is None or parts.total > _WORTH_WORKERS
        asked = min(8, cores_a_process()) if workers is None else workers
        found.append(examine(parts, split, asked if many and asked > 1 else 0))
    return found


def _opened(data: Source, split: str) -> Images | Stream:
    """A split by index, or streamed if it has no labels or one of its shards is damaged."""
    if not is_unlabelled_stream(data.path, data.config):
        try:
            return open_images(data, split)
        except UserError as error:
            if not is_stream(data.path, data.config):
                raise
            warn(f"{error}; labels are not looked at")
    return Stream.open(data.path, split, data.image_column, data.config, "skip")


def told(split: Examined, path: str) -> list[str]:
    """What is to be said of a split."""
    lines = [f"{printable(path)}, split {printable(split.split)}: {len(split):,} images"]
    if unread := split.unreadable:
        where, why = next(iter(unread.items()))
        lines.append(f"  unreadable: {len(unread):,}, the first: {printable(where)} ({printable(why)})")
    if not len(split):
        return lines
    short, sizes = split["size"].min(1), Counter(map(tuple, split["size"].tolist()))
    (height, width), count = sizes.most_common(1)[0]
    shape = f"all {height} x {width}"
    if len(sizes) > 1:
        shape = f"short side {short.min():,} to {short.max():,}, median {int(np.median(short)):,}; {len(sizes):,} sizes"
        shape += f", the commonest {height} x {width} ({count / len(split):.0%})"
    kinds = Counter(zip(split["type"].tolist(), split["channels"].tolist(), strict=True)).most_common()
    lines.append(f"  sizes: {shape}")
    for (kind, channels), count in kinds:
        mine = (split["type"] == kind) & (split["channels"] == channels)
        low, high = split["low"][mine].min(), split["high"][mine].max()
        lines.append(f"  values: {count:,} of {channels} x {kind}, from {low:g} to {high:g}")
    flat = int((split["spread"] < FLAT).sum())
    entropy, commonest = colour_entropy(split["colours"])
    lines.append(
        f"  colours of patches: {entropy:.1f} of 9 bits, the commonest of 512 bins holds {commonest:.0%}"
        + (f"; {flat:,} image{'s show' if flat > 1 else ' shows'} next to nothing in grey" if flat else "")
    )
    if split.parts.label_names:
        classes = Counter(split["label"])
        none = classes.pop(None, 0)
        ordered = classes.most_common()
        most, fewest = ordered[0][1], ordered[-1]
        lines.append(
            f"  classes: {len(classes):,}, the largest {most / fewest[1]:.1f} times the smallest: "
            f"{listed(f'{name} {count:,}' for name, count in ordered[:3])} ... {printable(fewest[0])} {fewest[1]:,}"
            + (f"; {none:,} images without a label" if none else "")
        )
    return lines


def colour_entropy(colours: np.ndarray) -> tuple[float, float]:
    """Entropy in bits, at most 9, of the colour bins (3 bits a channel) of an image's 8 x 8 cells, and the share of the
    commonest: what guessing it would have right. Shapes: (M, 8, 8, 3) uint8."""
    bins = (colours >> 5).astype(np.int64).reshape(-1, 3) @ np.array([64, 8, 1])
    shares = np.bincount(bins, minlength=512) / len(bins)
    some = shares[shares > 0]
    return float(-(some * np.log2(some)).sum()), float(shares.max())


def seen_for_advice(splits: list[Examined], data: Source) -> Seen:
    """What the advice depends on, of the split that is trained on."""
    split = next((split for split in splits if split.split == "train" and len(split)), max(splits, key=len))
    odd = False
    for kind in set(split["type"].tolist()) - {"uint8"}:
        mine = split["type"] == kind
        low, high = RANGES.get(kind, (0.0, np.inf))
        odd |= bool(split["high"][mine].max() - split["low"][mine].min() < (high - low) / 8)
    return Seen(
        images=len(split),
        side=int(np.median(split["size"].min(1))),
        unreadable=len(split.unreadable),
        odd_range=odd,
        channels=tuple(sorted(set(split["channels"].tolist()))) if data.channels is None else (),
        gpu=torch.cuda.is_available(),
    )


@torch.no_grad()
def features_of(splits: list[Examined], init: str) -> np.ndarray:
    """Features by --init of all readable images of some splits: (M, D)."""
    accelerator = start_accelerator("auto")
    try:
        vit = load_backbone(init).to(accelerator.device).eval()
        found = []
        for split in splits:
            parts = Parts(with_bands(split.parts.images, Bands(vit.in_chans, vit.pixel_range)))
            for batch in parts.loader(list(range(parts.count)), vit.img_size, 256, 0):
                if "images" in batch:
                    found.append(embeddings(vit, batch["images"], vit.depth, "mean", accelerator).numpy())
        if sum(map(len, found)) != sum(map(len, splits)):
            raise UserError(
                f"--init {init} takes images of {counted(vit.in_chans, 'channel')}, and some have others; leave it out"
            )
        return np.concatenate(found)
    finally:
        let_go(accelerator)
