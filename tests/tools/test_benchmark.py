"""The benchmark: its parts run as a user runs them, and its JSON holds what it prints."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from mpp.errors import UserError
from tests.helpers import ROOT
from tools.benchmark import Measured, image_folder_batches, main, make_jpegs, our_batches, run_training

SMALL = ["--variant", "nano", "--img-size", "16", "--patch-size", "4", "--batch-size", "2", "--rounds", "2"]


def test_a_step_is_measured_beside_the_floor(tmp_path, capsys):
    main(["--parts", "step", *SMALL, "--contenders", "ours", "timm ViT, no head", "--out", str(tmp_path)])
    step = json.loads((tmp_path / "benchmark.json").read_text())["step"]
    rates = {row["name"]: row["images_per_second"] for row in step["table"]}
    over = step["over"]["ours"]
    assert over["over_best_floor"] == pytest.approx(rates["ours"] / rates["timm ViT, no head"])
    assert over["mfu"] == pytest.approx(rates["ours"] * over["flops_per_image"] / step["peak_flops"])
    assert 0 < over["mfu"] < 1
    assert all(row["peak_memory_mib"] > 0 for row in step["table"])
    assert "ours is" in capsys.readouterr().out


def test_both_methods_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("tools.benchmark.memory_of", lambda config, name: None)
    contenders = ["ours", "ours visible", "ours visible, as MAE"]
    step = main(["--parts", "step", *SMALL, "--contenders", *contenders, "--out", str(tmp_path)])["step"]
    assert [row["name"] for row in step["table"]] == list(step["over"]) == contenders
    mpp, visible, as_mae = (step["over"][name]["flops_per_image"] for name in contenders)
    assert visible < as_mae < mpp


def test_a_missing_library_is_left_out_and_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "vit_pytorch", None)  # importing it raises ImportError
    monkeypatch.setattr("tools.benchmark.memory_of", lambda config, name: None)
    step = main(["--parts", "step", *SMALL, "--contenders", "ours", "vit-pytorch MAE", "--out", str(tmp_path)])["step"]
    assert [row["name"] for row in step["table"]] == ["ours"]
    assert "left out: vit-pytorch MAE (" in capsys.readouterr().out


def test_others_alone_are_refused(tmp_path):
    with pytest.raises(UserError, match="--contenders must include one of ours"):
        main(["--parts", "step", "--contenders", "timm ViT, no head", "--out", str(tmp_path)])


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
