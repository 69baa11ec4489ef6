"""Resolve --data.path: the kind of set, its splits and its table."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpp.config.hub import missing, on_hub
from mpp.data.contents import files_contents
from mpp.data.sources.beside import as_table, described, labels_rows, metadata_rows, place_of_labels
from mpp.data.sources.cards import configurations, refuse_outside
from mpp.data.sources.columns import read_columns, typed
from mpp.data.sources.folders import Folder, look_through
from mpp.data.sources.memory import is_memory, splits_in_memory
from mpp.data.sources.packed import is_packed
from mpp.data.sources.packed_header import read_header
from mpp.data.sources.saved import is_saved, load_saved, saved_splits
from mpp.data.sources.shapes import SPLITS
from mpp.data.sources.sharded import is_labelled
from mpp.data.sources.shards import refuse_cut
from mpp.errors import UserError, first_line, printable

if TYPE_CHECKING:
    from datasets import Dataset
    from datasets.utils.metadata import MetadataConfigs

_TABLES = (".parquet", ".arrow", ".csv", ".tsv", ".txt", ".json", ".jsonl", ".tar")


_A_SET = "give a folder of images, a folder or file of parquet, a folder of .tar shards, a hub id, or shapes"


def split_names(path: str, config: str | None = None) -> list[str]:
    """The splits of a set, without reading its images."""
    _refuse_config(path, config)
    if path == "shapes":
        return list(SPLITS)
    if is_memory(path):
        return list(splits_in_memory(path))
    if is_packed(path):
        return list(read_header(path).splits)
    if is_text_table(path):
        return ["train"]
    if is_saved(path):
        with naming_the_source(path):
            return saved_splits(os.path.expanduser(path))
    if folder := plain_folder(path):
        return folder.splits
    from datasets import get_dataset_split_names, load_dataset_builder

    name, options = source_of(path, config)
    with naming_the_source(path):
        if is_stream(path, config):  # whose first shard may be damaged: it is not read here
            builder = load_dataset_builder(name, **options)
            return list(map(str, builder.info.splits or builder.config.data_files or {}))
        return [str(split) for split in get_dataset_split_names(name, options.pop("name", None), **options)]


def load_table(
    path: str,
    split: str,
    config: str | None = None,
    class_level: int | None = None,
    *,
    labels_file: str | None = None,
    label_column: str | None = None,
) -> Dataset:
    """The table of a split, its images encoded or as paths, with what tables beside the images say of them."""
    if is_text_table(path) and labels_file is None:
        columns = read_columns(os.path.expanduser(path))
        return as_table({}, {name: typed(values) for name, values in columns.values.items()}, columns.file)
    metadata = folder.listing.metadata if (folder := plain_folder(path)) else []
    if labels_file is None and not metadata:
        return _load_table(path, split, config, class_level)
    if labels_file is None:
        refuse_class_level(path, class_level)
    labels = None if labels_file is None else place_of_labels(path, labels_file)
    pictures = {name: _load_table(path, name, config, class_level) for name in split_names(path, config)}
    if any("image" not in table.column_names for table in pictures.values()):
        raise UserError(f"--data.labels-file {labels_file} is for a folder of images, and {path} is read as tables")
    if labels is None:
        rows = metadata_rows(sorted(metadata), path)
    else:
        rows = labels_rows(labels, path, pictures.values(), label_column)
    return described(pictures, split, path, rows)


def folders_of_rows(path: str, split: str, config: str | None = None) -> list[tuple[int, str]]:
    """The folders of a split's tables, to which paths in their rows are relative, each with the first of its rows."""
    here = Path(path).expanduser().absolute()
    if not here.is_dir() or is_saved(path):
        return [(0, str(here.parent if here.exists() else here))]
    import pyarrow.parquet as pq
    from datasets import load_dataset_builder

    name, options = source_of(path, config)
    with naming_the_source(path):
        files = list(map(str, (load_dataset_builder(name, **options).config.data_files or {}).get(split, [])))
        if not all(file.endswith(".parquet") for file in files):
            return [(0, str(here))]
        first, found = 0, []
        for file in files:
            found.append((first, os.path.dirname(file)))
            first += pq.read_metadata(file).num_rows
        return found


def is_text_table(path: str) -> bool:
    """Whether a path is a table of paths of images as text: csv, tsv or jsonl."""
    here = os.path.expanduser(path)
    return here.lower().endswith((".csv", ".tsv", ".jsonl")) and os.path.isfile(here)


def _load_table(path: str, split: str, config: str | None, class_level: int | None) -> Dataset:
    if folder := plain_folder(path):
        return folder.table(split, class_level)
    refuse_class_level(path, class_level)
    if is_saved(path):
        with naming_the_source(path):
            return load_saved(os.path.expanduser(path), split)
    from datasets import load_dataset

    refuse_cut(path)
    name, options = source_of(path, config)
    with naming_the_source(path):
        return load_dataset(name, split=split, cache_dir=_cache_of(path), **options)


def _cache_of(path: str) -> str | None:
    """Where `datasets` keeps the tables of a local set. It tells files apart by path and time alone, and would take a
    table for the one that lay there before at the same time; so the folder is named after the content."""
    here = os.path.expanduser(path)
    below = (os.path.join(folder, name) for folder, _, names in os.walk(here) for name in names)
    files = [here] if os.path.isfile(here) else sorted(file for file in below if file.lower().endswith(_TABLES))
    if not files:
        return None
    from datasets.config import HF_DATASETS_CACHE

    return os.path.join(HF_DATASETS_CACHE, f"mpp-{files_contents(files, path, '', 'table').exact[:16]}")


def _refuse_config(path: str, config: str | None) -> None:
    """Raise UserError if a configuration is named of a set that has none."""
    here = os.path.expanduser(path)
    if config and (
        path == "shapes"
        or is_memory(path)
        or os.path.isfile(here)
        or (os.path.isdir(here) and not configurations(here))
    ):
        raise UserError(f"--data.config {config}: {path} has no configurations; leave it out")


def refuse_class_level(path: str, class_level: int | None) -> None:
    """Raise UserError if a level of folders is named of a set that has no class folders."""
    if class_level is not None:
        raise UserError(f"--data.class-level {class_level}: the classes of {path} are not its folders; leave it out")


def plain_folder(path: str) -> Folder | None:
    """The folder of images that a path names; None for other sets: tables, shards, images with a card.

    Raises UserError for a folder without images.
    """
    here = os.path.expanduser(path)
    if not os.path.isdir(here) or is_saved(path) or configurations(here):
        return None
    with naming_the_source(path):
        if not os.listdir(here):
            raise UserError(f"--data.path {path} is an empty folder")
        folder = look_through(here)
    if folder.plain and not folder.listing.images:
        raise UserError(f"--data.path {path} holds no images{folder.listing.what_else()}; {_A_SET}")
    return folder if folder.plain else None


def source_of(path: str, config: str | None = None) -> tuple[str, dict[str, Any]]:
    """The first argument and the options of `datasets.load_dataset` for a path. Raises UserError if it holds no set."""
    with naming_the_source(path):
        here = Path(path).expanduser()
        if here.is_dir():
            if named := configurations(str(here)):
                options = {"name": _chosen(path, named, config)}
                refuse_outside(str(here), str(options["name"]))
                return str(here), options
            if shards := _shards_alone(str(here)):
                return "webdataset", {"data_files": shards}
            return str(here), {}
        if here.suffix == ".parquet" and here.is_file():
            return "parquet", {"data_files": {"train": str(here)}}
    if here.exists():
        raise UserError(
            f"--data.path {path} is a file that is neither parquet nor packed, nor csv, tsv or jsonl; give a folder of "
            f"images, one of these tables, or a file from tools/pack.py"
        )
    if (there := on_hub(path, "--data.path")) is None:
        raise missing("--data.path", path)
    options = {name: value for name, value in {"name": config, "revision": there.revision}.items() if value}
    with naming_the_source(path):
        refuse_outside(there.repo, config, there.revision)
    return there.repo, options


def _shards_alone(folder: str) -> dict[str, list[str]]:
    """The shards of each split, if a folder holds shards and texts about them (nshards.txt, sizes.json), which
    `datasets` would take for tables; else nothing."""
    kinds: set[str] = set()
    for _, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "."]
        kinds |= {os.path.splitext(name)[1].lower() for name in names if name[0] != "."}
    if not kinds & {".txt", ".json"} or not {".tar"} < kinds <= {".tar", ".txt", ".json", ".md", ""}:
        return {}
    from datasets.data_files import DataFilesDict, get_data_patterns

    for patterns in (get_data_patterns(folder), {"train": ["**/*.tar"]}):  # perhaps a text alone is called as a split
        found = DataFilesDict.from_patterns(patterns, base_path=folder, allowed_extensions=[".tar"])
        if any(found.values()):
            break
    return {str(split): [str(file) for file in files] for split, files in found.items() if files}


def shard_files(path: str, config: str | None = None) -> dict[str, list[str]]:
    """The shards of every split of a set that `is_stream`. Raises UserError if they are not on this machine."""
    from datasets import load_dataset_builder

    name, options = source_of(path, config)
    with naming_the_source(path):
        files = load_dataset_builder(name, **options).config.data_files or {}
    found = {str(split): [str(file) for file in files[split]] for split in files}
    if not os.path.exists(os.path.expanduser(path)):
        raise UserError(
            f"--data.path {path}: shards are read with their labels from this machine alone; download them (hf "
            f"download {path.removeprefix('hf://')} --repo-type dataset --local-dir DIR) and give --data.path DIR"
        )
    return found


def _chosen(path: str, named: MetadataConfigs, config: str | None) -> str:
    """The configuration to read: the one asked for, or the set's default. Raises UserError that lists them."""
    if (chosen := config or named.get_default_config_name()) in named:
        return str(chosen)
    wrong = f"has no configuration {config}; it has" if config else "has several configurations"
    raise UserError(f"--data.path {path} {wrong}: {', '.join(map(printable, named))}; name one with --data.config")


@contextmanager
def naming_the_source(path: str) -> Iterator[None]:
    """Turn an exception of `datasets` into a UserError of one line that names the source. Its bars are for what is
    downloaded: a set on this machine has none."""
    quiet = contextlib.nullcontext() if "datasets" not in sys.modules else _bars_of_downloads(path)
    try:
        with quiet:
            yield
    except UserError:
        raise
    except Exception as error:
        cause = _innermost(error)
        reason = printable(_what_it_says(cause))
        if isinstance(cause, OSError) and cause.errno in (errno.EROFS, errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"--data.path {path}: its table of images cannot be written ({reason}); set HF_HOME to another folder"
            ) from error
        way_out = _A_SET
        if reason.startswith(("Config name is missing", "BuilderConfig")):  # of a hub id; both list the names
            way_out = "name one with --data.config"
        raise UserError(f"--data.path {path} could not be read as a set of images ({reason}); {way_out}") from error


@contextmanager
def _bars_of_downloads(path: str) -> Iterator[None]:
    """Hide the bars of `datasets` while it reads a set on this machine."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hide = os.path.exists(os.path.expanduser(path)) and not are_progress_bars_disabled()
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            enable_progress_bars()


def _innermost(error: BaseException) -> BaseException:
    """The cause behind the wrappers of `datasets`, which say only that something went wrong."""
    while type(error).__module__.startswith("datasets.") and error.__cause__ and not _details(error):
        error = error.__cause__
    return error


def _what_it_says(error: BaseException) -> str:
    return " ".join(_details(error)) or first_line(error)


def _details(error: BaseException) -> list[str]:
    """What `datasets` says below the first line, where that only says that it failed or asks for a choice."""
    head, *details = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    if head.startswith("An error occurred while generating"):
        return details
    return [head, *details[:1]] if head.startswith("Config name is missing") else []


def is_unlabelled_stream(path: str, config: str | None = None) -> bool:
    """Whether a path is a set of shards that can only be streamed: on the hub, or its first sample has no label."""
    if not is_stream(path, config):
        return False
    here = os.path.isdir(os.path.expanduser(path))
    return not (here and is_labelled(next(file for files in shard_files(path, config).values() for file in files)))


def is_stream(path: str, config: str | None = None) -> bool:
    """Whether a path is a set of WebDataset shards (a local folder of .tar files, or such a set on the hub)."""
    if (
        path == "shapes"
        or is_memory(path)
        or is_packed(path)
        or is_text_table(path)
        or is_saved(path)
        or plain_folder(path)
    ):
        return False
    from datasets import load_dataset_builder

    name, options = source_of(path, config)
    with naming_the_source(path):
        return "web" in (load_dataset_builder(name, **options).name or "").lower()
