"""Resolve --data.path: the kind of set, its splits and its table."""

from __future__ import annotations

import errno
import glob
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpp.data.decode import printable
from mpp.data.sources.folders import look_through
from mpp.data.sources.packed import is_packed
from mpp.data.sources.packed_header import read_header
from mpp.data.sources.shapes import SPLITS
from mpp.errors import UserError, first_line

if TYPE_CHECKING:
    from datasets import Dataset


def split_names(path: str) -> list[str]:
    """The splits of a set, without reading its images."""
    if path == "shapes":
        return list(SPLITS)
    if is_packed(path):
        return list(read_header(path).splits)
    from datasets import get_dataset_split_names

    name, options = source_of(path)
    with naming_the_source(path):
        return [str(split) for split in get_dataset_split_names(name, **options)]


def load_table(path: str, split: str) -> Dataset:
    from datasets import load_dataset

    if split not in (splits := split_names(path)):
        raise UserError(f"{path} has no split {split!r}; it has: {', '.join(splits)} (--data.split, --data.eval-split)")
    name, options = source_of(path)
    with naming_the_source(path):
        return load_dataset(name, split=split, **options)


def source_of(path: str) -> tuple[str, dict[str, Any]]:
    """The first argument and the options of `datasets.load_dataset` for a path. Raises UserError if it holds no set."""
    with naming_the_source(path):
        here = Path(path).expanduser()
        if here.is_dir():
            if not any(here.iterdir()):
                raise UserError(f"--data.path {path} is an empty folder")
            if (splits := look_through(str(here)).splits) is None:
                return str(here), {}
            names = {
                split: [glob.escape(str(here.joinpath(*head))) for head in heads] for split, heads in splits.items()
            }
            return "imagefolder", {"data_files": {split: [f"{name}/**" for name in names[split]] for split in names}}
        if here.suffix == ".parquet" and here.is_file():
            return "parquet", {"data_files": {"train": str(here)}}
    if here.exists():
        raise UserError(
            f"--data.path {path} is a file that is neither parquet nor packed; give a folder of images, a .parquet "
            f"file, or a file from tools/pack.py"
        )
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise UserError(f"--data.path {path} does not exist")
    return path, {}


@contextmanager
def naming_the_source(path: str) -> Iterator[None]:
    """Turn an exception of `datasets` into a UserError of one line that names the source."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause: BaseException = error
        while str(cause).startswith("An error occurred while generating") and cause.__cause__:
            cause = cause.__cause__  # the wrapper of every error in `datasets`
        reason = printable(first_line(cause))
        if isinstance(cause, OSError) and cause.errno in (errno.EROFS, errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"--data.path {path}: its table of images cannot be written ({reason}); set HF_HOME to another folder"
            ) from error
        raise UserError(
            f"--data.path {path} could not be read as a set of images ({reason}); give a folder of images, "
            f"a folder or file of parquet, a folder of WebDataset .tar shards, a hub id, or shapes"
        ) from error


def is_stream(path: str) -> bool:
    """Whether a path is a set of WebDataset shards (a local folder of .tar files, or such a set on the hub)."""
    if path == "shapes" or is_packed(path):
        return False
    from datasets import load_dataset_builder

    name, options = source_of(path)
    with naming_the_source(path):
        return "web" in (load_dataset_builder(name, **options).name or "").lower()
