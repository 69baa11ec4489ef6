"""What follows a run beside its own files."""

from __future__ import annotations

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mpp.errors import UserError
from mpp.pretrain import main
from mpp.run.folder import read_metrics
from tests.helpers import SMALL, reset_accelerate

FAKE = """
import json, os
class Run:
    def log(self, values, step): say("log", step, sorted(values))
    def finish(self): say("finish")
class config:
    @staticmethod
    def update(values, allow_val_change): say("options", values["train.steps"])
def say(*words):
    with open(os.environ["FAKE_TRACKIO"], "a") as file: file.write(json.dumps(words) + "\\n")
def init(project, **options):
    say("init", project, options)
    return Run()
"""


def pretrain(*options: str) -> None:
    reset_accelerate()
    main([*SMALL, "--train.steps", "2", "--train.log-every", "1", *options])


def test_tensorboard_has_one_chart_of_model_and_guesses_and_the_options_as_text(tmp_path):
    pretrain("--output", str(tmp_path / "run"))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert "first_batch" in events.Tags()["images"]
    for tag in ("eval/bin_accuracy", "eval/baseline_neighbours", "eval/baseline_majority"):
        assert [event.step for event in events.Scalars(tag)] == [2]
    summary = events.SummaryMetadata("custom_scalars__config__")
    assert summary.plugin_data.plugin_name == "custom_scalars"
    layout = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    assert b"eval/bin_accuracy" in layout
    assert b"eval/baseline_neighbours" in layout
    assert b"steps = 2" in events.Tensors("options/text_summary")[0].tensor_proto.string_val[0]
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [1, 2]


def test_another_tracker_gets_the_same_numbers_and_goes_on_when_the_run_does(tmp_path, monkeypatch):
    (tmp_path / "trackio.py").write_text(FAKE)
    (tmp_path / "trackio-1.dist-info").mkdir()
    (tmp_path / "trackio-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: trackio\nVersion: 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("FAKE_TRACKIO", str(tmp_path / "said"))
    run = ("--log.trackers", "trackio", "--output", str(tmp_path / "run"))
    pretrain(*run)
    pretrain(*run, "--train.steps", "3", "--optim.extend", "continue", "--resume")
    said = [json.loads(line) for line in (tmp_path / "said").read_text().splitlines()]
    name = {"name": "run"}
    assert [words[1:] for words in said if words[0] == "init"] == [
        ["masked-patch-prediction", name | {"resume": "never"}],
        ["masked-patch-prediction", name | {"resume": "allow"}],
    ]
    assert [words[1] for words in said if words[0] == "log"] == [1, 2, 3]
    assert [words[1] for words in said if words[0] == "options"] == [2, 3]
    assert said[-1] == ["finish"]
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_a_tracker_that_is_not_installed_is_named_with_the_way_to_install_it(tmp_path):
    with pytest.raises(UserError, match=r"--log.trackers swanlab: its package is not installed; pip install swanlab"):
        pretrain("--log.trackers", "swanlab", "--output", str(tmp_path / "no"))
    assert not (tmp_path / "no").exists()
    with pytest.raises(UserError, match=r"--log.trackers tensorboard tensorboard must be given once each"):
        pretrain("--log.trackers", "tensorboard", "tensorboard", "--output", str(tmp_path / "no"))
