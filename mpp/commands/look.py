"""The command `look`: what is inside a backbone, as pictures, with their numbers beside them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from einops import rearrange
from torch import Tensor

from mpp.commands.downstream import as_taken_by
from mpp.commands.look_patches import look_at_patches
from mpp.commands.reopened import held_out_of, reopened, run_of
from mpp.config.options import Data
from mpp.config.using import Look
from mpp.data.augment import normalise
from mpp.data.images import Images
from mpp.data.parts import Parts
from mpp.data.splits import open_whole
from mpp.data.streams import Stream, held_out
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
from mpp.figures.gallery import Gallery
from mpp.figures.inside import paint_distances, paint_filters, paint_positions, paint_rollout
from mpp.figures.sheet import paint_sheet
from mpp.models.backbones import as_vit, fitted, load_backbone
from mpp.models.vit import ViT
from mpp.run.folder import AGAIN, claimed, named_folder, writing

_PAINTED = 16  # images that are shown by themselves


def run_look(config: Look, accelerator: Accelerator) -> dict[str, Any]:
    """Paint what --only names; returns the files and the numbers that a sentence can quote."""
    output, only = named_folder(config.output, "look"), set(config.only)
    vit, run = backbone(config.init, config, accelerator), run_of(config.init)
    images: Images | Stream | None = None
    if only & {"distance", "rollout", "features", "predictions", "confusion"}:
        if run and not config.data.path:
            images = held_out_of(*run)
        else:
            if not config.data.path:
                print("images: the built-in shapes; --data.path names others")
                config = replace(config, data=replace(config.data, path=Data.path))
            with as_taken_by(vit, config.init, config.data, fitted=False) as data:
                images = open_whole(data, vit.img_size)
    found: dict[str, Any] = {"init": config.init, "files": []}
    with claimed(output, accelerator), writing(output, AGAIN), torch.no_grad():
        output.mkdir(parents=True, exist_ok=True)
        gallery = Gallery(output)
        if "filters" in only:
            look_at_filters(vit, gallery)
        if "positions" in only:
            look_at_positions(vit, gallery)
        if images is not None and only & {"distance", "rollout", "features"}:
            look_at_attention(vit, images, config, accelerator, gallery, found)
        if images is not None and only & {"predictions", "confusion"}:
            measured = held_out(images, config.images) if isinstance(images, Stream) else images
            job = reopened(*run, measured, accelerator) if run else f"{config.init} is no run of mpp pretrain"
            if isinstance(job, str):
                print(f"predictions, confusion: left out, because {job}")
            else:
                look_at_patches(job, config, gallery, found)
        gallery.close()
    found["files"] = gallery.files
    print(f"{counted(len(gallery.files), 'file')} in {output}: {', '.join(gallery.files)}")
    return found


def backbone(init: str, config: Look, accelerator: Accelerator) -> ViT:
    """The encoder that --init or --beside names, at --img-size, where it computes."""
    with renamed("--model.img-size", "--img-size", [config.data.path]):
        vit = as_vit(load_backbone(init), init, "what is looked at are filters and attention of a ViT")
        return fitted(vit, config.img_size).eval().to(accelerator.device)


def taken(images: Images | Stream, vit: ViT, count: int) -> Tensor:
    """The first `count` images of a set as a model takes them: uint8 (B, C, H, W)."""
    some = list(Parts(images).pick(set(range(count)), {}, vit.img_size))
    if not some:
        raise UserError("--data.path has no image to look at")
    return torch.from_numpy(np.stack(some))


def look_at_filters(vit: ViT, gallery: Gallery) -> None:
    """Principal components of the patch-embedding filters; of a hybrid, those of its first convolution."""
    filters, side = vit.patch_embed.weight, vit.patch_size
    if vit.stem is not None:
        first = next(part for part in vit.stem.modules() if isinstance(part, torch.nn.Conv2d))
        filters, side = rearrange(first.weight, "d c y x -> d (c y x)"), first.kernel_size[0]
    components, shares = filter_components(filters.cpu(), vit.in_chans, side)
    gallery.figure("filters", paint_filters(components, shares))
    gallery.table("filters", ["component", "share_of_variance"], [[k + 1, f"{s:.6f}"] for k, s in enumerate(shares)])


def look_at_positions(vit: ViT, gallery: Gallery) -> None:
    """Similarity of position embeddings, if there are any."""
    similarity = position_similarity(vit)
    if similarity is None:
        print("positions: left out, because this backbone has no position embeddings")
        return
    gallery.figure("positions", paint_positions(similarity, vit.grid, vit.pos_embed_kind))
    if vit.pos_embed_kind == "relative":  # (depth, 2h - 1, 2w - 1): the offset 0 is in the middle
        down, across = (side - 1 for side in vit.grid)
        offsets = [
            [b + 1, y - down, x - across, f"{similarity[b, y, x]:.6f}"] for b, y, x in np.ndindex(*similarity.shape)
        ]
        gallery.table("positions", ["block", "rows", "columns", "cosine"], offsets)
    else:
        numbers = [[a, b, f"{similarity[a, b]:.6f}"] for a, b in np.ndindex(*similarity.shape)]
        gallery.table("positions", ["patch", "other", "cosine"], numbers)


def look_at_attention(
    vit: ViT,
    source: Images | Stream,
    config: Look,
    accelerator: Accelerator,
    gallery: Gallery,
    found: dict[str, Any],
) -> None:
    """Attention distance, rollout, and components of patch features, of some images."""
    images = taken(source, vit, config.images)
    few, device = images[:_PAINTED], accelerator.device
    if "distance" in config.only:
        models = {config.init: mean_distances(vit, images, config.batch_size)}
        if config.beside:
            other = backbone(config.beside, config, accelerator)
            name = config.beside if config.beside != config.init else f"{config.beside} (2)"
            models[name] = mean_distances(other, taken(source, other, config.images), config.batch_size)
        gallery.figure("distance", paint_distances(models, len(images)))
        for file, (distances, _) in zip(("distance", "distance-beside"), models.values(), strict=False):
            rows = [[b + 1, h + 1, f"{distances[b, h]:.4f}"] for b, h in np.ndindex(*distances.shape)]
            gallery.table(file, ["block", "head", "pixels"], rows)
        distances, found["uniform_distance"] = models[config.init]
        found["attention_distance"] = distances.mean(1).tolist()
    if "rollout" in config.only:
        flows = rollout(weights_of_blocks(vit, normalise(few.to(device))), vit.first, vit.num_patches)
        maps = rearrange(flows.cpu(), "b (h w) -> b h w", h=vit.grid[0])
        gallery.figure("rollout", paint_rollout(few.numpy(), maps.numpy()))
    if "features" in config.only:
        tokens = vit(normalise(few.to(device)))[:, 1:].float().cpu()  # (B, N, D)
        colours = component_colours(tokens, vit.grid).numpy()
        pairs = [picture for pair in zip(few.numpy(), colours, strict=True) for picture in pair]
        gallery.picture("features", paint_sheet(pairs, ["image", "components"] * len(few), columns=8))


def mean_distances(vit: ViT, images: Tensor, batch_size: int) -> tuple[Tensor, float]:
    """Attention distances in pixels (depth, heads), mean over images uint8 (B, C, H, W), and uniform attention's."""
    far, sums = pixel_distances(vit.grid, vit.patch_size), torch.zeros(vit.depth, vit.num_heads)
    for batch in images.split(batch_size):
        blocks = weights_of_blocks(vit, normalise(batch.to(vit.patch_embed.weight.device)))
        sums += torch.stack([attention_distances(weights, vit.first, far).sum(0).cpu() for weights in blocks])
    return sums / len(images), far.mean().item()
