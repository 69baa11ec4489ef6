"""Masked patch prediction: self-supervised pretraining of Vision Transformers on images without labels."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpp.corrupt import Corruption as Corruption
    from mpp.corrupt import draw_corruption as draw_corruption
    from mpp.images import load_images as load_images
    from mpp.models import Classifier as Classifier
    from mpp.models import MaskedPatchModel as MaskedPatchModel
    from mpp.targets import make_target as make_target
    from mpp.vit import VARIANTS as VARIANTS
    from mpp.vit import ViT as ViT

_HOMES = {
    "ViT": "vit",
    "VARIANTS": "vit",
    "MaskedPatchModel": "models",
    "Classifier": "models",
    "Corruption": "corrupt",
    "draw_corruption": "corrupt",
    "make_target": "targets",
    "load_images": "images",
}
__all__ = [
    "VARIANTS",
    "Classifier",
    "Corruption",
    "MaskedPatchModel",
    "ViT",
    "draw_corruption",
    "load_images",
    "make_target",
]


def __getattr__(name: str) -> Any:  # on first use, so that `--help` does not wait for torch
    if name in _HOMES:
        return getattr(import_module(f"mpp.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'mpp' has no attribute {name!r}")
