"""The command `supervised`: pretrain on labelled images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed

from mpp.commands.cards import write_cards
from mpp.commands.downstream import as_taken_by, measured_before
from mpp.commands.labelled import classifier_job, closing_summary, tell_classes, train_classifier, write_result
from mpp.commands.rehearsal import rehearse
from mpp.config.commands import Supervised
from mpp.config.derived import height_width, images_seen, sized
from mpp.config.schedule import timed
from mpp.data.identity import held_out_before, keep
from mpp.data.images import bands_of
from mpp.data.splits import open_labelled
from mpp.data.survey import cropped, noted
from mpp.evaluation.quick_probe import QuickProbe
from mpp.models.backbones import build_vit, downstream_vit
from mpp.run.command import quoted, spelled
from mpp.run.folder import finish, prepared_output


def run_supervised(config: Supervised, accelerator: Accelerator) -> dict[str, Any]:
    """Pretrain with labels; returns what result.json says."""
    config = sized(config)
    with prepared_output(config, "supervised", config.resume, accelerator) as output:
        return learn_into(output, config, accelerator)


def learn_into(output: Path, config: Supervised, accelerator: Accelerator) -> dict[str, Any]:
    """Prepare, train, export, report, all into a folder of its own."""
    remembered = held_out_before(output) if config.resume_anyway else None
    set_seed(config.seed)
    vit = None if config.init == "scratch" else downstream_vit(config.init, config.model)
    size = vit.img_size if vit else height_width(config.model.img_size)
    with accelerator.main_process_first(), as_taken_by(vit, config.init, config.data) as source:
        images, test = open_labelled(source, size, config.seed, images_seen(config.train), remembered)
    tell_classes(config.data, images, test, accelerator)
    again = {"resume": config.resume, "insist": config.resume_anyway, "dry_run": config.dry_run}
    data = keep(output, images, test, accelerator, labels=True, **again)
    config = replace(noted(config, images), train=timed(config.train, len(images), config.optim))
    config = replace(config, augment=cropped(config.augment, images, size))
    bands = bands_of(images)
    set_seed(config.seed)
    vit = vit or build_vit(config.model, bands.channels or 3, bands.range)
    vit.pixel_range = bands.range
    if config.dry_run:
        job, share = classifier_job(config, vit, "mlp", images, test, accelerator)
        return rehearse(job, config, accelerator, share, output)
    outcome, job = train_classifier(config, vit, "mlp", images, test, output, accelerator)
    result: dict[str, Any] = outcome.metrics
    if accelerator.is_main_process:
        before = measured_before(output, config)
        result = write_result(job, "supervised", output, outcome) | {"data": data, "init": config.init}
        result |= {"init_sha256": outcome.init_sha256} | ({"before": before} if before else {})
        result = finish(output, config, result)
        write_cards(output, config, result)
        next_line = f"Next: {spelled('finetune')} --init {quoted(output)} --data.path LABELLED_IMAGES"
        then = "\n".join([*QuickProbe.closing_lines(config, outcome.metrics, before), next_line])
        print(
            closing_summary(
                result, config.data.path, output, f"After {outcome.step:,} steps with {result['labels']:,} labels", then
            )
        )
    return result
