"""Get a backbone: fresh, from a run, from an exported folder, or from the hub."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import hf_hub_download

from mpp.config.bounds import option_name
from mpp.config.checks import refuse_cut_patches
from mpp.config.derived import height_width, is_resnet
from mpp.config.hub import missing, on_hub
from mpp.config.options import SHAPE, Model
from mpp.errors import UserError, first_line
from mpp.files import is_special, sha256_of
from mpp.models.backbone import Backbone
from mpp.models.foreign.naming import WAY_OUT, config_of, whose
from mpp.models.foreign.sources import foreign
from mpp.models.pretrained import Pretrained
from mpp.models.resnet import RESNETS, ResNet
from mpp.models.vit import ViT

Exported = TypeVar("Exported", bound=Pretrained)
AnyBackbone = TypeVar("AnyBackbone", bound=Backbone)


_READ = ("config.json", "model.safetensors")


def build_vit(model: Model, channels: int = 3, pixel_range: tuple[float, float] | None = None) -> Backbone:
    """A fresh encoder from the options of a run, for images of `channels`. Raises UserError if the options
    conflict."""
    try:
        if is_resnet(model):
            return ResNet(
                model.variant,
                img_size=height_width(model.img_size),
                patch_size=model.patch_size,
                in_chans=channels,
                dropout=model.dropout,
                drop_path=model.drop_path,
                pixel_range=pixel_range,
            )
        return ViT(
            model.variant,
            img_size=height_width(model.img_size),
            patch_size=model.patch_size,
            in_chans=channels,
            stem=model.stem,
            embed_dim=model.embed_dim,
            depth=model.depth,
            num_heads=model.num_heads,
            mlp_ratio=model.mlp_ratio,
            pos_embed=model.pos_embed,
            pos_init=model.pos_init,
            dropout=model.dropout,
            drop_path=model.drop_path,
            pixel_range=pixel_range,
        )
    except ValueError as error:
        raise UserError(f"the --model options conflict: {error}") from error


def class_of(arguments: Mapping[str, Any]) -> type[ViT | ResNet]:
    """The class of the backbone that a config.json describes."""
    return ResNet if arguments.get("variant") in list(RESNETS) else ViT


def as_vit(backbone: Backbone, init: str, why: str) -> ViT:
    """A backbone that has to be a ViT. Raises UserError with the reason if it is none."""
    if isinstance(backbone, ViT):
        return backbone
    raise UserError(f"--init {init} is a ResNet, and {why}: name a Vision Transformer")


def downstream_vit(init: str, model: Model, channels: int = 3) -> Backbone:
    """The encoder that --init names, at --model.img-size, with --model.dropout and --model.drop-path. One from scratch
    is for images of `channels`.

    Raises UserError if --init has weights and an option sets a shape.
    """
    if init == "scratch":
        return build_vit(dataclasses.replace(model, img_size=model.img_size or 32), channels)
    refuse_shape_options(init, model)
    return fitted(load_backbone(init, dropout=model.dropout, drop_path=model.drop_path), model.img_size)


def as_built(model: Model, vit: ViT) -> Model:
    """The options of a run with what checks ask of the shape of an encoder that it goes on with."""
    shape = {"patch_size": vit.patch_size, "pos_embed": vit.pos_embed_kind, "stem": vit.stem_kind}
    return dataclasses.replace(model, img_size=vit.img_size, **shape)  # type: ignore[arg-type]


def fitted(vit: AnyBackbone, img_size: int | tuple[int, int] | None) -> AnyBackbone:
    """Resize an encoder to --model.img-size, if given. Raises UserError if its patches do not divide this size."""
    refuse_cut_patches(img_size, vit.patch_size)
    return vit if img_size is None else vit.resize(height_width(img_size))


def refuse_shape_options(init: str, model: Model) -> None:
    """Raise UserError if an option sets a shape: the weights that --init names fix it."""
    for name in SHAPE:
        if getattr(model, name) != getattr(Model, name):
            raise UserError(
                f"{option_name(f'model.{name}')} is only for --init scratch: {init} fixes the shape; leave it out"
            )


def digest_of(init: str) -> str | None:
    """SHA-256 of the weights that --init names, to detect a change. None for scratch and for weights on the hub."""
    if init == "scratch":
        return None
    found = foreign(init)
    weights = (found.weights or Path()) if found else Path(exported(init, "backbone")[0], "model.safetensors")
    return _digest(weights, weights.stat().st_mtime_ns) if weights.is_file() else None


@cache
def _digest(weights: Path, written: int) -> str:
    return sha256_of(weights)  # cached per time of writing: a comparison asks repeatedly


def load_backbone(init: str, **options: Any) -> Backbone:
    """A trained encoder from a run's folder, an exported backbone's folder, a hub id, or weights of another library.

    `options` (dropout, drop_path) override those of its training. Raises UserError if no backbone can be loaded.
    """
    if found := foreign(init):
        return found.load(**options)
    place, revision = exported(init, "backbone")
    if (folder := Path(place)).is_dir():
        return load_exported(class_of(config_of(folder)), init, "backbone", **options)
    try:
        folder = Path(hf_hub_download(place, "config.json", revision=revision)).parent
    except Exception:  # no network, no such model: loading says so
        return load_exported(ViT, init, "backbone", **options)
    return load_exported(class_of(config_of(folder)), init, "backbone", **options)


def load_exported(model: type[Exported], init: str, kind: str, **options: Any) -> Exported:
    """The model that --init names: the folder `kind` of a run, or an export. Raises UserError if it does not load."""
    place, revision = exported(init, kind)
    try:
        return model.from_pretrained(place, revision=revision, **options)
    except Exception as error:
        what = {"classifier": "fine-tuned model"}.get(kind, kind)
        raise UserError(f"--init {init}: no {what} could be loaded from it ({first_line(error)[:500]})") from error


def exported(init: str, kind: str) -> tuple[str, str | None]:
    """The folder `kind` in the run `init`, or `init` itself if it is an export; or a hub id and its revision. Raises
    UserError if it is neither."""
    folder = Path(init).expanduser()
    if there := on_hub(init, "--init"):
        return there.repo, there.revision
    if not folder.exists():
        raise missing("--init", init)
    for path in (folder, *(here / name for here in (folder, folder / kind) for name in _READ)):
        if is_special(path):
            raise UserError(f"--init {init}: {path} is a pipe, a socket or a device, not a file")
    if (folder / kind).is_dir():
        return str(folder / kind), None
    if folder.is_dir() and (folder / "config.json").is_file():
        return str(folder), None
    if owner := whose(folder):
        raise UserError(f"--init {init} is {owner}; {WAY_OUT}")
    if folder.is_dir():
        unfinished = (
            " (the run has not finished; continue it with --resume)" if (folder / "checkpoints").is_dir() else ""
        )
        raise UserError(f"--init {init} has neither {kind}/ nor config.json{unfinished}")
    raise UserError(f"--init {init} is a file; {WAY_OUT}: name the folder")
