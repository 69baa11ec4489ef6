"""Local WebDataset shards as a set that is read by index, with labels.

Shards on their own are a stream (`mpp.data.streams`), as large sets without labels are best read. What needs labels
needs to choose images by them: here the headers of all shards are looked through once, and each image is then read from
its place in its tar. Labels are numbers or names (see `sharded`); a file classnames.txt in the set's folder, as sets of
clip-benchmark have it, names the classes by number, one a line.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property, partial

import numpy as np

from mpp.data.bands import Bands
from mpp.data.contents import Contents, Listing, name_within
from mpp.data.decode import Opened, Unreadable, open_image
from mpp.data.sources.classes import class_name
from mpp.data.sources.sharded import Label, Sample, samples_of
from mpp.errors import UserError, printable

NAMES = "classnames.txt"


class ShardImages:
    """One split of a set of shards."""

    def __init__(
        self,
        path: str,
        split: str,
        files: Mapping[str, list[str]],
        image_column: str | None = None,
        label_column: str | None = None,
    ) -> None:
        """`files` has the shards of every split; the classes are those of all of them."""
        self.path, self.split, self.files, self.bands = path, split, files[split], Bands(3)
        columns = image_column, label_column
        self.samples: list[Sample] = []
        first = [0]  # of each shard, the number of its first image
        for file in self.files:
            self.samples += samples_of(file, *columns)
            first.append(len(self.samples))
        self._first = np.array(first)
        self._named_label = label_column
        self.label_names: list[str] | None = None
        if any(sample.label is not None for sample in self.samples):
            others = (sample for name in files for file in files[name] for sample in samples_of(file, *columns))
            self.label_names, number_of = self._classes({s.label for s in others if s.label is not None})
            self._numbers = np.array([number_of.get(s.label, -1) for s in self.samples], dtype=np.int64)
            self._refuse_outside()

    def _classes(self, labels: set[Label]) -> tuple[list[str], Mapping[Label | None, int]]:
        """The names of the classes, and the number of each label."""
        if names := self._class_names:
            return names, {number: number for number in range(len(names))} | {n: k for k, n in enumerate(names)}
        ordered = sorted(labels, key=lambda label: (isinstance(label, str), label))
        texts = [class_name(str(label)) for label in ordered]
        place = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        return list(place), {label: place[text] for label, text in zip(ordered, texts, strict=True)}

    @cached_property
    def _class_names(self) -> list[str]:
        """The lines of classnames.txt, each once: "crane", and "crane (517)" for a second class of this name."""
        file = os.path.join(os.path.expanduser(self.path), NAMES)
        if not os.path.isfile(file):
            return []
        try:
            with open(file, encoding="utf-8") as lines:
                names = [class_name(line.strip()) for line in lines.read().rstrip().splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file}, with the names of the classes, cannot be read ({error})") from error
        met: Counter[str] = Counter()
        for number, name in enumerate(names):
            met[name] += 1
            names[number] = name if met[name] == 1 else f"{name} ({number})"
        return names

    def _refuse_outside(self) -> None:
        for index in np.flatnonzero(self._numbers < 0):
            if (label := (sample := self.samples[index]).label) is not None:
                raise UserError(
                    f"the shard {self._file(int(index))}: {sample.labelled_by} has the label {printable(str(label))}, "
                    f"and {NAMES} has {len(self._class_names)} classes (0 to {len(self._class_names) - 1}): mend either"
                )

    def _file(self, index: int) -> str:
        return self.files[int(np.searchsorted(self._first, index, side="right")) - 1]

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, indices: Sequence[int]) -> list[Opened | Unreadable]:
        return [open_image({"bytes": self._bytes(int(index)), "path": None}, self.path) for index in indices]

    def _bytes(self, index: int, at: int = 0, size: int | None = None) -> bytes:
        sample = self.samples[index]
        with open(self._file(index), "rb") as shard:
            shard.seek(sample.offset + at)
            return shard.read(sample.size - at if size is None else size)

    def labels(self, indices: Sequence[int]) -> np.ndarray:
        if self.label_names is None:
            raise UserError(f"--data.path {self.path} has no labels{self.why_no_labels()}")
        found = self._numbers[np.asarray(indices, dtype=np.int64)]
        if (found < 0).any():
            index = int(indices[int(np.argmin(found))])
            raise UserError(
                f"the shard {self._file(index)}: {self.samples[index].name} has no label: "
                f"{self.samples[index].labelled_by} is missing; create the shard again"
            )
        return found

    def labels_or_none(self, indices: Sequence[int]) -> np.ndarray:
        """As `labels`, but -1 for an image without a label."""
        return self._numbers[np.asarray(indices, dtype=np.int64)]

    def why_no_labels(self) -> str:
        """What is missing, and what to do: "; ..."."""
        wanted = (
            f"no .{self._named_label}, nor a .json with it" if self._named_label else "no .cls, nor a .json with label"
        )
        return (
            f": beside {printable(self.samples[0].name)} there is {wanted}; --data.label-column names the ending of "
            f"another member, or a key of .json"
        )

    def where(self, index: int) -> str:
        return printable(f"{self._file(index)}: {self.samples[index].name}")

    def contents(self, labels: bool = False) -> Contents:
        """The images by their names in their shards, sizes and content."""
        names, listing = self.label_names if labels else None, Listing(len(self))
        for index, sample in enumerate(self.samples):
            label = names[self._numbers[index]] if names and self._numbers[index] >= 0 else ""
            name = f"{name_within(self._file(index), self.path)}: {sample.name}"
            listing.add_read(name, sample.size, partial(self._bytes, index), label)
        return listing.contents(self.split)
