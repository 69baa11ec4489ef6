"""What is written is what programs can read: JSON without NaN, tables without formulas."""

from __future__ import annotations

import json
import math

import pytest

from mpp.errors import UserError, listed, printable, warn
from mpp.files import as_json, csv_cell


def test_json_has_null_where_there_is_no_number():
    value = {"a": math.nan, "b": [1.5, math.inf, {"c": -math.inf}], "d": (None, True, "NaN")}
    text = as_json(value)
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": None,
        "b": [1.5, None, {"c": None}],
        "d": [None, True, "NaN"],
    }


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        *((text, f"'{text}") for text in ("=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\tx", "\r=1", " =1", "-")),
        *((text, text) for text in ("cat", "", "-5", "+1.5", "-1e-3", "a=b", "1-2")),
        *((number, number) for number in (-5, -0.25, 3, True, None)),
        (math.nan, ""),
    ],
)
def test_a_cell_is_no_formula_and_a_number_stays_one(value, cell):
    assert csv_cell(value) == cell


def test_nothing_in_a_message_steers_the_terminal():
    name = "cat\x1b[31m\r\u202e\x9b\u2066 d\x00g"
    assert printable(name) == r"cat\x1b[31m\r\u202e\x9b\u2066 d\x00g"
    assert str(UserError(f"no class {name}\nbut")) == r"no class cat\x1b[31m \u202e\x9b\u2066 d\x00g but"
    with pytest.warns(UserWarning, match="cat") as told:
        warn(name)
    assert str(told[0].message).isprintable()
    assert listed(["a", "b\n", "c" * 99, "d"], most=3) == r"a, b\n, " + "c" * 79 + "… and 1 more"
