"""The Vision Transformer of "An Image is Worth 16x16 Words" (arXiv 2010.11929), its sizes and its position embeddings.

Parameters have timm's names, so weights can move in either direction. Only `patch_embed` differs: it is a linear layer
here and a convolution (`patch_embed.proj`) in timm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mpp.config.derived import height_width
from mpp.models.backbone import Backbone
from mpp.models.blocks import Block, gather
from mpp.models.initial import initialise
from mpp.models.positions import RelativePositions, interpolate
from mpp.models.sizes import (
    refuse_no_colour,
    refuse_no_counts,
    refuse_no_numbers,
    refuse_no_size,
    refuse_no_switches,
    refuse_unknown,
)
from mpp.models.stems import Stem, blanked, build_stem, feature_map

PosEmbed = Literal["1d", "2d", "relative", "none"]


PosInit = Literal["normal", "sincos"]


_MAX_DEPTH = 1000  # blocks: limits the building time for a configuration from elsewhere


VARIANTS: dict[str, dict[str, int]] = {
    "nano": {"embed_dim": 128, "depth": 6, "num_heads": 4},  # ours: for CPUs and small images
    "Ti": {"embed_dim": 192, "depth": 12, "num_heads": 3},  # DeiT (arXiv 2012.12877), table 1
    "S": {"embed_dim": 384, "depth": 12, "num_heads": 6},  # DeiT, table 1
    "B": {"embed_dim": 768, "depth": 12, "num_heads": 12},  # ViT (arXiv 2010.11929), table 1
    "L": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "H": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
}


_USUAL: dict[str, Any] = {"img_size": 224, "patch_size": 16, "pos_init": "normal"}  # the paper's


_SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 4, "pos_init": "sincos"}  # of nano, as on the command line


class ViT(
    Backbone,
    library_name="masked-patch-pretraining",
    tags=["vision-transformer", "masked-patch-prediction"],
    license="apache-2.0",
):
    """A Vision Transformer encoder: images (B, C, H, W) in -1..1 -> tokens (B, 1 + N, D), [class] first.

    Args:
        variant: a size of `VARIANTS`; `embed_dim`, `depth`, `num_heads` and `mlp_ratio` (4 in the paper) override it.
        img_size: side of a square image, or (height, width), in pixels; a multiple of `patch_size`. Default: 224, of
            nano 32.
        patch_size: side of a patch in pixels. Default: 16, of nano 4.
        in_chans: channels of an image.
        stem: convolutions before the patch projection ("conv", "r26", "r50": hybrids, see models/stems.py), or "none".
        pixel_range: the values of images that become -1 and 1, as --data.range; None: all of 8 or 16 bits. The model
            does not use it: it tells a later training how to read images.
        pos_embed: "1d" (the paper's default: one learnt vector per place), "2d" (a row half and a column half),
            "relative" (every attention adds the query's product with a learnt vector per offset) or "none".
        pos_init: initial values of absolute position embeddings ("1d", "2d"), which are learnt: "normal" (the paper's
            code: noise of standard deviation 0.02) or "sincos" (2-D sines and cosines, with which masked patches find
            their neighbours from the first step; the default of nano).
        dropout: probability, in 0..1, after the position embeddings and every linear layer of a block except qkv.
        drop_path: probability, in 0..1, of skipping the last block's branches for a sample; rises linearly with depth.

    What weights of other libraries may ask for (models/foreign):
        mean, std: of each channel, of pixels in 0..1: the model normalises what it is given (-1..1) by them. None: 0.5.
        class_token: whether there is a [class]. Without, the mean of the patches stands in its place in the output.
        registers: how many learnt tokens take part in the blocks and are dropped at the end (arXiv 2309.16588).
        layer_scale: whether a learnt factor a channel scales each branch (arXiv 2103.17239).
        pre_norm, final_norm: whether there is a norm before the first block, and after the last.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        norm_eps: what norms add to the variance.

    Raises ValueError if sizes do not fit each other or a name is unknown.
    """

    def __init__(
        self,
        variant: str = "B",
        *,
        img_size: int | Sequence[int] | None = None,
        patch_size: int | None = None,
        in_chans: int = 3,
        stem: Stem = "none",
        pos_embed: PosEmbed = "1d",
        pos_init: PosInit | None = None,
        embed_dim: int | None = None,
        depth: int | None = None,
        num_heads: int | None = None,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        pixel_range: Sequence[float] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        class_token: bool = True,
        registers: int = 0,
        layer_scale: bool = False,
        pre_norm: bool = False,
        final_norm: bool = True,
        qkv_bias: bool = True,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        refuse_unknown(variant=(variant, tuple(VARIANTS)), pos_embed=(pos_embed, get_args(PosEmbed)))
        refuse_unknown(stem=(stem, get_args(Stem)))
        usual = _SMALL if variant == "nano" else _USUAL
        img_size = usual["img_size"] if img_size is None else img_size
        patch_size = usual["patch_size"] if patch_size is None else patch_size
        pos_init = usual["pos_init"] if pos_init is None else pos_init
        refuse_unknown(pos_init=(pos_init, get_args(PosInit)))
        refuse_no_counts(patch_size=patch_size, in_chans=in_chans)
        refuse_no_counts(embed_dim=embed_dim, depth=depth, num_heads=num_heads)
        refuse_no_numbers(1, dropout=dropout, drop_path=drop_path)
        refuse_no_numbers(1000, mlp_ratio=mlp_ratio)
        refuse_no_numbers(1, norm_eps=norm_eps)
        refuse_no_counts(registers=registers or None)
        refuse_no_switches(class_token=class_token, layer_scale=layer_scale, qkv_bias=qkv_bias)
        refuse_no_switches(pre_norm=pre_norm, final_norm=final_norm)
        refuse_no_size(img_size)
        for name, values in {"mean": mean, "std": std}.items():
            refuse_no_colour(name, values, in_chans)
        low, high = pixel_range or (0.0, 1.0)
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"pixel_range {pixel_range} must be the lowest value, then a higher one")
        self.pixel_range = (float(low), float(high)) if pixel_range else None
        self.embed_dim = VARIANTS[variant]["embed_dim"] if embed_dim is None else embed_dim
        self.depth = VARIANTS[variant]["depth"] if depth is None else depth
        self.num_heads = VARIANTS[variant]["num_heads"] if num_heads is None else num_heads
        if not 0 < self.depth <= _MAX_DEPTH:
            raise ValueError(f"depth {self.depth} must be from 1 to {_MAX_DEPTH}")
        if self.embed_dim % self.num_heads or (pos_embed == "2d" and self.embed_dim % 2):
            raise ValueError(
                f"embed_dim {self.embed_dim} must divide into {self.num_heads} heads (2d: and into 2 halves)"
            )
        if pos_init == "sincos" and pos_embed in ("1d", "2d") and self.embed_dim % 4:
            raise ValueError(f"pos_init sincos needs an embed_dim that is a multiple of 4, not {self.embed_dim}")
        if pos_embed == "relative" and (registers or not class_token):
            raise ValueError("pos_embed relative is of [class] and patches: it fits neither registers nor no [class]")
        self.pos_init = pos_init
        self.patch_size = patch_size
        self.in_chans = in_chans
        self.pos_embed_kind = pos_embed
        self.img_size = height_width(img_size)
        self.grid = self._grid_of(self.img_size)

        self.stem_kind = stem
        self.stem = build_stem(stem, in_chans, patch_size, self.embed_dim)
        features = in_chans * patch_size**2 if self.stem is None else self.stem.num_features
        self.patch_embed = nn.Linear(features, self.embed_dim)
        self.normalised = mean is not None or std is not None  # by other numbers than 0.5
        mean, std = ([0.5] * in_chans if values is None else values for values in (mean, std))
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)  # (C, 1, 1)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        self.first = int(class_token)  # tokens before the patches
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.embed_dim)) if class_token else None
        self.registers = registers
        self.reg_token = nn.Parameter(torch.zeros(1, registers, self.embed_dim)) if registers else None
        height, width = self.grid
        if pos_embed == "1d":
            self.pos_embed = nn.Parameter(torch.empty(1, self.first + height * width, self.embed_dim))
        elif pos_embed == "2d":
            self.pos_embed_cls = nn.Parameter(torch.empty(1, self.first, self.embed_dim))
            self.pos_embed_rows = nn.Parameter(torch.empty(height, self.embed_dim // 2))
            self.pos_embed_cols = nn.Parameter(torch.empty(width, self.embed_dim // 2))
        self.pos_drop = nn.Dropout(dropout)
        self.norm_pre = nn.LayerNorm(self.embed_dim, eps=norm_eps) if pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(
                self.embed_dim,
                self.num_heads,
                mlp_ratio,
                dropout,
                drop_path=drop_path * i / max(1, self.depth - 1),
                relative_grid=self.grid if pos_embed == "relative" else None,
                layer_scale=layer_scale,
                qkv_bias=qkv_bias,
                norm_eps=norm_eps,
            )
            for i in range(self.depth)
        )
        self.norm = nn.LayerNorm(self.embed_dim, eps=norm_eps) if final_norm else nn.Identity()
        self.activation_checkpointing = False  # whether the backward pass recomputes activations
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images: (B, C, H, W), values in -1..1 -> (B, 1 + N, D) tokens after the last norm."""
        return self.encode(self.embed(images))

    def embed(self, images: Tensor, visible: Tensor | None = None, blank: Tensor | None = None) -> Tensor:
        """Cut images into patches and project them: (B, C, H, W) -> (B, N, D), before positions.

        With `visible` (B, V), only these patches: -> (B, V, D). A hybrid's stem sees no other patch then, and none of
        those that `blank`, bool (B, N), names; without a stem, no embedding depends on another patch.
        """
        images = self.as_normalised(images)
        if self.stem is None:
            p = self.patch_size
            patches = rearrange(images, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)
        else:
            if visible is not None:
                blank = visible.new_ones(len(images), self.num_patches, dtype=torch.bool).scatter(1, visible, False)
            images = images if blank is None else blanked(images, blank, self.grid)
            patches = feature_map(self.stem, images, self.activation_checkpointing)  # (B, N, F)
        return self.patch_embed(patches if visible is None else gather(patches, visible))

    def encode(self, embeddings: Tensor, patches: Tensor | None = None, visible: Tensor | None = None) -> Tensor:
        """Run the encoder on patch embeddings: (B, N, D) -> (B, 1 + N, D) tokens after the last norm.

        With `patches` (B, K), only the tokens of these patches are computed in the last block and returned (B, K, D).
        The numbers are the same. With half the patches, this saves 7 % of the work at depth 6 and 3 % at depth 12.
        With `visible` (B, V), the embeddings (B, V, D) are those of these patches, which alone go through the encoder
        with [class], at their places: -> (B, 1 + V, D). Raises ValueError for that with relative positions, which are
        of all patches.
        """
        if visible is not None and self.pos_embed_kind == "relative":
            raise ValueError("pos_embed relative needs all patches: it cannot encode the visible ones alone")
        tokens = self.enter(self.add_positions(embeddings, visible))
        for block in self.blocks[:-1]:
            if self.activation_checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        if patches is not None:
            return self.norm(self.blocks[-1](tokens, patches + self.first))
        return self.leave(self.norm(self.blocks[-1](tokens)))

    def layers(self, images: Tensor, numbers: Sequence[int]) -> list[Tensor]:
        """Tokens (B, 1 + N, D) after blocks `numbers` (1..depth) and the last norm. Block `depth` equals `forward`."""
        tokens = self.enter(self.add_positions(self.embed(images)))
        found = {}
        for number, block in enumerate(self.blocks, start=1):
            tokens = block(tokens)
            if number in numbers:
                found[number] = self.leave(self.norm(tokens))
        return [found[number] for number in numbers]

    def add_positions(self, embeddings: Tensor, visible: Tensor | None = None) -> Tensor:
        """Put [class] in front, if there is one, and add the position embeddings: (B, N, D) -> (B, 1 + N, D); or those
        of the patches `visible` (B, V), whose embeddings are given: (B, V, D) -> (B, 1 + V, D)."""
        tokens = embeddings
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(embeddings.shape[0], -1, -1), embeddings], dim=1)
        positions = self.positions()
        if positions is not None and visible is not None:
            places = F.pad(visible + self.first, (self.first, 0))  # [class] is token 0
            positions = F.embedding(places, positions[0])
        return self.pos_drop(tokens if positions is None else tokens + positions)

    def enter(self, tokens: Tensor) -> Tensor:
        """What the first block is given: registers at the end, where they move no patch, and the norm before it."""
        if self.reg_token is not None:
            tokens = torch.cat([tokens, self.reg_token.expand(tokens.shape[0], -1, -1)], dim=1)
        return self.norm_pre(tokens)

    def leave(self, tokens: Tensor) -> Tensor:
        """The blocks' tokens without registers, [class] or else the patches' mean in front: -> (B, 1 + N, D)."""
        if self.registers:
            tokens = tokens[:, : -self.registers]
        return tokens if self.first else torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1)

    def positions(self) -> Tensor | None:
        """The absolute position embeddings (1, 1 + N, D), [class] first if it is there; None for relative and none."""
        if self.pos_embed_kind == "1d":
            return self.pos_embed
        if self.pos_embed_kind == "2d":
            height, width = self.grid
            rows = repeat(self.pos_embed_rows, "h d -> 1 (h w) d", w=width)
            cols = repeat(self.pos_embed_cols, "w d -> 1 (h w) d", h=height)
            return torch.cat([self.pos_embed_cls, torch.cat([rows, cols], dim=-1)], dim=1)
        return None

    def resize(self, img_size: int | Sequence[int]) -> ViT:
        """Adapt the model to another image size: interpolate position embeddings in 2-D by place in the image.

        The patch size stays, so the sequence grows or shrinks; [class] keeps its embedding. The current size
        changes nothing. Returns self. (ViT paper, section 3.2; bicubic with antialiasing as timm does.)
        """
        old, size = self.grid, height_width(img_size)
        self.grid, self.img_size = self._grid_of(size), size
        if self.grid == old:
            return self
        with torch.no_grad():
            if self.pos_embed_kind == "1d":
                cls, places = self.pos_embed[:, : self.first], self.pos_embed[0, self.first :]
                places = interpolate(rearrange(places, "(h w) d -> h w d", h=old[0]), self.grid)
                places = torch.cat([cls, rearrange(places, "h w d -> 1 (h w) d")], dim=1)
                self.pos_embed = nn.Parameter(places, self.pos_embed.requires_grad)
            elif self.pos_embed_kind == "2d":
                rows = interpolate(rearrange(self.pos_embed_rows, "h d -> h 1 d"), (self.grid[0], 1))
                cols = interpolate(rearrange(self.pos_embed_cols, "w d -> 1 w d"), (1, self.grid[1]))
                self.pos_embed_rows = nn.Parameter(rearrange(rows, "h 1 d -> h d"))
                self.pos_embed_cols = nn.Parameter(rearrange(cols, "1 w d -> w d"))
            elif self.pos_embed_kind == "relative":
                for module in self.modules():
                    if isinstance(module, RelativePositions):
                        module.resize(self.grid)
        return self

    def hub_config(self) -> dict[str, Any]:
        """The arguments that build this model, for `config.json`."""
        own = {"patch_size": self.patch_size, "pos_init": self.pos_init, "pixel_range": self.pixel_range}
        return self._hub_mixin_config | own | {"img_size": list(self.img_size)}
