"""Order, shares and batches: the same samples and pixels on any number of processes, workers and parts of a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mpp.data.augment import View
from mpp.data.bands import Bands
from mpp.data.decode import Unreadable
from mpp.data.images import Subset, load_images
from mpp.data.loader import SampleReader, Samples, Share, TrainOrder, eval_loader, train_loader
from mpp.data.randomness import Numbers, Purpose, Use
from mpp.data.sources.shapes import Shapes
from mpp.errors import UserError

VIEW = View((16, 16), crop="resized", pad=2, scale=(0.3, 1.0), flip=0.5)


def draw_numbers(numbers):
    """Draws of a job that needs one number a sample."""
    return {"number": torch.from_numpy(numbers.uniform(Use.FATES, 1)[:, 0])}


def reader_of(images, view=VIEW, replace=True, labels=True, seed=0):
    """A reader of training samples."""
    return SampleReader(images, view, draw_numbers, seed, Purpose.TRAIN, labels, replace)


def samples(indices, step=0, first=0):
    """The images `indices`, at the places of a batch from `first` on."""
    return Samples(np.asarray(indices), step, range(first, first + len(indices)))


def samples_of(order):
    """All samples of an order, in one list: index, step, place of each."""
    return [(i, s.step, place) for s in order for i, place in zip(s.indices.tolist(), s.places, strict=True)]


def at(batch, place):
    """What a batch holds of one of its samples, as plain values."""
    return {key: value[place].tolist() for key, value in batch.items() if isinstance(value, torch.Tensor)}


def grey_folder(root, count, damaged=()):
    """A folder of flat 16 x 16 images, the i-th of grey i, some of them no images."""
    for i in range(count):
        if i in damaged:
            (root / f"{i:03}.png").write_text("no image")
        else:
            Image.new("L", (16, 16), i).save(root / f"{i:03}.png")
    return load_images(str(root))


def same(one, other):
    """Whether two batches are equal in all their parts."""
    assert one.keys() == other.keys()
    return all(torch.equal(v, other[k]) if isinstance(v, torch.Tensor) else v == other[k] for k, v in one.items())


# Order


@pytest.mark.parametrize(("num_images", "batch_size"), [(10, 4), (12, 4), (7, 7), (3, 8), (1, 4)])
def test_every_epoch_has_each_image_once_across_the_borders_of_steps(num_images, batch_size):
    steps = 4 * num_images  # so that epochs end both within steps and between them
    indices = [index for index, *_ in samples_of(TrainOrder(num_images, 0, Share(batch_size), 0, steps))]
    assert len(indices) == steps * batch_size
    for start in range(0, len(indices) - num_images + 1, num_images):
        assert sorted(indices[start : start + num_images]) == list(range(num_images))


def test_epochs_have_different_orders_and_so_have_seeds():
    orders = [[index for index, *_ in samples_of(TrainOrder(50, seed, Share(50), 0, 3))] for seed in (0, 1)]
    epochs = {tuple(order[i : i + 50]) for order in orders for i in (0, 50, 100)}
    assert len(epochs) == 6
    again = [index for index, *_ in samples_of(TrainOrder(50, 1, Share(50), 0, 3))]
    assert again == orders[1]


def test_samples_know_their_step_and_their_place_in_the_global_batch():
    found = samples_of(TrainOrder(10, 0, Share(4), 2, 5))
    assert [(step, place) for _, step, place in found] == [(step, place) for step in (2, 3, 4) for place in range(4)]


@pytest.mark.parametrize("num_images", [100, 13, 5])
@pytest.mark.parametrize(("world_size", "accumulate"), [(2, 2), (1, 4), (4, 1), (2, 1)])
def test_processes_and_accumulation_share_out_the_batches_of_one_process(num_images, world_size, accumulate):
    alone = samples_of(TrainOrder(num_images, 3, Share(8), 0, 6))
    shares = [Share(8, rank, world_size, accumulate) for rank in range(world_size)]
    orders = [list(TrainOrder(num_images, 3, share, 0, 6)) for share in shares]
    assert {len(order) for order in orders} == {6 * accumulate}
    assert {len(micro) for order in orders for micro in order} == {8 // (world_size * accumulate)}
    shared = [sample for order in orders for sample in samples_of(order)]
    assert sorted(shared, key=lambda sample: sample[1:]) == alone


@pytest.mark.parametrize("share", [Share(8), Share(8, 1, 2, 2)])
@pytest.mark.parametrize("num_images", [100, 8, 3])
def test_an_order_from_step_5_is_the_rest_of_one_from_0(num_images, share):
    whole = list(TrainOrder(num_images, 0, share, 0, 9))
    rest = TrainOrder(num_images, 0, share, 5, 9)
    assert samples_of(rest) == samples_of(whole[5 * share.accumulate :])
    assert len(rest) == len(list(rest)) == 4 * share.accumulate


def test_the_places_of_all_shares_are_the_batch():
    shares = [Share(24, rank, 3, 2) for rank in range(3)]
    places = [place for share in shares for micro in range(2) for place in share.places(micro)]
    assert sorted(places) == list(range(24))
    assert list(shares[1].places(0)) == [8, 9, 10, 11]


# Samples


def test_a_batch_has_images_labels_indices_and_draws():
    batch = reader_of(Shapes("train", (20, 20))).__getitems__(samples(range(5)))
    assert batch["images"].shape == (5, 3, 16, 16)
    assert batch["images"].dtype == torch.uint8
    assert batch["images"].is_contiguous()
    assert batch["labels"].tolist() == Shapes("train", (20, 20)).labels(range(5)).tolist()
    assert batch["index"].tolist() == [0, 1, 2, 3, 4]
    assert batch["number"].shape == (5,)
    assert batch["unreadable"] == {}
    without = reader_of(Shapes("train", (20, 20)), labels=False).__getitems__(samples([0]))
    assert "labels" not in without


def test_a_sample_gets_the_same_pixels_and_draws_in_whatever_batch_it_is():
    reader = reader_of(Shapes("train", (24, 24)))
    together = reader.__getitems__(samples(range(100, 140), step=7))
    behind = reader.__getitems__(samples(range(110, 140), step=7, first=10))
    for place in (10, 17, 39):
        alone = reader.__getitems__(samples([100 + place], step=7, first=place))
        assert at(alone, 0) == at(together, place) == at(behind, place - 10)


def test_draws_differ_between_places_steps_and_seeds():
    images = Shapes("train", (24, 24))
    two = [samples([0, 0], step) for step in (0, 1)]
    batches = [reader_of(images, seed=seed).__getitems__(part) for seed in (0, 1) for part in two]
    assert len({number for batch in batches for number in batch["number"].tolist()}) == 8
    assert len({batch["images"][i].numpy().tobytes() for batch in batches for i in (0, 1)}) == 8


@pytest.mark.parametrize("count", [1, 3, 4, 131])
def test_the_numbers_of_two_samples_or_uses_are_never_the_same(count):
    numbers = [Numbers(0, purpose, step, range(50)) for purpose in (Purpose.TRAIN, Purpose.EVAL) for step in (0, 1)]
    drawn = np.concatenate([n.uniform(use, count).ravel() for n in numbers for use in (Use.MOVE, Use.FATES)])
    assert len(np.unique(drawn)) == drawn.size == 2 * 2 * 2 * 50 * count
    assert drawn.min() >= 0
    assert drawn.max() < 1


def test_numbers_are_evenly_spread_and_those_of_neighbours_unrelated():
    drawn = Numbers(0, Purpose.TRAIN, 0, range(20_000)).uniform(Use.MOVE, 3)
    assert np.histogram(drawn, 10, (0, 1))[0] / drawn.size == pytest.approx(0.1, abs=5 * (0.09 / drawn.size) ** 0.5)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(3)).max() < 5 / 20_000**0.5
    assert abs(np.corrcoef(drawn[1:, 0], drawn[:-1, 0])[0, 1]) < 5 / 20_000**0.5


def test_the_generators_of_samples_are_their_own():
    whole = Numbers(0, Purpose.TRAIN, 3, range(8))
    part = Numbers(0, Purpose.TRAIN, 3, range(5, 8))
    firsts = [whole.generator(Use.CUT, number).random() for number in range(8)]
    assert len(set(firsts)) == 8
    assert [part.generator(Use.CUT, number).random() for number in range(3)] == firsts[5:]


def test_images_of_the_size_asked_for_are_left_as_they_are_without_a_crop():
    images = Shapes("train", (16, 16))
    batch = reader_of(images, View((16, 16))).__getitems__(samples([4]))
    np.testing.assert_array_equal(batch["images"][0].permute(1, 2, 0).numpy(), np.asarray(images.read([4])[0]))


def test_shifts_reach_every_distance_up_to_the_pad_equally_often_and_flips_their_share():
    places = np.arange(5, dtype=np.uint8)
    image = 10 * places[:, None, None] + places[None, :, None]  # each pixel says its row and column
    images = np.broadcast_to(image, (5000, 5, 5, 1))
    view = View((5, 5), crop="pad", pad=2, flip=0.3)
    moved = view.move(images, Numbers(0, Purpose.TRAIN, 0, range(5000)), list(range(5000)))[:, 0]
    flipped = moved[:, 2, 1] > moved[:, 2, 3]
    inner = np.where(flipped[:, None, None], moved[..., ::-1], moved)[:, 2, 2]  # the middle has come from here
    assert flipped[(inner % 10 > 0) & (inner % 10 < 4)].mean() == pytest.approx(0.3, abs=0.03)
    assert np.bincount(inner // 10).tolist() == pytest.approx([1000] * 5, abs=150)
    assert np.bincount(inner % 10)[[0, 4]].tolist() == pytest.approx([1000] * 2, abs=150)


def test_views_of_other_shapes_are_cut_from_the_middle_undistorted():
    image = np.zeros((20, 60, 3), np.uint8)
    image[:, 20:40] = 200  # the middle square
    cut = View((10, 10)).cut(Image.fromarray(image), Bands(), Numbers(0, Purpose.EVAL, 0, range(1)), 0)
    assert cut.shape == (10, 10, 3)
    assert cut[:, 1:-1].min() >= 198  # the rest is only seen at the very edge, through the filter


# Damage


def test_an_unreadable_image_is_replaced_by_the_next_and_named(tmp_path):
    images = grey_folder(tmp_path, 6, damaged=(2, 3, 5))
    batch = reader_of(images, labels=False).__getitems__(samples([1, 2, 5]))
    assert batch["index"].tolist() == [1, 4, 0]  # the last is followed by the first
    assert batch["images"].amax((1, 2, 3)).tolist() == [1, 4, 0]
    assert set(batch["unreadable"]) == {str(tmp_path / f"{i:03}.png") for i in (2, 3, 5)}
    assert all("\n" not in reason for reason in batch["unreadable"].values())


def test_a_replaced_image_leaves_the_rest_of_its_batch_as_it_was(tmp_path):
    (tmp_path / "good").mkdir()
    (tmp_path / "bad").mkdir()
    good, bad = grey_folder(tmp_path / "good", 6), grey_folder(tmp_path / "bad", 6, damaged=(2,))
    six = samples(range(6))
    one, other = (reader_of(images, labels=False).__getitems__(six) for images in (good, bad))
    assert all(at(one, place) == at(other, place) for place in (0, 1, 3, 4, 5))
    assert at(one, 2)["number"] == at(other, 2)["number"]


def test_an_unreadable_image_is_left_out_and_named_where_none_may_be_replaced(tmp_path):
    images = grey_folder(tmp_path, 6, damaged=(2, 5))
    reader = reader_of(images, labels=False, replace=False)
    batch = reader.__getitems__(samples([1, 2, 4, 5]))
    assert batch["index"].tolist() == [1, 4]
    assert batch["images"].amax((1, 2, 3)).tolist() == [1, 4]
    assert len(batch["images"]) == len(batch["number"]) == 2
    assert set(batch["unreadable"]) == {str(tmp_path / "002.png"), str(tmp_path / "005.png")}
    alone = reader.__getitems__(samples([4], first=2))
    assert at(alone, 0) == at(batch, 1)


@pytest.mark.parametrize("replace", [True, False])
def test_where_no_image_can_be_read_there_are_no_images_and_all_are_named(tmp_path, replace):
    images = grey_folder(tmp_path, 3, damaged=(0, 1, 2))
    batch = reader_of(images, labels=False, replace=replace).__getitems__(samples(range(3)))
    assert "images" not in batch
    assert len(batch["unreadable"]) == 3
    assert batch["index"].shape == (0,)
    assert batch["index"].dtype == torch.int64


def test_an_image_that_is_damaged_behind_its_header_is_replaced_too(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for i in range(3):
        Image.fromarray(noise + i).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:300])
    batch = reader_of(load_images(str(tmp_path)), labels=False).__getitems__(samples([1]))
    assert batch["index"].tolist() == [2]
    assert "truncated" in batch["unreadable"][str(tmp_path / "1.png")]


def test_a_batch_may_have_more_images_than_files_may_be_open(tmp_path):
    resource = pytest.importorskip("resource")
    images = grey_folder(tmp_path, 200)
    reader = reader_of(images, labels=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(tmp_path / "000.png", "rb") as file:
        resource.setrlimit(resource.RLIMIT_NOFILE, (file.fileno() + 100, hard))
        try:
            batch = reader.__getitems__(samples(range(200)))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert batch["unreadable"] == {}
    assert batch["index"].tolist() == list(range(200))


# Loaders


def loader_of(images, workers=0, share=None, start=0, steps=4, view=VIEW):
    """The loader of training, of four steps of eight images unless told."""
    return train_loader(
        images,
        view,
        draw_numbers,
        seed=0,
        share=share or Share(8),
        start=start,
        steps=steps,
        workers=workers,
        labels=True,
    )


def test_workers_do_not_change_the_batches():
    images = Shapes("train", (20, 20))
    none, two = list(loader_of(images)), list(loader_of(images, workers=2))
    assert len(none) == len(two) == 4
    assert all(same(a, b) for a, b in zip(none, two, strict=True))


def test_workers_read_files_too_and_name_the_unreadable(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        grey_folder(tmp_path / name, 10, damaged=(3,))
    images = load_images(str(tmp_path))
    none, two = list(loader_of(images)), list(loader_of(images, workers=2))
    assert all(same(a, b) for a, b in zip(none, two, strict=True))
    assert {name for batch in two for name in batch["unreadable"]} == {str(tmp_path / n / "003.png") for n in "ab"}


def test_two_processes_with_accumulation_train_on_the_batches_of_one():
    images = Shapes("train", (20, 20))
    alone = list(loader_of(images))
    parts = [list(loader_of(images, share=Share(8, rank, 2, 2))) for rank in (0, 1)]
    for step, whole in enumerate(alone):
        micros = [parts[rank][2 * step + micro] for rank in (0, 1) for micro in (0, 1)]
        for key in ("images", "labels", "index", "number"):
            assert torch.equal(torch.cat([micro[key] for micro in micros]), whole[key])


def test_a_loader_from_step_2_gives_the_rest_of_one_from_0():
    images = Shapes("train", (20, 20))
    whole, rest = list(loader_of(images)), list(loader_of(images, start=2))
    assert len(rest) == 2
    assert all(same(a, b) for a, b in zip(whole[2:], rest, strict=True))


def test_a_set_smaller_than_a_batch_is_repeated_with_other_draws():
    images = Subset(Shapes("train", (20, 20)), np.array([5, 9, 70]))
    batches = list(loader_of(images, steps=3))
    assert [len(batch["images"]) for batch in batches] == [8, 8, 8]
    assert np.bincount(torch.cat([batch["index"] for batch in batches])).tolist() == [8, 8, 8]
    assert len(torch.cat([batch["number"] for batch in batches]).unique()) == 24


def evaluation(images, **options):
    """The batches of evaluation, of four images each."""
    return list(eval_loader(images, (16, 16), draw_numbers, batch_size=4, labels=True, **options))


def test_evaluation_reads_every_image_once_and_in_order():
    images = Subset(Shapes("validation", (16, 16)), np.arange(10))
    batches = evaluation(images)
    assert [batch["index"].tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert torch.cat([batch["labels"] for batch in batches]).tolist() == images.labels(range(10)).tolist()
    pixels = [np.asarray(image) for image in images.read(range(10))]
    assert np.array_equal(torch.cat([batch["images"] for batch in batches]).permute(0, 2, 3, 1).numpy(), pixels)


def test_evaluation_gives_its_processes_the_batches_of_one_in_turn():
    images = Subset(Shapes("validation", (16, 16)), np.arange(18))
    alone = evaluation(images)
    ranks = [evaluation(images, rank=rank, world_size=2) for rank in (0, 1)]
    assert [len(batches) for batches in ranks] == [3, 2]
    assert all(same(alone[i], ranks[i % 2][i // 2]) for i in range(5))


def test_evaluation_draws_do_not_depend_on_the_other_images(tmp_path):
    (tmp_path / "good").mkdir()
    (tmp_path / "bad").mkdir()
    sets = grey_folder(tmp_path / "good", 8), grey_folder(tmp_path / "bad", 8, damaged=(1, 6))
    options = {"batch_size": 4, "labels": False}
    good, bad = (list(eval_loader(images, (16, 16), draw_numbers, **options)) for images in sets)
    assert [batch["index"].tolist() for batch in bad] == [[0, 2, 3], [4, 5, 7]]
    assert torch.cat([batch["number"] for batch in good])[[0, 2, 3, 4, 5, 7]].equal(
        torch.cat([batch["number"] for batch in bad])
    )


# Subset


def test_a_subset_is_some_images_of_a_set(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    grey_folder(tmp_path / "a", 4)
    grey_folder(tmp_path / "b", 4, damaged=(1,))
    images = load_images(str(tmp_path))
    subset = Subset(images, np.array([6, 5, 0]))
    assert len(subset) == 3
    assert subset.label_names == ["a", "b"]
    assert subset.labels([0, 2]).tolist() == [1, 0]
    assert subset.labels(range(3)).tolist() == [1, 1, 0]
    assert subset.where(0) == str(tmp_path / "b" / "002.png")
    first, damaged = subset.read([0, 1])
    assert first.getpixel((0, 0)) == 2
    assert isinstance(damaged, Unreadable)


def test_a_subset_of_a_set_without_labels_has_none(tmp_path):
    subset = Subset(grey_folder(tmp_path, 3), np.array([1]))
    assert subset.label_names is None
    with pytest.raises(UserError, match="labels-file"):
        subset.labels([0])


def test_a_subset_leaves_labels_alone_until_they_are_wanted():
    asked = []

    class Source:
        label_names = property(lambda self: asked.append(1) or ["a", "b"])

    part = Subset(Source(), np.array([0]))
    assert not asked
    assert part.label_names == ["a", "b"]
