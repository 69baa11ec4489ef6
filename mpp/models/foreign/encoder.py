"""From weights of another library to our ViT, with the same outputs; what our ViT does not have is refused by name."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from mpp.errors import listed
from mpp.models.backbone import Backbone
from mpp.models.foreign.names import Tensors
from mpp.models.pretrained import not_finite
from mpp.models.sizes import refuse_beyond_use
from mpp.models.stems import kind_of_units
from mpp.models.vit import VARIANTS, ViT

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation of pixels in 0..1
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1152: 16, 1280: 16, 1408: 16, 1664: 16}  # of DeiT, ViT and "Scaling ViTs"

_NOT_OURS = {  # what a part of a tensor's name stands for
    r"\.[qk]_norm\.|\.(norm_q|norm_k)\.": "a norm of queries and keys (qk-norm)",
    r"rope|freqs|periods": "rotary position embeddings (RoPE)",
    r"rel_pos|relative_position": "relative position biases",
    r"mlp\.(w12|w1|w2|w3|fc1_g|fc1_x|weights_in)\b": "a gated MLP (SwiGLU)",
    r"dist_token|distillation_token": "a distillation token",
    r"attn\.norm\.|mlp\.norm\.": "norms inside attention or MLP",
    r"patch_embed\.(backbone\.(?!stem\.(conv|norm)\.|stages\.)|norm)|^root_block": "another stem, or a norm in it",
    r"\.(q|v)_bias$": "separate biases of queries and values (BEiT)",
    r"^layers\.\d+\.blocks\.": "windows in stages (Swin)",
    r"\.(attns|ffns)\.": "parallel branches",
    r"^blocks\.\d+\.\d+\.": "blocks in groups",
    r"experts|router": "a mixture of experts",
    r"gamma_[12]$": "scales of branches under BEiT's names",
}


_STEM = "patch_embed.backbone.stem.conv.weight"  # the first convolution of a hybrid's ResNet


@dataclass
class Facts:
    """What is known of an encoder beside its tensors.

    Attributes:
        heads: attention heads a block; None: those that an encoder of its width usually has.
        eps: what its norms add to the variance.
        mean, std: of pixels in 0..1, by which its library normalises images.
        img_size: (height, width) in pixels; None: a square, told from the position embeddings.
        told: what had to be assumed, to say to the user.
    """

    heads: int | None = None
    eps: float = 1e-6
    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]
    img_size: tuple[int, int] | None = None
    told: str = ""


def encoder(tensors: Tensors, facts: Facts, **options: Any) -> ViT:
    """Our ViT with the weights of an encoder in timm's names. `options` (dropout, drop_path) are ours.

    Raises ValueError, which names it, for what our ViT does not have.
    """
    refuse_not_ours(tensors)
    arguments, ours = ours_of(tensors, facts)
    refuse_beyond_use(arguments["img_size"], arguments["patch_size"])
    if broken := not_finite(ours):
        raise ValueError(f"{broken} holds values that are not finite (NaN or infinite)")
    with torch.device("meta"):
        asked = {name: tuple(tensor.shape) for name, tensor in ViT(**arguments).state_dict().items()}
    there = {name: tuple(tensor.shape) for name, tensor in ours.items()}
    if other := [name for name in ours if name not in asked]:
        raise ValueError(f"it has {listed(other)}, which our ViT does not have")
    for name, shape in asked.items():
        if there.get(name) != shape:
            raise ValueError(f"{name} is {there.get(name, 'not there')}, and our ViT needs {shape}")
    vit = ViT(**arguments, **options)
    vit.load_state_dict(ours)
    return vit


def refuse_not_ours(tensors: Tensors) -> None:
    """Raise ValueError if names or shapes tell of something that our ViT does not have."""
    for pattern, what in _NOT_OURS.items():
        if found := [name for name in tensors if re.search(pattern, name)]:
            raise ValueError(f"it has {what} ({found[0]}), which our ViT does not have")
    for needed in ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight"):
        if needed not in tensors:
            raise ValueError(f"it has no {needed}: it is no plain Vision Transformer")
    fc1, fc2 = tensors["blocks.0.mlp.fc1.weight"], tensors.get("blocks.0.mlp.fc2.weight")
    if fc2 is not None and fc1.shape[0] != fc2.shape[-1]:
        raise ValueError("it has a gated MLP (SwiGLU: fc1 is wider than fc2), which our ViT does not have")
    patch = tensors["patch_embed.proj.weight"]
    if patch.ndim != 4 or patch.shape[-1] != patch.shape[-2] or (_STEM in tensors and patch.shape[-1] != 1):
        raise ValueError(f"its patch projection is {tuple(patch.shape)}, and our patches are squares of an image")


def ours_of(tensors: Tensors, facts: Facts) -> tuple[dict[str, Any], Tensors]:
    """The arguments of our ViT, and its tensors, for an encoder in timm's names."""
    ours = {name: tensor.float() for name, tensor in tensors.items()}
    patch = ours.pop("patch_embed.proj.weight")
    dim, channels, side, _ = patch.shape
    stem: tuple[str, int] | None = None
    if _STEM in ours:
        stem, channels = stem_of(tensors), ours[_STEM].shape[1]
        side = stem[1]
        ours = {name.replace("patch_embed.backbone.", "stem."): tensor for name, tensor in ours.items()}
    ours["patch_embed.weight"] = rearrange(patch, "d c p q -> d (c p q)")
    ours["patch_embed.bias"] = ours.pop("patch_embed.proj.bias", torch.zeros(dim))  # CLIP's has none
    blocks = {int(found[1]) for name in tensors if (found := re.match(r"blocks\.(\d+)\.", name))}
    if facts.heads is None and dim not in HEADS:
        raise ValueError(f"how many attention heads a width of {dim} has is not known, and no config.json says it")
    for number in blocks:  # a projection without bias is one with zeros
        for name in (f"blocks.{number}.{part}" for part in ("attn.proj", "mlp.fc1", "mlp.fc2")):
            if f"{name}.weight" in ours:
                ours.setdefault(f"{name}.bias", torch.zeros(ours[f"{name}.weight"].shape[0]))
    first, registers = int("cls_token" in ours), ours["reg_token"].shape[1] if "reg_token" in ours else 0
    grid = place_positions(ours, first, registers, facts.img_size, side)
    colours = {"mean": facts.mean, "std": facts.std}
    if any(len(values) != channels for values in colours.values()):
        if any(len(set(values)) > 1 for values in colours.values()):
            raise ValueError(f"it takes {channels} channels, and mean and deviation are of {len(facts.mean)}")
        colours = {name: values[:1] * channels for name, values in colours.items()}
    usual = all(value == 0.5 for values in colours.values() for value in values)
    heads = facts.heads or HEADS[dim]
    sizes = {"embed_dim": dim, "depth": max(blocks) + 1, "num_heads": heads}
    arguments = {
        "variant": next((name for name, those in VARIANTS.items() if those == sizes), "B"),
        "img_size": (grid[0] * side, grid[1] * side),
        "patch_size": side,
        "in_chans": channels,
        **({"stem": stem[0]} if stem else {}),
        **sizes,
        "mlp_ratio": ours["blocks.0.mlp.fc1.weight"].shape[0] / dim,
        "pos_embed": "1d" if "pos_embed" in ours else "none",
        **({} if usual else {name: list(values) for name, values in colours.items()}),
        "class_token": bool(first),
        "registers": registers,
        "layer_scale": "blocks.0.ls1.gamma" in ours,
        "pre_norm": "norm_pre.weight" in ours,
        "final_norm": "norm.weight" in ours,
        "qkv_bias": "blocks.0.attn.qkv.bias" in ours,
        "norm_eps": facts.eps,
    }
    return arguments, ours


def stem_of(tensors: Tensors) -> tuple[str, int]:
    """Which of our stems a hybrid of timm has, and the pixels a side of a token. Raises ValueError for another."""
    inside = re.compile(r"patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)\.conv1\.weight")
    units = Counter(int(found[1]) for name in tensors if (found := inside.match(name)))
    counts = tuple(units[stage] for stage in sorted(units))
    if not (kind := kind_of_units(counts)):
        raise ValueError(f"its ResNet has {counts} units a stage, which none of our stems has")
    return kind


def place_positions(
    ours: Tensors, first: int, registers: int, img_size: tuple[int, int] | None, side: int
) -> tuple[int, int]:
    """Bring position embeddings into our form, [class] first and none for registers; returns the grid of patches.

    Libraries have them for [class] and registers, for [class], or for patches alone.
    """
    known = None if img_size is None else (img_size[0] // side, img_size[1] // side)
    table = ours.get("pos_embed")
    if table is None:
        if known is None:
            raise ValueError("it has no position embeddings, and no config.json says the size of its images")
        return known
    if table.ndim == 2:
        table = table[None]
    count = table.shape[1]
    ways = dict.fromkeys((first + registers, first, 0))
    squares = {prefix: math.isqrt(max(0, count - prefix)) for prefix in ways}
    grids = {prefix: known for prefix in ways if known and known[0] * known[1] == count - prefix} or {
        prefix: (root, root) for prefix, root in squares.items() if 0 < root**2 == count - prefix
    }
    if not grids:
        raise ValueError(f"its {count} position embeddings are of no square image, and no config.json says their size")
    prefix, grid = next(iter(grids.items()))
    heads, places = table[:, :prefix], table[:, prefix:]
    if prefix > first:  # registers with positions: the sum is all that the model sees
        ours["reg_token"] = ours["reg_token"] + heads[:, first:]
        heads = heads[:, :first]
    elif prefix < first:
        heads = torch.zeros(1, first, table.shape[-1])
    ours["pos_embed"] = torch.cat([heads, places], dim=1)
    return grid


def colours_of(vit: Backbone) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, of pixels in 0..1, by which a ViT's images are normalised."""
    mean, std = vit.mean.flatten(), vit.std.flatten()
    return _plain(mean), _plain(std)


def _plain(values: Tensor) -> list[float]:
    return [round(value, 7) for value in values.tolist()]  # of float32: 0.485 and not 0.48500001430511475
