"""Ways to look at embeddings: the nearest images to one, TensorBoard's projector, principal components of patches."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import send_to_device

from mpp.config.using import Embed
from mpp.data.augment import View, normalise
from mpp.data.bands import displayed
from mpp.data.decode import Unreadable, open_image
from mpp.data.images import bands_of
from mpp.data.parts import Parts
from mpp.data.randomness import Numbers, Purpose, generator
from mpp.errors import UserError, printable
from mpp.evaluation.embeddings import chunks, names_of, nearest
from mpp.figures.components import component_colours
from mpp.figures.sheet import paint_sheet
from mpp.files import is_special
from mpp.models.backbone import Backbone, pool_tokens
from mpp.run.folder import AGAIN, save_picture, write_folder, writing

_NEAREST = 12  # images that are named and painted
_COMPONENTS = 16  # images whose patches are painted
_PROJECTED = 5000  # images at most: the projector's page slows down with more
_THUMBNAIL = 48  # pixels: 71 x 71 of them make a picture of 3408, and the projector takes 8192


def write_nearest(
    similar: str, out: Path, vit: Backbone, layer: int, config: Embed, parts: Parts, left_out: dict[str, str]
) -> None:
    """Print the images nearest to one by cosine, and paint them beside it."""
    columns = names_of(out)
    names, labels = columns["image"], columns.get("label")
    row = next((row for row, name in enumerate(names) if similar == name or _same_file(similar, name)), None)
    if row is None:
        picture = _picture(similar, parts, vit)
        with torch.no_grad():
            images = torch.from_numpy(picture)[None].to(next(vit.parameters()).device)
            query = pool_tokens(vit.layers(normalise(images), [layer])[0], config.pool)[0].float().cpu().numpy()
    else:
        query = _row(out, row)
    rows, cosines = nearest(out, query, _NEAREST + (row is not None))
    others = [(int(found), float(cosine)) for found, cosine in zip(rows, cosines, strict=True) if found != row][
        :_NEAREST
    ]
    wanted = sorted({found for found, _ in others} | ({row} if row is not None else set()))
    pictures = dict(zip(wanted, parts.pick(set(wanted), left_out, _thumbnail(vit, 112)), strict=True))
    said = [f"{cosine:.3f}" + (f" {labels[found]}" if labels else "") for found, cosine in others]
    print(f"nearest to {printable(similar)} by cosine:")
    for (found, _), text in zip(others, said, strict=True):
        print(f"  {printable(text)}  {printable(names[found])}")
    first = pictures[row] if row is not None else picture
    sheet = paint_sheet([first, *(pictures[found] for found, _ in others)], ["the image", *said], columns=5)
    _save(sheet, out.with_suffix(".similar.png"))


def _same_file(one: str, other: str) -> bool:
    return os.path.basename(one) == os.path.basename(other) and os.path.abspath(one) == os.path.abspath(other)


def _picture(file: str, parts: Parts, vit: Backbone) -> np.ndarray:
    """An image from a file as the model takes it, uint8 (C, H, W)."""
    path = Path(file).expanduser()
    if is_special(path) or not path.is_file():
        raise UserError(f"--similar {file} is neither an image file nor the name of an image in the table")
    image = open_image({"bytes": path.read_bytes(), "path": None})
    try:
        if isinstance(image, Unreadable):
            raise image
        numbers = Numbers(0, Purpose.EVAL, 0, range(1))  # of which nothing is drawn
        return np.moveaxis(View(vit.img_size).cut(image, bands_of(parts.images), numbers, 0), -1, 0)
    except Unreadable as error:
        raise UserError(f"--similar {file} could not be read ({error})") from error


def _row(out: Path, row: int) -> np.ndarray:
    """One embedding of a file."""
    for rows in chunks(out):
        if row < len(rows):
            return rows[row]
        row -= len(rows)
    raise AssertionError("the names of a file are as many as its rows")


def _thumbnail(vit: Backbone, side: int) -> tuple[int, int]:
    """The size of a small picture with the shape of the model's images; no larger than these."""
    scale = min(1.0, side / max(vit.img_size))
    return max(1, round(vit.img_size[0] * scale)), max(1, round(vit.img_size[1] * scale))


def write_projector(out: Path, parts: Parts, left_out: dict[str, str]) -> None:
    """Write a folder for TensorBoard's embedding projector: embeddings, names, labels and thumbnails."""
    from torch.utils.tensorboard import SummaryWriter

    columns = names_of(out)
    count = len(columns["image"])
    rows = np.sort(generator(0, Purpose.SPLIT).permutation(count)[:_PROJECTED])
    chosen = set(rows.tolist())
    embedded, start = [], 0
    for some in chunks(out):
        embedded.append(some[rows[(rows >= start) & (rows < start + len(some))] - start])
        start += len(some)
    thumbnails = torch.from_numpy(np.stack(list(parts.pick(chosen, left_out, (_THUMBNAIL, _THUMBNAIL)))))
    thumbnails = thumbnails[:, displayed(thumbnails.shape[1])].float() / 255
    texts = {name: [printable(column[row] or "-") for row in rows] for name, column in columns.items()}
    several = len(texts) > 1  # the projector has a header only of several columns

    def save(folder: Path) -> None:
        with SummaryWriter(str(folder)) as writer:
            writer.add_embedding(
                np.concatenate(embedded),
                metadata=list(zip(*texts.values(), strict=True)) if several else texts["image"],
                metadata_header=list(texts) if several else None,
                label_img=thumbnails,
                tag="embeddings",
            )

    folder = out.with_suffix(".projector")
    write_folder(folder, save, AGAIN)
    print(f"{len(rows):,} of {count:,} images for the projector: tensorboard --logdir {folder}")


@torch.no_grad()
def write_components(out: Path, vit: Backbone, layer: int, parts: Parts, left_out: dict[str, str]) -> None:
    """Paint the principal components of the patches of the first images beside these."""
    images = list(parts.pick(set(range(_COMPONENTS)), left_out, vit.img_size))
    if not images:
        raise UserError(f"--pca: {out} holds no image")
    batch = send_to_device(torch.from_numpy(np.stack(images)), next(vit.parameters()).device)
    tokens = vit.layers(normalise(batch), [layer])[0][:, 1:].float().cpu()  # (B, N, D)
    colours = component_colours(tokens, vit.grid).numpy()
    pairs = [picture for pair in zip(images, colours, strict=True) for picture in pair]
    _save(paint_sheet(pairs, [""] * len(pairs), columns=8), out.with_suffix(".pca.png"))


def _save(picture: torch.Tensor, file: Path) -> None:
    with writing(file.parent, AGAIN):
        save_picture(picture, file)
    print(f"{file} shows them" if ".similar" in file.name else f"{file}: components of patches as colours")
