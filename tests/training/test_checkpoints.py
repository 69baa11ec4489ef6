"""Checkpoints: whole or not at all, checked before use, the last few kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mpp.errors import UserError
from mpp.files import sha256_of
from mpp.training import checkpoints
from tests.helpers import pretrain


def model_and_optimizer(value: float) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A layer whose weights are `value`, and its optimiser after a step."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    nn.init.constant_(model.weight, value)
    return model, optimizer


def save(folder: Path, step: int, keep: int = 2) -> Path:
    """A checkpoint whose weights are its step."""
    return checkpoints.save(folder, step, *model_and_optimizer(float(step)), {"positions": {}}, keep)


def steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder."""
    return [int(path.name.removeprefix("step_")) for path in checkpoints.written(folder)]


def test_weights_and_optimiser_come_back_to_the_last_bit(tmp_path):
    model, optimizer = model_and_optimizer(0.3)
    path = checkpoints.save(tmp_path, 7, model, optimizer, {"positions": {"1": [2, 3]}}, keep=2)
    assert path.name == "step_00000007"
    found = checkpoints.latest(tmp_path)
    assert found is not None
    assert (found[0], found[1]["step"], found[1]["positions"]) == (path, 7, {"1": [2, 3]})
    other, its_optimizer = model_and_optimizer(0.9)
    checkpoints.load(path, other, its_optimizer)
    assert torch.equal(other.weight, model.weight)
    for a, b in zip(optimizer.state.values(), its_optimizer.state.values(), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_only_the_last_are_kept(tmp_path):
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    assert steps(tmp_path) == [3, 4]


def test_what_a_kill_left_half_written_is_never_chosen(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "step_00000002.tmp").mkdir()
    assert checkpoints.latest(tmp_path)[1]["step"] == 1
    assert steps(tmp_path) == [1]
    save(tmp_path, 2)
    assert steps(tmp_path) == [1, 2]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(tmp_path, name, damage):
    save(tmp_path, 1)
    path = save(tmp_path, 2) / name
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif name == "state.json":
        path.write_bytes(b"[" + content)
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"step_00000002 is damaged"):
        found = checkpoints.latest(tmp_path)
    assert found[1]["step"] == 1


def test_damaged_newer_checkpoints_do_not_push_out_good_ones(tmp_path):
    save(tmp_path, 250, keep=3)
    for step in (500, 750):
        (save(tmp_path, step, keep=3) / "model.safetensors").write_bytes(b"")
    save(tmp_path, 300)
    assert steps(tmp_path) == [250, 300]


def test_a_failed_save_leaves_the_last_checkpoint_and_no_draft(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "flush", full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, 2)
    assert steps(tmp_path) == [1]
    assert not list(tmp_path.glob("*.tmp"))


def test_there_is_no_checkpoint_in_an_empty_or_missing_folder(tmp_path):
    assert checkpoints.latest(tmp_path) is None
    assert checkpoints.latest(tmp_path / "nowhere") is None


def test_weights_that_are_not_finite_are_not_gone_on_with(tmp_path):
    pretrain(tmp_path, "--train.steps", "2")
    path = next((tmp_path / "checkpoints").iterdir())
    weights = load_file(path / "model.safetensors")
    weights["vit.norm.bias"][0] = torch.nan
    save_file(weights, path / "model.safetensors")
    state = json.loads((path / "state.json").read_text())
    state["files"]["model.safetensors"] = sha256_of(path / "model.safetensors")
    del state["sha256"]
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"step_00000002 holds weights that are not finite \(vit.norm.bias\)"):
        pretrain(tmp_path, "--resume")
