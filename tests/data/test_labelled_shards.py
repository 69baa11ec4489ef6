"""WebDataset shards with labels: read by index, as sets of clip-benchmark lie on the disk, by every command."""

from __future__ import annotations

import gzip
import io
import json
import tarfile

import numpy as np
import pytest

import mpp
from mpp.comparison.compare import as_labels_allow
from mpp.config.commands import Compare, Pretraining
from mpp.config.options import PretrainData
from mpp.data.images import load_images
from mpp.data.sources.path import is_stream, is_unlabelled_stream, split_names
from mpp.errors import UserError
from tests.helpers import encode, flat, one_line, pretrain, reset_accelerate, write_shards

NAMES = ["dark", "middle", "light"]
SMALL = {
    "model.img_size": 16,
    "model.patch_size": 4,
    "model.embed_dim": 32,
    "model.depth": 1,
    "model.num_heads": 2,
    "data.cache": False,
    "data.workers": 0,
}


def write_tar(path, members):
    """A tar of (name, content)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def members(numbers, label="{}", kind="WEBP", ending="cls"):
    """Greys of three classes, each image another one, their labels before them."""
    for number in numbers:
        yield f"s{number:07d}.{ending}", label.format(number % 3).encode()
        yield f"s{number:07d}.{kind.lower()}", encode(flat(40 + number % 3 * 80 + number // 3, (16, 16)), kind)


@pytest.fixture
def vtab(tmp_path):
    """A set as wds_vtab-* on the hub are."""
    folder = tmp_path / "wds_vtab-greys"
    write_tar(folder / "train" / "0.tar", members(range(24)))
    write_tar(folder / "train" / "1.tar", members(range(24, 36)))
    write_tar(folder / "test" / "0.tar", members(range(36, 48)))
    (folder / "train" / "nshards.txt").write_text("2\n")
    (folder / "test" / "nshards.txt").write_text("1\n")
    (folder / "classnames.txt").write_text("\n".join(NAMES) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a photo of something {c}.\n")
    return folder


def test_images_and_labels_of_a_clip_benchmark_set_are_read_by_place(vtab):
    assert split_names(str(vtab)) == ["train", "test"]
    train, test = (load_images(str(vtab), split) for split in ("train", "test"))
    assert (len(train), len(test), train.label_names) == (36, 12, NAMES)
    order = [35, 0, 24, 23]  # from the end of one shard to the start of another
    assert train.labels(order).tolist() == [2, 0, 0, 2]
    greys = [np.asarray(image.convert("L")).mean() for image in train.read(order)]
    assert greys == pytest.approx([40 + n % 3 * 80 + n // 3 for n in order], abs=2)
    assert test.where(0).endswith("test/0.tar: s0000036.webp")
    names = train.contents(labels=True).names
    assert (names[0], names[-1]) == ("train/0.tar: s0000000.webp", "train/1.tar: s0000035.webp")


def test_every_command_takes_shards_with_labels(vtab, tmp_path, capsys):
    path, out = {"data.path": str(vtab)}, {name: str(tmp_path / name) for name in ("fine", "probe", "sup", "p.csv")}
    short = SMALL | path | {"train.steps": 60, "train.batch_size": 16, "optim.warmup_steps": 2}
    reset_accelerate()
    result = mpp.finetune(short | {"init": "scratch", "output": out["fine"], "optim.lr": 3e-3})
    assert (result["labels"], result["eval_images"]) == (36, 12)
    assert result["eval/top1"] == 1.0  # greys are easily told apart
    assert set(result["per_class_top1"]) == set(NAMES)
    reset_accelerate()
    probed = mpp.probe(path | {"init": out["fine"], "output": out["probe"], "probe.shots": (1,), "probe.draws": 1})
    assert probed["eval/top1"] == 1.0
    reset_accelerate()
    assert mpp.supervised(short | {"output": out["sup"], "train.steps": 2})["eval_images"] == 12
    reset_accelerate()
    assert mpp.predict(path | {"init": out["fine"], "out": out["p.csv"]})["eval/top1"] == 1.0
    reset_accelerate()
    embedded = mpp.embed(path | {"init": out["fine"], "out": str(tmp_path / "e.parquet"), "data.split": "test"})
    assert embedded["images"] == 12
    assert mpp.doctor(path)["images"] == {"train": 36, "test": 12}
    assert "classes: 3" in capsys.readouterr().out


def test_doctor_looks_at_what_can_be_read_of_a_damaged_shard(vtab):
    damage(vtab, "cut")
    with pytest.warns(UserWarning, match=r"train/1\.tar is damaged .*; labels are not looked at"):
        found = mpp.doctor({"data.path": str(vtab)})
    assert found["images"]["test"] == 12
    assert 24 < found["images"]["train"] < 36
    assert found["unreadable"] == 2  # the image that is cut, and the rest


def test_a_comparison_pretrains_with_the_labels_of_shards_if_they_have_some(vtab, tmp_path, capsys):
    for folder, left_out in ((vtab, False), (write_shards(tmp_path / "plain", 2, 6, label=None), True)):
        allowed = as_labels_allow(Compare(pretrain=Pretraining(data=PretrainData(path=str(folder)))))
        assert (allowed.supervised == "none") == left_out
        assert ("the supervised arm is left out" in capsys.readouterr().out) == left_out


def test_pretraining_streams_the_same_set(vtab, tmp_path):
    assert is_stream(str(vtab))
    assert not is_unlabelled_stream(str(vtab))
    assert len(pretrain(tmp_path / "run", "--data.path", str(vtab))) == 6


def test_small_images_in_shards_are_decoded_once(vtab, tmp_path, monkeypatch):
    monkeypatch.setenv("MPP_CACHE", str(tmp_path / "cache"))
    reset_accelerate()
    given = SMALL | {"data.cache": True, "data.path": str(vtab), "train.steps": 3, "train.batch_size": 12}
    mpp.finetune(given | {"init": "scratch", "output": str(tmp_path / "run")})
    assert len(list((tmp_path / "cache").glob("train-*.mpp"))) == 1


@pytest.mark.parametrize(
    ("label", "ending", "option", "names"),
    [
        ("{}", "cls", None, ["0", "1", "2"]),
        ("kind {}", "cls", None, ["kind 0", "kind 1", "kind 2"]),
        ('{{"label": {}, "url": ""}}', "json", None, ["0", "1", "2"]),
        ('{{"grade": "g{}"}}', "json", "grade", ["g0", "g1", "g2"]),
        ("{}", "level.txt", "level.txt", ["0", "1", "2"]),
    ],
)
def test_labels_are_numbers_or_names_in_cls_or_json_of_shards_beside_each_other(tmp_path, label, ending, option, names):
    write_tar(tmp_path / "set" / "train-000000.tar", members(range(9), label, "PNG", ending))
    write_tar(tmp_path / "set" / "test-000000.tar", members(range(9, 12), label, "PNG", ending))
    (tmp_path / "set" / "sizes.json").write_text(json.dumps({"train-000000.tar": 9}))
    images = load_images(str(tmp_path / "set"), "test", label_column=option)
    assert images.label_names == names
    assert images.labels(range(3)).tolist() == [0, 1, 2]


def test_two_classes_of_one_name_stay_two(vtab):
    (vtab / "classnames.txt").write_text("crane\nother\ncrane\n")
    assert load_images(str(vtab), "train").label_names == ["crane", "other", "crane (2)"]


def damage(vtab, how):
    shard = vtab / "train" / "1.tar"
    content = shard.read_bytes()
    if how == "label outside":
        (vtab / "classnames.txt").write_text("dark\nmiddle\n")
    elif how == "no label":
        write_tar(shard, [m for m in members(range(24, 36)) if m[0] != "s0000030.cls"])
    elif how == "empty label":
        write_tar(shard, [(n, b" " if n == "s0000030.cls" else c) for n, c in members(range(24, 36))])
    elif how == "dots":
        write_tar(shard, [(f"IMG_2024.05.{n[3:]}", c) for n, c in members(range(24, 36))])
    elif how == "no image":
        write_tar(shard, [m for m in members(range(24, 36)) if m[0] != "s0000030.webp"])
    elif how == "two images":
        write_tar(shard, [("a.left.png", b""), ("a.right.png", b""), ("a.cls", b"0")])
    elif how == "empty":
        write_tar(shard, [])
    elif how == "cut":
        shard.write_bytes(content[: len(content) // 2])
    elif how == "header":
        shard.write_bytes(content[:2048] + b"x" * 512 + content[2560:])
    elif how == "compressed":
        shard.write_bytes(gzip.compress(content))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("label outside", r"train/0\.tar: s0000002\.cls has the label 2, and classnames\.txt has 2 classes"),
        ("no label", r"train/1\.tar: s0000030\.webp has no label: s0000030\.cls is missing"),
        ("dots", r"1\.tar holds IMG_2024\.05\.00024\.cls, whose key has a dot"),
        ("empty label", r"train/1\.tar: s0000030\.cls is empty"),
        ("no image", r"train/1\.tar has no image in its sample s0000030 \(cls\)"),
        (
            "two images",
            r"train/1\.tar has several images in its sample a \(left\.png, right\.png, cls\); --data\.image-c",
        ),
        ("empty", r"train/1\.tar is damaged \(it holds no files\)"),
        ("cut", r"train/1\.tar is damaged \("),
        ("header", r"train/1\.tar is damaged \(what follows s0000024"),
        ("compressed", r"train/1\.tar is compressed"),
    ],
)
def test_what_is_wrong_in_a_shard_is_told_with_its_place_before_training(vtab, tmp_path, how, says):
    damage(vtab, how)
    reset_accelerate()
    with pytest.raises(UserError, match=says) as told:
        mpp.finetune(SMALL | {"data.path": str(vtab), "init": "scratch", "output": str(tmp_path / "run")})
    assert one_line(told)
    assert not (tmp_path / "run" / "config.toml").exists()


def test_shards_without_labels_say_what_is_missing(tmp_path):
    write_shards(tmp_path / "set", 2, 6, label=None)
    reset_accelerate()
    with pytest.raises(
        UserError, match=r"has no labels .*: beside 000000\.png there is no \.cls, nor a \.json"
    ) as told:
        mpp.finetune(SMALL | {"data.path": str(tmp_path / "set"), "init": "scratch", "output": str(tmp_path / "run")})
    assert one_line(told)
