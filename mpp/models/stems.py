"""Hybrids: convolutions before the patch projection, whose feature map has one place for every token.

"An alternative to raw image patches" (ViT paper, section 3.1): the transformer's patches are then 1 x 1 on that map.
`r26`, `r50` are timm's ResNetV2s with GroupNorm and weight standardisation, `conv` is a few convolutions of stride 2.
"""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any, Literal

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Stem = Literal["none", "conv", "r26", "r50"]

_UNITS = {"r26": (2, 2, 2, 2), "r50": (3, 4, 6, 3)}  # bottleneck units a stage; each has three convolutions


def units_of(kind: str, patch_size: int) -> tuple[int, ...]:
    """Bottleneck units a stage of a ResNet whose map has a place for every `patch_size` pixels (4, 8, 16 or 32).

    Stages that would make the map smaller are left out, and the last that stays has their units, as the paper's R50 at
    16 pixels: 3, 4, 9 (arXiv 2010.11929, section 4.1). Raises ValueError for other sizes.
    """
    if patch_size not in (4, 8, 16, 32):
        raise ValueError(
            f"stem {kind} makes tokens of 4, 8, 16 or 32 pixels a side, so patch_size cannot be {patch_size}"
        )
    units, stages = _UNITS[kind], patch_size.bit_length() - 2
    return (*units[: stages - 1], sum(units[stages - 1 :]))


def kind_of_units(units: tuple[int, ...]) -> tuple[str, int] | None:
    """The stem and the patch size that have these units a stage; None if there is none."""
    return next(((k, p) for k in _UNITS for p in (32, 16, 8, 4) if units_of(k, p) == units), None)


class ConvStem(nn.Sequential):
    """Convolutions of 3 x 3 and stride 2, each with GroupNorm and ReLU, to D channels: (B, C, H, W) -> (B, D, h, w).

    Their channels double up to D, as in "Early convolutions help transformers see better" (arXiv 2106.14881, table 2,
    there with BatchNorm). Raises ValueError unless `patch_size` is a power of two from 2 on.
    """

    def __init__(self, in_chans: int, patch_size: int, embed_dim: int) -> None:
        count = patch_size.bit_length() - 1
        if patch_size < 2 or patch_size != 1 << count:
            raise ValueError(
                f"stem conv halves the image again and again, so patch_size cannot be {patch_size}: a power of 2"
            )
        widths = [in_chans, *(max(8, embed_dim >> (count - number)) for number in range(1, count + 1))]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers.append(nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False))
            layers += [nn.GroupNorm(math.gcd(32, after), after), nn.ReLU()]
        super().__init__(*layers)
        self.num_features = widths[-1]


def build_stem(kind: str, in_chans: int, patch_size: int, embed_dim: int) -> Any:
    """The convolutions of a hybrid, with `num_features`, the channels of their map; None for "none"."""
    if kind == "none":
        return None
    if kind == "conv":
        return ConvStem(in_chans, patch_size, embed_dim)
    from timm.layers import StdConv2dSame
    from timm.models.resnetv2 import ResNetV2

    return ResNetV2(
        units_of(kind, patch_size),  # type: ignore[arg-type]
        num_classes=0,
        in_chans=in_chans,
        global_pool="",
        preact=False,
        stem_type="same",
        conv_layer=partial(StdConv2dSame, eps=1e-8),
    )


def feature_map(stem: nn.Module, images: Tensor, recompute: bool) -> Tensor:
    """A stem's features, a row for each token: (B, C, H, W) -> (B, N, F). With `recompute`, the backward pass computes
    them again."""
    again = recompute and torch.is_grad_enabled()
    features = checkpoint(stem, images, use_reentrant=False) if again else stem(images)
    return rearrange(features, "b f h w -> b (h w) f")


def blanked(images: Tensor, blank: Tensor, grid: tuple[int, int]) -> Tensor:
    """Images (B, C, H, W) with the patches `blank`, bool (B, N), set to 0, the mean colour.

    A stem's convolutions reach over the borders of a patch, so that the tokens beside a hidden patch would show it.
    """
    y, x = images.shape[-2] // grid[0], images.shape[-1] // grid[1]
    return images.masked_fill(repeat(blank, "b (h w) -> b 1 (h y) (w x)", h=grid[0], y=y, x=x), 0.0)
