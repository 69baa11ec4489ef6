"""The command `look`: what is inside a backbone, as pictures, with their numbers beside them."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from einops import rearrange
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from mpp.commands.downstream import as_taken_by
from mpp.config.commands import Look
from mpp.data.augment import normalise
from mpp.data.parts import Parts
from mpp.data.splits import open_whole
from mpp.errors import UserError, counted, renamed
from mpp.evaluation.attention import (
    attention_distances,
    filter_components,
    pixel_distances,
    position_similarity,
    rollout,
    weights_of_blocks,
)
from mpp.figures.components import component_colours
from mpp.figures.inside import paint_distances, paint_filters, paint_positions, paint_rollout
from mpp.figures.sheet import paint_sheet
from mpp.files import csv_cell, write_whole
from mpp.models.backbones import fitted, load_backbone
from mpp.models.vit import ViT
from mpp.run.folder import AGAIN, claimed, named_folder, save_picture, writing

_PAINTED = 16  # images that are shown by themselves


def run_look(config: Look, accelerator: Accelerator) -> dict[str, Any]:
    """Paint what --only names; returns the files and the numbers that a sentence can quote."""
    output = named_folder(config.output, "look")
    with renamed("--model.img-size", "--img-size", [config.data.path]):
        vit = fitted(load_backbone(config.init), config.img_size).eval()
    images = pictures_of(config, vit) if {"distance", "rollout", "features"} & set(config.only) else None
    found: dict[str, Any] = {"init": config.init, "files": []}
    with claimed(output, accelerator), writing(output, AGAIN), torch.no_grad():
        output.mkdir(parents=True, exist_ok=True)
        gallery = Gallery(output)
        if "filters" in config.only:
            look_at_filters(vit, gallery)
        if "positions" in config.only:
            look_at_positions(vit, gallery)
        if images is not None:
            look_at_attention(vit, images, config, gallery, found)
        gallery.close()
    found["files"] = gallery.files
    print(f"{counted(len(gallery.files), 'file')} in {output}: {', '.join(gallery.files)}")
    return found


def pictures_of(config: Look, vit: ViT) -> Tensor:
    """The first --images of the set as the model takes them: uint8 (B, C, H, W)."""
    with as_taken_by(vit, config.init, config.data, fitted=False) as data:
        parts = Parts(open_whole(data, vit.img_size))
    some = list(parts.pick(set(range(config.images)), {}, vit.img_size))
    if not some:
        raise UserError(f"--data.path {config.data.path} has no image to look at")
    return torch.from_numpy(np.stack(some))


class Gallery:
    """The pictures and tables of a folder, and the same pictures in TensorBoard."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder, self.files = folder, list[str]()
        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def figure(self, name: str, figure: Figure) -> None:
        """Keep a matplotlib figure."""
        canvas = FigureCanvasAgg(figure)
        figure.set_dpi(110)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]  # (H, W, 3)
        self.picture(name, torch.from_numpy(rearrange(pixels, "h w c -> c h w").copy()))

    def picture(self, name: str, picture: Tensor) -> None:
        """Keep a picture, uint8 (3, H, W)."""
        save_picture(picture, self.folder / f"{name}.png")
        self.writer.add_image(f"look/{name}", picture, 0)
        self.files.append(f"{name}.png")

    def table(self, name: str, header: list[str], rows: list[list[Any]]) -> None:
        """Keep the numbers of a picture."""
        text = io.StringIO()
        csv.writer(text).writerows([header, *(map(csv_cell, row) for row in rows)])
        write_whole(self.folder / f"{name}.csv", text.getvalue().encode())
        self.files.append(f"{name}.csv")

    def close(self) -> None:
        """Have all on the disk."""
        self.writer.close()


def look_at_filters(vit: ViT, gallery: Gallery) -> None:
    """Principal components of the patch-embedding filters."""
    components, shares = filter_components(vit.patch_embed.weight, vit.in_chans, vit.patch_size)
    gallery.figure("filters", paint_filters(components, shares))
    gallery.table("filters", ["component", "share_of_variance"], [[k + 1, f"{s:.6f}"] for k, s in enumerate(shares)])


def look_at_positions(vit: ViT, gallery: Gallery) -> None:
    """Similarity of position embeddings, if there are any."""
    similarity = position_similarity(vit)
    if similarity is None:
        print("positions: this backbone has no position embeddings")
        return
    gallery.figure("positions", paint_positions(similarity, vit.grid, vit.pos_embed_kind))
    if vit.pos_embed_kind != "relative":
        numbers = [[a, b, f"{similarity[a, b]:.6f}"] for a, b in np.ndindex(*similarity.shape)]
        gallery.table("positions", ["patch", "other", "cosine"], numbers)


def look_at_attention(vit: ViT, images: Tensor, config: Look, gallery: Gallery, found: dict[str, Any]) -> None:
    """Attention distance, rollout, and components of patch features, of some images."""
    first, far, few = vit.first, pixel_distances(vit.grid, vit.patch_size), images[:_PAINTED]
    if "distance" in config.only:
        sums = torch.zeros(vit.depth, vit.num_heads)
        for batch in images.split(config.batch_size):
            of_blocks = (attention_distances(w, first, far) for w in weights_of_blocks(vit, normalise(batch)))
            sums += torch.stack([each.sum(0).cpu() for each in of_blocks])  # (depth, heads)
        distances, uniform = sums / len(images), far.mean().item()
        gallery.figure("distance", paint_distances(distances, uniform, len(images)))
        rows = [[b + 1, h + 1, f"{distances[b, h]:.4f}"] for b, h in np.ndindex(*distances.shape)]
        gallery.table("distance", ["block", "head", "pixels"], rows)
        found["attention_distance"] = distances.mean(1).tolist()
        found["uniform_distance"] = uniform
    if "rollout" in config.only:
        flows = rollout(weights_of_blocks(vit, normalise(few)), first, vit.num_patches)
        maps = rearrange(flows, "b (h w) -> b h w", h=vit.grid[0])
        gallery.figure("rollout", paint_rollout(few.numpy(), maps.numpy()))
    if "features" in config.only:
        tokens = vit(normalise(few))[:, 1:].float()  # (B, N, D)
        colours = component_colours(tokens, vit.grid).numpy()
        pairs = [picture for pair in zip(few.numpy(), colours, strict=True) for picture in pair]
        gallery.picture("features", paint_sheet(pairs, ["image", "components"] * len(few), columns=8))
