"""What a folder of images holds: its splits, the depth of its images, and what cannot be read."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import PurePath

from mpp.decode import FORMATS, printable
from mpp.errors import UserError

Parts = tuple[str, ...]  # of a folder's path, below the set's


@dataclass(frozen=True)
class Folder:
    """What is known of a folder without opening its files."""

    splits: dict[str, list[Parts]] | None  # folders of images; None if it holds tables or shards, or nothing known
    depths: dict[int, str]  # how many folders lie between the set's and an image -> such an image


@cache
def look_through(folder: str) -> Folder:
    """See what a folder holds; warn of files that are called like images, but that are not read.

    Raises UserError for a name on which `datasets` gives up (no text, or with ::), and for a .tar shard without its
    end: read from front to back, one that was cut between two files only seems to hold less.
    """
    extensions, unknown = known_extensions(), {".avif", ".heic", ".heif", ".jxl"}
    left_out: list[tuple[str, str]] = []
    images: Counter[Parts] = Counter()  # folder -> images in it
    example: dict[Parts, str] = {}
    tables, named = False, 0  # named: images whose own names say their split
    for file in _files(folder, left_out):
        extension = os.path.splitext(file.name)[1].lower()
        tables |= extension in (".parquet", ".tar", ".arrow") and file.name != "metadata.parquet"
        if extension == ".tar" and file.is_file() and not _ends_in_zeros(file):
            raise UserError(
                f"--data.path {folder}: the shard {printable(file.path)} is damaged or cut short (a .tar file ends in "
                f"zeros); fetch or make it again"
            )
        if file.name.startswith(".") or extension not in extensions | unknown:
            continue
        if extension not in extensions:
            left_out.append((file.path, f"{extension} is no kind of file that is found in folders; convert it"))
        elif not file.is_file() and not file.is_dir():
            left_out.append((file.path, "a link to nothing" if file.is_symlink() else "no regular file"))
        elif any("\ud800" <= c <= "\udfff" for c in file.name):  # how Python spells bytes that are not UTF-8
            raise UserError(f"--data.path {printable(file.path)}: the name of this file is not UTF-8; rename it")
        elif "::" in file.path:
            raise UserError(f"--data.path {printable(file.path)}: `datasets` takes :: for an archive's; rename it")
        else:
            parts = PurePath(file.path).relative_to(folder).parts[:-1]
            images[parts] += 1
            named += split_called(PurePath(file.name).stem) is not None
            example.setdefault(parts, printable(file.path))
    splits = splits_of(set(images))
    level = len(next(iter(splits.values()))[0])
    heads = {head for found in splits.values() for head in found}
    inside = [parts for parts in images if parts[:level] in heads]
    for parts in sorted(set(images) - set(inside)):
        left_out += [(example[parts], f"beside the folders of the splits {', '.join(splits)}")] * images[parts]
    if left_out and os.environ.get("RANK", "0") == "0":
        where, why = left_out[0]
        warnings.warn(f"{len(left_out):,} files are left out, the first: {printable(where)} ({why})", stacklevel=2)
    by_file_name = level == 0 and named == images.total()
    if tables or not images or by_file_name:
        return Folder(None, {})
    return Folder(splits, {len(parts): example[parts] for parts in inside})


def why_no_labels(path: str) -> str:
    """Why the folders that images lie in are not taken for their classes: ": ..." for a folder of images, else ""."""
    folder = os.path.expanduser(path)
    if not os.path.isdir(folder) or (found := look_through(folder)).splits is None:
        return ""
    if len(found.depths) < 2:
        return ": its images do not lie in two folders of classes, or more"
    (_, one), (_, other), *_ = sorted(found.depths.items())
    return f": folders are classes where all images lie at one depth, but {one} and {other} do not"


def splits_of(folders: set[Parts]) -> dict[str, list[Parts]]:
    """The splits of a set whose images lie in these folders: name -> the folders that are it, all at one level.

    Splits are told by the first level of folders that are all called like one, or of which one is called like the
    training split and another like another; with none, all is for training. (`datasets` looks for such words anywhere:
    with a class called "train" or "test_tube" it takes some images twice, and others not at all.)
    """
    for level in range(1, max(map(len, folders), default=0) + 1):
        splits: dict[str, list[Parts]] = {"train": [], "validation": [], "test": []}
        heads = {folder[:level] for folder in folders}
        for head in sorted(heads):
            if len(head) == level and (name := split_called(head[-1])):
                splits[name].append(head)
        found = {name: parts for name, parts in splits.items() if parts}
        if sum(map(len, found.values())) == len(heads) or ("train" in found and len(found) > 1):
            return found
    return {"train": [()]}


def split_called(name: str) -> str | None:
    """The split that a name has among its words."""
    from datasets.data_files import SPLIT_KEYWORDS

    words = set(re.split(r"[-._ 0-9]+", name.lower()))
    return next((str(split) for split, keywords in SPLIT_KEYWORDS.items() if words & set(keywords)), None)


def known_extensions() -> set[str]:
    """Of files that `datasets` takes for images in a folder, with AVIF, which it passes over, where PIL reads it."""
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    if "AVIF" in FORMATS and ".avif" not in ImageFolder.EXTENSIONS:
        ImageFolder.EXTENSIONS = [*ImageFolder.EXTENSIONS, ".avif"]
    return set(ImageFolder.EXTENSIONS)


def _ends_in_zeros(file: os.DirEntry[str]) -> bool:
    with open(file.path, "rb") as shard:
        shard.seek(max(0, file.stat().st_size - 512))
        return shard.read() == bytes(512)


def _files(folder: str, left_out: list[tuple[str, str]]) -> Iterator[os.DirEntry[str]]:
    """All in a folder and the folders below it that is no folder; links are not followed."""
    try:
        entries = list(os.scandir(folder))
    except PermissionError:
        left_out.append((folder, "a folder that this user may not read"))
        return
    for entry in entries:
        if not entry.is_dir(follow_symlinks=False):
            yield entry
        elif not entry.name.startswith((".", "__")):  # which `datasets` passes over, too
            yield from _files(entry.path, left_out)
