"""One folder, one run: the lock, what killed runs leave, and links in an output folder."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from mpp.errors import UserError
from mpp.files import draft_of, write_whole
from mpp.methods.masked_patches import MaskedPatches
from mpp.models.backbones import load_backbone
from mpp.run.lock import NAME, Holder, born, locked, read
from mpp.training import checkpoints
from tests.helpers import one_line, pretrain


@pytest.fixture
def other(tmp_path):
    """Another process, and the lock that it would write into a run's folder."""
    process = subprocess.Popen(["sleep", "600"])
    yield process, dataclasses.replace(Holder.me(), pid=process.pid, born=born(process.pid))
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of six steps."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    pretrain(folder)
    return folder


def leave(holder: Holder, folder: Path) -> Path:
    """A lock of `holder` in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NAME).write_text(json.dumps(dataclasses.asdict(holder)))
    return folder / NAME


def test_a_second_run_in_a_folder_is_refused_and_the_first_is_not_touched(other, tmp_path):
    process, holder = other
    lock = leave(holder, tmp_path / "run")
    with pytest.raises(UserError) as error:
        pretrain(tmp_path / "run")
    said = one_line(error)
    for part in ("--output", f"process {process.pid} on {holder.host}, started {holder.started}", "another name"):
        assert part in said
    assert [path.name for path in lock.parent.iterdir()] == [NAME]
    with pytest.raises(UserError, match="in use"):  # a piece of a comparison that goes on, say
        pretrain(tmp_path / "run" / "pretrain" / "mpp")
    assert read(lock) == holder


@pytest.mark.parametrize("how", ["killed", "number used again", "machine started anew"])
def test_the_lock_of_a_process_that_has_ended_is_taken_over_and_said(other, tmp_path, capsys, how):
    process, holder = other
    if how == "killed":
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, but nobody has asked how it ended
    elif how == "number used again":
        holder = dataclasses.replace(holder, born="1")
    else:
        holder = dataclasses.replace(holder, space="another-boot pid:[1]")
    lock = leave(holder, tmp_path / "run")
    assert len(pretrain(tmp_path / "run", "--train.steps", "2")) == 2
    assert f"left locked by a run that has ended (process {process.pid} on" in capsys.readouterr().out
    assert not lock.exists()


@pytest.mark.parametrize("content", ["other host", "other container", "", "[1]", '{"pid": 1}'])
def test_a_lock_that_nobody_here_can_judge_names_the_file_to_remove(other, tmp_path, content):
    holder = dataclasses.replace(other[1], host="elsewhere")
    if content == "other container":
        holder = dataclasses.replace(other[1], space=other[1].space.partition(" ")[0] + " pid:[1]")
    lock = leave(holder, tmp_path / "run")
    if not content.startswith("other"):
        lock.write_text(content)
    with pytest.raises(UserError, match=re.escape(f"if that run has ended, remove {lock}")):
        pretrain(tmp_path / "run")
    assert lock.exists()


def test_a_lock_ends_with_the_run_however_it_ends(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(MaskedPatches, "pictures", lambda *_: seen.append(read(tmp_path / "run" / NAME)) or {})
    pretrain(tmp_path / "run")
    assert seen
    assert all(holder.is_me() for holder in seen)
    assert not (tmp_path / "run" / NAME).exists()
    with pytest.raises(UserError, match="already holds a run"):
        pretrain(tmp_path / "run")
    with pytest.raises(UserError, match="nowhere"):
        pretrain(tmp_path / "new" / "run", "--data.path", "./nowhere")
    assert not (tmp_path / "run" / NAME).exists()
    assert not (tmp_path / "new").exists()


def test_a_lock_that_another_has_taken_meanwhile_is_not_removed(other, tmp_path):
    with locked(tmp_path / "x.lock", "--out x"):
        write_whole(tmp_path / "x.lock", json.dumps(dataclasses.asdict(other[1])).encode())
    assert read(tmp_path / "x.lock") == other[1]


def test_what_a_killed_run_left_half_written_is_cleared_away_and_nothing_else(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    ours = [draft_of(tmp_path / "run" / name) for name in ("result.json", "samples/x.png", "checkpoints/step_00000009")]
    for path in ours:
        path.write_text("half")
    theirs = [tmp_path / "run" / name for name in ("notes.tmp", "checkpoints/mine.tmp", "samples/0123.tmp")]
    for path in theirs:
        path.write_text("a user's own")
    pretrain(tmp_path / "run", "--resume")
    assert not any(path.exists() for path in ours)
    assert all(path.exists() for path in theirs)


@pytest.mark.parametrize(
    "name", ["config.toml", "metrics.jsonl", "result.json", "checkpoints", "samples", "backbone", "tensorboard"]
)
def test_a_link_under_a_name_that_a_run_writes_is_refused(tmp_path, name):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=rf"/run/{name} is a link"):
        pretrain(tmp_path / "run")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_link_in_the_place_of_a_file_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "file").symlink_to(tmp_path / "precious")
    (tmp_path / "file.tmp").symlink_to(tmp_path / "precious")
    write_whole(tmp_path / "file", b"new")
    assert ((tmp_path / "file").read_text(), (tmp_path / "precious").read_text()) == ("new", "kept")
    with pytest.raises(FileExistsError):
        write_whole(tmp_path / "file", b"newer", overwrite=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "file.tmp", "precious"]


@pytest.mark.parametrize("kind", ["outside", "link", "pipe", "unlisted"])
def test_a_checkpoint_has_only_ordinary_files_of_its_own(finished, tmp_path, kind):
    shutil.copytree(finished, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step_00000006"
    file = newest / "model.safetensors"
    state = json.loads((newest / "state.json").read_text())
    if kind == "outside":  # with its right checksum
        file.rename(tmp_path / "run" / "model.safetensors")
        state["files"]["../../model.safetensors"] = state["files"].pop("model.safetensors")
    elif kind == "unlisted":
        del state["files"]["model.safetensors"]
    else:
        file.rename(tmp_path / "away")
        file.symlink_to(tmp_path / "away") if kind == "link" else os.mkfifo(file)
    del state["sha256"]
    (newest / "state.json").write_text(json.dumps(state | {"sha256": checkpoints.sha256_of_state(state)}))
    with pytest.warns(UserWarning, match=r"step_00000006 is damaged"):
        assert checkpoints.latest(newest.parent)[1]["step"] == 4


def test_files_of_a_run_have_the_modes_that_the_user_gives_new_files(tmp_path):
    before = os.umask(0o027)
    try:
        pretrain(tmp_path / "run", "--train.steps", "2")
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {"model.safetensors", "optimizer.pt", "result.json", "metrics.jsonl"} <= {path.name for path in files}
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in files} == {path.name: 0o640 for path in files}


@pytest.mark.parametrize("name", ["set", "set.parquet", "set.mpp"])
def test_a_pipe_is_no_set_of_images(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=rf"--data\.path .*/{name} is a pipe, a socket or a device"):
        pretrain(tmp_path / "run", "--data.path", str(tmp_path / name))


@pytest.mark.parametrize("name", ["init", "init/config.json", "init/backbone/model.safetensors"])
def test_a_pipe_is_no_backbone(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=rf"--init .*: .*/{name} is a pipe, a socket or a device"):
        load_backbone(str(tmp_path / "init"))
