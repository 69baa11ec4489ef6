"""Weights of other libraries are told by name, and never unpickled."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mpp.errors import UserError
from mpp.methods.classify import load_classifier
from mpp.models.backbones import load_backbone
from tests.helpers import one_line


class Bomb:
    """What a pickle of it does when it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def refused(place: Path, load=load_classifier) -> str:
    with pytest.raises(UserError) as told:
        load(str(place))
    said = one_line(told)
    assert str(place) in said
    assert "backbones are read from runs, from folders of timm and transformers" in said
    return said


def timms() -> dict[str, torch.Tensor]:
    import timm

    return timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=8, num_heads=1, img_size=32).state_dict()


def maes() -> dict[str, torch.Tensor]:
    return {
        "mask_token": torch.zeros(1),
        "decoder_embed.weight": torch.zeros(1),
        "decoder_blocks.0.x": torch.zeros(1),
    } | timms()


def torchvisions() -> dict[str, torch.Tensor]:
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 16, 1, 1, 8, 8).state_dict()


def transformers_model():
    from transformers import ViTConfig, ViTModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    return ViTModel(ViTConfig(**sizes, image_size=32, patch_size=16))


LIBRARIES = {
    "timm's": timms,
    "MAE's": maes,
    "torchvision's": torchvisions,
    "transformers'": lambda: transformers_model().state_dict(),
    "DINO's": lambda: {f"teacher.backbone.{name}": tensor for name, tensor in timms().items()},
    "OpenCLIP's": lambda: {"visual.conv1.weight": torch.zeros(1)},
}


@pytest.mark.parametrize("owner", LIBRARIES)
def test_weights_of_others_are_named_in_every_form(tmp_path, owner):
    weights = {name: tensor.contiguous().clone() for name, tensor in LIBRARIES[owner]().items()}
    save_file(weights, tmp_path / "model.safetensors")
    assert f"is {owner}" in refused(tmp_path / "model.safetensors")
    assert f"is {owner}" in refused(tmp_path)  # without a config.json
    for suffix in (".pth", ".pt", ".bin"):
        file = tmp_path / "pickled" / f"weights{suffix}"
        file.parent.mkdir(exist_ok=True)
        torch.save({"model": OrderedDict(weights), "epoch": 3}, file)
        assert f"is a pickle ({suffix}) with {owner}" in refused(file, load_backbone)
        assert f"so it is never loaded as it is; `mpp convert --from-pth {file}` writes its tensors" in refused(file)
    assert f"is a folder with weights.bin, a pickle (.bin) with {owner}" in refused(tmp_path / "pickled")


def test_folders_that_transformers_and_timm_wrote_are_named(tmp_path):
    transformers_model().save_pretrained(tmp_path)
    assert "it is transformers' (vit)" in refused(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_base_patch16_224", "num_features": 768}))
    assert "it is timm's (vit_base_patch16_224)" in refused(tmp_path)


def test_a_pickle_is_never_run_and_arrays_of_numpy_are_named(tmp_path):
    for zipped in (True, False):
        torch.save(Bomb(tmp_path / "went off"), tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
        assert "is a pickle (.pth): a pickle can run code" in refused(tmp_path / "x.pth", load_backbone)
    assert not (tmp_path / "went off").exists()
    np.savez(tmp_path / "B_16.npz", **{"Transformer/encoder_norm/bias": np.zeros(1)})
    assert "as Google's vision_transformer and big_vision write it" in refused(tmp_path / "B_16.npz")
    (tmp_path / "notes.txt").write_text("no weights")
    assert "notes.txt is a file; backbones are read" in refused(tmp_path / "notes.txt")
