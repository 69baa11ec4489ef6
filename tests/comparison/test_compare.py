"""The comparison: its statistics, its report, and the command as a user runs it."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from scipy import stats

from mpp.comparison.arms import arms_of, trained_here
from mpp.comparison.compare import adopted
from mpp.comparison.equal import flops_of, with_equal_compute
from mpp.comparison.findings import quality_curve
from mpp.comparison.plots import paint_curves
from mpp.comparison.report import as_html, as_markdown, escaped
from mpp.comparison.statistics import Finding, cell_values, difference, interval, verdict
from mpp.config.command_line import parse
from mpp.config.commands import Compare, FineTune, Pretrain
from mpp.config.options import Model, PretrainEval, Train
from mpp.errors import UserError
from mpp.models.backbones import load_backbone
from mpp.run.machine import start_accelerator
from recipes.compare import main
from tests.helpers import put, reset_accelerate

GIVEN = [
    *("--labels", "16", "40", "--seeds", "0", "1", "--probe-labels", "80", "--probe.eval-images", "60"),
    *("--probe.shots", "1", "5", "--probe.draws", "2"),
    *("--finetune.train.steps", "4", "--finetune.eval.every", "2", "--finetune.eval.images", "60"),
]
TINY = [
    *GIVEN,
    *("--pretrain.model.img-size", "16", "--pretrain.model.embed-dim", "32", "--pretrain.model.depth", "2"),
    *("--pretrain.model.num-heads", "2", "--pretrain.train.steps", "3", "--pretrain.train.batch-size", "8"),
    *("--pretrain.eval.images", "20"),
]


def compare(output: Path, *options: str) -> Path | None:
    """Run the command in this process."""
    reset_accelerate()
    return main([*TINY, "--output", str(output), *options])


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A finished comparison, in its folder."""
    folder = tmp_path_factory.mktemp("runs") / "comparison"
    compare(folder)
    return folder


def rows(folder: Path) -> list[dict[str, str]]:
    """The lines of results.csv."""
    with (folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


def test_intervals_and_paired_differences_are_those_of_scipy():
    mine, theirs = [0.50, 0.53, 0.49, 0.55], [0.45, 0.50, 0.46, 0.49]
    mean, half = interval(mine)
    low, high = stats.t.interval(0.95, 3, loc=mean, scale=stats.sem(mine))
    assert (mean - half, mean + half) == pytest.approx((low, high))
    findings = [Finding("MPP", "fine-tuned", 10, seed, value) for seed, value in enumerate(mine)]
    findings += [Finding("scratch", "fine-tuned", 10, seed, value) for seed, value in enumerate(theirs)]
    gain, half = difference(findings, "MPP", "scratch", "fine-tuned", 10)
    test = stats.ttest_rel(mine, theirs)
    assert (gain - half, gain + half) == pytest.approx(tuple(test.confidence_interval()))
    assert interval([0.5]) == (0.5, None)


@pytest.mark.parametrize(
    ("mpp", "says"),
    [
        ([0.60, 0.61, 0.60], "MPP beats scratch by 10.0 ± 0.0 points with 1,000 labels"),
        ([0.40, 0.41, 0.40], "MPP is behind scratch by 10.0 ± 0.0 points with 1,000 labels"),
        ([0.55, 0.45, 0.52], "With 1,000 labels, MPP does not differ significantly from scratch"),
        ([0.75, 0.76, 0.75], "5.0 ± 0.0 ahead of supervised pretraining"),
        ([0.65, 0.66, 0.65], "5.0 ± 0.0 behind supervised pretraining"),
    ],
)
def test_the_verdict_says_what_the_intervals_allow(mpp, says):
    arms = {"scratch": [0.50, 0.51, 0.50], "MPP": mpp, "supervised": [0.70, 0.71, 0.70]}
    findings = [
        Finding(arm, "fine-tuned", 1000, seed, value)
        for arm, values in arms.items()
        for seed, value in enumerate(values)
    ]
    assert says in verdict(findings, 1000, 10)


def test_two_equal_differences_and_one_alone_are_no_interval():
    """Two seeds that differ alike say nothing of how much seeds differ: accuracies are steps of one image."""
    arms = {"scratch": [0.50, 0.52], "MPP": [0.55, 0.57], "supervised": [0.45, 0.47]}
    findings = [
        Finding(arm, "fine-tuned", 40, seed, v) for arm, values in arms.items() for seed, v in enumerate(values)
    ]
    assert difference(findings, "MPP", "scratch", "fine-tuned", 40) == (pytest.approx(0.05), None)
    assert verdict(findings, 40, 10) == (
        "With 40 labels, MPP minus scratch is 5.0 points (the same with both seeds: no interval); MPP minus supervised "
        "pretraining is 10.0 points (the same with both seeds: no interval); chance is 10.0 %."
    )
    alone = [finding for finding in findings if finding.seed == 0]
    assert "MPP minus supervised pretraining is 10.0 points (one seed: no interval)" in verdict(alone, 40, 10)


def test_names_from_files_are_text_in_the_report():
    name = "<img src=x onerror=alert(1)>|[a](javascript:b)`c`\x1b[2J\u202e\n# d"
    blocks = [("table", (["", name], [[name, "1.0"]])), ("p", name)]
    written, shown = as_markdown(blocks, Path(), escaped), as_markdown(blocks, Path())
    page = as_html(blocks)
    for text in (written, shown, page):
        assert not {"\x1b", "\u202e"} & set(text)
        assert "\\u202e" in text
    assert "<img" not in written + page
    assert written.splitlines()[2].startswith("| &lt;img src=x onerror=alert(1)&gt;\\|\\[a\\](javascript:b)\\`c\\`")
    assert len(written.splitlines()) == len(shown.splitlines()) == 5


def test_every_arm_label_count_and_seed_is_in_the_table(compared):
    tuned = [row for row in rows(compared) if row["protocol"] == "fine-tuned"]
    cells = {(row["arm"], row["labels"], row["seed"]) for row in tuned}
    arms = ("scratch", "MPP", "supervised")
    assert cells == {(arm, labels, seed) for arm in arms for labels in ("16", "40") for seed in ("0", "1")}
    assert len(tuned) == len(cells)
    protocols = {row["protocol"] for row in rows(compared)}
    assert {"logistic regression", "ridge regression", "k-NN", "1 label a class", "effective rank"} <= protocols


def test_the_report_is_one_file_with_verdict_plots_costs_and_confusions(compared):
    page = (compared / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 7  # four plots, three confusion matrices
    assert not re.search(r'(src|href)="(?!data:)', page)
    text = (compared / "report.md").read_text()
    for words in ("with 40 labels", "79.9 %", "TFLOPs", "What is equal", "± ", "MPP - scratch", "| three |"):
        assert words in text
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (compared / picture).is_file()


def test_what_is_done_is_kept_and_what_is_missing_is_made(compared, tmp_path):
    folder = tmp_path / "comparison"
    shutil.copytree(compared, folder)
    before = rows(folder)
    kept = folder / "finetune" / "scratch" / "labels-16" / "seed-0" / "result.json"
    shutil.rmtree(folder / "finetune" / "MPP" / "labels-40" / "seed-1")
    # the folder's name is part of the options of what starts from a backbone in it
    for config in folder.rglob("config.toml"):
        config.write_text(config.read_text().replace(str(compared), str(folder)))
    stamp = kept.stat().st_mtime_ns
    compare(folder)
    assert kept.stat().st_mtime_ns == stamp
    assert rows(folder) == before


def test_what_was_made_with_other_options_is_not_taken_for_it(compared):
    with pytest.raises(UserError, match=r"other options than are asked for now \(--train.steps 4, now 5\)"):
        compare(compared, "--finetune.train.steps", "5")


def test_a_new_backbone_has_everything_that_starts_from_it_made_again(compared, tmp_path, capsys):
    folder = tmp_path / "comparison"
    shutil.copytree(compared, folder)
    for config in folder.rglob("config.toml"):
        config.write_text(config.read_text().replace(str(compared), str(folder)))
    weights = folder / "pretrain" / "mpp" / "backbone" / "model.safetensors"
    other = folder / "pretrain" / "supervised" / "backbone" / "model.safetensors"
    weights.write_bytes(other.read_bytes())  # another encoder of the same shape
    compare(folder)
    made = re.findall(r"\[\d+/20\] (.*)", capsys.readouterr().out)
    assert len(made) == 6  # two probes, four fine-tunings
    assert all("MPP" in title for title in made)


def test_changed_images_have_what_learnt_from_them_made_again_and_say_what_changed(compared, tmp_path, capsys):
    for split, count in (("train", 24), ("test", 10)):
        for i in range(count):
            put(tmp_path / "set" / split / ("cat", "dog")[i % 2] / f"{i}.png", 5 * i)

    def run() -> str:
        reset_accelerate()
        given = ["--mpp", str(compared / "pretrain" / "mpp"), "--supervised", "none", "--seeds", "0", "--labels", "16"]
        options = [*given, "--data.path", str(tmp_path / "set"), "--probe.shots", "1", "--probe.draws", "1"]
        main([*GIVEN, *options, "--output", str(tmp_path / "comparison")])
        return capsys.readouterr().out

    assert len(re.findall(r"\[\d/4\]", run())) == 4
    shutil.copytree(tmp_path / "set", tmp_path / "copy")
    shutil.rmtree(tmp_path / "set")
    (tmp_path / "copy").rename(tmp_path / "set")
    assert not re.findall(r"\[\d/4\]", run())
    put(tmp_path / "set" / "test" / "cat" / "0.png", 77)
    put(tmp_path / "set" / "train" / "cat" / "new.png", 78)
    said = run()
    assert len(re.findall(r"\[\d/4\]", said)) == 4
    what = "split train: 1 image added (train/cat/new.png); split test: 1 image changed (test/cat/0.png)"
    assert said.count(f"is made again, as its images have changed ({what})") == 4


def test_the_supervised_arm_may_be_left_out(compared, tmp_path):
    run = str(compared / "pretrain" / "mpp")
    reset_accelerate()
    options = ["--mpp", run, "--supervised", "none", "--seeds", "0", "--labels", "16"]
    main([*GIVEN, *options, "--output", str(tmp_path / "two")])
    assert {row["arm"] for row in rows(tmp_path / "two")} == {"scratch", "MPP"}
    assert "supervised pretraining;" not in (tmp_path / "two" / "report.md").read_text()


def test_a_dry_run_prints_the_plan_and_makes_nothing(tmp_path, capsys):
    assert compare(tmp_path / "none", "--dry-run") is None
    said = capsys.readouterr().out
    assert re.search(r"^classes: .* \(\d+\)$", said, re.MULTILINE)
    assert "20 runs, of which 0 are done" in said
    assert "fine-tuning MPP with 40 labels, seed 1" in said
    kinds = re.findall(r"^\[\d/4\] (.*)$", said, re.MULTILINE)  # what differs in arm, seed or labels alone is one kind
    assert kinds[:2] == ["pretraining by masked patch prediction", "pretraining with labels"]
    assert kinds[2].endswith(", for 6 like it")
    assert kinds[3].endswith(", for 12 like it")
    assert said.count("dry run: nothing is written into") == 4
    assert said.count("  memory  ") == 4
    assert re.search(r"about \d\S* \w+ in all on this device, measured", said)
    assert not (tmp_path / "none").exists()


def test_images_without_labels_leave_the_supervised_arm_out(tmp_path, capsys):
    for number in range(4):
        put(tmp_path / "photos" / f"{number}.png", number)
    compare(tmp_path / "none", "--dry-run", "--pretrain.data.path", str(tmp_path / "photos"))
    said = capsys.readouterr().out
    assert re.search(
        r"^the supervised arm is left out: --pretrain.data.path .*photos has no labels", said, re.MULTILINE
    )
    assert "13 runs, of which 0 are done" in said
    with pytest.raises(UserError, match="the supervised arm cannot be trained"):
        compare(tmp_path / "none", "--pretrain.data.path", str(tmp_path / "photos"), "--arms", "scratch", "supervised")


def test_given_backbones_are_compared_and_bring_their_shape(compared, tmp_path):
    run = compared / "pretrain" / "mpp"
    options = ["--mpp", str(run), "--supervised", str(run), "--others", f"again={run}/backbone", "--seeds", "0"]
    options += ["--finetune.train.precision", "bf16"]  # of its own, as nothing is pretrained here
    reset_accelerate()
    main([*GIVEN, "--output", str(tmp_path / "given"), *options, "--labels", "16"])
    found = rows(tmp_path / "given")
    assert {row["arm"] for row in found} == {"scratch", "MPP", "supervised", "again"}
    assert not (tmp_path / "given" / "pretrain").exists()
    values = {row["arm"]: row["value"] for row in found if row["protocol"] == "fine-tuned"}
    assert values["MPP"] == values["supervised"] == values["again"]


def test_the_supervised_arm_learns_from_the_images_of_a_given_run(compared, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(compared / "pretrain" / "mpp", run)
    file = run / "config.toml"
    file.write_text(re.sub("(?m)^seed = 0$", "seed = 5", file.read_text()).replace("fraction = 1.0", "fraction = 0.5"))
    config = Compare(mpp=str(run))
    config = adopted(config)
    supervised = trained_here(config)["supervised"]
    assert (supervised.seed, supervised.data.fraction) == (5, 0.5)


def test_patches_of_a_given_backbone_decide_which_sizes_it_can_be_fine_tuned_at(compared, tmp_path):
    given = ["--mpp", str(compared / "pretrain" / "mpp"), "--supervised", "none", "--dry-run"]
    reset_accelerate()
    with pytest.raises(UserError, match=r"--finetune.model.img-size 30 .* patch size .*, 4; .* 28, 32"):
        main([*GIVEN, *given, "--finetune.model.img-size", "30", "--output", str(tmp_path / "none")])


def test_learning_curves_are_drawn_at_the_steps_that_all_seeds_were_measured_at():
    curves = {("MPP", 10, 0): [(2, 0.1), (4, 0.2)], ("MPP", 10, 1): [(1, 0.5), (2, 0.3), (3, 0.5), (4, 0.4)]}
    line = paint_curves(curves, ["MPP"]).axes[0].lines[0]
    assert line.get_xydata().tolist() == [[2, pytest.approx(20)], [4, pytest.approx(30)]]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--labels", "ten"], "--labels ten must be numbers above 0, or all"),
        (["--labels", "2"], "--labels 2 must be from 4"),
        (["--seeds", "1", "1"], "--seeds must be one or more, each given once"),
        (["--others", "nameless"], "--others nameless must be NAME=INIT"),
        (["--mpp", "./nowhere"], "--mpp ./nowhere is no run"),
        (["--supervised", "./nowhere"], "name its run, too, with --mpp"),
        (["--finetune.train.precision", "bf16"], "must be the same where an arm is pretrained here"),
        (["--others", "x=./typo"], "--others ./typo does not exist"),
        (["--others", "x=runs/typo"], "--others runs/typo: no backbone could be loaded from it"),
        (["--probe-labels", "2"], "--probe-labels 2 must be at least 4"),
        (["--probe.shots", "50"], "--probe.shots 50 is more than the 20 training images of class"),
        (["--finetune.train.steps", "0"], "--finetune.train.steps 0 must be above 0"),
        (["--pretrain.train.steps", "0"], "--pretrain.train.steps 0 must be above 0"),
        (["--finetune.model.img-size", "30"], "--finetune.model.img-size 30 is not a multiple of the patch size"),
        (["--pretrain.data.split", "nowhere"], "--pretrain.data.split, --pretrain.data.eval-split"),
        (["--probe.layer", "9"], "--probe.layer 9 is none of"),
        (["--finetune.model.depth", "3"], r"--finetune\.model\.depth is only for --init scratch"),
    ],
)
def test_wrong_options_are_named(tmp_path, options, says):
    with pytest.raises(UserError, match=says):
        compare(tmp_path / "none", *options)


ONCE = ["--labels", "16", "--seeds", "0", "--probe.shots", "1", "--probe.draws", "1"]


@pytest.fixture
def short(tmp_path):
    """The preset `continue`, in few steps and with a shape of its own, which the weights' takes the place of."""
    more = '[model]\nvariant = "S"\npatch_size = 8\nimg_size = 64\n[train]\nsteps = 3\nbatch_size = 8\n'
    (tmp_path / "short.toml").write_text('base = "continue.toml"\n' + more + "[optim]\nwarmup_steps = 1\n")
    return tmp_path / "short.toml"


def test_an_arm_goes_on_from_the_weights_of_another_and_the_report_has_both(backbone, short, tmp_path, capsys):
    given = [*ONCE, "--arms", f"public={backbone}", f"continued={short}"]
    compare(tmp_path / "out", *given)
    begun, ended = load_backbone(str(backbone)), load_backbone(str(tmp_path / "out" / "pretrain" / "continued"))
    assert ended.hub_config()["patch_size"] == begun.hub_config()["patch_size"] == 4
    gap = max((a - b).abs().max().item() for a, b in zip(begun.parameters(), ended.parameters(), strict=True))
    assert 0 < gap < 0.01  # three small steps away
    result = json.loads((tmp_path / "out" / "pretrain" / "continued" / "result.json").read_text())
    assert (result["init"], result["method"], result["step"]) == (str(backbone), "visible", 3)
    assert result["before"]["eval/probe_top1"] > 0  # the quality of the weights as they came
    assert {row["arm"] for row in rows(tmp_path / "out")} == {"public", "continued"}
    report = (tmp_path / "out" / "report.md").read_text()
    assert re.search(rf"continued from {re.escape(escaped(str(backbone)))} for 3 steps of 8 images \(adamw", report)
    capsys.readouterr()
    compare(tmp_path / "out", *given)
    assert "5 runs, of which 5 are done" in capsys.readouterr().out
    weights = load_file(backbone / "model.safetensors")
    shutil.copytree(backbone, tmp_path / "other")
    save_file({name: tensor * 1.01 for name, tensor in weights.items()}, tmp_path / "other" / "model.safetensors")
    swapped = [word.replace(str(backbone), str(tmp_path / "other")) for word in given]
    with pytest.raises(UserError, match=r"other options than are asked for now \(--init "):
        compare(tmp_path / "out", *swapped)


@pytest.mark.parametrize(
    ("arms", "says"),
    [
        (["continued=continue"], "this preset goes on from weights; say of which arm, as in continued=continue@public"),
        (["a={b}", "b={b}", "c=continue"], r"c=continue@public beside public=INIT; those with weights: a, b"),
        (["mpp", "c=continue@mpp"], "--arms c=continue@mpp: mpp is no arm with weights, as mpp=INIT would be"),
        (["public={b}", "c=continue@pulbic"], "pulbic is no arm with weights, .*; those with weights: public"),
        (["public={b}", "c=continue@public", "--pretrain.data.target", "3x3"], "3x3"),
    ],
)
def test_arms_that_go_on_from_nothing_are_named(backbone, tmp_path, arms, says):
    with pytest.raises(UserError, match=says):
        compare(tmp_path / "none", *ONCE, "--arms", *(word.replace("{b}", str(backbone)) for word in arms))
    assert not (tmp_path / "none").exists()


def test_of_several_the_arm_after_the_at_sign_gives_the_weights_for_each_seed(backbone, tmp_path):
    for name in ("one-0", "one-5"):
        shutil.copytree(backbone, tmp_path / name)
    given = f"one={tmp_path}/one-{{seed}}"
    config = Compare(arms=("scratch", given, f"two={backbone}", "far=continue@one"), pretrain_seeds=(0, 5))
    trained = trained_here(config)
    inits = [piece.config.init for piece in arms_of(config, trained, tmp_path)[-1].pretrainings]
    assert inits == [str(tmp_path / "one-0"), str(tmp_path / "one-5")]


ARMS = ["--pretrain-seeds", "0", "3", "--labels", "16", "--seeds", "0", "--probe.shots", "1"]


@pytest.fixture(scope="module")
def arms(tmp_path_factory):
    """A finished comparison of arms with equal arithmetic, in its folder."""
    folder = tmp_path_factory.mktemp("arms")
    (folder / "wide.toml").write_text(
        'method = "visible"\nseed = 9\n[data]\npath = "elsewhere"\n[visible]\nkeep = 0.5\n'
    )
    compare(
        folder / "out", *ARMS, "--equal", "flops", "--arms", "scratch", "visible", f"wide={folder}/wide.toml", "mpp"
    )
    return folder / "out"


def test_arms_are_pretrained_by_name_and_by_preset_once_for_each_seed(arms):
    runs = {path.parent.name: parse(Pretrain, ["--config", str(path)]) for path in arms.glob("pretrain/*/config.toml")}
    assert set(runs) == {f"{name}{seed}" for name in ("visible", "wide", "mpp") for seed in ("", "-seed-3")}
    assert {(run.data.path, run.model.depth) for run in runs.values()} == {("shapes", 2)}  # not the preset's images
    assert [runs[name].method for name in ("visible", "wide", "mpp")] == ["visible", "visible", "mpp"]
    assert [runs[name].data.target for name in ("visible", "mpp")] == ["hog+0.1*pixels", "mean-colour"]
    assert runs["wide"].visible.keep == 0.5
    assert [runs[name].seed for name in ("wide", "wide-seed-3")] == [0, 3]


def test_equal_arithmetic_is_equal_to_a_step(arms):
    costs = {}
    for name in ("visible", "wide", "mpp"):
        run = parse(Pretrain, ["--config", str(arms / "pretrain" / name / "config.toml")])
        costs[name] = run.train.steps, flops_of(run) * run.train.batch_size
    steps, each = costs["visible"]
    assert steps == 3  # the first trains as its options say
    for name in ("wide", "mpp"):
        assert costs[name][0] == max(1, round(steps * each / costs[name][1]))
    assert costs["mpp"][1] > costs["wide"][1] > each


def test_every_pretraining_seed_has_downstream_seeds_of_its_own(arms):
    tuned = [row for row in rows(arms) if row["protocol"] == "fine-tuned"]
    names = ("scratch", "visible", "wide", "MPP")
    assert {(row["arm"], row["pretrain_seed"], row["seed"]) for row in tuned} == {
        (arm, *seeds) for arm in names for seeds in (("0", "0"), ("3", "1"))
    }
    init = parse(FineTune, ["--config", str(arms / "finetune" / "MPP" / "labels-16" / "seed-1" / "config.toml")]).init
    assert init == str(arms / "pretrain" / "mpp-seed-3")
    text = (arms / "report.md").read_text()
    for words in ("visible - scratch", "visible - MPP", "mean over pretraining seeds 0, 3", "equal arithmetic"):
        assert words in text
    assert "Each kind is pretrained once" not in text


def test_given_backbones_have_a_folder_for_each_seed(arms, tmp_path):
    for seed, run in (("0", "mpp"), ("3", "mpp-seed-3")):
        shutil.copytree(arms / "pretrain" / run, tmp_path / f"run-{seed}")
    reset_accelerate()
    main([*GIVEN, *ARMS, "--arms", f"mpp={tmp_path}/run-{{seed}}", "--output", str(tmp_path / "out")])
    found = {row["pretrain_seed"]: row["value"] for row in rows(tmp_path / "out") if row["protocol"] == "fine-tuned"}
    there = {
        row["pretrain_seed"]: row["value"]
        for row in rows(arms)
        if (row["arm"], row["protocol"]) == ("MPP", "fine-tuned")
    }
    assert found == there


def test_equal_seconds_are_measured_once_and_kept(tmp_path):
    base = Pretrain(train=Train(steps=100, batch_size=4), eval=PretrainEval(every=50, images=4))
    base.model = Model(img_size=16, embed_dim=32, depth=2, num_heads=2)
    deep = dataclasses.replace(base, model=Model(img_size=16, embed_dim=96, depth=4, num_heads=4))
    config = Compare(equal="seconds")
    reset_accelerate()
    accelerator = start_accelerator("fp32")
    found = with_equal_compute(config, {"base": base, "deep": deep}, tmp_path, accelerator)
    seconds = json.loads((tmp_path / "seconds_a_step.json").read_text())
    assert found["base"] == base
    assert found["deep"].train.steps == round(100 * seconds["base"] / seconds["deep"]) < 100
    assert found["deep"].eval.every == round(50 * found["deep"].train.steps / 100)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seconds_a_step.json"]
    assert with_equal_compute(config, {"base": base, "deep": deep}, tmp_path, accelerator) == found


def test_intervals_over_pretraining_seeds_are_of_the_means_of_their_downstream_runs():
    values = {0: [0.50, 0.54], 1: [0.60, 0.58], 2: [0.55, 0.57]}
    findings = [
        Finding("MPP", "fine-tuned", 10, 2 * seed + k, value, seed)
        for seed, pair in values.items()
        for k, value in enumerate(pair)
    ]
    means = [0.52, 0.59, 0.56]
    assert cell_values(findings, "MPP", "fine-tuned", 10) == pytest.approx(means)
    low, high = stats.t.interval(0.95, 2, loc=sum(means) / 3, scale=stats.sem(means))
    mean, half = interval(cell_values(findings, "MPP", "fine-tuned", 10))
    assert (mean - half, mean + half) == pytest.approx((low, high))


def test_seconds_of_a_quality_curve_are_those_of_steps(tmp_path):
    (tmp_path / "config.toml").write_text("[train]\nbatch_size = 8\n")
    lines = [
        {"step": 10, "speed/images_per_second": 40.0},
        {"step": 20, "speed/images_per_second": 20.0, "eval/probe_top1": 0.3},
        {"step": 25, "speed/images_per_second": 80.0, "eval/probe_top1": 0.4},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert quality_curve(tmp_path) == [(pytest.approx(6.0), 0.3), (pytest.approx(6.5), 0.4)]
    assert quality_curve(tmp_path / "no-run") == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--arms", "mpp", "mpp"], "--arms mpp must be NAME=INIT, with a name of its own"),
        (["--arms", "mae"], "only scratch, mpp, visible, supervised are trained by their name alone"),
        (["--arms", "mpp", "x=./typo"], "--arms ./typo does not exist"),
        (["--arms", "mpp", "--mpp", "runs/x"], "say --arms mpp=RUN"),
        (["--pretrain-seeds", "1", "1"], "--pretrain-seeds must be one or more, each given once"),
        (["--arms", "a=bad.toml"], "--arms a=bad.toml: --visible.keeps is no option; did you mean --visible.keep"),
        (["--arms", "a=cut.toml"], r"--arms a=cut.toml: --visible.keep 1.5 must be above 0 and below 1"),
    ],
)
def test_wrong_arms_are_named(tmp_path, monkeypatch, options, says):
    monkeypatch.chdir(tmp_path)
    Path("bad.toml").write_text("[visible]\nkeeps = 0.5\n")
    Path("cut.toml").write_text("[visible]\nkeep = 1.5\n")
    with pytest.raises(UserError, match=says):
        compare(tmp_path / "none", *options)


def test_every_arm_is_judged_by_segmentation_once_a_pretraining_seed(tmp_path, capsys):
    judge = [
        "--dense.path",
        "shapes",
        "--dense.label-column",
        "colour",
        "--dense.images",
        "20",
        "--dense.eval-images",
        "6",
    ]
    options = [*judge, "--arms", "scratch", "mpp", "--labels", "16", "--seeds", "0"]
    compare(tmp_path / "none", *options, "--dry-run")
    said = capsys.readouterr().out
    assert "segmentation from frozen patches of MPP, seed 0" in said
    assert not (tmp_path / "none").exists()
    compare(tmp_path / "judged", *options)
    found = {
        (row["arm"], row["protocol"]): row for row in rows(tmp_path / "judged") if "segmentation" in row["protocol"]
    }
    for arm in ("scratch", "MPP"):
        folder = tmp_path / "judged" / "dense" / arm / "seed-0"
        result = json.loads((folder / "result.json").read_text())
        assert float(found[arm, "segmentation"]["value"]) == result["eval/miou"]
        assert float(found[arm, "segmentation by k-NN"]["value"]) == result["eval/knn_miou"]
        assert (folder / "sheet.png").exists()
    assert {row["labels"] for row in found.values()} == {"20"}
    assert "segmentation, 20 labels" in (tmp_path / "judged" / "report.md").read_text()
    capsys.readouterr()
    compare(tmp_path / "judged", *options)
    assert "[" not in re.sub(r"(?s)\| .*", "", capsys.readouterr().out)  # nothing is made again


def test_masks_that_are_not_there_end_a_comparison_before_it_trains(tmp_path):
    put(tmp_path / "set" / "images" / "0.png", 3)
    with pytest.raises(UserError, match=r"--dense.path .*set: 1 image without a mask, .*\(--dense.masks names"):
        compare(tmp_path / "none", "--dense.path", str(tmp_path / "set"), "--arms", "scratch", "mpp")
    assert not (tmp_path / "none" / "pretrain").exists()
