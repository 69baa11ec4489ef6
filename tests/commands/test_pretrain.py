"""The pretraining command: what a run leaves behind, that it repeats, resumes, stops, and says what is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mpp import ViT
from mpp.config.command_line import as_arguments, parse
from mpp.config.commands import Pretrain
from mpp.config.derived import sized
from mpp.config.presets import read_toml
from mpp.errors import UserError
from mpp.pretrain import main
from mpp.run.folder import read_metrics
from mpp.run.machine import start_accelerator
from tests.helpers import (
    PRESETS,
    ROOT,
    command,
    launch,
    losses,
    pretrain,
    reset_accelerate,
    two_processes,
    wait_for,
    without_speeds,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, in its folder."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    pretrain(folder)
    return folder


def test_a_run_leaves_the_files_of_the_contract(finished):
    names = {path.name for path in finished.iterdir()}
    files = ("config.toml", "data.json", "log.txt", "metrics.jsonl", "result.json")
    assert names == {*files, "tensorboard", "checkpoints", "backbone", "samples"}
    checkpoints = sorted(path.name for path in (finished / "checkpoints").iterdir())
    assert checkpoints == ["step_00000004", "step_00000006"]  # the last two
    assert {path.name for path in (finished / "backbone").iterdir()} >= {"config.json", "model.safetensors"}


def test_metrics_have_the_names_of_the_contract(finished):
    lines = read_metrics(finished)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    always = {"step", "epoch", "train/loss", "train/bin_accuracy", "optim/lr", "optim/grad_norm"}
    always |= {"speed/images_per_second", "speed/data_wait", "speed/mfu"}
    evaluation = {"eval/loss", "eval/bin_accuracy", "eval/baseline_majority", "eval/baseline_neighbours"}
    for line in lines:
        assert set(line) == always | (evaluation if line["step"] % 3 == 0 else set())
    assert lines[-1]["epoch"] == pytest.approx(6 * 8 / 100_000)


def test_the_result_has_the_last_evaluation_the_sizes_and_the_versions(finished):
    result = json.loads((finished / "result.json").read_text())
    last = read_metrics(finished)[-1]
    assert {name: result[name] for name in last if name.startswith("eval/")} == {
        name: value for name, value in last.items() if name.startswith("eval/")
    }
    assert (result["step"], result["images_seen"], result["seed"]) == (6, 48, 0)
    assert result["eval_images"] == 20
    assert torch.__version__.startswith(result["packages"]["torch"])
    assert result["backbone_parameters"] == sum(
        p.numel() for p in ViT.from_pretrained(finished / "backbone").parameters()
    )


def test_the_backbone_is_the_encoder_of_the_last_checkpoint(finished):
    vit = ViT.from_pretrained(finished / "backbone")
    trained = load_file(finished / "checkpoints" / "step_00000006" / "model.safetensors")
    for name, tensor in vit.state_dict().items():
        assert torch.equal(tensor, trained[f"vit.{name}"])
    assert vit(torch.zeros(1, 3, 16, 16)).shape == (1, 17, 32)


def test_tensorboard_has_scalars_pictures_and_hyper_parameters(finished):
    events = EventAccumulator(str(finished / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"train/loss", "eval/bin_accuracy", "optim/lr", "speed/images_per_second"} <= set(tags["scalars"])
    recorded = [event.value for event in events.Scalars("train/loss")]
    assert np.allclose(recorded, losses(read_metrics(finished)))
    assert set(tags["images"]) == {"first_batch", "samples/input_corrupted_predicted_true"}
    plugins = events.summary_metadata
    assert any(metadata.plugin_data.plugin_name == "hparams" for metadata in plugins.values())


def test_sample_pictures_show_four_panels_a_row(finished):
    paths = sorted((finished / "samples").glob("*.png"))
    assert len(paths) == 2
    width, height = Image.open(paths[0]).size
    zoomed = 8 * (16 + 2)  # eight pictures of 16 pixels and a border, two a row, each with four panels
    assert (width, height) == (2 * 4 * zoomed + 3 * 6, 4 * zoomed + 5 * 6 + 18)  # 18 for headings


def test_the_resolved_config_repeats_the_run(finished, tmp_path):
    again = pretrain(tmp_path / "again", "--config", str(finished / "config.toml"))
    assert without_speeds(again) == without_speeds(read_metrics(finished))


def test_another_seed_gives_another_run(finished, tmp_path):
    assert losses(pretrain(tmp_path / "other", "--seed", "1")) != losses(read_metrics(finished))


def test_accumulation_gives_the_same_losses(finished, tmp_path):
    parts = pretrain(tmp_path / "parts", "--train.accumulate", "4")
    assert losses(parts) == pytest.approx(losses(read_metrics(finished)), abs=1e-4)


def test_two_processes_train_as_one_and_write_once(finished, tmp_path):
    done = launch("--output", str(tmp_path / "two"), launcher=two_processes())
    assert done.returncode == 0, done.stderr
    assert "processes: 2" in done.stdout
    assert done.stdout.count("the nearest visible") == 1
    together, alone = read_metrics(tmp_path / "two"), read_metrics(finished)
    assert losses(together) == pytest.approx(losses(alone), abs=1e-4)
    for name in ("eval/bin_accuracy", "eval/baseline_majority", "eval/baseline_neighbours"):
        assert together[-1][name] == pytest.approx(alone[-1][name], abs=5e-3)


def test_a_killed_run_resumes_to_the_same_losses_to_the_last_bit(tmp_path):
    long = ["--train.steps", "40", "--model.dropout", "0.1", "--model.drop-path", "0.1", "--data.workers", "1"]
    whole = pretrain(tmp_path / "whole", *long)
    folder = tmp_path / "killed"
    process = subprocess.Popen(command("--output", str(folder), *long), stderr=subprocess.DEVNULL)
    wait_for(lambda: list((folder / "checkpoints").glob("step_0000000[48]")), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = len(read_metrics(folder))
    assert before < 40
    assert not (folder / "result.json").exists()
    assert without_speeds(pretrain(folder, *long, "--resume")) == without_speeds(whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_and_ctrl_c_stop_with_a_checkpoint_and_exit_code_0(tmp_path, number):
    long = ["--train.steps", "2000", "--train.checkpoint-every", "5000"]
    process = subprocess.Popen(
        command("--output", str(tmp_path / "run"), *long), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists(), process)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "resume with" in out
    stopped = read_metrics(tmp_path / "run")[-1]["step"]
    checkpoint = tmp_path / "run" / "checkpoints" / f"step_{stopped:08d}"
    assert json.loads((checkpoint / "state.json").read_text())["step"] == stopped


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
def test_sigterm_to_the_launcher_stops_with_a_checkpoint(tmp_path):
    long = ["--train.steps", "2000", "--train.checkpoint-every", "5000"]
    launcher = (str(Path(sys.executable).with_name("accelerate")), "launch")
    process = subprocess.Popen(
        command("--output", str(tmp_path / "run"), *long, launcher=launcher),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists(), process)
    process.send_signal(signal.SIGTERM)
    process.wait()
    wait_for(lambda: list((tmp_path / "run" / "checkpoints").glob("step_????????")))


@pytest.mark.skipif(sys.platform != "linux", reason="needs process groups")
def test_a_stop_of_the_whole_group_leaves_the_workers_to_the_run(tmp_path):
    """As Ctrl-C in a terminal and scancel on a cluster do: every process of the group gets the signal."""
    long = ["--train.steps", "2000", "--train.checkpoint-every", "5000", "--data.workers", "2"]
    process = subprocess.Popen(
        command("--output", str(tmp_path / "run"), *long),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists(), process)
    os.killpg(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, "resume with" in out) == (0, True)


def test_resume_goes_on_with_the_runs_own_options(tmp_path):
    pretrain(tmp_path / "run", "--optim.decay", "none", "--seed", "5")
    reset_accelerate()
    main(["--output", str(tmp_path / "run"), "--resume", "--train.steps", "8"])
    straight = pretrain(tmp_path / "straight", "--optim.decay", "none", "--seed", "5", "--train.steps", "8")
    assert losses(read_metrics(tmp_path / "run")) == losses(straight)


def test_resume_takes_new_options_of_the_optimiser(tmp_path):
    """Loading the optimiser's state brings back its running means, not the options it was cut with."""
    pretrain(tmp_path / "run")
    pretrain(
        *(tmp_path / "run", "--resume", "--resume-anyway", "--train.steps", "8"),
        *("--optim.weight-decay", "0.5", "--optim.betas", "0.5", "0.6"),
    )
    saved = tmp_path / "run" / "checkpoints" / "step_00000008" / "optimizer.pt"
    muon, adamw = (state["param_groups"] for state in torch.load(saved, weights_only=True)["optimizers"])
    assert [group["weight_decay"] for group in muon] == [0.5]
    assert sorted(group["weight_decay"] for group in adamw) == [0.0, 0.5]
    assert all(tuple(group["betas"]) == (0.5, 0.6) for group in adamw)


def test_resume_of_another_model_is_refused_in_one_line(tmp_path):
    pretrain(tmp_path / "run")
    with pytest.raises(UserError, match="is of another model"):
        pretrain(tmp_path / "run", "--resume", "--resume-anyway", "--model.embed-dim", "64")


@pytest.mark.parametrize(("first", "then"), [("muon", "adamw"), ("adamw", "sgd"), ("sgd", "adam")])
def test_resume_with_another_optimiser_is_refused_in_one_line(tmp_path, first, then):
    pretrain(tmp_path / "run", "--optim.name", first)
    with pytest.raises(UserError, match=r"was saved with another --optim\.name"):
        pretrain(tmp_path / "run", "--resume", "--resume-anyway", "--optim.name", then)


def test_a_model_that_accelerate_compiles_is_saved_as_it_is(tmp_path, monkeypatch):
    """As `accelerate launch --dynamo_backend`, or a file of its options, may ask for."""
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    pretrain(tmp_path / "run", "--train.steps", "4")
    assert pretrain(tmp_path / "run", "--resume")[-1]["step"] == 6
    assert not any("_orig_mod" in name for name in load_file(tmp_path / "run" / "backbone" / "model.safetensors"))


def test_the_images_that_are_trained_on_are_not_held_out(tmp_path):
    with pytest.raises(UserError, match=r"--data\.eval-split train is the split that is trained on, too"):
        pretrain(tmp_path / "run", "--data.eval-split", "train")


def test_more_processes_than_gpus_are_refused_with_both_ways_out(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")  # which a launcher sets that gives each process its own
    with pytest.raises(UserError, match=r"2 processes .* 1 GPU\(s\), .* --num_processes 1, .* CUDA_VISIBLE_DEVICES="):
        start_accelerator("fp32")


def test_resume_without_a_checkpoint_starts_fresh(finished, tmp_path):
    assert without_speeds(pretrain(tmp_path / "new", "--resume")) == without_speeds(read_metrics(finished))


def test_a_finished_run_can_be_given_more_steps(tmp_path):
    pretrain(tmp_path / "run", "--optim.decay", "none")
    more = pretrain(tmp_path / "run", "--optim.decay", "none", "--train.steps", "8", "--resume")
    longer = pretrain(tmp_path / "longer", "--optim.decay", "none", "--train.steps", "8")
    assert losses(more) == losses(longer)
    assert [line["step"] for line in more] == list(range(1, 9))


@pytest.mark.parametrize(
    ("extend", "rates", "says"),
    [
        # cosine after 2 of 6 steps of warm-up, to the peak of 3e-3; the last step has (1 + cos(3/4 pi)) / 2 of it
        ("restart", 3e-3 * (0.5 + 0.5 * np.cos(np.pi * np.arange(4, 8) / 8)), "jumps 3.41-fold from 0.00044 to 0.0015"),
        ("continue", 4.393398e-4 * (0.5 + 0.5 * np.cos(np.pi * np.arange(1, 5) / 5)), "from 0.00044 and falls to 0 at"),
    ],
)
def test_a_run_given_more_steps_says_how_its_learning_rate_goes_on(tmp_path, capsys, extend, rates, says):
    pretrain(tmp_path / "run")
    assert "--optim.extend" not in capsys.readouterr().out
    more = pretrain(tmp_path / "run", "--train.steps", "10", "--resume", "--optim.extend", extend)
    told = [line for line in capsys.readouterr().out.splitlines() if "--optim.extend restart" in line]
    assert len(told) == 1
    assert says in told[0]
    assert "--optim.extend continue" in told[0]
    assert [line["optim/lr"] for line in more[6:]] == pytest.approx(rates)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_00000010")  # cut in the added steps: the rate goes on alike
    again = pretrain(tmp_path / "run", "--train.steps", "10", "--resume", "--optim.extend", extend)
    assert [line["optim/lr"] for line in again[6:]] == pytest.approx(rates)
    assert "learning rate" not in capsys.readouterr().out


def test_fewer_steps_than_a_run_has_are_refused(finished):
    before = (finished / "config.toml").read_text()
    with pytest.raises(UserError, match=r"--train.steps 4 is fewer than the 6 that \S+step_00000006 has done; give at"):
        pretrain(finished, "--train.steps", "4", "--resume")
    assert (finished / "config.toml").read_text() == before


def test_a_run_is_not_overwritten(finished):
    with pytest.raises(UserError, match=r"already holds a run; --resume"):
        pretrain(finished)


@pytest.mark.parametrize("target", ["pixels", "4x4", "2x2"])
def test_the_other_targets_train(tmp_path, target):
    lines = pretrain(tmp_path / "run", "--data.target", target, "--train.steps", "25", "--optim.lr", "3e-3")
    assert np.mean(losses(lines)[-5:]) < np.mean(losses(lines)[:5])
    assert 0 < lines[-1]["eval/baseline_neighbours"] < 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        # 2^24 bins x 4 bytes x 32 (embedding), or x 8 images x 8 patches
        (
            ["--data.bits", "8"],
            "asks for 16,777,216 colour bins of a patch: 2.0 GiB for the head and 4.0 GiB for the sc",
        ),
        (
            ["--data.bits", "6", "--data.target", "4x4"],
            "--data.bits 6 with --data.target 4x4 asks for 4,194,304 colour",
        ),
    ],
)
def test_more_colour_bins_than_make_sense_are_refused_with_their_memory(tmp_path, options, says):
    with pytest.raises(UserError, match=re.escape(says)) as told:
        pretrain(tmp_path / "run", *options)
    assert str(told.value).endswith("give fewer --data.bits (1,048,576 bins are the most)")


def test_all_parts_of_the_model_can_be_chosen(tmp_path):
    options = ["--model.img-size", "16", "24", "--model.pos-embed", "2d", "--corrupt.shape", "blocks"]
    lines = pretrain(tmp_path / "run", *options, "--augment.crop", "resized", "--optim.name", "adam")
    assert all(np.isfinite(losses(lines)))


def test_a_model_learns_to_tell_colours_better_than_both_guesses(tmp_path):
    """On pictures of one flat colour each, the visible patches say everything: a small model soon knows."""
    rng = np.random.default_rng(0)
    colours = np.array([[16, 80, 240], [240, 16, 80], [80, 240, 16], [16, 16, 16]], dtype=np.uint8)
    for i in range(64):
        colour = rng.choice(colours)
        Image.fromarray(np.broadcast_to(colour, (16, 16, 3)).copy()).save(tmp_path / f"{i}.png")
    options = ["--data.path", str(tmp_path), "--train.steps", "60", "--optim.lr", "3e-3", "--eval.every", "60"]
    last = pretrain(tmp_path / "run", *options, "--train.batch-size", "32")[-1]
    assert last["eval/bin_accuracy"] > 0.9
    assert last["eval/baseline_majority"] < 0.7
    assert last["eval/baseline_neighbours"] == 1.0


def folder_with_a_truncated_image(folder: Path) -> Path:
    """Twelve images, of which photos/5.png is cut short; returns that one."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    damaged = folder / "5.png"
    damaged.write_bytes(damaged.read_bytes()[:300])
    return damaged


def test_a_truncated_image_stops_the_run_with_its_path(tmp_path):
    damaged = folder_with_a_truncated_image(tmp_path / "photos")
    with pytest.raises(UserError, match=re.escape(str(damaged)) + r".*--data\.on-error skip"):
        pretrain(tmp_path / "run", "--data.path", str(tmp_path / "photos"))


def test_pictures_of_images_that_cannot_be_read_are_left_out(tmp_path):
    for split in ("train", "validation"):
        folder_with_a_truncated_image(tmp_path / "set" / split / "all")
    for name in ("0.png", "1.png"):
        (tmp_path / "set" / "validation" / "all" / name).write_bytes(b"no image")
    options = ["--data.path", str(tmp_path / "set"), "--data.on-error", "skip", "--eval.pictures", "2"]
    assert pretrain(tmp_path / "run", *options)[-1]["eval/bin_accuracy"] >= 0
    assert not (tmp_path / "run" / "samples").exists()


def test_a_truncated_image_can_be_skipped_and_is_reported_at_the_end(tmp_path, capsys):
    damaged = folder_with_a_truncated_image(tmp_path / "photos")
    pretrain(tmp_path / "run", "--data.path", str(tmp_path / "photos"), "--data.on-error", "skip")
    assert f"1 of 12 images in {tmp_path / 'photos'} could not be read" in capsys.readouterr().out
    assert list(json.loads((tmp_path / "run" / "result.json").read_text())["unreadable_images"]) == [str(damaged)]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--model.img-size", "30"], "--model.img-size 30 is not a multiple of the patch size"),
        (["--model.num-heads", "3"], "the --model options conflict"),
        (["--optim.betas", "1", "1"], "--optim.betas (1.0, 1.0)"),
        (["--train.steps", "0"], "--train.steps 0 must be above 0"),
        (["--optim.lr", "nan"], "--optim.lr nan must be above 0"),
        (["--corrupt.ratio", "1"], "--corrupt.ratio 1.0"),
        (["--corrupt.mask", "0.5"], "sum 1"),
        (["--data.target", "colour"], "the targets are: mean-colour, 4x4"),
        (["--data.fraction", "2"], "--data.fraction 2.0 must be above 0 and at most 1"),
        (
            ["--train.accumulate", "3"],
            "--train.batch-size 8 does not divide into 1 processes x --train.accumulate 3; 6",
        ),
        (["--data.path", "./nowhere"], "--data.path ./nowhere does not exist"),
        (["--data.split", "night"], "shapes has no split 'night'; it has: train, validation, test"),
        (["--config", "nowhere.toml"], "--config nowhere.toml: No such file"),
    ],
)
def test_wrong_options_are_named_with_the_way_out(tmp_path, options, says):
    with pytest.raises(UserError, match=re.escape(says)):
        pretrain(tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()


def test_a_wrong_option_ends_with_one_line_and_exit_code_2(tmp_path):
    done = launch("--model.img-size", "30", "--output", str(tmp_path / "run"))
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: --model.img-size 30")
    assert "Traceback" not in done.stderr


def test_an_unknown_option_in_a_preset_is_named_with_its_file(tmp_path):
    preset = tmp_path / "preset.toml"
    preset.write_text("[optim]\nlrr = 1\n")
    with pytest.raises(UserError, match=re.escape(f"{preset}: --optim.lrr is no option; did you mean --optim.lr?")):
        parse(Pretrain, ["--config", str(preset)])


def test_help_names_every_option_and_does_not_wait_for_torch():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "mpp" / "pretrain.py"), "--help-all"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    for option in as_arguments({"data": {"path": 0}, "model": {"patch_size": 0}, "train": {"batch_size": 0}}):
        assert option == "0" or option in done.stdout
    assert "| torch\n" not in done.stderr


def test_the_quickstart_preset_is_the_default():
    assert parse(Pretrain, as_arguments(read_toml(PRESETS / "quickstart.toml"))) == sized(Pretrain())


@pytest.mark.parametrize("preset", sorted(PRESETS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_preset_is_valid(preset):
    from mpp.config.checks import check
    from mpp.config.commands import Ablate, Compare, FineTune, Scaling, Supervised

    kinds = {"finetune": FineTune, "compare": Compare, "evidence": Compare, "ablate": Ablate, "scaling": Scaling}
    kinds |= {"vtab": FineTune, "bit": Supervised}
    kind = kinds.get(preset.stem.split("-")[0], Pretrain)
    wanted = ["--init", "runs/x"] if read_toml(preset).get("init") == "" else []  # the preset goes on from weights
    check(parse(kind, ["--config", str(preset), *wanted]))


def test_options_on_the_line_win_over_the_preset():
    config = parse(Pretrain, ["--config", str(PRESETS / "paper-vit-b16.toml"), "--train.batch-size", "64"])
    assert (config.train.batch_size, config.optim.lr, config.train.steps) == (64, 2e-4, 1_000_000)


def test_a_set_with_no_readable_image_ends_in_one_line(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="no readable image was found"):
        pretrain(tmp_path / "run", "--data.path", str(folder), "--data.on-error", "skip")
