"""The one door: `mpp NAME`, `python -m mpp`, the files, and the functions in Python."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import mpp
from mpp.config import Pretrain
from mpp.config.words import spelt_out
from mpp.console import COMMANDS, OTHERS, overview, run_file
from mpp.errors import UserError, renamed
from tests.helpers import ROOT, SMALL


def call(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "mpp", *words], cwd=cwd, capture_output=True, text=True, check=False)


def test_help_names_every_command_in_a_line():
    lines = overview().splitlines()
    for name in [*COMMANDS, *OTHERS]:
        assert sum(line.startswith(f"  {name} ") and line.endswith(".") for line in lines) == 1


def test_the_console_lists_presets_and_refuses_an_unknown_command(tmp_path):
    listed = call("presets", cwd=tmp_path)
    assert listed.returncode == 0
    assert all(Path(line.strip()).is_file() for line in listed.stdout.splitlines()[2::3])
    wrong = call("pretain", cwd=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: mpp has no command 'pretain'; did you mean pretrain?\n"


def test_a_command_runs_from_python_with_names_and_values_or_an_object(tmp_path):
    options = dict(zip([name.removeprefix("--") for name in SMALL[::2]], SMALL[1::2], strict=True))
    result = mpp.pretrain(options | {"output": str(tmp_path / "a"), "train.steps": 2, "eval.images": 20})
    assert result == json.loads((tmp_path / "a" / "result.json").read_text())
    assert result["step"] == 2
    config = Pretrain(output=str(tmp_path / "b"))
    config.model.img_size, config.model.depth, config.train.steps, config.eval.images = 16, 1, 1, 10
    before = repr(config)
    assert mpp.pretrain(config)["step"] == 1
    assert repr(config) == before  # a run writes nothing into the user's options
    with pytest.raises(UserError, match=r"--train.steps 0 must be above 0"):
        mpp.pretrain({"train.steps": 0})


def test_values_may_come_first_without_their_options():
    places = COMMANDS["predict"].in_place
    named = ["--init", "RUN", "--data.path", "DATA"]
    assert spelt_out(["RUN", "DATA", "--top", "2"], [], places) == [*named, "--top", "2"]
    assert spelt_out(["RUN", "--top", "2"], [], places) == ["--init", "RUN", "--top", "2"]
    assert spelt_out(["RUN", "DATA", "odd"], [], places) == [*named, "odd"]
    assert spelt_out(["RUN"], []) == ["RUN"]


def test_importing_the_file_leaves_the_function_callable():
    import mpp.pretrain

    assert callable(mpp.pretrain)
    assert callable(mpp.finetune)
    assert mpp.pretrain.main


def test_a_file_takes_its_own_folder_off_the_import_path(monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [str(ROOT / "recipes"), "/elsewhere"])
    with pytest.raises(SystemExit) as end:
        run_file(str(ROOT / "recipes" / "compare.py"), lambda: print(sys.path))
    assert end.value.code == 0
    assert capsys.readouterr().out == "['/elsewhere']\n"


@pytest.mark.parametrize("path", ["runs/a--b", "my --data set", "--", "x/--model.y"])
def test_an_option_is_renamed_in_a_message_and_what_the_user_typed_is_not(path):
    with pytest.raises(UserError) as told, renamed("--", "--pretrain.", [path]):
        raise UserError(f"--data.path {path} does not exist; --data.split names another")
    assert str(told.value) == f"--pretrain.data.path {path} does not exist; --pretrain.data.split names another"


def test_a_warning_is_one_line_without_our_source(tmp_path):
    (tmp_path / "images" / "b").mkdir(parents=True)
    from PIL import Image

    for number in range(4):
        Image.new("RGB", (16, 16), (number * 20, 0, 0)).save(tmp_path / "images" / "b" / f"{number}.png")
    (tmp_path / "images" / "b" / "x.heic").write_bytes(b"1")
    done = call("pretrain", *SMALL, "--data.path", "images", "--train.steps", "1", "--output", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "left out" in line and line.startswith("warning: 1 file is")]
    assert "folders.py" not in done.stderr
