"""The dense probe: a linear layer and k-NN on frozen patch tokens, for the class or the depth of every pixel.

CAPI (arXiv 2502.08769, section 4) and DINOv3 (arXiv 2508.10104, section 6.1) judge features so. The linear layer learns
from the share of a patch's pixels that each class has. Its loss is the cross-entropy of all pixels, if a patch says the
same of each of its own; it costs as much as one pixel a patch, and a mask of any size costs the same. (DINOv3 enlarges
the scores to the mask in training, too. Here they are enlarged when they are measured.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mpp.data.randomness import Purpose, generator
from mpp.evaluation.probes import weighted_neighbours

RECIPES = tuple(product((3e-4, 1e-3, 3e-3, 1e-2, 3e-2), (1e-3, 1e-1)))  # learning rate, weight decay: one is chosen
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of ridge regression, a sample
BATCH, PASSES, FEWEST_STEPS = 1024, 10, 300  # patches a step; passes over the patches, or more for few of them

Predictor = Callable[[Tensor], Tensor]  # tokens (M, D) -> scores (M, outputs)


@dataclass(frozen=True)
class Linear:
    """A linear layer on standardised tokens."""

    mean: Tensor  # (D,) of the training tokens, as `std`
    std: Tensor
    weight: Tensor  # (D, K)
    bias: Tensor  # (K,)

    def __call__(self, tokens: Tensor) -> Tensor:
        return (tokens - self.mean) / self.std @ self.weight + self.bias


@dataclass(frozen=True)
class Neighbours:
    """k-NN by the cosine: the mean of what the nearest training patches are, weighted as in `probes.knn`."""

    bank: Tensor  # (M, D), of length 1
    values: Tensor  # (M, K): the majority class as 0 and 1, or the depth
    k: int

    @classmethod
    def of(cls, tokens: Tensor, values: Tensor, k: int) -> Neighbours:
        return cls(F.normalize(tokens, dim=1), values, k)

    def __call__(self, tokens: Tensor) -> Tensor:
        found = []
        for weights, nearest in weighted_neighbours(self.bank, F.normalize(tokens, dim=1), self.k):
            shares = weights / weights.sum(1, keepdim=True)
            found.append(torch.einsum("q n, q n k -> q k", shares, self.values[nearest]))
        return torch.cat(found)


def statistics(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D,) of tokens (M, D); of constant features the deviation is 1."""
    mean, square = torch.zeros(2, tokens.shape[1], dtype=torch.float64)
    for part in tokens.split(1 << 15):
        mean, square = mean + part.double().sum(0), square + part.double().square().sum(0)
    mean, square = mean / len(tokens), square / len(tokens)
    std = (square - mean.square()).clamp_min(0).sqrt()
    return mean.float(), torch.where(std > 1e-5 * mean.abs().clamp_min(1), std, 1.0).float()


def fit_classes(
    tokens: Tensor, shares: Tensor, recipes: Sequence[tuple[float, float]], seed: int, device: torch.device
) -> list[Linear]:
    """A linear layer for each recipe, side by side on the same batches: tokens (M, D) and the shares of classes of
    their pixels (M, K). AdamW from zero, cosine decay after a warm-up of a twentieth of the steps."""
    mean, std = (part.to(device) for part in statistics(tokens))
    kept = shares.sum(1).nonzero()[:, 0]  # others have no pixel that counts
    batch, steps = min(BATCH, len(kept)), steps_for(len(kept))
    rates, decays = (torch.tensor(each, device=device)[:, None, None] for each in zip(*recipes, strict=True))
    weight = torch.zeros(len(recipes), tokens.shape[1], shares.shape[1], device=device, requires_grad=True)
    bias = torch.zeros(len(recipes), 1, shares.shape[1], device=device, requires_grad=True)
    optimiser = torch.optim.Adam([weight, bias], lr=1.0)
    for step, part in enumerate(_batches(kept, batch, steps, seed)):
        warm = min(1.0, (step + 1) / (steps / 20)) * (1 + math.cos(math.pi * step / steps)) / 2
        x, y = (tokens[part].to(device) - mean) / std, shares[part].to(device)
        scores = torch.einsum("m d, r d k -> r m k", x, weight) + bias
        loss = -(y * scores.log_softmax(-1)).sum((1, 2)) / y.sum()  # (recipes,): they do not touch one another
        optimiser.zero_grad()
        loss.sum().backward()
        before = [part.detach().clone() for part in (weight, bias)]
        optimiser.step()
        with torch.no_grad():  # AdamW at each recipe's rate: Adam's step is in proportion to it
            for now, then in zip((weight, bias), before, strict=True):
                now.copy_(then * (1 - warm * rates * decays) + warm * rates * (now - then))
    return [Linear(mean, std, w, b[0]) for w, b in zip(weight.detach(), bias.detach(), strict=True)]


def steps_for(patches: int) -> int:
    """The steps of a fit on so many patches."""
    return max(FEWEST_STEPS, PASSES * patches // min(BATCH, patches))


def _batches(kept: Tensor, batch: int, steps: int, seed: int) -> Iterable[Tensor]:
    """The numbers of the patches of each step: a new permutation each pass, in batches of equal size."""
    step, passes = 0, 0
    while step < steps:
        order = kept[torch.from_numpy(generator(seed, Purpose.ORDER, passes).permutation(len(kept)))]
        for part in order.split(batch)[: min(steps - step, len(kept) // batch)]:
            yield part
            step += 1
        passes += 1


def fit_depths(tokens: Tensor, depths: Tensor, penalties: Sequence[float], device: torch.device) -> list[Linear]:
    """Ridge regression in closed form for each penalty (a sample): tokens (M, D), mean depths and shares of pixels with
    a depth (M, 2). One pass over the tokens serves all penalties; patches without a depth are left out."""
    kept = depths[:, 1] > 0
    tokens, y = tokens[kept], depths[kept, 0].double()
    mean, std = statistics(tokens)
    dim, centre = tokens.shape[1], y.mean()
    gram, moment = torch.zeros(dim, dim, dtype=torch.float64), torch.zeros(dim, dtype=torch.float64)
    for part, target in zip(tokens.split(1 << 15), y.split(1 << 15), strict=True):
        x = ((part - mean) / std).double()
        gram, moment = gram + x.T @ x, moment + x.T @ (target - centre)
    found = []
    for penalty in penalties:
        weight = torch.linalg.solve(gram + penalty * len(y) * torch.eye(dim, dtype=torch.float64), moment)
        parts = (mean, std, rearrange(weight.float(), "d -> d 1"), rearrange(centre.float(), " -> 1"))
        found.append(Linear(*(part.to(device) for part in parts)))
    return found


def bank_of(
    tokens: Tensor, targets: Tensor, classes: int, k: int, most: int, seed: int, device: torch.device
) -> Neighbours:
    """k-NN among training patches, `most` of them: tokens (M, D) and shares of classes (M, classes), or of depth
    (`classes` 1) mean depths and shares of pixels (M, 2)."""
    kept = (targets.sum(1) if classes > 1 else targets[:, 1]).nonzero()[:, 0]
    if len(kept) > most:
        order = generator(seed, Purpose.SPLIT, 10).permutation(len(kept))[:most]
        kept = kept[torch.from_numpy(order).sort().values]
    values = targets[kept, :1] if classes == 1 else F.one_hot(targets[kept].argmax(1), classes).float()
    return Neighbours.of(tokens[kept].to(device), values.to(device), k)
