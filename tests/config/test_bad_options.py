"""Bad options, on the line and in files: exit code 2 and one line that names the option and the way out."""

from __future__ import annotations

import errno
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mpp.comparison.compare import adopted
from mpp.config.checks import check
from mpp.config.command_line import as_arguments, differences, flattened, parse, write_toml
from mpp.config.commands import Ablate, Compare, FineTune, LinearProbe, Pretrain, Scaling, Supervised
from mpp.data.sources.path import naming_the_source
from mpp.errors import UserError
from mpp.run.command import run_command
from recipes.finetune import main as finetune
from recipes.linear_probe import main as linear_probe
from tests.helpers import PRESETS, ROOT, launch, launch_file, pretrain, put, reset_accelerate

KINDS = {
    Pretrain: check,
    Supervised: check,
    FineTune: check,
    LinearProbe: check,
    Compare: check,
    Ablate: check,
    Scaling: check,
}


def complaint(kind, args: list[str], capsys) -> str:
    """What is said of a command line, checked to be one line; "" if nothing is wrong with it."""
    with pytest.raises(SystemExit) as end:
        run_command(lambda: KINDS[kind](parse(kind, args)))
    captured = capsys.readouterr()
    if end.value.code == 0:
        assert captured.out + captured.err == ""
        return ""
    assert (end.value.code, captured.out) == (2, "")
    assert re.fullmatch(r"error: .*\S.*\n", captured.err)
    return captured.err.removesuffix("\n")


def numbers(of: type) -> list[tuple[type, str, int]]:
    """Every option that takes a number of a type (or several, or none by default): its kind, name and count."""
    found = []
    for kind in KINDS:
        for name, value in flattened(kind()).items():
            parts = value if isinstance(value, tuple) else (value,)
            if any(type(part) is of for part in parts) or (of is float and name.endswith("lr_grid")):
                found.append((kind, "--" + name.replace("_", "-"), max(1, len(parts))))
    return found


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1"])
@pytest.mark.parametrize(("kind", "option", "count"), numbers(float))
def test_no_option_takes_a_number_that_is_none_or_negative(kind, option, count, value, capsys):
    said = complaint(kind, [option, *[value] * count], capsys)
    assert option.removeprefix("--pretrain.").removeprefix("--finetune.").removeprefix("--") in said


@pytest.mark.parametrize("value", ["-1", "99999999999999999999999"])
@pytest.mark.parametrize(("kind", "option", "count"), numbers(int))
def test_no_option_takes_a_whole_number_that_is_negative_or_huge(kind, option, count, value, capsys):
    said = complaint(kind, [option, *[value] * count], capsys)
    assert option.removeprefix("--pretrain.").removeprefix("--finetune.").removeprefix("--") in said


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--optim.lrr", "1"], "Unrecognized options: --optim.lrr, 1; did you mean --optim.lr?"),
        (["--bogus"], "Unrecognized options: --bogus; --help lists them all"),
        (["stray"], "Unrecognized options: stray; --help lists them all"),
        (["--optim.lr"], "Missing value for argument '--optim.lr'"),
        (["--train.precision", "fp8"], "invalid choice 'fp8' for argument '--train.precision'. Expected one of"),
        (["--augment.scale", "1", "0.2"], "--augment.scale (1.0, 0.2) must be the smallest share, then the largest"),
        (["--model.img-size", "0"], "--model.img-size 0 must be above 0"),
        (["--corrupt.ratio", "nan"], "--corrupt.ratio nan must be above 0 and below 1"),
        (["--train.batch-size", "-8"], "--train.batch-size -8 must be above 0"),
        (["--train.batch-size", "1.5"], "--train.batch-size"),
        (["--train.batch-size", "ten"], "--train.batch-size"),
        (["--train.batch-size", ""], "--train.batch-size"),
    ],
)
def test_what_is_wrong_on_the_line_is_said_in_one_line(args, says, capsys):
    assert says in complaint(Pretrain, args, capsys)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a pseudo-terminal")
def test_a_terminal_in_colour_gets_one_line_too():
    ours, theirs = os.openpty()
    line = [sys.executable, str(ROOT / "mpp" / "pretrain.py"), "--optim.lrr", "1"]
    done = subprocess.run(
        line, stdout=theirs, stderr=theirs, check=False, timeout=60, env=os.environ | {"TERM": "xterm-256color"}
    )
    said = os.read(ours, 10_000).decode().replace("\r", "")
    assert done.returncode == 2
    assert said == "error: Unrecognized options: --optim.lrr, 1; did you mean --optim.lr?\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[optim]\nlrr = 1", "--optim.lrr is no option; did you mean --optim.lr?"),
        ("optim = 3", "--optim is no option"),
        ("[data.path]\nx = 1", "--data.path.x is no option; did you mean --data.path?"),
        ("[[data]]\npath = 'x'", "--data is no option"),
        ("help = true", "--help is no option"),
        ("tyro-write-completion = ['bash', 'written']", "--tyro-write-completion is no option"),
        ("[data]\npath = ['--tyro-write-completion', 'bash', 'written']", "reads like another option"),
        ("[data]\npath = '--resume'", "--data.path '--resume' reads like another option"),
        ("'new\\\\nline' = 1", "no option"),
        ('"new\\nline" = 1', "--new\\nline is no option"),
        ("[train]\ncompile = 1", "--train.compile 1: only switches"),
        ("[data]\npath = true", "--data.path True: only switches"),
        ("[train]\nsteps = 'ten'", "--train.steps: invalid literal for int() with base 10: 'ten'"),
        ("[train]\nsteps = nan", "--train.steps: invalid literal"),
        ("[optim]\nbetas = [0.9]", "Missing value for argument '--optim.betas'"),
        ("[optim]\nbetas = 0.9", "Missing value for argument '--optim.betas'"),
        ("[model]\nimg_size = 1979-05-27", "--model.img-size: no type matching"),
        ("[optim]\nlr = [[1]]", "--optim.lr: could not convert"),
        ("[optim", "is not TOML"),
        ("a = " + "[" * 5000, "is not TOML"),
        (b"\xff\xfe\x00\x00", "is not TOML"),
        (b"\x80\x04K\x01.", "is not TOML"),
        (bytes(1000), "is not TOML"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_in_one_line_with_the_file(tmp_path, monkeypatch, capsys, text, says):
    monkeypatch.chdir(tmp_path)
    Path("preset.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    said = complaint(Pretrain, ["--config", "preset.toml"], capsys)
    assert says in said
    assert "preset.toml" in said
    assert [path.name for path in tmp_path.iterdir()] == ["preset.toml"]


@pytest.mark.parametrize("config", [".", "/dev/null/x", "a\0b", "nowhere.toml"])
def test_a_file_that_cannot_be_read_is_named(config, capsys):
    assert "--config" in complaint(Pretrain, ["--config", config], capsys)


ODD_VALUES = [
    "nan",
    "inf",
    "-1",
    "0",
    "1e400",
    "99999999999999999999",
    "'x'",
    "''",
    "true",
    "[]",
    "[1, 2, 3]",
    "{a = 1}",
]
ODD_VALUES += ["1979-05-27", "[[1]]", "'\\u0000'", "'--help'", '"""a\nb"""', "-0.0", "0x7fffffff", "1_0.5"]


def mutated(text: str, draw: random.Random) -> bytes:
    """A preset with a mistake in it: a value, a key, a table, a cut, or bytes that are not text."""
    lines = text.splitlines()
    settings = [i for i, line in enumerate(lines) if re.match(r"\w+ *=", line)]
    at = draw.choice(settings)
    key, _, value = lines[at].partition("=")
    way = draw.choice(["value", "value", "value", "key", "table", "cut", "bytes", "twice", "swap"])
    if way == "value":
        lines[at] = f"{key}= {draw.choice(ODD_VALUES)}"
    elif way == "key":
        lines[at] = f"{key.strip()}{draw.choice(['x', '.x', ' y', '-', ''])}{draw.choice(['=', ''])}{value}"
    elif way == "table":
        lines.insert(at, draw.choice(["[nowhere]", "[[optim]]", "[data.path.x]", "[", "[train]"]))
    elif way == "twice":
        lines.insert(at, lines[at])
    elif way == "swap":
        other = draw.choice(settings)
        lines[at], lines[other] = lines[other], lines[at]
    content = bytearray("\n".join(lines).encode())
    if way == "cut":
        del content[draw.randrange(len(content)) :]
    elif way == "bytes":
        for _ in range(draw.choice([1, 20])):
            content[draw.randrange(len(content))] = draw.randrange(256)
    return bytes(content)


def test_a_path_is_named_by_the_option_that_gave_it(tmp_path):
    with pytest.raises(UserError, match=r"^--eval\.probe \./nothere does not exist \(on the hub: hf://owner/name\)$"):
        pretrain(tmp_path / "run", "--eval.probe", "./nothere")
    with pytest.raises(UserError, match=r"^--mpp \./nothere "):
        adopted(Compare(mpp="./nothere", supervised="none"))
    with pytest.raises(UserError, match=r"^--data\.path ~nobody-of-that-name/x "):
        pretrain(tmp_path / "run", "--data.path", "~nobody-of-that-name/x")


def test_a_table_that_cannot_be_written_names_the_way_out():
    with pytest.raises(UserError, match=r"Read-only file system.*HF_HOME to another"), naming_the_source("some/set"):
        raise OSError(errno.EROFS, "Read-only file system")


def test_a_model_that_memory_is_too_short_for_is_told_in_one_line(capsys):
    def build() -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    with pytest.raises(SystemExit) as end:
        run_command(build)
    assert end.value.code == 2
    assert re.fullmatch(r"error: out of memory \(.*9 bytes\.\); a smaller model, .*\n", capsys.readouterr().err)


def test_what_is_none_though_its_default_is_not_is_written_and_read_again(tmp_path):
    config = parse(Compare, ["--finetune.eval.images", "None", "--probe.eval-images", "None"])
    write_toml(config, tmp_path / "config.toml")
    assert parse(Compare, ["--config", str(tmp_path / "config.toml")]).probe.eval_images is None
    assert differences(tmp_path / "config.toml", config) == {}


@pytest.mark.parametrize("preset", sorted(PRESETS.glob("*.toml")), ids=lambda path: path.stem)
def test_a_mutated_preset_is_valid_or_named_in_one_line(tmp_path, preset, capsys):
    draw = random.Random(preset.stem)
    kind = {"finetune": FineTune, "compare": Compare, "evidence": Compare, "ablate": Ablate, "scaling": Scaling}.get(
        preset.stem.split("-")[0], Pretrain
    )
    file = tmp_path / "mutated.toml"
    refused = 0
    for _ in range(20):
        file.write_bytes(mutated(preset.read_text(), draw))
        said = complaint(kind, ["--config", str(file)], capsys)
        refused += bool(said)
        assert not said or str(file) in said or "--" in said
    assert refused > 5


def test_whole_commands_end_with_one_line_and_exit_code_2(tmp_path):
    (tmp_path / "bad.toml").write_text("[train]\nsteps = 'ten'\n")
    done = launch_file("mpp/pretrain.py", "--config", str(tmp_path / "bad.toml"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: --train.steps: invalid literal for int() with base 10: 'ten' (in {tmp_path / 'bad.toml'})\n"
    )
    done = launch("--optim.lr", "nan")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: --optim.lr nan must be above 0\n")
    done = launch_file("recipes/linear_probe.py", "--bogus", "1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: Unrecognized options: --bogus, 1; --help lists them all\n"


# Labels


def labelled_folder(folder: Path, **counts: int) -> Path:
    """A set with so many flat images of each class in the training split, and one of each in the test split."""
    for split in ("train", "test"):
        for number, (name, count) in enumerate(counts.items()):
            for i in range(count if split == "train" else 1):
                put(folder / split / name / f"{i}.png", 40 * number + i)
    return folder


@pytest.mark.parametrize("command", [finetune, linear_probe])
def test_one_class_only_is_said_in_one_line(tmp_path, command):
    reset_accelerate()
    folder = tmp_path / "set"
    for name in ("train", "test"):
        put(folder / name / "cat" / "0.png", 1)
        put(folder / name / "cat" / "1.png", 2)
    with pytest.raises(UserError, match=r"one class only|has no labels: .*--data\.labels-file"):
        command(["--data.path", str(folder), "--output", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_a_missing_label_column_is_said_with_those_there_are(tmp_path):
    reset_accelerate()
    folder = labelled_folder(tmp_path / "set", cat=3, dog=3)
    with pytest.raises(UserError, match=r"--data\.label-column kind does not exist; the columns are: image, label"):
        finetune(["--data.path", str(folder), "--data.label-column", "kind", "--output", str(tmp_path / "run")])


def test_more_shots_than_images_of_a_class_are_refused_with_the_most_there_can_be(tmp_path):
    folder = labelled_folder(tmp_path / "set", ant=7, bee=3, cat=5)
    options = ["--data.path", str(folder), "--output", str(tmp_path / "run"), "--model.img-size", "16"]
    options += ["--model.embed-dim", "32", "--model.depth", "1", "--model.num-heads", "2"]
    reset_accelerate()
    says = r"--probe\.shots 4 is more than the 3 training images of class bee; ask for 3 at most"
    with pytest.raises(UserError, match=says):
        linear_probe([*options, "--probe.shots", "1", "4"])
    assert not (tmp_path / "run").exists()
    reset_accelerate()
    assert "eval/few_shot_3_top1" in linear_probe([*options, "--probe.shots", "3"])


def test_an_empty_folder_is_said_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"--data\.path .*empty is an empty folder"):
        pretrain(tmp_path / "run", "--data.path", str(tmp_path / "empty"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        (
            Pretrain,
            {"train.steps": 20, "optim.warmup_steps": 10_000},
            "--train.steps 20: .* to 6e-06 of --optim.lr 0.003 ",
        ),
        (
            FineTune,
            {"optim.warmup_steps": 800, "train.steps": 800},
            "--optim.warmup-steps 800 is not below --train.steps 800",
        ),
        (
            Compare,
            {"finetune.train.steps": 20},
            "--finetune.optim.warmup-steps 50 is not below --finetune.train.steps 20",
        ),
    ],
)
def test_a_warm_up_that_never_ends_is_told(kind, options, says):
    with pytest.warns(UserWarning, match=says) as told:
        check(parse(kind, as_arguments(options)))
    assert len(told) == 1


def test_a_warm_up_that_ends_and_a_command_that_does_not_train_are_not_warned_of(recwarn):
    check(parse(Pretrain, ["--train.steps", "20", "--optim.warmup-steps", "19"]))
    check(parse(FineTune, ["--init", "runs/fine", "--eval-only", "--train.steps", "1"]))
    assert not recwarn
