"""Settings of a pretraining for a set that has been looked at: a command line, and a reason for each option."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from mpp.config.options import Source
from mpp.errors import counted

_SIZES = ((32, 4), (64, 8), (128, 16), (224, 16))  # image and patch: 64 patches on a CPU, up to 196 on a GPU


@dataclass(frozen=True)
class Seen:
    """What the advice depends on."""

    images: int
    side: int  # the median of the shorter sides
    unreadable: int
    odd_range: bool  # values that need --data.range
    channels: tuple[int, ...]
    gpu: bool


def advised(seen: Seen, data: Source) -> tuple[list[str], list[str]]:
    """The words of a command line, and the reasons. They are starting points, not measurements."""
    fitting = [pair for pair in _SIZES if pair[0] <= 1.25 * seen.side and (seen.gpu or pair[1] < 16)]
    size, patch = fitting[-1] if fitting else (max(8, seen.side // 4 * 4), 4)
    device = "a GPU" if seen.gpu else "a CPU"
    why = [f"img-size {size}, patch-size {patch}: the median short side is {seen.side}; {(size // patch) ** 2} patches"]
    if not seen.gpu and seen.side > 80:
        why[0] += f", as many as {device} trains on in minutes"
    batch = 32
    while batch < (1024 if seen.gpu else 256) and batch * 64 <= seen.images:
        batch *= 2
    why.append(f"batch-size {batch}: at least 32 steps to a pass over {seen.images:,} images")
    passes = 100 if seen.gpu else 4
    shown = max(30_000, passes * seen.images)
    shown = min(shown, 300_000_000 if seen.gpu else 400_000)
    steps = max(100, round(shown / batch / 100) * 100)
    why.append(f"steps {steps:,}: {steps * batch / max(1, seen.images):,.1f} passes over the images, on {device}")
    if steps * batch > 100 * seen.images and not seen.gpu:
        why[-1] += "; so few images are soon known by heart, and more of them help most"
    words = ["mpp", "pretrain", "--data.path", data.path]
    given = {"config": data.config, "image-column": data.image_column, "class-level": data.class_level}
    given |= {"channels": data.channels}
    words += [word for name, value in given.items() if value is not None for word in (f"--data.{name}", str(value))]
    words += ["--model.img-size", str(size), "--model.patch-size", str(patch)]
    if seen.gpu:
        variant = "Ti" if seen.images < 100_000 else "S" if seen.images < 1_000_000 else "B"
        words += ["--model.variant", variant]
        why.append(f"variant {variant}: of {seen.images:,} images a larger model learns little more")
    words += ["--train.batch-size", str(batch), "--train.steps", str(steps)]
    if seen.odd_range:
        words += ["--data.range", "auto"]
        why.append("range auto: the values fill a small part of their type's range, or have no usual one")
    if len(seen.channels) > 1:
        words += ["--data.channels", str(min(3, max(seen.channels)))]
        why.append(f"channels: images have {' or '.join(map(str, seen.channels))} of them")
    if seen.unreadable:
        words += ["--data.on-error", "skip"]
        why.append(f"on-error skip: {counted(seen.unreadable, 'image')} cannot be read")
    return [*words, "--output", f"runs/{Path(data.path).stem or 'mine'}"], why


def as_line(words: list[str]) -> str:
    """Words as a shell takes them."""
    return shlex.join(words)
