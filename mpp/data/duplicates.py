"""Images that are twice in a set: a perceptual hash proposes pairs that look alike, their colours confirm them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from einops import rearrange

GREY = 32  # side of the grey picture that is hashed


_BITS_APART = 3  # of 64: copies that were compressed or resized differ in 0 to 2, unrelated photos in about 32


_COLOURS_APART = 8.0  # of 255: the mean difference of 8 x 8 colours of two pictures of one thing


_COUNTS = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)


def perceptual_hashes(grey: np.ndarray) -> np.ndarray:
    """64 bits that say how an image goes from dark to bright, alike for compressed, resized and brightened copies.

    The lowest 8 x 8 frequencies of a cosine transform, each above their median or not (pHash, after Zauner 2010).
    Shapes: grey pictures (B, 32, 32) -> uint64 (B,).
    """
    places = (2 * np.arange(GREY) + 1) * np.pi / (2 * GREY)
    waves = np.cos(np.arange(8)[:, None] * places)  # (8, 32)
    waves[0] /= np.sqrt(2)
    frequencies = rearrange(waves @ grey.astype(np.float64) @ waves.T, "b u v -> b (u v)")
    bits = frequencies > np.median(frequencies[:, 1:], axis=1, keepdims=True)  # without the mean brightness
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def bits_apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The number of different bits of pairs of hashes: uint64 (P,), (P,) -> (P,)."""
    return _COUNTS[(one ^ other)[:, None].view(np.uint8)].sum(1)


def alike(hashes: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """All pairs of images that look alike: hashes (M,) uint64 and colours (M, 8, 8, 3) uint8 -> (P, 2), sorted.

    Only pairs that agree in one of the 16 keys of `keys_of`, and nearly in brightness, are compared. Brightness bounds
    the difference of colours, so no pair is missed.
    """
    found: list[np.ndarray] = []
    brightness = colours.mean((1, 2, 3))
    for key in keys_of(hashes):
        order = np.lexsort((brightness, key))
        place, ahead = np.arange(len(order)), 0
        while len(place):
            ahead += 1
            place = place[place + ahead < len(order)]
            one, other = order[place], order[place + ahead]
            near = (key[one] == key[other]) & (brightness[other] - brightness[one] <= _COLOURS_APART)
            place, one, other = place[near], one[near], other[near]
            close_by = bits_apart(hashes[one], hashes[other]) <= _BITS_APART
            one, other = one[close_by], other[close_by]
            apart = np.abs(colours[one].astype(np.int16) - colours[other]).mean((1, 2, 3))
            found.append(np.sort(np.stack([one, other], 1)[apart <= _COLOURS_APART], axis=1))
    return np.unique(np.concatenate([np.empty((0, 2), np.int64), *found]), axis=0)


def keys_of(hashes: np.ndarray) -> Iterator[np.ndarray]:
    """Sixteen keys of 28 bits: hashes that differ in 3 bits at most agree in one of them, for one of four quarters is
    equal, and one of four parts of the other 48 bits."""
    for quarter in (0, 16, 32, 48):
        low = hashes & np.uint64((1 << quarter) - 1)
        high = (hashes >> np.uint64(quarter)) >> np.uint64(16)
        others = low | (high << np.uint64(quarter))
        equal = (hashes >> np.uint64(quarter)) & np.uint64(0xFFFF)
        for part in (0, 12, 24, 36):
            yield (equal << np.uint64(12)) | ((others >> np.uint64(part)) & np.uint64(0xFFF))


def close(features: np.ndarray, cosine: float) -> np.ndarray:
    """All pairs of rows (M, D) whose cosine, after their mean is taken away, is at least `cosine`: (P, 2), sorted."""
    x = features - features.mean(0)
    x /= np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12)
    found = [np.empty((0, 2), np.int64)]
    for start in range(0, len(x), 1024):
        rows, others = np.nonzero(x[start : start + 1024] @ x[start:].T >= cosine)
        found.append(np.stack([rows, others], 1)[rows < others] + start)
    return np.concatenate(found)
