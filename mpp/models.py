"""The models that train: a ViT with the masked-patch head."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter

from mpp.corrupt import Corruption, corrupt, gather
from mpp.vit import ViT


class MaskedPatchModel(nn.Module):
    """ViT + [mask] embedding + one linear head: corrupted images -> a prediction for every corrupted patch.

    The head runs on the corrupted patches' own tokens and on no other; [class] takes part and is not predicted from.
    """

    def __init__(self, vit: ViT, num_outputs: int) -> None:
        super().__init__()
        self.vit = vit
        self.mask_token = Parameter(torch.empty(vit.embed_dim))
        self.head = nn.Linear(vit.embed_dim, num_outputs)
        nn.init.normal_(self.mask_token, std=0.02)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor, corruption: Corruption) -> Tensor:
        """Normalised images (B, C, H, W) and their corruption (B, K) -> predictions (B, K, num_outputs)."""
        embeddings = corrupt(self.vit.embed(images), self.mask_token, corruption)  # (B, N, D)
        tokens = self.vit.encode(embeddings)[:, 1:]  # (B, N, D), without [class]
        return self.head(gather(tokens, corruption.indices))
