"""Data has an identity: what a set holds by name, size and content, wherever it lies."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from mpp.data import contents as contents_module
from mpp.data.identity import Identity
from mpp.data.images import load_images
from mpp.data.packing import pack
from mpp.data.splits import open_splits
from mpp.data.streams import Stream
from mpp.errors import UserError
from tests.helpers import encode, losses, one_line, pretrain, put, write_shards


def write_images(folder: Path, count: int = 30) -> Path:
    """A folder of images of noise, in two class folders."""
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / ("cat", "dog")[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path)
    return folder


def same_time_and_size(path: Path, content: bytes) -> None:
    """Overwrite a file as an archive that is unpacked over it does: another content of this size at the same time."""
    times = os.stat(path)
    assert len(content) == times.st_size
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def changed_byte(path: Path) -> bytes:
    """A file's content with one byte in its middle changed."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    return bytes(content)


def changes(folder: Path, run: Path, labels: bool = False) -> str:
    """What is said to have changed in a set since it was noted."""
    images = load_images(str(folder))
    return Identity.of(images, images, labels).changes(run)


@pytest.fixture
def noted(tmp_path):
    """A folder of images that a run has noted."""
    folder = write_images(tmp_path / "set")
    images = load_images(str(folder))
    Identity.of(images, images).write(tmp_path / "run")
    return folder


def test_a_set_that_was_moved_or_copied_is_the_same(noted, tmp_path):
    shutil.copytree(noted, tmp_path / "copy", copy_function=shutil.copyfile)  # new times
    for path in (tmp_path / "copy").rglob("*.png"):
        os.utime(path, (1, 1))
    assert changes(tmp_path / "copy", tmp_path / "run") == ""
    noted.rename(tmp_path / "moved")
    assert changes(tmp_path / "moved", tmp_path / "run") == ""
    (tmp_path / "link").symlink_to(tmp_path / "moved")
    assert changes(tmp_path / "link", tmp_path / "run") == ""


def test_what_was_added_removed_and_changed_is_counted_and_named(noted, tmp_path):
    run = tmp_path / "run"
    same_time_and_size(noted / "cat" / "04.png", changed_byte(noted / "cat" / "04.png"))
    assert changes(noted, run) == "split train: 1 image changed (cat/04.png)"
    put(noted / "cat" / "x.png", 3)
    put(noted / "dog" / "y.png", 3)
    (noted / "dog" / "01.png").unlink()
    (noted / "cat" / "00.png").rename(noted / "cat" / "zero.png")
    assert changes(noted, run) == (
        "split train: 3 images added (the first: cat/x.png), 2 images removed (the first: cat/00.png), 1 image changed "
        "(cat/04.png)"
    )


def test_an_image_that_cannot_be_read_for_a_moment_is_no_change(noted, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(contents_module, "_hash_of_file", fail)
    assert changes(noted, tmp_path / "run") == ""


def test_of_many_images_all_count_and_a_share_is_hashed_the_same_before_and_after_one_more(tmp_path, monkeypatch):
    monkeypatch.setattr(contents_module, "_MOST_HASHED", 8)
    folder = write_images(tmp_path / "set")
    images = load_images(str(folder))
    found = images.contents()
    hashed = [mark for mark in found.marks if not mark.endswith(":?")]
    assert 0 < len(hashed) < 15
    Identity.of(images, images).write(tmp_path / "run")
    (folder / "cat" / "new.png").write_bytes(b"another size")
    assert changes(folder, tmp_path / "run") == "split train: 1 image added (cat/new.png)"


def test_a_large_file_is_looked_at_from_its_start_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(contents_module, "_LARGEST_WHOLE", 1 << 10)
    monkeypatch.setattr(contents_module, "_SMALLEST_WHOLE", 1 << 10)
    path = tmp_path / "a.bin"

    def mark() -> str:
        return contents_module.files_contents([str(path)], str(tmp_path), "train", "image").marks[0]

    path.write_bytes(bytes(50_000))
    first = mark()
    assert first.startswith("50000:")
    assert first.endswith("-1k")
    for at in (0, 16_600, 49_999):
        path.write_bytes(bytes(at) + b"x" + bytes(49_999 - at))
        assert mark() != first


def test_labels_count_where_they_are_learnt(tmp_path):
    rows = {"image": [encode(Image.new("RGB", (4, 4), (i, 0, 0))) for i in range(4)], "label": [0, 1, 0, 1]}
    features = datasets.Features({"image": datasets.Value("binary"), "label": datasets.ClassLabel(names=["a", "b"])})
    run, file = tmp_path / "run", tmp_path / "one" / "train.parquet"

    def write(path: Path, **changed: list) -> Path:
        path.parent.mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows | changed, features).to_parquet(path)
        return path

    images = load_images(str(write(file)))
    Identity.of(images, images, labels=True).write(run)
    relabelled = write(tmp_path / "two" / "train.parquet", label=[0, 1, 0, 0])
    said = changes(relabelled, run, labels=True)
    assert said.startswith("split train: 1 image changed (")
    Identity.of(images, images).write(run)
    assert changes(relabelled, run) == ""
    fewer = {name: values[1:] for name, values in rows.items()}
    assert changes(write(tmp_path / "three" / "train.parquet", **fewer), run).startswith("split train: 1 image removed")
    turned = {name: values[::-1] for name, values in rows.items()}
    assert changes(write(tmp_path / "four" / "train.parquet", **turned), run) == (
        "split train: another order of its images"
    )


def test_packed_files_shards_and_the_built_in_images_have_an_identity(noted, tmp_path):
    run, file = tmp_path / "packed", tmp_path / "set.mpp"
    pack({"train": load_images(str(noted))}, file, "one", labels=False, progress=False)
    images = load_images(str(file))
    Identity.of(images, images).write(run)
    assert changes(file.rename(tmp_path / "other.mpp"), run) == ""
    (noted / "cat" / "00.png").unlink()
    pack({"train": load_images(str(noted))}, file, "two", labels=False, progress=False)
    assert changes(file, run).startswith("split train: 1 image removed (")
    same_time_and_size(tmp_path / "other.mpp", changed_byte(tmp_path / "other.mpp"))
    assert changes(tmp_path / "other.mpp", run).startswith("split train: 1 image added (")

    shards = write_shards(tmp_path / "shards", 3, 4)
    before = Stream.open(str(shards), "train")
    assert before.contents().names == [f"train-000{i}.tar" for i in range(3)]
    Identity({"train": before.contents()}).write(tmp_path / "stream")
    (shards / "train-0001.tar").unlink()
    after = Identity({"train": Stream.open(str(shards), "train").contents()})
    assert after.changes(tmp_path / "stream") == "split train: 1 shard removed (train-0001.tar)"

    scenes, larger = (load_images("shapes", size=(side, side)) for side in (16, 32))
    assert scenes.contents().digest == larger.contents().digest
    Identity({"train": scenes.contents(labels=True)}).write(tmp_path / "scenes")
    counted = Identity({"train": load_images("shapes", label_column="count").contents(labels=True)})
    assert counted.changes(tmp_path / "scenes") == "split train: label shape then, label count now"


def test_a_run_goes_on_with_its_images_only_and_never_trains_on_a_held_out_one(tmp_path):
    folder, run = write_images(tmp_path / "set", 100), tmp_path / "run"
    options = ("--data.path", str(folder), "--data.no-cache", "--eval.pictures", "0")
    whole = pretrain(run, *options)
    held_out = json.loads((run / "data.json").read_text())["held_out"]
    assert len(held_out) == 10
    digest = json.loads((run / "result.json").read_text())["data"]["train"]
    assert json.loads((run / "checkpoints/step_00000006/state.json").read_text())["data"] == {"train": digest}

    folder.rename(tmp_path / "elsewhere")
    (tmp_path / "set").symlink_to(tmp_path / "elsewhere")
    shutil.rmtree(run / "checkpoints" / "step_00000006")
    assert losses(pretrain(run, *options, "--resume")) == losses(whole)

    put(folder / "cat" / "00000.png", 9)
    with pytest.raises(UserError) as error:
        pretrain(run, *options, "--resume", "--train.steps", "8")
    assert "other images than when" in one_line(error)
    assert "split train: 1 image added (cat/00000.png)" in one_line(error)
    assert "another --output" in one_line(error)
    with pytest.warns(UserWarning, match="goes on with other images"):
        pretrain(run, *options, "--resume", "--resume-anyway", "--train.steps", "8")
    assert json.loads((run / "data.json").read_text())["held_out"] == held_out
    assert json.loads((run / "result.json").read_text())["data"]["train"] != digest
    pretrain(run, *options, "--resume", "--train.steps", "9")  # with the images of today
    (run / "data.json").unlink()
    put(folder / "cat" / "00000.png", 11)
    with pytest.raises(UserError, match=r"learnt from other images than --data\.path holds now"):
        pretrain(run, *options, "--resume", "--train.steps", "10")
    (run / "data.json").write_text("{")
    with pytest.raises(UserError, match=r"data\.json, which says what the run's images were, is damaged"):
        pretrain(run, *options, "--resume", "--train.steps", "10")


@pytest.mark.parametrize("shards", [False, True], ids=["images", "shards"])
def test_images_that_were_held_out_stay_so_by_name(tmp_path, shards):
    from mpp.config import Pretrain

    config = Pretrain()
    config.data.path, config.data.cache, config.eval.images = str(tmp_path / "set"), False, 5
    if shards:
        write_shards(tmp_path / "set", 3, 4)
    else:
        write_images(tmp_path / "set", 50)
    before = Identity.of(*open_splits(config, (16, 16))).held_out
    assert before is not None
    if shards:
        shutil.copy(tmp_path / "set" / "train-0000.tar", tmp_path / "set" / "train-0003.tar")
    else:
        put(tmp_path / "set" / "cat" / "a.png", 9)
    drawn = Identity.of(*open_splits(config, (16, 16))).held_out
    train, evaluated = open_splits(config, (16, 16), set(before))
    assert Identity.of(train, evaluated).held_out == before != drawn
    if not shards:
        trained_on = {train.where(i) for i in range(len(train))}
        assert len(trained_on) == 46
        assert not trained_on & {evaluated.where(i) for i in range(len(evaluated))}
    with pytest.raises(UserError, match="holds none any more of the 1 images or shards"):
        open_splits(config, (16, 16), {"gone.png"})
