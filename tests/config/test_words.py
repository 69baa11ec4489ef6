"""What people type: short forms, values without a name, timm's names, other tools' names."""

from __future__ import annotations

import pytest

from mpp.config import Compare, FineTune, LinearProbe, Pretrain
from mpp.config.command_line import flattened, parse
from mpp.config.words import nearest
from mpp.console import command
from mpp.errors import UserError


def test_short_forms_and_a_folder_without_a_name_are_the_options():
    words = ["photos", "--lr", "1e-3", "--steps=7", "--batch-size", "16"]
    config = parse(Pretrain, words, in_place=("--data.path",))
    assert (config.data.path, config.optim.lr, config.train.steps, config.train.batch_size) == ("photos", 1e-3, 7, 16)
    assert parse(FineTune, ["--data", "set"]).data.path == "set"
    assert parse(LinearProbe, ["--batch-size", "16"]).batch_size == 16  # which has an option of that name


def test_short_forms_win_over_a_preset(tmp_path):
    (tmp_path / "p.toml").write_text("[train]\nsteps = 5\n[optim]\nlr = 1.0\n")
    config = parse(Pretrain, ["--config", str(tmp_path / "p.toml"), "--steps", "9"])
    assert (config.train.steps, config.optim.lr) == (9, 1.0)


@pytest.mark.parametrize(
    ("word", "means"),
    [
        ("--learning-rate", "--optim.lr"),
        ("--lr-rate", "--optim.lr"),
        ("--optim.lrr", "--optim.lr"),
        ("--dataset", "--data.path"),
        ("--epoch", "--train.epochs"),
        ("--max_steps", "--train.steps"),
        ("--image-size", "--model.img-size"),
        ("--patch-size", "--model.patch-size"),
        ("--mask-ratio", "--corrupt.ratio"),
        ("--output-dir", "--output"),
        ("--sead", "--seed"),
    ],
)
def test_an_unknown_option_is_answered_with_the_one_it_means(word, means):
    with pytest.raises(UserError, match=f"Unrecognized options: {word}, 1; did you mean {means}\\?$"):
        parse(Pretrain, [word, "1"])


def test_what_a_command_does_not_have_is_not_suggested():
    assert nearest("--mask-ratio", flattened(FineTune())) == []
    assert nearest("--lr", flattened(Compare())) == ["--pretrain.optim.lr", "--finetune.optim.lr"]


@pytest.mark.parametrize(
    ("name", "variant", "patch", "side"),
    [
        ("vit_tiny_patch16_224", "Ti", 16, 224),
        ("vit_huge_patch14_224", "H", 14, 224),
        ("deit_small_patch16_384", "S", 16, 384),
    ],
)
def test_timms_names_set_variant_patch_and_size(name, variant, patch, side):
    for words in (["--model.variant", name], [f"--model.variant={name}"]):
        model = parse(Pretrain, words).model
        assert (model.variant, model.patch_size, model.img_size) == (variant, patch, side)


def test_what_is_given_wins_over_timms_name(tmp_path):
    (tmp_path / "p.toml").write_text('[model]\nvariant = "vit_small_patch16_224"\nimg_size = 64\n')
    model = parse(Pretrain, ["--config", str(tmp_path / "p.toml"), "--model.patch-size", "8"]).model
    assert (model.variant, model.patch_size, model.img_size) == ("S", 8, 64)


def test_timms_names_of_weights_are_refused_with_what_to_leave_off():
    with pytest.raises(UserError, match=r"names trained weights.*leave \.augreg_in21k off"):
        parse(Pretrain, ["--model.variant", "vit_small_patch16_224.augreg_in21k"])


def test_a_command_of_two_values_takes_both_without_names():
    with pytest.raises(UserError, match=r"--init ./no-run does not exist"):
        command("probe")(["./no-run", "shapes"])
