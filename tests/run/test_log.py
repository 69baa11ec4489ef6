"""log.txt: what the terminal said of a run."""

from __future__ import annotations

import io

import pytest

from mpp.console import call
from mpp.errors import UserError
from mpp.run.log import Log, Tee
from tests.helpers import SMALL, reset_accelerate

OPTIONS = {name.removeprefix("--"): value for name, value in zip(SMALL[::2], SMALL[1::2], strict=True)}


def test_the_log_holds_the_lines_of_the_terminal_and_grows_on_resume(tmp_path, capsys):
    options = OPTIONS | {"data.fraction": 0.001, "output": tmp_path / "run"}
    reset_accelerate()
    call("pretrain", options)
    said = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    log = (tmp_path / "run" / "log.txt").read_text().splitlines()
    heard = [line.split(" ", 2)[2] for line in log]
    assert [line for line in heard if "step/s" not in line] == [line.rpartition("\r")[2].strip() for line in said]
    reset_accelerate()
    with pytest.raises(UserError, match="already holds a run"):
        call("pretrain", options)
    assert (tmp_path / "run" / "log.txt").read_text().splitlines() == log
    call("pretrain", options | {"train.steps": 8, "resume": True})
    more = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert more[: len(log)] == log
    assert any("step 8/8" in line for line in more[len(log) :])


def test_a_log_ends_with_the_error_of_its_run_and_a_refused_run_leaves_none(tmp_path):
    reset_accelerate()
    with pytest.raises(UserError):
        call("pretrain", OPTIONS | {"data.fraction": 0.001, "optim.lr": 1e30, "output": tmp_path / "run"})
    assert " error: " in (tmp_path / "run" / "log.txt").read_text().splitlines()[-1]
    reset_accelerate()
    with pytest.raises(UserError):
        call("pretrain", OPTIONS | {"data.path": "./none", "output": tmp_path / "other"})
    assert not (tmp_path / "other").exists()


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_prose_is_wrapped_at_words_on_a_terminal_and_commands_are_not():
    prose, command = "  some words " * 20, "Next: mpp probe " + "--data.path x " * 10
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        print(prose + "\n" + command, file=Tee(stream, Log()))
    assert pipe.getvalue() == f"{prose}\n{command}\n"
    *lines, last = terminal.getvalue().rstrip("\n").split("\n")
    assert last == command
    assert " ".join(" ".join(lines).split()) == " ".join(prose.split())
    assert max(map(len, lines)) <= 80
