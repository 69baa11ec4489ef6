"""The ablation, as a user runs it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from mpp.comparison.equal import flops_of
from mpp.config.command_line import parse
from mpp.config.commands import LinearProbe, Pretrain
from mpp.errors import UserError
from recipes.ablate import main
from tests.helpers import reset_accelerate

TINY = [
    *("--pretrain.model.img-size", "16", "--pretrain.model.embed-dim", "32", "--pretrain.model.depth", "2"),
    *("--pretrain.model.num-heads", "2", "--pretrain.train.steps", "4", "--pretrain.train.batch-size", "8"),
    *("--pretrain.eval.images", "20", "--pretrain.optim.warmup-steps", "0", "--probe-labels", "80"),
    *("--probe.eval-images", "60", "--pretrain-seeds", "0", "1"),
]


def ablate(output: Path, *options: str) -> Path | None:
    """Run the command in this process."""
    reset_accelerate()
    return main([*TINY, "--output", str(output), *options])


@pytest.fixture(scope="module")
def ablated(tmp_path_factory):
    """A finished ablation, in its folder."""
    folder = tmp_path_factory.mktemp("runs") / "ablated"
    ablate(folder, "--over", "corrupt.ratio=0.25", "method=visible data.target=hog,pixels")
    return folder


def test_each_change_is_pretrained_once_a_seed_and_nothing_else_changes(ablated):
    runs = {
        path.parent.name: parse(Pretrain, ["--config", str(path)]) for path in ablated.glob("pretrain/*/config.toml")
    }
    names = ["mpp", "corrupt.ratio=0.25", "method=visible data.target=hog", "method=visible data.target=pixels"]
    assert set(runs) == {f"{name}{seed}" for name in names for seed in ("", "-seed-1")}
    assert [(runs[n].corrupt.ratio, runs[n].method, runs[n].data.target) for n in names] == [
        (0.5, "mpp", "mean-colour"),
        (0.25, "mpp", "mean-colour"),
        (0.5, "visible", "hog"),
        (0.5, "visible", "pixels"),
    ]
    base = flops_of(runs["mpp"])
    for name in names:
        assert runs[name].train.steps == round(4 * base / flops_of(runs[name]))


def test_positions_are_measured_at_other_sizes_too(tmp_path):
    ablate(tmp_path / "at", "--over", "model.pos_embed=none", "--img-sizes", "24", "--pretrain-seeds", "0")
    assert len(list(tmp_path.glob("at/pretrain/*/result.json"))) == 2, "each is pretrained once"
    with (tmp_path / "at" / "results.csv").open() as file:
        arms = list(dict.fromkeys(row["arm"] for row in csv.DictReader(file)))
    assert arms == ["MPP", "model.pos_embed=none", "MPP at 24 px", "model.pos_embed=none at 24 px"]
    sides = [
        parse(LinearProbe, ["--config", str(p)]).model.img_size for p in tmp_path.glob("at/probe/*24*/*/config.toml")
    ]
    assert sides == [24, 24]
    with pytest.raises(UserError, match=r"--img-sizes 26 .* multiple of .*patch"):
        ablate(tmp_path / "no", "--over", "corrupt.ratio=0.25", "--img-sizes", "26")


def test_features_are_measured_on_held_out_training_images(ablated):
    probes = [parse(LinearProbe, ["--config", str(path)]) for path in ablated.glob("probe/*/*/config.toml")]
    assert len(probes) == 8
    assert {(probe.data.hold_out, probe.data.eval_split) for probe in probes} == {(0.2, None)}


def test_the_tables_have_a_row_for_each_change(ablated):
    text = (ablated / "ablation.md").read_text()
    for words in ("corrupt.ratio=0.25", "method=visible data.target=hog", "| difference |", "seeds 0, 1", "held out"):
        assert words in text
    assert (ablated / "ablation.png").stat().st_size > 5000
    with (ablated / "results.csv").open() as file:
        found = {(row["arm"], row["pretrain_seed"]) for row in csv.DictReader(file)}
    assert len(found) == 8
    assert ("MPP", "1") in found


def test_an_ablation_may_grow(ablated, capsys):
    ablate(ablated, "--over", "corrupt.ratio=0.25", "corrupt.mask=1 corrupt.other=0 corrupt.keep=0")
    said = capsys.readouterr().out
    assert said.count("pretraining corrupt.mask=1 corrupt.other=0 corrupt.keep=0, seed") == 4  # planned, made
    assert "12 runs, of which 8 are done" in said


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "--over names what is changed"),
        (["--over", "corrupt.ratio"], "--over 'corrupt.ratio' must be OPTION=VALUE"),
        (
            ["--over", "corrupt.rato=0.5"],
            "--over corrupt.rato=0.5: --corrupt.rato is no option; did you mean --corrupt.rat",
        ),
        (["--over", "corrupt.ratio=1.5"], "--over corrupt.ratio=1.5: --corrupt.ratio 1.5 must be above 0 and below 1"),
        (["--over", "corrupt.ratio=half"], "--corrupt.ratio: .*half"),
        (["--over", "corrupt.keep=0.5"], "must be shares with sum 1"),
    ],
)
def test_wrong_options_are_named(tmp_path, options, says):
    with pytest.raises(UserError, match=says):
        ablate(tmp_path / "none", *options)
