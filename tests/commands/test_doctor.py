"""`mpp doctor`: what it counts, which copies it finds, and that its advice is a command line that works."""

from __future__ import annotations

import csv
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn

import mpp
from mpp.commands.doctor import colour_entropy
from mpp.config import Pretrain
from mpp.config.checks import check
from mpp.config.command_line import parse
from mpp.data.duplicates import alike, bits_apart, close, perceptual_hashes
from mpp.errors import UserError
from tests.helpers import one_line, put, reset_accelerate, write_shards


def scene(seed, size=(48, 40)):
    """A picture of smooth colours and edges, another for each seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Two splits with copies, look-alikes, a broken file and an empty picture."""
    folder = tmp_path_factory.mktemp("odd")
    for number in range(30):
        file = folder / ("test" if number % 5 == 0 else "train") / ("cat", "dog")[number % 2] / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        scene(number).save(file)
    shutil.copy(folder / "train" / "dog" / "01.png", folder / "train" / "cat" / "copy.png")
    shutil.copy(folder / "train" / "dog" / "01.png", folder / "test" / "dog" / "leak.png")
    scene(2).resize((96, 80), Image.Resampling.BICUBIC).save(folder / "test" / "cat" / "larger.jpg", quality=75)
    (folder / "train" / "cat" / "broken.png").write_bytes((folder / "train" / "cat" / "02.png").read_bytes()[:90])
    put(folder / "train" / "cat" / "empty.png", 7)
    return folder


def test_copies_leaks_and_broken_files_are_counted_named_and_listed(odd, tmp_path, capsys):
    out = tmp_path / "d.csv"
    found = mpp.doctor({"data.path": str(odd), "out": str(out)})
    said = capsys.readouterr().out
    assert found["images"] == {"train": 26, "test": 8}
    assert (found["unreadable"], found["identical"], found["alike"]) == (1, 2, 1)
    rows = [tuple(row.values()) for row in csv.DictReader(out.open())]
    train, test = odd / "train", odd / "test"
    pairs = {(kind, *sorted([one, other])) for kind, one, _, _, other, *_ in rows if kind != "unreadable"}
    assert pairs == {
        ("identical", str(train / "cat" / "copy.png"), str(train / "dog" / "01.png")),
        ("identical", str(test / "dog" / "leak.png"), str(train / "cat" / "copy.png")),
        ("alike", str(test / "cat" / "larger.jpg"), str(train / "cat" / "02.png")),
    }
    assert rows[-1][:3] == ("unreadable", str(train / "cat" / "broken.png"), "train")
    for line in (
        "split train: 26 images",
        "  classes: 2, the largest",
        "1 image shows next to nothing in grey",
        "identical: 1 image is a copy of another",
        "1 of another class",
        "split test beside split train:",
        "identical: 1 image is a copy of one of train",
        "alike: 1 image is much like one of train",
        "--data.on-error skip",
    ):
        assert line in said


def test_another_set_is_searched_for_the_same_images(odd, tmp_path, capsys):
    for number in (3, 100, 101):
        put(tmp_path / "other" / f"{number}.png", 0)
        scene(number).save(tmp_path / "other" / f"{number}.png")
    found = mpp.doctor({"data.path": str(odd), "against": str(tmp_path / "other")})
    assert found["identical"] == 3
    assert f"as {tmp_path / 'other' / '3.png'} and {odd / 'train' / 'dog' / '03.png'}" in capsys.readouterr().out


def test_the_advice_is_a_command_line_that_is_taken(odd):
    words = shlex.split(mpp.doctor({"data.path": str(odd)})["command"])
    config = parse(Pretrain, words[2:])
    check(config)
    assert (config.data.path, config.data.on_error) == (str(odd), "skip")
    assert (config.model.img_size, config.model.patch_size) == (32, 4)


def test_features_may_stand_in_for_the_hash(odd, backbone, capsys):
    reset_accelerate()
    found = mpp.doctor({"data.path": str(odd), "init": str(backbone)})
    assert found["identical"] == 2
    assert found["alike"] >= 1


def test_shards_with_a_broken_image_are_looked_at(tmp_path, capsys):
    found = mpp.doctor({"data.path": str(write_shards(tmp_path / "s", 2, 6, damaged=3))})
    assert (found["images"], found["unreadable"]) == ({"train": 11}, 1)
    assert "000003" in capsys.readouterr().out


def test_arrays_with_values_of_other_types_are_described_and_nan_is_named(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for number in range(3):
        np.save(tmp_path / f"{number}.npy", (rng.random((16, 16, 5)) * 900).astype(np.uint16))
    np.save(tmp_path / "nan.npy", np.full((16, 16, 5), np.nan, np.float32))
    found = mpp.doctor({"data.path": str(tmp_path)})
    said = capsys.readouterr().out
    assert (found["images"], found["unreadable"]) == ({"train": 3}, 1)
    assert "values: 3 of 5 x uint16, from 0 to 89" in said
    assert "nan.npy (" in said
    assert "--data.range auto" in found["command"]


def test_wrong_options_are_one_line(odd, tmp_path):
    (tmp_path / "there.csv").write_text("mine")
    for options, says in (
        ({"out": "d.txt"}, "--out d.txt must end in .parquet or .csv"),
        ({"out": str(tmp_path / "there.csv")}, "it exists; --overwrite replaces it"),
        ({"data.on_error": "skip"}, "doctor names what cannot be read"),
        ({"against": str(tmp_path / "nothing")}, "--against"),
    ):
        with pytest.raises(UserError) as error:
            mpp.doctor({"data.path": str(odd)} | options)
        assert says in one_line(error)


def test_the_hash_is_that_of_scipys_cosine_transform():
    grey = np.random.default_rng(0).integers(0, 256, (5, 32, 32)).astype(np.float32)
    bits = []
    for picture in grey:
        low = dctn(picture.astype(float), norm="ortho")[:8, :8].reshape(-1)
        bits.append(np.packbits(low > np.median(low[1:])))
    assert np.array_equal(perceptual_hashes(grey), np.stack(bits).view(np.uint64)[:, 0])


def test_all_pairs_within_three_bits_are_found_and_those_of_other_colours_are_not():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, 300, dtype=np.uint64)
    for copy, bits in ((299, [1]), (298, [5, 40]), (297, [3, 20, 60]), (296, [2, 17, 33, 50])):
        hashes[copy] = hashes[copy - 200] ^ np.uint64(sum(1 << bit for bit in bits))
    colours = np.full((300, 8, 8, 3), 100, np.uint8)
    everywhere = [(i, j) for i in range(300) for j in range(i + 1, 300) if bin(hashes[i] ^ hashes[j]).count("1") <= 3]
    assert [tuple(pair) for pair in alike(hashes, colours)] == everywhere == [(97, 297), (98, 298), (99, 299)]
    assert bits_apart(hashes[96:97], hashes[296:297]).tolist() == [4]
    colours[297] = 120
    assert [tuple(pair) for pair in alike(hashes, colours)] == [(98, 298), (99, 299)]


def test_close_features_are_those_of_a_high_cosine():
    x = np.random.default_rng(0).normal(size=(1500, 16))
    x[1400] = x[3] + 0.01
    assert close(x, 0.95).tolist() == [[3, 1400]]


def test_the_entropy_of_colours():
    colours = np.zeros((2, 8, 8, 3), np.uint8)
    assert colour_entropy(colours) == (0.0, 1.0)
    colours[1] = 255
    assert colour_entropy(colours) == (1.0, 0.5)
