"""Noisy Student (Xie et al., arXiv 1911.04252), small: a teacher labels images without labels, and a student that is
trained on both, with noise, becomes the next teacher. `python recipes/noisy_student.py [--data PATH]`.

The teacher is fine-tuned without noise. Its labels of probability --threshold and more are kept, as many of each class:
the surest of a class with many, copies of one with few. "noise alone" is what the noise does without new labels. All
arms take as many steps. What --output holds is kept, so that a cut experiment goes on.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import mpp
from mpp.comparison.beside import OneSeed, fine_tuning, of_few_labels, over_seeds, top1_of
from mpp.comparison.scaling import named_changes
from mpp.console import run_file
from mpp.data.few_labels import FewLabels


def main(args: Sequence[str] | None = None) -> None:
    """Train teacher and students for every seed, and compare them on the same held-out images."""
    parser = of_few_labels(__doc__, steps=150, output="runs/noisy-student")
    parser.add_argument("--threshold", type=float, default=0.5, help="probability from which on a label is kept")
    parser.add_argument("--rounds", type=int, default=1, help="students, each taught by the one before")
    parser.add_argument(
        "--randaugment", type=int, help="of students; default: 2, and 0 for shapes, whose colours it turns"
    )
    parser.add_argument("--noise", type=float, default=0.1, help="dropout and drop path of students")
    parser.add_argument("--student", nargs="*", default=[], help="options of --model in which it differs, as depth=8")
    given = parser.parse_args(args)
    if given.randaugment is None:
        given.randaugment = 0 if given.data == "shapes" else 2
    over_seeds(given, "Noisy Student", one_seed, 2 + given.rounds, mpp.finetune)


def one_seed(given: argparse.Namespace, images: FewLabels, seed: int) -> OneSeed:
    """Held-out accuracy of every arm, and what the teachers' labels were worth."""
    folder, says = given.output / f"seed-{seed}", []
    changes = named_changes("--student", " ".join(given.student), given.student)
    noise = {"dropout": given.noise, "drop_path": given.noise}  # the paper: 0.5 and 0.2, RandAugment of magnitude 27

    def trained(arm: str, pixels: np.ndarray, labels: np.ndarray, noisy: bool = True) -> float:
        splits = {"train": (pixels, labels), "test": images.held_out}
        options = fine_tuning(given, seed, given.steps)
        if noisy:
            augment = {"randaugment": given.randaugment}
            options |= {"model": options["model"] | changes | noise, "augment": augment}
        data = {"path": mpp.from_memory(splits, label_names=images.classes)}
        return top1_of(folder / arm.replace(" ", "-"), mpp.finetune, data=data, **options)

    top1 = {"teacher": trained("teacher", *images.labelled, noisy=False)}
    top1["noise alone"] = trained("noise alone", *images.labelled)
    teacher = "teacher"
    for number in range(1, given.rounds + 1):
        table, arm = folder / f"{teacher}.csv", f"student-{number}"
        if not table.exists():
            mpp.predict(init=str(folder / teacher), data=images.unlabelled, out=str(table))
        kept, labels = pseudo_labels(table, images.classes, given.threshold)
        right = np.mean(images.hidden[kept] == labels) if len(kept) else 0.0
        says.append(f"{len(set(kept))} of {len(images.hidden)} labels of {teacher} kept, {right:.1%} of them right")
        (seen, known), more = images.labelled, images.unlabelled[kept]
        top1[arm] = trained(arm, np.concatenate([seen, more]), np.concatenate([known, labels]))
        teacher = arm
    return top1, "; ".join(says)


def pseudo_labels(table: Path, classes: list[str], threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Images and their labels from a table of predictions, as many of every class that has any."""
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    guessed = np.array([classes.index(row["class"]) for row in rows])
    sure = np.array([float(row["probability"]) for row in rows])
    found = [np.flatnonzero((guessed == k) & (sure >= threshold)) for k in range(len(classes))]
    each = -(-sum(map(len, found)) // len(classes))
    kept = [np.resize(of[np.argsort(-sure[of], kind="stable")], each) for of in found if len(of)]
    return np.concatenate([*kept, np.empty(0, int)]), np.repeat([k for k, of in enumerate(found) if len(of)], each)


if __name__ == "__main__":
    run_file(__file__, main)
