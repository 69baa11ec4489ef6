"""What --help and --help-all say."""

from __future__ import annotations

import re

import pytest

from mpp.config.bounds import option_name
from mpp.config.command_line import flattened
from mpp.config.help import help_of
from mpp.console import COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_the_whole_help_explains_every_option_once_at_80_columns(name):
    kind = COMMANDS[name].options
    said = help_of(kind, f"mpp {name}", COMMANDS[name].in_place, every=True)
    for option in map(option_name, flattened(kind())):
        assert len(re.findall(rf"^  {re.escape(option)}[, \n]", said, re.MULTILINE)) == 1
    assert not re.search(r"None\}|default: None|\[Default|<class", said)
    assert not [part for part in said.split("\n  --") if "Default:" in part and "(default:" in part]
    prose = [line for line in said.splitlines() if not re.match(r"  (mpp|python|--)|usage", line)]
    assert max(map(len, prose)) <= 80


@pytest.mark.parametrize("name", ["pretrain", "finetune", "supervised", "probe", "compare"])
def test_the_short_help_fits_on_two_screens_and_names_the_whole(name):
    kind = COMMANDS[name].options
    said = help_of(kind, f"mpp {name}", COMMANDS[name].in_place, every=False)
    assert len(said.splitlines()) < 100
    assert said.endswith(f"`mpp {name} --help-all` explains all {len(flattened(kind()))} options.")
    assert "--data.path" in said
    assert "--seed" in said


def test_short_forms_values_and_defaults_are_shown():
    said = help_of(COMMANDS["pretrain"].options, "mpp pretrain", ("--data.path",), every=True)
    assert said.startswith("usage: mpp pretrain [DATA] [OPTIONS]\n")
    for line in (
        "  --train.batch-size, --batch-size INT",
        "  --augment.scale FLOAT FLOAT",
        "  --data.range FLOAT FLOAT | auto",
        "  --corrupt.shape {uniform,blocks}",
        "  --data.cache, --data.no-cache",
    ):
        assert f"\n{line}\n" in said
    assert "(default: 0.2 1)" in said
