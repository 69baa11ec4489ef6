"""Bad images: each loads to (H, W, 3) uint8 or gives one line with its file and a reason; none hangs or eats memory."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import re
import socket
import struct
import subprocess
import sys
import tarfile
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, features

from mpp.console import command
from mpp.data.augment import View
from mpp.data.decode import Unreadable, open_image, pixels
from mpp.data.images import load_images
from mpp.data.loader import Samples, no_draws, read_batch
from mpp.data.randomness import Purpose
from mpp.data.sources.path import is_stream
from mpp.data.streams import Stream
from mpp.errors import UserError
from mpp.run.folder import read_metrics
from tests.helpers import (
    chunk,
    declared_png,
    encode,
    launch,
    noise,
    one_line,
    pretrain,
    put,
    reset_accelerate,
    slopes,
    turned_file,
)

MUTANTS = 320
AVIF = {"avif": (".png", encode(slopes(40, 60), "AVIF"))} if features.check("avif") else {}


def sixteen_bits(height, width):
    """A grey image of 16 bits."""
    grey = np.random.default_rng(1).integers(0, 65536, (height, width), dtype=np.uint16)
    return Image.fromarray(grey)


def animated(kind):
    """An animation of three frames."""
    frames = [slopes(30, 40).rotate(90 * i) for i in range(3)]
    return encode(frames[0], kind, save_all=True, append_images=frames[1:])


GOOD = {  # name: (extension, bytes)
    "jpeg": (".jpg", encode(noise(40, 60), "JPEG")),
    "progressive": (".jpeg", encode(slopes(200, 300), "JPEG", progressive=True)),
    "cmyk": (".jpg", encode(slopes(40, 60).convert("CMYK"), "JPEG")),
    "grey": (".jpg", encode(slopes(40, 60).convert("L"), "JPEG")),
    "png": (".png", encode(noise(40, 60))),
    "rgba": (".png", encode(slopes(40, 60).convert("RGBA"))),
    "palette": (".png", encode(slopes(40, 60).convert("P"), transparency=3)),
    "16-bit png": (".png", encode(sixteen_bits(20, 30))),
    "16-bit tiff": (".tif", encode(sixteen_bits(20, 30), "TIFF")),
    "cmyk tiff": (".tiff", encode(slopes(40, 60).convert("CMYK"), "TIFF", compression="tiff_deflate")),
    "animated gif": (".gif", animated("GIF")),
    "animated png": (".png", animated("PNG")),
    "animated webp": (".webp", animated("WEBP")),
    "webp": (".webp", encode(noise(40, 60), "WEBP")),
    "bmp": (".bmp", encode(slopes(40, 60), "BMP")),
    "ppm": (".ppm", encode(slopes(40, 60), "PPM")),
    "jpeg 2000": (".jp2", encode(slopes(40, 60), "JPEG2000")),
    "one pixel": (".png", encode(slopes(1, 1))),
    "thin": (".png", encode(slopes(10, 20_000))),
    "thin jpeg": (".jpg", encode(slopes(20_000, 10), "JPEG")),
    **{f"turned {turn}": (".jpg", turned_file(slopes(40, 60), "JPEG", turn)) for turn in range(1, 9)},
    **AVIF,
}


def mutated(data: bytes, draw: random.Random) -> bytes:
    """A file's bytes, damaged in one of the ways that disks, networks and people damage files."""
    content = bytearray(data)
    way = draw.choice(["truncate", "flip", "header", "numbers", "zero", "double", "append", "cut out"])
    at = draw.randrange(len(content))
    if way == "truncate":
        del content[at:]
    elif way == "flip":
        for _ in range(draw.choice([1, 3, 30])):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif way == "header":
        for _ in range(draw.choice([1, 3])):
            content[draw.randrange(min(64, len(content)))] = draw.randrange(256)
    elif way == "numbers":  # sizes, offsets, counts: the worst that two or four bytes can say
        at = draw.randrange(min(200, len(content)))
        content[at : at + 4] = draw.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff", bytes(4)])
    elif way == "zero":
        content[at : at + draw.choice([16, 512])] = bytes(len(content[at : at + 16]))
    elif way == "double":
        content[at:at] = content
    elif way == "append":
        content += draw.randbytes(1000)
    else:
        del content[at : at + draw.choice([1, 100])]
    return bytes(content)


def write_mutants(folder: Path, seed: int, count: int) -> None:
    """Files of images, damaged in ways that the seed tells; every sixth under a wrong extension instead."""
    draw = random.Random(seed)
    extensions = sorted({extension for extension, _ in GOOD.values()})
    folder.mkdir()
    for number in range(count):
        name = draw.choice(list(GOOD))
        extension, data = GOOD[name]
        if number % 6 == 0:
            extension = draw.choice(extensions)
        else:
            data = mutated(data, draw)
        (folder / f"{number:03d} {name}{extension}").write_bytes(data)


# What a process of its own finds in a folder: of every file its pixels' shape or the reason, and what that took.
READ = """
import json, resource, sys, time
from mpp.data.decode import Unreadable, pixels, size_as_seen
from mpp.data.images import load_images

images, found, slowest = load_images(sys.argv[1]), {}, 0.0
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for index in range(len(images)):
    start = time.perf_counter()
    (image,) = images.read([index])
    try:
        if isinstance(image, Unreadable):
            raise image
        size_as_seen(image)
        array = pixels(image, (16, 24))
        found[images.where(index)] = [list(array.shape), str(array.dtype)]
    except Unreadable as error:
        found[images.where(index)] = str(error)
    slowest = max(slowest, time.perf_counter() - start)
unit = 1 << (20 if sys.platform == "darwin" else 10)
megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / unit
json.dump({"found": found, "slowest": slowest, "megabytes": megabytes}, sys.stdout)
"""


def read_apart(folder: Path) -> dict:
    """Read all images of a folder in a process of its own, for half a minute at most."""
    line = [sys.executable, "-W", "ignore", "-c", READ, str(folder)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("seed", [0, 1])
def test_every_mutated_file_loads_or_is_named_with_a_reason(tmp_path, seed):
    write_mutants(tmp_path / "set", seed, MUTANTS // 2)
    read = read_apart(tmp_path / "set")
    assert sorted(read["found"]) == sorted(map(str, (tmp_path / "set").iterdir()))
    loaded = [value for value in read["found"].values() if not isinstance(value, str)]
    reasons = [value for value in read["found"].values() if isinstance(value, str)]
    assert all(value == [[16, 24, 3], "uint8"] for value in loaded)
    assert all(reason and reason.isprintable() for reason in reasons)
    assert len(loaded) > 40
    assert len(reasons) > 40
    assert read["slowest"] < 10
    assert read["megabytes"] < 1000


def test_every_image_loads_whatever_its_extension_says(tmp_path):
    (tmp_path / "set").mkdir()
    for number, (name, (extension, data)) in enumerate(GOOD.items()):
        other = {".jpg": ".png"}.get(extension, ".jpg")
        (tmp_path / "set" / f"{number:02d} {name}{other}").write_bytes(data)
    images = load_images(str(tmp_path / "set"))
    assert len(images) == len(GOOD)
    for image, (_, data) in zip(images.read(range(len(images))), GOOD.values(), strict=True):
        expected = pixels(open_image({"bytes": data, "path": None}), (16, 24))
        np.testing.assert_array_equal(pixels(image, (16, 24)), expected)


def test_damaged_exif_costs_no_image(tmp_path):
    draw = random.Random(3)
    (tmp_path / "set").mkdir()
    whole = turned_file(slopes(40, 60), "JPEG", 6)
    start = whole.index(b"Exif")
    for number in range(40):
        content = bytearray(whole)
        for _ in range(3):
            content[start + draw.randrange(30)] = draw.randrange(256)
        (tmp_path / "set" / f"{number}.jpg").write_bytes(content)
    found = read_apart(tmp_path / "set")["found"]
    assert [value for value in found.values() if value != [[16, 24, 3], "uint8"]] == []


# Bombs


def with_size(data: bytes, kind: str, side: int) -> bytes:
    """A small image's file that claims to be `side` x `side` pixels."""
    content = bytearray(data)
    if kind == "GIF":
        struct.pack_into("<HH", content, 6, min(side, 65535), min(side, 65535))
    elif kind == "BMP":
        struct.pack_into("<ii", content, 18, side, side)
    elif kind == "JPEG":
        frame = content.index(b"\xff\xc0")
        struct.pack_into(">HH", content, frame + 5, side, side)
    elif kind == "PPM":
        return data.replace(b"60 40", f"{side} {side}".encode(), 1)
    elif kind == "TIFF":
        (start,) = struct.unpack_from("<I", content, 4)
        for entry in range(struct.unpack_from("<H", content, start)[0]):
            place = start + 2 + 12 * entry
            if struct.unpack_from("<H", content, place)[0] in (256, 257):  # width and height
                struct.pack_into("<HHII", content, place, *struct.unpack_from("<H", content, place), 4, 1, side)
    elif kind == "WEBP":  # VP8L: 14 bits less one each
        struct.pack_into("<I", content, 21, (16_383) | (16_383 << 14))
    return bytes(content)


def test_decompression_bombs_are_refused_before_they_take_memory(tmp_path):
    (tmp_path / "set").mkdir()
    for kind in ("GIF", "BMP", "JPEG", "PPM", "TIFF", "WEBP"):
        data = encode(slopes(40, 60), kind, **({"lossless": True} if kind == "WEBP" else {}))
        (tmp_path / "set" / f"{kind}.png").write_bytes(with_size(data, kind, 30_000))
    (tmp_path / "set" / "png.png").write_bytes(declared_png(30_000))
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 28)))  # 256 MB of text in 256 kB
    png = encode(noise(40, 60))
    (tmp_path / "set" / "text.png").write_bytes(png[:33] + text + png[33:])
    profile = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 28)))
    (tmp_path / "set" / "profile.png").write_bytes(png[:33] + profile + png[33:])
    read = read_apart(tmp_path / "set")
    by_name = {Path(name).stem: value for name, value in read["found"].items()}
    for name in ("GIF", "BMP", "JPEG", "PPM", "TIFF", "WEBP", "png"):
        assert "exceeds limit" in by_name[name], name
    assert "too large" in by_name["text"]
    assert len(by_name) == 9
    assert read["megabytes"] < 150


def test_the_largest_images_that_are_read_take_a_known_amount_of_memory(tmp_path):
    """Less than 20 bytes a pixel, so 3.6 GB at the limit of 179 million pixels; here of a file of some kilobytes."""
    side = 8_000
    (tmp_path / "set").mkdir()
    rows = zlib.compressobj(1)
    data = b"".join(rows.compress(bytes(1 + 2 * side)) for _ in range(side)) + rows.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 16, 0, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    (tmp_path / "set" / "16 bit.png").write_bytes(content)
    read = read_apart(tmp_path / "set")
    assert list(read["found"].values()) == [[[16, 24, 3], "uint8"]]
    assert read["megabytes"] < 20 * side**2 / (1 << 20)


# What else lies in folders


def test_formats_that_start_other_programs_are_not_opened():
    page = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    image = open_image({"bytes": page, "path": None})
    assert isinstance(image, Unreadable)
    assert "not an image in a supported format (JPEG, PNG" in str(image)


def test_pipes_sockets_and_links_to_nothing_are_named_and_waited_for_by_nobody(tmp_path):
    folder = tmp_path / "set"
    put(folder / "ok.png", 9)
    os.mkfifo(folder / "pipe.png")
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    (folder / "zeros.png").symlink_to("/dev/zero")
    here = os.getcwd()
    os.chdir(folder)  # a socket's name is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
    os.chdir(here)
    said = r"4 files are left out, the first: .*/set/\w+\.\w+ \((not a regular file|a broken link)"
    with pytest.warns(UserWarning, match=said):
        images = load_images(str(folder))
    assert [images.where(i) for i in range(len(images))] == [str(folder / "ok.png")]


def test_a_file_that_becomes_a_pipe_is_waited_for_by_nobody(tmp_path):
    put(tmp_path / "0.png", 9)
    images = load_images(str(tmp_path))
    (tmp_path / "0.png").unlink()
    os.mkfifo(tmp_path / "0.png")
    (image,) = images.read([0])
    assert isinstance(image, Unreadable)
    assert "not a regular file" in str(image)


ODD_NAMES = [
    "a b",
    "ünï☃",
    "'q\"",
    "[x]",
    "{y}",
    "st*r",
    "%41",
    "ha#sh",
    "-dash",
    "tab\there",
    "esc\x1b[31m",
    "?",
    "new\nline",
]


def test_files_with_odd_names_load_and_are_named_on_one_line(tmp_path):
    for number, name in enumerate(ODD_NAMES):
        put(tmp_path / f"{name}.png", number)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = load_images(str(tmp_path))
    assert len(images) == len(ODD_NAMES)
    assert all(images.where(i).isprintable() for i in range(len(images)))
    assert {int(pixels(image, (8, 8))[0, 0, 0]) for image in images.read(range(len(images)))} == set(
        range(len(ODD_NAMES))
    )


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("phone.heic", "phone.heic (.heic is not a supported file type"),
        ("new.jxl", "new.jxl (.jxl is not a supported file type"),
    ],
)
def test_files_that_are_left_out_for_their_names_are_named(tmp_path, name, says):
    put(tmp_path / "ok.png", 9)
    (tmp_path / name).write_bytes(encode(slopes(8, 8)))
    with pytest.warns(UserWarning, match=re.escape(f"1 file is left out: {tmp_path}/{says}")):
        assert len(load_images(str(tmp_path))) == 1


def test_a_name_that_is_taken_for_an_archives_is_named(tmp_path):
    put(tmp_path / "a::b.png", 9)
    with pytest.raises(UserError) as error:
        load_images(str(tmp_path))
    assert f"{tmp_path}/a::b.png" in one_line(error)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() == 0, reason="needs a user who may not read all")
def test_a_folder_that_may_not_be_read_is_named_and_passed_over(tmp_path):
    put(tmp_path / "ok.png", 9)
    (tmp_path / "lost+found").mkdir(mode=0)
    with pytest.warns(UserWarning, match=r"1 folder is left out: .*/lost\+found \(a folder that this user"):
        assert len(load_images(str(tmp_path))) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_not_utf8_is_named(tmp_path):
    put(tmp_path / "ok.png", 9)
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.png")).write_bytes(encode(slopes(8, 8)))
    with pytest.raises(UserError) as error:
        load_images(str(tmp_path))
    assert re.search(r"bad\\udcff\.png: the name of this file is not UTF-8", one_line(error))


# No path outside the given folder


OUTSIDE = ["../secret.png", "{}/secret.png", "x/../../secret.png", "link/secret.png", "/dev/zero", "/etc/passwd"]


def write_table(file, paths):
    """A table of images' paths, as its extension says."""
    if file.suffix == ".parquet":
        pq.write_table(pa.table({"image": paths}), file)
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps({"image": path}) + "\n" for path in paths))
    else:
        file.write_text("\n".join(["image", *paths, ""]))
    return file


@pytest.mark.parametrize("kind", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize("outside", [*OUTSIDE, "https://host/x.png", "file:///etc/x.png"])
def test_a_table_reads_no_files_but_those_of_its_own_set(tmp_path, kind, outside):
    put(tmp_path / "secret.png", 7)
    put(tmp_path / "set" / "own.png", 9)
    (tmp_path / "set" / "link").symlink_to(tmp_path)
    for inside in ("own.png", str(tmp_path / "set" / "own.png"), "./x/../own.png"):
        table = write_table(tmp_path / "set" / f"t{kind}", [inside])
        (own,) = load_images(str(table)).read([0])
        assert int(pixels(own, (8, 8))[0, 0, 0]) == 9
    table = write_table(tmp_path / "set" / f"t{kind}", ["own.png", outside.format(tmp_path)])
    with pytest.raises(UserError) as error:
        load_images(str(table))
    assert f"the table {table} leads out of its folder, to {outside.format(tmp_path)}; a set reads" in one_line(error)
    secret = open_image({"path": str(tmp_path / "set/link/secret.png"), "bytes": None}, str(table))
    assert "points outside the set" in str(secret)  # also of a table that changes after it was opened


@pytest.mark.parametrize("outside", [*OUTSIDE, "https://host/x.png", "zip://x.png::/etc/a.zip"])
def test_metadata_that_names_files_outside_the_folder_is_refused(tmp_path, outside):
    put(tmp_path / "secret.png", 7)
    put(tmp_path / "set" / "own.png", 9)
    (tmp_path / "set" / "link").symlink_to(tmp_path)
    (tmp_path / "set" / "metadata.csv").write_text(f"file_name\nown.png\n{outside.format(tmp_path)}\n")
    with pytest.raises(UserError) as error:
        load_images(str(tmp_path / "set"))
    assert f"{tmp_path}/set/metadata.csv leads out of {tmp_path}/set, to {outside.format(tmp_path)}; " in one_line(
        error
    )


def write_card(folder, path, card="README.md"):
    """A card whose second configuration is made of the files at `path`; returns the card's place."""
    configs = "configs:\n- config_name: default\n  data_files: '*.parquet'\n- config_name: b\n  data_files:\n"
    configs += f"  - split: train\n    path: '{path}'\n"
    put(folder / "own.png", 9)
    pq.write_table(pa.table({"image": [encode(slopes(8, 8))]}), folder / "own.parquet")
    (folder / card).write_text(f"---\n{configs}---\n" if card == "README.md" else configs)
    return folder / card


@pytest.mark.parametrize("card", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize(
    "path",
    [
        "{}/secret/*.parquet",
        "../secret/*",
        "x/../../secret/*",
        "https://host/x.parquet",
        "hf://datasets/a/b/x.parquet",
        "s3://bucket/x.parquet",
        "file:///etc/x.parquet",
        "zip://x.parquet::/etc/a.zip",
    ],
)
def test_a_card_that_leads_out_of_its_folder_is_refused(tmp_path, path, card):
    path = path.format(tmp_path)
    place = write_card(tmp_path / "set", path, card)
    with pytest.raises(UserError) as error:
        load_images(str(tmp_path / "set"))
    assert f"{place} leads out of its folder, to {path}; a set reads no files but its own" in one_line(error)


@pytest.mark.parametrize("link", ["folder", "file"])
def test_a_card_whose_files_are_links_out_of_its_folder_is_refused(tmp_path, link):
    (tmp_path / "secret").mkdir()
    pq.write_table(pa.table({"image": [encode(slopes(8, 8))]}), tmp_path / "secret" / "x.parquet")
    write_card(tmp_path / "set", "link/*.parquet")
    if link == "folder":
        (tmp_path / "set" / "link").symlink_to(tmp_path / "secret")
    else:
        (tmp_path / "set" / "link").mkdir()
        (tmp_path / "set" / "link" / "x.parquet").symlink_to(tmp_path / "secret" / "x.parquet")
    assert len(load_images(str(tmp_path / "set"))) == 1  # the configuration that leads nowhere
    with pytest.raises(UserError) as error:
        load_images(str(tmp_path / "set"), config="b")
    assert "the card of" in one_line(error)
    assert "link/x.parquet" in one_line(error)


@pytest.mark.parametrize(
    "text", ["---\nconfigs: [a\n---\n", "---\nconfigs: 7\n---\n", "---\nconfigs: [{data_files: x}]\n---"]
)
def test_a_damaged_card_is_named(tmp_path, text):
    put(tmp_path / "0.png", 9)
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(UserError) as error:
        load_images(str(tmp_path))
    assert f"{tmp_path / 'README.md'}: this card cannot be read" in one_line(error)


def outside_members(root: Path) -> dict[str, bytes]:
    """Members of an archive that would be unpacked beside or above it, or at a place of their own."""
    data = encode(slopes(16, 16))
    return {"in.png": data, "../above.png": data, "a/../../above2.png": data, f"{root}/absolute.png": data}


def no_file_was_unpacked(root: Path, cache: str) -> None:
    """Assert that no member of an archive is a file now, where it asked to be or in the cache of `datasets`."""
    for top in (root, root.parent, Path(cache)):
        names = {path.name for path in top.rglob("*.png")}
        assert not names & {"in.png", "above.png", "above2.png", "absolute.png", "link.png"}


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_archives_among_images_are_not_unpacked(tmp_path, throwaway_cache, kind):
    folder = tmp_path / "set"
    for i in range(3):
        put(folder / f"{i}.png", i)
    if kind == "zip":
        with zipfile.ZipFile(folder / "a.zip", "w") as archive:
            for name, data in outside_members(tmp_path).items():
                archive.writestr(name, data)
    else:
        with tarfile.open(folder / f"a.{kind}", "w:gz" if kind.endswith("gz") else "w") as archive:
            for name, data in outside_members(tmp_path).items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    images = load_images(str(folder))
    read = images.read(range(len(images)))
    for i, image in enumerate(read):
        assert isinstance(image, Unreadable) == (".zip" in images.where(i))
        assert not isinstance(image, Unreadable) or "in an archive" in str(image)
    assert len([image for image in read if not isinstance(image, Unreadable)]) == 3
    no_file_was_unpacked(tmp_path, throwaway_cache)


def test_a_compressed_image_is_not_unpacked(tmp_path):
    put(tmp_path / "ok.png", 9)
    (tmp_path / "x.png.gz").write_bytes(gzip.compress(encode(slopes(8, 8))))
    images = load_images(str(tmp_path))
    assert isinstance(images.read([1])[0], Unreadable)


def write_hostile_shard(path: Path, root: Path) -> None:
    """A WebDataset shard of 12 images, members with outside names, links and devices."""
    path.parent.mkdir(parents=True, exist_ok=True)
    members = {f"{i:02d}.png": encode(noise(16, 16).rotate(i)) for i in range(12)} | outside_members(root)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo("link.png")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)


def test_members_of_shards_with_outside_names_links_and_devices_are_read_from_memory_alone(tmp_path, throwaway_cache):
    for number in range(2):
        write_hostile_shard(tmp_path / "set" / f"train-{number}.tar", tmp_path)
    assert is_stream(str(tmp_path / "set"))
    samples = list(Stream.open(str(tmp_path / "set"), "train").samples(0))
    assert len(samples) == 12 + 4  # no link, no device
    assert all(sample["bytes"].startswith(b"\x89PNG") for _, sample in samples)
    lines = pretrain(tmp_path / "run", "--data.path", str(tmp_path / "set"))
    assert len(lines) == 6
    no_file_was_unpacked(tmp_path, throwaway_cache)


@pytest.mark.parametrize("damage", ["cut", "cut between two", "text", "empty", "pickle"])
def test_a_damaged_shard_is_named_in_one_line(tmp_path, damage):
    folder = tmp_path / "set"
    for number in range(2):
        write_hostile_shard(folder / f"train-{number}.tar", tmp_path)
    shard = folder / "train-0.tar"
    content = shard.read_bytes()
    damaged = {"text": b"words", "empty": b"", "pickle": b"\x80\x04K\x01."}
    damaged |= {"cut": content[:5000], "cut between two": content[: content.index(b"05.png")]}
    shard.write_bytes(damaged[damage])
    with pytest.raises(UserError) as error:
        pretrain(tmp_path / "run", "--data.path", str(folder))
    assert str(shard) in one_line(error)


# Through the loader and the whole command


def mixed_folder(folder: Path) -> list[str]:
    """Twelve good images and seven that are not; returns those, by name."""
    folder.mkdir()
    for i in range(12):
        (folder / f"good{i:02d}.png").write_bytes(encode(noise(20, 20)))
    bad = {
        "bomb.png": declared_png(30_000),
        "cut.jpg": encode(noise(64, 64), "JPEG")[:2000],
        "empty.jpg": b"",
        "half.webp": encode(noise(64, 64), "WEBP")[:900],
        "page.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        "text.jpg": b"words\nand more words",
        "zeros.gif": bytes(5000),
    }
    for name, data in bad.items():
        (folder / name).write_bytes(data)
    return sorted(str(folder / name) for name in bad)


def test_a_batch_has_the_good_images_and_names_the_others(tmp_path):
    bad = mixed_folder(tmp_path / "set")
    images = load_images(str(tmp_path / "set"))
    samples = Samples(np.arange(len(images)), 0, range(len(images)))
    batch = read_batch(images, samples, View((16, 16)), no_draws, 0, Purpose.EVAL)
    assert batch["images"].shape == (12, 3, 16, 16)
    assert sorted(batch["unreadable"]) == bad
    assert all(reason.isprintable() for reason in batch["unreadable"].values())


def test_a_run_over_bad_images_skips_and_counts_them(tmp_path, capsys):
    bad = mixed_folder(tmp_path / "set")
    options = ["--data.path", str(tmp_path / "set"), "--data.on-error", "skip", "--train.batch-size", "16"]
    lines = pretrain(tmp_path / "run", *options)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(np.isfinite(line["train/loss"]) for line in lines)
    assert sorted(json.loads((tmp_path / "run" / "result.json").read_text())["unreadable_images"]) == bad
    assert "7 of 19 images in" in capsys.readouterr().out


def test_a_run_over_bad_images_stops_with_one_line_and_exit_code_2(tmp_path):
    bad = mixed_folder(tmp_path / "set")
    done = launch("--data.path", str(tmp_path / "set"), "--output", str(tmp_path / "run"), "--train.batch-size", "18")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: image ")
    assert any(name in last for name in bad)
    assert "--data.on-error skip" in last


def test_metrics_of_a_run_over_bad_images_do_not_depend_on_workers(tmp_path):
    mixed_folder(tmp_path / "set")
    options = ["--data.path", str(tmp_path / "set"), "--data.on-error", "skip"]
    for workers in ("0", "2"):
        pretrain(tmp_path / workers, *options, "--data.workers", workers)
    first, second = ([line["train/loss"] for line in read_metrics(tmp_path / workers)] for workers in ("0", "2"))
    assert first == second


def test_counts_are_of_the_images_that_were_read_and_none_is_an_error(tmp_path):
    for number in range(12):
        put(tmp_path / "set" / "train" / "ab"[number % 2] / f"{number}.png", 20 * number)
        put(tmp_path / "set" / "test" / "ab"[number % 2] / f"{number}.png", 20 * number)
    held_out = sorted((tmp_path / "set" / "test").rglob("*.png"))
    for path in (tmp_path / "set" / "train" / "a" / "0.png", *held_out[:2]):
        path.write_bytes(b"no image")
    options = ["--data.path", str(tmp_path / "set"), "--data.on-error", "skip"]
    shape = ["--model.img-size", "16", "--model.embed-dim", "32", "--model.depth", "2", "--model.num-heads", "2"]
    training = [*shape, "--train.steps", "4", "--train.batch-size", "8"]
    commands = {"pretrain": training, "finetune": training, "probe": [*shape, "--probe.shots", "1"]}

    def run(name: str, number: str) -> dict:
        reset_accelerate()
        return command(name)([*commands[name], *options, "--output", str(tmp_path / f"{name}-{number}")])

    for name in commands:
        found = run(name, "1")
        counts = (found["train_images" if name == "pretrain" else "labels"], found["eval_images"])
        assert (name, counts, len(found["unreadable_images"])) == (name, (11, 10), 3)
    for path in held_out[:7]:
        path.write_bytes(b"no image")
    for name in commands:
        with pytest.raises(UserError, match=r"7 of 12 .*images in .*test/.*--data\.max-bad 0\.5 allows no more"):
            run(name, "2")
    for path in held_out:
        path.write_bytes(b"no image")
    options += ["--data.max-bad", "1"]
    for name in commands:
        with pytest.raises(UserError, match=r"12 of 12 .*images in .*test/.* is this the right set\?$"):
            run(name, "3")
