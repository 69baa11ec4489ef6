"""How a command ends."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.helpers import ROOT

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
