"""BiT's ResNets between timm's form and ours: the weights are timm's, under `net.`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from mpp.models.foreign.encoder import HALF, colours_of
from mpp.models.foreign.writing import Head, refuse, save
from mpp.models.pretrained import not_finite
from mpp.models.resnet import RESNETS, ResNet

TIMMS = {f"resnetv2_{name.removeprefix('bit-')}_bit": name for name in RESNETS if name != "bit-nano"}


def read_timm(config: dict[str, Any], weights: Path, **options: Any) -> ResNet:
    """The ResNet in a folder of timm, without its head. Raises ValueError for what ours does not have."""
    name, says = str(config.get("architecture")), config.get("pretrained_cfg") or {}
    if odd := set(config.get("model_args") or {}) - {"in_chans", "img_size"}:
        raise ValueError(f"{name} with {', '.join(sorted(odd))} is none of our ResNets")
    tensors = {f"net.{key}": each.float() for key, each in load_file(weights).items() if not key.startswith("head.")}
    if broken := not_finite(tensors):
        raise ValueError(f"{broken} holds values that are not finite (NaN or infinite)")
    mean, std = (tuple(says.get(key) or HALF[0]) for key in ("mean", "std"))
    own: dict[str, Any] = {} if {*mean, *std} == {0.5} else {"mean": list(mean), "std": list(std)}
    channels, height, width = says.get("input_size") or (3, 224, 224)
    size = tuple(max(32, round(side / 32) * 32) for side in (height, width))
    model = ResNet(TIMMS[name], img_size=size, in_chans=channels, **own, **options)
    model.load_state_dict(tensors)
    return model


def write_timm(model: ResNet, head: Head | None, folder: Path) -> None:
    """A folder for `timm.create_model("local-dir:FOLDER", pretrained=True)`."""
    variant = model.hub_config().get("variant", "bit-50x1")
    architecture = next((name for name, ours in TIMMS.items() if ours == variant), None)
    refuse(
        "timm",
        not architecture and f"timm has no {variant}; onnx and torch-export do",
        model.patch_size != 32 and f"timm's BiT has a stride of 32, not {model.patch_size}; onnx and torch-export do",
        bool(head and head.hidden) and "a ResNet of timm has no hidden layer in its head: name the backbone/",
    )
    mean, std = colours_of(model)
    tensors = {name.removeprefix("net."): tensor for name, tensor in model.state_dict().items()}
    about: dict[str, Any] = {
        "input_size": [model.in_chans, *model.img_size],
        "interpolation": "bilinear",
        "crop_pct": 1.0,
    }
    about |= {"mean": mean, "std": std, "num_classes": len(head.classes) if head else 0}
    about |= {"first_conv": "stem.conv", "classifier": "head.fc"}
    if head:
        tensors |= {"head.fc.weight": head.weight[..., None, None], "head.fc.bias": head.bias}
        about["label_names"] = head.classes
    config = {"architecture": architecture, "num_classes": about["num_classes"], "num_features": model.embed_dim}
    save(folder, tensors, config | {"model_args": {"in_chans": model.in_chans}, "pretrained_cfg": about})
