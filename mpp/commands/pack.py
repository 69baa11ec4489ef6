"""The command `pack`: decode a set once into one memory-mapped file."""

from __future__ import annotations

import os
from pathlib import Path

from mpp.config.commands import Pack
from mpp.data.images import open_images
from mpp.data.packing import fingerprint, pack, verify
from mpp.data.sources.path import split_names
from mpp.errors import UserError
from mpp.run.folder import unreadable_line
from mpp.run.lock import locked


def run_pack(config: Pack) -> Path:
    """Pack every split of a set; returns the packed file."""
    if config.out is None:
        raise UserError("--out names the file to write; give it")
    out, data = Path(config.out), config.data
    if config.verify:
        verify(config.out)
        print(f"{out} is as it was written")
        return out
    splits = {name: open_images(data, name) for name in split_names(data.path, data.config)}
    short_side = 256 if config.size is None else config.size or None
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
