"""Fresh weights of a Vision Transformer."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from mpp.models.positions import sincos, sincos_2d


@torch.no_grad()
def initialise(vit: Any) -> None:
    """Draw fresh weights as the authors' JAX code does (github.com/google-research/vision_transformer,
    vit_jax/models_vit.py; timm's `weight_init="jax"` is the same except for qkv, see below)."""
    for name, module in vit.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        if name == "patch_embed":  # flax's nn.Conv: LeCun normal, truncated at 2 sigma
            std = math.sqrt(1 / module.in_features) / 0.87962566103423978
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        elif name.endswith("qkv"):  # the bound of three separate (D, D) matrices
            bound = math.sqrt(6 / (2 * module.in_features))
            nn.init.uniform_(module.weight, -bound, bound)
        else:
            nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.normal_(module.bias, std=1e-6) if ".mlp." in name else nn.init.zeros_(module.bias)
    if vit.cls_token is not None:
        nn.init.zeros_(vit.cls_token)
    for name, parameter in vit.named_parameters():
        if "pos_embed" in name or "relative" in name or "reg_token" in name:
            nn.init.normal_(parameter, std=0.02)
    if vit.pos_init == "sincos":
        _start_positions_as_sincos(vit)


def _start_positions_as_sincos(vit: Any) -> None:
    """Set one half of each embedding to sines and cosines of the row, the other half to those of the column, with
    geometrically spaced wavelengths, as the fixed embeddings of MoCo v3 and MAE (arXiv 2104.02057, 2111.06377)."""
    if vit.pos_embed_kind == "1d":
        vit.pos_embed[0, vit.first :] = sincos_2d(vit.grid, vit.embed_dim)
    elif vit.pos_embed_kind == "2d":
        vit.pos_embed_rows.copy_(sincos(vit.grid[0], vit.embed_dim // 2))
        vit.pos_embed_cols.copy_(sincos(vit.grid[1], vit.embed_dim // 2))
