"""Inspect a folder of images: its splits, the depth of its images, and the files that cannot be read."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from mpp.data.decode import FORMATS
from mpp.errors import UserError, printable, warn

Parts = tuple[str, ...]  # of a folder's path, below the set's folder


_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


@dataclass(frozen=True)
class Folder:
    """What is known of a folder without opening its files."""

    splits: dict[str, list[Parts]] | None  # split -> its folders; None: `datasets` finds them (tables, shards, a card)
    depths: dict[int, str]  # number of folders between the set's folder and an image -> one such image
    metadata: bool  # whether a metadata table describes the images


def look_through(folder: str) -> Folder:
    """Inspect a folder. Warns of image files that are not read, and of folders that are named like splits but are none.

    Raises UserError for a file name that `datasets` cannot handle (not UTF-8, or with ::), and for a .tar shard without
    its end: a shard that was cut between two files would only seem to hold fewer images.
    """
    return _look_through(folder, os.stat(folder).st_mtime_ns)


@cache
def _look_through(folder: str, _changed: int) -> Folder:
    extensions, unknown = known_extensions(), {".avif", ".heic", ".heif", ".jxl"}
    left_out: list[tuple[str, str]] = []
    images: Counter[Parts] = Counter()  # folder -> number of images in it
    example: dict[Parts, str] = {}
    by_name: Counter[str | None] = Counter()  # split in an image's file name -> number of images
    tables = metadata = False
    for parts, file in _files(folder, (), left_out):
        extension = os.path.splitext(file.name)[1].lower()
        metadata |= file.name in _METADATA
        tables |= extension in (".parquet", ".tar", ".arrow") and file.name not in _METADATA
        if extension == ".tar" and file.is_file() and not _ends_in_zeros(file):
            raise UserError(
                f"--data.path {folder}: the shard {printable(file.path)} is damaged or cut short (a .tar file ends in "
                f"zeros); download or create it again"
            )
        if file.name.startswith(".") or extension not in extensions | unknown:
            continue
        if extension not in extensions:
            left_out.append((file.path, f"{extension} is not a supported file type in folders; convert it"))
        elif not file.is_file() and not file.is_dir():
            left_out.append((file.path, "a broken link" if file.is_symlink() else "not a regular file"))
        elif any("\ud800" <= c <= "\udfff" for c in file.name):  # Python's code for bytes that are not UTF-8
            raise UserError(f"--data.path {printable(file.path)}: the name of this file is not UTF-8; rename it")
        elif "::" in file.path:
            raise UserError(f"--data.path {printable(file.path)}: `datasets` takes :: for an archive's path; rename it")
        else:
            images[parts] += 1
            by_name[split_called(os.path.splitext(file.name)[0])] += 1
            if parts not in example:
                example[parts] = printable(file.path)
    splits = splits_of(set(images))
    level = len(next(iter(splits.values()))[0])
    heads = {head for found in splits.values() for head in found}
    inside = [parts for parts in images if parts[:level] in heads]
    for parts in sorted(set(images) - set(inside)):
        left_out += [(example[parts], f"outside the folders of the splits {', '.join(splits)}")] * images[parts]
    named = level == 0 and by_name["train"] and by_name.total() > by_name["train"] + by_name[None]
    if named and by_name[None]:  # files named train_1.png and test_1.png, which `datasets` splits by name
        left_out += [("one without a split in its name", "other files have one")] * by_name[None]
    _tell(left_out, [] if tables or named or level else sorted(images))
    if tables or not images or named:
        return Folder(None, {}, metadata)
    return Folder(splits, {len(parts): example[parts] for parts in inside}, metadata)


def _tell(left_out: list[tuple[str, str]], all_trained_on: list[Parts]) -> None:
    """Warn, in one process, of files left out and of folders that are named like splits but are used for training."""
    if os.environ.get("RANK", "0") != "0":
        return
    if left_out:
        where, why = left_out[0]
        warn(f"{len(left_out):,} files are left out, the first: {printable(where)} ({why})")
    if doubtful := [parts for parts in all_trained_on if any(map(split_called, parts))]:
        named = f"the folder {printable('/'.join(doubtful[0]))} is named like a split"
        warn(f"{named}, but its images are used for training")


def why_no_labels(path: str) -> str:
    """Why the folders of images do not count as classes: ": ..." if `path` is a folder of images, else ""."""
    folder = os.path.expanduser(path)
    if not os.path.isdir(folder) or (found := look_through(folder)).splits is None or found.metadata:
        return ""
    if len(found.depths) < 2:
        return ": its images do not lie in at least two class folders"
    (_, one), (_, other), *_ = sorted(found.depths.items())
    return f": folders count as classes only if all images lie at one depth, but {one} and {other} do not"


def splits_of(folders: set[Parts]) -> dict[str, list[Parts]]:
    """Find the splits of a set from the folders of its images: split -> its folders, all at one level.

    The splits are at the first level where all names contain a split's word, or where some are train and some, for
    example, test (others are left out). Otherwise: at the first level where some are, for example, test and none is
    train; the others then form train. Without such a level, all images are train. (`datasets` searches for these words
    anywhere: with a class named train or test_tube, it takes some images twice and others not at all.)
    """
    levels = range(1, max(map(len, folders), default=0) + 1)
    others_train: dict[str, list[Parts]] = {}
    for level in levels:
        heads = sorted({folder[:level] for folder in folders})
        names = [head[-1] if len(head) == level else "" for head in heads]
        by_word, by_name = [split_called(name) for name in names], [split_called(name, whole=True) for name in names]
        if all(by_word):
            return _grouped(by_word, heads)
        found = {*by_name} - {None}
        if "train" in found and len(found) > 1:
            return _grouped(by_name, heads)
        if found and "train" not in found and all(names) and not others_train:
            others_train = _grouped([name or "train" for name in by_name], heads)
    return others_train or {"train": [()]}


def _grouped(splits: list[str | None], heads: list[Parts]) -> dict[str, list[Parts]]:
    found = {name: [head for split, head in zip(splits, heads, strict=True) if split == name] for name in _keywords()}
    return {name: parts for name, parts in found.items() if parts}


def split_called(name: str, whole: bool = False) -> str | None:
    """The split among a name's words; with `whole`, the split that is the entire name, without a final number."""
    words = {re.sub(r"[-._ 0-9]+$", "", name.lower())} if whole else set(re.split(r"[-._ 0-9]+", name.lower()))
    return next((split for split, keywords in _keywords().items() if words & keywords), None)


@cache
def _keywords() -> dict[str, set[str]]:
    from datasets.data_files import SPLIT_KEYWORDS

    return {str(split): set(keywords) for split, keywords in SPLIT_KEYWORDS.items()}


def known_extensions() -> set[str]:
    """Extensions of files that `datasets` takes for images in a folder, plus .avif (which it skips) if PIL reads it."""
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    if "AVIF" in FORMATS and ".avif" not in ImageFolder.EXTENSIONS:
        ImageFolder.EXTENSIONS = [*ImageFolder.EXTENSIONS, ".avif"]
    return set(ImageFolder.EXTENSIONS)


def _ends_in_zeros(file: os.DirEntry[str]) -> bool:
    with open(file.path, "rb") as shard:
        shard.seek(max(0, file.stat().st_size - 512))
        return shard.read() == bytes(512)


def _files(folder: str, parts: Parts, left_out: list[tuple[str, str]]) -> Iterator[tuple[Parts, os.DirEntry[str]]]:
    """Yield every file below a folder, with its folder's parts. Links to folders are not followed."""
    try:
        entries = list(os.scandir(folder))
    except PermissionError:
        left_out.append((folder, "a folder that this user may not read"))
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            if not entry.name.startswith((".", "__")):  # `datasets` skips these, too
                yield from _files(entry.path, (*parts, entry.name), left_out)
        elif entry.is_symlink() and entry.is_dir():
            left_out.append((entry.path, "a link to a folder; such links are not followed"))
        else:
            yield parts, entry
