"""The cache of decoded sets follows content, is checked, bounded, the user's own, and mends itself."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from mpp.console import call
from mpp.data import contents, pack_cache, packing
from mpp.data.cache import entries
from mpp.data.images import load_images
from mpp.data.pack_cache import PackedPixels, packed_if_small
from mpp.errors import UserError
from tests.helpers import encode, flat, one_line

COUNT, SIDE = 10, 16


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The cache folder of a test's own."""
    monkeypatch.setenv("MPP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def bmp(value: int) -> bytes:
    """A file of one grey: all are of one size."""
    return encode(flat(value, (SIDE, SIDE)), "BMP")


def write_set(folder: Path, first: int = 0) -> Path:
    """A folder of greys, all written at one time."""
    folder.mkdir(exist_ok=True)
    for i in range(COUNT):
        path = folder / f"{i}.bmp"
        path.write_bytes(bmp(first + i))
        os.utime(path, (10**9, 10**9))
    os.utime(folder, (10**9, 10**9))
    return folder


def opened(folder: Path, limit: float = 20.0):
    """The set as training opens it."""
    return packed_if_small(load_images(str(folder)), (SIDE, SIDE), COUNT, limit)


def greys(images) -> list[int]:
    """The grey of each image."""
    if isinstance(images, PackedPixels):
        return images.arrays(range(len(images)))[:, 0, 0, 0].tolist()
    return [int(np.asarray(image)[0, 0, 0]) for image in images.read(range(len(images)))]


def packed(folder: Path) -> list[Path]:
    """The decoded sets in a cache folder."""
    return sorted(folder.glob("*.mpp"))


def test_an_archive_unpacked_over_another_with_equal_names_sizes_and_times_is_read_anew(tmp_path, cache, monkeypatch):
    assert greys(opened(write_set(tmp_path / "set"))) == list(range(COUNT))
    assert greys(opened(write_set(tmp_path / "set", 100))) == list(range(100, 100 + COUNT))
    assert len(packed(cache)) == 2
    monkeypatch.setattr(contents, "_MOST_HASHED", 3)  # most files count by the time of their change
    for i in range(COUNT):
        (tmp_path / "set" / f"{i}.bmp").write_bytes(bmp(200 + i))
        os.utime(tmp_path / "set" / f"{i}.bmp", (10**9, 10**9))
        assert greys(opened(tmp_path / "set"))[i] == 200 + i


def test_parquet_replaced_by_one_of_equal_size_and_time_is_read_anew(tmp_path, cache):
    def write(first: int) -> list[int]:
        rows = {"image": [bmp(first + i) for i in range(COUNT)]}
        features = datasets.Features({"image": datasets.Value("binary")})
        file = tmp_path / "set.parquet"
        datasets.Dataset.from_dict(rows, features).to_parquet(file)
        os.utime(file, (10**9, 10**9))
        return greys(opened(file))

    assert write(0) == list(range(COUNT))
    assert write(100) == list(range(100, 100 + COUNT))


def test_a_copy_of_a_set_uses_what_was_decoded(tmp_path, cache):
    opened(write_set(tmp_path / "set"))
    shutil.copytree(tmp_path / "set", tmp_path / "copy", copy_function=shutil.copyfile)
    assert isinstance(opened(tmp_path / "copy"), PackedPixels)
    assert len(packed(cache)) == 1


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "other"])
def test_a_damaged_file_is_thrown_away_and_made_again(tmp_path, cache, capsys, damage):
    opened(write_set(tmp_path / "set"))
    (file,) = packed(cache)
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[1000] ^= 1
    if damage == "other":  # a whole file, of another set
        opened(write_set(tmp_path / "another", 50).joinpath("0.bmp").unlink() or tmp_path / "another")
        content = bytearray(next(path for path in packed(cache) if path != file).read_bytes())
    file.write_bytes({"cut": content[:2000], "empty": b""}.get(damage, bytes(content)))
    capsys.readouterr()
    assert greys(opened(tmp_path / "set")) == list(range(COUNT))
    assert f"{file} is thrown away and made again: " in capsys.readouterr().out
    assert isinstance(opened(tmp_path / "set"), PackedPixels)
    assert capsys.readouterr().out == ""


def test_the_sets_used_longest_ago_go_first_and_none_in_use(tmp_path, cache, capsys):
    size = 20e3 / 1e9  # GB: two sets of 9 kB, not three
    in_use = opened(write_set(tmp_path / "one", 0), size)
    opened(write_set(tmp_path / "two", 20), size)
    one, two = sorted(packed(cache), key=lambda path: path.stat().st_mtime)
    os.utime(one, (1, 1))
    os.utime(two, (2, 2))
    opened(write_set(tmp_path / "three", 40), size)
    assert "removed from the cache, to keep it below --data.cache-limit" in capsys.readouterr().out
    assert one.exists()  # the oldest, but open
    assert not two.exists()
    assert greys(in_use) == list(range(COUNT))
    del in_use
    opened(write_set(tmp_path / "four", 60), size)
    assert not one.exists()
    assert len(packed(cache)) == 2
    (cache / "mine.mpp").write_bytes(bytes(50_000))  # no set of the cache
    assert not isinstance(opened(write_set(tmp_path / "five", 80), 1e-6), PackedPixels)
    assert "are too much for the cache" in capsys.readouterr().out
    assert (cache / "mine.mpp").exists()


def test_the_command_lists_and_clears(tmp_path, cache, capsys):
    assert call("cache", {}) == []
    assert f"{cache}: 0 sets" in capsys.readouterr().out
    in_use = opened(write_set(tmp_path / "one"))
    opened(write_set(tmp_path / "two", 20))
    (tmp_path / "two" / "0.bmp").write_bytes(bmp(20)[:100])
    opened(tmp_path / "two")  # leaves why it cannot be packed
    half = cache / f"train-{'0' * 32}.mpp.partial"
    half.write_bytes(b"half")
    (cache / "mine.txt").write_text("mine")
    capsys.readouterr()
    assert len(call("cache", {})) == 3
    said = capsys.readouterr().out
    for words in (packed(cache)[0], tmp_path / "one", tmp_path / "two", "a packing that was cut", "MB, last used 20"):
        assert str(words) in said
    (kept,) = call("cache", {"clear": True})
    assert f"kept, as it is in use: {kept.path}" in capsys.readouterr().out
    assert greys(in_use) == list(range(COUNT))
    assert {path.name for path in cache.iterdir()} == {kept.path.name, f"{kept.path.name}.lock", "mine.txt"}
    del in_use
    assert call("cache", {"clear": True}) == []
    assert {path.name for path in cache.iterdir()} == {"mine.txt"}


@pytest.mark.skipif(os.name != "posix", reason="rights of POSIX")
def test_a_cache_that_others_can_write_is_refused(tmp_path, cache, monkeypatch):
    opened(write_set(tmp_path / "set"))
    assert cache.stat().st_mode & 0o777 == 0o700
    for path in (cache, *packed(cache)):
        before = path.stat().st_mode
        path.chmod(0o777)
        with pytest.raises(UserError, match="can be written by every user") as error:
            opened(tmp_path / "set")
        assert "MPP_CACHE" in one_line(error)
        path.chmod(before)
    assert isinstance(opened(tmp_path / "set"), PackedPixels)
    monkeypatch.setattr(os, "getuid", lambda: cache.stat().st_uid + 1)
    if cache.stat().st_uid:  # what root wrote is trusted
        with pytest.raises(UserError, match="belongs to another user"):
            opened(tmp_path / "set")


def test_a_passing_error_is_tried_again_and_a_lasting_one_for_a_day_not(tmp_path, cache, monkeypatch, capsys):
    write_set(tmp_path / "set")
    with monkeypatch.context() as patch:

        def fail(*_args, **_options):
            raise OSError(5, "Input/output error")

        patch.setattr(Image.Image, "convert", fail)
        patch.setattr("mpp.data.decode._to_rgb", fail)
        assert not isinstance(opened(tmp_path / "set"), PackedPixels)
        assert "not packed: image" in capsys.readouterr().out
    assert not list(cache.glob("*.not-packed"))
    assert isinstance(opened(tmp_path / "set"), PackedPixels)

    (tmp_path / "set" / "3.bmp").write_bytes(bmp(3)[:100])
    assert not isinstance(opened(tmp_path / "set"), PackedPixels)
    (mark,) = cache.glob("*.not-packed")
    capsys.readouterr()
    opened(tmp_path / "set")
    assert capsys.readouterr().out == ""
    os.utime(mark, (time.time() - pack_cache._NOT_AGAIN - 1,) * 2)
    opened(tmp_path / "set")
    assert "not packed: image" in capsys.readouterr().out


def test_a_cut_packing_of_the_cache_goes_on(tmp_path, cache, monkeypatch, capsys):
    write_set(tmp_path / "set")
    monkeypatch.setattr(packing, "_AT_ONCE", 2)
    monkeypatch.setattr(packing, "_NOTE_EVERY", 1)
    real = packing._note

    def dying(file, notes, state):
        real(file, notes, state)
        if state["done"] == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(packing, "_note", dying)
        with pytest.raises(KeyboardInterrupt):
            opened(tmp_path / "set")
    assert [entry.origin for entry in entries(cache)] == ["a packing that was cut"]
    assert greys(opened(tmp_path / "set")) == list(range(COUNT))
    assert "goes on: 4 of 10 images are packed already" in capsys.readouterr().out
