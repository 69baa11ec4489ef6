"""The models that train: a ViT with the masked-patch head; and where a backbone comes from."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter

from mpp.config import Model, height_width
from mpp.corrupt import Corruption, corrupt
from mpp.errors import UserError
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
        return self.head(self.vit.encode(embeddings, corruption.indices))  # (B, K, D) -> (B, K, num_outputs)


def build_vit(model: Model) -> ViT:
    """A fresh encoder from the options of a run. Raises UserError if they do not go together."""
    try:
        return ViT(
            model.variant,
            img_size=height_width(model.img_size),
            patch_size=model.patch_size,
            embed_dim=model.embed_dim,
            depth=model.depth,
            num_heads=model.num_heads,
            mlp_ratio=model.mlp_ratio,
            pos_embed=model.pos_embed,
            pos_init=model.pos_init,
            dropout=model.dropout,
            drop_path=model.drop_path,
        )
    except ValueError as error:
        raise UserError(f"the --model options do not go together: {error}") from error


def load_backbone(init: str, img_size: tuple[int, int] | None = None) -> ViT:
    """A trained encoder from a run's folder, an exported backbone's folder or a hub id, fitted to `img_size`.

    Raises UserError if there is none.
    """
    folder = Path(init)
    if (folder / "backbone").is_dir():
        folder = folder / "backbone"
    elif folder.is_dir() and not (folder / "config.json").is_file():
        unfinished = (
            " (the run has not finished: go on with it by --resume)" if (folder / "checkpoints").is_dir() else ""
        )
        raise UserError(f"--init {init} has neither backbone/ nor config.json{unfinished}")
    elif not folder.is_dir() and (init.startswith((".", "/", "~")) or init.count("/") > 1):
        raise UserError(f"--init {init} does not exist")
    try:
        return ViT.from_pretrained(str(folder), img_size=img_size)
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"--init {init}: no backbone could be loaded from it ({reason})") from error
