"""The command `convert`: a run as another library opens it, and the tensors of a pickle as safetensors."""

from __future__ import annotations

import argparse
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from mpp.config.using import Convert
from mpp.errors import UserError, first_line, listed
from mpp.files import write_whole
from mpp.methods.classify import Classifier, load_classifier
from mpp.models.backbone import Backbone
from mpp.models.backbones import load_backbone
from mpp.models.foreign import writing
from mpp.models.foreign.checking import OPENERS, largest_difference
from mpp.models.foreign.naming import config_of
from mpp.models.foreign.resnets import write_timm as write_resnet
from mpp.models.foreign.traced import write_onnx, write_torch_export
from mpp.models.foreign.writing import Head
from mpp.models.vit import ViT
from mpp.run.folder import write_folder

_WRITERS = {
    "timm": writing.write_timm,
    "hf": writing.write_hf,
    "torchvision": writing.write_torchvision,
    "npz": writing.write_npz,
}
_TRACERS = {"onnx": write_onnx, "torch-export": write_torch_export}
_WRONG = 1e-3  # a difference over the largest output that rounding does not make
_INSIDE = ("teacher", "model", "state_dict", "target_encoder", "encoder", "module")  # where others keep their tensors


def run_convert(config: Convert) -> dict[str, Any]:
    """Convert; returns the file or folder, and the largest difference of the outputs (None if it was not measured)."""
    if config.from_pth:
        return {"out": str(from_pickle(Path(config.from_pth).expanduser()))}
    assert config.to
    form, folder = config.to[0], Path(config.to[1]).expanduser()
    if folder.exists():
        raise UserError(f"--to {form} {folder} exists; give another folder, or remove it")
    model = loaded(config.init)
    vit = model.vit if isinstance(model, Classifier) else model
    head = head_of(model) if isinstance(model, Classifier) else None
    folder.parent.mkdir(parents=True, exist_ok=True)
    if form in _TRACERS:
        write_folder(folder, lambda draft: traced(form, model, vit, head, draft))
    else:
        write_folder(folder, lambda draft: writer(vit, form)(vit, head, draft))
    library = OPENERS[form][0]
    try:
        difference = largest_difference(form, folder, model, vit, head)
    except ImportError:
        print(f"{folder} is written and not compared: {library} is not installed (pip install {library}, then repeat)")
        return {"out": str(folder), "difference": None}
    what = f"classifier of {len(head.classes)} classes" if head else "backbone"
    print(
        f"{folder}: a {what}; opened by {library} {importlib.metadata.version(library)}, it gives "
        f"our outputs for 3 random images but for {difference:.1e} of the largest"
    )
    if not difference < _WRONG:
        raise UserError(f"--to {form} {folder}: the outputs differ by {difference:.1e}, so do not use it")
    return {"out": str(folder), "difference": difference}


def writer(model: Backbone, form: str) -> Any:
    """What writes a model in a form. Raises UserError if it does not take ResNets."""
    if isinstance(model, ViT):
        return _WRITERS[form]
    if form != "timm":
        raise UserError(
            f"--to {form} is for Vision Transformers, and this is a ResNet: take timm, onnx or torch-export"
        )
    return write_resnet


def traced(form: str, model: Backbone | Classifier, vit: Backbone, head: Head | None, folder: Path) -> None:
    """Write a model as a graph, and beside it what it takes and which classes it knows."""
    _TRACERS[form](model, vit, folder)
    writing.write_about(vit, head, folder, traced=True)


def loaded(init: str) -> Backbone | Classifier:
    """The classifier of a run that has one, else its backbone, or any other that --init of other commands takes."""
    folder = Path(init).expanduser()
    has_classes = (folder / "classifier").is_dir() or "classes" in config_of(folder)
    return (load_classifier(init) if has_classes else load_backbone(init)).eval()


def head_of(model: Classifier) -> Head:
    """A classifier's last layers; the temperature of its calibration goes into the last one."""
    *hidden, last = (layer for layer in model.head if isinstance(layer, nn.Linear))
    weight, bias = last.weight.detach() / model.temperature, last.bias.detach() / model.temperature
    first = (hidden[0].weight.detach(), hidden[0].bias.detach()) if hidden else None
    return Head(model.classes, model.pool, weight, bias, first)


def from_pickle(file: Path) -> Path:
    """Write the tensors of a pickle (.pth, .pt, .bin) as safetensors beside it. Only tensors and plain values are
    unpickled, so nothing in it is run."""
    out = file.with_suffix(".safetensors")
    if not file.is_file():
        raise UserError(f"--from-pth {file} does not exist")
    if out.exists():
        raise UserError(f"--from-pth {file}: {out} exists; remove it, or use it")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the options that MAE and DINO keep beside
            found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"--from-pth {file}: it holds more than tensors, or is damaged ({first_line(error)[:200]}); if it is "
            f"your own, save model.state_dict() instead of the model"
        ) from error
    tensors = tensors_in(found, file)
    write_whole(out, save({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, {"format": "pt"}))
    print(f"{out}: {len(tensors):,} tensors, {out.stat().st_size / 2**20:,.1f} MiB. Next: --init {out}")
    return out


def tensors_in(found: Any, file: Path) -> dict[str, Tensor]:
    """The tensors by name in what a pickle held, perhaps in a dictionary in it."""
    while isinstance(found, Mapping):
        if tensors := {str(name): value for name, value in found.items() if isinstance(value, Tensor)}:
            return tensors
        inside = [name for name in _INSIDE if isinstance(found.get(name), Mapping)]
        if not inside:
            break
        found = found[inside[0]]
    holds = listed(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
    raise UserError(f"--from-pth {file}: no tensors by name are in it ({holds[:200]})")
