"""The attentive probe: what it computes, what it sees that the mean of the patches does not, and what it needs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torchvision.transforms.v2.functional import pil_to_tensor

from mpp import ViT, load_images
from mpp.data.splits import fifth_to_choose_by
from mpp.evaluation import attentive
from mpp.evaluation.attentive import AttentivePooling, Tokens, attentive_probe
from mpp.evaluation.probes import Scaler, logistic_regression, top_k


def tokens_of(x):
    """Patch tokens that are given."""
    device = SimpleNamespace(device="cpu")
    return SimpleNamespace(accelerator=device, dim=x.shape[-1], batches=lambda places: (x[p] for p in places))


def marked(count, seed):
    """Tokens (M, 9, 12) of noise, one of which is marked and holds the class, and the classes (M,)."""
    rng = torch.Generator().manual_seed(seed)
    x, y = torch.randn(count, 9, 12, generator=rng), torch.randint(0, 3, (count,), generator=rng)
    place = torch.randint(0, 9, (count,), generator=rng)
    x[:, :, 11] = 0
    x[torch.arange(count), place, 11] = 6  # the mark, by which a query finds it
    x[torch.arange(count), place, :3] = 4 * F.one_hot(y, 3).float() - 2
    return x, y


def test_the_pooling_is_attention_of_learnt_queries():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 8, generator=rng)
    probe = AttentivePooling(torch.zeros(8), torch.ones(8), 3, 2, rng)
    torch.nn.init.normal_(probe.head.weight, generator=rng)
    q = probe.queries[None, :, None].expand(2, -1, -1, -1)  # (B, h, 1, D)
    v = torch.stack([x @ matrix for matrix in probe.values], 1)  # (B, h, N, D / h)
    k = x[:, None].expand(-1, 2, -1, -1)
    attended = F.scaled_dot_product_attention(q, k, v, scale=1.0)[:, :, 0].flatten(1)
    torch.testing.assert_close(probe(x), probe.head(attended))


def test_it_finds_the_patch_that_the_mean_dilutes_and_the_same_numbers_again(monkeypatch):
    monkeypatch.setattr(attentive, "FEWEST_STEPS", 150)
    (x, y), (test_x, test_y) = marked(800, 0), marked(400, 1)
    found = attentive_probe(tokens_of(x), y, tokens_of(test_x), test_y, 3, heads=2, seed=0)
    scaler = Scaler.of(x.mean(1))
    weights, biases = logistic_regression(scaler(x.mean(1)), y, 3, 1e-3)
    linear = top_k(scaler(test_x.mean(1)) @ weights + biases, test_y)
    assert found.top1 > 0.9 > linear + 0.1
    assert found == attentive_probe(tokens_of(x), y, tokens_of(test_x), test_y, 3, heads=2, seed=0)


def test_the_recipe_is_chosen_without_a_look_at_the_test_labels_and_one_label_a_class_chooses_none(monkeypatch):
    monkeypatch.setattr(attentive, "FEWEST_STEPS", 20)
    x, y = marked(100, 0)
    one, other = (attentive_probe(tokens_of(x), y, tokens_of(x), labels, 3, 2, 0) for labels in (y, 2 - y))
    assert (one.rate, one.penalty, one.validation_top1) == (other.rate, other.penalty, other.validation_top1)
    few = torch.tensor([int((y == name).nonzero()[0]) for name in range(3)])
    assert not len(fifth_to_choose_by(y[few].numpy(), 0)[1])
    assert attentive_probe(tokens_of(x[few]), y[few], tokens_of(x), y, 3, 2, 0).validation_top1 is None


@pytest.mark.parametrize("kept", [attentive.KEPT, 0])
def test_tokens_that_are_too_many_for_memory_are_computed_and_equal(backbone, kept):
    vit, images = ViT.from_pretrained(backbone).eval(), load_images("shapes", "test", size=(16, 16))
    indices = torch.tensor([3, 4, 9, 30, 31]).numpy()
    tokens = Tokens(vit, images, indices, 2, Accelerator(cpu=True), batch_size=2, workers=0, kept=kept)
    assert (tokens.kept is None) == (kept == 0)
    [found] = tokens.batches([torch.tensor([4, 0])])
    pixels = torch.stack([pil_to_tensor(image) for image in images.read([31, 3])])
    with torch.no_grad():
        expected = vit(pixels / 127.5 - 1)[:, 1:]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
