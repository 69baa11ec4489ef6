"""Our ViT, alone or with a classifier's head, in the forms that other libraries open. What a form lacks is refused."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor

from mpp.errors import UserError
from mpp.files import as_json, ordinary_modes, write_whole
from mpp.models.backbone import Backbone
from mpp.models.foreign.encoder import colours_of
from mpp.models.foreign.names import Tensors, in_names_of
from mpp.models.foreign.npz import to_jax
from mpp.models.vit import ViT


@dataclass
class Head:
    """A classifier's last layers: pool the tokens, perhaps a hidden tanh layer, then a score for each class."""

    classes: list[str]
    pool: str  # "mean" of the patches or "cls"
    weight: Tensor  # (classes, D)
    bias: Tensor  # (classes,)
    hidden: tuple[Tensor, Tensor] | None = None  # weight (D, D), bias (D,)


def refuse(form: str, *reasons: str | bool) -> None:
    """Raise UserError with the first of the reasons, if there is one."""
    if found := [reason for reason in reasons if isinstance(reason, str)]:
        raise UserError(f"--to {form}: {found[0]}")


def timms_tensors(vit: ViT) -> Tensors:
    """The encoder's tensors in timm's names, with position embeddings for [class] and patches: (1, first + N, D)."""
    tensors = {name: tensor.detach().cpu().float() for name, tensor in vit.state_dict().items()}
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("pos_embed")}
    tensors = {re.sub(r"^stem\.", "patch_embed.backbone.", name): tensor for name, tensor in tensors.items()}
    patch = tensors.pop("patch_embed.weight")
    p = vit.patch_size if vit.stem is None else 1
    tensors["patch_embed.proj.weight"] = rearrange(patch, "d (c p q) -> d c p q", p=p, q=p).contiguous()
    tensors["patch_embed.proj.bias"] = tensors.pop("patch_embed.bias")
    positions = vit.positions()
    if positions is None:
        positions = torch.zeros(1, vit.first + vit.num_patches, vit.embed_dim)
    tensors["pos_embed"] = positions.detach().cpu().float().clone()
    return tensors


def not_absolute(vit: ViT) -> str | bool:
    """Why no form but onnx and torch-export has relative positions."""
    return vit.pos_embed_kind == "relative" and (
        "no other library has our relative position embeddings (--model.pos-embed relative); onnx and torch-export do"
    )


TIMMS_HYBRIDS = {
    ("r26", 32): "vit_small_r26_s32_224",
    ("r50", 16): "vit_base_r50_s16_224",
    ("r50", 32): "vit_large_r50_s32_224",
}


def hybrid(vit: ViT) -> str | bool:
    """Why forms for plain ViTs do not take this one."""
    return vit.stem is not None and (
        f"it has no place for the stem {vit.stem_kind} of this hybrid; timm and npz have r26 at patches of 32 pixels "
        f"and r50 at 16 and 32, and onnx and torch-export have all"
    )


def write_timm(vit: ViT, head: Head | None, folder: Path) -> None:
    """A folder for `timm.create_model("local-dir:FOLDER", pretrained=True)`."""
    architecture = TIMMS_HYBRIDS.get((vit.stem_kind, vit.patch_size))
    refuse("timm", not_absolute(vit), not architecture and hybrid(vit), bool(head and head.hidden) and _HIDDEN)
    tensors = timms_tensors(vit)
    pre_norm = isinstance(vit.norm_pre, torch.nn.LayerNorm)
    if pre_norm:  # timm's patch projection then has no bias: a sum with the positions is the same
        tensors["pos_embed"][:, vit.first :] += tensors.pop("patch_embed.proj.bias")
    if vit.registers:  # which have positions in timm, if [class] has
        first, places = tensors["pos_embed"][:, : vit.first], tensors["pos_embed"][:, vit.first :]
        tensors["pos_embed"] = torch.cat([first, torch.zeros(1, vit.registers, vit.embed_dim), places], dim=1)
    pool = "token" if vit.first and not (head and head.pool == "mean") else "avg"
    first_block: Any = vit.blocks[0]
    arguments = {
        "img_size": list(vit.img_size),
        **({} if architecture else {"patch_size": vit.patch_size}),
        "in_chans": vit.in_chans,
        "embed_dim": vit.embed_dim,
        "depth": vit.depth,
        "num_heads": vit.num_heads,
        "mlp_ratio": first_block.mlp.fc1.out_features / vit.embed_dim,
        "qkv_bias": first_block.attn.qkv.bias is not None,
        "init_values": 1e-5 if hasattr(first_block.ls1, "gamma") else None,
        "class_token": bool(vit.first),
        "reg_tokens": vit.registers,
        "pre_norm": pre_norm,
        "final_norm": isinstance(vit.norm, torch.nn.LayerNorm),
        "fc_norm": False,
        "global_pool": pool,
    }
    mean, std = colours_of(vit)
    about: dict[str, Any] = {
        "input_size": [vit.in_chans, *vit.img_size],
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "mean": mean,
        "std": std,
        "num_classes": len(head.classes) if head else 0,
        "first_conv": "patch_embed.backbone.stem.conv" if architecture else "patch_embed.proj",
        "classifier": "head",
    }
    if head:
        tensors |= {"head.weight": head.weight, "head.bias": head.bias}
        about["label_names"] = head.classes
    config = {
        "architecture": architecture or "vit_base_patch16_224",  # whose sizes the arguments replace
        "num_classes": about["num_classes"],
        "num_features": vit.embed_dim,
        "global_pool": pool,
        "model_args": arguments,
        "pretrained_cfg": about,
    }
    save(folder, tensors, config)


_HIDDEN = (
    "there is no place for the hidden layer of a head that `mpp supervised` trained: name its backbone/, or "
    "fine-tune it first"
)


def write_hf(vit: ViT, head: Head | None, folder: Path) -> None:
    """A folder for `from_pretrained` of transformers: its ViT, or its DINOv2 where that has what is needed.

    transformers' ViT classifies by [class] alone; its DINOv2 by [class] and the mean of the patches, which a mean of
    our patches fits with zeros for [class]. With factors of 1 (LayerScale), its encoder is the same.
    """
    block: Any = vit.blocks[0]
    layer_scale, hidden = hasattr(block.ls1, "gamma"), block.mlp.fc1.out_features
    plain = not (layer_scale or vit.registers or (head and head.pool == "mean"))
    refuse(
        "hf",
        not_absolute(vit),
        hybrid(vit),
        bool(head and head.hidden) and _HIDDEN,
        not vit.first and "transformers' ViT and DINOv2 have a [class] token, which this backbone does not",
        not isinstance(vit.norm_pre, torch.nn.Identity) and "transformers' ViT has no norm before the first block",
        isinstance(vit.norm, torch.nn.Identity) and "transformers' ViT has a norm after the last block",
        not plain
        and hidden % vit.embed_dim != 0
        and f"the MLP of transformers' DINOv2 is a multiple of its tokens' width, not {hidden} for {vit.embed_dim}",
    )
    kind = "vit" if plain else "dinov2_with_registers" if vit.registers else "dinov2"
    tensors = timms_tensors(vit)
    if not plain:
        for number in range(vit.depth):
            for part in ("ls1", "ls2"):
                tensors.setdefault(f"blocks.{number}.{part}.gamma", torch.ones(vit.embed_dim))
    tensors = in_names_of("vit" if plain else "dinov2", tensors)
    if not plain:
        tensors["embeddings.mask_token"] = torch.zeros(1, vit.embed_dim)
    model = {"vit": "ViT", "dinov2": "Dinov2", "dinov2_with_registers": "Dinov2WithRegisters"}[kind]
    height, width = vit.img_size
    config: dict[str, Any] = {
        "architectures": [f"{model}ForImageClassification" if head else f"{model}Model"],
        "model_type": kind,
        "hidden_size": vit.embed_dim,
        "num_hidden_layers": vit.depth,
        "num_attention_heads": vit.num_heads,
        **({"intermediate_size": hidden} if plain else {"mlp_ratio": hidden // vit.embed_dim}),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": vit.norm.eps,
        "image_size": height if height == width else [height, width],
        "patch_size": vit.patch_size,
        "num_channels": vit.in_chans,
        "qkv_bias": block.attn.qkv.bias is not None,
    }
    if vit.registers:
        config["num_register_tokens"] = vit.registers
    if head:
        tensors = {f"{kind}.{name}": tensor for name, tensor in tensors.items()}
        halves = [head.weight] if plain else [torch.zeros_like(head.weight), head.weight]
        tensors["classifier.weight"] = torch.cat(halves if head.pool == "mean" else halves[::-1], dim=1)
        tensors["classifier.bias"] = head.bias
        config["id2label"] = {str(number): name for number, name in enumerate(head.classes)}
        config["label2id"] = {name: number for number, name in enumerate(head.classes)}
    save(folder, tensors, config)
    mean, std = colours_of(vit)
    view: dict[str, Any] = {
        "do_resize": True,
        "resample": 3,  # bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }
    if height == width:  # the largest centred square, as our evaluations cut it
        view |= {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": height}}
        view |= {"do_center_crop": True, "crop_size": {"height": height, "width": width}, "do_convert_rgb": True}
    else:
        view |= {"image_processor_type": "ViTImageProcessor", "size": {"height": height, "width": width}}
    write_whole(folder / "preprocessor_config.json", as_json(view, indent=1).encode())


def _plain(vit: ViT, head: Head | None, library: str) -> list[str | bool]:
    """Why a plain ViT with a [class] token, as torchvision and the ViT authors have it, is not enough."""
    block: Any = vit.blocks[0]
    has = {
        "no [class] token": not vit.first,
        "registers": bool(vit.registers),
        "LayerScale": hasattr(block.ls1, "gamma"),
        "a norm before the first block": isinstance(vit.norm_pre, torch.nn.LayerNorm),
        "no norm after the last block": not isinstance(vit.norm, torch.nn.LayerNorm),
        "no bias of queries, keys and values": block.attn.qkv.bias is None,
        "a head on the mean of the patches (--model.pool mean)": bool(head and head.pool == "mean"),
    }
    wrong = [what for what, there in has.items() if there]
    ways = "timm and hf have it" if wrong != ["a norm before the first block"] else "timm has it"
    return [not_absolute(vit), bool(wrong) and f"{library} has no place for {' and '.join(wrong)}; {ways}"]


def write_torchvision(vit: ViT, head: Head | None, folder: Path) -> None:
    """A state dict for `torchvision.models.VisionTransformer`, and its arguments. Without a classifier's head, one that
    changes nothing makes [class] the output."""
    block: Any = vit.blocks[0]
    square = vit.img_size[0] == vit.img_size[1]
    refuse(
        "torchvision",
        hybrid(vit),
        *_plain(vit, head, "torchvision's ViT"),
        not square and f"torchvision's ViT takes squares, not images of {vit.img_size[0]}x{vit.img_size[1]}",
        vit.in_chans != 3 and f"torchvision's ViT takes 3 channels, not {vit.in_chans}",
    )
    tensors = in_names_of("torchvision", timms_tensors(vit))
    weight, bias = (head.weight, head.bias) if head else (torch.eye(vit.embed_dim), torch.zeros(vit.embed_dim))
    tensors |= {"heads.head.weight": weight, "heads.head.bias": bias}
    arguments = {
        "image_size": vit.img_size[0],
        "patch_size": vit.patch_size,
        "num_layers": vit.depth,
        "num_heads": vit.num_heads,
        "hidden_dim": vit.embed_dim,
        "mlp_dim": block.mlp.fc1.out_features,
        "num_classes": len(bias),
    }
    if head and head.hidden:
        arguments["representation_size"] = vit.embed_dim
        tensors |= {"heads.pre_logits.weight": head.hidden[0], "heads.pre_logits.bias": head.hidden[1]}
    save(folder, tensors, arguments)
    write_about(vit, head, folder)


def write_npz(vit: ViT, head: Head | None, folder: Path) -> None:
    """The ViT authors' form: pixels are normalised by 0.5 there, so other numbers go into the patch projection."""
    refuse(
        "npz",
        (vit.stem_kind, vit.patch_size) not in TIMMS_HYBRIDS and hybrid(vit),
        vit.stem is not None and vit.normalised and "its hybrids take pixels normalised by 0.5; timm has others",
        *_plain(vit, head, "the ViT authors' form"),
    )
    tensors = timms_tensors(vit)
    if vit.stem is None:
        weight = tensors["patch_embed.proj.weight"].double()
        mean, std = vit.mean.double().cpu(), vit.std.double().cpu()  # (C, 1, 1)
        tensors["patch_embed.proj.bias"] = (
            tensors["patch_embed.proj.bias"] + (weight * ((0.5 - mean) / std)).sum((1, 2, 3))
        ).float()
        tensors["patch_embed.proj.weight"] = (weight * (0.5 / std)).float()
    if head:
        tensors |= {"head.weight": head.weight, "head.bias": head.bias}
        if head.hidden:
            tensors |= {"pre_logits.weight": head.hidden[0], "pre_logits.bias": head.hidden[1]}
    folder.mkdir(parents=True)
    np.savez(folder / "model.npz", **to_jax(tensors, vit.num_heads))  # type: ignore[arg-type]
    write_about(vit, head, folder)


def save(folder: Path, tensors: Tensors, config: dict[str, Any]) -> None:
    """Write the weights and config.json of a folder that another library opens."""
    folder.mkdir(parents=True)
    plain = {name: tensor.detach().cpu().float().contiguous() for name, tensor in tensors.items()}
    save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})
    ordinary_modes(folder)
    write_whole(folder / "config.json", as_json(config, indent=1).encode())


def write_about(vit: Backbone, head: Head | None, folder: Path, traced: bool = False) -> None:
    """What the form itself cannot say: how images are normalised (a traced model does it itself), and the classes."""
    mean, std = ([0.5] * vit.in_chans, [0.5] * vit.in_chans) if traced else colours_of(vit)
    says: dict[str, Any] = {"img_size": vit.img_size, "channels": vit.in_chans, "mean": mean, "std": std}
    if vit.pixel_range:
        says["pixel_range"] = [value for value in vit.pixel_range if math.isfinite(value)]
    write_whole(folder / "about.json", as_json(says | ({"classes": head.classes} if head else {}), indent=1).encode())
