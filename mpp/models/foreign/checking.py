"""What another library computes from a folder that we wrote for it: it opens the folder by itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from mpp.models.backbone import Backbone
from mpp.models.foreign.encoder import colours_of
from mpp.models.foreign.writing import TIMMS_HYBRIDS, Head
from mpp.models.vit import ViT

Outputs = Callable[[Tensor], Tensor]  # normalised images (B, C, H, W) -> scores (B, classes) or tokens


def opened_by_timm(folder: Path, vit: Backbone, head: Head | None) -> Outputs:
    """timm's scores, or its tokens (B, T, D) without registers."""
    import timm

    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    if head:
        return model
    if not isinstance(vit, ViT):
        return lambda images: rearrange(model.forward_features(images), "b d h w -> b (h w) d")
    return lambda images: _without_registers(model.forward_features(images), vit)


def opened_by_transformers(folder: Path, vit: Any, head: Head | None) -> Outputs:
    """transformers' scores, or its tokens without registers."""
    import transformers

    if head:
        classifier: Any = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
        return lambda images: classifier(images).logits
    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    more = {"add_pooling_layer": False} if kind == "ViTModel" else {}
    model: Any = getattr(transformers, kind).from_pretrained(folder, **more).eval()
    return lambda images: _without_registers(model(images).last_hidden_state, vit)


def opened_by_torchvision(folder: Path, vit: Backbone, head: Head | None) -> Outputs:
    """torchvision's scores, or its [class] token (B, D)."""
    from safetensors.torch import load_file
    from torchvision.models import VisionTransformer

    model = VisionTransformer(**json.loads((folder / "config.json").read_text()))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()


def npz_opened_by_timm(folder: Path, vit: Any, head: Head | None) -> Outputs:
    """timm's tokens or scores from the ViT authors' form, which it reads; a hidden layer of the head is left out."""
    import timm
    from timm.models.vision_transformer import VisionTransformer

    block: Any = vit.blocks[0]
    sizes: dict[str, Any] = {"embed_dim": vit.embed_dim, "depth": vit.depth, "num_heads": vit.num_heads}
    sizes |= {"in_chans": vit.in_chans, "mlp_ratio": block.mlp.fc1.out_features / vit.embed_dim}
    classes = len(head.classes) if head and not head.hidden else 0
    model: Any
    if vit.stem is None:
        model = VisionTransformer(vit.img_size, vit.patch_size, num_classes=classes, **sizes)
    else:
        name = TIMMS_HYBRIDS[vit.stem_kind, vit.patch_size]
        model = timm.create_model(name, img_size=vit.img_size, num_classes=classes, **sizes)
    model.load_pretrained(str(folder / "model.npz"))
    return model.eval() if classes else model.eval().forward_features


def opened_by_onnxruntime(folder: Path, vit: Backbone, head: Head | None) -> Outputs:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx")
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def opened_by_torch(folder: Path, vit: Backbone, head: Head | None) -> Outputs:
    return torch.export.load(folder / "model.pt2").module()


OPENERS = {
    "timm": ("timm", opened_by_timm),
    "hf": ("transformers", opened_by_transformers),
    "torchvision": ("torchvision", opened_by_torchvision),
    "npz": ("timm", npz_opened_by_timm),
    "onnx": ("onnxruntime", opened_by_onnxruntime),
    "torch-export": ("torch", opened_by_torch),
}


@torch.no_grad()
def largest_difference(form: str, folder: Path, model: Any, vit: Backbone, head: Head | None, batch: int = 3) -> float:
    """The largest difference between the other library's outputs and ours, on random images that each normalises by
    itself, over the largest output (or 1). Raises ImportError if that library is not installed."""
    outputs = OPENERS[form][1](folder, vit, head)
    pixels = torch.randint(0, 256, (batch, vit.in_chans, *vit.img_size), generator=torch.Generator().manual_seed(0))
    images = pixels / 127.5 - 1
    as_theirs = images
    if form in ("timm", "hf", "torchvision"):
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in colours_of(vit))
        as_theirs = (pixels / 255 - mean) / std
    theirs, ours = outputs(as_theirs), model(images)
    if not head and theirs.ndim == 2:
        ours = ours[:, 0]
    elif theirs.ndim == 3 and ours.ndim == 2:  # of a head with a hidden layer, the encoder alone is compared
        ours = vit(images)
    if theirs.ndim == 3 and theirs.shape[1] < ours.shape[1]:  # without [class]
        ours = ours[:, 1:]
    return ((theirs - ours).abs().max() / max(1.0, ours.abs().max().item())).item()


def _without_registers(tokens: Tensor, vit: ViT) -> Tensor:
    """[class] and patches of tokens in which registers stand between them."""
    return torch.cat([tokens[:, : vit.first], tokens[:, vit.first + vit.registers :]], dim=1)
