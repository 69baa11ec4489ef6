"""Nothing lost: exact resume, kills, faults while running, weights from others, several processes.

Most runs here are forks of a process that has imported everything (`tools.kill.begin`), because a start costs 5 seconds
otherwise; they are processes of their own, with the real command in them.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file, save_file

from mpp import Classifier, ViT
from mpp.data.loader import Share, TrainOrder
from mpp.errors import UserError
from mpp.methods.classify import load_classifier
from mpp.methods.masked_patches import MaskedPatches
from mpp.models.backbones import load_backbone
from mpp.run.folder import read_metrics
from mpp.training import checkpoints
from recipes.finetune import main as finetune
from recipes.supervised import main as supervised
from tests.helpers import (
    SMALL,
    command,
    losses,
    one_line,
    pretrain,
    reset_accelerate,
    two_processes,
    wait_for,
    without_speeds,
    write_shards,
)
from tools.kill import Options, Tally, begin, compare, kill, run_twice, torture

# 30 images, in batches of 8: epochs end between and within batches, and a cut is in the middle of one
EPOCHS = ["--data.fraction", "0.0003", "--augment.crop", "resized", "--eval.pictures", "0"]


def start(count: int, output: Path, *options: str, prepare: Callable[[], object] | None = None) -> list:
    """Start the command on `count` processes, which print into `output`.log."""
    args, log, port = [*SMALL, "--output", str(output), *options], output.with_suffix(".log"), free_port()
    return [begin(args, log, rank, count, port, prepare) for rank in range(count)]


def together(count: int, output: Path, *options: str, prepare: Callable[[], object] | None = None) -> list[dict]:
    """Run the command on `count` processes to its end; returns the lines of metrics.jsonl."""
    processes = start(count, output, *options, prepare=prepare)
    for process in processes:
        process.join(60)
    ends = [process.exitcode for process in processes]
    for process in processes:
        kill(process)
    assert ends == [0] * count, output.with_suffix(".log").read_text()
    return read_metrics(output)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def cut_and_resumed(count: int, output: Path, *options: str) -> list[dict[str, float]]:
    """As `together`, but stopped after three steps and gone on with."""
    cut = ["--optim.decay", "none", "--train.steps", "3"]  # without decay, a shorter run begins as the longer one
    together(count, output, *options, *cut)
    return together(count, output, *options, "--optim.decay", "none", "--resume")


@pytest.mark.parametrize(("processes", "accumulate"), list(product([1, 2], [1, 2])))
def test_resuming_gives_the_same_metrics_to_the_last_bit(tmp_path, processes, accumulate):
    options = [*EPOCHS, "--model.dropout", "0.1", "--train.accumulate", str(accumulate)]
    straight = without_speeds(together(processes, tmp_path / "straight", *options, "--optim.decay", "none"))
    assert [line["step"] for line in straight] == [1, 2, 3, 4, 5, 6]
    assert 0 < straight[2]["epoch"] < 1 < straight[-1]["epoch"]
    for workers in ("0", "2"):
        resumed = cut_and_resumed(processes, tmp_path / workers, *options, "--data.workers", workers)
        assert without_speeds(resumed) == straight


def test_a_run_goes_on_with_other_processes_accumulation_and_workers(tmp_path):
    straight = together(1, tmp_path / "straight", *EPOCHS, "--optim.decay", "none")
    steps = {2: (2, ["--data.workers", "1"]), 4: (1, ["--train.accumulate", "4"]), 6: (2, ["--train.accumulate", "2"])}
    for step, (processes, options) in steps.items():
        length = ["--optim.decay", "none", "--train.steps", str(step), "--resume"]
        changed = together(processes, tmp_path / "changed", *EPOCHS, *length, *options)
    assert losses(changed) == pytest.approx(losses(straight), abs=1e-4)
    assert [line["epoch"] for line in changed] == [line["epoch"] for line in straight]


def run(command, output: Path, *options: str) -> None:
    """Run a command of recipes/ in this process."""
    reset_accelerate()
    small = ["--train.steps", "4", "--train.batch-size", "8", "--eval.images", "60", "--data.labels", "40"]
    command([*small, "--output", str(output), *options])


SHAPE = ["--model.img-size", "16", "--model.embed-dim", "32", "--model.depth", "2", "--model.num-heads", "2"]


@pytest.mark.parametrize("command", ["pretrain", "supervised", "finetune"])
def test_resuming_with_options_that_change_the_numbers_is_refused_with_both_values(tmp_path, command):
    def go(*options: str) -> None:
        if command == "pretrain":
            pretrain(tmp_path / "run", *options)
        else:
            run({"supervised": supervised, "finetune": finetune}[command], tmp_path / "run", *SHAPE, *options)

    go("--optim.lr", "1e-3")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError) as refusal:
        go("--resume", "--optim.lr", "2e-3", "--augment.flip", "0.25", "--train.steps", "8")
    says = str(refusal.value)
    assert "--augment.flip 0.5, now 0.25" in says
    assert "--optim.lr 0.001, now 0.002" in says
    assert "--train.steps" not in says
    assert "--resume-anyway" in says
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    go("--resume", "--resume-anyway", "--optim.lr", "2e-3", "--train.steps", "8")
    assert read_metrics(tmp_path / "run")[-1]["step"] == 8


def test_resuming_with_options_that_do_not_change_the_numbers_is_allowed(tmp_path):
    pretrain(tmp_path / "run")
    other = ["--train.steps", "8", "--train.accumulate", "2", "--train.checkpoint-every", "3", "--eval.every", "4"]
    other += ["--train.keep-checkpoints", "1", "--train.log-every", "2", "--data.workers", "1"]
    pretrain(tmp_path / "run", "--resume", *other)
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6, 8]


def test_of_two_runs_in_one_folder_one_is_refused_and_the_other_is_whole(tmp_path):
    tally = run_twice(Options(kills=2, seed=3), tmp_path)
    assert (tally.differences, tally.refused) == ([], 2)


def test_a_run_killed_twenty_times_is_the_same_as_one_that_nobody_killed(tmp_path):
    tally = torture(Options(kills=20), tmp_path)
    assert tally.differences == []
    assert (tally.kills, tally.resumes) == (20, 20)
    assert tally.in_a_checkpoint >= 3
    assert tally.lines >= 40


def test_the_kill_tool_notices_a_line_twice_a_line_missing_and_other_weights(tmp_path):
    pretrain(tmp_path / "run")
    for damage in ("twice", "missing", "weights"):
        folder = Path(shutil.copytree(tmp_path / "run", tmp_path / damage))
        lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
        if damage == "weights":
            (folder / "checkpoints" / "step_00000006" / "model.safetensors").write_bytes(b"other")
        else:
            lines[2:3] = lines[2:3] * 2 if damage == "twice" else []
        (folder / "metrics.jsonl").write_text("".join(lines))
        tally = Tally()
        compare(folder, tmp_path / "run", tally)
        assert tally.differences
    compare(tmp_path / "run", tmp_path / "run", tally := Tally())
    assert not tally.differences


def test_the_images_of_a_stream_are_named_too(tmp_path, monkeypatch):
    folder = write_shards(tmp_path / "set", 3, 8)
    monkeypatch.setattr(MaskedPatches, "training_step", losing_its_mind(range(2, 3)))
    with pytest.raises(UserError, match="at step 2"):
        pretrain(tmp_path / "run", "--data.path", str(folder))
    found = json.loads((tmp_path / "run" / "nonfinite_00000002.json").read_text())
    names = [image["image"] for image in found["batches"][0]["images"]]
    assert len(names) == 8
    assert all(re.search(r"train-000\d\.tar: \d{6}$", name) for name in names)


LONG = ["--train.steps", "5000", "--train.checkpoint-every", "5000", "--eval.every", "5000"]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Have the system refuse to write more into a file of this process, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_last_checkpoint_and_is_told_each_time(tmp_path, capsys):
    options = ["--optim.decay", "none", "--eval.every", "9"]
    straight = losses(pretrain(tmp_path / "straight", *options))
    pretrain(tmp_path / "run", *options, "--train.steps", "2")
    with files_of_at_most(60_000), pytest.raises(UserError) as end:
        pretrain(tmp_path / "run", *options, "--resume")
    assert "the checkpoint of step 4 could not be written" in capsys.readouterr().err
    assert "the checkpoint of step 6 could not be written" in str(end.value)
    assert f"the last one is {tmp_path}/run/checkpoints/step_00000002" in str(end.value)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000002"]
    assert losses(pretrain(tmp_path / "run", *options, "--resume")) == straight


def test_a_disk_that_is_full_for_the_metrics_ends_the_run_in_one_line(tmp_path):
    line = " ".join(command("--output", str(tmp_path / "run"), *LONG, "--eval.pictures", "0"))
    done = subprocess.run(["bash", "-c", f"ulimit -f 8; exec {line}"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith(f"error: {tmp_path}/run can no longer be written (")
    assert "Traceback" not in done.stderr
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) > 5


def test_an_output_that_cannot_be_written_is_told_before_anything_is_loaded(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--output .*/file/run cannot be written \(Not a directory\)"):
        pretrain(tmp_path / "file" / "run", "--data.path", "./nowhere")


def ends_with_one_line(process, log: Path, says: str) -> None:
    """A process ends within a minute, with exit code 2 and one line about why."""
    process.join(60)
    assert process.exitcode == 2, log.read_text()
    text = log.read_text()
    assert re.search(rf"error.*{says}", text), text
    assert "Traceback" not in text


def test_a_reading_process_that_dies_ends_the_run_in_one_line(tmp_path):
    (run,) = start(1, tmp_path / "run", *LONG, "--data.workers", "1")
    wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists())
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    ends_with_one_line(run, tmp_path / "run.log", "process that reads images has died .*--data.workers")


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_of_two_processes_dies_the_other_ends_and_names_its_rank(tmp_path, victim):
    processes = start(2, tmp_path / "run", *LONG)
    wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists())
    kill(processes[victim])
    says = rf"\(rank {1 - victim} of 2\): another process of this run has died"
    ends_with_one_line(processes[1 - victim], tmp_path / "run.log", says)


def losing_its_mind(steps: range, rank: int = 0) -> Callable:
    """A training step whose loss is no number in some steps of one process."""
    whole = MaskedPatches.training_step

    def training_step(self, model, batch, step):
        loss, metrics = whole(self, model, batch, step)
        broken = step in steps and self.accelerator.process_index == rank
        return loss * (float("nan") if broken else 1.0), metrics

    return training_step


def lose_the_mind_of_rank_1() -> None:
    """What `start` has its processes prepare."""
    MaskedPatches.training_step = losing_its_mind(range(4, 5), rank=1)


def test_a_loss_that_is_no_number_names_its_step_and_images(tmp_path, monkeypatch):
    monkeypatch.setattr(MaskedPatches, "training_step", losing_its_mind(range(4, 7)))
    with pytest.raises(UserError, match=r"at step 4 .*nonfinite_00000004\.json.*--train\.on-nonfinite skip"):
        pretrain(tmp_path / "run", "--train.log-every", "5", "--train.accumulate", "2", "--data.fraction", "0.001")
    found = json.loads((tmp_path / "run" / "nonfinite_00000004.json").read_text())
    order = list(TrainOrder(100, 0, Share(8), 0, 6))[3]
    images = [image for batch in found["batches"] for image in batch["images"]]
    assert [image["index"] for image in images] == order.indices.tolist()
    assert all("shapes, train, scene" in image["image"] for image in images)
    assert [(batch["loss"], batch["micro_batch"]) for batch in found["batches"]] == [("nan", 0), ("nan", 1)]
    assert checkpoints.latest(tmp_path / "run" / "checkpoints")[1]["step"] == 2


@pytest.mark.parametrize("processes", [1, 2])
def test_a_step_that_is_skipped_changes_no_weight_and_no_mean(tmp_path, processes, monkeypatch):
    options = ["--train.on-nonfinite", "skip", "--train.checkpoint-every", "1", "--train.keep-checkpoints", "9"]
    if processes == 1:
        monkeypatch.setattr(MaskedPatches, "training_step", losing_its_mind(range(4, 5)))
        lines = pretrain(tmp_path / "run", *options)
    else:
        lines = together(2, tmp_path / "run", *options, prepare=lose_the_mind_of_rank_1)
    assert [("train/loss" in line, line.get("train/skipped")) for line in lines[2:5]] == [
        *((True, None), (False, 1.0), (True, None)),
    ]
    states = [tmp_path / "run" / "checkpoints" / f"step_{step:08d}" for step in (3, 4, 5)]
    weights = [(path / "model.safetensors").read_bytes() for path in states]
    assert weights[0] == weights[1] != weights[2]
    moments = [
        [t for o in torch.load(path / "optimizer.pt", weights_only=True)["optimizers"] for t in tensors(o["state"])]
        for path in states[:2]
    ]
    assert all(torch.equal(a, b) for a, b in zip(*moments, strict=True))
    assert (tmp_path / "run" / "nonfinite_00000004.json").exists()
    assert lines[-1]["step"] == 6


def tensors(state: dict) -> list[torch.Tensor]:
    """All tensors in an optimiser's state."""
    return [value for of_parameter in state.values() for value in of_parameter.values()]


def test_too_many_skipped_steps_in_a_row_end_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(MaskedPatches, "training_step", losing_its_mind(range(3, 7)))
    with pytest.raises(UserError, match=r"more than --train\.max-skips 2 steps in a row .* the last is step 5"):
        pretrain(tmp_path / "run", "--train.on-nonfinite", "skip", "--train.max-skips", "2")


def short_of_memory(most: int, rank: int | None = None) -> Callable:
    """A training step that has memory for `most` images, in one process or all."""
    whole = MaskedPatches.training_step

    def training_step(self, model, batch, step):
        if len(batch["images"]) > most and rank in (None, self.accelerator.process_index):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return whole(self, model, batch, step)

    return training_step


def shorten_the_memory_of_rank_1() -> None:
    """What `start` has its processes prepare."""
    MaskedPatches.training_step = short_of_memory(2, rank=1)


def test_running_out_of_memory_names_the_numbers_and_what_to_lower(tmp_path, monkeypatch):
    monkeypatch.setattr(MaskedPatches, "training_step", short_of_memory(2))
    with pytest.raises(UserError) as end:
        pretrain(tmp_path / "run")
    says = "out of memory at step 1 with --train.batch-size 8: 8 images at a time"
    assert re.search(rf"{says}.* GiB; --train\.accumulate 2 .*--train\.auto-batch", str(end.value))


def test_auto_batch_finds_the_parts_that_fit_and_keeps_the_numbers(tmp_path, monkeypatch):
    straight = losses(pretrain(tmp_path / "straight"))
    monkeypatch.setattr(MaskedPatches, "training_step", short_of_memory(2))
    assert losses(pretrain(tmp_path / "run", "--train.auto-batch")) == pytest.approx(straight, abs=1e-4)
    assert "accumulate = 4" in (tmp_path / "run" / "config.toml").read_text()
    monkeypatch.setattr(MaskedPatches, "training_step", short_of_memory(0))
    with pytest.raises(UserError, match="not even 1 image"):
        pretrain(tmp_path / "none", "--train.auto-batch")


def test_auto_batch_agrees_over_processes(tmp_path):
    options = ["--train.auto-batch", "--model.pos-embed", "relative"]
    straight = losses(together(1, tmp_path / "straight", "--model.pos-embed", "relative"))
    found = together(2, tmp_path / "run", *options, prepare=shorten_the_memory_of_rank_1)
    assert losses(found) == pytest.approx(straight, abs=1e-4)
    assert "accumulate = 2" in (tmp_path / "run" / "config.toml").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_to_two_processes_stops_both_with_a_checkpoint(tmp_path, number):
    processes = start(2, tmp_path / "run", *LONG, "--data.workers", "1")
    wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists())
    for process in processes:
        os.killpg(process.pid, number)  # the workers, too
    for process in processes:
        process.join(60)
    text = (tmp_path / "run.log").read_text()
    assert [process.exitcode for process in processes] == [0, 0], text
    stopped = re.search(r"stopped at step (\d+); resume with: accelerate launch -m mpp pretrain --config", text)
    assert checkpoints.latest(tmp_path / "run" / "checkpoints")[1]["step"] == int(stopped[1])
    assert "Traceback" not in text


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
def test_sigusr1_to_the_launcher_of_two_processes_stops_with_a_checkpoint(tmp_path):
    line = command("--output", str(tmp_path / "run"), *LONG, launcher=two_processes())
    launcher = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists(), launcher)
    launcher.send_signal(signal.SIGUSR1)
    launcher.wait(60)
    wait_for(lambda: list((tmp_path / "run" / "checkpoints").glob("step_????????")))


def test_one_two_and_four_processes_learn_alike_and_write_once(tmp_path):
    uneven = ["--eval.images", "21", "--eval.batch-size", "8"]  # three batches, the last of five: one process has none
    alone = together(1, tmp_path / "1", *uneven)
    for count in (2, 4):
        lines = together(count, tmp_path / str(count), *uneven)
        assert losses(lines) == pytest.approx(losses(alone), abs=1e-4)
        assert [line["step"] for line in lines] == [line["step"] for line in alone]
        for name in ("eval/baseline_majority", "eval/baseline_neighbours"):  # of every image once, whatever is learnt
            assert lines[-1][name] == pytest.approx(alone[-1][name], abs=1e-6)
        assert lines[-1]["eval/loss"] == pytest.approx(alone[-1]["eval/loss"], abs=1e-4)
        text = (tmp_path / f"{count}.log").read_text()
        assert f"processes: {count}" in text
        assert text.count("step 6/6: eval/loss") == text.count("Pictures: ") == 1
        assert len(list((tmp_path / str(count) / "tensorboard").glob("events*"))) == 1
        result = json.loads((tmp_path / str(count) / "result.json").read_text())
        assert (result["images_seen"], result["eval_images"]) == (48, 21)


@pytest.fixture
def others(backbone, tmp_path):
    """A folder with a backbone from somebody else."""
    return Path(shutil.copytree(backbone, tmp_path / "others"))


def refused(init: Path) -> str:
    """What fine-tuning says of a backbone that it does not take."""
    with pytest.raises(UserError) as end:
        run(finetune, init.parent / "run", "--init", str(init))
    assert "\n" not in str(end.value)
    return str(end.value)


class Bomb:
    """What a pickle of it does when it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_a_pickle_from_others_is_never_loaded(others, tmp_path):
    (others / "model.safetensors").unlink()
    torch.save(Bomb(tmp_path / "went off"), others / "pytorch_model.bin")
    assert "pickles (pytorch_model.bin) are not loaded" in refused(others)
    assert not (tmp_path / "went off").exists()


def test_a_pickle_from_the_hub_is_never_asked_for(monkeypatch):
    asked = []

    def download(repo_id: str, filename: str, **_: object) -> str:
        asked.append(filename)
        raise EntryNotFoundError("404")

    monkeypatch.setattr("mpp.models.pretrained.hf_hub_download", download)
    with pytest.raises(ValueError, match="pickles"):
        ViT._from_pretrained(model_id="somebody/something", token=None)
    assert asked == ["model.safetensors"]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"embed_dim": 64}, r"cls_token is \(1, 1, 32\) in model.safetensors, but config.json asks for \(1, 1, 64\)"),
        ({"depth": 3}, r"blocks\.2\.\S+ is not in model.safetensors"),
        ({"depth": 1}, r"blocks\.1\.\S+ is .* in model.safetensors, but config.json asks for no such tensor"),
        ({"depth": 10**9}, "depth 1000000000 must be from 1 to 1000"),
        ({"embed_dim": 2**20, "mlp_ratio": 64}, r"cls_token is \(1, 1, 32\)"),
        ({"embed_dim": 2**40}, "overflow"),
        ({"img_size": [2**22, 2**22]}, r"pos_embed is \(1, 17, 32\)"),
        ({"depth": "many"}, "depth must be a whole number above 0, not 'many'"),
        ({"variant": ["B"]}, r"there is no variant \['B'\]; choose one of: nano"),
        ({"pos_embed": "x" * 10**6}, r"there is no pos_embed 'x{58}… \(str\); choose"),
        ({"num_heads": 0}, "num_heads must be a whole number above 0, not 0"),
        ({"num_heads": -2}, "num_heads must be a whole number above 0, not -2"),
        ({"patch_size": 4.0}, "patch_size must be a whole number above 0, not 4.0"),
        ({"in_chans": True}, "in_chans must be a whole number above 0, not True"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio must be a number from 0 to 1000, not nan"),
        ({"img_size": [16, 16, 16]}, r"img_size must be a side or \(height, width\)"),
        ({"img_size": -16}, r"img_size \(-16, -16\) is not a multiple of patch_size 4"),
        ({"img_size": [16.0, None]}, r"img_size must be a side or \(height, width\) in whole pixels"),
    ],
)
def test_weights_of_other_shapes_than_their_configuration_are_refused_without_taking_memory(others, changed, says):
    config = json.loads((others / "config.json").read_text()) | changed
    (others / "config.json").write_text(json.dumps(config))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert re.search(says, refused(others))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_an_image_size_that_no_weights_bound_has_a_limit(tmp_path):
    vit = ViT(img_size=64, patch_size=4, embed_dim=4, num_heads=1, depth=1, pos_embed="none")
    vit.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for size, fine in {1024: True, 1028: False, 2**20: False}.items():
        (tmp_path / "config.json").write_text(json.dumps(config | {"img_size": size}))
        if fine:
            assert load_backbone(str(tmp_path)).img_size == (size, size)
        else:
            assert "65,536 patches and 16,777,216 pixels an image at most are read" in refused(tmp_path)


def test_an_index_of_relative_positions_far_above_the_weights_is_refused_without_taking_memory(tmp_path):
    """Its size grows with the square of their table, which is 65 kB here."""
    sizes = {"embed_dim": 1, "num_heads": 1, "depth": 1, "patch_size": 1, "pos_embed": "relative"}
    vit = ViT(img_size=48, **sizes)
    vit.save_pretrained(tmp_path / "fine")
    assert load_backbone(str(tmp_path / "fine")).num_patches == 48**2
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in ViT(img_size=130, **sizes).state_dict().items()}
    (tmp_path / "huge").mkdir()
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "huge" / "model.safetensors")
    (tmp_path / "huge" / "config.json").write_text(json.dumps(vit.hub_config() | {"img_size": 130}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "config.json asks for 2,179 MiB beside the weights (relative positions); 256" in refused(tmp_path / "huge")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(others, value):
    weights = load_file(others / "model.safetensors")
    weights["blocks.1.norm2.bias"][3] = value
    save_file(weights, others / "model.safetensors")
    assert "blocks.1.norm2.bias in model.safetensors holds values that are not finite" in refused(others)


@pytest.mark.parametrize("damage", ["cut", "header", "empty"])
def test_damaged_weights_are_refused_in_one_line(others, damage):
    file = others / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes({"cut": content[:-100], "header": b"\xff" * 8 + content[8:], "empty": b""}[damage])
    assert "no backbone could be loaded" in refused(others)


def test_a_classifier_of_absurd_size_is_refused(tmp_path):
    run(finetune, tmp_path / "run", *SHAPE)
    file = tmp_path / "run" / "classifier" / "config.json"
    config = json.loads(file.read_text())
    config["vit"]["embed_dim"] = 2**20
    file.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"no fine-tuned model .*cls_token is \(1, 1, 32\)"):
        load_classifier(str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"classes": ["cat", "dog", "cat"]}, "names of classes must differ; these stand there more than once: cat"),
        ({"classes": []}, r"classes must be a list of names, not \[\]"),
        ({"classes": "cats"}, "classes must be a list of names, not 'cats'"),
        ({"classes": ["cat", 7, "owl"]}, "class 1 must be a name of at most 1,000 characters, not 7"),
        ({"classes": ["cat", " ", "owl"]}, "class 1 must be a name"),
        ({"classes": ["cat", "x" * 10**6, "owl"]}, "class 1 must be a name .* not 'x{58}…"),
        ({"classes": [f"class {k}" for k in range(30_000)]}, r"head\.0\.weight is \(3, 32\) in model.safetensors"),
        ({"pool": "max"}, "there is no pool 'max'; choose one of: mean, cls"),
        ({"head": None}, "there is no head None; choose one of: linear, mlp"),
        ({"vit": "B"}, "vit must be the arguments of a ViT, not 'B'"),
        ({"vit": {"depth": 10**9}}, "depth 1000000000 must be from 1 to 1000"),
        ([1, 2], "config.json is no JSON object"),
    ],
)
def test_an_odd_classifier_is_refused_in_one_line(tmp_path, changed, says):
    vit = ViT("nano", img_size=16, patch_size=4, embed_dim=32, depth=1, num_heads=2)
    Classifier(vit, ["cat", "dog", "owl"]).save_pretrained(tmp_path)
    assert load_classifier(str(tmp_path)).classes == ["cat", "dog", "owl"]
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed if isinstance(changed, dict) else changed))
    with pytest.raises(UserError, match=says) as told:
        load_classifier(str(tmp_path))
    assert len(one_line(told)) < 600


@pytest.mark.parametrize(
    "state",
    [{"step": 9}, {"files": {}}, {"positions": None}, {"files": {"../../../secret": "0" * 64}}, {"seconds": "long"}],
    ids=lambda lie: next(iter(lie)),
)
def test_a_checkpoint_whose_state_lies_is_passed_over(tmp_path, state):
    pretrain(tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step_00000006" / "state.json"
    newest.write_text(json.dumps(json.loads(newest.read_text()) | state))
    with pytest.warns(UserWarning, match="step_00000006 is damaged"):
        found = checkpoints.latest(tmp_path / "run" / "checkpoints")
    assert found[1]["step"] == 4


def test_checkpoints_without_the_options_they_are_of_are_not_gone_on_with(tmp_path):
    pretrain(tmp_path, "--train.steps", "4")
    (tmp_path / "config.toml").unlink()
    with pytest.raises(UserError, match=r"holds checkpoints but no config\.toml"):
        pretrain(tmp_path, "--resume")
    pretrain(tmp_path, "--resume", "--resume-anyway")


def test_a_run_that_goes_on_has_no_result_until_it_is_done(tmp_path, monkeypatch):
    pretrain(tmp_path, "--train.steps", "2")
    monkeypatch.setattr("mpp.commands.pretrain.write_result", lambda *_: pytest.fail("stopped before the result"))
    with pytest.raises(pytest.fail.Exception):
        pretrain(tmp_path, "--train.steps", "4", "--resume")
    assert not (tmp_path / "result.json").exists()
