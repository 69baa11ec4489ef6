"""recipes/vtab.py: a suite of tasks, whole, cut and gone on with, and what is wrong in it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from PIL import Image

from mpp.console import command
from mpp.data.sources.vtab import LOADERS
from mpp.errors import UserError
from recipes.vtab import SUITES, backbones_of, main, read_suite
from tests.helpers import SMALL, one_line, reset_accelerate

RECIPE = """
[model]
img_size = 16
embed_dim = 32
depth = 1
num_heads = 2
[augment]
crop = "none"
flip = 0.0
[optim]
warmup_steps = 2
[train]
steps = 4
batch_size = 8
[eval]
every = 4
images = 60
"""
SUITE = """
title = "Two tasks"
[[tasks]]
name = "count"
group = "structured"
path = "shapes"
label_column = "count"
[[tasks]]
name = "digits"
group = "natural"
loader = "digits"
"""


@pytest.fixture
def words(tmp_path, monkeypatch):
    """A suite, a recipe and a place, as words of the command line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPP_CACHE", str(tmp_path / "cache"))
    Path("suite.toml").write_text(SUITE)
    Path("recipe.toml").write_text(RECIPE)
    reset_accelerate()
    return ["suite.toml", "--recipe", "recipe.toml", "--labels", "40", "--output", "out"]


def lines():
    """The rows of results.csv."""
    with Path("out/results.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_suite_ends_in_a_table_lines_and_a_plot_and_goes_on_where_it_was_cut(words, capsys):
    command("pretrain")([*SMALL, "--train.steps", "1", "--output", "pre"])
    given = [*words, "--init", "scratch", "mine=pre"]
    reset_accelerate()
    main([*given, "--only", "count"])
    text = Path("out/results.md").read_text()
    assert "| count |" in text
    assert "digits" not in text
    first = {path: path.stat().st_mtime_ns for path in Path("out").rglob("result.json")}
    assert len(first) == 2
    capsys.readouterr()
    reset_accelerate()
    main(given)
    said = capsys.readouterr().out
    assert said.count(": mpp finetune ") == 2, "what is done is not done again"
    assert all(path.stat().st_mtime_ns == time for path, time in first.items())
    text = Path("out/results.md").read_text()
    for part in ("# Two tasks", "| count |", "| digits |", "| **mean of all** |", "mine minus scratch, mean of all: "):
        assert part in text
        assert part in said
    rows = lines()
    assert {(row["task"], row["backbone"]) for row in rows} == {
        (task, backbone) for task in ("count", "digits") for backbone in ("scratch", "mine")
    }
    assert {row["labels"] for row in rows} == {"40"}
    assert Image.open("out/results.png").size[0] > 500
    with pytest.raises(UserError, match=r"was begun with another recipe \(words; out/suite\.json has it\)"):
        main([*given, "--labels", "41"])
    with pytest.raises(UserError, match=r"was begun with another backbone \(mine; "):
        main([*words, "--init", "mine=scratch"])
    Path("suite.toml").write_text(SUITE.replace('"count"\n[[', '"place"\n[['))
    with pytest.raises(UserError, match=r"was begun with another task \(count; "):
        main(given)


def test_the_rate_is_chosen_on_a_fifth_of_the_labels(words, capsys):
    main([*words, "--init", "scratch", "--only", "digits", "--choose-lr", "0.001", "0.01"])
    assert "measured on 8 held-out training labels" in capsys.readouterr().out
    assert {row["lr"] for row in lines()} <= {"0.001", "0.01"}


def test_a_rehearsal_writes_nothing(words, capsys):
    main([*words, "--init", "scratch", "--dry-run"])
    said = capsys.readouterr().out
    assert "Two tasks: 2 tasks, 1 backbone, 1 seed: 2 fine-tunings" in said
    assert said.count("  training     4 steps") == 2
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("suite", "says"),
    [
        (SUITE.replace("label_column", "label-col"), r"task 1: label-col is no key of a task; these are: name, group"),
        (SUITE.replace("natural", "nature"), r"task 2: .* a group.*natural, specialized, structured"),
        (SUITE.replace('loader = "digits"', ""), r"task 2: it needs path \(as --data\.path\) or loader"),
        (SUITE.replace('"digits"\ngroup', '"count"\ngroup'), r"has two tasks called count"),
        ("title = 'none'", r"has no \[\[tasks\]\]"),
    ],
)
def test_what_is_wrong_in_a_suite_is_one_line(words, suite, says):
    Path("suite.toml").write_text(suite)
    with pytest.raises(UserError, match=says) as told:
        main([*words, "--init", "scratch"])
    assert one_line(told)
    assert not Path("out").exists()


def test_what_is_wrong_on_the_line_is_one_line(words):
    for more, says in (
        (["nothere", *words[1:], "--init", "scratch"], r"SUITE nothere is no file.*come along: .*shapes, vtab-1k"),
        ([*words, "--init", "scratch", "--only", "dogs"], r"--only dogs: Two tasks has the tasks count, digits"),
        ([*words, "--init", "a/run", "b/run"], r"--init b/run: 'run' is no name, or one of two; give NAME=b/run"),
    ):
        with pytest.raises(UserError, match=says):
            main(more)
    Path("suite.toml").write_text(SUITE.replace('path = "shapes"', 'path = "./cats"').replace("label_column", "split"))
    with pytest.raises(UserError, match=r"task count: .*cats does not exist"):
        main([*words, "--init", "scratch"])


def test_a_backbone_is_called_after_its_folder_or_as_asked():
    assert backbones_of(["scratch", "runs/tin", "big=hf://a/b"]) == {
        "scratch": "scratch",
        "tin": "runs/tin",
        "big": "hf://a/b",
    }


@pytest.mark.parametrize("name", [path.stem for path in sorted(SUITES.glob("*.toml"))])
def test_the_suites_that_come_along_are_whole(name):
    _, tasks = read_suite(name)
    assert all(not task.loader or task.loader in LOADERS for task in tasks)
    if name.startswith("vtab-1k"):
        groups = [task.group for task in tasks]
        assert [groups.count(group) for group in ("natural", "specialized", "structured")] == [7, 4, 8]
