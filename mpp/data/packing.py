"""Pack a set: decode every image once into one file. `mpp.data.sources.packed` reads it and describes its layout."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from mpp.data.bands import as_type, with_channels
from mpp.data.decode import Opened, Unreadable, channels_of, size_as_seen, values
from mpp.data.images import Images
from mpp.data.sources.packed_header import MAGIC, TAIL, PackedSplit, read_header
from mpp.errors import UserError, first_line

_AT_ONCE = 256  # images read and written together


_SAMPLES, _SAMPLE = 64, 64 << 10  # pieces of a file, and their bytes: all of a file of up to 4 MiB


_NOTE_EVERY = 8192  # images between two records of the progress


def pack(
    splits: dict[str, Images],
    out: Path,
    source: str,
    short_side: int | None = None,
    skip_unreadable: bool = False,
    max_bad: float = 1.0,
    labels: bool = True,
    only_size: tuple[int, int] | None = None,
    channels: int | None = None,
    origin: str | None = None,
    progress: bool = True,
) -> dict[str, str]:
    """Pack splits of a set into `out`. Continues an interrupted packing of the same source.

    Args:
        short_side: shrink larger images to this short side in pixels (antialiased); None keeps their size.
        max_bad: the share of the images, in 0..1, that may be skipped.
        source: identifies the set, so that a changed set is detected.
        labels: whether to pack the labels too, if the set has any.
        only_size: refuse images of any other (H, W).
        channels: how many each image has to give; None takes the first one's in each split.
        origin: where the images lie, to be told of a file in the cache.

    Returns the unreadable images: where -> why. Raises UserError for the first one unless `skip_unreadable`.
    """
    if labels:
        for images in splits.values():
            _ = images.label_names  # an ambiguous label column raises now, not after all images are decoded
    draft, notes = _drafts(out)
    state = _resume(draft, notes, splits, source, short_side)
    out.parent.mkdir(parents=True, exist_ok=True)
    with draft.open("r+b" if draft.exists() else "w+b") as file:
        file.truncate(max(len(MAGIC), state["bytes"]))
        file.seek(0)
        file.write(MAGIC)
        file.seek(0, os.SEEK_END)
        total = sum(map(len, splits.values()))
        with tqdm(total=total, initial=state["done"], unit="image", desc="packing", disable=not progress) as bar:
            for name, images in splits.items():
                rows = state["splits"].setdefault(name, {"next": 0, "sizes": [], "kept": []})
                rows.setdefault("values", None)  # type and channels of the first image
                while rows["next"] < len(images):
                    indices = list(range(rows["next"], min(len(images), rows["next"] + _AT_ONCE)))
                    for index, image in zip(indices, images.read(indices), strict=True):
                        try:
                            array = decoded(image, short_side, rows["values"][1] if rows["values"] else channels)
                            rows["values"] = rows["values"] or [array.dtype.name, array.shape[-1]]
                            array = _of_type(array, rows["values"][0], convert=only_size is None)
                        except Unreadable as error:
                            if not skip_unreadable:
                                raise UserError(
                                    f"image {images.where(index)} could not be read ({error}); "
                                    f"--data.on-error skip leaves such images out"
                                ) from error
                            state["unreadable"][images.where(index)] = str(error)
                            if len(bad := state["unreadable"]) > max_bad * total:
                                raise UserError(
                                    f"{len(bad):,} of {total:,} images could not be read, the first: {next(iter(bad))} "
                                    f"({next(iter(bad.values()))}); --data.max-bad {max_bad:g} allows no more"
                                ) from error
                            continue
                        if only_size and array.shape[:2] != only_size:
                            raise UserError(
                                f"image {images.where(index)} is {array.shape[1]} x {array.shape[0]}, but others are "
                                f"{only_size[1]} x {only_size[0]}"
                            )
                        file.write(array.tobytes())
                        rows["sizes"].append(array.shape[:2])
                        rows["kept"].append(index)
                    rows["next"] = indices[-1] + 1
                    state["done"] += len(indices)
                    bar.update(len(indices))
                    if state["done"] % _NOTE_EVERY < len(indices):
                        _note(file, notes, state)
        _note(file, notes, state)
        header = _write_tables(file, splits, state, source, labels)
        digest = _sha256_of(file, file.tell(), progress)
        at = file.tell()
        header |= {"sha256": digest, "sampled": _sample_of(file, at), "short_side": short_side, "origin": origin}
        file.seek(at)
        file.write(json.dumps(header).encode())
        file.write(TAIL.pack(at, MAGIC))
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, out)
    notes.unlink()
    return state["unreadable"]


def forget(out: Path) -> None:
    """Remove the files of an interrupted packing."""
    for file in _drafts(out):
        file.unlink(missing_ok=True)


def _drafts(out: Path) -> tuple[Path, Path]:
    """The paths of the unfinished file and of its record of the progress."""
    return out.with_name(out.name + ".partial"), out.with_name(out.name + ".partial.json")


def verify(path: str) -> None:
    """Compare a packed file's content with its checksum. Raises UserError if they differ."""
    header = read_header(path)
    with Path(path).expanduser().open("rb") as file:
        if _sha256_of(file, header.content, progress=True) != header.sha256:
            raise UserError(f"{path} is damaged: its content does not match its checksum; pack it again")


def verify_sample(path: Path) -> None:
    """Compare pieces of a packed file, or all of a small one, with their checksum: 4 MiB, in milliseconds."""
    header = read_header(str(path))
    with path.open("rb") as file:
        if header.sampled and _sample_of(file, header.content) != header.sampled:
            raise UserError(f"{path} is damaged: its content does not match its checksum")


def _sample_of(file: Any, size: int) -> str:
    """A checksum of 64 pieces of 64 KiB from the start of a file's content to its end."""
    digest = hashlib.sha256()
    for number in range(_SAMPLES):
        file.seek(max(0, size - _SAMPLE) * number // (_SAMPLES - 1))
        digest.update(file.read(min(size, _SAMPLE)))
    return digest.hexdigest()


def decoded(image: Opened | Unreadable, short_side: int | None, channels: int | None) -> np.ndarray:
    """The values of an image as they are packed, (H, W, C). Raises Unreadable."""
    if isinstance(image, Unreadable):
        raise image
    channels = channels or channels_of(image)
    height, width = size_as_seen(image, channels)
    scale = min(1.0, short_side / min(height, width)) if short_side else 1.0
    found = values(image, (max(1, round(height * scale)), max(1, round(width * scale))), channels=channels)
    return with_channels(found, channels)


def _of_type(array: np.ndarray, kind: str, convert: bool) -> np.ndarray:
    """Values in the type that the first image of the split has: the same shares of the whole range."""
    if array.dtype.name == kind:
        return array
    if not convert:
        raise Unreadable(f"its values are {array.dtype.name}, and those of the others {kind}")
    try:
        return as_type(array, kind)
    except ValueError as error:
        raise Unreadable(str(error)) from error


def _resume(draft: Path, notes: Path, splits: dict[str, Images], source: str, short_side: int | None) -> dict[str, Any]:
    """The record of the progress of an interrupted packing, or a new one: a draft that is cut or damaged is removed."""
    fresh: dict[str, Any] = {
        "source": source,
        "short_side": short_side,
        "bytes": 0,
        "done": 0,
        "splits": {},
        "unreadable": {},
    }
    if not (draft.exists() or notes.exists()):
        return fresh
    try:
        state = json.loads(notes.read_text())
        other = (state["source"], state["short_side"]) != (source, short_side)
        if not other and (damage := _damage(state, splits, draft)):
            raise ValueError(damage)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        print(f"{draft} is an interrupted packing that cannot go on ({first_line(error)}); packing starts again")
        for path in (draft, notes):
            path.unlink(missing_ok=True)
        return fresh
    if other:
        raise UserError(
            f"{draft} belongs to another set, to this set before a change, or to another size; remove it to start again"
        )
    print(f"{draft} goes on: {state['done']:,} of {sum(map(len, splits.values())):,} images are packed already")
    return state


def _damage(state: dict[str, Any], splits: dict[str, Images], draft: Path) -> str | None:
    """What is wrong with the record of the progress, or with the draft by it; None if nothing is."""
    parts = state["splits"]
    packed = sum(height * width * _pixel(part) for part in parts.values() for height, width in part["sizes"])
    if state["bytes"] != len(MAGIC) + packed or draft.stat().st_size < state["bytes"]:
        return "it is cut short"
    if state["done"] != sum(part["next"] for part in parts.values()) or not isinstance(state["unreadable"], dict):
        return "its record is damaged"
    for name, part in parts.items():
        if len(part["kept"]) != len(part["sizes"]) or not 0 <= part["next"] <= len(splits[name]):
            return "its record is damaged"
    return None


def _kind(part: dict[str, Any]) -> tuple[str, int]:
    """Type and channels of a split's values in the record of the progress; an old record has only uint8 RGB."""
    kind, channels = part.get("values") or ("uint8", 3)
    return kind, channels


def _pixel(part: dict[str, Any]) -> int:
    kind, channels = _kind(part)
    return channels * np.dtype(kind).itemsize


def _note(file: Any, notes: Path, state: dict[str, Any]) -> None:
    """Flush the pixels to the disk first, then write the record of the progress."""
    file.flush()
    os.fsync(file.fileno())
    state["bytes"] = file.tell()
    draft = notes.with_name(notes.name + ".tmp")
    draft.write_text(json.dumps(state))
    os.replace(draft, notes)


def _write_tables(
    file: Any, splits: dict[str, Images], state: dict[str, Any], source: str, labels: bool
) -> dict[str, Any]:
    """Write offsets, sizes and labels of all splits after the pixels. Returns the header."""
    parts: dict[str, Any] = {}
    at = len(MAGIC)
    names = None
    for name, images in splits.items():
        sizes = np.array(state["splits"][name]["sizes"], dtype=np.int64).reshape(-1, 2)
        kept = state["splits"][name]["kept"]
        kind, channels = _kind(state["splits"][name])
        begins = np.concatenate([[0], np.cumsum(sizes.prod(1) * _pixel(state["splits"][name]))]).astype(np.int64)
        labelled = labels and bool(images.label_names)
        names = images.label_names if labelled else names
        tables = [begins, sizes]
        if labelled:
            tables.append(getattr(images, "labels_or_none", images.labels)(kept))
        places = []
        for table in tables:
            file.write(b"\0" * (-file.tell() % 8))
            places.append(file.tell())
            file.write(np.ascontiguousarray(table, dtype=np.int64).tobytes())
        same = len(sizes) > 0 and bool((sizes == sizes[0]).all())
        part = PackedSplit(
            count=len(sizes),
            pixels=at,
            begins=places[0],
            sizes=places[1],
            labels=places[2] if len(places) > 2 else None,
            size=(int(sizes[0, 0]), int(sizes[0, 1])) if same else None,
            dtype=kind,
            channels=channels,
        )
        parts[name] = asdict(part)
        at += int(begins[-1])
    return {"splits": parts, "label_names": names, "source": source}


def _sha256_of(file: Any, size: int, progress: bool) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    with tqdm(total=size, unit="B", unit_scale=True, desc="checksum", disable=not progress) as bar:
        while size > 0:
            chunk = file.read(min(1 << 22, size))
            if not chunk:
                break
            digest.update(chunk)
            size -= len(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def fingerprint(splits: dict[str, Images]) -> str:
    """A hash that identifies a set and differs once its content has changed."""
    digests = {name: images.contents(labels=bool(images.label_names)).digest for name, images in splits.items()}
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()
