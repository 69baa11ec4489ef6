"""Say what the folders of a set of images mean: which are splits, which are classes, and which belong to neither.

Names alone are looked at; no file is opened. They are compared word by word, in lower case: `seg_train`, `trainImages`
and `TRAIN2017` all have the word train.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from unicodedata import normalize

Parts = tuple[str, ...]  # of a folder's path, below the set's folder


SPLIT_WORDS = {
    "train": {"train", "training", "trn", "trainval"},
    "validation": {"validation", "validate", "validating", "valid", "val", "dev"},
    "test": {"test", "testing", "tst", "eval", "evaluation", "holdout", "heldout"},
}


_ALL_SPLIT_WORDS = set().union(*SPLIT_WORDS.values())


_IMAGES = {"image", "img", "jpegimage", "photo", "picture", "pic", "rgb", "frame"}


_NEUTRAL = _IMAGES | {"all", "data", "dataset", "folder", "main", "raw", "set", "split"}


_UNLABELLED = {"extra", "unlab", "unlabeled", "unlabelled"}


_MADE_FROM_IMAGES = (  # and so lies beside them: no image to learn from
    {"annot", "annotation", "groundtruth", "gt", "label", "mask", "matte", "seg", "segmentation", "segmented", "trimap"}
    | {"bbox", "bboxe", "depth", "edge", "heatmap", "pred", "predicted", "prediction", "saliency", "truth"}
)


_FEW = 0.1  # most of the folders, images or files of a set that splits may leave out without a reason in their names


@dataclass(frozen=True)
class Layout:
    """The splits of a set."""

    splits: dict[str, dict[Parts, Parts]]  # split -> its folders of images -> their path without the split's folder
    left_out: dict[Parts, str]  # the other folders of images -> why
    heads: dict[str, list[Parts]]  # split -> the folders that hold it


def layout_of(folders: Mapping[Parts, int]) -> Layout:
    """Find the splits among the folders of a set, given with the number of images directly in each.

    1. Folders are splits if their names are alike but for a split's word, one is train and one is not (train, test;
       seg_train, seg_test), and if they are two thirds of the level without what lies beside splits (unlabelled).
    2. Else a folder called test, say, is a split and those beside it are train, if these are called images or
       unlabelled, or have the names of the folders inside it.
    3. Else, if all folders of a level are alike and of one split, they are that split.
    4. Else all images are train: a class may be called train, or test_tube.
    """
    masks = _masks(folders)
    left_out = {f: "labels, masks or predictions of the images beside them" for f in folders if _is_below(f, masks)}
    kept = {folder: count for folder, count in folders.items() if folder not in left_out}
    levels = range(1, max(map(len, kept), default=0) + 1)
    for rule in (_family, _beside_train, _one_split):
        for level in levels:
            if split_of_head := rule(kept, level):
                return _laid_out(kept, level, split_of_head, left_out)
    return Layout({"train": {folder: folder for folder in kept}}, left_out, {"train": [()]})


def _laid_out(folders: Mapping[Parts, int], level: int, heads: dict[Parts, str], left_out: dict[Parts, str]) -> Layout:
    of_split = {split: [head for head in heads if heads[head] == split] for split in SPLIT_WORDS}
    of_split = {split: found for split, found in of_split.items() if found}
    splits: dict[str, dict[Parts, Parts]] = {split: {} for split in of_split}
    outside = f"outside the folders of the splits {', '.join(splits)}"
    for folder in folders:
        if (split := heads.get(folder[:level])) is None:
            left_out |= {folder: outside}
        else:
            own = split_called(folder[level - 1]) == split
            splits[split][folder] = folder[: level - 1] + folder[level:] if own else folder
    return Layout(splits, left_out, of_split)


def split_called(name: str) -> str | None:
    """The split among a name's words."""
    words = words_of(name)
    return next((split for split, known in SPLIT_WORDS.items() if not known.isdisjoint(words)), None)


@cache
def words_of(name: str) -> tuple[str, ...]:
    """The words of a name, in lower case and singular, without numbers: trainImages_2 -> train, image; testset -> test,
    set."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", normalize("NFC", name)).lower()
    spaced = re.sub(r"(hold|held)[-_ ]out", r"\1out", spaced)
    glued = rf"\b({'|'.join(_ALL_SPLIT_WORDS)})(set|data|image|img)(s?)\b"
    words = re.findall(r"[^\W\d_]+", re.sub(glued, r"\1 \2", re.sub(r"[\W\d_]+", " ", spaced)))
    return tuple(re.sub(r"(?<=...)s$", "", word) for word in words)


def _key(name: str) -> Parts:
    """What distinguishes a name but for splits and general words: train, test-images -> (); seg_train -> (seg,)."""
    return tuple(word for word in words_of(name) if word not in _ALL_SPLIT_WORDS | _NEUTRAL)


def is_general(name: str) -> bool:
    """Whether a folder's name says nothing of what is in its images: photos, seg_test."""
    return not _key(name) or split_called(name) is not None


def _has(name: str, words: Collection[str]) -> bool:
    return any(word in words for word in words_of(name))


def _heads_at(folders: Iterable[Parts], level: int) -> list[Parts]:
    return sorted({folder[:level] for folder in folders if len(folder) >= level})


def _is_below(folder: Parts, heads: Collection[Parts]) -> bool:
    return any(folder[:level] in heads for level in range(1, len(folder) + 1))


def _masks(folders: Iterable[Parts]) -> set[Parts]:
    """Folders of what is made from the images in a folder beside: masks beside images, train_labels beside train."""
    beside: defaultdict[Parts, set[str]] = defaultdict(set)
    for folder in folders:
        for level in range(len(folder)):
            beside[folder[:level]].add(folder[level])
    found = set()
    for parent, names in beside.items():
        common = set.intersection(*(set(words_of(name)) for name in names))  # seg_train, seg_test: it tells nothing
        masks = {name for name in names if _has(name, _MADE_FROM_IMAGES - common)}
        found |= {(*parent, mask) for mask in masks if any(_shows_what(mask, other) for other in names - masks)}
    return found


def _shows_what(masks: str, images: str) -> bool:
    """Whether a folder called `masks` shows what is in the images of the folder beside it."""
    if (split := split_called(masks)) != split_called(images):
        return False
    own, theirs = ([w for w in _key(name) if w not in _MADE_FROM_IMAGES] for name in (masks, images))
    return _has(images, _IMAGES) or (split is not None and own == theirs)


def _family(folders: Mapping[Parts, int], level: int) -> dict[Parts, str] | None:
    """Rule 1: head -> split, of folders that are alike but for a split's word."""
    heads = _heads_at(folders, level)
    named = {head: split for head in heads if (split := split_called(head[-1]))}
    plain = {head: split for head, split in named.items() if not _key(head[-1])}
    families = defaultdict(set)
    for head, split in named.items():
        families[_key(head[-1])].add(split)
    if _is_divided(plain.values()):
        chosen = plain
    elif any(map(_is_divided, families.values())) or len(named) >= (1 - _FEW) * len(heads):
        chosen = {head: s for head, s in named.items() if not _has(head[-1], _MADE_FROM_IMAGES | _UNLABELLED)} or named
    else:
        return None
    if not _is_divided(chosen.values()):
        return None
    strange = [head for head in heads if head not in named and not _lies_beside(head[-1])]
    if len(strange) > max(_FEW * len(heads), len(chosen) / 2) and not _have_one_inside(folders, chosen):
        return None
    parents = {head[:-1] for head in chosen}
    higher = [f for f in folders if len(f) < level and f not in parents and not any(map(_lies_beside, f))]
    return chosen if sum(folders[f] for f in higher) <= _FEW * sum(folders.values()) else None


def _is_divided(splits: Collection[str]) -> bool:
    return "train" in splits and len(set(splits)) > 1


def _lies_beside(name: str) -> bool:
    """Whether folders with such a name lie beside splits and are none."""
    return split_called(name) is not None or _has(name, _MADE_FROM_IMAGES | _UNLABELLED | _NEUTRAL)


def _have_one_inside(folders: Iterable[Parts], heads: Mapping[Parts, str]) -> bool:
    """Whether the folders of train and of another split have folders of one name inside, as classes are."""
    inside = _inside(folders, heads)
    train = {name for head, split in heads.items() if split == "train" for name in inside[head]}
    return any(inside[head] & train for head, split in heads.items() if split != "train")


def _inside(folders: Iterable[Parts], heads: Collection[Parts]) -> defaultdict[Parts, set[str]]:
    """The names of the folders in each head."""
    inside: defaultdict[Parts, set[str]] = defaultdict(set)
    for folder in folders:
        for level in range(1, len(folder)):
            if folder[:level] in heads:
                inside[folder[:level]].add(folder[level])
    return inside


def _beside_train(folders: Mapping[Parts, int], level: int) -> dict[Parts, str] | None:
    """Rule 2: folders called like splits other than train, and those beside them, which are train."""
    heads = _heads_at(folders, level)
    found = {head: split for head in heads if not _key(head[-1]) and (split := split_called(head[-1]))}
    others = [head for head in heads if head not in found]
    if not found or not others or "train" in found.values() or any(len(folder) < level for folder in folders):
        return None
    inside, names = _inside(folders, found), {head[-1] for head in others}
    general = all(_has(name, _UNLABELLED) or not _key(name) for name in names)
    if general or all(inside[head] and inside[head] <= names for head in found):
        return found | dict.fromkeys(others, "train")
    return None


def _one_split(folders: Mapping[Parts, int], level: int) -> dict[Parts, str] | None:
    """Rule 3: all folders of a level, alike and with a split's word."""
    heads = _heads_at(folders, level)
    found = {head: split for head in heads if (split := split_called(head[-1]))}
    alike = len({_key(head[-1]) for head in heads}) == 1
    return found if alike and len(found) == len(heads) and all(len(f) >= level for f in folders) else None


def splits_by_name(stems: Mapping[str, int]) -> bool:
    """Whether files are divided by a word in their names, from split -> number of files ("" for those without): nearly
    all have one, and train and another occur."""
    total, without = sum(stems.values()), stems.get("", 0)
    return _is_divided({split for split, count in stems.items() if split and count}) and without <= max(1, _FEW * total)
