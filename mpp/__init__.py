"""Masked patch prediction: self-supervised pretraining of Vision Transformers on images without labels."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from mpp.commands.cards import push_to_hub as push_to_hub
    from mpp.data.images import load_images as load_images
    from mpp.data.sources.memory import from_memory as from_memory
    from mpp.errors import UserError as UserError
    from mpp.methods.classify import Classifier as Classifier
    from mpp.methods.corrupt import Corruption as Corruption
    from mpp.methods.corrupt import draw_corruption as draw_corruption
    from mpp.methods.masked_patches import MaskedPatchModel as MaskedPatchModel
    from mpp.methods.targets import make_target as make_target
    from mpp.models.resnet import ResNet as ResNet
    from mpp.models.vit import VARIANTS as VARIANTS
    from mpp.models.vit import ViT as ViT
    from mpp.run.folder import show as show

_HOMES = {
    "ViT": "models.vit",
    "ResNet": "models.resnet",
    "VARIANTS": "models.vit",
    "MaskedPatchModel": "methods.masked_patches",
    "Classifier": "methods.classify",
    "Corruption": "methods.corrupt",
    "draw_corruption": "methods.corrupt",
    "make_target": "methods.targets",
    "load_images": "data.images",
    "from_memory": "data.sources.memory",
    "push_to_hub": "commands.cards",
    "show": "run.folder",
    "UserError": "errors",
}
_COMMANDS = (
    "supervised",
    "finetune",
    "probe",
    "compare",
    "ablate",
    "scaling",
    "predict",
    "embed",
    "dense",
    "look",
    "convert",
    "doctor",
)
__all__ = [
    "VARIANTS",
    "Classifier",
    "Corruption",
    "MaskedPatchModel",
    "ResNet",
    "UserError",
    "ViT",
    "__version__",
    "ablate",
    "compare",
    "convert",
    "dense",
    "doctor",
    "draw_corruption",
    "embed",
    "finetune",
    "from_memory",
    "load_images",
    "look",
    "make_target",
    "predict",
    "pretrain",
    "probe",
    "push_to_hub",
    "scaling",
    "show",
    "supervised",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:  # on first use, so that `--help` does not wait for torch
    if name in _HOMES:
        return getattr(import_module(f"mpp.{_HOMES[name]}"), name)
    if name == "pretrain":
        return import_module("mpp.pretrain")
    if name == "__version__":
        return import_module("importlib.metadata").version("masked-patch-pretraining")
    if name in _COMMANDS:
        return partial(import_module("mpp.console").call, name)
    raise AttributeError(f"module 'mpp' has no attribute {name!r}")
