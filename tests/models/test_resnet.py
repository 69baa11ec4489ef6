"""ResNets as backbones: BiT's, beside timm's own."""

from __future__ import annotations

import csv
import functools

import pytest
import timm
import torch

from mpp.commands.convert import run_convert
from mpp.config import Convert
from mpp.console import command
from mpp.methods.classify import Classifier
from mpp.models.backbones import load_backbone
from mpp.models.resnet import ResNet
from tests.helpers import reset_accelerate

FEW = ["--train.steps", "2", "--train.batch-size", "8", "--eval.images", "8", "--optim.warmup-steps", "0"]
NANO = ["--model.variant", "bit-nano", "--model.patch-size", "8"]


@functools.cache
def nano(patch_size: int = 8) -> ResNet:
    torch.manual_seed(0)
    return ResNet("bit-nano", img_size=32, patch_size=patch_size).eval()


@torch.no_grad()
def test_our_bit_equals_timms_with_the_same_weights(tmp_path):
    theirs = timm.create_model("resnetv2_50x1_bit", num_classes=0).eval()
    ours = ResNet("bit-50x1", img_size=64).eval()
    ours.net.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 64)
    tokens = ours(images)
    assert tokens.shape == (2, 5, 2048)
    torch.testing.assert_close(tokens[:, 0], theirs(images), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tokens[:, 1:].mean(1), theirs(images), rtol=1e-5, atol=1e-5)
    ours.save_pretrained(tmp_path / "ours")
    assert run_convert(Convert(init=str(tmp_path / "ours"), to=("timm", str(tmp_path / "timm"))))["difference"] < 1e-5
    back = load_backbone(f"timm:{tmp_path / 'timm'}").eval()
    assert torch.equal(back(images), tokens)


@pytest.mark.parametrize(("patch_size", "places"), [(8, 16), (16, 4), (32, 1)])
def test_small_images_have_a_smaller_stride(patch_size, places):
    assert nano(patch_size)(torch.zeros(1, 3, 32, 32)).shape == (1, 1 + places, 512)


@torch.no_grad()
def test_the_tokens_of_the_last_layer_are_the_output_and_of_others_their_means():
    images = torch.randn(2, 3, 32, 32)
    first, last = nano().layers(images, [1, 4])
    torch.testing.assert_close(last, nano()(images))
    features = nano().net.stages[0](nano().net.stem(images))  # (2, 64, 32, 32)
    torch.testing.assert_close(first[:, 1:, :64].mean(1), features.mean((2, 3)))
    assert not first[..., 64:].any()


def test_a_resnet_learns_from_labels_and_goes_through_every_command_with_labels(tmp_path, capsys):
    reset_accelerate()
    run, fine = str(tmp_path / "run"), str(tmp_path / "fine")
    command("supervised")([*NANO, *FEW, "--output", run])
    command("probe")(["--init", run, "--data.labels", "24", "--probe.eval-images", "16", "--probe.shots", "1"])
    command("finetune")(["--init", run, "--data.labels", "16", "--model.img-size", "48", *FEW, "--output", fine])
    command("predict")(["--init", fine, "--data.path", "shapes", "--out", str(tmp_path / "p.csv"), "--dry-run"])
    model = Classifier.from_pretrained(fine)
    assert isinstance(model.vit, ResNet)
    assert model.vit.img_size == (48, 48)
    assert "a ResNet" not in capsys.readouterr().err


def test_a_resnet_is_not_pretrained_by_masked_patches(tmp_path):
    with pytest.raises(Exception, match="bit-nano is a ResNet, which has no patches to mask"):
        command("pretrain")([*NANO, *FEW])
    nano().save_pretrained(tmp_path / "ours")
    with pytest.raises(Exception, match="is a ResNet, and it has no patches to mask"):
        command("pretrain")(["--init", str(tmp_path / "ours"), *FEW])
    with pytest.raises(Exception, match="--to hf is for Vision Transformers"):
        run_convert(Convert(init=str(tmp_path / "ours"), to=("hf", str(tmp_path / "hf"))))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--model.variant", "bit-nano"], "stride 8, 16 or 32, not of --model.patch-size 4: give 8"),
        ([*NANO, "--model.depth", "3"], "--model.depth is of Vision Transformers"),
        ([*NANO, "--model.stem", "conv"], "--model.stem is of Vision Transformers"),
    ],
)
def test_options_of_a_vit_are_refused_for_a_resnet(options, says):
    with pytest.raises(Exception, match=says):
        command("supervised")(options)


def test_activations_can_be_computed_again():
    model, images = nano(), torch.randn(2, 3, 32, 32)
    gradients = []
    for again in (False, True):
        model.activation_checkpointing = again
        model.zero_grad()
        model(images).square().mean().backward()
        gradients.append(model.net.stem.conv.weight.grad.clone())
    model.activation_checkpointing = False
    torch.testing.assert_close(*gradients)


def test_a_comparison_pretrains_a_resnet_with_labels_beside_vits(tmp_path):
    reset_accelerate()
    arms = ["--arms", "scratch", "bit=bit-small-images", "--labels", "16", "--seeds", "0", "--probe-labels", "24"]
    short = [*("--pretrain.train.steps", "2", "--pretrain.train.batch-size", "8", "--pretrain.eval.images", "8")]
    tuned = [*("--finetune.train.steps", "2", "--finetune.train.batch-size", "8", "--probe.eval-images", "16")]
    few = [*("--finetune.eval.images", "16", "--probe.shots", "1", "--probe.draws", "1")]
    command("compare")([*arms, *short, *tuned, *few, "--output", str(tmp_path / "out")])
    with (tmp_path / "out" / "results.csv").open() as file:
        measured = {(row["arm"], row["protocol"]) for row in csv.DictReader(file)}
    assert {("bit", "fine-tuned"), ("bit", "logistic regression"), ("scratch", "fine-tuned")} <= measured
    assert isinstance(load_backbone(str(tmp_path / "out" / "pretrain" / "bit")), ResNet)
