"""Continued pretraining: `--init` of pretrain and supervised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mpp import ViT, embed, finetune, predict, pretrain, probe, supervised
from mpp.config import Pretrain, Supervised
from mpp.config.options import Optim, Visible
from mpp.errors import UserError
from mpp.methods.masked_patches import MaskedPatchModel
from mpp.methods.visible_patches import VisiblePatchModel
from mpp.models.backbones import digest_of, load_backbone
from mpp.run.folder import read_metrics
from mpp.training.optim import build_optimizer
from tests.helpers import one_line, put, reset_accelerate

FEW: dict[str, Any] = {
    "train.steps": 4,
    "train.batch_size": 8,
    "train.checkpoint_every": 2,
    "optim.warmup_steps": 2,
    "eval.every": 4,
    "eval.images": 20,
}
LABELLED = FEW | {"data.label_column": "shape", "data.labels": 40}


def run(command: Any, output: Path, init: Path | str, **options: Any) -> dict[str, Any]:
    reset_accelerate()
    return command(FEW | {"output": str(output), "init": str(init)} | options)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DINOv2 with registers, as transformers writes it, for images of 16 x 16."""
    import transformers

    folder = tmp_path_factory.mktemp("dinov2")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
    torch.manual_seed(0)
    config = transformers.Dinov2WithRegistersConfig(**sizes, num_register_tokens=2)
    transformers.Dinov2WithRegistersModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["mpp", "visible"])
def test_pretraining_goes_on_from_weights_and_says_what_the_features_were_before(
    tmp_path: Path, foreign: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"method": method, "eval.probe": "shapes", "eval.probe_label_column": "shape", "optim.lr": 1e-9}
    found = run(pretrain, tmp_path / "run", f"hf:{foreign}", **options)
    lines = read_metrics(tmp_path / "run")
    assert lines[0]["step"] == 0
    assert found["before"]["eval/probe_top1"] == lines[0]["eval/probe_top1"]
    assert abs(found["eval/probe_top1"] - found["before"]["eval/probe_top1"]) < 0.01  # nothing was learnt at this rate
    assert f"accuracy {lines[0]['eval/probe_top1']:.1%} before, " in capsys.readouterr().out
    began, ended = load_backbone(f"hf:{foreign}"), load_backbone(str(tmp_path / "run"))
    assert (ended.registers, ended.img_size) == (2, (16, 16))
    assert torch.equal(ended.mean, began.mean)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(ended(images), began(images), rtol=1e-3, atol=1e-3)
    assert found["init_sha256"] == digest_of(f"hf:{foreign}")
    assert "img_size" not in (tmp_path / "run" / "config.toml").read_text()  # it is that of the weights


@pytest.mark.parametrize("command", [pretrain, supervised], ids=["pretrain", "supervised"])
def test_a_continued_run_that_is_cut_goes_on_to_the_same_numbers(tmp_path: Path, backbone: Path, command: Any) -> None:
    options = {"data.label_column": "shape", "data.labels": 40} if command is supervised else {}
    whole = run(command, tmp_path / "whole", backbone, **options)
    run(command, tmp_path / "cut", backbone, **options | {"train.steps": 2})
    reset_accelerate()
    command({"output": str(tmp_path / "cut"), "resume": True, "train.steps": 4, "optim.extend": "restart"})
    weights = [load_file(tmp_path / name / "backbone" / "model.safetensors") for name in ("whole", "cut")]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    again = json.loads((tmp_path / "cut" / "result.json").read_text())
    assert (again["init"], again["init_sha256"]) == (str(backbone), whole["init_sha256"])


def test_weights_that_change_during_a_run_are_told_and_not_taken(
    tmp_path: Path, backbone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    init = tmp_path / "init"
    ViT.from_pretrained(backbone).save_pretrained(init)
    run(pretrain, tmp_path / "run", init, **{"train.steps": 2})
    weights = load_file(init / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, init / "model.safetensors")
    reset_accelerate()
    pretrain({"output": str(tmp_path / "run"), "resume": True, "train.steps": 4})
    assert "the weights that --init names are others now" in capsys.readouterr().out
    found = json.loads((tmp_path / "run" / "result.json").read_text())
    assert found["init_sha256"] == digest_of(str(backbone))


def test_images_of_another_size_interpolate_and_other_shapes_are_refused(tmp_path: Path, backbone: Path) -> None:
    run(pretrain, tmp_path / "larger", backbone, **{"model.img_size": 24, "train.steps": 1})
    assert load_backbone(str(tmp_path / "larger")).img_size == (24, 24)
    for option, value, says in [
        ("model.patch_size", 8, "--model.patch-size is only for --init scratch"),
        ("model.variant", "S", "--model.variant is only for --init scratch"),
        ("model.img_size", 18, "--model.img-size 18 is not a multiple of the patch size"),
        ("data.channels", 4, "takes images of 3 channels"),
        ("data.target", "3x3", "a patch of 4x4 pixels does not divide into 3x3 cells"),
        ("corrupt.ratio", 0.01, "--corrupt.ratio 0.01"),
    ]:
        with pytest.raises(UserError) as told:
            run(pretrain, tmp_path / "no", backbone, **{option: value})
        assert says in one_line(told)
    assert not (tmp_path / "no").exists()


def test_the_shape_in_a_preset_yields_to_that_of_the_weights(
    tmp_path: Path, backbone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = tmp_path / "large.toml"
    preset.write_text('[model]\nvariant = "B"\nimg_size = 224\npatch_size = 16\npos_init = "sincos"\n')
    run(pretrain, tmp_path / "run", backbone, config=str(preset), **{"train.steps": 1})
    assert load_backbone(str(tmp_path / "run")).hub_config()["patch_size"] == 4
    shape = "--model.variant B, --model.patch-size 16"
    assert f"the shape in --config {preset} ({shape}) yields to that of --init {backbone}" in (
        said := capsys.readouterr().out
    )
    assert said.count("yields") == 1
    reset_accelerate()
    pretrain({"output": str(tmp_path / "run"), "resume": True, "train.steps": 2})  # by its own config.toml
    assert "yields" not in capsys.readouterr().out


def test_the_preset_continue_wants_weights(tmp_path: Path) -> None:
    reset_accelerate()
    with pytest.raises(UserError, match="--init names the weights that this preset goes on from; give it"):
        pretrain({"config": "continue", "output": str(tmp_path / "no")})


def test_supervised_pretraining_goes_on_from_weights(tmp_path: Path, foreign: Path) -> None:
    options = {"data.label_column": "shape", "data.labels": 40, "eval.probe": "shapes", "optim.layer_decay": 0.5}
    options |= {"eval.probe_label_column": "shape"}
    found = run(supervised, tmp_path / "run", foreign, **options)
    assert found["init_sha256"] == digest_of(str(foreign))
    assert 0 < found["before"]["eval/probe_top1"] < 1
    assert load_backbone(str(tmp_path / "run")).registers == 2


@pytest.mark.parametrize("method", ["mpp", "visible"])
def test_with_layer_decay_what_is_fresh_learns_at_the_full_rate(method: str) -> None:
    vit = ViT("nano", img_size=16, patch_size=4, embed_dim=32, depth=3, num_heads=2)
    model: Any = MaskedPatchModel(vit, 8) if method == "mpp" else VisiblePatchModel(vit, 8, Visible())
    optimizer = build_optimizer(model, Optim(name="adamw", lr=1.0, layer_decay=0.5), batch_size=32)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert [rates[id(block.mlp.fc1.weight)] for block in vit.blocks] == [0.125, 0.25, 0.5]
    assert rates[id(vit.pos_embed)] == rates[id(vit.cls_token)] == 0.0625
    fresh = [p for name, p in model.named_parameters() if not name.startswith("vit.")]
    assert {rates[id(p)] for p in fresh} == {1.0} == {rates[id(vit.norm.weight)]}


def test_scratch_has_32_pixels_and_says_so_in_its_options(tmp_path: Path) -> None:
    assert Pretrain().model.img_size is None
    assert Supervised().model.img_size is None
    small = {"model.embed_dim": 16, "model.depth": 1, "model.num_heads": 1, "train.steps": 1}
    run(pretrain, tmp_path / "run", "scratch", **small)
    assert "img_size = 32" in (tmp_path / "run" / "config.toml").read_text()
    reset_accelerate()
    assert pretrain({"output": str(tmp_path / "run"), "resume": True, "train.steps": 2})["step"] == 2


def test_every_command_takes_the_weights_of_another_library(tmp_path: Path, foreign: Path) -> None:
    labelled = {"init": f"hf:{foreign}", "data.label_column": "shape", "data.labels": 30}
    probed = probe(labelled | {"output": str(tmp_path / "probe"), "probe.eval_images": 20, "probe.shots": [1]})
    assert probed["init_sha256"] == digest_of(str(foreign))
    few = {"train.steps": 1, "train.batch_size": 8, "eval.images": 20, "optim.warmup_steps": 0}
    reset_accelerate()
    tuned = finetune(labelled | few | {"output": str(tmp_path / "fine")})
    assert tuned["init_sha256"] == digest_of(str(foreign))
    reset_accelerate()
    folder = str(tmp_path / "photos")
    for number in range(3):
        put(tmp_path / "photos" / f"{number}.png", 80 * number)
    reset_accelerate()
    assert embed({"init": f"hf:{foreign}", "data.path": folder, "out": str(tmp_path / "x.parquet")})["images"] == 3
    with pytest.raises(UserError, match="classifiers from runs alone"):
        predict({"init": str(foreign), "data.path": folder, "out": str(tmp_path / "p.csv")})
