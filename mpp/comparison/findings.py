"""What the runs of a comparison found: the numbers of its results, and the curves of its plots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mpp.comparison.pieces import Piece
from mpp.comparison.statistics import FINE_TUNED, Finding
from mpp.config.presets import read_toml
from mpp.run.folder import read_metrics

_OF_PIXELS = {  # in result.json -> the protocol in results.csv: shares of pixels or classes, as accuracies are
    "eval/miou": "segmentation",
    "eval/knn_miou": "segmentation by k-NN",
    "eval/depth_delta1": "depth within 1.25",
    "eval/knn_depth_delta1": "depth within 1.25 by k-NN",
}


def learning_curve(piece: Piece) -> list[tuple[int, float]]:
    """Held-out top-1 after steps, of a fine-tuning."""
    return [(int(line["step"]), line["eval/top1"]) for line in read_metrics(piece.folder) if "eval/top1" in line]


def quality_curve(run: Path) -> list[tuple[float, float]]:
    """What a pretraining run's features were worth after seconds of training: the accuracy that --eval.probe measured
    at its evaluations. Empty if it measured none, or is no run."""
    if not ((run / "metrics.jsonl").exists() and (run / "config.toml").exists()):
        return []
    batch = int(read_toml(run / "config.toml")["train"]["batch_size"])
    found, seconds, before = [], 0.0, 0.0
    for line in read_metrics(run):
        if speed := line.get("speed/images_per_second"):
            seconds += (line["step"] - before) * batch / speed
            before = line["step"]
        if "eval/probe_top1" in line:
            found.append((seconds, line["eval/probe_top1"]))
    return found


def probe_findings(pieces: Mapping[tuple[str, int], Piece], pretrain_seed: Mapping[int, int]) -> Iterator[Finding]:
    """What the probes of frozen features found."""
    for (arm, seed), piece in pieces.items():
        options: Any = piece.config
        result, labels = piece.result(), options.data.labels  # asked for: unreadable images may be missing
        found = {
            (title, labels): result[f"eval/{name}"]
            for name, title in {
                "top1": "logistic regression",
                "ridge_top1": "ridge regression",
                "knn_top1": "k-NN",
                "attentive_top1": "attentive probe",
            }.items()
            if f"eval/{name}" in result  # --probe.attentive may be off
        }
        for name, value in result.items():
            if name.startswith("eval/few_shot") and name.endswith("_top1"):
                shots = int(name.split("_")[2])
                found[f"{shots} label{'s' if shots > 1 else ''} a class", shots * result["classes"]] = value
        found["effective rank", labels] = result["effective_rank"]
        for (title, count), value in found.items():
            yield Finding(arm, title, count, seed, value, pretrain_seed[seed])


def tuning_findings(
    pieces: Mapping[tuple[str, int, int], Piece], pretrain_seed: Mapping[int, int]
) -> Iterator[Finding]:
    """What the fine-tunings found."""
    for (arm, _, seed), piece in pieces.items():
        result = piece.result()
        yield Finding(arm, FINE_TUNED, result["labels"], seed, result["eval/top1"], pretrain_seed[seed])


def dense_findings(pieces: Mapping[tuple[str, int], Piece], pretrain_seed: Mapping[int, int]) -> Iterator[Finding]:
    """What the dense probes found; the labels are the images to fit on."""
    for (arm, seed), piece in pieces.items():
        result = piece.result()
        for figure, protocol in _OF_PIXELS.items():
            if figure in result:
                yield Finding(arm, protocol, result["images"], seed, result[figure], pretrain_seed[seed])
