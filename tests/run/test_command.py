"""How a command ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mpp.config import Pretrain
from mpp.run.folder import how_to_resume
from tests.helpers import ROOT, reset_accelerate

PROGRAM = """
import atexit, sys
from mpp.errors import UserError
from mpp.run.command import run_command

class Held:
    def __del__(self):
        print("taken down")

def main():
    print("worked")
    if sys.argv[1] == "2":
        raise UserError("a wrong option")

held = Held()
atexit.register(print, "at exit")
run_command(main)
"""


@pytest.mark.parametrize("code", [0, 2])
@pytest.mark.parametrize(("processes", "said"), [(1, ["worked", "at exit", "taken down"]), (2, ["worked", "at exit"])])
def test_one_of_several_processes_ends_without_taking_the_interpreter_down(processes, said, code):
    line = [sys.executable, "-c", PROGRAM, str(code)]
    environment = os.environ | {"WORLD_SIZE": str(processes), "RANK": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split("\n")[:-1]) == (code, said)
    assert ("a wrong option" in done.stderr) == (code == 2)


def test_the_line_that_resumes_works_from_any_folder(tmp_path, monkeypatch):
    reset_accelerate()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/mpp"])
    (tmp_path / "my photos").mkdir()
    config = Pretrain(output="run")
    here = f"{tmp_path}/run"
    line = f"mpp pretrain --config {here}/config.toml --output {here} --resume"
    assert how_to_resume("pretrain", 3, Path("run"), config) == f"stopped at step 3; resume with: {line}"
    config.data.path = "my photos"
    assert f"resume with: cd {tmp_path} && {line}" in how_to_resume("pretrain", 3, Path("run"), config)
    assert "--output '/a b'" in how_to_resume("pretrain", 3, Path("/a b"), config)
