"""The method `visible`: who sees what, exact counts, and all that holds for a run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mpp import ViT
from mpp.config.options import Visible
from mpp.data.randomness import Numbers, Purpose
from mpp.methods.visible_patches import Hiding, VisiblePatchModel, draw_hiding
from mpp.pretrain import main
from mpp.run.folder import read_metrics
from tests.helpers import losses, one_and_two_processes, pretrain, without_speeds, write_shards

TINY = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
VISIBLE = ["--method", "visible"]


def numbers(batch: int, step: int = 0) -> Numbers:
    return Numbers(0, Purpose.TRAIN, step, range(batch))


def tiny(**options) -> VisiblePatchModel:
    torch.manual_seed(0)
    return VisiblePatchModel(ViT("nano", **TINY), 7, Visible(**options)).eval()


@pytest.mark.parametrize("shape", ["uniform", "blocks"])
@pytest.mark.parametrize(
    ("keep", "predict", "counts"), [(0.25, 0.5, (16, 24)), (0.15, 1.0, (10, 54)), (0.5, 0.01, (32, 1))]
)
def test_every_image_has_exactly_its_share_of_visible_and_predicted_patches(keep, predict, counts, shape):
    visible, predicted = draw_hiding(numbers(50), (8, 8), keep, predict, shape)
    assert (visible.shape, predicted.shape) == ((50, counts[0]), (50, counts[1]))
    for seen, asked in zip(visible.tolist(), predicted.tolist(), strict=True):
        assert seen == sorted(set(seen))
        assert asked == sorted(set(asked))
        assert not set(seen) & set(asked)
        assert set(seen) | set(asked) <= set(range(64))


def test_every_patch_is_visible_and_predicted_equally_often():
    visible, predicted = draw_hiding(numbers(4000), (4, 4), 0.25, 0.5)
    for chosen, share in ((visible, 4 / 16), (predicted, 6 / 16)):
        counts = np.bincount(chosen.flatten().numpy(), minlength=16) / 4000
        assert np.abs(counts - share).max() < 4.5 * (share * (1 - share) / 4000) ** 0.5


def test_blocks_hide_whole_regions():
    """Hidden patches have more hidden neighbours than by chance."""

    def hidden_neighbours(shape):
        visible, _ = draw_hiding(numbers(100), (8, 8), 0.5, 1.0, shape)
        hidden = torch.ones(100, 64).scatter(1, visible, 0).view(100, 8, 8)
        return (hidden[:, :, 1:] * hidden[:, :, :-1]).mean()

    assert hidden_neighbours("blocks") > hidden_neighbours("uniform") + 0.1


@pytest.mark.parametrize("pos_embed", ["1d", "2d", "none"])
def test_visible_tokens_are_those_of_a_plain_encoder_on_the_same_patches(pos_embed):
    """An independent path: cut the tokens by hand and run the blocks one by one."""
    torch.manual_seed(0)
    vit = ViT("nano", **TINY, pos_embed=pos_embed).eval()
    images = torch.randn(3, 3, 16, 16)
    visible = draw_hiding(numbers(3), (4, 4)).visible
    tokens = vit.add_positions(vit.embed(images))
    for image, places in enumerate(visible.tolist()):
        alone = tokens[image : image + 1, [0, *(place + 1 for place in places)]]
        for block in vit.blocks:
            alone = block(alone)
        found = vit.encode(vit.embed(images, visible), visible=visible)[image : image + 1]
        torch.testing.assert_close(found, vit.norm(alone), atol=1e-5, rtol=0)
    everything = torch.arange(16).expand(3, -1)
    torch.testing.assert_close(
        vit.encode(vit.embed(images, everything), visible=everything), vit(images), atol=1e-5, rtol=0
    )


def test_relative_positions_are_refused():
    vit = ViT("nano", **TINY, pos_embed="relative")
    with pytest.raises(ValueError, match="relative needs all patches"):
        vit.encode(vit.embed(torch.randn(1, 3, 16, 16)), visible=torch.tensor([[0, 1]]))


@pytest.mark.parametrize("decoder", ["cross", "self"])
def test_a_prediction_depends_on_all_visible_pixels_and_on_no_hidden_one(decoder):
    model = tiny(decoder=decoder, depth=2)
    images = torch.randn(2, 3, 16, 16, requires_grad=True)
    visible, predicted = draw_hiding(numbers(2), (4, 4))
    model(images, Hiding(visible, predicted)).square().sum().backward()
    gradient = images.grad.abs().unfold(2, 4, 4).unfold(3, 4, 4).amax((1, 4, 5)).flatten(1)  # (B, N)
    seen = torch.zeros(2, 16, dtype=torch.bool).scatter(1, visible, True)
    assert (gradient[seen] > 0).all()
    assert (gradient[~seen] == 0).all()


@pytest.mark.parametrize("decoder", ["cross", "self"])
def test_one_patch_has_its_own_prediction(decoder):
    """With cross-attention it does not depend on what else is asked; with self-attention it does."""
    model = tiny(decoder=decoder, depth=2)
    images = torch.randn(1, 3, 16, 16)
    visible = torch.tensor([[0, 5, 10, 15]])
    few, many = (model(images, Hiding(visible, torch.tensor([asked])))[0, 0] for asked in ([1, 2], [1, 3, 4, 6]))
    assert torch.allclose(few, many, atol=1e-6) == (decoder == "cross")


def test_the_arithmetic_is_a_fraction_of_that_of_the_whole_encoder():
    from mpp.methods.masked_patches import MaskedPatchModel

    vit = ViT("nano", img_size=32, patch_size=4)
    visible = VisiblePatchModel(vit, 512, Visible()).flops_an_image()
    assert 0.25 < visible / MaskedPatchModel(vit, 512).flops_an_image() < 0.5


def test_a_stopped_run_goes_on_to_the_last_bit(tmp_path):
    whole = pretrain(tmp_path / "whole", *VISIBLE, "--optim.decay", "none")
    pretrain(tmp_path / "cut", *VISIBLE, "--optim.decay", "none", "--train.steps", "4")
    resumed = pretrain(tmp_path / "cut", *VISIBLE, "--optim.decay", "none", "--resume")
    assert losses(resumed) == losses(whole)
    one, other = (load_file(tmp_path / run / "backbone" / "model.safetensors") for run in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert ViT.from_pretrained(tmp_path / "cut" / "backbone").num_patches == 16


def test_two_processes_compute_what_one_computes(tmp_path):
    def options(name):
        return [
            *("--model.img-size", "16", "--model.embed-dim", "32", "--model.depth", "2", "--model.num-heads", "2"),
            *(*VISIBLE, "--train.steps", "4", "--train.batch-size", "8", "--optim.name", "adamw", "--eval.every", "4"),
            *("--eval.images", "20"),
        ]

    one_and_two_processes(main, "mpp/pretrain.py", tmp_path, options)
    one, two = (without_speeds(read_metrics(tmp_path / name)) for name in ("one", "two"))
    for mine, theirs in zip(one, two, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)


def test_streams_and_pictures(tmp_path):
    shards = write_shards(tmp_path / "shards", 3, 20)
    lines = pretrain(tmp_path / "run", *VISIBLE, "--data.path", str(shards), "--corrupt.shape", "blocks")
    assert 0 <= lines[-1]["eval/bin_accuracy"] <= 1
    assert lines[-1]["eval/baseline_neighbours"] > 0
    assert len(list((tmp_path / "run" / "samples").glob("*.png"))) == 2
