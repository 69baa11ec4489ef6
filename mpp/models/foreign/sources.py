"""Weights of other libraries: where --init finds them, and what is known of them. No code of theirs is run."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file

from mpp.config.hub import missing, on_hub
from mpp.errors import UserError, first_line, is_first_process, warn
from mpp.files import is_special
from mpp.models.backbone import Backbone
from mpp.models.foreign.encoder import HALF, HEADS, IMAGENET, Facts, encoder
from mpp.models.foreign.names import Tensors, in_timms_names
from mpp.models.foreign.naming import config_of, kind_of
from mpp.models.foreign.npz import read_npz
from mpp.models.foreign.resnets import TIMMS, read_timm

WEIGHTS = "model.safetensors"
_OF_TRANSFORMERS = {  # model types of our shape, and the usual normalisation of each
    "vit": HALF,
    "vit_mae": IMAGENET,
    "vit_msn": IMAGENET,
    "ijepa": IMAGENET,
    "dinov2": IMAGENET,
    "dinov2_with_registers": IMAGENET,
}


@dataclass(frozen=True)
class Foreign:
    """What --init names of another library: a folder with a config.json, a file, or a model of torchvision."""

    init: str
    place: Path | None = None
    torchvision: str = ""

    @property
    def weights(self) -> Path | None:
        """The file of the weights."""
        return self.place / WEIGHTS if self.place and self.place.is_dir() else self.place

    def load(self, **options: Any) -> Backbone:
        """Our ViT (or ResNet) with these weights. Raises UserError, which says why, if it cannot have them."""
        try:
            config = config_of(self.place) if self.place and self.place.is_dir() else {}
            if config.get("architecture") in TIMMS and self.weights and self.weights.is_file():
                return read_timm(config, self.weights, **options)
            tensors, facts = _read(self)
            vit = encoder(tensors, facts, **options)
        except UserError:
            raise
        except Exception as error:  # of files that others wrote: in as many forms as there are readers
            raise UserError(f"--init {self.init}: {first_line(error)[:500]}") from error
        if facts.told and is_first_process():
            _say(f"--init {self.init}: {facts.told}")
        return vit


@cache
def _say(line: str) -> None:
    warn(line)


def foreign(init: str) -> Foreign | None:
    """What of another library --init names; None if it is of ours, or nothing. Raises UserError for a pipe."""
    if init.startswith("torchvision:"):
        return Foreign(init, torchvision=init.removeprefix("torchvision:"))
    if there := on_hub(init, "--init"):
        folder = _fetched(there.repo, there.revision)
        return Foreign(init, folder) if folder and kind_of(folder) else None
    name = init.removeprefix("hf:").removeprefix("timm:")
    place = Path(name).expanduser()
    for path in (place, place / "config.json", place / WEIGHTS):
        if is_special(path):
            raise UserError(f"--init {init}: {path} is a pipe, a socket or a device, not a file")
    if place.suffix == ".npz" and place.is_file():
        return Foreign(init, place)
    if place.suffix == ".safetensors" and place.is_file():
        return Foreign(init, place.parent if place.name == WEIGHTS and kind_of(place.parent) else place)
    if place.is_dir() and kind_of(place):
        return Foreign(init, place)
    if name != init:
        if not place.exists():
            raise missing("--init", init)
        raise UserError(f"--init {init} has no config.json of transformers or timm")
    return None


def _fetched(repo: str, revision: str | None) -> Path | None:
    """A model of the hub in the cache, as far as it is read here; None if it has no config.json of others."""
    try:
        folder = Path(hf_hub_download(repo, "config.json", revision=revision)).parent
        if kind_of(folder):
            for name in (WEIGHTS, "preprocessor_config.json"):
                try:
                    hf_hub_download(repo, name, revision=revision)
                except Exception as error:
                    if name == WEIGHTS:
                        raise UserError(
                            f"--init hf://{repo}: it has no {WEIGHTS} ({first_line(error)[:200]})"
                        ) from error
    except UserError:
        raise
    except Exception:  # no network, no such model: what loads our own says so
        return None
    return folder


def _read(found: Foreign) -> tuple[Tensors, Facts]:
    """The encoder's tensors in timm's names, and what is known beside them."""
    if found.torchvision:
        return _of_torchvision(found.torchvision)
    assert found.place
    if found.place.suffix == ".npz" and found.place.is_file():
        tensors, heads = read_npz(found.place)
        return tensors, Facts(heads, 1e-6, *HALF, _size(config_of(found.place.parent, "about.json").get("img_size")))
    file = found.weights
    if not (file and file.is_file()):
        several = (
            " (it lies in several files; save it as one)" if (found.place / f"{WEIGHTS}.index.json").exists() else ""
        )
        raise ValueError(f"there is no {WEIGHTS}{several}; a pickle is converted by `mpp convert --from-pth FILE`")
    config = config_of(found.place) if found.place.is_dir() else {}
    if kind_of(found.place) == "transformers":
        facts = _of_transformers(config, found.place)
    elif kind_of(found.place) == "timm":
        facts = _of_timm(config)
    elif kind_of(found.place) == "torchvision":
        about = config_of(found.place, "about.json")  # as `mpp convert` writes it
        mean, std = (tuple(about.get(name) or IMAGENET[i]) for i, name in enumerate(("mean", "std")))
        facts = Facts(int(config["num_heads"]), 1e-6, mean, std)
    else:
        facts = Facts()
    tensors = in_timms_names(load_file(file))
    if not config and "patch_embed.proj.weight" in tensors:
        heads = HEADS.get(tensors["patch_embed.proj.weight"].shape[0], 0)
        facts.told = (
            f"no config.json beside it says more, so it is read with {heads} heads a block, 1e-06 in norms and "
            f"ImageNet's mean and deviation"
        )
    return tensors, facts


def _of_transformers(config: dict[str, Any], folder: Path) -> Facts:
    """What a folder of transformers says. Raises ValueError for a model that is not of our shape."""
    kind = str(config.get("model_type"))
    if kind not in _OF_TRANSFORMERS:
        raise ValueError(
            f"it is transformers' {kind[:80]}; of its models, these have our shape: {', '.join(_OF_TRANSFORMERS)}"
        )
    if (act := config.get("hidden_act", "gelu")) != "gelu":
        raise ValueError(f"its activation is {str(act)[:80]}, and that of our ViT is gelu")
    if config.get("use_swiglu_ffn"):
        raise ValueError("it has a gated MLP (SwiGLU), which our ViT does not have")
    facts = Facts(int(config.get("num_attention_heads", 12)), float(config.get("layer_norm_eps", 1e-12)))
    if kind.startswith("dinov2"):
        facts.eps = float(config.get("layer_norm_eps", 1e-6))
    facts.img_size = _size(config.get("image_size", 224))
    facts.mean, facts.std = _OF_TRANSFORMERS[kind]
    try:
        says = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    except OSError:
        facts.told = f"there is no preprocessor_config.json, so images are normalised as is usual for {kind}"
        return facts
    if not says.get("do_rescale", True) or abs(says.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-3:
        raise ValueError("preprocessor_config.json does not scale pixels to 0..1, as our images are read")
    if says.get("do_normalize", True):
        facts.mean, facts.std = tuple(says.get("image_mean", facts.mean)), tuple(says.get("image_std", facts.std))
    else:
        facts.mean, facts.std = (0.0,) * 3, (1.0,) * 3
    return facts


def _size(size: Any) -> tuple[int, int] | None:
    """An image size from a file, one side or two, as (height, width)."""
    sides = [size, size] if isinstance(size, int) else size
    return (int(sides[0]), int(sides[1])) if sides else None


def _of_timm(config: dict[str, Any]) -> Facts:
    """What timm says of an architecture. Raises ValueError for one that is not of our shape."""
    try:
        import timm
        from timm.layers import HybridEmbed, StdConv2dSame
        from timm.models import vision_transformer as theirs
        from timm.models.resnetv2 import ResNetV2
    except ImportError as error:
        raise ValueError("timm knows what its architecture is: pip install timm") from error
    name, given = str(config.get("architecture")), dict(config.get("model_args") or {})
    known = set(inspect.signature(theirs.VisionTransformer.__init__).parameters) - {"self", "device", "dtype"}
    if not timm.is_model(name) or set(given) - known:
        odd = [*([] if timm.is_model(name) else [name[:80]]), *sorted(set(given) - known)]
        raise ValueError(f"this timm knows nothing of {', '.join(odd)}")
    if not 0 < int(given.get("depth", 1)) <= 1000:
        raise ValueError(f"config.json asks for {given['depth']} blocks")
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False, **given | {"num_classes": 0})
    if type(model) is not theirs.VisionTransformer:
        raise ValueError(f"{name} is timm's {type(model).__name__}, and our shape is that of its VisionTransformer")
    first: Any = model.blocks[0]
    attention, mlp = getattr(first, "attn", None), getattr(first, "mlp", None)
    parts = {"block": (first, theirs.Block), "attention": (attention, theirs.Attention), "MLP": (mlp, theirs.Mlp)}
    parts |= {"activation": (getattr(mlp, "act", None), torch.nn.GELU)}
    stem: Any = getattr(model.patch_embed, "backbone", None)
    if isinstance(model.patch_embed, HybridEmbed) and isinstance(stem, ResNetV2):
        first_conv: Any = stem.stem.conv
        parts |= {"stem's first convolution": (first_conv, StdConv2dSame)}
    else:
        parts |= {"patch projection": (model.patch_embed, theirs.PatchEmbed)}
    for what, (part, ours) in parts.items():
        if not isinstance(part, ours):
            raise ValueError(f"{name}: its {what} is {type(part).__name__}, and that of our ViT is {ours.__name__}")
    if not isinstance(first.norm1, torch.nn.LayerNorm):
        raise ValueError(f"{name}: its norms are {type(first.norm1).__name__}, and those of our ViT are LayerNorm")
    says = config.get("pretrained_cfg") or {}
    return Facts(
        first.attn.num_heads,
        first.norm1.eps,
        tuple(says.get("mean") or IMAGENET[0]),
        tuple(says.get("std") or IMAGENET[1]),
        tuple(model.patch_embed.img_size),
    )


def _of_torchvision(name: str) -> tuple[Tensors, Facts]:
    """The default weights of a model of torchvision, fetched by it (as a pickle that may hold tensors alone)."""
    import torchvision

    if name not in (names := [each for each in torchvision.models.list_models() if each.startswith("vit_")]):
        raise ValueError(f"torchvision has no Vision Transformer of that name; it has: {', '.join(names)}")
    weights: Any = torchvision.models.get_model_weights(name).DEFAULT
    with torch.device("meta"):
        model: Any = torchvision.models.get_model(name, weights=None)
    tensors = weights.get_state_dict(progress=is_first_process(), check_hash=True, weights_only=True)
    layer, view = model.encoder.layers[0], weights.transforms()
    return in_timms_names(tensors), Facts(layer.num_heads, layer.ln_1.eps, tuple(view.mean), tuple(view.std))
