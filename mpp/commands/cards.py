"""The model card of a run, README.md beside its weights as the hub shows it, and the way of both to the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from mpp.config.bounds import Options
from mpp.config.command_line import flattened
from mpp.config.hub import on_hub
from mpp.errors import counted, escaped
from mpp.files import write_whole
from mpp.methods.classify import load_classifier
from mpp.models.backbones import load_backbone
from mpp.models.pretrained import as_card
from mpp.models.resnet import RESNETS
from mpp.run.folder import writing

MEASURES = {
    "eval/bin_accuracy": "accuracy on the corrupted or hidden patches of held-out images",
    "eval/baseline_majority": "accuracy of guessing the commonest bin",
    "eval/baseline_neighbours": "accuracy of guessing from the nearest visible patches",
    "eval/loss": "loss on held-out images",
    "eval/top1": "top-1 accuracy on held-out images",
    "eval/top5": "top-5 accuracy on held-out images",
    "eval/probe_top1": "top-1 accuracy of ridge regression on frozen features",
    "eval/knn_top1": "top-1 accuracy of k-NN on frozen features",
    "eval/effective_rank": "effective rank of the features",
    "calibration_error": "expected calibration error of the probabilities",
}


def write_cards(output: Path, config: Options, result: dict[str, Any]) -> None:
    """Write the card of a finished run into its backbone/, and its classifier/ if there is one."""
    for folder in (output / "backbone", output / "classifier"):
        if (folder / "config.json").is_file():
            model = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            with writing(folder):
                write_whole(folder / "README.md", card_of(folder.name, model, flattened(config), result).encode())


def push_to_hub(
    run: str,
    repo_id: str,
    *,
    kind: Literal["backbone", "classifier"] = "backbone",
    private: bool = False,
    **options: Any,
) -> str:
    """Upload a run's backbone or classifier with its card to the Hugging Face hub; returns the address of the commit.

    Args:
        run: the run's folder, or its backbone/ or classifier/.
        repo_id: "owner/name" on the hub, which is made if it is not there.
        private: whether it is made for its owner alone.
        options: further ones of huggingface_hub's `push_to_hub`: token, branch, commit_message, create_pr.

    Raises UserError if there is no such model in the folder, and huggingface_hub's errors if the hub refuses.
    """
    model: Any = load_backbone(run) if kind == "backbone" else load_classifier(run)
    return str(model.push_to_hub(repo_id, private=private, **options))


def card_of(part: str, model: dict[str, Any], options: dict[str, Any], result: dict[str, Any]) -> str:
    """The card of a `backbone` or `classifier`: its config.json, its run's options and what result.json says."""
    vit = model["vit"] if part == "classifier" else model
    task = {
        "pretrain": "pretrained by masked patch prediction, without labels",
        "supervised": "pretrained with labels",
        "finetune": "fine-tuned with labels",
    }.get(result["command"], f"trained by `mpp {result['command']}`")
    height, width = vit["img_size"]
    kind = "ResNet" if vit["variant"] in RESNETS else "ViT"
    title = f"{kind} {vit['variant']}/{vit['patch_size']} at {height} x {width}, {task}"
    figures = {name: (says, result[name]) for name, says in MEASURES.items() if result.get(name) is not None}
    rows = [f"| {says} | {_figure(name, value)} |" for name, (says, value) in figures.items()]
    pixels = vit.get("pixel_range")
    text = [
        f"# {title}",
        f"The {'encoder' if part == 'backbone' else 'encoder with a classifying head'} of a run of `mpp "
        f"{result['command']}`: "
        + ("BiT's ResNet (arXiv 1912.11370)." if kind == "ResNet" else "a Vision Transformer (arXiv 2010.11929)."),
        "## How it was made",
        "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in _made(options, result).items())]),
        "## Figures",
        "\n".join([f"| on {result['eval_images']:,} images | |", "|---|---|", *rows]),
        "## How to load it",
        _loading(part, kind, vit["in_chans"], height, width),
        f"Images are cropped to {height} x {width} at their centre and scaled; "
        + (f"values {pixels[0]:g} and {pixels[1]:g}" if pixels else "0 and 255")
        + f" become -1 and 1. They have {counted(vit['in_chans'], 'channel')}.",
        "`mpp convert FOLDER --to timm DIR` writes it for timm; other forms are `hf`, `torchvision`, `npz`, `onnx` and "
        "`torch-export`.",
        "## Licence",
        "Apache-2.0, as the code that made it. If the images ask for another licence, change it here and at the top.",
    ]
    pipeline = "image-feature-extraction" if part == "backbone" else "image-classification"
    return as_card("\n\n".join(text) + "\n", pipeline, ["vision-transformer", "masked-patch-prediction"])


def _made(options: dict[str, Any], result: dict[str, Any]) -> dict[str, str]:
    """What the weights come from, by name: set, objective, length, arithmetic, versions."""
    digests = ", ".join(f"{escaped(split)} `{digest}`" for split, digest in result["data"].items())
    trained = result.get("train_images", result.get("labels"))
    made = {
        "images": f"{_named(options['data.path'])}: {trained:,} to train on"
        if trained
        else _named(options["data.path"])
    }
    made["fingerprint of the images"] = digests
    if result["command"] == "pretrain":
        made["objective"] = f"`--method {result['method']} --data.target {escaped(result['target'])}`"
    else:
        made["objective"] = f"cross-entropy of {result['classes']:,} classes, `--model.pool {options['model.pool']}`"
    if result.get("init", "scratch") != "scratch":
        made["began as"] = f"{_named(result['init'])}" + (
            f", weights `sha256:{result['init_sha256'][:16]}…`" if result.get("init_sha256") else ""
        )
    made["optimiser"] = f"{options['optim.name']}, learning rate {result.get('lr', options['optim.lr']):g}"
    made["steps"] = f"{result['step']:,} of {options['train.batch_size']:,} images: {result['images_seen']:,} in all"
    made["compute"] = f"{result['flops']:.3g} floating-point operations in {result['seconds']:,.0f} s"
    made["parameters of the encoder"] = f"{result['backbone_parameters']:,}"
    made["seed"] = str(result["seed"])
    made["versions"] = ", ".join(f"{name} {number}" for name, number in result["packages"].items())
    return made


def _named(path: str) -> str:
    """A set or a model by its name on the hub, or the last part of its path: no folder of a machine is published."""
    there = on_hub(path, "--data.path")
    return escaped(str(there) if there else Path(path).name or path)


def _figure(name: str, value: float) -> str:
    return f"{value:.4g}" if name in ("eval/loss", "eval/effective_rank") else f"{value:.1%}"


def _loading(part: str, kind: str, channels: int, height: int, width: int) -> str:
    """The lines of Python that load and use it."""
    if part == "classifier":
        name, use = "Classifier", "scores = model(images)  # of model.classes"
    else:
        name, use = kind, "features = model(images)[:, 1:].mean(1)  # of (1, 1 + patches, width): [class] comes first"
    return "\n".join(
        [
            "```python",
            "import torch",
            f"from mpp import {name}  # the package masked-patch-pretraining",
            "",
            f'model = {name}.from_pretrained("FOLDER")  # this folder, or owner/name on the hub',
            f"images = torch.zeros(1, {channels}, {height}, {width})  # scaled to -1..1",
            use,
            "```",
        ]
    )
