"""The numbers of seven small runs are those that were recorded: a change of the code's form changes none of them.

On the kind of machine they were recorded on they are the same to the last bit; on another, to what rounding leaves.
After a change that is meant to change numbers, `python -m tests.test_recorded` records them anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
RECORD = Path(__file__).with_name("recorded.json")
SMALL = [
    *("--model.img-size", "16", "--model.embed-dim", "32", "--model.depth", "2", "--model.num-heads", "2"),
    *("--train.batch-size", "8", "--train.log-every", "1", "--optim.warmup-steps", "2", "--eval.images", "20"),
]
LABELLED = ["--data.path", "shapes", "--data.labels", "64", "--eval.images", "64"]
# Several runs in one process, which has imported everything once: file, options of each
RUNNER = """
import json, runpy, sys
from accelerate.state import AcceleratorState, GradientState, PartialState
for file, args in json.loads(sys.argv[1]):
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    runpy.run_path(file)["main"](args)
"""


def runs(folder: Path) -> dict[str, list[tuple[str, list[str]]]]:
    """What is run by one process, in this order: name -> the files and options that it takes."""
    pretrain, recipe = "mpp/pretrain.py", "recipes/{}.py".format
    quick = ["--train.steps", "60", "--train.log-every", "20", "--eval.every", "60", "--eval.images", "100"]
    hard = ["--augment.crop", "resized", "--data.target", "4x4", "--corrupt.shape", "blocks", "--model.dropout", "0.1"]
    mix = ["--augment.mixup", "0.8", "--augment.cutmix", "1", "--augment.randaugment", "1", "--train.average", "0.9"]
    tune = [*LABELLED, *mix, "--optim.layer-decay", "0.75", "--train.log-every", "1", "--init", str(folder / "quick")]
    return {
        "quick": [(pretrain, quick)],
        "folder": [(pretrain, [*SMALL, *hard, "--data.path", str(folder / "images"), "--train.steps", "8"])],
        "stream": [(pretrain, [*SMALL, "--data.path", str(folder / "shards"), "--train.steps", "12"])],
        "resumed": [
            (pretrain, [*SMALL, "--data.fraction", "0.001", "--train.steps", steps, *resume])
            for steps, resume in (("4", []), ("9", ["--resume"]))
        ],
        "supervised": [(recipe("supervised"), [*SMALL, *LABELLED, "--train.steps", "6", "--model.dropout", "0.1"])],
        "finetune": [(recipe("finetune"), [*tune, "--train.batch-size", "16", "--train.steps", "6"])],
        "probe": [
            (recipe("linear_probe"), [*LABELLED[:4], "--init", str(folder / "quick"), "--probe.eval-images", "100"])
        ],
    }


def make_inputs(folder: Path) -> None:
    """A folder of PNG files and three WebDataset shards, of the built-in scenes."""
    from mpp import load_images

    scenes = load_images("shapes", "train", size=(20, 24)).read(range(60))
    (folder / "images").mkdir()
    (folder / "shards").mkdir()
    for number, scene in enumerate(scenes):
        assert isinstance(scene, Image.Image)
        scene.save(folder / "images" / f"{number:03d}.png")
    for shard in range(3):
        with tarfile.open(folder / "shards" / f"part-{shard}.tar", "w") as tar:
            for file in sorted((folder / "images").iterdir())[20 * shard : 20 * shard + 20]:
                tar.add(file, file.name)


def numbers(folder: Path) -> dict[str, object]:
    """What a run computed: its metrics but for speeds, and its last weights' checksum."""
    if not (folder / "metrics.jsonl").exists():
        result = json.loads((folder / "result.json").read_text())
        return {name: value for name, value in result.items() if name.startswith(("eval/", "effective"))}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    weights = max((folder / "checkpoints").glob("step_*")) / "model.safetensors"
    return {
        "metrics": [{k: v for k, v in line.items() if not k.startswith("speed/")} for line in lines],
        "weights": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }


def machine() -> dict[str, object]:
    """What the last bits of a sum depend on."""
    import torch

    model = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("model name", "flags"))
    ]
    return {
        "cpu": hashlib.sha256("".join(sorted(set(model))).encode()).hexdigest()[:16] + " " + platform.machine(),
        "cores": os.cpu_count(),
        "packages": {name: version(name) for name in ("torch", "torchvision", "numpy", "scipy", "pillow")},
        "kernels": torch.backends.cpu.get_cpu_capability(),
    }


def compute(folder: Path) -> dict[str, object]:
    """Run everything into `folder`; returns the numbers of each run."""
    make_inputs(folder)
    environment = os.environ | {"MPP_CACHE": str(folder / "cache"), "CUDA_VISIBLE_DEVICES": ""}
    found = runs(folder)
    lines = [
        (str(ROOT / file), [*args, "--output", str(folder / name)]) for name, run in found.items() for file, args in run
    ]
    subprocess.run(
        [sys.executable, "-c", RUNNER, json.dumps(lines)],
        env=environment | {"OMP_NUM_THREADS": "2"},
        cwd=folder,
        check=True,
    )
    two = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(29_000 + os.getpid() % 1000)]
    options = [*SMALL, "--train.steps", "6", "--train.accumulate", "2", "--output", str(folder / "two")]
    line = [sys.executable, *two, str(ROOT / "mpp" / "pretrain.py"), *options]
    subprocess.run(line, env=environment | {"OMP_NUM_THREADS": "1"}, cwd=folder, check=True)
    return {name: numbers(folder / name) for name in [*found, "two"]}


def close(value: object) -> object:
    """The same, but for what another machine's rounding may change."""
    if isinstance(value, dict):
        return {name: close(each) for name, each in value.items() if name != "weights"}
    if isinstance(value, list):
        return [close(each) for each in value]
    return pytest.approx(value, rel=0.02, abs=0.05) if isinstance(value, float) else value


def test_the_numbers_of_small_runs_are_those_that_were_recorded(tmp_path):
    record = json.loads(RECORD.read_text())
    found = compute(tmp_path)
    if record["machine"] == json.loads(json.dumps(machine())):
        assert found == record["runs"]
    else:
        for run in found.values():
            assert isinstance(run, dict)
            run.pop("weights", None)
        assert found == close(record["runs"])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        RECORD.write_text(json.dumps({"machine": machine(), "runs": compute(Path(work))}, indent=1) + "\n")
