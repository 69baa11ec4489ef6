"""Packed sets: the same images as the source, in one file that opens at once and tells when it is damaged."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mpp.config.options import LabelledData
from mpp.data.images import load_images
from mpp.data.packing import fingerprint, pack, verify
from mpp.data.sources.path import split_names
from mpp.data.splits import open_labelled
from mpp.errors import UserError
from mpp.run.folder import read_metrics
from mpp.run.lock import locked
from tests.helpers import losses, pretrain
from tools.pack import main


def write_set(folder, sizes=((16, 16),), count=12):
    """A folder of images with classes and two splits; no two alike."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for i in range(count):
            path = folder / split / ("cat", "dog")[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            height, width = sizes[i % len(sizes)]
            Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path)
    return folder


@pytest.fixture
def source(tmp_path):
    """A folder of images of 16 x 16."""
    return write_set(tmp_path / "source")


def test_a_packed_set_has_the_images_labels_and_splits_of_its_source(source, tmp_path):
    out = str(main(["--data.path", str(source), "--out", str(tmp_path / "set.mpp")]))
    assert split_names(out) == split_names(str(source)) == ["train", "test"]
    for split in ("train", "test"):
        packed, plain = load_images(out, split), load_images(str(source), split)
        every = range(len(plain))
        assert packed.label_names == plain.label_names == ["cat", "dog"]
        assert np.array_equal(packed.labels(every), plain.labels(every))
        images = [np.asarray(image.convert("RGB")) for image in plain.read(every)]
        assert np.array_equal(packed.arrays([5, 2, 5]), np.stack([images[i] for i in (5, 2, 5)]))
        for ours, theirs in zip(packed.read(every), images, strict=True):
            assert np.array_equal(np.asarray(ours), theirs)


def test_what_cannot_be_packed_is_told_in_one_line(source, tmp_path):
    data = ["--data.path", str(source)]
    with pytest.raises(UserError, match="--size -1 must not be negative"):
        main([*data, "--out", str(tmp_path / "set.mpp"), "--size", "-1"])
    held = locked(tmp_path / "set.mpp.lock", "--out")
    with held, pytest.raises(UserError, match=rf"set.mpp is in use by another run: process {os.getpid()} on "):
        main([*data, "--out", str(tmp_path / "set.mpp")])
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"packing into --out .*/file/set.mpp ended"):
        main([*data, "--out", str(tmp_path / "file" / "set.mpp")])


def test_missing_labels_are_packed_as_missing_and_a_doubtful_column_is_told_first(tmp_path):
    features = {"image": datasets.Image(), "fine": datasets.ClassLabel(names=["a", "b"])}
    features["coarse"] = datasets.ClassLabel(names=["c", "d"])
    image = Image.new("RGB", (4, 4))
    rows = {"image": [image] * 3, "fine": [1, -1, 0], "coarse": [0, 0, 1]}
    path, out = tmp_path / "set" / "train-0.parquet", str(tmp_path / "set.mpp")
    path.parent.mkdir()
    datasets.Dataset.from_dict(rows, datasets.Features(features)).to_parquet(path)
    with pytest.raises(UserError, match="several columns could hold the label: fine, coarse"):
        main(["--data.path", str(path.parent), "--out", out])
    assert not list(tmp_path.glob("set.mpp*"))
    main(["--data.path", str(path.parent), "--out", out, "--data.label-column", "fine"])
    packed = load_images(out)
    assert packed.labels([2, 0]).tolist() == [0, 1]
    with pytest.raises(UserError, match="train row 1 has no label"):
        packed.labels([0, 1])
    again = str(tmp_path / "smaller.mpp")
    main(["--data.path", out, "--out", again, "--size", "2"])
    assert load_images(again).labels([2, 0]).tolist() == [0, 1]


def test_a_packed_file_in_the_home_folder_is_found(source, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    main(["--data.path", str(source), "--out", str(tmp_path / "set.mpp")])
    assert len(load_images("~/set.mpp", "test")) == 12


def test_images_of_many_sizes_are_packed_and_large_ones_shrunk(tmp_path):
    write_set(tmp_path / "source", sizes=((40, 20), (8, 12), (30, 60)))
    out = str(main(["--data.path", str(tmp_path / "source"), "--out", str(tmp_path / "set.mpp"), "--size", "10"]))
    packed = load_images(out, "train")
    plain = load_images(str(tmp_path / "source"), "train")
    wanted = {(40, 20): (20, 10), (8, 12): (8, 12), (30, 60): (10, 20)}  # (height, width)
    for ours, theirs in zip(packed.read(range(12)), plain.read(range(12)), strict=True):
        assert (ours.height, ours.width) == wanted[theirs.height, theirs.width]


def test_training_from_a_packed_set_gives_the_losses_of_its_source(source, tmp_path):
    main(["--data.path", str(source), "--out", str(tmp_path / "set.mpp")])
    plain = pretrain(tmp_path / "plain", "--data.path", str(source))
    for workers in ("0", "2"):
        packed = pretrain(
            tmp_path / f"packed-{workers}", "--data.path", str(tmp_path / "set.mpp"), "--data.workers", workers
        )
        assert losses(packed) == losses(plain)
    assert read_metrics(tmp_path / "packed-0")[-1]["eval/loss"] == plain[-1]["eval/loss"]


def cached(monkeypatch, folder):
    """The packed files in a cache folder of a test's own."""
    monkeypatch.setenv("MPP_CACHE", str(folder))
    return lambda: sorted(folder.glob("*.mpp"))


def test_a_set_of_small_images_is_packed_by_itself_once_and_trains_the_same(source, tmp_path, monkeypatch, capsys):
    files = cached(monkeypatch, tmp_path / "cache")
    plain = pretrain(tmp_path / "plain", "--data.path", str(source), "--data.no-cache")
    assert files() == []
    first = pretrain(tmp_path / "first", "--data.path", str(source))
    assert "once (--data.no-cache reads the files)" in capsys.readouterr().out
    (file,) = files()
    again = pretrain(tmp_path / "again", "--data.path", str(source), "--data.workers", "1")
    assert "packing" not in capsys.readouterr().out
    assert losses(plain) == losses(first) == losses(again)
    assert files() == [file]
    Image.new("RGB", (16, 16)).save(source / "train" / "cat" / "new.png")
    pretrain(tmp_path / "changed", "--data.path", str(source))
    assert len(files()) == 2


def test_labels_of_a_set_packed_by_itself_are_its_own(source, tmp_path, monkeypatch):
    files = cached(monkeypatch, tmp_path / "cache")
    data = LabelledData(path=str(source), labels=6)
    (packed, _), (plain, _) = (open_labelled(data, (16, 16), 0, seen) for seen in (12, 0))
    assert len(files()) == 1
    assert packed.packed_size == (16, 16)
    assert plain.packed_size is None
    assert np.array_equal(packed.labels(range(6)), plain.labels(range(6)))
    assert np.array_equal(packed.arrays(range(6)), [np.asarray(image) for image in plain.read(range(6))])
    assert packed.where(3) == plain.where(3)


@pytest.mark.parametrize(("sizes", "steps"), [(((16, 16), (8, 8)), "6"), (((32, 32),), "6"), (((16, 16),), "1")])
def test_a_set_that_would_be_scaled_or_is_seen_in_part_is_not_packed_by_itself(tmp_path, monkeypatch, sizes, steps):
    files = cached(monkeypatch, tmp_path / "cache")
    pretrain(tmp_path / "run", "--data.path", str(write_set(tmp_path / "set", sizes)), "--train.steps", steps)
    assert files() == []


def test_a_damaged_image_is_named_while_its_set_is_packed_and_skipped_if_so_asked(
    source, tmp_path, monkeypatch, capsys
):
    files = cached(monkeypatch, tmp_path / "cache")
    broken = next((source / "train").rglob("*.png"))
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(UserError, match=f"{broken.name} could not be read"):
        pretrain(tmp_path / "stops", "--data.path", str(source))
    assert "not packed: image" in capsys.readouterr().out
    lines = pretrain(tmp_path / "skips", "--data.path", str(source), "--data.on-error", "skip")
    assert lines[-1]["step"] == 6
    assert "pack" not in capsys.readouterr().out  # it is known by now
    assert files() == []
    assert not list((tmp_path / "cache").glob("*.partial*"))


def test_a_cache_that_cannot_be_written_stops_nothing(source, tmp_path, monkeypatch, capsys):
    files = cached(monkeypatch, tmp_path / "cache")
    pretrain(tmp_path / "first", "--data.path", str(source))
    assert len(files()) == 1

    def read_only(*_args, **_options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("mpp.data.pack_cache.packing", read_only)
    monkeypatch.setattr("mpp.data.pack_cache.forget", read_only)
    pretrain(tmp_path / "second", "--data.path", str(source))
    assert "not packed" not in capsys.readouterr().out  # what is there is read
    monkeypatch.setenv("MPP_CACHE", str(tmp_path / "other"))
    pretrain(tmp_path / "third", "--data.path", str(source))
    assert "not packed into" in capsys.readouterr().out


def test_a_user_without_a_home_trains(source, tmp_path, monkeypatch, capsys):
    def homeless(_path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("MPP_CACHE")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "expanduser", lambda path: homeless(path) if str(path).startswith("~") else path)
        pretrain(tmp_path / "run", "--data.path", str(source))
    assert "this user has no home folder; set MPP_CACHE to a folder" in capsys.readouterr().out


def test_a_damaged_image_that_is_not_wanted_stops_nothing(source, tmp_path, monkeypatch):
    files = cached(monkeypatch, tmp_path / "cache")
    data = LabelledData(path=str(source), labels=4)
    wanted = {str(path) for path in (source / "train").rglob("*.png")}
    images, _ = open_labelled(data, (16, 16), 0)
    broken = Path(min(wanted - {images.where(i) for i in range(4)}))
    broken.write_bytes(broken.read_bytes()[:60])
    images, _ = open_labelled(data, (16, 16), 0, seen=12)
    assert len(images.read(range(4))) == 4
    assert files() == []


def test_a_set_with_one_image_of_another_size_among_many_is_not_packed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mpp.data.pack_cache._LOOKED_AT", 0)
    files = cached(monkeypatch, tmp_path / "cache")
    pretrain(tmp_path / "run", "--data.path", str(write_set(tmp_path / "set", ((16, 16), (16, 16), (8, 16)))))
    assert "is 16 x 8, but others are 16 x 16" in capsys.readouterr().out
    assert files() == []


def test_reading_a_packed_file_does_not_fill_the_process_with_it(tmp_path):
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc here to read a process's memory from")

    class Noise:
        """Images of nothing in particular."""

        label_names = None

        def __len__(self):
            return 50_000

        def read(self, indices):
            return [Image.frombytes("RGB", (32, 32), bytes([i % 256]) * 3072) for i in indices]

    def mapped():
        """MiB of files in this process's memory."""
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"RssFile:\s+(\d+) kB", status)[1]) / 1024

    pack({"train": Noise()}, tmp_path / "set.mpp", "noise", progress=False)  # 146 MiB
    images = load_images(str(tmp_path / "set.mpp"))
    before, most = mapped(), 0.0
    for batch in np.random.default_rng(0).permutation(50_000).reshape(-1, 200):
        assert np.array_equal(images.arrays(batch)[:, 0, 0, 0], batch % 256)
        most = max(most, mapped() - before)
    assert most < 90


def test_an_interrupted_packing_goes_on_and_a_changed_source_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mpp.data.packing._AT_ONCE", 2)
    source = write_set(tmp_path / "source", sizes=((16, 16), (8, 8)))
    splits = {name: load_images(str(source), name) for name in split_names(str(source))}
    whole, cut = tmp_path / "whole.mpp", tmp_path / "cut.mpp"
    pack(splits, whole, "as it was", progress=False)

    class Dying:
        """The training split, which ends the program at its ninth image."""

        def __init__(self, images):
            self.images = images

        def __len__(self):
            return len(self.images)

        def __getattr__(self, name):
            return getattr(self.images, name)

        def read(self, indices):
            if 8 in indices:
                raise KeyboardInterrupt
            return self.images.read(indices)

    monkeypatch.setattr("mpp.data.packing._NOTE_EVERY", 1)
    with pytest.raises(KeyboardInterrupt):
        pack(splits | {"train": Dying(splits["train"])}, cut, "as it was", progress=False)
    assert not cut.exists()
    noted = json.loads((tmp_path / "cut.mpp.partial.json").read_text())
    assert noted["splits"]["train"]["next"] == 8
    with pytest.raises(UserError, match="belongs to another set, to this set before a change"):
        pack(splits, cut, "as it is now", progress=False)
    left = {path.name: path.read_bytes() for path in tmp_path.glob("cut.mpp.partial*")}
    capsys.readouterr()
    pack(splits, cut, "as it was", progress=False)
    assert "cut.mpp.partial goes on: 8 of 24 images are packed already" in capsys.readouterr().out
    assert cut.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.partial*"))

    draft, notes = "cut.mpp.partial", "cut.mpp.partial.json"
    later = json.dumps(noted | {"splits": {"train": noted["splits"]["train"] | {"next": 900}}, "done": 900}).encode()
    for damaged in (
        {draft: left[draft][:100]},
        {draft: b""},
        {notes: left[notes][:50]},
        {notes: b"[]"},
        {notes: left[notes].replace(b'"next"', b'"then"')},
        {notes: later},
    ):
        cut.unlink()
        for name, content in (left | damaged).items():
            (tmp_path / name).write_bytes(content)
        pack(splits, cut, "as it was", progress=False)
        assert "is an interrupted packing that cannot go on" in capsys.readouterr().out
        assert cut.read_bytes() == whole.read_bytes()
        assert not list(tmp_path.glob("*.partial*"))


def test_a_label_number_beyond_the_classes_of_a_table_is_named_in_every_split_before_training(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    classes = datasets.Features(features | {"label": datasets.ClassLabel(names=["a", "b"])})
    metadata = {b"huggingface": json.dumps({"info": {"features": classes.to_dict()}}).encode()}
    for split, labels in {"train": [0, 1, 1], "test": [0, 1, 5]}.items():
        rows = {"image": [Image.new("RGB", (4, 4))] * 3, "label": labels}
        table = datasets.Dataset.from_dict(rows, features).with_format("arrow")[:]
        (tmp_path / "set").mkdir(exist_ok=True)
        pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "set" / f"{split}-0.parquet")
    assert load_images(str(tmp_path / "set"), "train").labels([0, 1]).tolist() == [0, 1]
    with pytest.raises(UserError, match=r"test row 2 has label number 5, but column label has 2 classes \(0 to 1\)"):
        open_labelled(LabelledData(path=str(tmp_path / "set")), (4, 4), 0)


def test_another_file_in_the_source_is_another_fingerprint(source):
    def told() -> str:
        return fingerprint({name: load_images(str(source), name) for name in split_names(str(source))})

    before = told()
    assert told() == before
    Image.new("RGB", (16, 16)).save(source / "train" / "cat" / "new.png")
    assert told() != before


def test_damage_is_found(source, tmp_path):
    out = main(["--data.path", str(source), "--out", str(tmp_path / "set.mpp")])
    verify(str(out))
    content = bytearray(out.read_bytes())
    content[100] ^= 1
    out.write_bytes(content)
    with pytest.raises(UserError, match="does not match its checksum"):
        verify(str(out))
    out.write_bytes(content[:-20])
    with pytest.raises(UserError, match="damaged packed file"):
        load_images(str(out), "train")


def test_an_unreadable_image_stops_packing_or_is_left_out(source, tmp_path):
    broken = next((source / "train").rglob("*.png"))
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(UserError, match="could not be read"):
        main(["--data.path", str(source), "--out", str(tmp_path / "set.mpp")])
    out = main(["--data.path", str(source), "--out", str(tmp_path / "set.mpp"), "--data.on-error", "skip"])
    assert len(load_images(str(out), "train")) == 11
