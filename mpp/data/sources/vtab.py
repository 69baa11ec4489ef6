"""The tasks of VTAB-1k (arXiv 1910.04867) read from the files that their authors publish.

`load_task` names a task's images and labels as a set of this process, which every command takes. A set's own splits are
kept, and what VTAB calls trainval is to train on. Where VTAB divides a set itself, the shares are VTAB's and the
division is ours, the same for all seeds, as theirs depends on the order of TensorFlow's files. Sets that `--data.path`
reads as they are (class folders: EuroSAT, RESISC45) need no loader. `vtab_made` has the structured tasks.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange

from mpp.data.randomness import Purpose, generator
from mpp.data.sources.memory import Squared, from_memory
from mpp.data.sources.offline import digits, fashion_mnist, pictures
from mpp.data.sources.vtab_made import (
    clevr_count,
    clevr_distance,
    dmlab,
    dsprites_location,
    dsprites_orientation,
    kitti_distance,
    norb_azimuth,
    norb_elevation,
    squared,
)
from mpp.errors import UserError, first_line

Split = tuple[Any, Sequence[int]]  # pictures, or paths of pictures, and their class numbers
Splits = tuple[Mapping[str, Split], list[str]]  # the splits train and test, and the names of the classes

_FIRST = 30  # images of each class of Caltech101 that are to train on, as in TensorFlow's copy
_TEST = 0.2  # of SUN397: 21,750 of 108,753 images in VTAB


def load_task(loader: str, folder: Path) -> str:
    """A name for --data.path of the set that a loader reads from a folder. Raises UserError that names both."""
    if loader not in LOADERS:
        raise UserError(f"there is no loader {loader!r}; there are: {', '.join(LOADERS)}")
    try:
        splits, names = LOADERS[loader](folder)
    except UserError:
        raise
    except Exception as error:  # of torchvision, scipy, zipfile, protobuf
        reads = (LOADERS[loader].__doc__ or "").rstrip(".")
        raise UserError(f"loader {loader} cannot read {folder} ({first_line(error)}); it reads: {reads}") from error
    given = {name: (images, np.asarray(labels).tolist()) for name, (images, labels) in splits.items()}
    return from_memory(given, label_names=names)


def parted(labels: Sequence[int], to_train: Callable[[int], int]) -> tuple[np.ndarray, np.ndarray]:
    """Indices, sorted, to train and to be measured on: of each class, `to_train` of its number of images."""
    found = np.asarray(labels)
    order = generator(0, Purpose.SPLIT, 8).permutation(len(found))
    train: list[int] = []
    for label in np.unique(found):
        own = order[found[order] == label]
        train += own[: to_train(len(own))].tolist()
    return np.sort(train), np.setdiff1d(np.arange(len(found)), train)


def _chosen(paths: Sequence[Any], labels: Sequence[int], indices: np.ndarray) -> Split:
    return [squared(paths[i]) for i in indices], [int(labels[i]) for i in indices]


def caltech101(folder: Path) -> Splits:
    """`caltech101/101_ObjectCategories` with a folder for each class, as torchvision downloads it."""
    from torchvision.datasets import Caltech101

    found = Caltech101(folder)
    of_class = Path(found.root) / "101_ObjectCategories"
    paths = [of_class / found.categories[y] / f"image_{n:04d}.jpg" for n, y in zip(found.index, found.y, strict=True)]
    train, test = parted(found.y, lambda count: min(_FIRST, count - 1))
    return {"train": _chosen(paths, found.y, train), "test": _chosen(paths, found.y, test)}, found.categories


def cifar100(folder: Path, source: Any = None) -> Splits:
    """`cifar-100-python`, as torchvision downloads it."""
    from torchvision.datasets import CIFAR100

    parts = {name: (source or CIFAR100)(folder, train=name == "train") for name in ("train", "test")}
    return {name: (part.data, part.targets) for name, part in parts.items()}, parts["train"].classes


def dtd(folder: Path) -> Splits:
    """`dtd/dtd` with images and labels, as torchvision downloads it: partition 1, train and val to train on."""
    from torchvision.datasets import DTD

    return _joined({name: DTD(folder, split=name) for name in ("train", "val", "test")}, "_image_files")


def flowers102(folder: Path, source: Any = None) -> Splits:
    """`flowers-102` with jpg, imagelabels.mat and setid.mat, as torchvision downloads it."""
    from torchvision.datasets import Flowers102

    parts = {name: (source or Flowers102)(folder, split=name) for name in ("train", "val", "test")}
    return _joined(parts, "_image_files", [f"flower {number}" for number in range(1, 103)])


def pets(folder: Path) -> Splits:
    """`oxford-iiit-pet` with images and annotations, as torchvision downloads it."""
    from torchvision.datasets import OxfordIIITPet

    return _joined({name: OxfordIIITPet(folder, split=name) for name in ("trainval", "test")}, "_images")


def _joined(parts: dict[str, Any], files: str, names: list[str] | None = None) -> Splits:
    """Sets of torchvision with the attributes `files` and `_labels`: all but test are to train on."""
    joined: dict[str, tuple[list[Squared], list[int]]] = {"train": ([], []), "test": ([], [])}
    for name, part in parts.items():
        paths, labels = joined["test" if name == "test" else "train"]
        paths += map(squared, getattr(part, files))
        labels += part._labels
    return joined, names or parts["test"].classes


def sun397(folder: Path) -> Splits:
    """`SUN397` with ClassName.txt, as torchvision downloads it; a fifth of each class is the test split."""
    from torchvision.datasets import SUN397

    found = SUN397(folder)
    ordered = sorted(zip(found._image_files, found._labels, strict=True))  # torchvision has the order of the disk
    paths, labels = [path for path, _ in ordered], [label for _, label in ordered]
    train, test = parted(labels, lambda count: count - round(_TEST * count))
    return {"train": _chosen(paths, labels, train), "test": _chosen(paths, labels, test)}, found.classes


def svhn(folder: Path, source: Any = None) -> Splits:
    """`train_32x32.mat` and `test_32x32.mat` of SVHN, as torchvision downloads them."""
    from torchvision.datasets import SVHN

    parts = {name: (source or SVHN)(folder, split=name) for name in ("train", "test")}
    digits = [str(number) for number in range(10)]
    return {name: (rearrange(p.data, "n c h w -> n h w c"), p.labels) for name, p in parts.items()}, digits


def pcam(folder: Path) -> Splits:
    """`pcam` with the .h5 files of PatchCamelyon, unpacked, as torchvision downloads it; it needs the package h5py."""
    from torchvision.datasets import PCAM

    parts = {name: PCAM(folder, split=name) for name in ("train", "val", "test")}
    labels = {}
    for name, part in parts.items():
        with part.h5py.File(part._base_folder / part._FILES[name]["targets"][0]) as file:
            labels[name] = file["y"][:, 0, 0, 0].tolist()
    train = Pictures([parts["train"], parts["val"]])
    joined = {"train": (train, labels["train"] + labels["val"]), "test": (Pictures([parts["test"]]), labels["test"])}
    return joined, ["no tumour", "tumour"]


class Pictures:
    """The pictures of sets of torchvision, one set after another."""

    def __init__(self, sets: Sequence[Any]) -> None:
        self.sets = sets

    def __len__(self) -> int:
        return sum(map(len, self.sets))

    def __getitem__(self, index: int) -> Any:
        for part in self.sets:
            if index < len(part):
                return part[index][0]
            index -= len(part)
        raise IndexError(index)


def retinopathy(folder: Path) -> Splits:
    """`diabetic_retinopathy` with Kaggle's train/, test/, trainLabels.csv and retinopathy_solution.csv."""
    folder = folder / "diabetic_retinopathy"  # images of Usage "Public" are VTAB's validation split: to train on
    found: dict[str, tuple[list[Squared], list[int]]] = {"train": ([], []), "test": ([], [])}
    for part, table in (("train", "trainLabels.csv"), ("test", "retinopathy_solution.csv")):
        with (folder / table).open(encoding="utf-8", newline="") as rows:
            for row in csv.DictReader(rows):
                paths, labels = found["test" if row.get("Usage") == "Private" else "train"]
                paths.append(squared(folder / part / f"{row['image']}.jpeg"))
                labels.append(int(row["level"]))
    return found, ["none", "mild", "moderate", "severe", "proliferative"]


LOADERS: dict[str, Callable[[Path], Splits]] = {
    "caltech101": caltech101,
    "cifar100": cifar100,
    "dtd": dtd,
    "flowers102": flowers102,
    "pets": pets,
    "sun397": sun397,
    "svhn": svhn,
    "pcam": pcam,
    "retinopathy": retinopathy,
    "clevr-count": clevr_count,
    "clevr-distance": clevr_distance,
    "dmlab": dmlab,
    "kitti-distance": kitti_distance,
    "dsprites-location": dsprites_location,
    "dsprites-orientation": dsprites_orientation,
    "smallnorb-azimuth": norb_azimuth,
    "smallnorb-elevation": norb_elevation,
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "pictures": pictures,
}
