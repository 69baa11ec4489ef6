"""What runs on labels say of the classes before they train."""

from __future__ import annotations

import pytest
from accelerate import Accelerator

from mpp.commands.labelled import closing_summary, tell_classes
from mpp.config.options import LabelledData
from mpp.data.splits import open_labelled, open_measured
from mpp.errors import Notice
from tests.helpers import put


@pytest.fixture(scope="module")
def accelerator():
    """One process."""
    return Accelerator(cpu=True)


def data_of(folder, images):
    """A set with so many images in each folder."""
    for name, count in images.items():
        for number in range(count):
            put(folder / name / f"{number}.png", number)
    return LabelledData(path=str(folder), cache=False)


def notices(recwarn):
    """What the user was warned of."""
    return [str(warning.message) for warning in recwarn if issubclass(warning.category, Notice)]


def test_the_classes_are_named_with_their_training_images(tmp_path, capsys, accelerator, recwarn):
    data = data_of(tmp_path, {"train/cat": 3, "train/dog": 2, "test/cat": 1, "test/dog": 1})
    tell_classes(data, *open_labelled(data, (8, 8), seed=0), accelerator)
    assert capsys.readouterr().out == "classes: cat 3, dog 2 (2)\n"
    data.labels = 2
    tell_classes(data, *open_labelled(data, (8, 8), seed=0), accelerator)
    assert capsys.readouterr().out == "classes: cat 1, dog 1 (2)\n"
    tell_classes(data, None, open_measured(data, (8, 8)), accelerator)
    assert capsys.readouterr().out == "classes: cat 1, dog 1 (2)\n"
    assert not notices(recwarn)


def test_more_classes_than_ten_are_shortened(tmp_path, capsys, accelerator):
    data = data_of(tmp_path, {f"{split}/c{n:02}": 1 for split in ("train", "test") for n in range(12)})
    tell_classes(data, *open_labelled(data, (8, 8), seed=0), accelerator)
    ten = ", ".join(f"c{n:02} 1" for n in range(10))
    assert capsys.readouterr().out == f"classes: {ten} and 2 more (12)\n"


def test_another_level_that_could_be_meant_is_named_with_the_option(tmp_path, accelerator):
    data = data_of(tmp_path, {"train/cat/2021": 1, "train/cat/2022": 1, "train/dog/2021": 1, "test/cat/2021": 1})
    said = r"at level 1 below the split \(cat, dog\), not those at level 2 \(2021, 2022\); --data.class-level 2 takes"
    with pytest.warns(Notice, match=said):
        tell_classes(data, *open_labelled(data, (8, 8), seed=0), accelerator)


@pytest.mark.parametrize("level", [1, 2])
def test_a_level_that_was_asked_for_is_not_questioned(tmp_path, accelerator, recwarn, level):
    data = data_of(tmp_path, {"train/cat/2021": 1, "train/cat/2022": 1, "train/dog/2021": 1, "test/cat/2021": 1})
    data.class_level = level
    tell_classes(data, *open_labelled(data, (8, 8), seed=0), accelerator)
    assert not notices(recwarn)


@pytest.mark.parametrize(
    ("train", "test", "says"),
    [
        (
            ["ant", "bee"],
            ["ant", "bee", "fly"],
            r"1 class is measured but has no training image, .*: fly \(2 images\)$",
        ),
        (["ant", "bee"], ["wasp", "fly"], r"2 classes are measured .*: fly \(2 images\), wasp \(2 images\)$"),
        (
            ["Ant", "bee"],
            ["ant", "bee"],
            r": ant \(2 images\); under another spelling there is Ant for ant: give a class",
        ),
        (["t-shirt", "bee"], ["T_Shirt", "bee"], r"spelling there is t-shirt for T_Shirt"),
    ],
)
def test_a_measured_class_without_a_training_image_is_named(tmp_path, accelerator, train, test, says):
    data = data_of(
        tmp_path, {f"{split}/{name}": 2 for split, names in (("train", train), ("test", test)) for name in names}
    )
    with pytest.warns(Notice, match=says):
        tell_classes(data, *open_labelled(data, (8, 8), seed=0), accelerator)


def test_two_unicode_forms_of_one_name_are_one_class(tmp_path, capsys, accelerator, recwarn):
    data = data_of(tmp_path, {"train/caf\u00e9": 2, "train/bar": 1, "test/cafe\u0301": 1, "test/bar": 1})
    tell_classes(data, *open_labelled(data, (8, 8), seed=0), accelerator)
    assert capsys.readouterr().out == "classes: bar 1, caf\u00e9 2 (2)\n"
    assert not notices(recwarn)


@pytest.mark.parametrize(("learnt", "told"), [(0.99, True), (0.6, False), (None, False)])
def test_a_training_accuracy_far_above_the_held_out_one_is_told(tmp_path, learnt, told):
    result = {"eval/top1": 0.4, "eval/top5": 0.9, "eval_images": 50, "classes": 2, "labels": 10, "train_top1": learnt}
    result |= {"per_class_top1": {"a": 0.3, "b": 0.5}, "unreadable_images": {}}
    said = closing_summary(result, "set", tmp_path, "title")
    assert ("training accuracy is 99.0%: the model knows its 10 labelled images by heart" in said) == told
