"""Arithmetic: what training takes, counted as the textbooks do."""

from __future__ import annotations

import pytest
import torch

from mpp.methods.classify import Classifier
from mpp.methods.masked_patches import MaskedPatchModel
from mpp.models.vit import ViT
from mpp.training.flops import flops_an_image, peak_flops


def by_hand(depth: int, dim: int, tokens: int, pixels: int) -> int:
    """Multiplications and additions of the encoder forward, over all tokens: 24 D^2 a token and block for the linear
    layers, 4 D a pair of tokens for attention, and the patches' projection."""
    return depth * (24 * tokens * dim**2 + 4 * tokens**2 * dim) + 2 * (tokens - 1) * pixels * dim


def test_training_a_classifier_takes_three_times_its_forward_pass():
    vit = ViT("nano", img_size=32, patch_size=4)
    forward = by_hand(6, 128, 65, 48) + 2 * 128 * 10
    backward = 2 * forward - 2 * 64 * 48 * 128  # pixels need no gradient
    assert flops_an_image(Classifier(vit, [""] * 10)) == pytest.approx(forward + backward, rel=1e-3)


def test_masked_patch_prediction_takes_less_by_what_the_last_block_leaves_out():
    vit = ViT("nano", img_size=32, patch_size=4)
    whole, half = (MaskedPatchModel(vit, 512).flops_an_image(ratio) for ratio in (60 / 64, 0.5))
    a_token = 2 * 128**2 + 8 * 128**2 * 2 + 2 * 128**2 + 4 * 65 * 128 + 2 * 128 * 512  # from query to head
    assert whole - half == pytest.approx(3 * 28 * a_token, rel=1e-3)


def test_activations_computed_again_are_no_work_done():
    vit = ViT("nano", img_size=16, patch_size=4)
    before = MaskedPatchModel(vit, 512).flops_an_image()
    vit.activation_checkpointing = True
    assert MaskedPatchModel(vit, 512).flops_an_image() == before
    assert vit.activation_checkpointing


def test_the_peak_is_above_what_a_small_product_reaches():
    assert 1e9 < peak_flops(torch.device("cpu"), torch.float32) < 1e14
