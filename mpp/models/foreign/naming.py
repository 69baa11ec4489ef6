"""Weights of other libraries: whose they are, told from names alone, without loading or unpickling anything."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mpp.files import is_special

PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth", ".tar")
_OTHERS = {
    ".npz": "NumPy's, as Google's vision_transformer and big_vision write it",
    ".npy": "NumPy's",
    ".msgpack": "Flax's",
    ".h5": "Keras's",
    ".keras": "Keras's",
    ".onnx": "ONNX's",
    ".gguf": "llama.cpp's",
    ".safetensors": "a safetensors file",
}
_LONGEST_CONFIG = 16 << 20  # bytes
_ENOUGH = 1 << 22  # bytes of a file in which the names of its first tensors are looked for
# Whose weights have all of these in their names: the first that fits
_NAMES = {
    "MAE's (timm's names, with a decoder)": ("decoder_embed.weight", "decoder_blocks.", "patch_embed.proj.weight"),
    "SimMIM's": ("encoder.patch_embed.proj.weight",),
    "DINO's (a student and a teacher, with timm's names)": ("patch_embed.proj.weight", "teacher"),
    "OpenCLIP's": ("visual.conv1.weight",),
    "torchvision's": ("conv_proj.weight", "encoder_layer_0."),
    "transformers' MAE": ("embeddings.patch_embeddings.projection", "decoder_embed"),
    "transformers'": ("embeddings.patch_embedding",),
    "timm's (also the names of MAE, DINO, DINOv2 and DeiT)": ("patch_embed.proj.weight", "blocks.0."),
}
WAY_OUT = (
    "backbones are read from runs, from folders of timm and transformers, from .safetensors and .npz; classifiers from "
    "runs alone"
)


def whose(place: Path) -> str | None:
    """Whose format a file or folder of weights is in ("timm's ..."); None if nothing says that it is another's."""
    if place.is_file():
        suffix = place.suffix.lower()
        if suffix in PICKLES:
            owner = _by_names(place)
            of = f" with {owner} weights" if owner else ""
            return (
                f"a pickle ({suffix}){of}: a pickle can run code, so it is never loaded as it is; `mpp convert "
                f"--from-pth {place}` writes its tensors as safetensors"
            )
        return _by_names(place) or _OTHERS.get(suffix)
    config, kind = config_of(place), kind_of(place)
    if kind:
        what = config.get("model_type") or config.get("architecture") or "a model"
        return f"{kind}'{'' if kind == 'transformers' else 's'} ({str(what)[:80]})"
    files = sorted(path for path in place.iterdir() if path.is_file() and path.suffix.lower() in (*PICKLES, *_OTHERS))
    if of_ours := [path for path in files if path.suffix == ".safetensors"]:
        return _by_names(of_ours[0])
    return f"a folder with {files[0].name}, {whose(files[0])}" if files else None


def kind_of(folder: Path) -> str | None:
    """The library whose form a folder's config.json has: transformers, timm or torchvision; None for ours, or none."""
    config = config_of(folder)
    if "model_type" in config or "transformers_version" in config:
        return "transformers"
    if "architecture" in config and ("pretrained_cfg" in config or "num_features" in config):
        return "timm"
    return "torchvision" if {"image_size", "hidden_dim", "num_heads"} <= config.keys() else None  # its arguments


def config_of(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """A folder's config.json; empty if there is none that is read."""
    file = folder / name
    try:
        if is_special(file) or file.stat().st_size > _LONGEST_CONFIG:
            return {}
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _by_names(file: Path) -> str | None:
    """Whose names the tensors in a file have."""
    names = _names_in(file)
    return next((owner for owner, parts in _NAMES.items() if all(part in names for part in parts)), None)


def _names_in(file: Path) -> str:
    """A text that has the names of a file's tensors in it: of a pickle some of its bytes, which are not run."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as tensors:
                return "\n".join(tensors.keys())
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                inside = [name for name in archive.namelist() if name.endswith("data.pkl")]
                with archive.open(inside[0]) as pickled:
                    return pickled.read(_ENOUGH).decode("latin-1")
        with file.open("rb") as plain:
            return plain.read(_ENOUGH).decode("latin-1")
    except (OSError, SafetensorError, zipfile.BadZipFile, IndexError, NotImplementedError, RuntimeError):
        return ""
