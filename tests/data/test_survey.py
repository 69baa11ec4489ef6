"""What a look at some images settles before training: how they are cropped."""

from __future__ import annotations

import pytest

from mpp.config.options import Augment
from mpp.console import call
from mpp.data.images import load_images
from mpp.data.survey import cropped
from tests.helpers import SMALL, flat, reset_accelerate


def images_of(folder, *sizes):
    """A set with an image of each size (height, width)."""
    folder.mkdir()
    for number, size in enumerate(sizes):
        flat(number, size).save(folder / f"{number}.png")
    return load_images(str(folder))


@pytest.mark.parametrize(
    ("sizes", "crop"),
    [
        ([(48, 64)], "resized"),
        ([(47, 64)], "pad"),  # 1.5 times the shorter side counts
        ([(32, 32), (32, 32), (300, 400)], "pad"),
        ([(32, 32), (300, 400), (200, 200)], "resized"),
    ],
)
def test_photos_are_cropped_at_random_and_small_images_shifted(tmp_path, capsys, sizes, crop):
    images = images_of(tmp_path / "set", *sizes)
    assert cropped(Augment(), images, (32, 32)).crop == crop
    assert ("cropped at random to 32 x 32" in capsys.readouterr().out) == (crop == "resized")
    assert cropped(Augment(crop="none"), images, (32, 32)).crop == "none"


def test_a_run_keeps_the_crop_that_it_found_and_goes_on_with_it(tmp_path):
    images_of(tmp_path / "set", *[(40, 50)] * 10)
    options = {name.removeprefix("--"): value for name, value in zip(SMALL[::2], SMALL[1::2], strict=True)}
    options |= {"data": tmp_path / "set", "output": tmp_path / "run", "resume": True}
    for steps in (2, 3):
        reset_accelerate()
        assert call("pretrain", options | {"train.steps": steps})["step"] == steps
        assert 'crop = "resized"' in (tmp_path / "run" / "config.toml").read_text()
