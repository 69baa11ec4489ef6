"""`mpp convert`: the other library opens the folder by itself and gives our outputs; what comes back is what left."""

from __future__ import annotations

import argparse
import json
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file

from mpp import Classifier, ViT, convert
from mpp.data.augment import View, normalise
from mpp.data.images import load_images
from mpp.data.loader import Samples, no_draws, read_batch
from mpp.data.randomness import Purpose
from mpp.errors import UserError
from mpp.models.backbones import load_backbone
from tests.helpers import ROOT, one_line
from tests.models.test_vit import randomise

TINY: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}
BACKBONES: dict[str, dict[str, Any]] = {
    "1d": {},
    "2d": {"pos_embed": "2d"},
    "no positions": {"pos_embed": "none"},
    "a rectangle, one channel": {"img_size": (8, 16), "in_chans": 1},
    "ImageNet's colours": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "registers and LayerScale": {"registers": 2, "layer_scale": True},
    "no [class], no last norm": {"class_token": False, "final_norm": False},
    "norm before the blocks": {"pre_norm": True},
    "no qkv bias": {"qkv_bias": False},
}
FITTING = {  # what the others refuse is tested below
    "timm": list(BACKBONES),
    "hf": [*list(BACKBONES)[:6], "no qkv bias"],
    "torchvision": ["1d", "2d", "no positions", "ImageNet's colours"],
    "npz": ["1d", "2d", "no positions", "a rectangle, one channel", "ImageNet's colours"],
    "torch-export": ["2d"],
    "onnx": ["registers and LayerScale"],
}


def a_backbone(folder: Path, **options: Any) -> ViT:
    vit = ViT(**TINY | options)
    randomise(vit)
    vit.save_pretrained(folder)
    return vit.eval()


@pytest.mark.parametrize(("form", "variant"), [(form, variant) for form, names in FITTING.items() for variant in names])
@torch.no_grad()
def test_a_backbone_gives_its_outputs_in_another_library_and_comes_back(
    tmp_path: Path, form: str, variant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    vit = a_backbone(tmp_path / "ours", **BACKBONES[variant])
    found = convert({"init": str(tmp_path / "ours"), "to": (form, str(tmp_path / "out"))})
    assert found["difference"] < 1e-5
    assert "it gives our outputs for 3 random images" in capsys.readouterr().out
    if form in ("onnx", "torch-export"):
        assert json.loads((tmp_path / "out" / "about.json").read_text())["mean"] == [0.5] * 3
        return
    back = load_backbone(str(tmp_path / "out" / ("model.npz" if form == "npz" else "")))
    images = torch.rand(2, vit.in_chans, *vit.img_size) * 2 - 1
    torch.testing.assert_close(back.eval()(images), vit(images), rtol=1e-5, atol=1e-5)
    if form != "npz" and variant in ("1d", "ImageNet's colours", "no qkv bias"):
        assert all(torch.equal(tensor, back.state_dict()[name]) for name, tensor in vit.state_dict().items())


def test_what_is_written_may_be_read_by_others(tmp_path: Path) -> None:
    a_backbone(tmp_path / "ours")
    (tmp_path / "new").touch()
    for form in ("timm", "hf", "torchvision", "npz"):
        convert({"init": str(tmp_path / "ours"), "to": (form, str(tmp_path / form))})
        assert {file.stat().st_mode for file in (tmp_path / form).iterdir()} == {(tmp_path / "new").stat().st_mode}


def a_classifier(folder: Path, pool: str, head: str = "linear", **options: Any) -> Classifier:
    model = Classifier(ViT(**TINY | options), ["cat", "dog", "ä b"], pool, head, temperature=1.7)
    randomise(model)
    model.save_pretrained(folder)
    return model.eval()


CLASSIFIERS = [("timm", "mean"), ("timm", "cls"), ("hf", "mean"), ("hf", "cls"), ("torchvision", "cls"), ("npz", "cls")]


@pytest.mark.parametrize(("form", "pool"), CLASSIFIERS)
def test_a_fine_tuned_run_goes_out_with_its_classes(tmp_path: Path, form: str, pool: str) -> None:
    a_classifier(tmp_path / "run" / "classifier", pool)
    assert convert({"init": str(tmp_path / "run"), "to": (form, str(tmp_path / "out"))})["difference"] < 1e-5
    if form == "hf":
        config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
        assert config.id2label == {0: "cat", 1: "dog", 2: "ä b"}
        assert config.architectures == [{"cls": "ViT", "mean": "Dinov2"}[pool] + "ForImageClassification"]
    elif form == "timm":
        model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
        assert model.pretrained_cfg["label_names"] == ["cat", "dog", "ä b"]
    else:
        assert json.loads((tmp_path / "out" / "about.json").read_text())["classes"] == ["cat", "dog", "ä b"]


def test_registers_with_a_head_and_a_hidden_layer_go_where_there_is_a_place(tmp_path: Path) -> None:
    a_classifier(tmp_path / "registers", "cls", registers=3)
    for form in ("timm", "hf"):
        assert convert({"init": str(tmp_path / "registers"), "to": (form, str(tmp_path / form))})["difference"] < 1e-5
    a_classifier(tmp_path / "hidden", "cls", "mlp")
    for form in ("torchvision", "npz"):
        assert convert({"init": str(tmp_path / "hidden"), "to": (form, str(tmp_path / form))})["difference"] < 1e-5
    with pytest.raises(UserError, match="no place for the hidden layer"):
        convert({"init": str(tmp_path / "hidden"), "to": ("hf", str(tmp_path / "no"))})
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("form", "options", "says"),
    [
        ("timm", {"pos_embed": "relative"}, "no other library has our relative position embeddings"),
        ("hf", {"pos_embed": "relative"}, "no other library has our relative position embeddings"),
        ("hf", {"class_token": False}, "ViT and DINOv2 have a [class] token"),
        ("hf", {"pre_norm": True}, "no norm before the first block"),
        ("torchvision", {"registers": 1, "layer_scale": True}, "no place for registers and LayerScale"),
        ("torchvision", {"img_size": (8, 16)}, "takes squares, not images of 8x16"),
        ("torchvision", {"in_chans": 4}, "takes 3 channels, not 4"),
        ("npz", {"qkv_bias": False}, "no place for no bias of queries, keys and values"),
    ],
)
def test_what_a_form_has_no_place_for_is_refused_by_name(
    tmp_path: Path, form: str, options: dict[str, Any], says: str
) -> None:
    a_backbone(tmp_path / "ours", **options)
    with pytest.raises(UserError) as told:
        convert({"init": str(tmp_path / "ours"), "to": (form, str(tmp_path / "out"))})
    assert says in one_line(told)
    assert not (tmp_path / "out").exists()


def test_transformers_reads_an_image_as_our_evaluation_does(tmp_path: Path) -> None:
    a_backbone(tmp_path / "ours")
    convert({"init": str(tmp_path / "ours"), "to": ("hf", str(tmp_path / "out"))})
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    y, x = np.mgrid[:40, :64]
    image = Image.fromarray(np.stack([y * 6, x * 4, 255 - x * 2], -1).astype(np.uint8))
    theirs = torch.as_tensor(np.asarray(processor(image, return_tensors="np")["pixel_values"]))
    (tmp_path / "photos").mkdir()
    image.save(tmp_path / "photos" / "x.png")
    samples = Samples(np.array([0]), 0, range(1))
    ours = read_batch(load_images(str(tmp_path / "photos")), samples, View((16, 16)), no_draws, 0, Purpose.EVAL)
    assert (theirs - normalise(ours["images"])).abs().max() < 0.06


def test_a_pickle_becomes_safetensors_and_runs_nothing(tmp_path: Path) -> None:
    weights = OrderedDict(a=torch.arange(4.0), b=torch.ones(2, 2).T)
    torch.save({"model": weights, "args": argparse.Namespace(lr=1), "epoch": 3}, tmp_path / "x.pth")
    assert convert({"from_pth": str(tmp_path / "x.pth")}) == {"out": str(tmp_path / "x.safetensors")}
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == {"a", "b"}
    assert torch.equal(found["a"], weights["a"])
    with pytest.raises(UserError, match="safetensors exists"):
        convert({"from_pth": str(tmp_path / "x.pth")})
    torch.save(torch.nn.Linear(1, 1), tmp_path / "whole.pth")
    with pytest.raises(UserError, match=r"holds more than tensors.*state_dict") as told:
        convert({"from_pth": str(tmp_path / "whole.pth")})
    one_line(told)
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    with pytest.raises(UserError, match=r"no tensors by name are in it \(epoch\)"):
        convert({"from_pth": str(tmp_path / "none.pth")})


def test_a_folder_that_exists_and_a_line_that_asks_for_nothing_are_refused(tmp_path: Path) -> None:
    a_backbone(tmp_path / "ours")
    with pytest.raises(UserError, match="exists; give another folder"):
        convert({"init": str(tmp_path / "ours"), "to": ("timm", str(tmp_path))})
    with pytest.raises(UserError, match="--to onyx x: the form is none of timm, hf,"):
        convert({"init": str(tmp_path / "ours"), "to": ("onyx", "x")})
    with pytest.raises(UserError, match="give a run and --to FORM FOLDER, or --from-pth FILE alone"):
        convert({"init": str(tmp_path / "ours")})


def test_the_lines_of_the_readme_open_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    a_backbone(tmp_path / "tin")
    a_classifier(tmp_path / "fine", "mean")
    forms = ("timm", "torchvision", "npz", "onnx", "torch-export")
    for init, form in [("fine", "hf"), *(("tin", form) for form in forms)]:
        convert({"init": str(tmp_path / init), "to": (form, f"{init}-{form}")})
    text = (ROOT / "recipes" / "README.md").read_text()
    section = text.partition("## Other libraries\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 6
    for block in blocks:
        names: dict[str, Any] = {}
        exec(block, names)
        assert names.get("model") or names["tokens"].shape == (5, 17, 24)


@torch.no_grad()
def test_weights_of_others_come_back_to_them_to_the_last_bit(tmp_path: Path) -> None:
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 16, "patch_size": 4}
    registers = transformers.Dinov2WithRegistersConfig(**sizes, num_register_tokens=2)
    models: dict[str, Any] = {
        "vit": transformers.ViTModel(transformers.ViTConfig(**sizes, intermediate_size=96), add_pooling_layer=False),
        "dinov2": transformers.Dinov2WithRegistersModel(registers),
    }
    for name, model in models.items():
        randomise(model)
        model.embeddings.mask_token = None  # which only its own training has
        model.save_pretrained(tmp_path / name)
        convert({"init": f"hf:{tmp_path / name}", "to": ("hf", str(tmp_path / f"{name}-back"))})
        convert({"init": f"hf:{tmp_path / name}", "to": ("timm", str(tmp_path / f"{name}-timm"))})
        convert({"init": f"timm:{tmp_path / f'{name}-timm'}", "to": ("hf", str(tmp_path / f"{name}-round"))})
        theirs = load_file(tmp_path / name / "model.safetensors")
        for back in ("back", "round"):
            ours = load_file(tmp_path / f"{name}-{back}" / "model.safetensors")
            assert ours.keys() - {"embeddings.mask_token"} == theirs.keys()
            assert all(torch.equal(tensor, ours[name]) for name, tensor in theirs.items())
