"""How long a run trains: steps, epochs, or what fits the number of labels."""

from __future__ import annotations

import json

import pytest

from mpp.config import Compare, FineTune, Pretrain
from mpp.config.checks import check
from mpp.config.command_line import parse
from mpp.config.options import FineTuneTrain, Optim, Train
from mpp.config.schedule import timed, told
from mpp.console import call
from mpp.errors import UserError
from tests.helpers import SMALL, put, reset_accelerate


@pytest.mark.parametrize(("epochs", "steps"), [(1, 32), (0.5, 16), (2.01, 63), (10, 313)])
def test_steps_follow_from_epochs(epochs, steps):
    assert timed(Train(epochs=epochs, batch_size=32), 1000, Optim()).steps == steps


def test_epochs_and_steps_are_not_both_given(tmp_path):
    with pytest.raises(UserError, match=r"^--train.steps and --train.epochs are two ways to say how long: give one"):
        parse(Pretrain, ["--epochs", "2", "--steps", "3"])
    (tmp_path / "p.toml").write_text("[train]\nsteps = 5\nepochs = 2\n")
    with pytest.raises(UserError, match=r"give one of them \(in "):
        parse(Pretrain, ["--config", str(tmp_path / "p.toml")])


def test_the_line_wins_over_the_preset_and_a_preset_over_its_base(tmp_path):
    (tmp_path / "epochs.toml").write_text("[train]\nepochs = 2\n")
    (tmp_path / "steps.toml").write_text('base = "epochs.toml"\n[train]\nsteps = 5\n')
    train = parse(Pretrain, ["--config", str(tmp_path / "epochs.toml"), "--steps", "3"]).train
    assert (train.steps, train.epochs) == (3, None)
    train = parse(Pretrain, ["--config", str(tmp_path / "steps.toml")]).train
    assert (train.steps, train.epochs) == (5, None)
    assert parse(Pretrain, ["--config", str(tmp_path / "steps.toml"), "--epochs", "3"]).train.epochs == 3


def test_epochs_of_shards_and_of_comparisons_are_refused_in_one_line():
    with pytest.raises(UserError, match=r"--train.epochs 2 counts images, and .* give --train.steps"):
        timed(Train(epochs=2), None, Optim())
    with pytest.raises(UserError, match=r"--finetune.train.epochs 2: a comparison plans in --finetune.train.steps"):
        check(parse(Compare, ["--finetune.train.epochs", "2"]))


@pytest.mark.parametrize(
    ("labels", "batch", "steps"),
    [(10, 16, 200), (40, 16, 200), (800, 64, 750), (5000, 128, 2000), (128_000, 128, 5000)],
)
def test_fine_tuning_fits_the_number_of_labels(labels, batch, steps, capsys):
    train = timed(FineTuneTrain(), labels, Optim())
    assert (train.batch_size, train.steps) == (batch, steps)
    assert f"the {labels:,} labels give {steps:,} steps of {batch} images" in capsys.readouterr().out


def test_what_is_given_of_steps_and_batch_is_kept():
    assert timed(FineTuneTrain(steps=7), 800, Optim()).batch_size == 64
    assert timed(FineTuneTrain(batch_size=8), 80, Optim()).steps == 600
    assert FineTune().train.steps == 0
    assert told(Train(steps=100, batch_size=32), 6400) == "100 steps of 32 images: 0.50 epochs of 6,400"


def test_a_run_of_epochs_says_both_keeps_the_steps_and_goes_on_by_epochs(tmp_path, capsys):
    for number in range(20):
        put(tmp_path / "set" / f"{number}.png", number)
    options = dict(zip(SMALL[::2], SMALL[1::2], strict=True)) | {
        "--data": tmp_path / "set",
        "--output": tmp_path / "run",
    }
    line = {name.removeprefix("--"): value for name, value in options.items() if name != "--train.steps"}
    reset_accelerate()
    assert call("pretrain", line | {"epochs": 2})["step"] == 5  # 18 images: 2 are held out
    assert "5 steps of 8 images: 2.2 epochs of 18" in capsys.readouterr().out
    assert "epochs =" not in (tmp_path / "run" / "config.toml").read_text()
    reset_accelerate()
    assert call("pretrain", {"output": tmp_path / "run", "resume": True, "epochs": 3})["step"] == 7
    assert json.loads((tmp_path / "run" / "result.json").read_text())["step"] == 7
