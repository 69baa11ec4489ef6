"""Tables beside the pictures of a folder: its metadata files, and the one that --data.labels-file names."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import normalize

from mpp.data.decode import is_within
from mpp.data.sources.columns import METADATA, TABLES, Columns, read_columns, typed
from mpp.errors import UserError, counted, is_first_process, printable, warn

if TYPE_CHECKING:
    from datasets import Dataset

_LARGEST_GUESSED = 64 << 20  # bytes of a table that is opened only to suggest it
_TRIED = 500  # rows that decide which column names the images


@dataclass(frozen=True)
class Rows:
    """What tables say of images: each row's images by their place (`place_of`), and its other values."""

    tables: str  # for messages
    images: Mapping[str, Sequence[str | None]]  # image column -> the place of each row's image
    values: Mapping[str, Sequence[Any]]
    named: Sequence[Any]  # what the table calls each row's image
    label: str | None = None  # the column that takes labels from class folders, for splits without a row


def metadata_rows(files: Sequence[str], path: str) -> Rows:
    """The rows of all metadata files of a set. Raises UserError for a file that names no images, or others' images."""
    images: dict[str, list[Any]] = defaultdict(list)
    values: dict[str, list[Any]] = defaultdict(list)
    named: list[Any] = []
    for columns in map(read_columns, files):
        naming = [name for name in columns.values if name == "file_name" or name.endswith("_file_name")]
        if not naming:
            raise UserError(
                f"{printable(columns.file)} has no column file_name (or *_file_name), which names the image of a row, "
                f"relative to this file; its columns are: {columns.described}; rename one"
            )
        of_images: dict[str, list[Any]] = {
            name.removesuffix("file_name").removesuffix("_") or "image": [
                None if value in (None, "") else _inside(value, columns.file, path) for value in columns.values[name]
            ]
            for name in naming
        }
        others: dict[str, list[Any]] = {
            name: list(rows) for name, rows in columns.values.items() if name not in (*naming, *of_images)
        }
        for every, own in ((images, of_images), (values, others)):
            for name, rows in own.items():
                every[name] += [None] * (len(named) - len(every[name])) + rows
        named += columns.values[naming[0]]
    for every in (images, values):
        for rows in every.values():
            rows += [None] * (len(named) - len(rows))
    tables = printable(files[0]) if len(files) == 1 else f"the {len(files)} metadata files of {path}"
    return Rows(tables, images, {name: typed(rows) for name, rows in values.items()}, named)


def place_of_labels(path: str, file: str) -> str:
    """The place of --data.labels-file: as given, or in the set's folder. Raises UserError if it is in neither."""
    places = (os.path.expanduser(file), os.path.join(os.path.expanduser(path), file))
    if not os.path.isdir(os.path.expanduser(path)):
        raise UserError(f"--data.labels-file {file} is for a folder of images, and {path} is none; leave it out")
    for place in places:
        if os.path.isfile(place):
            return place
    raise UserError(f"--data.labels-file {file} does not exist, nor does {places[1]}")


def labels_rows(file: str, path: str, pictures: Iterable[Dataset], label_column: str | None) -> Rows:
    """The labels that a table has for `pictures`, the images of all splits.

    The column that names images is the one whose values are most images: by path (relative to the table or the set),
    name, or name without extension. A first line that names an image is a row, and columns are then called 1, 2, ...
    """
    names = _Names((place_of(image) for table in pictures for image in _files(table)), path)
    columns = read_columns(file)
    key = names.column_of(columns)
    if key is None:
        raise UserError(
            f"--data.labels-file {printable(file)} has no column that names images of {path} (by path, name, or name "
            f"without extension, as in {printable(names.example)}); its columns are: {columns.described}"
        )
    if columns.separator and names.found(key, columns.file):
        number = list(columns.values).index(key)
        columns, key = columns.headless(), str(number + 1)
    label = _label_of(columns, key, label_column)
    called = label_column or "label"
    images = [names.only(value, columns.file) for value in columns.values[key]]
    return Rows(printable(file), {"image": images}, {called: typed(columns.values[label])}, columns.values[key], called)


def _label_of(columns: Columns, key: str, named: str | None) -> str:
    others = [name for name in columns.values if name != key]
    its = f"besides {printable(key)}, which names the images, {printable(columns.file)} has: {columns.described}"
    if named is not None:
        if named not in others:
            raise UserError(f"--data.label-column {named} is none of the labels' columns; {its}")
        return named
    if "label" in others or len(others) == 1:
        return "label" if "label" in others else others[0]
    if len(others) > 1 and all(set(map(str, columns.values[name])) <= {"0", "1", "0.0", "1.0"} for name in others):
        raise UserError(f"{several_labels(columns.file, others)}; --data.label-column makes one of them the label")
    raise UserError(f"--data.label-column must name the column with the labels; {its}")


def several_labels(table: str, columns: Sequence[str]) -> str:
    """What is said of columns of 0 and 1, a class each."""
    return (
        f"{printable(table)} has a column of 0 and 1 for each class ({', '.join(map(printable, columns[:5]))}): "
        f"several labels an image are not supported"
    )


def described(pictures: Mapping[str, Dataset], split: str, path: str, rows: Rows) -> Dataset:
    """The images of a split that have a row, in the order of the rows, with the rows' values; a split in which no image
    has one stays as it is. `pictures` has the images of every split, as paths."""
    own = {place_of(file): file for file in _files(pictures[split])}
    elsewhere = {place_of(file) for name in pictures if name != split for file in _files(pictures[name])}
    with_rows = _with_row(rows, elsewhere | set(own))
    if not with_rows:
        raise UserError(
            f"no row of {rows.tables} names an image of {path}; the first names {printable(str(rows.named[0]))}"
        )
    values: dict[str, list[Any]] = {name: list(column) for name, column in rows.values.items()}
    if rows.label and any(with_rows.isdisjoint(map(place_of, _files(table))) for table in pictures.values()):
        texts = [v if v is None or isinstance(v, list) else str(v) for v in values[rows.label]]
        values[rows.label] = texts  # beside the folders' names
    if with_rows.isdisjoint(own):
        return _unlike(pictures[split], rows.label, split, rows.tables)
    kept: dict[tuple[str | None, ...], list[int]] = defaultdict(list)  # images of a row -> its rows
    for number, images in enumerate(zip(*rows.images.values(), strict=True)):
        if any(image in own for image in images):
            kept[images].append(number)
    _tell(
        split,
        own,
        kept,
        rows,
        [n for n, i in enumerate(zip(*rows.images.values(), strict=True)) if with_rows.isdisjoint(i)],
    )
    columns = {name: [own.get(images[i] or "") or images[i] for images in kept] for i, name in enumerate(rows.images)}
    of_images = {name: _of_images(column, kept.values()) for name, column in values.items()}
    return as_table(columns, of_images, pictures[split]._fingerprint)


def _of_images(column: Sequence[Any], kept: Iterable[Sequence[int]]) -> list[Any]:
    """A value for each image; where rows of an image differ, a list of values for every image."""
    found = [[column[n] for n in numbers] for numbers in kept]
    found = [[v for i, v in enumerate(of_image) if v not in of_image[:i]] for of_image in found]
    return [of_image[0] for of_image in found] if all(len(of_image) == 1 for of_image in found) else found


def _with_row(rows: Rows, places: set[str]) -> set[str]:
    """The places that a row names."""
    return {place for column in rows.images.values() for place in column if place in places}


def _unlike(pictures: Dataset, label: str | None, split: str, tables: str) -> Dataset:
    """A split in which no image has a row: labelled by its class folders, as text, if the others have labels."""
    numbers = pictures["label"] if label is not None and "label" in pictures.column_names else []
    unlike = f"no image of split {printable(split)} has a row in {tables}"
    if len(set(numbers)) < 2:  # metadata takes the place of class folders in all splits
        _warn(f"{unlike}; they are used without labels")
        return pictures.select_columns("image")
    _warn(f"{unlike}; their folders are their classes")
    names = pictures.features["label"].names
    return as_table({"image": _files(pictures)}, {label or "": [names[n] for n in numbers]}, pictures._fingerprint)


def _tell(
    split: str, own: Mapping[str, str], kept: Mapping[tuple[str | None, ...], list[int]], rows: Rows, lost: list[int]
) -> None:
    """Warn of images without a row, of rows without an image, and of second rows of an image."""
    used = {image for images in kept for image in images}
    if without := [file for place, file in own.items() if place not in used]:
        what = counted(len(without), f"image of split {printable(split)}", f"images of split {printable(split)}")
        _warn(f"left out: {what} without a row in {rows.tables}, the first: {printable(without[0])}")
    if lost:
        first = printable(str(rows.named[lost[0]]))
        _warn(f"left out: {counted(len(lost), 'row')} of {rows.tables} without an image in the set, the first: {first}")
    if again := [numbers[1] for numbers in kept.values() if len(numbers) > 1]:
        first = printable(str(rows.named[again[0]]))
        _warn(f"{counted(len(again), 'image')} named by more than one row of {rows.tables}, the first: {first}")


def _warn(text: str) -> None:
    if is_first_process():
        warn(text)


def as_table(images: Mapping[str, Sequence[str | None]], values: Mapping[str, Sequence[Any]], source: str) -> Dataset:
    """A table of image paths and values; its fingerprint changes with both and with `source`."""
    import datasets
    import pyarrow as pa

    columns = {}
    for name, column in values.items():
        try:
            columns[name] = pa.array(column)
        except (pa.ArrowInvalid, pa.ArrowTypeError):  # numbers and text, for example
            columns[name] = pa.array([None if value is None else str(value) for value in column])
    features = datasets.Features.from_arrow_schema(pa.table(columns).schema) if columns else datasets.Features()
    for name, paths in images.items():
        parts = [pa.nulls(len(paths), pa.binary()), pa.array(paths, pa.string())]
        columns[name], features[name] = pa.StructArray.from_arrays(parts, ["bytes", "path"]), datasets.Image()
    return datasets.Dataset(
        datasets.table.InMemoryTable(pa.table(columns)),
        datasets.DatasetInfo(features=features),
        fingerprint=datasets.fingerprint.Hasher.hash([source, images, values]),
    )


def _files(table: Dataset) -> list[str]:
    """The paths in a table's column of images, if it has any."""
    import pyarrow.compute as pc

    return pc.struct_field(table.select_columns("image").with_format("arrow")[:]["image"], "path").to_pylist()


def place_of(file: str) -> str:
    """A file's path, the same however it is written: links to folders resolved, names in one Unicode form."""
    folder, name = os.path.split(file)
    return normalize("NFC", os.path.join(_real(folder), name))


@cache
def _real(folder: str) -> str:
    return os.path.realpath(folder)


def _inside(value: Any, table: str, path: str) -> str:
    """The place that a table's value names, relative to the table. Raises UserError if it is outside of the set."""
    text = str(value)
    if "\\" in text and not os.path.exists(os.path.join(os.path.dirname(table), text)):
        text = text.replace("\\", "/")  # as Windows writes paths
    file = os.path.normpath(os.path.join(os.path.dirname(table), text))
    if "://" in text or "::" in text or not is_within(file, path):
        raise UserError(
            f"{printable(table)} leads out of {path}, to {printable(str(value))}; a set reads no files but its "
            f"own: mend the table, or give as --data.path the folder that holds both"
        )
    return place_of(file)


class _Names:
    """The images of a set by what a table may call them."""

    def __init__(self, places: Iterable[str], path: str) -> None:
        self.path, self.places = path, set(places)
        self.example = next(iter(sorted(self.places)), "")
        self.by_name: dict[str, list[str]] = defaultdict(list)
        for place in sorted(self.places):
            name = os.path.basename(place)
            for called in {name, os.path.splitext(name)[0]}:
                self.by_name[called].append(place)

    def found(self, value: Any, table: str) -> list[str]:
        """The places that a value may mean, at most one if it is a path."""
        text = normalize("NFC", str(value).strip().replace("\\", "/"))
        for folder in (os.path.dirname(table), os.path.expanduser(self.path)):
            if (place := place_of(os.path.normpath(os.path.join(folder, text)))) in self.places:
                return [place]
        tail = f"/{os.path.normpath(text)}"
        like = self.by_name.get(os.path.basename(text), [])
        return [place for place in like if place.endswith(tail) or os.path.splitext(place)[0].endswith(tail)]

    def only(self, value: Any, table: str) -> str | None:
        """The place that a value means. Raises UserError if it means several, or one outside of the set."""
        found = self.found(value, table) if value not in (None, "") else []
        if len(found) > 1:
            raise UserError(
                f"{printable(str(value))} in {printable(table)} names several images ("
                f"{', '.join(map(printable, found[:2]))}); write paths, relative to the table or to {self.path}"
            )
        text = str(value)
        if not found and ("://" in text or os.path.isabs(text) or ".." in text.split("/")):
            _inside(value, table, self.path)
        return found[0] if found else None

    def column_of(self, columns: Columns) -> str | None:
        """The column whose first values mean the most images; None if no value does."""

        def met(name: str) -> int:
            values = [value for value in columns.values[name][:_TRIED] if isinstance(value, str | int)]
            return len({place for value in values for place in self.found(value, columns.file)[:1]})

        best = max(columns.values, key=met)
        return best if met(best) else None


def tables_that_fit(path: str, pictures: Iterable[Dataset]) -> list[str]:
    """Tables in a set's folder, in those directly below it, and beside it, that name some of its images."""
    here = Path(path).expanduser()
    names = _Names((place_of(file) for table in pictures for file in _files(table) if file), path)
    return [str(file) for file in _tables_near(here) if _fits(file, names)]


def _fits(file: Path, names: _Names) -> bool:
    with suppress(UserError, OSError):
        return file.stat().st_size <= _LARGEST_GUESSED and names.column_of(read_columns(file)) is not None
    return False


def _tables_near(folder: Path) -> Iterator[Path]:
    with suppress(OSError):
        inside = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        for place in (folder, *inside, folder.resolve().parent):
            yield from sorted(f for f in place.iterdir() if f.suffix.lower() in TABLES and f.name not in METADATA)
