"""The samples of a local WebDataset shard: where each image lies in the tar, and its label."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache

from mpp.data.sources.listing import known_extensions
from mpp.data.sources.shards import refuse_rest
from mpp.errors import UserError, listed, printable

Label = int | str

_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # how files of gzip, bzip2, xz and zstd begin


@dataclass(frozen=True)
class Sample:
    """An image: `size` bytes at `offset` of its shard."""

    name: str
    offset: int
    size: int
    label: Label | None
    labelled_by: str  # the member that holds the label, or is missing


@dataclass(frozen=True)
class Member:
    """A file in a shard. WebDataset ends a sample's key at the first dot of a file's name; the column follows."""

    key: str
    column: str
    info: tarfile.TarInfo

    @classmethod
    def of(cls, info: tarfile.TarInfo) -> Member:
        folder, name = os.path.split(info.name)
        stem, _, column = name.partition(".")
        return cls(os.path.join(folder, stem), column.lower(), info)


def samples_of(file: str, image_column: str | None, label_column: str | None) -> list[Sample]:
    """All samples of a shard, in its order. Only headers and labels are read, and those of an unchanged file once.

    Raises UserError that names the shard, and the member if one is wrong.
    """
    try:
        found = os.stat(file)
    except OSError as error:
        raise UserError(f"the shard {file} cannot be read ({error.strerror})") from error
    return _samples_of(file, image_column, label_column, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=1 << 15)
def _samples_of(file: str, image_column: str | None, label_column: str | None, *_unchanged: int) -> list[Sample]:
    with _opened(file) as tar:
        groups = list(_grouped(tar))
        refuse_rest(tar, groups[-1][-1].info.name if groups else "")
        return [_sample(file, tar, members, image_column, label_column) for members in groups]


def is_labelled(file: str) -> bool:
    """Whether the first sample of a shard has a label. Of a shard that cannot be read whoever reads it tells."""
    try:
        with _opened(file) as tar:
            members = next(_grouped(tar), [])
            return bool(members) and _label(file, tar, members, None)[0] is not None
    except UserError:
        return False


@contextmanager
def _opened(file: str) -> Iterator[tarfile.TarFile]:
    """A tar; what goes wrong with it is a UserError that names it."""
    try:
        with tarfile.open(file, "r:") as tar:
            yield tar
    except (tarfile.TarError, EOFError, OSError) as error:
        with open(file, "rb") as opened:
            compressed = opened.read(6).startswith(_COMPRESSED)
        if compressed:
            way_out = "is compressed, and images are read by their place in it; unpack it to a plain .tar"
        else:
            way_out = f"is damaged ({printable(str(error))}); download or create it again"
        raise UserError(f"the shard {file} {way_out}") from error


def _grouped(tar: tarfile.TarFile) -> Iterator[list[Member]]:
    """The files of one sample after another: those that follow each other and have one key."""
    group: list[Member] = []
    for info in tar:
        if not info.isfile() or os.path.basename(info.name).startswith("."):
            continue
        member = Member.of(info)
        if group and member.key != group[0].key:
            yield group
            group = []
        group.append(member)
    if group:
        yield group


def _sample(
    file: str, tar: tarfile.TarFile, members: list[Member], image_column: str | None, label_column: str | None
) -> Sample:
    columns = [member.column for member in members]
    if image_column is None:
        images = [m for m in members if os.path.splitext(f"x.{m.column}")[1] in _endings_of_images()]
    else:
        images = [m for m in members if m.column == image_column.lower()]
    if len(images) != 1:
        what = "several images" if images else "no image"
        name = "" if image_column and not images else "; --data.image-column names the ending of the image (jpg, say)"
        raise UserError(f"the shard {file} has {what} in its sample {members[0].key} ({listed(columns)}){name}")
    label, labelled_by = _label(file, tar, members, label_column)
    image = images[0].info
    return Sample(image.name, image.offset_data, image.size, label, labelled_by)


@cache
def _endings_of_images() -> set[str]:
    return known_extensions()


def _label(file: str, tar: tarfile.TarFile, members: list[Member], column: str | None) -> tuple[Label | None, str]:
    """The label of a sample and the member that has it: .cls, a number or name; or .json, by its key "label". `column`
    names another ending, or another key of .json."""
    by_column = {member.column: member.info for member in members}
    wanted = (column or "cls").lower()
    if wanted in by_column:
        name = by_column[wanted].name
        return _parsed(_text(file, tar, by_column[wanted]), file, name), name
    if "json" in by_column:
        name = by_column["json"].name
        try:
            found = json.loads(_text(file, tar, by_column["json"]))
        except ValueError as error:
            raise UserError(f"the shard {file}: {name} is no JSON ({error})") from error
        value = found.get(column or "label") if isinstance(found, dict) else None
        if value is not None:
            return _parsed(str(value), file, name), name
    return None, f"{members[0].key}.{wanted}"


def _text(file: str, tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    assert tar.fileobj is not None
    tar.fileobj.seek(member.offset_data)
    try:
        return tar.fileobj.read(member.size).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"the shard {file}: {member.name} is no text of a label") from error


def _parsed(text: str, file: str, name: str) -> Label:
    if not (text := text.strip()):
        raise UserError(f"the shard {file}: {name} is empty, and holds the label of an image")
    return int(text) if text.lstrip("-").isdecimal() else text
