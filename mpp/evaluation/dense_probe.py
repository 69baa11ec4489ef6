"""Frozen patch tokens and what they are to tell, gathered from images; predictors chosen, fitted and measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from einops import rearrange, repeat
from torch import Tensor
from tqdm.auto import tqdm

from mpp.data.augment import normalise
from mpp.data.loader import Batch
from mpp.data.maps import Mapped
from mpp.data.randomness import Purpose, generator
from mpp.evaluation.dense import PENALTIES, RECIPES, Linear, Predictor, fit_classes, fit_depths
from mpp.evaluation.dense_measures import Depth, Segmentation, Task, enlarged
from mpp.models.backbone import Backbone

SEES = {"linear": "tokens", "knn": "tokens", "raw": "raw", "raw_knn": "raw", "constant": "raw", "ceiling": "targets"}
"""What each predictor reads of a patch: its token, its pixels, or what is to be predicted."""


@dataclass(frozen=True)
class Patches:
    """What some images' patches are, all (M, N, ...): tokens, pixels, and targets as `Task.targets` gives them."""

    tokens: Tensor
    raw: Tensor
    targets: Tensor
    places: np.ndarray  # (M,) of the images in their set

    def flat(self, sees: str, images: Tensor) -> Tensor:
        """One kind of numbers of the patches of some of the images: (M * N, ...)."""
        return rearrange(getattr(self, sees)[images], "m n d -> (m n) d")


@dataclass
class Measured:
    """What was found of a set of images."""

    tallies: dict[str, list[np.ndarray]] = field(default_factory=dict)  # of each predictor: of each image
    examples: list[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]] = field(default_factory=list)
    """Some images (C, H, W), their maps and what predictors say of each pixel."""


@torch.no_grad()
def look_at(vit: Backbone, batch: Batch, layer: int, mapped: Mapped, task: Task, accelerator: Accelerator) -> Patches:
    """The patches of a batch, on the device."""
    images = normalise(batch["images"].to(accelerator.device))
    with accelerator.autocast():
        tokens = vit.layers(images, [layer])[0][:, 1:].float()
    raw = rearrange(images.float(), "b c (h p) (w q) -> b (h w) (p q c)", p=vit.patch_size, q=vit.patch_size)
    places = batch["index"].numpy()
    targets = [task.targets(mapped.map(place, vit.img_size), vit.grid) for place in places]
    return Patches(tokens, raw, torch.from_numpy(np.stack(targets)).to(accelerator.device), places)


def gather(found: Iterable[Patches], total: int) -> Patches:
    """The patches of a whole set, on the CPU; `total` images are for the progress bar."""
    parts: list[Patches] = []
    with tqdm(total=total, unit="image", desc="features") as bar:
        for part in found:
            parts.append(Patches(part.tokens.cpu(), part.raw.cpu(), part.targets.cpu(), part.places))
            bar.update(len(part.places))
    tokens, raw, targets = (torch.cat([getattr(p, name) for p in parts]) for name in ("tokens", "raw", "targets"))
    return Patches(tokens, raw, targets, np.concatenate([part.places for part in parts]))


def fit_linear(
    patches: Patches, sees: str, mapped: Mapped, vit: Backbone, task: Task, seed: int, device: torch.device
) -> tuple[Linear, tuple[float, ...]]:
    """A linear layer fitted on all images, with the recipe that is best on a fifth of them; and the recipe."""
    count = len(patches.places)
    order = torch.from_numpy(generator(seed, Purpose.SPLIT, 11).permutation(count))
    held, rest = order[: max(1, count // 5)].sort().values, order[max(1, count // 5) :].sort().values

    def fit(images: Tensor, recipes: list[tuple[float, ...]]) -> list[Linear]:
        x, y = patches.flat(sees, images), patches.flat("targets", images)
        if isinstance(task, Segmentation):
            return fit_classes(x, y, [(rate, decay) for rate, decay in recipes], seed, device)
        return fit_depths(x, y, [penalty for (penalty,) in recipes], device)

    recipes: list[tuple[float, ...]] = [*RECIPES] if isinstance(task, Segmentation) else [(p,) for p in PENALTIES]
    candidates = fit(rest, recipes)
    tallies: list[list[np.ndarray]] = [[] for _ in candidates]
    for image in held.tolist():
        true = torch.from_numpy(mapped.map(patches.places[image], vit.img_size)).to(device)
        tokens = getattr(patches, sees)[image].to(device)
        for candidate, mine in zip(candidates, tallies, strict=True):
            mine.append(task.tally(enlarged(candidate(tokens), vit.grid, true.shape), true))
    recipe = recipes[task.best(np.array(tallies))]
    return fit(torch.arange(count), [recipe])[0], recipe


def constant(patches: Patches, task: Task) -> Predictor:
    """The baseline that says the same of every pixel: the commonest class of the training pixels, or their mean
    depth."""
    every = patches.flat("targets", torch.arange(len(patches.places)))
    if isinstance(task, Segmentation):
        said = torch.nn.functional.one_hot(every.sum(0).argmax(), task.outputs).float()
    else:
        said = (every[:, :1] * every[:, 1:]).sum(0) / every[:, 1].sum()
    return lambda tokens: repeat(said.to(tokens.device), "k -> m k", m=len(tokens))


def ceiling(task: Task) -> Predictor:
    """What the targets would give themselves: the true shares of the classes in each patch, or its mean depth."""
    return lambda targets: targets[:, : task.outputs]


@torch.no_grad()
def measure(
    predictors: Mapping[str, Predictor],
    found: Iterable[tuple[Batch, Patches]],
    mapped: Mapped,
    vit: Backbone,
    task: Task,
    examples: int,
) -> Measured:
    """The tallies of every predictor on every image, and what they say of the first `examples`."""
    result = Measured({name: [] for name in predictors})
    with tqdm(total=len(mapped), unit="image", desc="measured") as bar:
        for batch, patches in found:
            scores = {name: _scores(p, getattr(patches, SEES[name])) for name, p in predictors.items()}
            for number, place in enumerate(patches.places):
                true = torch.from_numpy(mapped.map(place, vit.img_size))
                here, pixels = true.to(patches.tokens.device), {}
                for name, said in scores.items():
                    large = enlarged(said[number], vit.grid, true.shape)
                    result.tallies[name].append(task.tally(large, here))
                    if len(result.examples) < examples:
                        pixels[name] = task.shown(large)
                if len(result.examples) < examples:
                    result.examples.append((batch["images"][number].numpy(), true.numpy(), pixels))
            bar.update(len(patches.places))
    return result


def _scores(predictor: Predictor, patches: Tensor) -> Tensor:
    """What a predictor says of the patches (B, N, D) of a batch: (B, N, outputs)."""
    return rearrange(predictor(rearrange(patches, "b n d -> (b n) d")), "(b n) k -> b n k", b=len(patches))


def task_of(names: list[str]) -> Task:
    """What is predicted: classes with these names, or depths if there are none."""
    return Segmentation(tuple(names)) if names else Depth()
