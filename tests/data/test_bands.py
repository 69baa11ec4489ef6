"""Images of any number of bands and of other types than uint8: how they are opened, and which pixels they give."""

from __future__ import annotations

import io

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from mpp.data.bands import Bands
from mpp.data.decode import Unreadable, channels_of, open_image, pixels, size_as_seen, values
from mpp.data.packing import pack
from mpp.data.sources.packed import PackedImages
from mpp.data.sources.packed_header import read_header
from mpp.errors import UserError
from tests.helpers import encode


def bands(channels, dtype="uint8", height=24, width=20, seed=0):
    """Values (H, W, C) of a type, in all of its range (floats in 0..1)."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.random((height, width, channels), dtype=dtype)
    bounds = np.iinfo(dtype)
    return rng.integers(bounds.min, bounds.max, (height, width, channels), dtype=dtype, endpoint=True)


def tiff(array, **options):
    """A file's bytes; by default (H, W, C) in one page, with extra samples whose meaning is not said."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **{"photometric": "minisblack", "planarconfig": "contig"} | options)
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def opened(data):
    image = open_image({"bytes": data, "path": None})
    if isinstance(image, Unreadable):
        raise image
    return image


def read(data, channels=None):
    """All values of a file, in their own type."""
    image = opened(data)
    return values(image, size_as_seen(image, channels), channels=channels)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("channels", [2, 4, 5, 13, 64])
def test_bands_of_every_type_are_read_value_by_value(channels, dtype):
    array = bands(channels, dtype)
    for data in (
        tiff(array),
        tiff(array.transpose(2, 0, 1), planarconfig="separate"),
        tiff(array, tile=(16, 16), compression="lzw", predictor=True),
        tiff(array, bigtiff=True, byteorder=">", compression="deflate"),
        npy(array),
        npy(np.asfortranarray(array)),
    ):
        if channels == 64 and data[:6] == b"\x93NUMPY":
            continue  # 24 x 20 with 64 channels: the shape alone does not say so
        found = read(data)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("metadata", [{"axes": "CYX"}, {}])
def test_bands_that_were_written_as_pages_of_one_array_are_bands(metadata):
    array = bands(5, height=24, width=20)
    np.testing.assert_array_equal(read(tiff(array.transpose(2, 0, 1), planarconfig=None, metadata=metadata)), array)
    if not metadata:  # tifffile's default for (H, W, C): H pages of W x C
        np.testing.assert_array_equal(read(tiff(array, planarconfig=None, metadata=metadata)), array)


def test_pages_that_are_no_bands_are_left_out():
    stack = bands(5).transpose(2, 0, 1)
    for data in (
        tiff(stack, planarconfig=None, metadata={"axes": "ZYX"}),
        tiff(stack, planarconfig=None, metadata=None),
    ):
        np.testing.assert_array_equal(read(data)[..., 0], stack[0])


def test_only_a_sample_that_is_marked_as_transparency_is_taken_for_it():
    array = bands(4)
    array[..., 3] = 0
    colour = {"photometric": "rgb"}
    infrared = tiff(array, extrasamples=["unspecified"], **colour)
    np.testing.assert_array_equal(read(infrared), array)
    transparent = tiff(array, extrasamples=["unassalpha"], **colour)
    assert read(transparent).shape[-1] == 3
    assert (read(transparent) == 255).all()  # on white
    np.testing.assert_array_equal(read(transparent, channels=4), array)  # as it is asked for
    deep = bands(6, "uint16")
    deep[..., 5] = 65535
    data = tiff(deep, extrasamples=["unspecified"] * 4 + ["unassalpha"])
    np.testing.assert_array_equal(read(data), deep[..., :5])
    deep[..., 5] = 0
    assert (read(tiff(deep, extrasamples=["unspecified"] * 4 + ["unassalpha"])) == 65535).all()


def test_a_png_of_16_bits_a_colour_keeps_all_of_them():
    array = bands(3, "uint16")
    np.testing.assert_array_equal(read(imagecodecs.png_encode(array)), array)
    opaque = np.concatenate([array, np.full_like(array[..., :1], 65535)], -1)
    np.testing.assert_array_equal(read(imagecodecs.png_encode(opaque)), array)


@pytest.mark.parametrize(
    ("shape", "wanted", "height_width_channels"),
    [
        ((20, 24), None, (20, 24, 1)),
        ((20, 24), 3, (20, 24, 1)),  # repeated when it becomes pixels
        ((20, 24, 5), None, (20, 24, 5)),
        ((5, 20, 24), None, (20, 24, 5)),
        ((1, 20, 24), None, (20, 24, 1)),
        ((20, 24, 1), None, (20, 24, 1)),
        ((12, 20, 24), 12, (20, 24, 12)),
        ((12, 20, 24), 24, (12, 20, 24)),
        ((8, 8, 5), None, (8, 8, 5)),
    ],
)
def test_the_shape_of_an_array_says_where_its_channels_are(shape, wanted, height_width_channels):
    assert read(npy(np.zeros(shape, np.uint8)), wanted).shape == height_width_channels


@pytest.mark.parametrize("shape", [(8, 8, 8), (12, 20, 24), (5, 8, 5)])
def test_a_shape_of_two_meanings_is_refused_with_the_choice(shape):
    with pytest.raises(Unreadable, match=r"could be height, width, channels or .*--data\.channels"):
        read(npy(np.zeros(shape, np.uint8)))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (npy(np.zeros((100, 200, 65), np.uint8)), "65 channels; 64 are the most"),
        (npy(np.zeros((4, 4), complex)), "integers and floats"),
        (npy(np.zeros((4, 4), bool)), "integers and floats"),
        (npy(np.zeros((2, 3, 4, 4), np.uint8)), "shape"),
        (npy(np.zeros((0, 4), np.uint8)), "shape"),
        (npy(np.zeros((9, 9), np.uint8))[:-5], "cut short"),
        (npy(np.zeros((9, 9), np.uint8)).replace(b"(9, 9)", b"(9999999, 9999999)"), "cut short|GiB|header"),
        (npy(np.full((4, 4), np.nan, np.float32)), "finite"),
    ],
)
def test_arrays_that_are_no_images_are_refused_with_the_reason(data, why):
    with pytest.raises(Unreadable, match=why):
        read(data)


def test_pickled_objects_are_not_loaded():
    with pytest.raises(Unreadable):
        read(npy(np.array([[{}]], dtype=object)))


def test_pictures_give_three_channels_and_what_else_they_have_where_it_is_asked_for():
    grey, colour, transparent = (encode(Image.new(mode, (4, 4))) for mode in ("L", "RGB", "RGBA"))
    sixteen = encode(Image.fromarray(np.full((4, 4), 256, np.uint16)))
    for data in (grey, colour, transparent, sixteen):
        assert channels_of(opened(data)) == 3
        assert read(data).shape[-1] == 3
    assert read(grey, 1).shape[-1] == read(sixteen, 1).shape[-1] == 1
    assert read(transparent, 4).shape[-1] == 4
    for data, wanted in ((colour, 1), (colour, 4), (grey, 4), (transparent, 5)):
        with pytest.raises(Unreadable, match=rf"3 channels, .* {wanted}; --data\.channels"):
            read(data, wanted)


@pytest.mark.parametrize(
    ("dtype", "low_high", "there", "expected"),
    [
        ("uint8", None, [0, 7, 255], [0, 7, 255]),
        ("uint8", (0, 51), [0, 17, 51, 200], [0, 85, 255, 255]),
        ("uint16", None, [0, 257, 65535], [0, 1, 255]),
        ("uint16", (0, 4095), [0, 2048, 4095, 65535], [0, 128, 255, 255]),
        ("int16", None, [-32768, 0, 32767], [0, 128, 255]),
        ("int16", (-100, 100), [-500, -100, 0, 100], [0, 0, 128, 255]),
        ("float32", (0, 1), [-1, 0, 0.5, 1, 2], [0, 0, 128, 255, 255]),
        ("float32", (0, 10000), [0, 5000, 10000], [0, 128, 255]),
    ],
)
def test_a_range_of_values_becomes_0_to_255(dtype, low_high, there, expected):
    array = np.array(there, dtype)[None, :, None].repeat(4, 0)
    for data in (npy(array), tiff(array[..., 0], planarconfig=None)):
        image = opened(data)
        found = pixels(image, size_as_seen(image, 1), bands=Bands(1, low_high))
        assert found.dtype == np.uint8
        assert found[0, :, 0].tolist() == expected


@pytest.mark.parametrize("array", [np.ones((4, 4), np.float32), np.full((4, 4), 70_000, np.int64)])
def test_values_without_a_usual_range_need_one(array):
    for data in (npy(array), tiff(array.astype(np.float32), planarconfig=None)):
        with pytest.raises(Unreadable, match=r"--data\.range LOW HIGH .*--data\.range auto"):
            pixels(opened(data), (4, 4))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_scaling_keeps_the_type_and_its_bounds(dtype):
    step = np.zeros((32, 32, 5), dtype)
    step[:, 16:] = 1 if dtype == "float32" else np.iinfo(dtype).max
    found = values(opened(tiff(step)), (12, 12))
    assert found.dtype == dtype
    assert found.shape == (12, 12, 5)
    assert np.allclose(found[:, :3], 0, atol=0.02 * float(step.max()))
    assert np.allclose(found[:, -3:], step.max(), atol=0.02 * float(step.max()))


class InMemory:
    """Images of bands by their files' bytes."""

    label_names = None

    def __init__(self, files):
        self.files = files

    def __len__(self):
        return len(self.files)

    def read(self, indices):
        return [open_image({"bytes": self.files[i], "path": None}) for i in indices]

    def where(self, index):
        return f"number {index}"


@pytest.mark.parametrize(("channels", "dtype"), [(1, "float32"), (3, "uint16"), (5, "uint8"), (13, "int16")])
def test_a_packed_file_keeps_type_channels_and_values(tmp_path, channels, dtype):
    arrays = [bands(channels, dtype, seed=seed) for seed in range(5)]
    splits = {"train": InMemory([npy(array) for array in arrays]), "test": InMemory([tiff(bands(2))])}
    pack(splits, tmp_path / "set.mpp", "here", progress=False)
    part = read_header(str(tmp_path / "set.mpp")).splits["train"]
    assert (part.dtype, part.channels) == (dtype, channels)
    packed = PackedImages(str(tmp_path / "set.mpp"), "train")
    np.testing.assert_array_equal(packed.arrays([3, 1]), [arrays[3], arrays[1]])
    for image, array in zip(packed.read(range(5)), arrays, strict=True):
        np.testing.assert_array_equal(values(image, (24, 20)), array)
    assert PackedImages(str(tmp_path / "set.mpp"), "test").arrays([0]).shape == (1, 24, 20, 2)


def test_packing_refuses_another_number_of_channels_and_names_the_file(tmp_path):
    files = InMemory([npy(bands(5)), npy(bands(4))])
    with pytest.raises(UserError, match=r"number 1 .*4 channels, and the others of the set have 5"):
        pack({"train": files}, tmp_path / "set.mpp", "here", progress=False)


def test_packing_brings_the_types_of_a_set_together_by_their_whole_ranges(tmp_path):
    files = InMemory([npy(np.full((4, 4, 1), 100, np.uint8)), npy(np.full((4, 4, 1), 25700, np.uint16))])
    pack({"train": files}, tmp_path / "set.mpp", "here", progress=False)
    assert (PackedImages(str(tmp_path / "set.mpp"), "train").arrays([0, 1]) == 100).all()
