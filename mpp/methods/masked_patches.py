"""Masked patch prediction (ViT paper, appendix B.1.2): the encoder sees the corrupted patches among the others and
predicts their content from their own tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter

from mpp.config.commands import Pretrain
from mpp.data.augment import normalise
from mpp.data.loader import Batch
from mpp.methods.corrupt import Corruption, CorruptionDraws, corrupt, num_corrupted
from mpp.methods.patch_prediction import PatchPrediction
from mpp.methods.targets import paint_corrupted
from mpp.models.blocks import Block
from mpp.models.vit import ViT
from mpp.training.flops import flops_an_image


class MaskedPatchModel(nn.Module):
    """ViT + [mask] embedding + one linear head: corrupted images -> a prediction for every corrupted patch.

    The head runs on the corrupted patches' own tokens and on no other; [class] takes part and is not predicted from.
    With `decoder_depth` (not in the paper), that many blocks between encoder and head are thrown away with the head.
    """

    def __init__(self, vit: ViT, num_outputs: int, decoder_depth: int = 0) -> None:
        super().__init__()
        self.vit = vit
        self.decoder = nn.ModuleList(
            Block(vit.embed_dim, vit.num_heads, 4.0, 0.0, 0.0, None) for _ in range(decoder_depth)
        )
        self.norm = nn.LayerNorm(vit.embed_dim, eps=1e-6) if decoder_depth else nn.Identity()
        self.mask_token = Parameter(torch.empty(vit.embed_dim))
        self.head = nn.Linear(vit.embed_dim, num_outputs)
        nn.init.normal_(self.mask_token, std=0.02)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor, corruption: Corruption) -> Tensor:
        """Normalised images (B, C, H, W) and their corruption (B, K) -> predictions (B, K, num_outputs)."""
        blank = None
        if self.vit.stem is not None:  # it must not show its neighbours what is replaced
            nowhere = torch.zeros(len(images), self.vit.num_patches, dtype=torch.bool, device=images.device)
            blank = nowhere.scatter(1, corruption.indices, corruption.sources != corruption.indices)
        embeddings = corrupt(self.vit.embed(images, blank=blank), self.mask_token, corruption)  # (B, N, D)
        if not self.decoder:
            return self.head(self.vit.encode(embeddings, corruption.indices))  # (B, K, D) -> (B, K, num_outputs)
        tokens = self.vit.encode(embeddings)  # (B, T + N, D), T of them no patches
        for block in self.decoder[:-1]:
            tokens = block(tokens)
        places = corruption.indices + tokens.shape[1] - self.vit.num_patches
        return self.head(self.norm(self.decoder[-1](tokens, places)))

    def flops_an_image(self, ratio: float = 0.5) -> int:
        """Floating-point operations of training on one image with a share `ratio` of its patches corrupted."""
        places = torch.zeros(1, num_corrupted(self.vit.num_patches, ratio), dtype=torch.int64, device="meta")
        return flops_an_image(self, Corruption(places, places))


class MaskedPatches(PatchPrediction):
    """The faithful method: --method mpp."""

    @staticmethod
    def build(config: Pretrain, vit: ViT, num_outputs: int) -> tuple[MaskedPatchModel, CorruptionDraws]:
        c = config.corrupt
        draw = CorruptionDraws(vit.grid, c.ratio, (c.mask, c.other, c.keep), c.shape)
        return MaskedPatchModel(vit, num_outputs, c.decoder_depth), draw

    @staticmethod
    def flops_of(config: Pretrain, model: Any) -> int:
        return model.flops_an_image(config.corrupt.ratio)

    @staticmethod
    def predictions_an_image(config: Pretrain, num_patches: int) -> int:
        return num_corrupted(num_patches, config.corrupt.ratio)

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(normalise(batch["images"]), Corruption(batch["indices"], batch["sources"]))

    def predicted(self, batch: Batch) -> Tensor:
        return batch["indices"]

    def hidden(self, batch: Batch) -> Tensor:
        return batch["indices"]

    def seen(self, batch: Batch) -> Tensor:
        return paint_corrupted(batch["images"], batch["indices"], batch["sources"], self.patch_size)
