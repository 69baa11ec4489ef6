"""Visible patch encoding: the encoder sees a quarter of the patches, and a light decoder predicts hidden ones.

The task is that of masked patch prediction; what changes is who sees what. No [mask] token enters the encoder (MAE,
arXiv 2111.06377), so its last block need not return to colours, and a step costs a fraction. The decoder is thrown
away. By default each of its queries attends to the encoder's tokens and to no other query, and half of the hidden
patches are predicted (CrossMAE, arXiv 2401.14391); its self-attention form is MAE's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn.parameter import Parameter

from mpp.config.commands import Pretrain
from mpp.config.derived import num_predicted, num_visible
from mpp.config.options import Visible
from mpp.data.augment import normalise
from mpp.data.loader import Batch
from mpp.data.randomness import Numbers, Use
from mpp.methods.corrupt import MaskShape, blocks
from mpp.methods.patch_prediction import PatchPrediction
from mpp.methods.targets import paint_patches
from mpp.models.blocks import Block, Mlp, attend, split_heads
from mpp.models.positions import sincos_2d
from mpp.models.vit import ViT
from mpp.training.flops import flops_an_image

_HEAD = 32  # width of a decoder's attention head


class Hiding(NamedTuple):
    """What is seen and what is predicted in a batch. The counts V and K are the same for every image."""

    visible: Tensor  # (B, V) int64: the patches that the encoder sees, sorted, in 0..N-1
    predicted: Tensor  # (B, K) int64: the hidden patches that are predicted, sorted


def draw_hiding(
    numbers: Numbers, grid: tuple[int, int], keep: float = 0.25, predict: float = 0.5, shape: MaskShape = "uniform"
) -> Hiding:
    """Choose each image's visible and predicted patches from the random numbers of its place in the batch.

    Args:
        numbers: random numbers of B samples; the same numbers give the same choice.
        grid: patches (down, across), N in total.
        keep: exactly round(keep * N) patches of every image are visible.
        predict: exactly round(predict * hidden) of the others are predicted, at least one.
        shape: hide patches one by one ("uniform") or in rectangles ("blocks", as BEiT's).
    """
    num_patches = grid[0] * grid[1]
    seen = num_visible(num_patches, keep)
    wanted = num_predicted(num_patches, keep, predict)
    order = numbers.uniform(Use.PATCHES, num_patches)  # (B, N): the smallest are visible, then come the predicted
    if shape == "blocks":
        rngs = (numbers.generator(Use.PATCHES, i) for i in range(len(numbers.places)))
        hidden = np.stack([blocks(rng, grid, num_patches - seen) for rng in rngs])
        np.put_along_axis(order, hidden, np.take_along_axis(order, hidden, 1) + 1, 1)
    order = np.argpartition(order, (seen - 1, seen + wanted - 1) if seen + wanted < num_patches else seen - 1, axis=1)
    visible, predicted = np.sort(order[:, :seen], axis=1), np.sort(order[:, seen : seen + wanted], axis=1)
    return Hiding(torch.from_numpy(visible), torch.from_numpy(predicted))


@dataclass(frozen=True)
class HidingDraws:
    """Draws what is hidden in a batch from its samples' random numbers; the loader calls it."""

    grid: tuple[int, int]
    keep: float
    predict: float
    shape: MaskShape

    def __call__(self, numbers: Numbers) -> dict[str, Tensor]:
        return draw_hiding(numbers, self.grid, self.keep, self.predict, self.shape)._asdict()


class VisiblePatchModel(nn.Module):
    """ViT + decoder + one linear head: the visible patches of images -> a prediction for hidden patches."""

    def __init__(self, vit: ViT, num_outputs: int, options: Visible) -> None:
        super().__init__()
        self.vit = vit
        self.decoder = Decoder(vit, options)
        self.head = nn.Linear(self.decoder.width, num_outputs)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor, hiding: Hiding) -> Tensor:
        """Normalised images (B, C, H, W) -> predictions (B, K, num_outputs)."""
        tokens = self.vit.encode(self.vit.embed(images, hiding.visible), visible=hiding.visible)  # (B, 1 + V, D)
        return self.head(self.decoder(tokens, hiding))

    def flops_an_image(self, keep: float = 0.25, predict: float = 0.5) -> int:
        """Floating-point operations of training on one image."""
        n = self.vit.num_patches
        counts = num_visible(n, keep), num_predicted(n, keep, predict)
        return flops_an_image(self, Hiding(*(torch.zeros(1, k, dtype=torch.int64, device="meta") for k in counts)))


class Decoder(nn.Module):
    """From the tokens of the visible patches to a vector for each predicted patch.

    A predicted patch is a learnt [mask] vector plus its place; a visible one its projected token plus its place.
    """

    def __init__(self, vit: ViT, options: Visible) -> None:
        super().__init__()
        self.width = options.width or min(512, vit.embed_dim)
        heads = max(1, self.width // _HEAD)
        self.cross = options.decoder == "cross"
        self.into = nn.Linear(vit.embed_dim, self.width)
        self.mask_token = Parameter(torch.empty(self.width))
        self.positions = Parameter(sincos_2d(vit.grid, self.width))  # (N, width), learnt from there
        self.blocks = nn.ModuleList(
            CrossBlock(self.width, heads) if self.cross else Block(self.width, heads, 4.0, 0.0, 0.0, None)
            for _ in range(options.depth)
        )
        self.norm = nn.LayerNorm(self.width, eps=1e-6)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor, hiding: Hiding) -> Tensor:
        """Tokens of [class] and the visible patches (B, 1 + V, D) -> vectors of the predicted (B, K, width)."""
        places = F.pad(F.embedding(hiding.visible, self.positions), (0, 0, 1, 0))  # (B, 1 + V, width): [class] has none
        seen = self.into(tokens) + places
        asked = self.mask_token + F.embedding(hiding.predicted, self.positions)  # (B, K, width)
        if self.cross:
            for block in self.blocks:
                asked = block(asked, seen)
            return self.norm(asked)
        both = torch.cat([seen, asked], dim=1)  # (B, 1 + V + K, width)
        ends = repeat(torch.arange(seen.shape[1], both.shape[1], device=both.device), "k -> b k", b=len(both))
        for block in self.blocks[:-1]:
            both = block(both)
        return self.norm(self.blocks[-1](both, ends))


class CrossBlock(nn.Module):
    """x + cross-attention(LN(x), memory), then x + MLP(LN(x)). Shapes: (B, K, W), (B, T, W) -> (B, K, W)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, 4 * width, 0.0)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        (q,) = split_heads(self.q(self.norm1(x)), 1, self.num_heads)
        k, v = split_heads(self.kv(memory), 2, self.num_heads)
        x = x + self.proj(rearrange(attend(q, k, v), "b h k d -> b k (h d)"))
        return x + self.mlp(self.norm2(x))


class VisiblePatches(PatchPrediction):
    """The economical method: --method visible."""

    heading = "visible"

    @staticmethod
    def build(config: Pretrain, vit: ViT, num_outputs: int) -> tuple[VisiblePatchModel, HidingDraws]:
        v = config.visible
        draw = HidingDraws(vit.grid, v.keep, v.predict, config.corrupt.shape)
        return VisiblePatchModel(vit, num_outputs, v), draw

    @staticmethod
    def flops_of(config: Pretrain, model: Any) -> int:
        return model.flops_an_image(config.visible.keep, config.visible.predict)

    @staticmethod
    def predictions_an_image(config: Pretrain, num_patches: int) -> int:
        return num_predicted(num_patches, config.visible.keep, config.visible.predict)

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(normalise(batch["images"]), Hiding(batch["visible"], batch["predicted"]))

    def predicted(self, batch: Batch) -> Tensor:
        return batch["predicted"]

    def seen(self, batch: Batch) -> Tensor:
        hidden = self.hidden(batch)
        grey = torch.full((*hidden.shape, batch["images"].shape[1], self.patch_size, self.patch_size), 128)
        return paint_patches(batch["images"], hidden, grey.to(batch["images"]))

    def to_picture(self, batch: Batch) -> Batch:
        """All hidden patches are predicted in a picture."""
        return batch | {"predicted": self.hidden(batch)}

    def hidden(self, batch: Batch) -> Tensor:
        """The patches that are not visible (B, N - V), sorted."""
        num_patches = self.grid[0] * self.grid[1]
        seen = torch.zeros(len(batch["visible"]), num_patches, device=batch["visible"].device)
        order = seen.scatter(1, batch["visible"], 1.0).argsort(dim=1, stable=True)
        return order[:, : num_patches - batch["visible"].shape[1]]
