"""The command `dense`, as a user runs it, on the built-in scenes and on folders of images with masks."""

from __future__ import annotations

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import mpp
from mpp.commands.dense import run_dense
from mpp.config import Dense
from mpp.data.maps import IGNORED, open_mapped
from mpp.errors import UserError
from mpp.figures.dense import colours_of
from tests.helpers import one_line, reset_accelerate

SMALL = {"model.img_size": 16, "model.depth": 1, "model.embed_dim": 32, "model.num_heads": 2, "neighbours": 5}
CLASSES = ["grass", "sky", "sun"]


def dense(output, **options):
    reset_accelerate()
    return mpp.dense(SMALL | {"output": str(output)} | options)


def scene(rng, height, width):
    """An image of green grass below blue sky with a yellow sun, its classes, and its depths in millimetres."""
    y, x = np.mgrid[:height, :width]
    mask = np.where(y < rng.uniform(0.3, 0.7) * height, 1, 0)
    centre = rng.uniform(0, 0.3) * height, rng.uniform(0.2, 0.8) * width
    mask[np.hypot(y - centre[0], x - centre[1]) < 0.2 * height] = 2
    image = np.array([[30, 160, 40], [60, 120, 220], [250, 220, 40]])[mask]
    image = np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)
    return image, mask.astype(np.uint8), np.array([2000, 9000, 60000], np.uint16)[mask]


def folder(root, counts, above=True, size=(24, 32)):
    """A set with so many images a split: split/images and split/masks (or images/split), depths in `depth`."""
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for number in range(count):
            image, mask, depth = scene(rng, *size)
            palette = Image.fromarray(mask)
            palette.putpalette([0, 200, 0, 0, 0, 200, 250, 250, 0])
            for kind, picture in {"images": image, "masks": palette, "depth": depth}.items():
                at = root / split / kind if above else root / kind / split
                at.mkdir(parents=True, exist_ok=True)
                picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
                picture.save(at / f"{number}.{'bmp' if kind == 'images' else 'png'}")
    return root


def test_shapes_are_segmented_with_sheet_tables_tensorboard_and_a_summary(tmp_path, capsys):
    found = dense(tmp_path / "out", images=40, eval_images=12, **{"data.label_column": "colour"})
    written = json.loads((tmp_path / "out" / "result.json").read_text())
    assert written["eval/miou"] == found["eval/miou"]
    assert list(written["per_class_iou"]) == [
        "background",
        *mpp.load_images("shapes", label_column="colour").label_names,
    ]
    ious = [value for value in written["per_class_iou"].values() if value is not None]
    assert np.mean(ious) == pytest.approx(written["eval/miou"])
    for name in ("", "knn_", "raw_", "raw_knn_", "constant_", "ceiling_"):
        low, high = written[f"eval/{name}miou_interval"]
        assert 0 <= low <= high <= 1
        assert 0 <= written[f"eval/{name}pixel_accuracy"] <= 1
    assert written["eval/ceiling_miou"] > max(written["eval/miou"], written["eval/constant_miou"])
    assert (written["images"], written["eval_images"], written["patches"]) == (40, 12, [4, 4])
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert min(sheet.size) > 500
    rows = list(csv.DictReader((tmp_path / "out" / "per_class_iou.csv").open()))
    assert len(rows) == 9
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    events.Reload()
    assert events.Scalars("eval/miou")[0].value == pytest.approx(written["eval/miou"])
    assert "dense/sheet" in events.Tags()["images"]
    said = capsys.readouterr().out
    for words in ("linear layer", "k-NN", "raw pixels", "commonest class", "true patches", "95 % interval"):
        assert words in said
    again = dense(tmp_path / "again", images=40, eval_images=12, **{"data.label_column": "colour"})
    same = [key for key in found if key.startswith("eval/")]
    assert [again[key] for key in same] == [found[key] for key in same]


def test_the_order_of_shapes_is_measured_as_depth(tmp_path):
    found = dense(tmp_path / "out", images=40, eval_images=12, task="depth")
    assert 0 < found["eval/ceiling_depth_rmse"] < found["eval/depth_rmse"] < 1
    assert found["eval/depth_rmse"] < 1.1 * found["eval/constant_depth_rmse"]
    assert 0 <= found["eval/depth_delta1"] <= 1
    assert "per_class_iou" not in found


@pytest.mark.parametrize("above", [True, False], ids=["train/images", "images/train"])
def test_a_folder_with_masks_is_segmented_and_its_colours_tell_the_classes(tmp_path, above):
    root = folder(tmp_path / "set", {"train": 30, "val": 8}, above)
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    found = dense(tmp_path / "out", **{"data.path": str(root)})
    assert (found["images"], found["eval_images"]) == (30, 8)
    assert list(found["per_class_iou"]) == CLASSES
    assert found["eval/raw_miou"] > 0.7  # three plain colours
    assert found["eval/miou"] > 0.6
    assert found["eval/constant_miou"] < 0.3


def test_depths_in_files_are_measured_in_their_unit_where_something_was_measured(tmp_path):
    root = folder(tmp_path / "set", {"train": 20, "val": 6})
    for file in root.glob("*/depth/*.png"):
        depth = np.asarray(Image.open(file)).copy()
        depth[:3] = 0  # nothing measured there
        Image.fromarray(depth).save(file)
    options = {"data.path": str(root), "task": "depth", "masks": "depth"}
    metres = dense(tmp_path / "m", depth_unit=0.001, **options)
    assert metres["eval/depth_rmse"] < 0.8 * metres["eval/constant_depth_rmse"]
    assert 1 < metres["eval/constant_depth_rmse"] < 40  # of 2, 9 and 60 m
    config = Dense(task="depth", masks="depth", depth_unit=0.001)
    config.data.path = str(root)
    train, _, names = open_mapped(config, config.data, (16, 16))
    first = train.map(0, (24, 32))
    assert names == []
    assert np.isnan(first[:3]).all()
    np.testing.assert_allclose(np.unique(first[3:]), [2, 9, 60], rtol=1e-6)


def test_without_splits_a_fifth_is_held_out_and_the_middle_of_a_wide_image_is_seen(tmp_path):
    root = folder(tmp_path / "set", {".": 20}, size=(12, 20))
    config = Dense()
    config.data.path = str(root)
    train, test, names = open_mapped(config, config.data, (16, 16))
    assert (len(train), len(test)) == (16, 4)
    assert names == ["class 0", "class 1", "class 2"]
    assert not set(train.numbers) & set(test.numbers)
    whole = np.asarray(Image.open(root / "masks" / f"{open_name(train, 0)}.png"))
    np.testing.assert_array_equal(train.map(0, (16, 16)), whole[:, 4:16])
    np.testing.assert_array_equal(train.map(0, (12, 20)), whole)
    again = open_mapped(Dense(seed=5, data=config.data), config.data, (16, 16))[1]
    assert set(again.numbers) == set(test.numbers)  # the same for every seed


def open_name(mapped, place):
    """The name of an image's file, without its extension."""
    return mapped.images.where(place).rpartition("/")[2].removesuffix(".bmp")


def test_pixels_with_the_ignored_value_count_for_nothing(tmp_path):
    root = folder(tmp_path / "set", {".": 8})
    for file in (root / "masks").glob("*.png"):
        mask = np.asarray(Image.open(file)).copy()
        mask[:, :5] = 255
        Image.fromarray(mask).save(file)
    config = Dense()
    config.data.path = str(root)
    train, _, names = open_mapped(config, config.data, (24, 32))
    assert len(names) == 3
    assert (train.map(0, (24, 32))[:, :5] == IGNORED).all()
    assert (train.map(0, (24, 32))[:, 5:] >= 0).all()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda root: (root / "masks/3.png").unlink(), r"1 image without a mask, .*images/3\.bmp; .*masks/3\.png"),
        (
            lambda root: Image.new("L", (9, 9)).save(root / "masks/2.png"),
            r"masks/2\.png is 9 x 9, and its image .* 32 x 24",
        ),
        (lambda root: Image.new("RGB", (32, 24)).save(root / "masks/2.png"), r"masks/2\.png is a colour picture"),
        (
            lambda root: Image.new("L", (32, 24), 7).save(root / "masks/2.png"),
            r"masks/2\.png has class 7, and by classes",
        ),
        (lambda root: (root / "masks/2.png").write_bytes(b"no"), r"masks/2\.png could not be read"),
        (lambda root: (root / "classes.txt").write_text("all\n"), r"one class only"),
    ],
    ids=["no mask", "another size", "colours", "beyond the names", "damaged", "one class"],
)
def test_a_mask_that_cannot_be_right_is_named_in_one_line(tmp_path, spoil, says):
    root = folder(tmp_path / "set", {".": 8})
    (root / "classes.txt").write_text("\n".join(CLASSES))
    spoil(root)
    with pytest.raises(UserError, match=says) as error:
        dense(tmp_path / "out", **{"data.path": str(root)})
    one_line(error)
    assert not (tmp_path / "out" / "result.json").exists()


def test_what_cannot_work_is_refused_before_anything_is_computed(tmp_path):
    with pytest.raises(UserError, match=r"--layer 3 is none of: last, 1 to 1"):
        dense(tmp_path / "out", layer="3")
    with pytest.raises(UserError, match=r"--images 2000000: the patches of 100,000 images take .*; --images \d+ fits"):
        dense(tmp_path / "out", images=2_000_000, **{"model.embed_dim": 1024})
    with pytest.raises(UserError, match=r"one process, not 2: leave --processes out"):
        run_dense(Dense(), SimpleNamespace(num_processes=2))


def test_the_colours_of_classes_differ():
    assert len({tuple(colour) for colour in colours_of(60).round(4)}) > 55


@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_a_dry_run_says_what_it_would_take_and_writes_nothing(tmp_path, capsys, task):
    found = dense(tmp_path / "out", images=40, eval_images=12, task=task, dry_run=True)
    said = capsys.readouterr().out
    assert "40 to fit on, 12 to measure on" in said
    assert "nothing is written into" in said
    assert found["seconds"] > 0
    assert found["dry_run"]
    assert not (tmp_path / "out").exists()
