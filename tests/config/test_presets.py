"""Presets: named with or without a path, and built on one another."""

from __future__ import annotations

import os

import pytest

from mpp.config import Compare, FineTune, Pretrain
from mpp.config.bounds import Mark, marked, option_name
from mpp.config.command_line import parse
from mpp.config.presets import presets, purpose, read_toml
from mpp.errors import UserError
from tests.helpers import PRESETS


def test_a_preset_is_named_without_a_path_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    by_name = parse(Pretrain, ["--config", "tiny-imagenet-32"])
    by_path = parse(Pretrain, ["--config", str(PRESETS / "tiny-imagenet-32.toml")])
    by_path.config = by_name.config
    assert by_name == by_path
    assert by_name.train.batch_size == 256


def test_a_file_beside_the_user_wins_over_a_preset_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").write_text("[train]\nsteps = 7")
    assert parse(Pretrain, ["--config", "quickstart"]).train.steps == 7


def test_a_name_that_is_no_preset_is_told_with_those_there_are():
    with pytest.raises(UserError, match=r"--config nothere: No such file.*presets by name: .*quickstart"):
        parse(Pretrain, ["--config", "nothere"])


def test_a_preset_builds_on_another_and_says_only_what_differs():
    base, built = read_toml("compare-small-images"), read_toml("compare-few-labels")
    assert built["finetune"]["train"] == base["finetune"]["train"] | {"steps": 2820}
    assert built["finetune"]["optim"] == base["finetune"]["optim"]
    assert parse(Compare, ["--config", "compare-few-labels"]).finetune.augment.mixup == 0.8


def test_a_base_is_found_beside_its_preset_and_may_not_lead_back(tmp_path):
    (tmp_path / "mine.toml").write_text('base = "under.toml"\n[train]\nsteps = 3')
    (tmp_path / "under.toml").write_text('base = "quickstart"\n[optim]\nlr = 0.5')
    config = parse(Pretrain, ["--config", str(tmp_path / "mine.toml")])
    assert (config.train.steps, config.optim.lr, config.optim.name) == (3, 0.5, "muon")
    (tmp_path / "under.toml").write_text('base = "mine.toml"')
    with pytest.raises(UserError, match="leads back"):
        parse(Pretrain, ["--config", str(tmp_path / "mine.toml")])
    (tmp_path / "under.toml").write_text("base = 3")
    with pytest.raises(UserError, match="base 3 must be the name or path"):
        parse(Pretrain, ["--config", str(tmp_path / "mine.toml")])


def test_every_preset_says_what_it_is_for():
    assert set(presets()) == {path.stem for path in PRESETS.glob("*.toml")}
    assert all(20 < len(purpose(file)) < 250 for file in presets().values())


@pytest.mark.parametrize("kind", [Pretrain, FineTune, Compare])
def test_a_preset_names_nothing_to_write_or_to_go_on_with(tmp_path, kind):
    preset = tmp_path / "mine.toml"
    for key in marked(kind(), Mark.ONCE):
        preset.write_text(f"{key} = true" if isinstance(getattr(kind(), key), bool) else f'{key} = "{tmp_path}/x.csv"')
        with pytest.raises(UserError, match=rf"mine.toml: {option_name(key)} is for the command line alone"):
            parse(kind, ["--config", str(preset)])
    (tmp_path / "under.toml").write_text('output = "elsewhere"')
    preset.write_text('base = "under.toml"')
    with pytest.raises(UserError, match="--output is for the command line"):
        parse(kind, ["--config", str(preset)])
    preset.write_text("resume = false")  # as the config.toml of an older version has it
    assert not parse(Pretrain, ["--config", str(preset)]).resume


def test_a_pipe_is_no_preset(tmp_path):
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(UserError, match=r"pipe\.toml is a pipe, a socket or a device"):
        parse(Pretrain, ["--config", str(tmp_path / "pipe.toml")])
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run" / "config.toml")
    with pytest.raises(UserError, match="is a pipe"):
        parse(Pretrain, ["--resume", "--output", str(tmp_path / "run")])
