"""The `.npz` files of the ViT authors (vision_transformer, big_vision): JAX's names and axes, in both directions."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from mpp.models.foreign.names import Tensors, fused, split

_MOST_UNPACKED = 4  # times the file's size: weights hardly compress

_TABLE = {  # timm's names -> JAX's; {} is a block's number
    "cls_token": "cls",
    "pos_embed": "Transformer/posembed_input/pos_embedding",
    "patch_embed.proj.": "embedding/",
    "blocks.{}.norm1.": "Transformer/encoderblock_{}/LayerNorm_0/",
    "blocks.{}.attn.q.": "Transformer/encoderblock_{}/MultiHeadDotProductAttention_1/query/",
    "blocks.{}.attn.k.": "Transformer/encoderblock_{}/MultiHeadDotProductAttention_1/key/",
    "blocks.{}.attn.v.": "Transformer/encoderblock_{}/MultiHeadDotProductAttention_1/value/",
    "blocks.{}.attn.proj.": "Transformer/encoderblock_{}/MultiHeadDotProductAttention_1/out/",
    "blocks.{}.norm2.": "Transformer/encoderblock_{}/LayerNorm_2/",
    "blocks.{}.mlp.fc1.": "Transformer/encoderblock_{}/MlpBlock_3/Dense_0/",
    "blocks.{}.mlp.fc2.": "Transformer/encoderblock_{}/MlpBlock_3/Dense_1/",
    "norm.": "Transformer/encoder_norm/",
    "pre_logits.": "pre_logits/",
    "head.": "head/",
}
_STEM = {  # of hybrids, without their common beginnings; units and stages are counted from 1 there, from 0 here
    "stem.conv.weight": "conv_root/kernel",
    "stem.norm.weight": "gn_root/scale",
    "stem.norm.bias": "gn_root/bias",
    "downsample.conv.weight": "conv_proj/kernel",
    "downsample.norm.weight": "gn_proj/scale",
    "downsample.norm.bias": "gn_proj/bias",
    **{f"conv{r}.weight": f"conv{r}/kernel" for r in (1, 2, 3)},
    **{f"norm{r}.weight": f"gn{r}/scale" for r in (1, 2, 3)},
    **{f"norm{r}.bias": f"gn{r}/bias" for r in (1, 2, 3)},
}
_HEADS = ("head/", "pre_logits/", "MAPHead_0/")


def read_npz(file: Path) -> tuple[Tensors, int]:
    """The encoder in an .npz file, in timm's names, and its attention heads.

    Nothing in it is unpickled. Raises ValueError for a file that is no such encoder.
    """
    with zipfile.ZipFile(file) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > _MOST_UNPACKED * file.stat().st_size:
        raise ValueError(f"it unpacks to {unpacked / 2**30:.1f} GiB, more than {_MOST_UNPACKED} times its size")
    with np.load(file, allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    return from_jax(found)


def from_jax(arrays: dict[str, np.ndarray]) -> tuple[Tensors, int]:
    """Arrays under JAX's names -> tensors under timm's, and the attention heads."""
    start = next((name.removesuffix("embedding/kernel") for name in arrays if name.endswith("embedding/kernel")), None)
    if start is None or start not in ("", "opt/target/", "params/", "params/img/"):
        raise ValueError("it has no embedding/kernel: it is no Vision Transformer of the ViT authors")
    inside = {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}
    inside = dict(_unstacked(inside))
    inside = {_as_in_first_files(name): array for name, array in inside.items() if not name.startswith(_HEADS)}
    patterns = {re.compile(re.escape(theirs).replace(r"\{\}", r"(\d+)")): ours for ours, theirs in _TABLE.items()}
    tensors: Tensors = {}
    heads = 0
    for name, array in inside.items():
        if stem := _stem_in_timms_names(name):
            tensor = torch.from_numpy(np.array(array))
            if name.endswith("kernel") and tensor.ndim != 4:
                raise ValueError(f"{name} is {tuple(tensor.shape)}, and a convolution's weights have four axes")
            tensors[stem] = rearrange(tensor, "p q c d -> d c p q") if name.endswith("kernel") else tensor.flatten()
            continue
        found, ours = next(((m, ours) for pattern, ours in patterns.items() if (m := pattern.match(name))), (None, ""))
        if found is None:
            raise ValueError(f"it has {name}, which our ViT does not have")
        place = ours.format(*found.groups())
        if place.endswith("."):
            place += "weight" if name[found.end() :] in ("kernel", "scale") else name[found.end() :]
        if ".attn.q." in place:
            heads = array.shape[-2]
        tensors[place] = _from_axes(torch.from_numpy(np.array(array)), place)
    return fused(tensors), heads


def _stem_in_timms_names(name: str) -> str | None:
    """timm's name of a tensor of a hybrid's ResNet under JAX's; None if it is none."""
    found = re.fullmatch(r"(?:block(\d+)/unit(\d+)/)?(.+)", name)
    assert found
    ours = next((ours for ours, theirs in _STEM.items() if theirs == found[3]), None)
    if ours is None:
        return None
    unit = f"stages.{int(found[1]) - 1}.blocks.{int(found[2]) - 1}." if found[1] else ""
    return f"patch_embed.backbone.{unit}{ours}"


def _stem_in_jaxs_names(name: str) -> str | None:
    """The reverse of `_stem_in_timms_names`."""
    found = re.fullmatch(r"patch_embed\.backbone\.(?:stages\.(\d+)\.blocks\.(\d+)\.)?(.+)", name)
    if found is None:
        return None
    unit = f"block{int(found[1]) + 1}/unit{int(found[2]) + 1}/" if found[1] else ""
    return unit + _STEM[found[3]]


def _unstacked(arrays: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Arrays of all blocks in one, as big_vision writes them from a scan, one by one."""
    for name, array in arrays.items():
        if "/encoderblock/" not in name:
            yield name, array
            continue
        for number, part in enumerate(array):
            yield name.replace("/encoderblock/", f"/encoderblock_{number}/"), part


def _as_in_first_files(name: str) -> str:
    """big_vision's names -> those of vision_transformer."""
    name = re.sub(r"MultiHeadDotProductAttention_0/", "MultiHeadDotProductAttention_1/", name)
    name = re.sub(r"(encoderblock_\d+)/LayerNorm_1/", r"\1/LayerNorm_2/", name)
    name = re.sub(r"(encoderblock_\d+)/MlpBlock_0/", r"\1/MlpBlock_3/", name)
    return "Transformer/posembed_input/pos_embedding" if name == "pos_embedding" else name


def _from_axes(tensor: Tensor, name: str) -> Tensor:
    """JAX's axes, inputs before outputs, -> torch's."""
    if name == "patch_embed.proj.weight":
        return rearrange(tensor, "p q c d -> d c p q")
    if re.search(r"\.attn\.[qkv]\.weight$", name):
        return rearrange(tensor, "d h e -> (h e) d")
    if re.search(r"\.attn\.[qkv]\.bias$", name):
        return rearrange(tensor, "h e -> (h e)")
    if name.endswith(".attn.proj.weight"):
        return rearrange(tensor, "h e d -> d (h e)")
    return tensor.T.contiguous() if tensor.ndim == 2 and name.endswith("weight") else tensor


def to_jax(tensors: Tensors, heads: int) -> dict[str, np.ndarray]:
    """Tensors under timm's names, also of a head, -> arrays under JAX's names, as vision_transformer writes them."""
    found: dict[str, np.ndarray] = {}
    for name, tensor in split(tensors).items():
        if stem := _stem_in_jaxs_names(name):
            axes = rearrange(tensor, "d c p q -> p q c d") if tensor.ndim == 4 else tensor
            found[stem] = np.ascontiguousarray(axes.numpy())
            continue
        pattern = next(key for key in _TABLE if re.match(re.escape(key).replace(r"\{\}", r"\d+"), name))
        number = re.search(r"\d+", name)
        theirs = _TABLE[pattern].format(number[0] if number else "")
        if theirs.endswith("/"):
            kind = name.rpartition(".")[2]
            theirs += ("scale" if "norm" in name else "kernel") if kind == "weight" else kind
        found[theirs] = np.ascontiguousarray(_to_axes(tensor, name, heads).numpy())
    return found


def _to_axes(tensor: Tensor, name: str, heads: int) -> Tensor:
    """torch's axes -> JAX's."""
    if name == "patch_embed.proj.weight":
        return rearrange(tensor, "d c p q -> p q c d")
    if re.search(r"\.attn\.[qkv]\.weight$", name):
        return rearrange(tensor, "(h e) d -> d h e", h=heads)
    if re.search(r"\.attn\.[qkv]\.bias$", name):
        return rearrange(tensor, "(h e) -> h e", h=heads)
    if name.endswith(".attn.proj.weight"):
        return rearrange(tensor, "d (h e) -> h e d", h=heads)
    return tensor.T if tensor.ndim == 2 and name.endswith("weight") else tensor
