"""The names that libraries give to the weights of a Vision Transformer, translated in both directions.

timm's names are the common form: ours are those, but for the patch projection.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Library = Literal["timm", "vit", "dinov2", "torchvision"]

_BOTH_OF_TRANSFORMERS = {
    "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "blocks.{}.attn.q.": "encoder.layer.{}.attention.attention.query.",
    "blocks.{}.attn.k.": "encoder.layer.{}.attention.attention.key.",
    "blocks.{}.attn.v.": "encoder.layer.{}.attention.attention.value.",
    "blocks.{}.attn.proj.": "encoder.layer.{}.attention.output.dense.",
    "norm.": "layernorm.",
}
TABLES: dict[Library, dict[str, str]] = {  # timm's beginnings of names -> theirs; {} is a block's number
    "timm": {name: name for name in ("patch_embed.proj.", "cls_token", "reg_token", "pos_embed", "norm")}
    | {"blocks.{}.": "blocks.{}."},
    "vit": _BOTH_OF_TRANSFORMERS
    | {
        "blocks.{}.norm1.": "encoder.layer.{}.layernorm_before.",
        "blocks.{}.norm2.": "encoder.layer.{}.layernorm_after.",
        "blocks.{}.mlp.fc1.": "encoder.layer.{}.intermediate.dense.",
        "blocks.{}.mlp.fc2.": "encoder.layer.{}.output.dense.",
    },
    "dinov2": _BOTH_OF_TRANSFORMERS
    | {
        "reg_token": "embeddings.register_tokens",
        "blocks.{}.norm1.": "encoder.layer.{}.norm1.",
        "blocks.{}.norm2.": "encoder.layer.{}.norm2.",
        "blocks.{}.mlp.": "encoder.layer.{}.mlp.",
        "blocks.{}.ls1.gamma": "encoder.layer.{}.layer_scale1.lambda1",
        "blocks.{}.ls2.gamma": "encoder.layer.{}.layer_scale2.lambda1",
    },
    "torchvision": {
        "patch_embed.proj.": "conv_proj.",
        "cls_token": "class_token",
        "pos_embed": "encoder.pos_embedding",
        "blocks.{}.norm1.": "encoder.layers.encoder_layer_{}.ln_1.",
        "blocks.{}.attn.qkv.": "encoder.layers.encoder_layer_{}.self_attention.in_proj_",
        "blocks.{}.attn.proj.": "encoder.layers.encoder_layer_{}.self_attention.out_proj.",
        "blocks.{}.norm2.": "encoder.layers.encoder_layer_{}.ln_2.",
        "blocks.{}.mlp.fc1.": "encoder.layers.encoder_layer_{}.mlp.0.",
        "blocks.{}.mlp.fc2.": "encoder.layers.encoder_layer_{}.mlp.3.",
        "norm.": "encoder.ln.",
    },
}
_MARKS: dict[str, list[Library]] = {  # the patch projection's name tells the library
    "embeddings.patch_embeddings.projection.weight": ["vit", "dinov2"],
    "patch_embed.proj.weight": ["timm"],
    "conv_proj.weight": ["torchvision"],
}
_OTHER_PARTS = ("head", "fc_norm.", "pre_logits.", "attn_pool.", "decoder", "mask_token", "pooler.", "classifier.")


def in_timms_names(tensors: Mapping[str, Tensor]) -> Tensors:
    """The encoder's tensors among those of a model, in timm's names; what is not translated keeps its name.

    Heads and decoders are left out: the encoder is what stands beside the patch projection. Of a teacher and a student
    it is the teacher's. Raises ValueError if there is no patch projection, or several.
    """
    for mark, libraries in _MARKS.items():
        places = [name.removesuffix(mark) for name in tensors if name.endswith(mark)]
        if teachers := [place for place in places if "teacher" in place]:
            places = teachers
        if len(places) > 1:
            raise ValueError(f"it has several encoders ({', '.join(place or 'the first' for place in places[:5])})")
        if places:
            table = {theirs: ours for library in libraries for ours, theirs in TABLES[library].items()}
            inside = {name.removeprefix(places[0]): t for name, t in tensors.items() if name.startswith(places[0])}
            for name in [name for name in inside if name.removeprefix("embeddings.").startswith(_OTHER_PARTS)]:
                del inside[name]
            aliases = {"register_tokens": "reg_token"}  # in the files of DINOv2's authors
            return fused({aliases.get(name, name): tensor for name, tensor in renamed(inside, table).items()})
    raise ValueError("it has no patch projection in the names of timm, transformers or torchvision")


def in_names_of(library: Library, tensors: Mapping[str, Tensor]) -> Tensors:
    """Tensors in timm's names -> those of a library."""
    return renamed(split(tensors) if library in ("vit", "dinov2") else tensors, TABLES[library])


def renamed(tensors: Mapping[str, Tensor], table: Mapping[str, str]) -> Tensors:
    """Tensors with the beginnings of their names replaced as `table` says; others keep their names."""
    patterns = [(re.compile(re.escape(old).replace(r"\{\}", r"(\d+)")), new) for old, new in table.items()]

    def translated(name: str) -> str:
        for pattern, new in patterns:
            if found := pattern.match(name):
                return new.format(*found.groups()) + name[found.end() :]
        return name

    return {translated(name): tensor for name, tensor in tensors.items()}


def fused(tensors: Mapping[str, Tensor]) -> Tensors:
    """Separate projections to queries, keys and values as one: attn.q, attn.k, attn.v -> attn.qkv."""
    found = dict(tensors)
    for name in [name for name in tensors if ".attn.q." in name]:
        names = [name.replace(".attn.q.", f".attn.{part}.") for part in "qkv"]
        if all(part in found for part in names):
            found[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat([found.pop(part) for part in names])
    return found


def split(tensors: Mapping[str, Tensor]) -> Tensors:
    """One projection to queries, keys and values as three: attn.qkv -> attn.q, attn.k, attn.v."""
    found: Tensors = {}
    for name, tensor in tensors.items():
        parts = tensor.chunk(3) if ".attn.qkv." in name else [tensor]
        names = [name.replace(".attn.qkv.", f".attn.{part}.") for part in "qkv"] if len(parts) > 1 else [name]
        found |= {part: value.contiguous() for part, value in zip(names, parts, strict=True)}
    return found
