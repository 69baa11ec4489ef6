"""The models that train: a ViT with the masked-patch head or with a classifier's; and where a backbone comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter

from mpp.checks import refuse_cut_patches
from mpp.config import DownstreamModel, Model, height_width
from mpp.corrupt import Corruption, corrupt
from mpp.errors import UserError
from mpp.files import sha256_of
from mpp.pretrained import Pretrained
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


def pool_tokens(tokens: Tensor, pool: str) -> Tensor:
    """One vector an image: the mean of its patches' tokens or the [class] token. (B, 1 + N, D) -> (B, D)."""
    return tokens[:, 0] if pool == "cls" else tokens[:, 1:].mean(dim=1)


class Classifier(
    nn.Module,
    Pretrained,
    library_name="masked-patch-pretraining",
    tags=["vision-transformer", "image-classification"],
    license="apache-2.0",
    coders={ViT: (lambda vit: vit.hub_config(), lambda config: config)},
):
    """ViT + pooling + head: normalised images (B, C, H, W) -> scores of the classes (B, classes).

    Args:
        vit: the encoder, or the arguments of a fresh one.
        classes: their names, in the order of the scores.
        pool: "mean" of the patches' tokens or the "cls" token.
        head: "linear", zero-initialised, as the ViT paper fine-tunes; "mlp", with one hidden tanh layer of width D, as
            it pretrains (arXiv 2010.11929, section 3.1; initialisation as vit_jax/models_vit.py).
    """

    def __init__(
        self, vit: ViT | dict[str, Any], classes: Sequence[str], pool: str = "mean", head: str = "linear"
    ) -> None:
        super().__init__()
        self.vit = vit if isinstance(vit, ViT) else ViT(**vit)
        self.classes, self.pool = list(classes), pool
        dim = self.vit.embed_dim
        hidden, last = nn.Linear(dim, dim), nn.Linear(dim, len(self.classes))
        nn.init.xavier_uniform_(hidden.weight)
        for zero in (hidden.bias, last.weight, last.bias):
            nn.init.zeros_(zero)
        self.head = nn.Sequential(hidden, nn.Tanh(), last) if head == "mlp" else nn.Sequential(last)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) -> scores (B, classes)."""
        return self.head(pool_tokens(self.vit(images), self.pool))  # (B, 1 + N, D) -> (B, D) -> (B, classes)


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


def downstream_vit(init: str, model: DownstreamModel) -> ViT:
    """The encoder that --init names, at --model.img-size, with --model.dropout and --model.drop-path.

    Raises UserError if --init has weights and an option asks for another shape than theirs.
    """
    if init == "scratch":
        return build_vit(dataclasses.replace(model, img_size=model.img_size or 32))
    refuse_shape_options(init, model)
    return fitted(load_backbone(init, dropout=model.dropout, drop_path=model.drop_path), model.img_size)


def fitted(vit: ViT, img_size: int | tuple[int, int] | None) -> ViT:
    """An encoder at --model.img-size, if that is given. Raises UserError if it does not divide into its patches."""
    refuse_cut_patches(img_size, vit.patch_size)
    return vit if img_size is None else vit.resize(height_width(img_size))


def refuse_shape_options(init: str, model: DownstreamModel) -> None:
    """Raise UserError if an option asks for another shape than the weights that --init names have."""
    mine = ("img_size", "pool", "dropout", "drop_path")
    for option in (option for option in dataclasses.fields(Model) if option.name not in mine):
        if getattr(model, option.name) != option.default:
            name = option.name.replace("_", "-")
            raise UserError(f"--model.{name} is only for --init scratch: {init} has a shape of its own; leave it out")


def digest_of(init: str) -> str | None:
    """SHA-256 of the weights that --init names, to tell whether they have changed; None of scratch and the hub's."""
    weights = Path(exported(init, "backbone"), "model.safetensors") if init != "scratch" else Path()
    return _digest(weights, weights.stat().st_mtime_ns) if weights.is_file() else None


@cache
def _digest(weights: Path, written: int) -> str:
    return sha256_of(weights)  # once for each time that they were written: a comparison asks again and again


def load_backbone(init: str, **options: Any) -> ViT:
    """A trained encoder from a run's folder, an exported backbone's folder or a hub id.

    `options` (dropout, drop_path) take the place of those it was trained with. Raises UserError if there is none.
    """
    folder = exported(init, "backbone")
    try:
        return ViT.from_pretrained(folder, **options)
    except Exception as error:
        raise UserError(f"--init {init}: no backbone could be loaded from it ({_first_line(error)})") from error


def load_classifier(init: str) -> Classifier:
    """A fine-tuned model from its run's folder, its classifier/ or a hub id. Raises UserError if there is none."""
    folder = exported(init, "classifier")
    try:
        return Classifier.from_pretrained(folder, strict=True)
    except Exception as error:
        raise UserError(f"--init {init}: no fine-tuned model could be loaded from it ({_first_line(error)})") from error


def exported(init: str, kind: str) -> str:
    """The folder of a run's `kind`, or `init` itself if it is one, or a hub id."""
    folder = Path(init)
    if (folder / kind).is_dir():
        return str(folder / kind)
    if folder.is_dir() and not (folder / "config.json").is_file():
        unfinished = (
            " (the run has not finished: go on with it by --resume)" if (folder / "checkpoints").is_dir() else ""
        )
        raise UserError(f"--init {init} has neither {kind}/ nor config.json{unfinished}")
    if not folder.is_dir() and (init.startswith((".", "/", "~")) or init.count("/") > 1):
        raise UserError(f"--init {init} does not exist")
    return init


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
