"""A packed file from elsewhere: whatever its header says, the answer is one line that names the field, at once."""

from __future__ import annotations

import json
import re
import struct
import time
from pathlib import Path

import numpy as np
import pytest

from mpp.data.images import load_images
from mpp.data.packing import pack
from mpp.data.sources.packed_header import MAGIC, TAIL
from mpp.data.sources.path import split_names
from mpp.errors import UserError
from tests.helpers import flat, one_line


class Greys:
    """Six labelled images of 4 x 4."""

    label_names = ("cat", "dog")

    def __len__(self):
        return 6

    def read(self, indices):
        return [flat(40 * i, (4, 4)) for i in indices]

    def labels(self, indices):
        return np.asarray(indices) % 2


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A packed file as it should be: its content and its header."""
    path = tmp_path_factory.mktemp("packed") / "set.mpp"
    pack({"train": Greys(), "test": Greys()}, path, "greys", progress=False)
    content = path.read_bytes()
    at, _ = TAIL.unpack(content[-TAIL.size :])
    return content[:at], json.loads(content[at : -TAIL.size])


def write(path: Path, content: bytes, header: dict | bytes) -> str:
    """A packed file of a content and a header, whatever they are."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(content + text + TAIL.pack(len(content), MAGIC))
    return str(path)


def refusal(path: str) -> str:
    """What is said, in one line and at once, of a file that cannot be read."""
    before = time.perf_counter()
    with pytest.raises(UserError) as error:
        split_names(path)
    assert time.perf_counter() - before < 0.5
    with pytest.raises(UserError):
        load_images(path, "test")
    assert path in one_line(error)
    return one_line(error)


SPLIT = [
    ("count", -3, "split train in its header: count -3 must be a whole number from 0"),
    ("count", 10**18, "count 1000000000000000000 must be a whole number from 0"),
    ("count", 10**400, "count 1000"),
    ("count", 100, "pixels would take 4,800 bytes"),
    ("count", "6", 'count "6" must be'),
    ("count", 6.0, "count 6.0 must be"),
    ("count", True, "count true must be"),
    ("count", None, "count null must be"),
    ("pixels", 0, "pixels 0 must be a whole number from 8"),
    ("pixels", 2**62, "pixels 4611686018427387904 must be"),
    ("begins", -8, "begins -8 must be"),
    ("begins", 2**63, "begins 9223372036854775808 must be"),
    ("begins", 9, "image 5: begins: it cannot lie at"),
    ("sizes", [8], r"sizes \[8\] must be"),
    ("sizes", 8, "image 0: sizes: "),
    ("labels", 10**9, "labels 1000000000 must be"),
    ("labels", {}, r"labels \{\} must be"),
    ("labels", 56, "labels: none of its 2 classes has number"),
    ("size", [4], r"size \[4\] must be a height and a width"),
    ("size", [0, 4], r"size \[0, 4\] must be"),
    ("size", [-4, -4], r"size \[-4, -4\] must be"),
    ("size", [4, 10**12], r"size \[4, 1000000000000\] must be"),
    ("size", [2, 8], r"size says \[2, 8\] of all, and sizes \[4, 4\]"),
    ("size", "4x4", 'size "4x4" must be'),
    ("more", 1, 'split train in its header has a field "more" that this version does not know'),
]


@pytest.mark.parametrize(("field", "value", "says"), SPLIT, ids=[f"{field}={value}"[:24] for field, value, _ in SPLIT])
def test_a_field_of_a_split_that_lies_is_named(packed, tmp_path, field, value, says):
    content, header = packed
    lying = header | {"splits": header["splits"] | {"train": header["splits"]["train"] | {field: value}}}
    assert re.search(says, refusal(write(tmp_path / "set.mpp", content, lying)))


@pytest.mark.parametrize("field", ["count", "pixels", "begins", "sizes"])
def test_a_missing_field_is_named(packed, tmp_path, field):
    content, header = packed
    part = {name: value for name, value in header["splits"]["test"].items() if name != field}
    lying = header | {"splits": {"test": part}}
    assert f"split test in its header has no {field}" in refusal(write(tmp_path / "set.mpp", content, lying))


HEADER = [
    ({"splits": []}, r"splits in its header \[\] must be an object"),
    ({"splits": {}}, "its header names no split"),
    ({"splits": {"train": 3}}, "split train in its header 3 must be an object"),
    ({"splits": {"": {}}}, 'a name "" must be text'),
    ({"label_names": None}, "split train has labels, but its header has no label_names"),
    ({"label_names": ["cat"]}, "split train, image 1: labels: none of its 1 classes has number 1"),
    ({"label_names": ["cat", "cat"]}, "label_names .* must be a list of different texts"),
    ({"label_names": ["cat", 3]}, "label_names 3 must be text"),
    ({"label_names": ["cat", "\ud800"]}, "label_names .* must be text"),
    ({"label_names": "cat"}, 'label_names "cat" must be a list'),
    ({"source": None}, "source null must be text"),
    ({"sha256": "abc"}, 'sha256 "abc" must be 64 hexadecimal digits'),
    ({"short_side": -1}, "short_side -1 must be"),
    ({"short_side": float("nan")}, "NaN in its header is no number"),
    ({"short_side": float("inf")}, "Infinity in its header is no number"),
    ({"written_by": "tomorrow"}, 'has a field "written_by" that this version does not know'),
]


@pytest.mark.parametrize(("change", "says"), HEADER, ids=[json.dumps(change)[:30] for change, _ in HEADER])
def test_a_header_that_lies_is_refused_with_the_field(packed, tmp_path, change, says):
    content, header = packed
    assert re.search(says, refusal(write(tmp_path / "set.mpp", content, header | change)))


TEXTS = [
    (b"", "its header is no JSON"),
    (b"[1, 2]", r"its header \[1, 2\] must be an object"),
    (b"\xff\xfe{", "its header is not UTF-8 at byte 0"),
    (b"{" * 100_000, "its header is no JSON"),
    (b"[" * 100_000, "recursion"),
    (b'{"source": "a", "source": "b"}', '"source" is in its header twice'),
    (b'{"source": ' + b"9" * 5000 + b"}", "integer string"),
]


@pytest.mark.parametrize(("text", "says"), TEXTS, ids=[str(text[:20]) for text, _ in TEXTS])
def test_a_header_that_is_no_header_is_refused(packed, tmp_path, text, says):
    assert re.search(says, refusal(write(tmp_path / "set.mpp", packed[0], text)))


@pytest.mark.parametrize(
    ("table", "number", "value", "says"),
    [
        ("labels", 3, 2, "split test, image 3: labels: none of its 2 classes has number 2"),
        ("labels", 0, -2, "split test, image 0: labels: none of its 2 classes has number -2"),
        ("begins", 1, -48, "split test, image 1: begins: it cannot lie at -48"),
        ("begins", 1, 40, "split test, image 0: begins: its bytes are not those of sizes"),
        ("begins", 6, 2**62, "split test, image 6: begins: it cannot lie at"),
        ("sizes", 4, 2**40, "split test, image 2: sizes: the file has no room for"),
        ("sizes", 5, 0, "split test, image 2: sizes: it cannot be"),
    ],
)
def test_a_number_in_a_table_that_lies_is_named(packed, tmp_path, table, number, value, says):
    content, header = packed
    at = header["splits"]["test"][table] + 8 * number
    lying = content[:at] + struct.pack("<q", value) + content[at + 8 :]
    assert re.search(says, refusal(write(tmp_path / "set.mpp", lying, header)))


def test_a_sparse_file_that_claims_a_billion_images_is_refused_at_once(packed, tmp_path):
    _, header = packed
    path = tmp_path / "set.mpp"
    count, content = 10**9, 1 << 40
    part = {"count": count, "pixels": 8, "begins": 8, "sizes": 8, "labels": None, "size": None}
    with path.open("wb") as file:
        file.write(MAGIC)
        file.seek(content)
        file.write(json.dumps(header | {"splits": {"test": part}}).encode() + TAIL.pack(content, MAGIC))
    assert "split test, image 0: sizes: it cannot be [0, 0]" in refusal(str(path))


def test_a_whole_file_is_read_and_one_without_labels_too(packed, tmp_path):
    content, header = packed
    bare = {name: part | {"labels": None} for name, part in header["splits"].items()}
    for kept in (header, header | {"label_names": None, "splits": bare}):
        images = load_images(write(tmp_path / "set.mpp", content, kept), "test")
        assert images.arrays([5, 0])[:, 0, 0, 0].tolist() == [200, 0]
