"""A model as a graph that runs without this package: ONNX, and torch.export. Any batch size; images in -1..1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from mpp.errors import UserError

_ANY_BATCH = {"images": {0: torch.export.Dim("batch")}}


def example(vit: Any) -> torch.Tensor:
    """Images to trace a model with: (2, C, H, W)."""
    return torch.zeros(2, vit.in_chans, *vit.img_size)


def write_onnx(model: nn.Module, vit: Any, folder: Path) -> None:
    """folder/model.onnx."""
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError("--to onnx needs onnxscript: pip install 'masked-patch-pretraining[convert]'") from error
    folder.mkdir(parents=True)
    torch.onnx.export(
        model,
        (example(vit),),
        folder / "model.onnx",
        dynamo=True,
        dynamic_shapes=_ANY_BATCH,
        input_names=["images"],
        output_names=["scores" if model is not vit else "tokens"],
        verbose=False,
    )


def write_torch_export(model: nn.Module, vit: Any, folder: Path) -> None:
    """folder/model.pt2."""
    folder.mkdir(parents=True)
    exported = torch.export.export(model, (example(vit),), dynamic_shapes=_ANY_BATCH)
    torch.export.save(exported, folder / "model.pt2")
