"""The benchmark: its parts run as a user runs them, and its JSON holds what it prints."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pytest
import torch

from mpp.errors import UserError
from tests.helpers import ROOT
from tools.benchmark import Measured, image_folder_batches, main, make_jpegs, our_batches, run_training


def test_a_step_is_measured_beside_the_floor(tmp_path, capsys):
    small = ["--variant", "nano", "--img-size", "32", "--batch-size", "2", "--rounds", "2", "--contenders", "ours"]
    found = main(["--parts", "step", *small, "timm ViT, no head", "--out", str(tmp_path)])
    step = json.loads((tmp_path / "benchmark.json").read_text())["step"]
    assert step == json.loads(json.dumps(found["step"]))
    rates = {row["name"]: row["images_per_second"] for row in step["table"]}
    assert step["ours_over_best_floor"] == pytest.approx(rates["ours"] / rates["timm ViT, no head"])
    assert step["mfu"] == pytest.approx(rates["ours"] * step["flops_per_image"] / step["peak_flops"])
    assert 0 < step["mfu"] < 1
    assert all(row["peak_memory_mib"] > 0 for row in step["table"])
    assert "ours is" in capsys.readouterr().out


def test_batch_sizes_around_the_one_asked_for_are_measured(tmp_path):
    small = ["--variant", "nano", "--img-size", "32", "--batch-size", "4", "--rounds", "2"]
    found = main(["--parts", "batch", *small, "--out", str(tmp_path)])["batch"]
    assert found.pop("took_seconds") > 0
    assert list(found) == ["1", "2", "4", "8", "16"]
    assert all(row["images_per_second"] > 0 for row in found.values())


def test_a_training_command_that_fails_says_why(tmp_path):
    with pytest.raises(UserError, match=r"mpp/pretrain.py --data.path /nowhere failed: error: .*/nowhere"):
        run_training(tmp_path / "run", 1, ["--data.path", "/nowhere"])


def test_rates_are_of_the_median_round():
    measured = Measured("x", [2.0, 1.0, 100.0, 2.0, 3.0])
    assert measured.rate(8) == 4
    assert measured.spread() > 0


def test_ours_and_the_peers_loader_give_the_same_amount_of_the_same_images(tmp_path):
    make_jpegs(tmp_path / "train", 8, 32, 32)
    ours = torch.cat(list(our_batches(str(tmp_path), 32, "none", 4, 8)()))
    theirs = torch.cat(list(image_folder_batches(tmp_path, 32, "resized", 4)()))
    assert ours.shape == theirs.shape == (8, 3, 32, 32)
    assert ours.dtype == theirs.dtype == torch.uint8
    colours = [np.sort(images.float().mean((1, 2, 3)).numpy()) for images in (ours, theirs)]
    assert np.abs(colours[0] - colours[1]).max() < 40  # cut differently, but of the same pictures


def test_the_plan_for_a_gpu_is_a_script_that_parses():
    subprocess.run(["bash", "-n", str(ROOT / "tools" / "gpu_check.sh")], check=True)
    script = (ROOT / "tools" / "gpu_check.sh").read_text()
    limits = [int(line.split()[1]) for line in script.splitlines() if line.strip().startswith("measure ")]
    assert 0 < sum(limits) <= 600  # seconds
