"""Say which folders of a set of images are its classes: those at one level below its splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from unicodedata import normalize

from mpp.data.sources.layout import Parts, is_general
from mpp.errors import listed, printable


@dataclass(frozen=True)
class Classes:
    """The classes of a folder of images: its folders at `level`, counted from 1 below the splits.

    Single folders that hold all images of a split (images/cat, images/dog) are not counted.
    """

    folders: Mapping[str, set[Parts]]  # split -> its folders of images, without the split's own
    above: Mapping[str, int]  # split -> number of single folders that hold all its images
    level: int

    @classmethod
    def of(cls, folders: Mapping[str, set[Parts]], level: int = 1) -> Classes:
        return cls(folders, wrappers(folders), level)

    @property
    def names(self) -> list[str]:
        """The classes of all splits; none if there are not two."""
        found = self._names_at(self.level)
        return found if len(found) > 1 else []

    def label(self, split: str) -> bool:
        """Whether every image of a split lies in a class."""
        return bool(self.names) and self._depth(split) >= self.level

    def name_of(self, split: str, folder: Parts) -> str | None:
        """The class of the images in a folder, if they have one."""
        below = folder[self.above[split] :]
        return class_name(below[self.level - 1]) if len(below) >= self.level else None

    def choice(self) -> str:
        """One line that says which folders are the classes, if others could be meant; else ""."""
        deepest = min((depth for split in self.folders if (depth := self._depth(split)) >= self.level), default=0)
        others = [level for level in range(1, deepest + 1) if level != self.level and not self._is_single(level)]
        if not others or not self.names:
            return ""
        named = " or ".join(f"level {level} ({listed(self._names_at(level), 3)})" for level in others)
        return (
            f"the classes are the folders at level {self.level} below the split ({listed(self.names, 3)}), not those "
            f"at {named}; --data.class-level {others[0]} takes those"
        )

    def _depth(self, split: str) -> int:
        """Number of levels at which all images of a split have a folder."""
        return min(map(len, self.folders[split]), default=0) - self.above[split]

    def _names_at(self, level: int) -> list[str]:
        splits = [split for split in self.folders if self._depth(split) >= level]
        return sorted({class_name(f[self.above[split] + level - 1]) for split in splits for f in self.folders[split]})

    def _is_single(self, level: int) -> bool:
        """Whether each folder above a level holds one folder at it: then it distinguishes no more than that."""
        inside = defaultdict(set)
        for split, folders in self.folders.items():
            for folder in folders:
                at = self.above[split] + level
                inside[split, folder[: at - 1]].add(folder[at - 1 : at])
        return all(len(names) == 1 for names in inside.values())


def class_name(name: str) -> str:
    """A name as a class. Unicode can write one name in several ways; as a class it has one (NFC), on one line."""
    return printable(normalize("NFC", name))


def wrappers(splits: Mapping[str, Iterable[Parts]]) -> dict[str, int]:
    """Number of single folders above the classes of each split: 1 in images/cat, images/dog.

    The single folder of a split is a class if other splits have a class of this name; or have classes, and neither is
    its name general (images, test) nor does it hold one of them.
    """
    paths = {split: set(found) for split, found in splits.items()}
    above = dict.fromkeys(paths, 0)
    while True:
        tops = {split: {f[above[split]] for f in found if len(f) > above[split]} for split, found in paths.items()}
        classes = {class_name(top) for names in tops.values() if len(names) > 1 for top in names}
        for split, names in tops.items():
            at = above[split]
            if len(names) != 1 or any(len(folder) == at for folder in paths[split]):
                continue
            (top,) = names
            holds = {class_name(name) for folder in paths[split] for name in folder[at + 1 :]}
            if not classes or (class_name(top) not in classes and (is_general(top) or holds & classes)):
                above[split] += 1
                break
        else:
            return above
