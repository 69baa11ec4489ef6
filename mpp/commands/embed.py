"""The command `embed`: features of images as a table that can be cut and gone on with, and three ways to look at it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor
from tqdm import tqdm

from mpp.commands.downstream import as_taken_by, block_number
from mpp.commands.dry_run import forward_sample, told_model
from mpp.commands.embed_views import write_components, write_nearest, write_projector
from mpp.config.using import Embed
from mpp.data.augment import normalise
from mpp.data.batches import note_unreadable, refuse_too_many
from mpp.data.images import bands_of
from mpp.data.loader import Batch
from mpp.data.parts import Parts
from mpp.data.splits import open_whole
from mpp.errors import UserError, counted, renamed
from mpp.evaluation.embeddings import Writer, join, names_beside, unreadable_of
from mpp.files import as_json, write_whole
from mpp.models.backbone import Backbone, pool_tokens
from mpp.models.backbones import digest_of, fitted, load_backbone
from mpp.run.folder import claimed, remove_if_empty, unreadable_line, why_unwritable, writing
from mpp.run.machine import workers_of
from mpp.run.measured import told_bytes

_GOES_ON = "the same command goes on with the parts that are there"


def run_embed(config: Embed, accelerator: Accelerator) -> dict[str, Any]:
    """Write the embeddings of a set, unless they are there already, and what was asked for beside them."""
    out = Path(config.out)
    with renamed("--model.img-size", "--img-size", [config.data.path]):
        vit = fitted(load_backbone(config.init), config.img_size).to(accelerator.device).eval()
    layer = block_number("--layer", config.layer, vit.depth)
    with accelerator.main_process_first(), as_taken_by(vit, config.init, config.data, fitted=False) as data:
        parts = Parts(open_whole(data, vit.img_size))
    about = described(config, parts, vit, layer, accelerator)
    there = is_there(out, about, config.overwrite, accelerator)
    if config.dry_run:
        return rehearse_embedding(out, about, there, parts, vit, layer, config, accelerator)
    if not there:
        shape = (vit.num_patches, vit.embed_dim) if config.pool == "patches" else (vit.embed_dim,)
        with unfinished(out, about, accelerator) as folder:
            write_parts(folder, parts, vit, layer, shape, config, accelerator)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                put_together(folder, out, parts, shape, about, config)
        accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return {}
    found = json.loads(notes_of(out).read_text(encoding="utf-8"))
    print(f"{out}: {found['images']:,} embeddings of {' x '.join(map(str, found['shape']))} numbers, float32")
    if unread := found["unreadable"]:
        print(unreadable_line(unread, None, config.data.path))
    if config.similar:
        write_nearest(config.similar, out, vit, layer, config, parts, unread)
    if config.projector:
        write_projector(out, parts, unread)
    if config.pca:
        write_components(out, vit, layer, parts, unread)
    return {"images": found["images"], "shape": found["shape"], "out": config.out}


def notes_of(out: Path) -> Path:
    """The file that says of which images and of which model a file of embeddings is."""
    return out.with_suffix(".about.json")


def described(config: Embed, parts: Parts, vit: Backbone, layer: int, accelerator: Accelerator) -> dict[str, Any]:
    """All that embeddings depend on; by the main process, which looks at the images."""
    found: dict[str, Any] = {}
    if accelerator.is_main_process:
        images, bands = parts.images, bands_of(parts.images)
        contents = images.contents(labels=bool(parts.label_names))
        found = {"init": config.init, "init_sha256": digest_of(config.init), "data": config.data.path}
        found |= {"split": contents.split, "data_digest": contents.digest, "pool": config.pool, "layer": layer}
        found |= {"img_size": list(vit.img_size), "channels": vit.in_chans, "range": bands.range}
        found |= {"precision": "bf16" if accelerator.mixed_precision == "bf16" else "fp32"}
    return json.loads(as_json(broadcast_object_list([found])[0]))


def is_there(out: Path, about: dict[str, Any], overwrite: bool, accelerator: Accelerator) -> bool:
    """Whether `out` holds these embeddings already, as all processes are told. Raises UserError if it holds something
    else that is not to be replaced, or cannot be written."""
    there, reason = False, None
    if accelerator.is_main_process:
        try:
            then = json.loads(notes_of(out).read_text(encoding="utf-8"))
            beside = [names_beside(out)] if out.suffix == ".npy" else []
            there = all(path.is_file() for path in [out, *beside]) and about.items() <= then.items()
            other = ", ".join(
                f"{name} {then.get(name)}, now {about[name]}" for name in about if about[name] != then.get(name)
            )
        except (OSError, ValueError, AttributeError):
            other = ""
        if not there:
            if out.exists() and not out.is_file():
                reason = "it is a folder, a pipe or a device"
            elif out.exists() and not overwrite:
                reason = f"it exists{f', made otherwise: {other}' if other else ''}; --overwrite replaces it"
            else:
                reason = why_unwritable(out.parent)
    there, reason = broadcast_object_list([there, reason])
    if reason:
        raise UserError(f"--out {out} cannot be written ({reason})")
    return there


@contextmanager
def unfinished(out: Path, about: dict[str, Any], accelerator: Accelerator) -> Iterator[Path]:
    """The folder beside `out` for its parts, for this run alone. What a cut run left there of the same images and model
    stays; of others it goes."""
    folder = parts_folder(out)
    with claimed(folder, accelerator, "--out"):
        if accelerator.is_main_process:
            there = list(folder.glob("part-*.parquet"))
            same = is_of(folder, about)
            if there:
                state = f"{len(there):,} parts are there" if same else "parts of other images or another model go"
                print(f"{folder}: {state}")
            for part in [] if same else there:
                part.unlink()
            with writing(folder, _GOES_ON):
                write_whole(folder / "plan.json", as_json(about).encode())
        accelerator.wait_for_everyone()
        yield folder
    if accelerator.is_main_process:
        remove_if_empty([folder])


def rehearse_embedding(
    out: Path,
    about: dict[str, Any],
    there: bool,
    parts: Parts,
    vit: Backbone,
    layer: int,
    config: Embed,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Print what is left to do and how long it would take, from some batches; returns the numbers."""
    folder = parts_folder(out)
    done = {n for n in range(parts.count) if part_file(folder, n).exists()} if is_of(folder, about) else set()
    missing = [] if there else [number for number in range(parts.count) if number not in done]
    unreadable: dict[str, str] = {}

    def batches() -> Iterator[Batch]:
        some = missing[accelerator.process_index :: accelerator.num_processes]
        for batch in parts.loader(some, vit.img_size, config.batch_size, workers_of(config.data, accelerator)):
            if not batch.get("done"):
                note_unreadable(batch, config.data.on_error, unreadable)
            if "images" in batch:
                yield batch

    def forward(batch: Batch) -> Tensor:
        return embeddings(vit, batch["images"], layer, config.pool, accelerator)

    left = None if parts.total is None else sum(map(parts.images_in, missing))
    found = forward_sample(batches(), forward, left, accelerator)
    shape = (vit.num_patches, vit.embed_dim) if config.pool == "patches" else (vit.embed_dim,)
    size = "" if parts.total is None else f"{told_bytes(4 * math.prod(shape) * parts.total)}: "
    total = "a stream" if parts.total is None else f"{parts.total:,}"
    rows = {
        "images": f"{total} in {counted(parts.count, 'part')}"
        + (f"; {out} holds all of them already" if there else f", of which {len(done):,} are there" if done else ""),
        "model": told_model(vit),
        "file": f"{size}{' x '.join(map(str, shape))} numbers an image, float32",
    }
    captions = [name or "" for name in found.first.get("labels") or []] if found.first else []
    return found.told(out, rows, 0.0, captions, unreadable, config, config.data, accelerator)


def parts_folder(out: Path) -> Path:
    """The folder beside a file of embeddings for its parts, until all are there."""
    return out.with_name(f"{out.name}.parts")


def is_of(folder: Path, about: dict[str, Any]) -> bool:
    """Whether the parts in a folder are of these images and this model."""
    try:
        return json.loads((folder / "plan.json").read_text(encoding="utf-8")) == about
    except (OSError, ValueError):
        return False


def part_file(folder: Path, number: int) -> Path:
    """The table of a part."""
    return folder / f"part-{number:08d}.parquet"


def write_parts(
    folder: Path,
    parts: Parts,
    vit: Backbone,
    layer: int,
    shape: tuple[int, ...],
    config: Embed,
    accelerator: Accelerator,
) -> None:
    """Compute this process's share of the parts that are missing."""
    missing = [number for number in range(parts.count) if not part_file(folder, number).exists()]
    accelerator.wait_for_everyone()  # all have looked
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    loader = parts.loader(mine, vit.img_size, config.batch_size, workers_of(config.data, accelerator))
    batches = iter(loader)
    hide = not accelerator.is_main_process
    with tqdm(total=parts.total, unit="image", desc="embedding", disable=hide, leave=False, mininterval=1) as bar:
        for number in mine:
            unreadable: dict[str, str] = {}
            with writing(folder, _GOES_ON), Writer(part_file(folder, number), shape, bool(parts.label_names)) as table:
                while not (batch := next(batches)).get("done"):
                    note_unreadable(batch, config.data.on_error, unreadable)
                    if "images" in batch:
                        embedded = embeddings(vit, batch["images"], layer, config.pool, accelerator)
                        table.add(batch["names"], batch["labels"], embedded.numpy())
                        bar.update(len(embedded) * accelerator.num_processes)
                table.note(unreadable)


@torch.no_grad()
def embeddings(vit: Backbone, images: Tensor, layer: int, pool: str, accelerator: Accelerator) -> Tensor:
    """uint8 images (B, C, H, W) -> float32 (B, D), or of all patches (B, N, D), on the CPU."""
    with accelerator.autocast():
        tokens = vit.layers(normalise(images.to(accelerator.device)), [layer])[0]
    return (tokens[:, 1:] if pool == "patches" else pool_tokens(tokens, pool)).float().cpu()


def put_together(
    folder: Path, out: Path, parts: Parts, shape: tuple[int, ...], about: dict[str, Any], config: Embed
) -> None:
    """Join the parts into one file, say beside it of what it is, and remove them."""
    files = [part_file(folder, number) for number in range(parts.count)]
    unreadable = {where: why for file in files for where, why in unreadable_of(file).items()}
    with writing(out.parent, _GOES_ON):
        notes_of(out).unlink(missing_ok=True)  # of what is replaced
        count = join(files, out, shape, bool(parts.label_names))
        refuse_too_many(len(unreadable), count + len(unreadable), config.data, unreadable)
        notes = about | {"images": count, "shape": list(shape), "unreadable": unreadable}
        write_whole(notes_of(out), as_json(notes, indent=1).encode())
        for file in [*files, folder / "plan.json"]:
            file.unlink()
