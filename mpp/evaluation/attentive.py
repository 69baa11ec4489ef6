"""The attentive probe: a learnt query looks for what tells the classes apart among an image's frozen patch tokens.

The mean of the patches, which linear probes see, dilutes what a few patches know; masked-image models are judged by
this probe for that reason (AIM, arXiv 2401.08541, section 4.1; CAPI, arXiv 2502.08769, section 4).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from einops import rearrange
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mpp.data.augment import View, normalise
from mpp.data.images import Images
from mpp.data.loader import SampleReader, Samples, as_it_is, leave_signals, no_draws
from mpp.data.randomness import Purpose, generator
from mpp.data.splits import fifth_to_choose_by
from mpp.evaluation.probes import top_k
from mpp.models.backbone import Backbone

KEPT = 2 << 30  # bytes of patch tokens that stay in memory: 65,536 images of 64 tokens of 128 numbers


BATCH, PASSES, FEWEST_STEPS = 256, 15, 300  # images a step; passes over the training images, or more for few of them


RECIPES = ((1e-3, 0.05), (3e-3, 0.05), (1e-2, 0.05), (1e-2, 0.5))  # learning rate, weight decay: one is chosen


class Tokens:
    """The patch tokens of a set's images `indices` after block `layer`: kept in memory if they take no more than `kept`
    bytes, else computed by batches whenever they are asked for."""

    def __init__(
        self,
        vit: Backbone,
        images: Images,
        indices: np.ndarray,
        layer: int,
        accelerator: Accelerator,
        batch_size: int,
        workers: int,
        kept: int = KEPT,
    ) -> None:
        self.vit, self.images, self.indices, self.layer = vit, images, indices, layer
        self.accelerator, self.workers, self.dim = accelerator, workers, vit.embed_dim
        self.kept: Tensor | None = None
        if 4 * len(indices) * vit.num_patches * vit.embed_dim <= kept:
            every = torch.arange(len(indices)).split(batch_size)
            self.kept = torch.cat([part.cpu() for part in self._computed(every)] or [torch.empty(0, 1, self.dim)])

    def batches(self, places: Sequence[Tensor]) -> Iterator[Tensor]:
        """The tokens (B, N, D) of the images at `places`, one batch for each, on the device."""
        if self.kept is None:
            yield from self._computed(places)
        else:
            for part in places:
                yield self.kept[part].to(self.accelerator.device)

    @torch.no_grad()
    def _computed(self, places: Sequence[Tensor]) -> Iterator[Tensor]:
        reader = SampleReader(self.images, View(self.vit.img_size), no_draws, 0, Purpose.EVAL, False, replace=False)
        samples = [Samples(self.indices[part.numpy()], 0, range(len(part))) for part in places]
        loader: DataLoader = DataLoader(
            reader,
            batch_sampler=cast(Any, samples),
            collate_fn=as_it_is,
            num_workers=self.workers,
            worker_init_fn=leave_signals,
        )
        for batch in loader:
            with self.accelerator.autocast():
                images = normalise(batch["images"].to(self.accelerator.device))
                tokens = self.vit.layers(images, [self.layer])[0][:, 1:]
            yield tokens.float()


class AttentivePooling(nn.Module):
    """Attention of one learnt query with several heads, then a linear layer: tokens (B, N, D) -> scores (B, classes).

    A query that does not depend on the image makes query and key matrix one vector a head, and values can be projected
    after they are summed; so nothing of the size of the tokens is computed but the weights of the sum (B, h, N).
    """

    mean: Tensor  # (D,) of training tokens, as `std`
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, classes: int, heads: int, rng: torch.Generator) -> None:
        super().__init__()
        dim = len(mean)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.queries = nn.Parameter(torch.randn(heads, dim, generator=rng) / math.sqrt(dim))
        self.values = nn.Parameter(torch.randn(heads, dim, dim // heads, generator=rng) / math.sqrt(dim))
        self.head = nn.Linear(dim // heads * heads, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        x = (tokens - self.mean) / self.std
        weights = torch.einsum("b n d, h d -> b h n", x, self.queries).softmax(-1)
        pooled = torch.einsum("b h d, h d v -> b h v", weights @ x, self.values)  # (B, h, D / h)
        return self.head(rearrange(pooled, "b h v -> b (h v)"))


@dataclass(frozen=True)
class AttentiveProbe:
    """What the probe chose and how good it is, in 0..1."""

    top1: float
    rate: float
    penalty: float
    validation_top1: float | None  # on a fifth of the training labels; None: one label a class leaves none


def attentive_probe(
    train: Tokens, labels: Tensor, test: Tokens, test_labels: Tensor, classes: int, heads: int, seed: int
) -> AttentiveProbe:
    """Choose a recipe on a fifth of the training labels, train with all of them, and measure on the test images."""
    rest, held = (torch.from_numpy(part) for part in fifth_to_choose_by(labels.numpy(), seed))
    recipe, chosen = RECIPES[0], None
    if len(held):
        candidates = fit(train, labels, rest, classes, heads, RECIPES, seed)
        accuracies = [top_k(scores, labels[held]) for scores in scores_of(candidates, train, held)]
        best = int(np.argmax(accuracies))
        recipe, chosen = RECIPES[best], accuracies[best]
    probe = fit(train, labels, torch.arange(len(labels)), classes, heads, [recipe], seed)
    scores = scores_of(probe, test, torch.arange(len(test_labels)))[0]
    return AttentiveProbe(top_k(scores, test_labels), *recipe, chosen)


def fit(
    tokens: Tokens,
    labels: Tensor,
    places: Tensor,
    classes: int,
    heads: int,
    recipes: Sequence[tuple[float, float]],
    seed: int,
) -> list[AttentivePooling]:
    """Train a probe for each recipe, side by side on the same batches, on the images at `places`: AdamW, cosine decay
    after a warm-up of a twentieth of the steps."""
    device = tokens.accelerator.device
    batch = min(BATCH, len(places))
    steps = max(FEWEST_STEPS, PASSES * len(places) // batch)
    batches: list[Tensor] = []
    while len(batches) < steps:
        order = generator(seed, Purpose.ORDER, len(batches)).permutation(len(places))
        batches += places[torch.from_numpy(order)].split(batch)[: len(places) // batch]  # of equal size
    batches = batches[:steps]
    mean, std = _statistics(tokens, batches[: max(1, 2048 // batch)])
    first = AttentivePooling(mean, std, classes, heads, torch.Generator().manual_seed(seed)).to(device)
    probes = [copy.deepcopy(first) for _ in recipes]
    optimisers = [
        torch.optim.AdamW(probe.parameters(), lr=rate, weight_decay=penalty)
        for probe, (rate, penalty) in zip(probes, recipes, strict=True)
    ]
    for step, (part, x) in enumerate(zip(batches, tokens.batches(batches), strict=True)):
        share = min(1.0, (step + 1) / (steps / 20)) * (1 + math.cos(math.pi * step / steps)) / 2
        y = labels[part].to(device)
        for probe, optimiser, (rate, _) in zip(probes, optimisers, recipes, strict=True):
            optimiser.param_groups[0]["lr"] = rate * share
            optimiser.zero_grad()
            F.cross_entropy(probe(x), y).backward()
            optimiser.step()
    return probes


@torch.no_grad()
def scores_of(probes: Sequence[AttentivePooling], tokens: Tokens, places: Tensor) -> list[Tensor]:
    """The scores (M, classes) that each probe gives the images at `places`, on the CPU."""
    found = [[probe(x).cpu() for probe in probes] for x in tokens.batches(places.split(BATCH))]
    return [torch.cat(column) for column in zip(*found, strict=True)]


def _statistics(tokens: Tokens, batches: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D,) of the tokens of some batches."""
    sums, count = torch.zeros(2, tokens.dim, dtype=torch.float64), 0  # of values, and of their squares
    for part in tokens.batches(batches):
        x = rearrange(part.cpu().double(), "b n d -> (b n) d")
        sums, count = sums + torch.stack([x.sum(0), x.square().sum(0)]), count + len(x)
    mean, square = sums / count
    return mean.float(), (square - mean.square()).clamp_min(1e-12).sqrt().float()
