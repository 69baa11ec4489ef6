"""The command `finetune`: fine-tune a backbone, or measure a fine-tuned model."""

from __future__ import annotations

import copy
import dataclasses
import json
import time
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from mpp.commands.cards import write_cards
from mpp.commands.downstream import as_taken_by, new_to, open_downstream
from mpp.commands.dry_run import rehearse_prediction
from mpp.commands.labelled import classifier_job, closing_summary, tell_classes, train_classifier, write_result
from mpp.commands.rehearsal import rehearse
from mpp.config.command_line import write_toml
from mpp.config.commands import FineTune
from mpp.config.derived import images_seen
from mpp.config.schedule import timed
from mpp.data.identity import held_out_before, keep
from mpp.data.images import Images, Subset
from mpp.data.splits import at_most, fifth_to_choose_by, open_held_out, open_measured
from mpp.data.survey import cropped, noted
from mpp.errors import UserError
from mpp.evaluation.intervals import interval_of
from mpp.evaluation.predictions import export, refuse_unwritable
from mpp.figures.confusion import paint_confusion
from mpp.methods.classify import Classifier, Classify, batches_of, calibrate, load_classifier, predict_set
from mpp.models.backbone import Backbone
from mpp.models.backbones import fitted, refuse_shape_options
from mpp.run.folder import Records, finish, prepared_output, refuse_other_options
from mpp.run.machine import gather_dicts
from mpp.training.finiteness import Diverged
from mpp.training.job import Outcome


def run_finetune(config: FineTune, accelerator: Accelerator) -> dict[str, Any]:
    """The command `finetune`: fine-tune, or with --eval-only measure a fine-tuned model."""
    return (run_evaluation if config.eval_only else run_finetuning)(config, accelerator)


def run_finetuning(config: FineTune, accelerator: Accelerator) -> dict[str, Any]:
    """Fine-tune; returns what result.json says."""
    with prepared_output(config, "finetune", config.resume, accelerator) as output:
        return finetune_into(output, config, accelerator)


def finetune_into(output: Path, config: FineTune, accelerator: Accelerator) -> dict[str, Any]:
    """Prepare, choose a learning rate, train, export, report, all into a folder of its own."""
    refuse_unwritable(config.export_predictions, config.overwrite, accelerator)
    remembered = held_out_before(output) if config.resume_anyway else None
    vit, images, test = open_downstream(config, accelerator, images_seen(config.train), remembered)
    config = noted(config, images)
    images, held = kept_to_calibrate(config, images)
    tell_classes(config.data, images, test, accelerator)
    config = dataclasses.replace(config, train=timed(config.train, len(images), config.optim))
    config = dataclasses.replace(config, augment=cropped(config.augment, images, vit.img_size))
    again = {"resume": config.resume, "insist": config.resume_anyway, "dry_run": config.dry_run}
    data = keep(output, images, test, accelerator, labels=True, **again)
    if config.dry_run:
        set_seed(config.seed)
        job, share = classifier_job(config, vit, "linear", images, test, accelerator)
        tried = [(output / "lr_grid" / f"{lr:g}" / "result.json").exists() for lr in config.optim.lr_grid]
        return rehearse(job, config, accelerator, share, output, trials=tried.count(False))
    grid: dict[str, float] = {}
    if config.optim.lr_grid:
        if accelerator.is_main_process:
            output.mkdir(parents=True, exist_ok=True)
            write_toml(config, output / "config.toml")  # what --resume goes on with, if it is cut in a trial
        grid = try_learning_rates(config, vit, images, output, accelerator)
        best = float(max(grid, key=lambda lr: grid[lr]))
        config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, lr=best))
        accelerator.print(f"accuracy on held-out training labels by learning rate: {grid}; training with {best:g}")
    set_seed(config.seed)
    outcome, job = train_classifier(config, vit, "linear", images, test, output, accelerator)
    calibration = calibrated(outcome, job, held, config, accelerator) if held else {}
    result: dict[str, Any] = outcome.metrics
    if accelerator.is_main_process:
        result = write_result(job, "finetune", output, outcome) | {"init": config.init, "pool": config.model.pool}
        result |= {"init_sha256": outcome.init_sha256, "data": data}
        result |= calibration | {"lr": config.optim.lr} | ({"lr_grid_top1": grid} if grid else {})
        result = finish(output, config, result)
        write_cards(output, config, result)
        if config.export_predictions and job.predictions:
            export(job.predictions, job.eval_images, job.model.classes, config.export_predictions, config.overwrite)
        title = f"{config.init} fine-tuned for {outcome.step:,} steps with {result['labels']:,} labels"
        print(closing_summary(result, config.data.path, output, title))
    return result


def kept_to_calibrate(config: FineTune, images: Images) -> tuple[Images, Images | None]:
    """The images to train on, and those that --calibrate keeps out of training."""
    if not config.calibrate:
        return images, None
    rest, held = fifth_to_choose_by(images.labels(range(len(images))), config.seed)
    if not len(held):
        raise UserError("--calibrate keeps training labels out of training, and one a class leaves none")
    return Subset(images, rest), Subset(images, held)


def calibrated(
    outcome: Outcome, job: Classify, held: Images, config: FineTune, accelerator: Accelerator
) -> dict[str, Any]:
    """Calibrate a trained model and predict the evaluation images again; returns what result.json says of it."""
    assert job.predictions is not None
    before, model = job.predictions.calibration_error(), cast(Classifier, outcome.model)
    with torch.no_grad():
        calibrate(model, held, config.data, config.eval.batch_size, accelerator)
        job.evaluate(model)
    found = {"temperature": model.temperature, "calibration_labels": len(held), "calibration_error_before": before}
    return found | {"calibration_error": job.predictions.calibration_error()}


def run_evaluation(config: FineTune, accelerator: Accelerator) -> dict[str, Any]:
    """Measure a fine-tuned model on a labelled set without training; returns what result.json says."""
    with prepared_output(config, "evaluate", False, accelerator) as output:
        return evaluate_into(output, config, accelerator)


def evaluate_into(output: Path, config: FineTune, accelerator: Accelerator) -> dict[str, Any]:
    """Load, predict, report, all into a folder of its own."""
    started = time.perf_counter()
    refuse_unwritable(config.export_predictions, config.overwrite, accelerator)
    refuse_shape_options(config.init, config.model)
    model = load_classifier(config.init)
    fitted(model.vit, config.model.img_size)
    model.to(accelerator.device).eval()
    with accelerator.main_process_first(), as_taken_by(model.vit, config.init, config.data, fitted=False) as source:
        size, unlabelled = model.vit.img_size, bool(config.export_predictions)
        held = open_held_out(source, size) if source.hold_out else None
        images = open_measured(source, size, alone=True, unlabelled=unlabelled) if held is None else held
    labelled = bool(images.label_names)
    if labelled:
        images = new_to(config.init, images, accelerator) if held is None else held
        tell_classes(config.data, None, images, accelerator)
    batch_size = config.eval.batch_size
    if config.dry_run:
        images, unreadable = at_most(images, config.eval.images), dict[str, str]()
        batches = batches_of(images, model.vit, config.data, batch_size, accelerator, unreadable, labelled)
        names = images.label_names if labelled else None
        return rehearse_prediction(output, model, batches, len(images), names, unreadable, config, accelerator)
    records = Records(output, accelerator, config)
    records.open(0, "eval/top1")
    data = keep(output, images, images, accelerator)
    images, unreadable = at_most(images, config.eval.images), dict[str, str]()
    predictions = predict_set(model, images, config.data, batch_size, accelerator, unreadable, labelled)
    unreadable = gather_dicts(accelerator, unreadable)
    metrics = {f"eval/{name}": value for name, value in predictions.metrics().items()} if labelled else {}
    result: dict[str, Any] = dict(metrics)
    if accelerator.is_main_process:
        result |= {"command": "finetune --eval-only", "init": config.init, "classes": len(model.classes)}
        result |= {"eval_images": len(predictions.index)}
        if labelled:
            result |= {"eval/top1_interval": interval_of(metrics["eval/top1"], len(predictions.index))}
            result |= {"per_class_top1": predictions.per_class(model.classes)}
            result |= {"calibration_error": predictions.calibration_error()}
        result |= {"unreadable_images": unreadable, "data": data}
        result |= {"seconds": round(time.perf_counter() - started, 1)}
        records.log(0, metrics)
        if labelled:
            records.pictures(0, paint_confusion(predictions.confusion, model.classes))
        records.close()
        result = finish(output, config, result)
        if config.export_predictions:
            export(predictions, images, model.classes, config.export_predictions, config.overwrite)
        if labelled:
            print(closing_summary(result, config.data.path, output, f"{config.init} on {config.data.path}"))
        else:
            print(f"{config.export_predictions}: predictions of {len(predictions.index):,} images without labels")
    return result


def try_learning_rates(
    config: FineTune, vit: Backbone, images: Images, output: Path, accelerator: Accelerator
) -> dict[str, float]:
    """Accuracy on a fifth of the training labels for each rate of --optim.lr-grid, after training on the others for as
    long as the final run; 0 if training diverged. A resumed run keeps what it has tried.
    """
    rest, held = fifth_to_choose_by(images.labels(range(len(images))), config.seed)
    if not len(held):
        raise UserError(
            "--optim.lr-grid chooses on held-out training labels, and one a class leaves none: give --optim.lr"
        )
    fitted_on, measured = Subset(images, rest), at_most(Subset(images, held), config.eval.images)
    found: dict[str, dict[str, Any]] = {}
    for lr in config.optim.lr_grid:
        name = f"{lr:g}"
        folder = output / "lr_grid" / name
        trial = dataclasses.replace(config, optim=dataclasses.replace(config.optim, lr=lr, lr_grid=()), resume=True)
        refuse_other_options(folder, trial, remade=True)
        if (folder / "result.json").exists():
            found[name] = json.loads((folder / "result.json").read_text())
            continue
        accelerator.print(f"--optim.lr {name}, measured on {len(measured):,} held-out training labels:")
        set_seed(config.seed)
        try:
            outcome, _ = train_classifier(trial, copy.deepcopy(vit), "linear", fitted_on, measured, folder, accelerator)
        except Diverged as error:  # the grid finds out which rates are too high
            accelerator.print(f"--optim.lr {name} is too high: {error}")
            found[name] = {"eval/top1": 0.0, "diverged": str(error)}
        else:
            found[name] = outcome.metrics
        if accelerator.is_main_process:
            finish(folder, trial, found[name])
    if all("diverged" in result for result in found.values()):
        raise UserError(f"training diverged at every rate of --optim.lr-grid ({', '.join(found)}); give lower ones")
    return {lr: result["eval/top1"] for lr, result in found.items()}
