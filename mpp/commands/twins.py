"""Images that are there twice, identical or alike, within and between the splits of sets that were examined."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mpp.data.duplicates import alike, close
from mpp.data.examine import Examined
from mpp.errors import printable

FLAT = 2.0  # of 255: the deviation of grey values below which a picture shows nothing that could be compared


_CLOSE = 0.95  # cosine of features from which images look alike


class Twins:
    """Which images of some splits are twice there. Those `features` (M, D) that are given replace the hash."""

    def __init__(self, splits: list[Examined], features: np.ndarray | None = None) -> None:
        self.splits = splits
        self.home = np.concatenate([np.full(len(split), n) for n, split in enumerate(splits)])
        self.row = np.concatenate([np.arange(len(split)) for split in splits])
        column = {name: np.concatenate([split[name] for split in splits]) for name in ("digest", "hash", "colours")}
        flat = np.concatenate([split["spread"] for split in splits]) < FLAT
        _, first, self.picture = np.unique(column["digest"], return_index=True, return_inverse=True)
        shown = np.flatnonzero(~flat[first])  # pictures that can be compared
        if features is not None:
            self.near = shown[close(features[first[shown]], _CLOSE)]
        else:
            self.near = shown[alike(column["hash"][first[shown]], column["colours"][first[shown]])]
        self.first = np.full((len(splits), len(first)), -1)  # of each picture in each split, its first image
        for n in range(len(splits)):
            rows = np.flatnonzero(self.home == n)[::-1]
            self.first[n, self.picture[rows]] = rows

    def identical(self, one: int, other: int) -> np.ndarray:
        """Images of split `other` that are in `one`, too, each after an image of `one`: (P, 2)."""
        rows = np.flatnonzero(self.home == other)
        there = self.first[one, self.picture[rows]]
        kept = (there >= 0) & (there != rows)
        return np.stack([there[kept], rows[kept]], 1)

    def alike(self, one: int, other: int) -> np.ndarray:
        """Images of split `other` that look like one of `one`, each after that one: (P, 2)."""
        both = self.near if one == other else np.concatenate([self.near, self.near[:, ::-1]])
        pairs = np.stack([self.first[one, both[:, 0]], self.first[other, both[:, 1]]], 1)
        return pairs[(pairs >= 0).all(1)]

    def told(self, one: int, other: int) -> Iterator[str]:
        """Lines about two splits, or one and itself."""
        within = one == other
        for pairs, what in ((self.identical(one, other), "identical"), (self.alike(one, other), "alike")):
            count = len(np.unique(pairs[:, 1]))
            if not count:
                yield f"  {what}: none"
                continue
            where = "another" if within else f"one of {printable(self.splits[one].split)}"
            says = {"identical": f"a copy of {where}", "alike": f"much like {where}"}[what]
            line = f"  {what}: {count:,} image{'s are' if count > 1 else ' is'} {says}, as {self.named(pairs[0])}"
            differ = [pair for pair in pairs if self.label(pair[0]) != self.label(pair[1])] if within else []
            if differ:
                line += f"; {len(differ):,} of another class, as {self.named(differ[0], labels=True)}"
            yield line

    def named(self, pair: np.ndarray, labels: bool = False) -> str:
        """A pair by its names, the second first."""
        return " and ".join(
            self.where(row) + (f" ({printable(self.label(row) or 'no label')})" if labels else "") for row in pair[::-1]
        )

    def where(self, row: int) -> str:
        """An image, by its name."""
        return printable(self.splits[self.home[row]].name(int(self.row[row])))

    def label(self, row: int) -> str | None:
        """An image's class."""
        return self.splits[self.home[row]]["label"][self.row[row]]

    def table(self) -> dict[str, list[Any]]:
        """Every pair, and every image that cannot be read: what a script can act on."""
        rows: list[tuple[str | None, ...]] = []
        for other in range(len(self.splits)):
            for one in range(other + 1):
                for kind, pairs in (("identical", self.identical(one, other)), ("alike", self.alike(one, other))):
                    for pair in pairs[:, ::-1]:
                        names = [(self.where(row), self.splits[self.home[row]].split, self.label(row)) for row in pair]
                        rows.append((kind, *names[0], *names[1], None))
        for split in self.splits:
            for where, why in split.unreadable.items():
                rows.append(("unreadable", printable(where), split.split, None, None, None, None, why))
        columns = ("kind", "image", "split", "label", "other", "other_split", "other_label", "why")
        return {name: [row[number] for row in rows] for number, name in enumerate(columns)}
