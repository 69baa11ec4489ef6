"""Decode a set once into one memory-mapped file: `python tools/pack.py --help`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from mpp.config.options import Source
from mpp.errors import UserError
from mpp.run.command import run_command


@dataclass
class Pack:
    """Pack every split of a set into one file of uint8 pixels, which --data.path takes: opened in milliseconds, read
    without decoding. An interrupted packing goes on where it was. Example:

      python tools/pack.py --data.path DIR --out runs/set.mpp
    """

    out: str
    """The file to write."""
    data: Source = field(default_factory=Source)
    size: int | None = None
    """Shrink larger images to this short side (antialiased). Default: 256; 0 keeps all as they are."""
    verify: bool = False
    """Only compare --out with its checksum."""


def main(args: list[str] | None = None) -> Path:
    """Run the command; returns the packed file."""
    config = tyro.cli(Pack, args=args)
    out = Path(config.out)

    from filelock import FileLock, Timeout

    from mpp.data.images import load_images  # heavy imports come after --help
    from mpp.data.packing import fingerprint, pack, verify
    from mpp.data.sources.path import split_names

    if config.verify:
        verify(config.out)
        print(f"{out} is as it was written")
        return out
    if (config.size or 0) < 0:
        raise UserError(f"--size {config.size} must not be negative")
    data = config.data
    columns = {"image_column": data.image_column, "label_column": data.label_column}
    splits = {name: load_images(data.path, name, **columns) for name in split_names(data.path)}  # type: ignore[arg-type]
    short_side = 256 if config.size is None else config.size or None
    skip = data.on_error == "skip"
    lock = FileLock(out.with_name(out.name + ".lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(f"--out {out} is being packed by another process") from error
    except (OSError, NotImplementedError):  # a file system without locks; whether it can be written, `pack` will find
        pass
    try:
        if out.exists():
            raise UserError(f"--out {out} exists; remove it, or give another name")
        unreadable = pack(splits, out, fingerprint(splits), short_side, skip_unreadable=skip)
    except OSError as error:
        raise UserError(f"packing into --out {out} ended ({error}); the same command goes on where it was") from error
    finally:
        if lock.is_locked:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()
    count = sum(map(len, splits.values())) - len(unreadable)
    print(f"{out}: {count:,} images of {', '.join(splits)}, {out.stat().st_size / 2**20:,.1f} MiB")
    if unreadable:
        where, why = next(iter(unreadable.items()))
        print(f"{len(unreadable):,} could not be read and were left out, the first: {where} ({why})")
    return out


if __name__ == "__main__":
    run_command(main)
