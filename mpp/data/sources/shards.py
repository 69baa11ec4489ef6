"""Tar shards that may be damaged or misnamed: their columns, their keys, and whether they were read to their end."""

from __future__ import annotations

import lzma
import os
import tarfile
import zlib
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from mpp.errors import UserError, printable

if TYPE_CHECKING:
    from datasets import Features

_PIECE = 1 << 20


def refuse_cut(path: str) -> None:
    """Raise UserError if a local shard below `path` does not end as a tar file does."""
    for shard in sorted(Path(path).expanduser().rglob("*.tar")):
        if shard.is_file() and not shard.name.startswith(".") and not _ends_in_zeros(str(shard)):
            raise UserError(
                f"--data.path {path}: the shard {printable(str(shard))} is damaged or cut short (a .tar file ends in "
                f"zeros); download or create it again, or leave it out with --data.on-error skip"
            )


def _ends_in_zeros(path: str) -> bool:
    with open(path, "rb") as shard:
        shard.seek(max(0, os.path.getsize(path) - 512))
        return shard.read() == bytes(512)


def refuse_dots_in_keys(path: str) -> None:
    """Raise UserError if the files of local shards have dots in their keys (IMG_2024.05.01.png). WebDataset takes what
    follows the first dot of a name for the column, so each of these files would be a column of its own."""
    shards = sorted(Path(path).expanduser().rglob("*.tar"))
    for shard in shards[:: max(1, len(shards) // 8)]:  # a look at some of many
        try:
            with tarfile.open(shard) as tar:
                names = [Path(member.name).name for member in islice(tar, 64) if member.isfile()]
        except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError):
            continue  # whoever reads it says so
        columns = Counter(name.partition(".")[2] for name in names)
        odd = [name for name in names if "." in (column := name.partition(".")[2]) and columns[column] == 1]
        if len(odd) > max(2, len(names) // 4):
            key, extension = os.path.splitext(odd[0])
            raise UserError(
                f"--data.path {path}: the shard {shard.name} holds {odd[0]}, whose key has a dot: WebDataset ends keys "
                f"at the first dot and would take {odd[0].partition('.')[2]} for a column; name it "
                f"{key.replace('.', '_')}{extension}, and all others alike"
            )


def columns_of(files: list[str]) -> Features | None:
    """The columns of a set of shards, as the first says that can be read. Raises what the first file raised if none
    can; None of no files."""
    from datasets import load_dataset_builder

    first: Exception | None = None
    for file in files:
        try:
            shards = load_dataset_builder("webdataset", data_files={"train": [file]}).as_streaming_dataset("train")
            refuse_broken_off(file)
            return shards.features
        except Exception as error:  # of tarfile, zlib or datasets
            first = first or error
    if first is not None:
        raise ValueError(f"none of {len(files)} shards can be read, the first: {_said(files[0], first)}") from first
    return None


def _said(file: str, error: Exception) -> str:
    return f"{os.path.basename(file)}, {str(error) or type(error).__name__}"


def refuse_broken_off(file: str) -> None:
    """Raise tarfile.ReadError if a local tar has no member, or does not end where `tarfile` stops reading it. It
    stops without a word at a header that it cannot read, at zeros in the middle, and where a file was cut."""
    if not os.path.isfile(file) or not _is_tar(file):
        return
    with tarfile.open(file) as tar:
        last = ""
        for member in tar:
            last = member.name
        refuse_rest(tar, last)


def refuse_rest(tar: tarfile.TarFile, last: str) -> None:
    """Raise tarfile.ReadError if a tar, read up to its member `last`, has no member or does not end there."""
    if not last:
        raise tarfile.ReadError("it holds no files")
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    rest = tar.fileobj.read(tarfile.BLOCKSIZE)
    if len(rest) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"it is cut short after {printable(last)}")
    while rest:
        if rest.strip(b"\0"):
            raise tarfile.ReadError(f"what follows {printable(last)} is damaged")
        rest = tar.fileobj.read(_PIECE)


def _is_tar(file: str) -> bool:
    """Whether a shard that `datasets` reads is a tar, plain or compressed: it reads zip files of that name, too."""
    with open(file, "rb") as opened:
        return opened.read(2) != b"PK"
