"""`--dry-run`: it says what a command would take, and leaves everything as it is."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import mpp
from mpp.commands import rehearsal
from mpp.commands.rehearsal import evaluations_of
from mpp.comparison import rehearsal as rehearsal_of_comparisons
from mpp.comparison.pieces import Piece
from mpp.config import Pack, Pretrain, Supervised
from mpp.config.options import LabelledTrain, PretrainEval, ProbedEval, Train
from mpp.console import start
from mpp.errors import UserError
from mpp.run.lock import Holder
from mpp.run.measured import told_bytes, told_time
from mpp.training.checkpoints import Start
from tests.helpers import SMALL, launch_file, one_line, pretrain, put, reset_accelerate, two_processes, write_shards

SHAPE = {"model.img_size": 16, "model.embed_dim": 32, "model.depth": 2, "model.num_heads": 2}
SHORT = {"train.steps": 6, "train.batch_size": 8, "optim.warmup_steps": 2}
LABELLED = {"train.steps": 6, "train.batch_size": 8, "optim.warmup_steps": 2, "eval.every": 4}


@pytest.fixture(autouse=True)
def fresh():
    reset_accelerate()


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Measure for a moment only."""
    before = rehearsal._SECONDS
    rehearsal._SECONDS = 0.05
    yield
    rehearsal._SECONDS = before


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Forty pictures in two classes, each another grey."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(40):
        put(folder / ("cat", "dog")[number % 2] / f"{number:02}.png", 6 * number)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A pretraining that has done 6 steps."""
    folder = tmp_path_factory.mktemp("runs") / "begun"
    pretrain(folder)
    return folder


def everything(folder):
    """Every file below a folder: content and time of the last change."""
    files = (path for path in sorted(folder.rglob("*")))
    return {str(path): (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in files}


def lines_of(text):
    """The facts that the last dry run printed, by name."""
    facts = text.rpartition("\ndry run: ")[2].splitlines()[1:]
    return {line[2:].split("  ")[0]: line[2:].split("  ", 1)[1].strip() for line in facts}


def test_a_pretraining_tells_images_model_steps_memory_and_time_and_makes_no_folder(photos, tmp_path, capsys):
    options = {"data.path": str(photos), "output": str(tmp_path / "run"), "dry_run": True, "eval.every": 4}
    found = mpp.pretrain(options | SHAPE | SHORT | {"dry_run_picture": str(tmp_path / "first.png")})
    said = lines_of(capsys.readouterr().out)
    assert [path.name for path in tmp_path.iterdir()] == ["first.png"]
    assert said["images"] == "36 to train on, 4 held out"
    assert "2 blocks of width 32" in said["model"]
    assert "16 patches of 4 x 4" in said["model"]
    assert said["training"] == "6 steps of 8 images: 1.3 epochs of 36"
    assert said["first batch"].startswith("(8, 3, 16, 16) uint8")
    assert said["time"].startswith(f"{told_time(found['seconds'])}: 6 steps of")
    assert found["evaluations"] == 2
    assert found["eval_images"] == found["evaluated"] == 4
    assert 50 << 20 < found["peak_process_bytes"] < 64 << 30
    parts = [found["steps"] * found["seconds_a_step"], found["evaluations"] * found["seconds_an_evaluation"]]
    assert found["seconds"] == pytest.approx(sum(parts))
    assert found["seconds_a_step"] > 0


def test_the_picture_shows_the_first_batch_and_what_the_model_sees_of_it(photos, tmp_path):
    picture = tmp_path / "first.png"
    mpp.pretrain(
        {"data.path": str(photos), "dry_run": True, "dry_run_picture": str(picture)}
        | SHAPE
        | SHORT
        | {"corrupt.mask": 1.0, "corrupt.other": 0.0, "corrupt.keep": 0.0}
    )
    pixels = np.asarray(Image.open(picture).convert("L"))[6:114, 6:]  # the first row, of pairs 224 pixels wide
    whole, seen = pixels[:, 2:104], pixels[:, 116:220]
    assert len(np.unique(whole)) == 1  # a picture of one grey
    assert (seen == 128).mean() == pytest.approx(0.5, abs=0.05)  # half of the patches are [mask]


def test_a_run_to_resume_is_told_from_which_step_it_goes_on_and_stays_as_it_is(run, capsys):
    before = everything(run)
    options = {"output": str(run), "dry_run": True, "resume": True, "config": str(run / "config.toml")}
    found = mpp.pretrain(options | {"train.steps": 10})
    assert (found["steps"], found["evaluations"]) == (4, 2)
    assert "it goes on after step 6, with 4 to do" in capsys.readouterr().out
    reset_accelerate()
    found = mpp.pretrain(options)
    assert (found["steps"], found["evaluations"]) == (0, 1)
    assert "all steps are done" in capsys.readouterr().out
    reset_accelerate()
    with pytest.raises(UserError, match="already holds a run"):
        mpp.pretrain(options | {"resume": False})
    assert everything(run) == before


def test_a_folder_in_use_is_refused_and_the_lock_stays(tmp_path):
    holder = dataclasses.replace(Holder.me(), pid=1, born="0", host="elsewhere")
    (tmp_path / "run.lock").write_text(json.dumps(dataclasses.asdict(holder)))
    before = everything(tmp_path)
    with pytest.raises(UserError, match="in use by another run"):
        mpp.pretrain({"output": str(tmp_path / "inner"), "dry_run": True})
    assert everything(tmp_path) == before


@pytest.mark.parametrize(("steps", "every", "done"), [(6, 3, 0), (7, 3, 0), (7, 3, 3), (7, 3, 4), (2, 9, 0), (6, 3, 6)])
def test_evaluations_are_counted_as_the_loop_makes_them(steps, every, done):
    due = [step for step in range(done + 1, steps + 1) if step % every == 0 or step == steps]
    count = len(due) or 1  # a run that is done is evaluated again
    config = Pretrain(train=Train(steps=steps), eval=PretrainEval(every=every))
    assert evaluations_of(config, Start(step=done)) == count
    tuned = Supervised(train=LabelledTrain(steps=steps), eval=ProbedEval(every=every))
    assert evaluations_of(tuned, Start(step=done)) == count
    again = dataclasses.replace(tuned, init="runs/x", eval=ProbedEval(every=every, probe="shapes"))
    assert evaluations_of(again, Start(step=done)) == count + (done == 0)  # what may be forgotten


def test_every_other_command_counts_and_writes_nothing(run, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = {"init": str(run), "data.path": str(photos), "dry_run": True}
    tuned = mpp.finetune(given | LABELLED | {"optim.lr_grid": (1e-3, 1e-2), "augment.mixup": 0.8})
    assert "3 times (--optim.lr-grid)" in lines_of(capsys.readouterr().out)["time"]
    once = tuned["steps"] * tuned["seconds_a_step"] + tuned["evaluations"] * tuned["seconds_an_evaluation"]
    assert tuned["seconds"] == pytest.approx(3 * once)
    classes = {"data.path": str(photos), "dry_run": True, "dry_run_picture": "s.png", "train.auto_batch": True}
    assert mpp.supervised(classes | SHAPE | LABELLED)["eval_images"] == 8
    assert Image.open("s.png").height > 112 + 16  # with a line below each image
    assert mpp.probe(given)["images"] == 40
    assert mpp.embed(given)["images"] == 40
    assert lines_of(capsys.readouterr().out)["file"] == "5 KiB: 32 numbers an image, float32"
    packed = start(Pack(out="set.mpp", data=dataclasses.replace(Pack().data, path=str(photos)), dry_run=True))
    assert (packed["images"], packed["bytes"]) == (40, 40 * 8 * 8 * 3)
    assert [path.name for path in tmp_path.iterdir()] == ["s.png"]


def test_predicting_and_measuring_tell_the_images_and_write_nothing(run, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mpp.finetune({"init": str(run), "data.path": str(photos), "output": "tuned"} | LABELLED)
    before = everything(tmp_path)
    given = {"init": "tuned", "data.path": str(photos), "dry_run": True}
    assert mpp.predict(given)["images"] == 40
    assert mpp.finetune(given | {"eval_only": True})["images"] == 8  # those held out
    assert everything(tmp_path) == before


def test_two_processes_rehearse_shards_together(tmp_path):
    shards = write_shards(tmp_path / "shards", 4, 12)
    options = ["--data.path", str(shards), "--dry-run", "--output", str(tmp_path / "run"), "--train.steps", "3"]
    done = launch_file("mpp/pretrain.py", *SMALL, *options, launcher=two_processes())
    assert done.returncode == 0, done.stderr
    said = lines_of(done.stdout)
    assert said["images"].startswith("a stream to train on")
    assert "4 images at a time" in said["a step"]
    assert "in each of 2 processes" in said["time"]
    assert done.stdout.count("dry run") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dry_run_picture": "a.png"}, "--dry-run-picture a.png is painted by --dry-run: give both, or leave it out"),
        ({"dry_run": True, "dry_run_picture": "a.jpg"}, "--dry-run-picture a.jpg must end in .png"),
        ({"dry_run": True, "dry_run_picture": "/dev/null/a.png"}, "/dev/null/a.png can no longer be written"),
        ({"dry_run": True, "output": "/dev/null/run"}, "--output /dev/null/run cannot be written"),
    ],
)
def test_a_bad_place_is_one_line(options, says, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        mpp.pretrain(options | SHAPE | SHORT | {"eval.images": 4})
    assert says in one_line(error)


def test_a_picture_that_is_there_is_not_replaced(tmp_path):
    put(tmp_path / "a.png", 3)
    with pytest.raises(UserError, match=r"a.png is there already; remove it"):
        mpp.pretrain({"dry_run": True, "dry_run_picture": str(tmp_path / "a.png")})


def test_times_and_sizes_read_well():
    times = (0.0042, 0.2, 5.64, 59.6, 185, 26400, 3 * 86400 + 3 * 3600)
    said = ["4.2 ms", "0.20 s", "5.6 s", "1 min", "3 min 5 s", "7 h 20 min", "3 days 3 h"]
    assert list(map(told_time, times)) == said
    assert list(map(told_bytes, (5000, 2e6, 5e9))) == ["4.88 KiB", "1.91 MiB", "4.7 GiB"]


def test_of_runs_that_differ_in_seed_length_or_decay_one_is_rehearsed_for_all(tmp_path, monkeypatch, capsys):
    measured = {"seconds_a_step": 2.0, "seconds_an_evaluation": 10.0, "seconds_a_probe": 1.0}
    asked = []
    monkeypatch.setattr(rehearsal_of_comparisons, "run_piece", lambda options, _: asked.append(options) or measured)
    first = Pretrain(train=Train(steps=100), eval=PretrainEval(every=50))
    decayed = dataclasses.replace(first.optim, weight_decay=0.3)
    options = [
        first,
        dataclasses.replace(first, seed=3, optim=decayed, train=Train(steps=300)),
        dataclasses.replace(first, optim=dataclasses.replace(first.optim, name="sgd")),
        dataclasses.replace(first, train=Train(steps=100, batch_size=64)),
    ]
    pieces = [Piece(f"run {n}", tmp_path / str(n), config) for n, config in enumerate(options)]
    main = SimpleNamespace(print=print)
    seconds = rehearsal_of_comparisons.rehearsed(pieces, main)
    assert [config.optim.name for config in asked] == ["muon", "sgd", "muon"]
    assert all(config.dry_run for config in asked)
    assert list(seconds.values()) == [100 * 2 + 2 * 11, 300 * 2 + 6 * 11, 222, 222]
    assert "[1/3] run 0, for 2 like it" in capsys.readouterr().out
