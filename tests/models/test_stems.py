"""Hybrids: a ResNet's, or a few convolutions', feature map in place of patches of pixels."""

from __future__ import annotations

import functools

import pytest
import timm
import torch
from safetensors.torch import load_file

from mpp.commands.convert import run_convert
from mpp.config import Convert, Pretrain
from mpp.config.options import Model, Visible
from mpp.console import command
from mpp.methods.corrupt import Corruption
from mpp.methods.masked_patches import MaskedPatchModel
from mpp.methods.visible_patches import Hiding, VisiblePatchModel
from mpp.models.backbones import build_vit, load_backbone
from mpp.models.foreign.encoder import Facts, encoder
from mpp.models.foreign.names import in_timms_names
from mpp.models.stems import kind_of_units, units_of
from mpp.models.vit import ViT
from mpp.training.optim import parameter_groups
from tests.helpers import reset_accelerate

TIMMS = {
    "vit_small_r26_s32_224": ("r26", 32),
    "vit_base_r50_s16_224": ("r50", 16),
    "vit_large_r50_s32_224": ("r50", 32),
}


@functools.cache
def small(kind: str, patch_size: int = 4) -> ViT:
    torch.manual_seed(0)
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 2}
    return ViT("nano", img_size=4 * patch_size, patch_size=patch_size, stem=kind, **sizes).eval()


def test_the_papers_r50_at_16_pixels_has_the_units_of_stage_4_in_stage_3():
    assert units_of("r50", 16) == (3, 4, 9)
    assert units_of("r50", 32) == (3, 4, 6, 3)
    for kind in ("r26", "r50"):
        for patch_size in (4, 8, 16, 32):
            assert sum(units_of(kind, patch_size)) == {"r26": 8, "r50": 16}[kind]
            assert kind_of_units(units_of(kind, patch_size)) == (kind, patch_size)


@pytest.mark.parametrize("name", TIMMS)
def test_our_hybrid_equals_timms_with_the_same_weights(name):
    kind, side = TIMMS[name]
    sizes = {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 64}
    theirs = timm.create_model(name, num_classes=0, global_pool="", **sizes).eval()
    ours = encoder(in_timms_names(theirs.state_dict()), Facts(3, 1e-6, (0.5,) * 3, (0.5,) * 3)).eval()
    assert (ours.stem_kind, ours.patch_size, ours.img_size) == (kind, side, (64, 64))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["vit_small_r26_s32_224", "vit_base_r50_s16_224"])
def test_the_papers_hybrids_have_as_many_parameters_as_timms(name):
    kind, side = TIMMS[name]
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=0)
        ours = ViT({"r26": "S", "r50": "B"}[kind], img_size=224, patch_size=side, stem=kind)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


def test_a_hybrid_goes_to_timm_and_back(tmp_path, capsys):
    small("r26", 32).save_pretrained(tmp_path / "ours")
    found = run_convert(Convert(init=str(tmp_path / "ours"), to=("timm", str(tmp_path / "timm"))))
    assert found["difference"] < 1e-5
    back = load_backbone(f"timm:{tmp_path / 'timm'}")
    for name, tensor in load_file(tmp_path / "ours" / "model.safetensors").items():
        assert torch.equal(back.state_dict()[name], tensor), name


@torch.no_grad()
@pytest.mark.parametrize(("kind", "patch_size"), [("r26", 32), ("r50", 16)])
def test_a_hybrid_goes_to_the_authors_form_which_timm_reads_and_back(tmp_path, kind, patch_size):
    vit = small(kind, patch_size)
    vit.save_pretrained(tmp_path / "ours")
    found = run_convert(Convert(init=str(tmp_path / "ours"), to=("npz", str(tmp_path / "npz"))))
    assert found["difference"] < 1e-5
    back = load_backbone(str(tmp_path / "npz" / "model.npz")).eval()
    images = torch.randn(2, 3, *vit.img_size)
    assert torch.equal(back(images), vit(images))


@pytest.mark.parametrize("form", ["hf", "torchvision", "npz"])
def test_a_form_without_stems_refuses_a_hybrid(tmp_path, form):
    small("conv").save_pretrained(tmp_path / "ours")
    with pytest.raises(Exception, match="stem conv of this hybrid"):
        run_convert(Convert(init=str(tmp_path / "ours"), to=(form, str(tmp_path / form))))


@pytest.mark.parametrize("kind", ["conv", "r26"])
def test_a_hybrid_is_exported_for_any_batch_size(tmp_path, kind):
    small(kind).save_pretrained(tmp_path / "ours")
    found = run_convert(Convert(init=str(tmp_path / "ours"), to=("torch-export", str(tmp_path / "out"))))
    assert found["difference"] < 1e-5


@pytest.mark.parametrize("kind", ["conv", "r26"])
def test_no_prediction_depends_on_the_pixels_of_a_replaced_patch(kind):
    vit = small(kind)
    images = torch.randn(2, 3, 16, 16, requires_grad=True)
    hidden = torch.tensor([[1, 5, 9, 10]] * 2)
    corruption = Corruption(hidden, torch.tensor([[16, 16, 3, 16]] * 2))  # [mask], [mask], patch 3, [mask]
    MaskedPatchModel(vit, 8)(images, corruption).sum().backward()
    seen = images.grad.abs().unfold(2, 4, 4).unfold(3, 4, 4).sum((1, 4, 5)).flatten(1)  # (B, N): of each patch
    assert not seen[:, hidden[0]].any()
    assert (seen[:, [0, 2, 3, 4]] > 0).all()


@pytest.mark.parametrize("kind", ["conv", "r26"])
def test_a_hybrids_visible_tokens_depend_on_no_hidden_patch(kind):
    images = torch.randn(2, 3, 16, 16, requires_grad=True)
    visible, predicted = torch.tensor([[0, 6, 7, 12]] * 2), torch.tensor([[1, 2]] * 2)
    VisiblePatchModel(small(kind), 8, Visible())(images, Hiding(visible, predicted)).sum().backward()
    seen = images.grad.abs().unfold(2, 4, 4).unfold(3, 4, 4).sum((1, 4, 5)).flatten(1)
    assert (seen > 0).nonzero()[:, 1].unique().tolist() == [0, 6, 7, 12]


def test_a_hybrid_compiles_to_one_graph():
    vit, images = small("conv"), torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(torch.compile(vit, fullgraph=True, backend="aot_eager")(images), vit(images))


def test_a_hybrid_takes_images_of_another_size():
    vit = ViT("nano", img_size=32, patch_size=8, stem="conv", embed_dim=32, depth=1, num_heads=2)
    assert vit.resize(48)(torch.zeros(1, 3, 48, 48)).shape == (1, 1 + 36, 32)


def test_convolutions_decay_and_are_not_for_muon():
    vit = small("r26")
    groups = parameter_groups(vit, 0.1)
    decaying = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    matrices = [p for group in groups if group["matrices"] for p in group["params"]]
    assert id(vit.stem.stem.conv.weight) in decaying
    assert id(vit.stem.stem.norm.weight) not in decaying
    assert {p.ndim for p in matrices} == {2}


@pytest.mark.parametrize(("kind", "patch_size"), [("r26", 2), ("conv", 6)])
def test_a_stem_that_cannot_have_such_patches_is_refused(kind, patch_size):
    line = ["--model.stem", kind, "--model.patch-size", str(patch_size), "--model.img-size", "24"]
    with pytest.raises(
        Exception, match=f"--model.stem {kind} makes tokens of .* not of --model.patch-size {patch_size}"
    ):
        command("pretrain")(line)


@pytest.mark.parametrize("method", ["mpp", "visible"])
def test_a_hybrid_pretrains_and_is_fine_tuned_at_another_size(tmp_path, method):
    reset_accelerate()
    few = ["--train.steps", "3", "--train.batch-size", "8", "--eval.images", "8"]
    shape = ["--model.stem", "conv", "--model.embed-dim", "32", "--model.depth", "2", "--model.num-heads", "2"]
    command("pretrain")([*few, *shape, "--method", method, "--output", str(tmp_path / "run")])
    assert load_backbone(str(tmp_path / "run")).stem_kind == "conv"
    line = ["--init", str(tmp_path / "run"), "--model.img-size", "48", "--data.labels", "16", *few]
    found = command("finetune")([*line, "--output", str(tmp_path / "fine")])
    assert found["labels"] == 16


def test_the_options_build_a_hybrid():
    vit = build_vit(Model(stem="r26", patch_size=8, img_size=32))
    assert vit(torch.zeros(1, 3, 32, 32)).shape == (1, 17, 128)
    assert Pretrain().model.stem == "none"
