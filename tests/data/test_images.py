"""Sets of images from folders, parquet and `shapes`, and what their files become: uint8 RGB, or `Unreadable`."""

from __future__ import annotations

import io
import random
import re
import warnings

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps, features

from mpp.config.options import LabelledData
from mpp.data.decode import Unreadable, open_image, pixels, size_as_seen
from mpp.data.images import load_images
from mpp.data.packing import pack
from mpp.data.sources.path import is_stream, split_names
from mpp.data.sources.shapes import LABELS, Shapes
from mpp.data.splits import open_labelled
from mpp.errors import Notice, UserError
from tests.helpers import declared_png, encode, flat, noise, one_line, put, slopes, turned_file


def opened(data):
    """A file's bytes as a table would hand them over."""
    return open_image({"bytes": data, "path": None})


def decode(data, size, box=None):
    """A file's bytes to pixels; raises Unreadable wherever it comes to light."""
    image = opened(data)
    if isinstance(image, Unreadable):
        raise image
    return pixels(image, size, box)


def greys(images):
    """The grey of every image of a set of flat images, in order."""
    return [int(pixels(image, (8, 8))[0, 0, 0]) for image in images.read(range(len(images)))]


AVIF = ["AVIF"] if features.check("avif") else []  # not in every build of PIL


# Sets of images


def test_a_folder_with_class_folders_is_read_in_order_with_labels(tmp_path):
    for name, value in [("cat/0.png", 10), ("cat/1.png", 20), ("ant/0.png", 30), ("bee/0.png", 40)]:
        put(tmp_path / name, value)
    images = load_images(str(tmp_path))
    assert len(images) == 4
    assert images.label_names == ["ant", "bee", "cat"]
    assert greys(images) == [30, 40, 10, 20]
    assert images.labels(range(4)).tolist() == [0, 1, 2, 2]
    assert images.labels([3, 0]).tolist() == [2, 0]
    assert images.labels([0]).dtype == np.int64
    assert images.where(2) == str(tmp_path / "cat" / "0.png")
    assert split_names(str(tmp_path)) == ["train"]


def test_a_folder_behind_a_link_is_read(tmp_path):
    (tmp_path / "real").mkdir()
    Image.new("RGB", (8, 8), (200, 0, 0)).save(tmp_path / "real" / "a.png")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (image,) = load_images(str(tmp_path / "link")).read([0])
    assert image.getpixel((0, 0)) == (200, 0, 0)


def test_a_flat_folder_has_images_and_no_labels(tmp_path):
    for i in range(3):
        put(tmp_path / f"{i}.png", 10 * i)
    images = load_images(str(tmp_path))
    assert greys(images) == [0, 10, 20]
    assert images.label_names is None
    assert images.where(1) == str(tmp_path / "1.png")
    with pytest.raises(UserError) as error:
        images.labels([0])
    assert "put each class in a folder, or give a table of labels with --data.labels-file" in one_line(error)


def test_folders_called_train_and_validation_are_splits(tmp_path):
    for name, value in [("train/a/0.png", 1), ("train/b/0.png", 2), ("train/c/0.png", 3), ("validation/c/0.png", 4)]:
        put(tmp_path / name, value)
    assert split_names(str(tmp_path)) == ["train", "validation"]
    train, validation = (load_images(str(tmp_path), split) for split in ("train", "validation"))
    assert (greys(train), greys(validation)) == ([1, 2, 3], [4])
    assert train.label_names == validation.label_names == ["a", "b", "c"]
    assert (train.labels(range(3)).tolist(), validation.labels([0]).tolist()) == ([0, 1, 2], [2])
    assert validation.where(0) == str(tmp_path / "validation" / "c" / "0.png")


@pytest.mark.parametrize("folders", [("train", "validation"), ("train", "val"), ("training", "test")])
def test_split_folders_without_class_folders_have_no_labels(tmp_path, folders):
    for folder, value in zip(folders, (1, 2), strict=True):
        put(tmp_path / folder / "0.png", value)
    for split, value in zip(split_names(str(tmp_path)), (1, 2), strict=True):
        images = load_images(str(tmp_path), split)
        assert greys(images) == [value]
        assert images.label_names is None
        with pytest.raises(UserError) as error:
            images.labels([0])
        assert "has no labels; put each class in a folder" in one_line(error)


def test_a_class_called_like_a_split_is_a_class(tmp_path):
    """As in CIFAR-100, whose classes are called bus, train and so on."""
    for split in ("train", "test"):
        for number, name in enumerate(["bus", "test_tube", "train"]):
            put(tmp_path / split / name / f"{split}_{name}.png", number)
    assert split_names(str(tmp_path)) == ["train", "test"]
    for split in ("train", "test"):
        images = load_images(str(tmp_path), split)
        assert images.label_names == ["bus", "test_tube", "train"]
        assert (greys(images), images.labels(range(3)).tolist()) == ([0, 1, 2], [0, 1, 2])
        assert all(f"/{split}/" in images.where(i) for i in range(3))


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (["bus/0", "cat/0", "train/0"], {"train": 3}),  # classes, no split
        (["bus/0", "test_tube/0", "train/0"], {"train": 3}),
        (["unlabeled2017/0", "val2017/0", "test2017/0"], {"train": 1, "validation": 1, "test": 1}),
        (["images/0", "val/0"], {"train": 1, "validation": 1}),
        (["train-1", "train-2", "test-1", "mean"], {"train": 2, "test": 1}),
        (["images/train/0", "images/val/0", "test/0"], {"train": 1, "validation": 1}),
        (["a", "b", "steam-train-1"], {"train": 3}),
        (["train_1", "train_2", "test_1"], {"train": 2, "test": 1}),
        (["images/train/0", "images/val/0"], {"train": 1, "validation": 1}),
        (["Training/a/0", "Training/b/0", "Testing/a/0"], {"train": 2, "test": 1}),
        (["set [1]/train/a/0", "set [1]/test/a/0"], {"train": 1, "test": 1}),
        ([".hidden/0", "__MACOSX/0", "a/0"], {"train": 1}),
        (["seg_train/seg_train/a/0", "seg_test/seg_test/a/0", "seg_pred/seg_pred/0"], {"train": 1, "test": 1}),
        (["train/0", "train_labels/0", "val/0", "val_labels/0"], {"train": 1, "validation": 1}),
        (["train_images/0", "train_masks/0", "test_images/0", "test_masks/0"], {"train": 1, "test": 1}),
        (["leftImg8bit/train/0", "leftImg8bit/val/0", "gtFine/train/0", "gtFine/val/0"], {"train": 1, "validation": 1}),
        (["images/0", "images/1", "masks/0", "masks/1"], {"train": 2}),
        (["with_mask/0", "without_mask/0", "mask/0"], {"train": 3}),  # classes
        (["face/0", "face_mask/0", "other/0"], {"train": 3}),
        (["Train/a/0", "Validate/a/0", "Test/a/0"], {"train": 1, "validation": 1, "test": 1}),
        (["Train/a/0", "TEST/a/0", "Valid/a/0"], {"train": 1, "validation": 1, "test": 1}),
        (["trainImages/0", "holdoutImages/0"], {"train": 1, "test": 1}),
        (["images_train/0", "images_hold-out/0"], {"train": 1, "test": 1}),
        (["trainset/0", "devset/0"], {"train": 1, "validation": 1}),
        (["train2017/0", "val2017/0", "docs/0"], {"train": 1, "validation": 1}),
        (["train/0", "test/0", "bus/0", "car/0"], {"train": 4}),  # half of the folders have no such word
        (["train/a/0", "test/a/0", "bus/0", "car/0"], {"train": 1, "test": 1}),  # but here the splits share a class
        (["trainA/0", "trainB/0", "testA/0", "testB/0"], {"train": 2, "test": 2}),
        (["train/0", "train_extra/0", "val/0"], {"train": 1, "validation": 1}),
        (["training_data/train/0", "training_data/val/0"], {"train": 1, "validation": 1}),
        (["cat/train/0", "cat/test/0", "dog/train/0", "dog/test/0"], {"train": 2, "test": 2}),
        (["cat/0", "dog/0", "val/cat/0", "val/dog/0"], {"train": 2, "validation": 2}),
        (["cat/0", "dog/0", "test/0"], {"train": 3}),  # a class called test
        (["bus/0", "bus/1", "car/train/0", "car/test/0"], {"train": 4}),  # most images are in no such folder
        (["valid/0", "invalid/0"], {"train": 2}),
        (["bus/bus_0", "car/car_0", "car/car_1", "train/train_0", "car/car_test_drive"], {"train": 5}),
        (["a", "b", "c", "test_1"], {"train": 4}),
        (["cat/train_0", "dog/train_0", "cat/test_0", "dog/test_0"], {"train": 2, "test": 2}),
    ],
)
def test_folders_say_what_the_splits_are(tmp_path, files, splits):
    for file in files:
        put(tmp_path / f"{file}.png", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is left out, see below
        assert {split: len(load_images(str(tmp_path), split)) for split in split_names(str(tmp_path))} == splits


def test_masks_and_folders_beside_the_splits_are_counted_by_name(tmp_path):
    for file in ("seg_train/a/0", "seg_test/a/0", "seg_pred/0", "seg_pred/1", "seg_train_labels/0", "cover"):
        put(tmp_path / f"{file}.png", 1)
    with pytest.warns(UserWarning, match="4 files are left out") as said:
        assert split_names(str(tmp_path)) == ["train", "test"]
    (line,) = (str(warning.message) for warning in said)
    assert "labels, masks or predictions of the images beside them: 1 in seg_train_labels" in line
    assert "outside the folders of the splits train, test: 2 in seg_pred, 1 beside them" in line


@pytest.mark.parametrize(
    ("files", "level", "labels"),
    [
        (["train/cat/2021/0", "train/cat/2022/0", "train/dog/2021/0", "test/dog/2021/0"], None, ["cat", "cat", "dog"]),
        (["train/cat/2021/0", "train/cat/2022/0", "train/dog/2021/0"], 2, ["2021", "2022", "2021"]),
        (["cat/images/0", "dog/images/0"], None, ["cat", "dog"]),
        (["cat/0", "cat/more/deeper/0", "dog/0"], None, ["cat", "cat", "dog"]),
        (["photos/raw/cat/0", "photos/raw/dog/0"], None, ["cat", "dog"]),
        (["x/y/train/cat/0", "x/y/train/dog/0", "x/y/test/dog/0"], None, ["cat", "dog"]),
        (["train/train/cat/0", "train/train/dog/0", "test/cat/0", "test/dog/0"], None, ["cat", "dog"]),
        (["train/cat/0", "train/dog/0", "test/fly/0"], None, ["cat", "dog"]),
        (["train/cat/0", "train/dog/0", "val/images/0"], None, ["cat", "dog"]),
        (["cat/train/0", "cat/test/0", "dog/train/0", "dog/test/0"], None, ["cat", "dog"]),
        (["cat/train_0", "dog/train_0", "cat/test_0"], None, ["cat", "dog"]),
        (["cafe\u0301/0", "caf\u00e9/1", "bar/0"], None, ["bar", "caf\u00e9", "caf\u00e9"]),  # two forms of one name
    ],
)
def test_the_class_is_the_first_folder_below_the_split_or_the_level_asked_for(tmp_path, files, level, labels):
    for file in files:
        put(tmp_path / f"{file}.png", 1)
    images = load_images(str(tmp_path), class_level=level)
    assert [images.label_names[k] for k in images.labels(range(len(images)))] == labels


@pytest.mark.parametrize("level", [2, 9])
def test_a_class_level_without_folders_is_refused(tmp_path, level):
    for name in ("cat", "dog"):
        put(tmp_path / name / "images" / "0.png", 1)
    with pytest.raises(
        UserError, match=rf"--data.class-level {level}: at this level below the splits, .* does not have"
    ):
        load_images(str(tmp_path), class_level=level)


def test_a_class_level_of_a_table_is_refused(tmp_path):
    write_parquet(tmp_path / "a.parquet", image=encoded(1), label=[0])
    for path in ("shapes", str(tmp_path / "a.parquet")):
        with pytest.raises(
            UserError, match=r"--data.class-level 1: the classes of .* are not its folders; leave it out"
        ):
            load_images(path, class_level=1)


def test_a_folder_called_like_a_split_that_is_taken_for_none_is_named(tmp_path):
    for file in ("bus/0", "test_tube/0"):
        put(tmp_path / f"{file}.png", 1)
    with pytest.warns(UserWarning, match="the folder test_tube is named like a split, but"):
        assert load_images(str(tmp_path)).label_names == ["bus", "test_tube"]


def test_a_card_says_what_the_splits_are(tmp_path):
    for file in ("a/0", "b/0", "b/1"):
        put(tmp_path / f"{file}.png", 1)
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: a/*\n"
    (tmp_path / "README.md").write_text(card + "  - split: test\n    path: b/*\n---\n# A set\n")
    assert {split: len(load_images(str(tmp_path), split)) for split in split_names(str(tmp_path))} == {
        "train": 1,
        "test": 2,
    }


CARD = "---\nconfigs:\n- config_name: {}\n  data_files: {}\n- config_name: {}\n  data_files: {}\n---\n"


@pytest.mark.parametrize("card", ["README.md", ".huggingface.yaml"])
def test_a_set_with_several_configurations_is_read_by_name(tmp_path, card):
    for number, file in enumerate(("large/0", "small/0", "small/1")):
        put(tmp_path / f"{file}.png", number)
    text = CARD.format("large", "large/*", "small", "small/*")
    (tmp_path / card).write_text(text if card == "README.md" else text.strip("-\n"))
    assert greys(load_images(str(tmp_path), config="small")) == [1, 2]
    assert greys(load_images(str(tmp_path), config="large")) == [0]
    assert not is_stream(str(tmp_path), "small")
    with pytest.raises(UserError, match=r"several configurations: large, small; name one with --data.config"):
        load_images(str(tmp_path))
    with pytest.raises(UserError, match=r"no configuration medium; it has: large, small; name one with --data.config"):
        open_labelled(LabelledData(path=str(tmp_path), config="medium"), (8, 8), seed=0)


@pytest.mark.parametrize("kind", ["shapes", "folder", "parquet"])
def test_a_configuration_of_a_set_that_has_none_is_refused(tmp_path, kind):
    put(tmp_path / "photos" / "0.png", 1)
    write_parquet(tmp_path / "some.parquet", image=encoded(1))
    path = {"shapes": "shapes", "folder": str(tmp_path / "photos"), "parquet": str(tmp_path / "some.parquet")}[kind]
    with pytest.raises(UserError, match=r"--data.config small: .* has no configurations; leave it out"):
        load_images(path, config="small")


def test_the_configurations_of_a_set_on_the_hub_are_listed(monkeypatch):
    message = "Config name is missing.\nPlease pick one among the available configs: ['a', 'b']\nExample of usage: x"

    def load_dataset_builder(*_, **__):
        raise ValueError(message)

    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    with pytest.raises(UserError) as error:
        load_images("owner/several")
    assert "Please pick one among the available configs: ['a', 'b']" in one_line(error)
    assert "--data.config" in one_line(error)


def saved(folder, *splits):
    """Sets that `save_to_disk` writes: all splits in one, and each alone."""
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": [flat(1), flat(2)], "label": [0, 1]}
    every = datasets.DatasetDict({split: datasets.Dataset.from_dict(rows, kinds) for split in splits})
    every.save_to_disk(folder / "all")
    for split in splits:
        every[split].with_format("torch").save_to_disk(folder / split)


def test_a_set_that_was_saved_to_disk_is_read(tmp_path):
    saved(tmp_path, "train", "test")
    assert split_names(str(tmp_path / "all")) == ["train", "test"]
    for path, split in (("all", "train"), ("all", "test"), ("train", "train"), ("test", "train")):
        images = load_images(str(tmp_path / path), split)
        assert (greys(images), images.labels([0, 1]).tolist(), images.label_names) == ([1, 2], [0, 1], ["a", "b"])
    assert not is_stream(str(tmp_path / "test"))
    train, test = open_labelled(LabelledData(path=str(tmp_path / "all"), cache=False), (8, 8), seed=0)
    assert (len(train), len(test)) == (2, 2)


@pytest.mark.parametrize("damage", ["splits", "files", "link", "no state"])
def test_a_saved_set_that_leads_out_of_its_folder_or_is_damaged_is_named(tmp_path, damage):
    saved(tmp_path, "train", "test")
    folder, state = tmp_path / "all", tmp_path / "all" / "train" / "state.json"
    (arrow,) = (folder / "train").glob("*.arrow")
    if damage == "splits":
        (folder / "dataset_dict.json").write_text('{"splits": ["train", "../test"]}')
    elif damage == "files":
        state.write_text(state.read_text().replace(arrow.name, f"../../test/{arrow.name}"))
    elif damage == "link":
        arrow.unlink()
        arrow.symlink_to(tmp_path / "test" / arrow.name)
    else:
        state.unlink()
    with pytest.raises(UserError) as error:
        load_images(str(folder))
    assert str(folder) in one_line(error)
    assert damage == "no state" or "leads out of its folder" in one_line(error)


def test_a_folder_that_gets_another_split_has_it_at_once(tmp_path):
    put(tmp_path / "train" / "0.png", 1)
    assert split_names(str(tmp_path)) == ["train"]
    put(tmp_path / "test" / "0.png", 1)
    assert split_names(str(tmp_path)) == ["train", "test"]


def test_a_link_to_a_folder_is_named(tmp_path):
    put(tmp_path / "set" / "cat" / "0.png", 1)
    put(tmp_path / "dog" / "0.png", 1)
    (tmp_path / "set" / "dog").symlink_to(tmp_path / "dog")
    with pytest.warns(UserWarning, match=r"1 folder is left out: .*/set/dog \(a link to a folder"):
        assert len(load_images(str(tmp_path / "set"))) == 1


def test_files_that_are_left_out_are_counted_by_reason_in_one_line(tmp_path):
    for name in ("a/0.png", "a/.1.png", ".thumbnails/2.png", "__MACOSX/3.png"):
        put(tmp_path / name, 1)
    for name in ("a/photo", "a/scan.img", "a/scan2.img"):
        (tmp_path / name).write_bytes(encode(flat(1)))
    for name in ("a/LICENSE", "a/notes.txt", "a/.DS_Store", "pictures.zip"):
        (tmp_path / name).write_bytes(b"BMP1 a text")
    with pytest.warns(UserWarning, match="7 files are left out") as said:
        assert len(load_images(str(tmp_path))) == 1
    (line,) = (str(warning.message) for warning in said)
    for count, name, why in [(3, ".thumbnails/2.png", "hidden: "), (1, "a/photo", "an image, but no extension")]:
        assert re.search(rf"(, the first: |; {count} as ){tmp_path}/{name} \({why}", line), line
    assert f"2 as {tmp_path}/a/scan.img (an image, but .img is not a supported file type" in line
    assert f"{tmp_path}/pictures.zip (an archive; unpack it)" in line


def test_pages_and_frames_that_are_not_read_and_empty_files_are_counted(tmp_path):
    pages = [slopes(8, 8).rotate(90 * turn) for turn in range(3)]
    for name in ("0.tif", "1.gif", "2.webp", "3.png"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    put(tmp_path / "4.tif", 1)
    (tmp_path / "5.jpg").touch()
    with pytest.warns(Notice) as said:
        assert len(load_images(str(tmp_path))) == 6
    lines = [str(warning.message) for warning in said]
    assert lines == [
        f"1 image file is empty (0 bytes; --data.on-error skip passes over them): {tmp_path}/5.jpg",
        "4 files hold more than one page or frame; only the first of each is read, the first file: "
        f"{tmp_path}/0.tif (3)",
    ]


def test_what_lies_beside_the_splits_is_named(tmp_path):
    for file in ("train/0", "test/0", "unlabelled/0", "cover"):
        put(tmp_path / f"{file}.png", 1)
    with pytest.warns(UserWarning, match=r"2 files are left out, the first: .*/cover.png \(outside the folders of the"):
        assert len(load_images(str(tmp_path))) == 1


def test_an_image_beside_the_class_folders_is_named_where_labels_are_wanted(tmp_path):
    from mpp.config.options import LabelledData
    from mpp.data.splits import open_fitted

    for file in ("train/a/0", "train/b/0", "train/cover", "test/a/0"):
        put(tmp_path / f"{file}.png", 1)
    with pytest.raises(UserError) as error:
        open_fitted(LabelledData(str(tmp_path)), (8, 8), seed=0)
    assert f"at one depth, but {tmp_path}/train/cover.png and {tmp_path}/" in one_line(error)


@pytest.mark.skipif(not AVIF, reason="this PIL reads no AVIF")
def test_avif_is_found_in_folders(tmp_path):
    put(tmp_path / "0.png", 10)
    flat(20).save(tmp_path / "1.avif", quality=100)
    assert len(load_images(str(tmp_path))) == 2


def test_npy_is_found_in_folders(tmp_path):
    np.save(tmp_path / "0.npy", np.full((8, 8, 3), 70, np.uint8))
    assert greys(load_images(str(tmp_path))) == [70]


def test_parquet_written_by_datasets_keeps_its_classes(tmp_path):
    import datasets

    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "kind": datasets.ClassLabel(names=["zebra", "ant"]),
            "note": datasets.Value("string"),
        }
    )
    rows = {"picture": [flat(v) for v in (5, 6, 7)], "kind": [1, 0, 1], "note": ["x", "y", "z"]}
    path = str(tmp_path / "some.parquet")
    datasets.Dataset.from_dict(rows, features).to_parquet(path)
    images = load_images(path)
    assert split_names(path) == ["train"]
    assert greys(images) == [5, 6, 7]
    assert images.label_names == ["zebra", "ant"]
    assert images.labels([0, 1, 2]).tolist() == [1, 0, 1]
    assert images.where(2) == f"{path}, train row 2"


def write_parquet(path, /, **columns):
    """Plain parquet, with nothing that says what the columns mean."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def encoded(*values):
    """Flat PNGs as a column."""
    return [encode(flat(value)) for value in values]


def test_a_folder_of_plain_parquet_with_numbers_as_labels(tmp_path):
    write_parquet(tmp_path / "train-0.parquet", data=encoded(1, 2), label=[10, 2], id=["a", "b"])
    write_parquet(tmp_path / "train-1.parquet", data=encoded(3), label=[7], id=["c"])
    write_parquet(tmp_path / "validation-0.parquet", data=encoded(4), label=[10], id=["d"])
    assert split_names(str(tmp_path)) == ["train", "validation"]
    train, validation = (load_images(str(tmp_path), split) for split in ("train", "validation"))
    assert (greys(train), greys(validation)) == ([1, 2, 3], [4])
    assert train.label_names == ["2", "7", "10"]  # as numbers, not as text
    assert train.labels(range(3)).tolist() == [2, 0, 1]
    assert train.where(2) == f"{tmp_path}, train row 2"


@pytest.mark.parametrize(("labels", "names"), [([10, 2, 7], ["2", "7", "10"]), (["c", "a", "b"], ["a", "b", "c"])])
def test_a_class_has_the_same_number_in_a_split_that_lacks_others(tmp_path, labels, names):
    write_parquet(tmp_path / "train-0.parquet", image=encoded(1, 2, 3), label=labels)
    write_parquet(tmp_path / "test-0.parquet", image=encoded(4), label=labels[:1])
    train, test = (load_images(str(tmp_path), split) for split in ("train", "test"))
    assert train.label_names == test.label_names == names
    assert (train.labels(range(3)).tolist(), test.labels([0]).tolist()) == ([2, 0, 1], [2])


def test_words_are_labels_in_the_order_of_the_alphabet(tmp_path):
    path = tmp_path / "words.parquet"
    write_parquet(path, image=encoded(1, 2, 3), label=["dog", "cat", "dog"])
    images = load_images(str(path))
    assert images.label_names == ["cat", "dog"]
    assert images.labels(range(3)).tolist() == [1, 0, 1]


def test_a_row_without_a_label_is_named_when_labels_are_asked_for(tmp_path):
    path = tmp_path / "some.parquet"
    write_parquet(path, image=encoded(1, 2, 3), label=["dog", None, "cat"])
    images = load_images(str(path))
    assert images.labels([0, 2]).tolist() == [1, 0]
    with pytest.raises(UserError) as error:
        images.labels([0, 1])
    assert "train row 1 has no label" in one_line(error)


def as_classes(path, labels):
    """Write parquet whose labels are a ClassLabel of `datasets`, in which -1 stands for no label."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": [flat(value + 1) for value in range(len(labels))], "label": labels}
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)


def test_a_class_number_of_minus_one_is_no_label(tmp_path):
    as_classes(tmp_path / "train-0.parquet", [0, -1, 1])
    with pytest.raises(UserError, match="train row 1 has no label"):
        load_images(str(tmp_path)).labels(range(3))


def test_a_split_in_which_nothing_is_labelled_is_not_measured_on(tmp_path):
    for split, labels in {"train": [0, 1], "validation": [1, 0], "test": [-1, -1]}.items():
        as_classes(tmp_path / f"{split}-0.parquet", labels)
    assert load_images(str(tmp_path), "test").label_names is None
    train, measured = open_labelled(LabelledData(path=str(tmp_path), cache=False), (8, 8), seed=0)
    assert (train.labels(range(2)).tolist(), measured.labels(range(2)).tolist()) == ([0, 1], [1, 0])
    with pytest.raises(UserError, match="has no labels"):
        open_labelled(LabelledData(path=str(tmp_path), eval_split="test", cache=False), (8, 8), seed=0)

    splits = {split: load_images(str(tmp_path), split) for split in ("train", "test")}
    pack(splits, tmp_path / "set.mpp", "a source")
    packed = {split: load_images(str(tmp_path / "set.mpp"), split).label_names for split in splits}
    assert packed == {"train": ["a", "b"], "test": None}


@pytest.mark.parametrize("missing", [-1, None, float("nan")])
def test_a_missing_label_of_plain_parquet_is_no_class(tmp_path, missing):
    of = float if missing != missing else int
    write_parquet(tmp_path / "train-0.parquet", image=encoded(1, 2, 3), label=[of(0), of(5), of(3)])
    write_parquet(tmp_path / "validation-0.parquet", image=encoded(4, 5, 6), label=[of(5), of(0), of(3)])
    write_parquet(tmp_path / "test-0.parquet", image=encoded(6), label=pa.array([missing], pa.array([of(0)]).type))
    assert load_images(str(tmp_path), "test").label_names is None
    train, measured = open_labelled(LabelledData(path=str(tmp_path), cache=False), (8, 8), seed=0)
    assert train.label_names == [str(of(k)) for k in (0, 3, 5)]
    assert (train.labels(range(3)).tolist(), measured.labels(range(2)).tolist()) == ([0, 2, 1], [2, 0])


@pytest.mark.parametrize("labels", [[1, -1], [1, -1, 0], [-2, -1, 5]])
def test_minus_one_can_be_a_class(tmp_path, labels):
    write_parquet(tmp_path / "train-0.parquet", image=encoded(*range(len(labels))), label=labels)
    images = load_images(str(tmp_path))
    assert images.label_names == [str(label) for label in sorted(labels)]
    assert images.labels(range(len(labels))).tolist() == [sorted(labels).index(label) for label in labels]


def test_no_accuracy_is_measured_on_the_images_that_are_learnt(tmp_path):
    as_classes(tmp_path / "train-0.parquet", [0, 1])
    with pytest.raises(UserError, match=r"--data.eval-split train is the split that is trained on, too"):
        open_labelled(LabelledData(path=str(tmp_path), eval_split="train"), (8, 8), seed=0)
    with pytest.raises(UserError, match=r"no split test or validation\), and one a class leaves none; add images, or"):
        open_labelled(LabelledData(path=str(tmp_path)), (8, 8), seed=0)


def test_a_column_cannot_be_named_of_a_packed_file(tmp_path):
    as_classes(tmp_path / "train-0.parquet", [0, 1])
    pack({"train": load_images(str(tmp_path))}, tmp_path / "set.mpp", "a source")
    with pytest.raises(UserError, match="is packed and has no other columns: name columns when packing"):
        load_images(str(tmp_path / "set.mpp"), label_column="kind")


def test_columns_can_be_named(tmp_path):
    path = tmp_path / "two.parquet"
    write_parquet(path, first=encoded(1, 2), second=encoded(3, 4), label=[0, 1], kind=["b", "a"])
    assert greys(load_images(str(path), image_column="first")) == [1, 2]
    images = load_images(str(path), image_column="second", label_column="kind")
    assert greys(images) == [3, 4]
    assert images.label_names == ["a", "b"]
    assert images.labels([0, 1]).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({}, ["several", "first, second", "--data.image-column"]),
        ({"image_column": "third"}, ["--data.image-column third", "first, second, label"]),
        ({"image_column": "label"}, ["--data.image-column label", "no images", "first, second, label"]),
        ({"image_column": "first", "label_column": "kind"}, ["--data.label-column kind", "first, second, label"]),
    ],
)
def test_columns_that_do_not_fit_are_named_with_the_option_and_the_choice(tmp_path, columns, words):
    path = tmp_path / "two.parquet"
    write_parquet(path, first=encoded(1), second=encoded(2), label=[0])
    with pytest.raises(UserError) as error:
        load_images(str(path), **columns)
    assert all(word in one_line(error) for word in words)


def test_an_image_is_no_label(tmp_path):
    put(tmp_path / "0.png", 1)
    with pytest.raises(UserError) as error:
        load_images(str(tmp_path), label_column="image")
    assert "--data.label-column image" in one_line(error)


def test_a_table_without_images_is_named_with_its_columns(tmp_path):
    write_parquet(tmp_path / "words.parquet", text=["a"], label=[0])
    with pytest.raises(UserError) as error:
        load_images(str(tmp_path / "words.parquet"))
    assert "no image column among text, label" in one_line(error)


def test_a_table_without_rows_is_named(tmp_path):
    write_parquet(tmp_path / "none.parquet", image=pa.array([], pa.binary()))
    with pytest.raises(UserError) as error:
        load_images(str(tmp_path / "none.parquet"))
    assert f"--data.path {tmp_path / 'none.parquet'}" in one_line(error)


def test_a_missing_split_is_named_with_those_there_are(tmp_path):
    put(tmp_path / "train" / "0.png", 1)
    put(tmp_path / "test" / "0.png", 1)
    with pytest.raises(UserError) as error:
        load_images(str(tmp_path), "validation")
    message = one_line(error)
    assert "'validation'" in message
    assert "train, test" in message
    assert "--data.split" in message


def make_no_folder(root):
    """A path with nothing there."""
    return root / "nothing" / "here"


def make_empty_folder(root):
    """A folder with nothing inside."""
    (root / "empty").mkdir()
    return root / "empty"


def make_folder_of_empty_folders(root):
    """A folder whose class folders are empty."""
    (root / "empty" / "cat").mkdir(parents=True)
    return root / "empty"


def make_text_file(root):
    """A file that is neither folder nor parquet."""
    (root / "list.txt").write_text("cat.jpg")
    return root / "list.txt"


def make_folder_of_unknown_files(root):
    """A folder in which nothing is an image."""
    (root / "junk").mkdir()
    (root / "junk" / "a.xyz").write_text("hello")
    return root / "junk"


def make_damaged_parquet(root):
    """A file that is parquet in name only."""
    (root / "bad.parquet").write_text("hello")
    return root / "bad.parquet"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (make_no_folder, "does not exist"),
        (make_empty_folder, "empty folder"),
        (make_folder_of_empty_folders, "give a folder of images"),
        (make_text_file, "is a file that is neither parquet nor packed"),
        (make_folder_of_unknown_files, "give a folder of images"),
        (make_damaged_parquet, "give a folder of images"),
    ],
)
@pytest.mark.parametrize("ask", [load_images, split_names])
def test_a_path_without_images_is_named_in_one_line(tmp_path, make, reason, ask):
    path = str(make(tmp_path))
    with pytest.raises(UserError) as error:
        ask(path)
    message = one_line(error)
    assert f"--data.path {path}" in message
    assert reason in message


def test_a_hub_id_that_cannot_be_reached_is_named_in_one_line():
    with pytest.raises(UserError) as error:
        load_images("nobody/nothing")
    assert "--data.path nobody/nothing" in one_line(error)


def test_shapes_are_a_set_like_any_other():
    images = load_images("shapes", "validation", size=(24, 40), label_column="place")
    assert split_names("shapes") == ["train", "validation", "test"]
    assert images.label_names == LABELS["place"]
    assert len(images) == 10_000
    read = images.read([3, 5])
    expected = Shapes("validation", (24, 40)).read([3, 5])
    assert all(np.array_equal(pixels(a, (24, 40)), np.asarray(b)) for a, b in zip(read, expected, strict=True))
    assert load_images("shapes").label_names == LABELS["shape"]


@pytest.mark.parametrize(("options", "choice"), [({"split": "dev"}, "validation"), ({"label_column": "size"}, "count")])
def test_what_shapes_lacks_is_named_with_what_there_is(options, choice):
    with pytest.raises(UserError) as error:
        load_images("shapes", **options)
    message = one_line(error)
    assert next(iter(options.values())) in message
    assert choice in message


def test_damaged_files_of_a_folder_are_given_in_their_places(tmp_path):
    put(tmp_path / "0.png", 9)
    (tmp_path / "1.jpg").write_text("no image")
    (tmp_path / "2.jpg").write_bytes(b"")
    put(tmp_path / "3.png", 9)
    images = load_images(str(tmp_path))
    read = images.read(range(4))
    assert [isinstance(image, Unreadable) for image in read] == [False, True, True, False]
    assert images.where(1) == str(tmp_path / "1.jpg")


def test_a_file_that_went_away_is_unreadable(tmp_path):
    put(tmp_path / "0.png", 9)
    images = load_images(str(tmp_path))
    (tmp_path / "0.png").unlink()
    (image,) = images.read([0])
    assert isinstance(image, Unreadable)
    assert "No such file" in str(image)


def test_empty_rows_of_a_table_are_unreadable(tmp_path):
    path = tmp_path / "some.parquet"
    write_parquet(path, image=pa.array([encode(flat(1)), None], pa.binary()))
    images = load_images(str(path))
    good, empty = images.read([0, 1])
    assert isinstance(good, Image.Image)
    assert isinstance(empty, Unreadable)
    assert images.where(1) == f"{path}, train row 1"
    assert isinstance(open_image({"bytes": None, "path": None}), Unreadable)


# Pixels


def test_an_image_of_the_right_size_passes_bit_for_bit():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8))
    result = decode(encode(image), (24, 40))
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, np.asarray(image))


@pytest.mark.parametrize(
    ("mode", "value", "kind", "rgb"),
    [
        ("L", 77, "PNG", (77, 77, 77)),
        ("1", 1, "PNG", (255, 255, 255)),
        ("1", 0, "PNG", (0, 0, 0)),
        ("LA", (100, 255), "PNG", (100, 100, 100)),
        ("LA", (100, 0), "PNG", (255, 255, 255)),
        ("RGBA", (0, 100, 200, 255), "PNG", (0, 100, 200)),
        ("RGBA", (0, 100, 200, 128), "PNG", (127, 177, 227)),  # half over white
        ("RGBA", (0, 100, 200, 0), "WEBP", (255, 255, 255)),
        ("RGB", (1, 2, 3), "BMP", (1, 2, 3)),
        ("I;16", 65535, "PNG", (255, 255, 255)),
        ("I;16", 32768, "PNG", (128, 128, 128)),
        ("I;16", 256, "PNG", (1, 1, 1)),
        ("I;16", 32768, "TIFF", (128, 128, 128)),
        ("I", 65535, "TIFF", (255, 255, 255)),
        ("CMYK", (0, 0, 0, 255), "TIFF", (0, 0, 0)),
        ("CMYK", (0, 255, 255, 0), "TIFF", (255, 0, 0)),
        ("CMYK", (0, 255, 255, 0), "JPEG", (255, 0, 0)),
        ("L", 77, "JPEG", (77, 77, 77)),
        ("YCbCr", (128, 128, 128), "JPEG", (128, 128, 128)),
    ],
)
@pytest.mark.parametrize("size", [(6, 6), (3, 3)])
def test_every_mode_becomes_rgb(mode, value, kind, rgb, size):
    result = decode(encode(Image.new(mode, (6, 6), value), kind), size)
    assert result.shape == (*size, 3)
    assert result.dtype == np.uint8
    assert np.abs(result.astype(int) - rgb).max() <= 2 * (kind == "JPEG") + (mode == "RGBA")


def test_16_bit_grey_keeps_its_slope():
    grey = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    result = decode(encode(Image.fromarray(grey)), (16, 16))
    np.testing.assert_array_equal(result[..., 0].ravel(), np.arange(256))


def test_a_palette_keeps_its_colours_and_its_transparent_entry_becomes_white():
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "L").convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    expected = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [0, 255, 0]]])
    np.testing.assert_array_equal(decode(encode(image), (2, 2)), expected)
    expected[0, 0] = 255
    np.testing.assert_array_equal(decode(encode(image, transparency=0), (2, 2)), expected)
    np.testing.assert_array_equal(decode(encode(image, transparency=b"\x00\xff\xff"), (2, 2)), expected)
    np.testing.assert_array_equal(decode(encode(image, "GIF", transparency=0), (2, 2)), expected)


def test_a_grey_and_a_colour_can_be_declared_transparent():
    assert decode(encode(Image.new("L", (2, 2), 7), transparency=7), (2, 2)).min() == 255
    assert decode(encode(Image.new("RGB", (2, 2), (1, 2, 3)), transparency=(1, 2, 3)), (2, 2)).min() == 255


def test_floats_that_are_no_numbers_are_unreadable():
    with pytest.raises(Unreadable, match="finite"):
        decode(encode(Image.new("F", (2, 2), float("nan")), "TIFF"), (2, 2))


def test_of_an_animation_the_first_frame_is_taken():
    frames = [flat(value) for value in (10, 200, 90)]
    for kind in ("GIF", "WEBP", "PNG"):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        assert decode(data, (8, 8)).max() == 10


def test_webp_is_read_with_and_without_loss():
    image = slopes(40, 60)
    np.testing.assert_array_equal(decode(encode(image, "WEBP", lossless=True), (40, 60)), np.asarray(image))
    lossy = decode(encode(image, "WEBP", quality=90), (40, 60))
    assert np.abs(lossy.astype(int) - np.asarray(image)).mean() < 4


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3000, 10), (10, 3000), (1, 200), (200, 1)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_tiny_and_thin_images_are_scaled_to_size(height, width, kind):
    data = encode(flat(100, (height, width)), kind)
    for box in [None, (0, 0, min(height, width), min(height, width))]:
        result = decode(data, (32, 24), box)
        assert result.shape == (32, 24, 3)
        assert np.abs(result.astype(int) - 100).max() <= 1


@pytest.mark.parametrize(
    ("kind", "how"),
    [(kind, "exif") for kind in ("JPEG", "PNG", "TIFF", "WEBP", *AVIF)] + [("JPEG", "xmp"), ("WEBP", "xmp")],
)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_exif_says(kind, how, orientation):
    data = turned_file(slopes(40, 64), kind, orientation, how)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    size = upright.height, upright.width
    assert size == ((64, 40) if orientation >= 5 else (40, 64))
    assert size_as_seen(opened(data)) == size
    np.testing.assert_array_equal(decode(data, size), np.asarray(upright))
    box = (4, 2, 30, 22)
    expected = upright.resize((10, 12), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
    difference = decode(data, (12, 10), box).astype(int) - np.asarray(expected)
    assert np.abs(difference).max() <= (3 if kind == "JPEG" else 2)  # torch rounds otherwise than PIL


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_is_in_the_image_as_seen_when_the_decoder_shrinks_it(orientation):
    data = turned_file(slopes(800, 1203), "JPEG", orientation)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    box = (upright.width // 4, 101, upright.width // 4 + 390, 611)
    image = opened(data)
    result = pixels(image, (51, 39), box)
    assert max(image.size) < 700  # it was shrunk
    expected = upright.crop(box).resize((39, 51), Image.Resampling.BICUBIC)
    assert np.abs(result.astype(int) - np.asarray(expected)).mean() < 2


def test_damaged_exif_does_not_cost_the_image():
    for kind in ("JPEG", "WEBP", "PNG"):
        data = encode(slopes(10, 20), kind, exif=b"Exif\x00\x00MM\x00\x99broken")
        image = opened(data)
        assert size_as_seen(image) == (10, 20)
        assert pixels(image, (10, 20)).shape == (10, 20, 3)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_large_jpeg_is_shrunk_while_decoding_to_almost_the_same(mode):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8))
    scene = noise.resize((2000, 1500), Image.Resampling.BICUBIC).convert(mode)
    data = encode(scene, "JPEG", quality=90)
    image = opened(data)
    result = pixels(image, (32, 32))
    assert image.size[0] <= 500  # it was shrunk
    full = Image.open(io.BytesIO(data)).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)
    assert np.abs(result.astype(int) - np.asarray(full)).mean() < 2


def test_the_size_is_height_then_width_and_the_box_left_top_right_bottom():
    image = np.zeros((20, 40, 3), np.uint8)
    image[5:10, 30:40] = 255
    result = decode(encode(Image.fromarray(image)), (5, 10), (30, 5, 40, 10))
    assert result.shape == (5, 10, 3)
    assert result.min() == 255


# Damage


DAMAGED = {
    "empty": (b"", "not an image in a supported format"),
    "text": (b"these are only words, renamed to .jpg", "not an image in a supported format"),
    "half a jpeg": (encode(noise(64, 64), "JPEG")[:3000], "truncated"),
    "a tenth of a jpeg's header": (encode(noise(64, 64), "JPEG")[:60], "."),
    "half a png": (encode(noise(64, 64), "PNG")[:6000], "truncated"),
    "the start of a png": (encode(noise(64, 64), "PNG")[:60], "truncated"),
    "half a png header": (encode(noise(64, 64), "PNG")[:20], "."),
    "half a webp": (encode(noise(64, 64), "WEBP")[:1000], "."),
    "half a gif": (encode(noise(64, 64), "GIF")[:2000], "truncated"),
    "a png without pixels": (declared_png(64), "truncated"),
    "a decompression bomb": (declared_png(50_000), "exceeds limit"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damage_is_unreadable_with_a_reason_of_one_line(damage):
    data, reason = DAMAGED[damage]
    with pytest.raises(Unreadable, match=reason) as error:
        decode(data, (32, 32))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "kind"), [("cut.jpg", "JPEG"), ("cut.png", "PNG")])
@pytest.mark.parametrize("cut", [0.4, 0.95])
def test_a_truncated_jpeg_or_png_is_named_with_its_file(tmp_path, name, kind, cut):
    data = encode(noise(64, 64), kind)
    (tmp_path / name).write_bytes(data[: int(cut * len(data))])
    images = load_images(str(tmp_path))
    with pytest.raises(Unreadable, match="truncated"):
        pixels(images.read([0])[0], (32, 32))
    assert images.where(0) == str(tmp_path / name)


SAMPLES = {
    "jpeg": encode(slopes(40, 60), "JPEG"),
    "turned jpeg": turned_file(slopes(40, 60), "JPEG", 6),
    "progressive jpeg": encode(slopes(40, 60), "JPEG", progressive=True),
    "cmyk jpeg": encode(slopes(40, 60).convert("CMYK"), "JPEG"),
    "png": turned_file(slopes(40, 60), "PNG", 6),
    "palette png": encode(slopes(40, 60).convert("P"), "PNG", transparency=3),
    "gif": encode(slopes(40, 60), "GIF"),
    "webp": turned_file(slopes(40, 60), "WEBP", 6),
    "tiff": encode(slopes(40, 60), "TIFF"),
    "bmp": encode(slopes(40, 60), "BMP"),
    **{kind.lower(): turned_file(slopes(40, 60), kind, 6) for kind in AVIF},
}


def damaged(data, number, draw):
    """A file with its end cut off, or some bytes changed anywhere or near its start."""
    data = bytearray(data)
    if number % 3 == 0:
        del data[draw.randrange(len(data)) :]
        return bytes(data)
    reach = len(data) if number % 3 == 1 else min(200, len(data))
    for _ in range(draw.choice([1, 2, 5, 20])):
        data[draw.randrange(reach)] = draw.randrange(256)
    return bytes(data)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", SAMPLES)
def test_no_damage_raises_anything_but_unreadable(kind):
    draw = random.Random(kind)
    readable, reasons = 0, []
    for number in range(120):
        image = opened(damaged(SAMPLES[kind], number, draw))
        try:
            if isinstance(image, Unreadable):
                raise image
            if image.width * image.height < 4_000_000:  # larger ones only take time
                size_as_seen(image)
                assert pixels(image, (16, 24)).shape == (16, 24, 3)
                readable += 1
        except Unreadable as error:
            reasons.append(str(error))
    assert readable
    assert reasons
    assert all(reason and "\n" not in reason for reason in reasons)


@pytest.mark.parametrize("numbered", [True, False])
def test_two_unicode_forms_of_one_name_in_a_table_are_one_class(tmp_path, numbered):
    nfd, nfc = "cafe\u0301", "caf\u00e9"
    if numbered:
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=[nfd, "bar", nfc])})
        rows = {"image": [flat(1), flat(2), flat(3)], "label": [0, 1, 2]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    else:
        write_parquet(tmp_path / "a.parquet", image=encoded(1, 2, 3), label=[nfd, "bar", nfc])
    images = load_images(str(tmp_path / "a.parquet"))
    assert sorted(images.label_names) == ["bar", nfc]
    assert [images.label_names[k] for k in images.labels(range(3))] == [nfc, "bar", nfc]


def test_several_label_columns_do_not_matter_until_labels_are_wanted(tmp_path):
    path = tmp_path / "data.parquet"
    import datasets

    names = datasets.ClassLabel(names=["x", "y"])
    features = datasets.Features({"image": datasets.Image(), "fine": names, "coarse": names})
    rows = {"image": [{"bytes": data, "path": None} for data in encoded(1, 2)], "fine": [0, 1], "coarse": [1, 0]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    images = load_images(str(path))
    assert len(images.read([0, 1])) == 2
    with pytest.raises(UserError) as error:
        images.labels([0])
    assert "fine, coarse" in one_line(error)
    assert load_images(str(path), label_column="coarse").labels([0, 1]).tolist() == [1, 0]


# Tables beside the pictures, and tables of paths


def labels_of(path, split="train", **options):
    """Each image of a split by name, with its class."""
    images = load_images(str(path), split, **options)
    names = images.label_names
    found = images.labels(range(len(images))) if names else [None] * len(images)
    files = [images.where(i).rsplit("/", 1)[1] for i in range(len(images))]
    return {file: names[number] if names else None for file, number in zip(files, found, strict=True)}


def pictures(folder, *names):
    for value, name in enumerate(names):
        put(folder / name, value)


TRAIN, TEST = {"0.png": "a", "1.png": "b"}, {"2.png": "b", "3.png": "a"}


@pytest.mark.parametrize(
    "text",
    [
        "file_name,label\n{}",
        "file_name;label\n{}",
        "file_name\tlabel\n{}",
        "\ufefffile_name,label\r\n{}",
        "sep=;\nfile_name;label\n\n{}",
        '"file_name"|"label"\n{}',
    ],
)
@pytest.mark.parametrize("above", [True, False])
def test_metadata_is_read_whatever_separates_it_and_also_above_the_splits(tmp_path, text, above):
    mark = next(mark for mark in ";\t|," if mark in text)
    for split, labels in {"train": TRAIN, "test": TEST}.items():
        pictures(tmp_path / split, *labels)
    rows = {f"{split}/{name}": label for split, of in (("train", TRAIN), ("test", TEST)) for name, label in of.items()}
    for place in (".",) if above else ("train", "test"):
        own = {name.removeprefix(f"{place}/"): label for name, label in rows.items() if above or name.startswith(place)}
        (tmp_path / place / "metadata.csv").write_text(
            text.format("".join(map(f"{{}}{mark}{{}}\n".format, own, own.values())))
        )
    assert labels_of(tmp_path) == TRAIN
    assert labels_of(tmp_path, "test") == TEST
    assert greys(load_images(str(tmp_path))) == [0, 1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("image,label\n0.png,a\n", "has no column file_name (or *_file_name), which names the image of a row"),
        ("image;label\n0.png;a\n", "its columns are: image, label (separator: ';')"),
        ("image\tlabel\n0.png\ta\n", "its columns are: image, label (separator: a tab)"),
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("file_name,label\n", "has no rows; its columns are: file_name, label"),
        ("file_name,label\n0.png,a\n1.png,b,c\n", "has 3 values in line 3, but 2 columns: file_name, label"),
        ("file_name,label\n0.png,a\n1.png\n", "has 1 values in line 3, but 2 columns: file_name, label"),
        ("file_name,file_name\n0.png,a\n", "has two columns of one name"),
        ('file_name,label\n"0.png,a\n', "cannot be read (unexpected end of data)"),
        ("file_name,a\x1b[31m\n0.png,a,b\n", "file_name, a\\x1b[31m (separator"),
        ("file_name,label\nno.png,a\n", "no row of"),
        (b"file_name,label\n\xff.png,a\n", "is not text in UTF-8 (byte 16); save it in UTF-8"),
    ],
)
def test_metadata_that_cannot_be_read_is_named_with_the_cause(tmp_path, text, says):
    pictures(tmp_path, "0.png", "1.png")
    (tmp_path / "metadata.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    for ask in (load_images, lambda path: open_labelled(LabelledData(path), (8, 8), seed=0)):
        with pytest.raises(UserError) as error:
            ask(str(tmp_path))
        if ask is load_images:
            assert str(tmp_path / "metadata.csv") in one_line(error)
            assert says in one_line(error)


@pytest.mark.parametrize("text", ['{"image": "0.png"}\n', '{"file_name": "0.png"}\n{"file\n', "[1]\n", ""])
def test_damaged_jsonl_metadata_is_named(tmp_path, text):
    pictures(tmp_path, "0.png")
    (tmp_path / "metadata.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"metadata.jsonl .*(no column file_name|line 2|no object in line 1|no rows)"):
        load_images(str(tmp_path))


def test_images_without_a_row_and_rows_without_an_image_are_counted(tmp_path):
    pictures(tmp_path, *(f"{i}.png" for i in range(5)))
    (tmp_path / "metadata.csv").write_text("file_name,label\n3.png,a\n1.png,b\n9.png,a\n1.png,b\n")
    with pytest.warns(UserWarning, match="left out") as told:
        assert labels_of(tmp_path) == {"3.png": "a", "1.png": "b"}
    text = "\n".join(str(warning.message) for warning in told)
    table = tmp_path / "metadata.csv"
    assert f"left out: 3 images of split train without a row in {table}, the first: {tmp_path}/0.png" in text
    assert f"left out: 1 row of {table} without an image in the set, the first: 9.png" in text
    assert f"1 image named by more than one row of {table}, the first: 1.png" in text


@pytest.mark.parametrize("kind", ["id.csv", "name.tsv", "path.jsonl", "path.parquet", "no header.txt", "spaces.txt"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_labels_lie_in_a_file_beside_the_pictures(tmp_path, kind):
    for split, labels in {"train": TRAIN, "test": TEST}.items():
        pictures(tmp_path / split, *labels)
    file = tmp_path / f"labels{kind[-8:]}".replace(" ", "_")
    every = {f"{split}/{name}": label for split, of in (("train", TRAIN), ("test", TEST)) for name, label in of.items()}
    if kind == "path.parquet":
        write_parquet(file, image=list(every), breed=list(every.values()))
    elif kind == "path.jsonl":
        file.write_text("".join(f'{{"breed": "{label}", "where": "{path}"}}\n' for path, label in every.items()))
    elif kind == "id.csv":
        file.write_text("id,breed\n" + "".join(f"{path[-5]},{label}\n" for path, label in every.items()))
    elif kind == "name.tsv":
        file.write_text("breed\tname\n" + "".join(f"{label}\t{path[-5:]}\n" for path, label in every.items()))
    else:
        mark = " " if kind == "spaces.txt" else "\t"
        file.write_text("".join(f"{path[-5:]}{mark}{label}\n" for path, label in every.items()))
    with pytest.raises(UserError) as error:
        open_labelled(LabelledData(path=str(tmp_path)), (8, 8), seed=0)
    assert f"{file.name} lies beside: --data.labels-file {file}" in one_line(error)
    assert labels_of(tmp_path, labels_file=str(file)) == TRAIN
    assert labels_of(tmp_path, "test", labels_file=file.name) == TEST


def test_the_label_column_of_a_labels_file_is_chosen_by_name(tmp_path):
    pictures(tmp_path, *TRAIN)
    (tmp_path / "l.csv").write_text("id,breed,sex\n0,a,f\n1,b,m\n")
    with pytest.raises(UserError, match=r"--data.label-column must name .*; besides id, .* has: id, breed, sex"):
        labels_of(tmp_path, labels_file="l.csv")
    with pytest.raises(UserError, match=r"--data.label-column age is none of .* has: id, breed, sex"):
        labels_of(tmp_path, labels_file="l.csv", label_column="age")
    assert labels_of(tmp_path, labels_file="l.csv", label_column="sex") == {"0.png": "f", "1.png": "m"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b\nx,y\n", "has no column that names images of"),
        ("id,label\n0,x\n../../y.png,z\n", "leads out of"),
        ("id,label\n0,x\nhttps://host/y.png,z\n", "leads out of"),
        ("id,label\n0,x\n1,z\n", "0 in .* names several images"),
    ],
)
def test_a_labels_file_that_does_not_fit_is_named(tmp_path, text, says):
    pictures(tmp_path / "train", *(["0.png"] if "several" not in says else ["x/0.png", "y/0.png", "y/1.png"]))
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(UserError, match=says) as error:
        load_images(str(tmp_path), labels_file=str(tmp_path / "l.csv"))
    assert str(tmp_path / "l.csv") in one_line(error)
    with pytest.raises(UserError, match=r"--data.labels-file n.csv does not exist, nor does .*/n.csv"):
        load_images(str(tmp_path), labels_file="n.csv")


def several_labels_in(root, kind):
    """A set with several labels an image; returns its path and options."""
    if kind in ("lists", "flags"):
        own = {"label": [["a"], ["a", "b"]]} if kind == "lists" else {"cat": [0, 1], "dog": [True, True]}
        write_parquet(root / "set" / "train-0.parquet", image=encoded(1, 2), **own)
        write_parquet(root / "set" / "test-0.parquet", image=encoded(3, 4), **own)
        return root / "set", {}
    for split in ("train", "test"):
        pictures(root / split, f"{split}0.png", f"{split}1.png")
    names = [f"{split}{i}" for split in ("train", "test") for i in (0, 1)]
    rows = {
        "lists in jsonl": '{{"id": "{0}", "label": ["a", "b"]}}',
        "flags in csv": "{0},1,0",
        "twice": "{0},a\n{0},b",
    }
    head = {"lists in jsonl": "", "flags in csv": "id,cat,dog\n", "twice": "id,breed\n"}
    file = root / ("l.jsonl" if "jsonl" in kind else "l.csv")
    file.write_text(head[kind] + "\n".join(map(rows[kind].format, names)) + "\n")
    return root, {"labels_file": str(file)}


@pytest.mark.parametrize("kind", ["lists", "flags", "lists in jsonl", "flags in csv", "twice"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_several_labels_an_image_are_refused(tmp_path, kind):
    path, options = several_labels_in(tmp_path, kind)
    with pytest.raises(UserError) as error:
        open_labelled(LabelledData(path=str(path), **options), (8, 8), seed=0)
    assert "several labels an image are not supported" in one_line(error)
    if kind != "flags in csv":
        assert len(load_images(str(path), **options)) == 2  # to pretrain on
    if kind.startswith("lists"):
        with pytest.raises(UserError, match="several labels an image are not supported"):
            load_images(str(path), label_column="label", **options).labels([0])


def test_a_split_without_rows_keeps_its_class_folders(tmp_path):
    for name in ("train/a/0.png", "train/b/1.png", "val/2.png", "val/3.png"):
        put(tmp_path / name, 1)
    (tmp_path / "val.txt").write_text("2.png\tb\n3.png\ta\n")
    with pytest.warns(
        UserWarning, match="no image of split train has a row in .*val.txt; their folders are their classes"
    ):
        assert labels_of(tmp_path, "validation", labels_file="val.txt") == TEST


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl", "folder"])
def test_paths_in_a_table_are_relative_to_the_table(tmp_path, monkeypatch, kind):
    for split in ("train", "test"):
        pictures(tmp_path / "set" / split / "img", "0.png", "1.png")
    put(tmp_path / "elsewhere" / "img" / "0.png", 99)
    paths = ["img/1.png", "img/0.png"]
    if kind in ("parquet", "folder"):
        for split in ("train", "test") if kind == "folder" else ("train",):
            write_parquet(tmp_path / "set" / split / f"{split}.parquet", path=paths, label=[1, 0])
        card = "---\nconfigs:\n- config_name: default\n  data_files:\n"
        card += "".join(f"  - split: {split}\n    path: {split}/*.parquet\n" for split in ("train", "test"))
        (tmp_path / "set" / "README.md").write_text(f"{card}---\n")  # else it is a folder of images
    elif kind == "csv":
        (tmp_path / "set" / "train" / "train.csv").write_text("path,label\nimg/1.png,1\nimg/0.png,0\n")
    else:
        rows = '{"path": "img/1.png", "label": 1}\n{"path": "img/0.png", "label": 0}\n'
        (tmp_path / "set" / "train" / "train.jsonl").write_text(rows)
    path = tmp_path / "set" if kind == "folder" else tmp_path / "set" / "train" / f"train.{kind}"
    monkeypatch.chdir(tmp_path / "elsewhere")
    for split in split_names(str(path)):
        images = load_images(str(path), split)
        assert greys(images) == [1, 0]
        assert images.labels([0, 1]).tolist() == [1, 0]
        assert images.where(0) == str(tmp_path / "set" / split / "img" / "1.png")
    monkeypatch.chdir(tmp_path)
    assert greys(load_images(str(path.relative_to(tmp_path)))) == [1, 0]


def test_numbers_with_a_fraction_are_told_as_classes_and_refused_if_they_are_measurements(tmp_path):
    write_parquet(tmp_path / "few" / "train-0.parquet", image=encoded(*range(8)), label=[0.5, 1.5] * 4)
    with pytest.warns(UserWarning, match="column label of .* makes 2 classes from 8 values, which are numbers"):
        assert load_images(str(tmp_path / "few")).label_names == ["0.5", "1.5"]
    write_parquet(
        tmp_path / "many" / "train-0.parquet", image=encoded(*range(8)), label=[20.5 + i // 2 for i in range(8)]
    )
    write_parquet(tmp_path / "many" / "test-0.parquet", image=encoded(*range(2)), label=[7.25, 1.5])
    with pytest.raises(UserError) as error:
        open_labelled(LabelledData(path=str(tmp_path / "many")), (8, 8), seed=0)
    assert "makes 6 classes from 10 values: these are measurements, and regression is not supported" in one_line(error)
    assert len(load_images(str(tmp_path / "many"))) == 8  # to pretrain on


def test_names_from_a_table_are_printable(tmp_path):
    write_parquet(tmp_path / "t.parquet", image=encoded(1, 2), label=["a\x1b[31m", "b\nc"])
    assert load_images(str(tmp_path / "t.parquet")).label_names == ["a\\x1b[31m", "b\\nc"]
    write_parquet(tmp_path / "u.parquet", image=encoded(1), **{"x\x1b[2J\u202e": [1]})
    with pytest.raises(UserError) as error:
        load_images(str(tmp_path / "u.parquet"), label_column="none")
    assert "x\\x1b[2J\\u202e" in one_line(error)
    with pytest.raises(UserError) as error:
        load_images(str(tmp_path / "u.parquet")).labels([0])
    assert "x\\x1b[2J\\u202e" in one_line(error)
