"""What `mpp look` shows of a pretraining run: predictions, the best and worst patches, colours taken for others."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mpp.config.derived import target_parts
from mpp.config.using import Look
from mpp.errors import UserError
from mpp.evaluation.calibration import calibration_error, calibration_table
from mpp.figures.gallery import Gallery
from mpp.figures.patches import paint_calibration, paint_colour_confusion, paint_examples, paint_panels
from mpp.methods.patch_measures import HUES, PatchMeasures, complete, measure_patches
from mpp.methods.patch_prediction import PatchPrediction
from mpp.methods.targets import colour_part

_PAINTED = 8  # images that are completed


def look_at_patches(job: PatchPrediction, config: Look, gallery: Gallery, found: dict[str, Any]) -> None:
    """Measure the predictions for --images of a run's held-out images; paint and keep what --only names."""
    measured = measure_patches(job, job.eval_batches(0, 1, config.images))
    if not measured.errors:
        raise UserError("--data.path has no image to look at")
    right = torch.cat(measured.right).numpy()
    found["bin_accuracy"] = float(right.mean())
    if "predictions" in config.only:
        show_predictions(job, measured, gallery)
    if "confusion" in config.only:
        show_confusion(job, measured, right, gallery, found)


def show_predictions(job: PatchPrediction, measured: PatchMeasures, gallery: Gallery) -> None:
    """Some images completed, the best and the worst patches, and every patch's error."""
    panels = complete(job, next(job.eval_batches(0, 1, _PAINTED)))
    part = list(target_parts(job.config.data.target))[colour_part(job.target) or 0]
    headings = ["input", job.heading, f"predicted: {part}", "true"]
    gallery.figure("predictions", paint_panels(panels.images, headings, panels.errors, job.patch_size))
    best, worst = (
        [(example.error, example.at, (example.around, example.predicted, example.true)) for example in examples]
        for examples in (measured.best, measured.worst)
    )
    gallery.figure("patches", paint_examples(best, worst, job.patch_size))
    numbers = [
        [job.eval_images.where(index), *divmod(place, job.grid[1]), f"{error:.3f}"]
        for batch in zip(measured.index, measured.places, measured.errors, strict=True)
        for index, places, errors in zip(*(part.tolist() for part in batch), strict=True)
        for place, error in zip(places, errors, strict=True)
    ]
    gallery.table("predictions", ["image", "row", "column", "error"], numbers)


def show_confusion(
    job: PatchPrediction, measured: PatchMeasures, right: np.ndarray, gallery: Gallery, found: dict[str, Any]
) -> None:
    """Which colours are taken for which, and whether the probabilities of colour bins can be believed."""
    target = f"--data.target {job.config.data.target}"
    if measured.luminance is None:
        print(f"confusion: left out, because {target} has no colours")
    else:
        chroma = None if measured.chroma is None else measured.chroma.numpy()
        gallery.figure("confusion", paint_colour_confusion(measured.luminance.numpy(), chroma, HUES))
        levels = [str(32 * level) for level in range(len(measured.luminance))]
        tables = {"luminance": (measured.luminance.numpy(), levels)}
        if chroma is not None:
            tables["hue"] = chroma, list(HUES)
        rows = [
            [kind, names[true], names[predicted], int(counts[true, predicted])]
            for kind, (counts, names) in tables.items()
            for true, predicted in np.ndindex(*counts.shape)
        ]
        gallery.table("confusion", ["kind", "true", "predicted", "patches"], rows)
    if not measured.confidence:
        print(f"calibration: left out, because {target} is a regression, without probabilities")
        return
    confidence = torch.cat(measured.confidence).numpy()
    table, error = calibration_table(confidence, right), calibration_error(confidence, right)
    gallery.figure("calibration", paint_calibration(table, error))
    header = ["from", "to", "bins", "confidence", "accuracy"]
    gallery.table("calibration", header, [[f"{value:.6g}" for value in row] for row in table])
    found["calibration_error"] = error
