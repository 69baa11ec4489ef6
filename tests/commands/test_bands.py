"""Sets of any channels and values through every command: what is trained, kept, exported and said."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile
from PIL import Image

import mpp
from mpp.config.presets import read_toml
from mpp.errors import Notice, UserError
from tests.helpers import one_line, reset_accelerate

TINY = {
    "model.img_size": 16,
    "model.embed_dim": 32,
    "model.depth": 2,
    "model.num_heads": 2,
    "train.steps": 2,
    "train.batch_size": 4,
    "optim.warmup_steps": 0,
}


@pytest.fixture(scope="module")
def satellite(tmp_path_factory):
    """Two classes of 16 x 16 images of five reflectances (uint16, 0 to about 4000), in train and test."""
    folder, rng = tmp_path_factory.mktemp("satellite"), np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for place, name in enumerate(("land", "sea")):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                array = (rng.random((16, 16, 5)) * 1000 + place * 3000).astype(np.uint16)
                file = folder / split / name / f"{number}.tif"
                tifffile.imwrite(file, array, photometric="minisblack", planarconfig="contig")
    return folder


@pytest.fixture(scope="module")
def backbone_of_five(satellite, tmp_path_factory):
    """A run pretrained on five bands, with the range that it found."""
    reset_accelerate()
    output = tmp_path_factory.mktemp("runs") / "five"
    mpp.pretrain(TINY | {"data.path": str(satellite), "data.range": "auto", "eval.pictures": 2, "output": str(output)})
    return output


def called(name, **options):
    reset_accelerate()
    return getattr(mpp, name)({key.replace("__", "."): value for key, value in options.items()})


def test_five_bands_and_the_range_found_in_them_go_from_the_files_to_the_export(backbone_of_five):
    run = backbone_of_five
    exported = json.loads((run / "backbone" / "config.json").read_text())
    kept = read_toml(run / "config.toml")["data"]["range"]
    assert exported["in_chans"] == json.loads((run / "result.json").read_text())["channels"] == 5
    assert exported["pixel_range"] == kept
    assert 0 <= kept[0] < 20
    assert 3950 < kept[1] < 4000
    vit = mpp.ViT.from_pretrained(run / "backbone")
    assert vit.patch_embed.in_features == 5 * 4 * 4
    assert vit.pixel_range == tuple(kept)
    assert Image.open(next((run / "samples").glob("*.png"))).mode == "RGB"


def test_what_starts_from_a_backbone_reads_images_as_it_did(satellite, backbone_of_five, tmp_path):
    common = {"init": str(backbone_of_five), "data__path": str(satellite)}
    probed = called("probe", **common, output=str(tmp_path / "probe"))
    assert probed["eval/top1"] == 1.0  # the classes differ in brightness; without the range they are hardly apart
    tuned = {"train__steps": 2, "train__batch_size": 4}
    called("finetune", **common, **tuned, output=str(tmp_path / "fine"))
    classifier = json.loads((tmp_path / "fine" / "classifier" / "config.json").read_text())
    assert classifier["vit"]["in_chans"] == 5
    assert classifier["vit"]["pixel_range"] == list(mpp.ViT.from_pretrained(backbone_of_five / "backbone").pixel_range)
    measured = called(
        "finetune",
        init=str(tmp_path / "fine"),
        data__path=str(satellite),
        eval_only=True,
        output=str(tmp_path / "measured"),
    )
    assert measured["eval_images"] == 8


def test_a_run_with_a_found_range_goes_on_with_the_same_options(satellite, backbone_of_five, tmp_path):
    options = TINY | {"data.path": str(satellite), "data.range": "auto", "output": str(backbone_of_five)}
    reset_accelerate()
    assert mpp.pretrain(options | {"resume": True})["step"] == 2


def test_scratch_takes_the_channels_of_the_images(satellite, tmp_path):
    shape = {f"model__{name}": TINY[f"model.{name}"] for name in ("img_size", "embed_dim", "depth", "num_heads")}
    options = {"data__path": str(satellite), "data__range": "auto", **shape}
    called("probe", **options, output=str(tmp_path / "probe"))
    train = {"train__steps": 2, "train__batch_size": 4}
    for name in ("finetune", "supervised"):
        called(name, **options, **train, output=str(tmp_path / name))
        exported = json.loads((tmp_path / name / "backbone" / "config.json").read_text())
        assert exported["in_chans"] == 5
        assert exported["pixel_range"][1] > 3900


@pytest.mark.parametrize(
    ("command", "options", "says"),
    [
        ("probe", {}, r"0\.tif has 5 channels, not the 3 of --init .*backbone"),
        ("finetune", {}, r"0\.tif has 5 channels, not the 3 of --init .*backbone"),
        ("finetune", {"data__channels": 5}, r"--data\.channels 5: --init .* takes images of 3 channels"),
        ("supervised", {"data__channels": 4, "init": None}, r"0\.tif has 5 channels, not the 4 of --data\.channels"),
        ("supervised", {"augment__randaugment": 1, "data__range": "auto", "init": None}, "randaugment.*5 channels"),
    ],
)
def test_another_number_of_channels_is_named_before_anything_is_trained(
    satellite, backbone, tmp_path, command, options, says
):
    options = {"init": str(backbone), "data__path": str(satellite), "output": str(tmp_path / "run")} | options
    with pytest.raises(UserError, match=says) as error:
        called(command, **{name: value for name, value in options.items() if value is not None})
    one_line(error)


def test_every_image_of_a_set_has_the_channels_of_the_first(tmp_path):
    for number in range(20):
        array = np.random.default_rng(number).integers(0, 256, (16, 16, 4 if number == 7 else 5), dtype=np.uint8)
        tifffile.imwrite(tmp_path / f"{number:02d}.tif", array, photometric="minisblack", planarconfig="contig")
    options = TINY | {"data.path": str(tmp_path), "train.batch_size": 16, "output": str(tmp_path / "run")}
    reset_accelerate()
    with pytest.raises(UserError, match=r"07\.tif .*it has 4 channels, and the others of the set have 5"):
        mpp.pretrain(options)


def test_one_channel_of_grey_pictures_is_enough_where_it_is_asked_for(tmp_path):
    for number in range(12):
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (16, 16), dtype=np.uint8)).save(
            tmp_path / f"{number}.png"
        )
    reset_accelerate()
    mpp.pretrain(TINY | {"data.path": str(tmp_path), "data.channels": 1, "output": str(tmp_path / "run")})
    assert mpp.ViT.from_pretrained(tmp_path / "run" / "backbone").in_chans == 1


def test_twelve_bits_in_sixteen_are_warned_of_and_measured_with_their_range(tmp_path, capsys):
    for number in range(30):
        grey = np.random.default_rng(number).integers(0, 4096, (16, 16), dtype=np.uint16) // 64 * 64
        Image.fromarray(grey.repeat(4, 0)[:16]).save(tmp_path / f"{number}.png")
    options = TINY | {"data.path": str(tmp_path), "eval.pictures": 0}
    reset_accelerate()
    with pytest.warns(Notice, match=r"lie in 0 4032, a sliver of the range 0 65535 .*--data\.range auto"):
        result = mpp.pretrain(options | {"output": str(tmp_path / "all")})
    told = capsys.readouterr()
    assert result["eval/baseline_majority"] == 1.0
    assert "100.0% of the targets are one colour bin" in result["not_measurable"]
    assert "not measurable: 100.0% of the targets" in told.out
    assert "the model   " not in told.out
    assert "warning: 100.0% of the targets are one colour bin" in told.err
    reset_accelerate()
    result = mpp.pretrain(options | {"data.range": (0, 4095), "output": str(tmp_path / "some")})
    assert result["eval/baseline_majority"] < 0.9
    assert "not_measurable" not in result
    assert "not measurable" not in capsys.readouterr().out


def test_a_tiff_with_a_sample_that_is_marked_as_transparency_is_named_with_the_choice(tmp_path):
    for number in range(12):
        array = np.random.default_rng(number).integers(0, 256, (16, 16, 4), dtype=np.uint8)
        tifffile.imwrite(tmp_path / f"{number}.tif", array, photometric="rgb", extrasamples=["unassalpha"])
    options = TINY | {"data.path": str(tmp_path)}
    reset_accelerate()
    with pytest.warns(Notice, match=r"marked as transparency.*--data\.channels 4"):
        assert mpp.pretrain(options | {"output": str(tmp_path / "three")})["channels"] == 3
    reset_accelerate()
    assert mpp.pretrain(options | {"data.channels": 4, "output": str(tmp_path / "four")})["channels"] == 4


def test_pages_that_are_bands_are_not_called_unread(tmp_path, recwarn):
    for number in range(12):  # as tifffile writes (C, H, W) if it is told nothing
        array = np.random.default_rng(number).integers(0, 256, (6, 16, 16), dtype=np.uint8)
        tifffile.imwrite(tmp_path / f"{number}.tif", array)
    reset_accelerate()
    assert mpp.pretrain(TINY | {"data.path": str(tmp_path), "output": str(tmp_path / "run")})["channels"] == 6
    assert not [str(w.message) for w in recwarn if issubclass(w.category, Notice) and "page" in str(w.message)]


def test_floats_need_a_range(tmp_path):
    for number in range(12):
        array = np.random.default_rng(number).random((16, 16, 3), dtype=np.float32)
        tifffile.imwrite(tmp_path / f"{number}.tif", array, photometric="rgb")
    options = TINY | {"data.path": str(tmp_path), "output": str(tmp_path / "run")}
    reset_accelerate()
    with pytest.raises(UserError, match=r"float32 values, which have no usual range: give --data\.range LOW HIGH"):
        mpp.pretrain(options)
    reset_accelerate()
    assert mpp.pretrain(options | {"data.range": (0.0, 1.0)})["eval/baseline_majority"] < 0.9


@pytest.mark.parametrize("words", [["2", "1"], ["1", "1"], ["nan", "1"], ["0", "inf"]])
def test_a_range_is_a_lower_and_a_higher_number(words):
    with pytest.raises(UserError, match=r"--data\.range .* must be the lowest value, then a higher one"):
        mpp.pretrain({"data.range": tuple(words)})
