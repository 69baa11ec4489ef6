"""Measures of frozen features: logistic regression, few-shot ridge regression, k-NN and effective rank.

All take the backbone's features (M, D) and class numbers (M,) int64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from tqdm.auto import tqdm

from mpp.data.augment import normalise
from mpp.data.loader import Batch
from mpp.data.splits import fifth_to_choose_by
from mpp.errors import UserError
from mpp.models.backbone import Backbone, pool_tokens

FEW_SHOT_PENALTY = 2.0**10  # of ridge regression, on the summed loss: big_vision's evaluators/fewshot_lsr.py
_QUERIES = 1024  # of k-NN at a time


@torch.no_grad()
def extract(
    vit: Backbone, batches: Iterable[Batch], pool: str, layers: Sequence[int], accelerator: Accelerator, total: int
) -> tuple[list[Tensor], np.ndarray]:
    """Features of a set's images, float32 (M, D) on the CPU for each layer, and the images' indices (M,), sorted.

    Each process computes its own batches; all return the whole set, each image exactly once. `total` is for the
    progress bar.
    """
    vit = vit.to(accelerator.device).eval()
    mine: list[tuple[np.ndarray, np.ndarray]] = []
    with tqdm(total=total, unit="image", desc="features", disable=not accelerator.is_main_process) as bar:
        for batch in batches:
            mine.append((batch["index"].numpy(), pooled(vit, batch["images"], pool, layers, accelerator).numpy()))
            bar.update(len(batch["index"]) * accelerator.num_processes)
    nothing = [(np.empty(0, np.int64), np.empty((len(layers), 0, vit.embed_dim), np.float32))]
    every = (gather_object(mine) if accelerator.num_processes > 1 else mine) or nothing
    indices = np.concatenate([index for index, _ in every])
    order = np.argsort(indices)
    features = np.concatenate([part for _, part in every], axis=1)[:, order]
    return [torch.from_numpy(layer) for layer in features], indices[order]


def pooled(vit: Backbone, images: Tensor, pool: str, layers: Sequence[int], accelerator: Accelerator) -> Tensor:
    """Features of uint8 images (B, C, H, W) after each layer: float32 (layers, B, D) on the CPU."""
    with accelerator.autocast():
        outputs = vit.layers(normalise(images.to(accelerator.device)), layers)
    return torch.stack([pool_tokens(tokens, pool) for tokens in outputs]).float().cpu()


@dataclass(frozen=True)
class Scaler:
    """Standardises features: the training features get mean 0 and standard deviation 1, constant ones mean 0 alone."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Scaler:
        """Take mean and standard deviation from training features (M, D)."""
        mean, std = features.double().mean(0), features.double().std(0, correction=0)
        # in single precision, rounding makes a constant vary by some 1e-7 of its size
        return cls(mean.float(), torch.where(std > 1e-6 * mean.abs().clamp_min(1), std, 1.0).float())

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.std


def refuse_useless(features: Tensor, init: str) -> None:
    """Raise UserError if no regression can learn from features (M, D): not finite, or the same for every image."""
    if not features.isfinite().all():
        raise UserError(
            f"--init {init}: its features are not finite; its weights are damaged, or bf16 is too coarse: "
            f"--precision fp32"
        )
    if not (features - features[:1]).abs().max() > 1e-6 * features.abs().max():
        what = "all zero" if not features.any() else "the same for every image"
        raise UserError(
            f"--init {init}: its features are {what}, so nothing can be learnt from them; its weights are damaged, "
            f"or all images are alike"
        )


def logistic_regression(features: Tensor, labels: Tensor, classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression by L-BFGS: weights (D, classes) and biases (classes,).

    Minimises the mean cross-entropy + penalty / 2 * |weights|^2; scikit-learn's C is 1 / (M * penalty).
    """
    x = features.double()
    weights = torch.zeros(x.shape[1], classes, dtype=x.dtype, requires_grad=True)
    biases = torch.zeros(classes, dtype=x.dtype, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weights, biases], max_iter=1000, tolerance_grad=1e-6, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(x @ weights + biases, labels) + penalty / 2 * weights.square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    return weights.detach().to(features.dtype), biases.detach().to(features.dtype)


def choose_penalty(
    fit: Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]],
    features: Tensor,
    labels: Tensor,
    penalties: Sequence[float],
    seed: int,
) -> tuple[float, float | None]:
    """The L2 penalty with the best accuracy on a held-out fifth of the training images, and that accuracy. `fit` maps
    features, labels, penalty to weights, biases. One label a class leaves none held out: the middle penalty, None."""
    rest, held = fifth_to_choose_by(labels.numpy(), seed)
    if not len(held):
        return penalties[len(penalties) // 2], None
    best = (0.0, -1.0)
    for penalty in penalties:
        weights, biases = fit(features[rest], labels[rest], penalty)
        accuracy = top_k(features[held] @ weights + biases, labels[held])
        if accuracy > best[1]:
            best = (penalty, accuracy)
    return best


def ridge(features: Tensor, targets: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Closed-form ridge regression with an intercept, as the ViT paper's few-shot probe: weights (D, K), biases (K,).

    Minimises |features @ weights + biases - targets|^2 + penalty * |weights|^2. Solves a D x D or an M x M system,
    whichever is smaller.
    """
    x, y = features.double(), targets.double()
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    if x.shape[1] <= x.shape[0]:
        weights = torch.linalg.solve(x.T @ x + penalty * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
    else:
        weights = x.T @ torch.linalg.solve(x @ x.T + penalty * torch.eye(x.shape[0], dtype=x.dtype), y)
    return weights.to(features.dtype), (y_mean - x_mean @ weights).to(features.dtype)


def ridge_top1(x: Tensor, y: Tensor, test_x: Tensor, test_y: Tensor, classes: int, penalty: float) -> float:
    """Top-1 accuracy on test features of ridge regression onto {-1, +1}; the training features set the scaling."""
    scaler = Scaler.of(x)
    weights, biases = ridge(scaler(x), one_vs_rest(y, classes), penalty)
    return top_k(scaler(test_x) @ weights + biases, test_y)


def one_vs_rest(labels: Tensor, classes: int) -> Tensor:
    """Targets in {-1, +1}: (M,) -> (M, classes)."""
    return F.one_hot(labels, classes).float() * 2 - 1


def knn(features: Tensor, labels: Tensor, queries: Tensor, classes: int, k: int = 20) -> Tensor:
    """Votes (Q, classes) of the `k` nearest training features. Similarity is the cosine; a vote weighs
    exp(similarity / 0.07), as in arXiv 1805.01978."""
    x, q = F.normalize(features, dim=1), F.normalize(queries, dim=1)
    votes = torch.zeros(len(q), classes)
    for (weights, nearest), rows in zip(weighted_neighbours(x, q, k), votes.split(_QUERIES), strict=True):
        rows.scatter_add_(1, labels[nearest], weights)
    return votes


def weighted_neighbours(x: Tensor, queries: Tensor, k: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The `k` nearest of `x` (M, D) to each of the next 1,024 queries (Q, D), all of length 1: the weights of their
    votes (Q, k), exp(similarity / 0.07), and their numbers (Q, k)."""
    for part in queries.split(_QUERIES):
        similarity, nearest = (part @ x.T).topk(min(k, len(x)), dim=1)
        yield (similarity / 0.07).exp(), nearest


def top_k(scores: Tensor, labels: Tensor, k: int = 1) -> float:
    """Top-k accuracy in 0..1: the share of rows of scores (M, classes) with their label among the `k` highest."""
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return (best == labels[:, None]).any(dim=1).double().mean().item()


def effective_rank(features: Tensor) -> float:
    """RankMe (arXiv 2210.02885): exp of the entropy of the features' normalised singular values, in 1..min(M, D)."""
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum().clamp_min(torch.finfo(torch.float64).tiny) + 1e-7
    return float((-(shares * shares.log()).sum()).exp())
