"""ResNets, the convolutional networks that the ViT paper compares with: BiT's, of timm (arXiv 1912.11370)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mpp.config.derived import height_width
from mpp.models.backbone import Backbone
from mpp.models.sizes import refuse_no_colour, refuse_no_counts, refuse_no_numbers, refuse_no_size, refuse_unknown

RESNETS: dict[str, tuple[tuple[int, int, int, int], float]] = {  # bottleneck units a stage, and the factor of widths
    "bit-nano": ((2, 2, 2, 2), 0.25),  # ours: for CPUs and small images
    "bit-50x1": ((3, 4, 6, 3), 1.0),  # BiT (arXiv 1912.11370), as timm's resnetv2_50x1_bit
    "bit-50x3": ((3, 4, 6, 3), 3.0),
    "bit-101x1": ((3, 4, 23, 3), 1.0),
    "bit-101x3": ((3, 4, 23, 3), 3.0),
    "bit-152x2": ((3, 8, 36, 3), 2.0),
    "bit-152x4": ((3, 8, 36, 3), 4.0),
}


class ResNet(
    Backbone,
    library_name="masked-patch-pretraining",
    tags=["resnet"],
    license="apache-2.0",
):
    """BiT's ResNetV2, pre-activation with GroupNorm and weight standardisation: (B, C, H, W) in -1..1 -> (B, 1 + N, D).

    The tokens are the places of the last feature map, after the last norm and ReLU; their mean, which BiT pools by,
    stands in front of them.

    Args:
        variant: a size of `RESNETS`.
        img_size: side of a square image, or (height, width), in pixels; a multiple of `patch_size`.
        patch_size: pixels between two places of the last map: 32 as BiT has it; for small images 16 (no pooling after
            the first convolution) or 8 (nor a stride of it), as is usual on CIFAR.
        in_chans, pixel_range, mean, std: as of `ViT`.
        dropout: probability, in 0..1, of dropping a feature of the output.
        drop_path: probability, in 0..1, of skipping the last block for a sample; rises linearly with depth.

    Raises ValueError if sizes do not fit each other or a name is unknown.
    """

    first, registers, pos_embed_kind, stem_kind = 0, 0, "none", "none"

    def __init__(
        self,
        variant: str = "bit-50x1",
        *,
        img_size: int | Sequence[int] = 224,
        patch_size: int = 32,
        in_chans: int = 3,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        pixel_range: Sequence[float] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        refuse_unknown(variant=(variant, tuple(RESNETS)))
        refuse_no_counts(patch_size=patch_size, in_chans=in_chans)
        refuse_no_numbers(1, dropout=dropout, drop_path=drop_path)
        refuse_no_size(img_size)
        for name, values in {"mean": mean, "std": std}.items():
            refuse_no_colour(name, values, in_chans)
        if patch_size not in (8, 16, 32):
            raise ValueError(f"a ResNet has a place for every 8, 16 or 32 pixels, not for patch_size {patch_size}")
        from timm.layers import GroupNormAct, StdConv2d
        from timm.models.resnetv2 import ResNetV2

        units, width = RESNETS[variant]
        build: Any = ResNetV2
        net = build(
            units,
            num_classes=0,
            in_chans=in_chans,
            global_pool="",
            width_factor=width,
            stem_type="fixed",
            norm_layer=partial(GroupNormAct, num_groups=32 if width >= 1 else 8),
            conv_layer=partial(StdConv2d, eps=1e-8),
            drop_path_rate=drop_path,
        )
        if patch_size < 32:
            net.stem.pad, net.stem.pool = nn.Identity(), nn.Identity()
        if patch_size < 16:
            net.stem.conv.stride = (1, 1)
        self.net: Any = net
        self.pixel_range = cast(tuple[float, float], tuple(map(float, pixel_range))) if pixel_range else None
        self.patch_size, self.in_chans, self.embed_dim = patch_size, in_chans, self.net.num_features
        self.depth, self.num_heads = len(units), max(1, self.embed_dim // 64)
        self.drop = nn.Dropout(dropout)
        self.img_size = height_width(img_size)
        self.grid = self._grid_of(self.img_size)
        self.normalised = mean is not None or std is not None
        mean, std = ([0.5] * in_chans if values is None else values for values in (mean, std))
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)  # (C, 1, 1)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    @property
    def activation_checkpointing(self) -> bool:
        """Whether the backward pass recomputes the activations of every stage's blocks."""
        return self.net.stages[0].grad_checkpointing

    @activation_checkpointing.setter
    def activation_checkpointing(self, on: bool) -> None:
        self.net.set_grad_checkpointing(on)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images: (B, C, H, W), values in -1..1 -> (B, 1 + N, D)."""
        return self.drop(_tokens(self.net.forward_features(self.as_normalised(images))))

    def layers(self, images: Tensor, numbers: Sequence[int]) -> list[Tensor]:
        """Tokens (B, 1 + N, D) after stages `numbers` (1..4). Maps of earlier stages are averaged to the places of the
        last, and zeros fill their features up to D, which no probe of frozen features sees."""
        features = self.net.stem(self.as_normalised(images))
        found = {}
        for number, stage in enumerate(self.net.stages, start=1):
            features = stage(features)
            if number in numbers:
                last = self.net.norm(features) if number == self.depth else features
                places = F.adaptive_avg_pool2d(last, self.grid)
                found[number] = _tokens(F.pad(places, (0, 0, 0, 0, 0, self.embed_dim - places.shape[1])))
        return [found[number] for number in numbers]

    def resize(self, img_size: int | Sequence[int]) -> ResNet:
        """Take images of another size: convolutions have nothing to adapt. Returns self."""
        size = height_width(img_size)
        self.grid, self.img_size = self._grid_of(size), size
        return self

    def hub_config(self) -> dict[str, Any]:
        return self._hub_mixin_config | {"img_size": list(self.img_size), "pixel_range": self.pixel_range}


def _tokens(features: Tensor) -> Tensor:
    """A feature map (B, D, h, w) as tokens, their mean in front: (B, 1 + N, D)."""
    places = rearrange(features, "b d h w -> b (h w) d")
    return torch.cat([places.mean(1, keepdim=True), places], dim=1)
