"""The command `pack`: decode a set once into one memory-mapped file."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

from mpp.commands.dry_run import report
from mpp.config.using import Pack
from mpp.data.decode import Unreadable
from mpp.data.images import Images, open_images
from mpp.data.packing import decoded, fingerprint, pack, verify
from mpp.data.randomness import Purpose, generator
from mpp.data.sources.path import split_names
from mpp.errors import UserError, counted, printable
from mpp.run.folder import unreadable_line
from mpp.run.lock import locked
from mpp.run.measured import told_bytes, told_time

_LOOKED_AT = 64  # images of a split, by --dry-run


def run_pack(config: Pack) -> Path | dict[str, Any]:
    """Pack every split of a set; returns the packed file, or what --dry-run found."""
    if config.out is None:
        raise UserError("--out names the file to write; give it")
    out, data = Path(config.out), config.data
    if config.verify:
        verify(config.out)
        print(f"{out} is as it was written")
        return out
    splits = {name: open_images(data, name) for name in split_names(data.path, data.config)}
    if config.dry_run:
        return rehearse_packing(config, splits)
    short_side = side_of(config)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with locked(out.with_name(out.name + ".lock"), f"--out {out}"):
            if os.path.lexists(out):
                raise UserError(f"--out {out} exists; remove it, or give another name")
            skip, channels = data.on_error == "skip", data.channels
            unreadable = pack(splits, out, fingerprint(splits), short_side, skip, data.max_bad, channels=channels)
    except OSError as error:
        raise UserError(f"packing into --out {out} ended ({error}); the same command goes on where it was") from error
    total = sum(map(len, splits.values()))
    print(f"{out}: {total - len(unreadable):,} images of {', '.join(splits)}, {out.stat().st_size / 2**20:,.1f} MiB")
    if unreadable:
        print(unreadable_line(unreadable, total, data.path))
    return out


def side_of(config: Pack) -> int | None:
    """The short side that larger images are shrunk to; None keeps all sizes."""
    return 256 if config.size is None else config.size or None


def rehearse_packing(config: Pack, splits: dict[str, Images]) -> dict[str, Any]:
    """Print what packing would take, from some images of every split; returns the numbers."""
    out, data, side = Path(config.out or ""), config.data, side_of(config)
    if os.path.lexists(out):
        raise UserError(f"--out {out} exists; remove it, or give another name")
    images, size, seconds, read, bad = 0, 0.0, 0.0, 0, 0
    rows = {}
    for name, split in splits.items():
        some = generator(0, Purpose.SPLIT, 8).permutation(len(split))[:_LOOKED_AT].tolist()
        began, found = time.perf_counter(), []
        for image in split.read(some):
            try:
                found.append(decoded(image, side, data.channels))
            except Unreadable:
                bad += 1
        took = time.perf_counter() - began
        each = sum(array.nbytes for array in found) / max(1, len(found))
        rows[f"split {printable(name)}"] = (
            f"{counted(len(split), 'image')}, {told_bytes(len(split) * each)}: {told_bytes(each)} each, the first "
            + (" x ".join(map(str, (found[0].shape[1], found[0].shape[0]))) if found else "unreadable")
        )
        images, read, size = images + len(split), read + len(some), size + len(split) * each
        seconds += took / max(1, len(some)) * len(split)
    folder = next(path for path in out.absolute().parents if path.exists())
    rows["left out"] = f"{bad:,} of {read:,} images that were looked at cannot be read" if bad else ""
    rows["file"] = f"about {told_bytes(size)} of the {told_bytes(shutil.disk_usage(folder).free)} that are free"
    rows["time"] = f"{told_time(seconds)} on one core, from {counted(read, 'image')}"
    report(f"nothing is written into {out}", rows)
    return {"dry_run": True, "images": images, "bytes": round(size), "seconds": seconds, "unreadable": bad}
