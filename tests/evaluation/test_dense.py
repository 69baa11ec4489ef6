"""The dense probe's measures and fits, against counts by hand, torchmetrics and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsRegressor
from torchmetrics import JaccardIndex
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.segmentation import MeanIoU

from mpp.data.maps import IGNORED, class_shares, mean_depths
from mpp.evaluation.dense import FEWEST_STEPS, Neighbours, bank_of, fit_classes, fit_depths
from mpp.evaluation.dense_measures import Depth, Segmentation, enlarged, figures_of, intervals_of

CPU = torch.device("cpu")


def scored(classes: torch.Tensor, count: int) -> torch.Tensor:
    """Scores (count, H, W) whose highest is the class."""
    return torch.nn.functional.one_hot(classes, count).movedim(-1, 0).float()


def some_maps(images: int, classes: int):
    """Predicted and true classes of images of different sizes, with ignored pixels."""
    rng = torch.Generator().manual_seed(0)
    for number in range(images):
        size = (5 + number % 3, 7)
        true = torch.randint(0, classes, size, generator=rng)
        said = torch.where(torch.rand(size, generator=rng) < 0.6, true, torch.randint(0, classes, size, generator=rng))
        true[torch.rand(size, generator=rng) < 0.1] = IGNORED
        yield said, true


def test_iou_and_accuracy_are_those_of_a_count_by_hand():
    task = Segmentation(("sky", "road", "car", "tree"))
    true = torch.tensor([[0, 0, 0, 1], [1, 1, IGNORED, IGNORED]])
    said = torch.tensor([[0, 0, 1, 1], [1, 2, 2, 0]])
    tally = task.tally(scored(said, 4), true)[None]
    # sky: 2 of 3; road: 2 right, 3 true, 3 said: 2 of 4; car: 0 of 1; tree: neither there nor said, so left out
    np.testing.assert_allclose(task.iou(tally)[0], [2 / 3, 2 / 4, 0, np.nan])
    found = figures_of(task, tally)
    assert found["miou"] == pytest.approx((2 / 3 + 2 / 4 + 0) / 3)
    assert found["pixel_accuracy"] == pytest.approx(4 / 6)


def test_iou_and_accuracy_are_those_of_torchmetrics():
    names = tuple("abcdef")
    task = Segmentation(names)
    index = JaccardIndex(task="multiclass", num_classes=6, average="none", ignore_index=IGNORED)
    mean = JaccardIndex(task="multiclass", num_classes=6, ignore_index=IGNORED)
    accuracy = MulticlassAccuracy(6, average="micro", ignore_index=IGNORED)
    tallies = []
    for said, true in some_maps(9, 5):  # class 5 is never there
        tallies.append(task.tally(scored(said, 6), true))
        for metric in (index, mean, accuracy):
            metric.update(said[None], true[None])
    found = figures_of(task, np.stack(tallies))
    assert found["miou"] == pytest.approx(mean.compute().item(), abs=1e-6)
    assert found["pixel_accuracy"] == pytest.approx(accuracy.compute().item(), abs=1e-6)
    np.testing.assert_allclose(task.iou(np.sum(tallies, 0)[None])[0][:5], index.compute()[:5].numpy(), atol=1e-6)


def test_the_iou_of_one_whole_image_is_torchmetrics_mean_iou():
    said, true = next(some_maps(1, 4))
    true[true == IGNORED] = 0
    task = Segmentation(tuple("abcd"))
    metric = MeanIoU(num_classes=4, input_format="index")
    metric.update(said[None], true[None])
    found = figures_of(task, task.tally(scored(said, 4), true)[None])
    assert found["miou"] == pytest.approx(metric.compute().item(), abs=1e-6)


def test_depth_error_and_delta_are_those_of_a_count_by_hand():
    true = torch.tensor([[1.0, 2.0, 4.0], [1.0, float("nan"), 1.0]])
    said = torch.tensor([[1.0, 2.4, 5.1], [0.7, 9.0, -1.0]])
    tally = Depth().tally(said[None], true)[None]
    found = figures_of(Depth(), tally)
    assert found["depth_rmse"] == pytest.approx(np.sqrt((0 + 0.4**2 + 1.1**2 + 0.3**2 + 2**2) / 5), abs=1e-6)
    assert found["depth_delta1"] == pytest.approx(
        2 / 5
    )  # 1.2 is near enough; 1.275 and 1 / 0.7 are not, nor is below 0


def test_the_interval_of_many_images_is_that_of_the_normal_distribution():
    rng = np.random.default_rng(0)
    right = rng.binomial(100, rng.uniform(0.5, 0.9, 400)).astype(float)  # of 100 pixels of each of 400 images
    none = np.zeros(400)
    tallies = np.stack([[right, none], [none + 100, none], [right, 100 - right]]).transpose(2, 0, 1)  # (400, 3, 2)
    low, high = intervals_of(Segmentation(("a", "b")), tallies)["pixel_accuracy"]
    mean, half = right.mean() / 100, 1.96 * right.std() / 20 / 100
    assert low == pytest.approx(mean - half, abs=0.003)
    assert high == pytest.approx(mean + half, abs=0.003)
    squared = rng.gamma(2, 3, 400)
    depth = np.stack([np.full(400, 50.0), squared, np.zeros(400)], 1)
    low, high = intervals_of(Depth(), depth)["depth_rmse"]
    mean, half = squared.mean() / 50, 1.96 * squared.std() / 20 / 50
    assert low**2 == pytest.approx(mean - half, rel=0.03)
    assert high**2 == pytest.approx(mean + half, rel=0.03)


def test_shares_and_mean_depths_are_those_of_each_patch():
    found = np.array([[0, 0, 1, 1], [0, 1, 1, 1], [2, 2, IGNORED, IGNORED], [2, 2, IGNORED, 0]])
    np.testing.assert_allclose(class_shares(found, (2, 2), 3), [[0.75, 0.25, 0], [0, 1, 0], [0, 0, 1], [0.25, 0, 0]])
    depth = np.where(found == IGNORED, np.nan, found).astype(np.float32)
    np.testing.assert_allclose(mean_depths(depth, (2, 2)), [[0.25, 1], [1, 1], [2, 1], [0, 0.25]])
    odd = class_shares(np.arange(35).reshape(5, 7) % 3, (2, 3), 3)  # patches of unequal numbers of pixels
    np.testing.assert_allclose(odd.sum(1), 1, atol=1e-6)


def test_scores_are_enlarged_to_a_mask_of_any_size_and_keep_their_places():
    scores = torch.arange(6.0)[:, None]
    large = enlarged(scores, (2, 3), (40, 90))
    assert large.shape == (1, 40, 90)
    np.testing.assert_allclose(large[0, ::39, [14, 44, 74]].numpy(), [[0, 1, 2], [3, 4, 5]], atol=0.05)


def test_the_linear_layer_comes_near_scikit_learns_optimum():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(600, 6, generator=rng) * torch.tensor([1, 10, 0.1, 1, 1, 1]) + 3
    y = (x[:, 0] + x[:, 1] / 5 + torch.randn(600, generator=rng) > 3.6).long() + (x[:, 3] > 4).long()
    shares = torch.nn.functional.one_hot(y, 3).float()
    best = LogisticRegression(C=1e4, max_iter=1000).fit(((x - x.mean(0)) / x.std(0)).numpy(), y.numpy())
    ideal = -np.log(best.predict_proba(((x - x.mean(0)) / x.std(0)).numpy())[np.arange(600), y.numpy()]).mean()
    (linear,) = fit_classes(x, shares, [(3e-2, 1e-3)], 0, CPU)
    loss = torch.nn.functional.cross_entropy(linear(x), y).item()
    assert ideal - 1e-4 < loss < ideal + 0.02


def test_recipes_that_are_fitted_side_by_side_are_each_torchs_adamw():
    x, y = torch.randn(200, 4), torch.rand(200, 3)
    recipes = [(1e-3, 0.1), (1e-2, 5.0)]
    for (rate, decay), linear in zip(recipes, fit_classes(x, y, recipes, 3, CPU), strict=True):
        layer = torch.nn.Linear(4, 3)
        for part in layer.parameters():
            torch.nn.init.zeros_(part)
        optimiser = torch.optim.AdamW(layer.parameters(), lr=rate, weight_decay=decay)
        for step in range(FEWEST_STEPS):  # all patches fit into one batch
            warm = min(1.0, (step + 1) / (FEWEST_STEPS / 20)) * (1 + np.cos(np.pi * step / FEWEST_STEPS)) / 2
            optimiser.param_groups[0]["lr"] = rate * warm
            optimiser.zero_grad()
            scores = layer((x - x.mean(0)) / x.std(0, correction=0))
            (-(y * scores.log_softmax(-1)).sum() / y.sum()).backward()
            optimiser.step()
        torch.testing.assert_close(linear.weight, layer.weight.T.detach(), atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(linear.bias, layer.bias.detach(), atol=1e-4, rtol=1e-3)


def test_depths_are_scikit_learns_ridge_regression():
    x = torch.randn(300, 5) * 3 + 1
    y = x @ torch.tensor([1.0, -2, 0.5, 0, 3]) + torch.randn(300)
    depths = torch.stack([y, torch.ones(300)], 1)
    depths[::7, 1] = 0  # no pixel has a depth
    kept = depths[:, 1] > 0
    for penalty, linear in zip((0.01, 1.0), fit_depths(x, depths, (0.01, 1.0), CPU), strict=True):
        scaled = (x - x[kept].mean(0)) / x[kept].std(0, correction=0)
        theirs = Ridge(penalty * int(kept.sum())).fit(scaled[kept].numpy(), y[kept].numpy())
        np.testing.assert_allclose(linear(x)[:, 0].numpy(), theirs.predict(scaled.numpy()), atol=1e-3)


def test_neighbours_are_scikit_learns_with_the_same_weights():
    rng = np.random.default_rng(0)
    x, q, y = (rng.standard_normal(size).astype(np.float32) for size in ((80, 6), (20, 6), (80, 2)))
    theirs = KNeighborsRegressor(7, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07)).fit(x, y)
    mine = Neighbours.of(torch.from_numpy(x), torch.from_numpy(y), 7)(torch.from_numpy(q))
    np.testing.assert_allclose(mine.numpy(), theirs.predict(q), atol=1e-4)


def test_the_bank_holds_patches_with_pixels_that_count_and_no_more_than_asked_for():
    tokens, shares = torch.randn(50, 3), torch.zeros(50, 2)
    shares[:30, 1] = 0.6
    shares[:30, 0] = 0.4
    bank = bank_of(tokens, shares, 2, 5, 20, 0, CPU)
    assert bank.bank.shape == (20, 3)
    assert (bank.values == torch.tensor([0.0, 1.0])).all()  # the majority
    assert len(bank_of(tokens, shares, 2, 5, 100, 0, CPU).bank) == 30
