"""A pretraining run opened again, with its head, its targets and its held-out images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator
from safetensors.torch import load_file

from mpp.commands.downstream import as_taken_by
from mpp.commands.pretrain import method_of, with_encoder
from mpp.config.command_line import parse
from mpp.config.commands import Pretrain
from mpp.config.presets import read_toml
from mpp.data.identity import held_out_before
from mpp.data.images import Images, bands_of
from mpp.data.splits import open_splits
from mpp.methods.patch_prediction import PatchPrediction
from mpp.models.backbones import as_vit, load_backbone
from mpp.training import sharding
from mpp.training.checkpoints import AVERAGE, WEIGHTS, latest


def run_of(init: str) -> tuple[Path, Pretrain] | None:
    """The folder and the options of the pretraining run that --init names, itself or by its backbone/; None if it names
    something else."""
    for folder in (Path(init), Path(init).parent):
        file = folder / "config.toml"
        if file.is_file() and {"method", "corrupt"} <= read_toml(file).keys():
            return folder, parse(Pretrain, ["--config", str(file)])
    return None


def held_out_of(run: Path, config: Pretrain) -> Images:
    """The images that a run held out, read as it read them."""
    vit = as_vit(load_backbone(str(run)), str(run), "it predicts no patches")
    with as_taken_by(vit, str(run), config.data) as data:
        options = replace(config, data=replace(data, cache=False))
        return open_splits(options, vit.img_size, held_out_before(run))[1]


def reopened(run: Path, config: Pretrain, images: Images, accelerator: Accelerator) -> PatchPrediction | str:
    """The method of a run with the weights of its last checkpoint, to be measured on `images`; or why there is none."""
    if (found := latest(run / "checkpoints")) is None:
        return f"{run} has no checkpoint, and only a checkpoint has the head"
    if sharding.has_shards(found[0]):
        return f"{found[0]} is in shards (FSDP2), which this command does not read"
    config = replace(
        config,
        data=replace(config.data, workers=0),
        augment=replace(config.augment, crop="none"),
        eval=replace(config.eval, probe=None),
    )
    vit = as_vit(load_backbone(str(run)), str(run), "it predicts no patches")
    job = method_of(config.method)(*with_encoder(config, vit, bands_of(images)), accelerator, images, images)
    averaged = (found[0] / AVERAGE).exists()  # then these are the weights that the run was measured with
    weights = load_file(found[0] / (AVERAGE if averaged else WEIGHTS))
    if averaged:
        weights = {name.removeprefix("module."): w for name, w in weights.items() if name != "n_averaged"}
    job.model.load_state_dict(weights)
    job.model.to(accelerator.device).eval()
    return job
