"""The linear-probe command: features extracted once, then three classifiers on them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from mpp.commands.downstream import block_number, open_downstream
from mpp.commands.dry_run import forward_sample, told_model
from mpp.commands.labelled import tell_classes
from mpp.config.command_line import write_toml
from mpp.config.commands import LinearProbe
from mpp.config.options import Probe
from mpp.data.batches import refuse_too_many
from mpp.data.identity import keep
from mpp.data.images import Images
from mpp.data.loader import Batch
from mpp.data.splits import at_most, draw_labels, fifth_to_choose_by
from mpp.data.survey import noted
from mpp.errors import UserError, counted
from mpp.evaluation.attentive import Tokens, attentive_probe
from mpp.evaluation.intervals import interval_of, told_interval
from mpp.evaluation.probes import (
    FEW_SHOT_PENALTY,
    Scaler,
    choose_penalty,
    effective_rank,
    extract,
    knn,
    logistic_regression,
    one_vs_rest,
    pooled,
    refuse_useless,
    ridge,
    ridge_top1,
    top_k,
)
from mpp.methods.classify import batches_of
from mpp.models.backbone import Backbone
from mpp.models.backbones import digest_of
from mpp.run.folder import finish, prepared_output
from mpp.run.machine import gather_dicts, workers_of
from mpp.run.measured import told_time

_FITTED = 4096  # rows of the fit that is measured by --dry-run

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # of logistic regression, a sample


RIDGE_PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)  # of ridge regression on all labels, in all


def run_probe(config: LinearProbe, accelerator: Accelerator) -> dict[str, Any]:
    """Extract, fit, evaluate, report; returns what result.json says."""
    with prepared_output(config, "linear_probe", False, accelerator) as output:
        return probe_into(output, config, accelerator)


def probe_into(output: Path, config: LinearProbe, accelerator: Accelerator) -> dict[str, Any]:
    """Extract, fit, evaluate, report, all into a folder of its own."""
    started = time.perf_counter()
    vit, train, test = open_downstream(config, accelerator)
    config = noted(config, train)
    layers = probe_layers(config.probe.layer, vit.depth)
    tell_classes(config.data, train, test, accelerator)
    refuse_more_shots_than_images(config.probe, train)
    test = at_most(test, config.probe.eval_images)
    if config.dry_run:
        return rehearse_probe(output, vit, train, test, layers, config, accelerator)
    data = keep(output, train, test, accelerator, labels=True)
    classes = len(train.label_names or [])
    unreadable: dict[str, str] = {}
    x, y, read = features_of(train, vit, layers, config, accelerator, unreadable)
    test_x, test_y, test_read = features_of(test, vit, layers, config, accelerator, unreadable)
    unreadable = gather_dicts(accelerator, unreadable)
    if not accelerator.is_main_process:
        return {}

    chosen = choose_layer(x, y, classes, config.seed) if len(layers) > 1 else 0
    refuse_useless(x[chosen], config.init)
    scaler = Scaler.of(x[chosen])
    fit, held = scaler(x[chosen]), scaler(test_x[chosen])
    result: dict[str, Any] = {"command": "linear_probe", "init": config.init, "layer": layers[chosen]}
    result |= {"pool": config.model.pool, "labels": len(y), "classes": classes, "eval_images": len(test_y)}
    result |= {"init_sha256": digest_of(config.init), "data": data}
    result |= {"effective_rank": effective_rank(x[chosen])}
    result |= logistic_scores(fit, y, held, test_y, classes, config.seed)
    result |= few_shot_scores(x[chosen], y, test_x[chosen], test_y, classes, config)
    result["eval/top1_interval"] = interval_of(result["eval/top1"], len(test_y))
    votes = knn(x[chosen], y, test_x[chosen], classes, config.probe.neighbours)
    result |= {"eval/knn_top1": top_k(votes, test_y), "unreadable_images": unreadable}
    if config.probe.attentive:
        workers = workers_of(config.data, accelerator)
        tokens, test_tokens = (
            Tokens(vit, images, indices, layers[chosen], accelerator, config.batch_size, workers)
            for images, indices in ((train, read), (test, test_read))
        )
        found = attentive_probe(tokens, y, test_tokens, test_y, classes, vit.num_heads, config.seed)
        result |= {"eval/attentive_top1": found.top1, "attentive_validation_top1": found.validation_top1}
        result |= {"attentive_rate": found.rate, "attentive_penalty": found.penalty}
    result["seconds"] = round(time.perf_counter() - started, 1)
    output.mkdir(parents=True, exist_ok=True)
    write_toml(config, output / "config.toml")
    result = finish(output, config, result)
    print(summary(config, result, output))
    return result


def refuse_more_shots_than_images(probe: Probe, images: Images) -> None:
    """Raise UserError if a class has fewer images than labels a class are asked for."""
    shots = probe.shots
    if not shots or shots == Probe().shots:  # of the default ones, those that are too many are left out
        return
    counts = np.bincount(images.labels(range(len(images))), minlength=len(images.label_names or []))
    if max(shots) > counts.min():
        name = (images.label_names or [])[int(counts.argmin())]
        raise UserError(
            f"--probe.shots {max(shots)} is more than the {counts.min():,} training images of class {name}; ask for "
            f"{counts.min():,} at most"
        )


def probe_layers(layer: str, depth: int) -> list[int]:
    """Block numbers from --probe.layer."""
    if layer == "all":
        return list(range(1, depth + 1))
    return [block_number("--probe.layer", layer, depth, "last, all")]


def features_of(
    images: Images,
    vit: Backbone,
    layers: Sequence[int],
    config: LinearProbe,
    accelerator: Accelerator,
    unreadable: dict[str, str],
) -> tuple[list[Tensor], Tensor, np.ndarray]:
    """Features of each layer, (M, D), the labels (M,), and the images' indices (M,), of a whole set."""
    left_out: dict[str, str] = {}
    batches = batches_of(images, vit, config.data, config.batch_size, accelerator, left_out, False)
    features, indices = extract(vit, batches, config.model.pool, layers, accelerator, total=len(images))
    refuse_too_many(len(images) - len(indices), len(images), config.data, left_out)
    unreadable |= left_out
    return features, torch.from_numpy(images.labels(indices.tolist())), indices


def rehearse_probe(
    output: Path,
    vit: Backbone,
    train: Images,
    test: Images,
    layers: Sequence[int],
    config: LinearProbe,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Print what the probe would take, from features of a sample and a fit on them; returns the numbers."""
    unreadable: dict[str, str] = {}
    vit.to(accelerator.device).eval()
    kept: dict[int, tuple[Tensor, Tensor]] = {}  # by the first image's number

    def features(batch: Batch) -> None:
        x = pooled(vit, batch["images"], config.model.pool, layers, accelerator)[-1]
        kept[int(batch["index"][0])] = x, batch["labels"]

    batches = batches_of(train, vit, config.data, config.batch_size, accelerator, unreadable, True)
    found = forward_sample(batches, features, len(train) + len(test), accelerator)
    classes, names = len(train.label_names or []), train.label_names or []
    fits, rows_fitted = 0.0, min(len(train), _FITTED)
    if kept and accelerator.is_main_process:
        x, y = map(torch.cat, zip(*kept.values(), strict=True))
        again = torch.arange(rows_fitted) % len(x)  # as many rows as there will be; the sample may have fewer
        began = time.perf_counter()
        logistic_regression(Scaler.of(x)(x)[again], y[again], classes, PENALTIES[2])
        # of four fifths for each penalty, then of all
        fits = (time.perf_counter() - began) / rows_fitted * len(train) * (1 + 0.8 * len(PENALTIES))
    rows = {
        "images": f"{len(train):,} to fit on, {len(test):,} to measure on, of {counted(classes, 'class', 'classes')}",
        "model": told_model(vit),
        "fits": f"{told_time(fits)} for logistic regression of {counted(vit.embed_dim, 'feature')}, by one of "
        f"{rows_fitted:,} rows" + ("; the attentive probe comes on top" if config.probe.attentive else ""),
    }
    captions = [names[label] for label in found.first["labels"].tolist()] if found.first else []
    return found.told(output, rows, fits, captions, unreadable, config, config.data, accelerator)


def choose_layer(features: list[Tensor], labels: Tensor, classes: int, seed: int) -> int:
    """The place in `features` of the layer whose ridge regression is best on a fifth of the training labels."""
    rest, held = fifth_to_choose_by(labels.numpy(), seed)
    if not len(held):
        raise UserError(
            "--probe.layer all chooses on held-out training labels, and one a class leaves none: name a layer"
        )
    accuracies = [
        ridge_top1(layer[rest], labels[rest], layer[held], labels[held], classes, FEW_SHOT_PENALTY)
        for layer in features
    ]
    return int(np.argmax(accuracies))


def logistic_scores(
    x: Tensor, y: Tensor, test_x: Tensor, test_y: Tensor, classes: int, seed: int
) -> dict[str, float | None]:
    """Logistic regression with the penalty chosen on a fifth of the training labels, then fitted on all of them."""

    def fit(some_x: Tensor, some_y: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
        return logistic_regression(some_x, some_y, classes, penalty)

    penalty, held_out = choose_penalty(fit, x, y, PENALTIES, seed)
    weights, biases = fit(x, y, penalty)
    scores = test_x @ weights + biases
    found = {"eval/top1": top_k(scores, test_y), "eval/top5": top_k(scores, test_y, 5)}
    return found | {"logistic_penalty": penalty, "logistic_validation_top1": held_out}  # none: nothing to choose by


def few_shot_scores(
    x: Tensor, y: Tensor, test_x: Tensor, test_y: Tensor, classes: int, config: LinearProbe
) -> dict[str, float]:
    """The paper's few-shot probe at each number of shots (mean and deviation over draws), and with all labels."""
    found = {}
    smallest = int(torch.bincount(y, minlength=classes).min())
    for shots in config.probe.shots:
        if shots > smallest:
            continue
        accuracies = []
        for draw in range(config.probe.draws):
            chosen = torch.from_numpy(draw_labels(y.numpy(), shots * classes, config.seed, draw))
            accuracies.append(ridge_top1(x[chosen], y[chosen], test_x, test_y, classes, FEW_SHOT_PENALTY))
        found[f"eval/few_shot_{shots}_top1"] = float(np.mean(accuracies))
        found[f"eval/few_shot_{shots}_top1_std"] = float(np.std(accuracies, ddof=len(accuracies) > 1))

    def fit(some_x: Tensor, some_y: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
        return ridge(some_x, one_vs_rest(some_y, classes), penalty)

    penalty, _ = choose_penalty(fit, Scaler.of(x)(x), y, RIDGE_PENALTIES, config.seed)
    return found | {"eval/ridge_top1": ridge_top1(x, y, test_x, test_y, classes, penalty), "ridge_penalty": penalty}


def summary(config: LinearProbe, result: dict[str, Any], output: Path) -> str:
    """The accuracies for the terminal."""

    def told(name: str) -> str:
        return told_interval(result[f"eval/{name}"], result["eval_images"])

    top5 = f"; top 5 {result['eval/top5']:.1%}" if result["classes"] > 5 else ""
    lines = [
        f"\n{config.init}, layer {result['layer']}, {result['pool']} pooling: {result['labels']:,} labels of "
        f"{result['classes']} classes, {result['eval_images']:,} images; chance is {1 / result['classes']:.1%}",
        f"  logistic regression    {result['eval/top1']:6.1%}   ({told('top1')}{top5})",
        f"  ridge regression       {result['eval/ridge_top1']:6.1%}   ({told('ridge_top1')})",
        f"  k-nearest neighbours   {result['eval/knn_top1']:6.1%}   ({told('knn_top1')})",
    ]
    if config.probe.attentive:
        lines.append(f"  attentive probe        {result['eval/attentive_top1']:6.1%}   ({told('attentive_top1')})")
    for shots in config.probe.shots:
        name = f"eval/few_shot_{shots}_top1"
        if name in result:
            lines.append(f"  {shots:3d} labels a class     {result[name]:6.1%}   +- {result[name + '_std']:.1%}")
        else:
            lines.append(f"  {shots:3d} labels a class    (too few labels)")
    return "\n".join(
        [*lines, f"effective rank of the features {result['effective_rank']:.1f}; all in {output}/result.json"]
    )
