"""Speed and largest batch of backbones against the size of their input: what recipes/cost.py measures and writes."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import Field, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from mpp.comparison.ablate import changed
from mpp.comparison.plots import paint_against_size
from mpp.comparison.report import Block, Table, as_markdown, made_with
from mpp.comparison.scaling import named_changes
from mpp.config.commands import Supervised
from mpp.config.derived import height_width
from mpp.config.options import Model
from mpp.errors import UserError, escaped
from mpp.files import csv_cell, write_whole
from mpp.models.backbones import build_vit
from mpp.run.measured import told_bytes
from mpp.training.cost import backbone_on, images_for, largest_batch, pass_over, seconds_in_turns

MODES = ("inference", "training")


@dataclass(frozen=True)
class Measured:
    """What was measured of a backbone at a size, in inference or in training."""

    backbone: str
    img_size: int
    mode: str
    images_per_second: float  # the median over rounds; nan where not even one image fits
    spread: float  # half the range over rounds, over the median
    batch: int  # images a pass, at which the speed was measured
    rounds: int
    largest_batch: int
    memory: int  # bytes that it was to fit into
    bytes_an_image: float | None  # where the largest batch was extrapolated
    fixed_bytes: float | None
    device: str
    precision: str


def backbones_of(entries: Sequence[str], img_size: int) -> dict[str, Model]:
    """Backbones by their texts: a variant, then OPTION=VALUE of the model, as "nano patch_size=8". Each is built
    without memory, so that one that does not exist, or does not fit the size, is refused before anything is
    measured."""
    found: dict[str, Model] = {}
    for entry in entries:
        variant, *words = entry.split() or [""]
        if not variant or "=" in variant or entry in found:
            raise UserError(f'--backbones {entry!r} must be a variant, then OPTION=VALUE, as in "nano patch_size=8"')
        changes = {"variant": variant, **named_changes("--backbones", entry, words), "img_size": str(img_size)}
        options = {f"model.{name.removeprefix('model.')}": value for name, value in changes.items()}
        try:
            found[entry] = changed(Supervised(), options, "--backbones", entry).model
            with torch.device("meta"):
                build_vit(found[entry])
        except UserError as error:
            named = str(error).startswith("--backbones")
            raise error if named else UserError(f"--backbones {entry!r} at {img_size} pixels: {error}") from error
    return found


def in_turns(
    backbones: dict[str, Model],
    mode: str,
    batch_size: int,
    rounds: int,
    memory: int,
    accelerator: Accelerator,
    where: dict[str, str],
) -> list[Measured]:
    """Measure backbones at one size in one mode, their speeds in turns; `where` are device and precision."""
    train = mode == "training"
    largest = {name: largest_batch(model, train, memory, accelerator) for name, model in backbones.items()}
    batches = {name: min(batch_size, -(-found.batch // 2)) for name, found in largest.items()}  # room for the others
    passes = {
        name: pass_over(backbone_on(model, accelerator, train), images_for(model, batches[name], accelerator), train)
        for name, model in backbones.items()
        if batches[name]
    }
    seconds = seconds_in_turns(passes, rounds)
    rows = []
    for name, model in backbones.items():
        found, each = largest[name], seconds.get(name, [])
        middle = statistics.median(each) if each else float("nan")
        rows.append(
            Measured(
                backbone=name,
                img_size=height_width(model.img_size)[0],
                mode=mode,
                images_per_second=batches[name] / middle,
                spread=(max(each) - min(each)) / 2 / middle if each else middle,
                batch=batches[name],
                rounds=len(each),
                largest_batch=found.batch,
                memory=memory,
                bytes_an_image=found.an_image,
                fixed_bytes=found.fixed,
                **where,
            )
        )
        shown = f"{rows[-1].images_per_second:,.4g} images/s" if each else "does not fit"
        print(f"{name}, {rows[-1].img_size} pixels, {mode}: {shown}, at most {found.batch:,} images", flush=True)
    return rows


def as_csv(rows: Sequence[Measured]) -> bytes:
    """All rows as a table."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([field.name for field in fields(Measured)])
    writer.writerows([csv_cell("" if value is None else value) for value in asdict(row).values()] for row in rows)
    return text.getvalue().encode()


def read_rows(file: Path) -> list[Measured]:
    """The rows that are there already."""
    if not file.exists():
        return []
    with file.open(encoding="utf-8", newline="") as table:
        return [
            Measured(**{field.name: _read(field, row[field.name]) for field in fields(Measured)})
            for row in csv.DictReader(table)
        ]


def _read(field: Field[Any], cell: str) -> Any:
    """A value from its cell: one that is not finite, or not there, was left empty."""
    if field.type == "float | None":
        return float(cell) if cell else None
    return {"int": int, "float": float}.get(str(field.type), str)(cell or "nan")


def table_of(rows: Sequence[Measured]) -> Table:
    """A row for each backbone and size: speed and largest batch, in inference and in training."""
    found = {(row.backbone, row.img_size, row.mode): row for row in rows}
    places = list(dict.fromkeys((row.backbone, row.img_size) for row in rows))
    header = ["", "pixels", *(f"{mode}: images/s" for mode in MODES), *(f"{mode}: largest batch" for mode in MODES)]
    body = []
    for place in places:
        both = [found.get((*place, mode)) for mode in MODES]
        speeds = [
            f"{row.images_per_second:,.4g} ± {row.spread:.0%}" if row and row.largest_batch else "-" for row in both
        ]
        body.append([place[0], str(place[1]), *speeds, *(f"{row.largest_batch:,}" if row else "-" for row in both)])
    return header, body


def write_page(output: Path, rows: list[Measured]) -> None:
    """Write cost.md and both plots, and print the table."""
    first = rows[0]
    where = f"{first.device}, in {first.precision}"
    extrapolated = any(row.bytes_an_image for row in rows)
    fits = f"largest batch that fits into {told_bytes(first.memory)}"
    how = (
        "extrapolated on a line through the peak memory of two batches, in a process of their own: what tensors need"
        if extrapolated
        else "tried, to 1/16"
    )
    figures = {
        "speed": ("images/s", "images_per_second", f"median of {first.rounds} turns, on {where}"),
        "batch": (f"largest batch in {told_bytes(first.memory)}", "largest_batch", f"{how}; {where}"),
    }
    for name, (label, field, note) in figures.items():
        panels: dict[str, dict[str, list[tuple[int, float]]]] = {mode: {} for mode in MODES}
        for row in rows:
            if row.largest_batch:
                points = panels[row.mode].setdefault(row.backbone, [])
                points.append((row.img_size, getattr(row, field)))
        png = io.BytesIO()
        paint_against_size(panels, label, note).savefig(png, format="png", dpi=110)
        write_whole(output / f"{name}.png", png.getvalue())
    blocks: list[Block] = [
        ("h1", "Cost against the size of the input"),
        (
            "p",
            f"Images/s: medians over turns of bare backbones, in training forward, backward and a step of AdamW, ± "
            f"half the range; {where}. The {fits}: {how}.",
        ),
        ("table", table_of(rows)),
        ("figure", (output / "speed.png", "Images a second")),
        ("figure", (output / "batch.png", f"The {fits}")),
        ("p", made_with()),
    ]
    write_whole(output / "cost.md", as_markdown(blocks, output, escaped).encode())
    print(f"\n{as_markdown(blocks[2:3], output)}\nTable and plots: {output}")
