"""`mpp NAME --processes N`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mpp.errors import UserError
from mpp.run.launch import processes_asked_for


@pytest.mark.parametrize(
    ("words", "count", "rest"),
    [
        (["photos", "--processes", "2", "--lr", "1"], 2, ["photos", "--lr", "1"]),
        (["--processes=3"], 3, []),
        (["--seed", "1"], 1, ["--seed", "1"]),
    ],
)
def test_the_option_is_taken_off_the_line(words, count, rest):
    assert processes_asked_for(words) == (count, rest)


@pytest.mark.parametrize("words", [["--processes"], ["--processes", "0"], ["--processes=two"], ["--processes", "-1"]])
def test_what_is_no_count_is_refused(words):
    with pytest.raises(UserError, match="must be a number above 0"):
        processes_asked_for(words)


def test_a_process_that_was_launched_launches_no_others(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="a launcher has started this process already"):
        processes_asked_for(["--processes", "2"])


def test_several_processes_end_with_our_line_alone(tmp_path):
    line = [sys.executable, "-m", "mpp", "pretrain", "--bogus", "1", "--processes", "2"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    said = "error (rank 0 of 2): Unrecognized options: --bogus, 1; --help lists them all\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)
