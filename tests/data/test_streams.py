"""WebDataset shards: read from front to back, the same batches on any number of processes, and from any step on."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path

import pytest
import torch

from mpp.data.augment import View
from mpp.data.decode import Unreadable
from mpp.data.loader import Share, no_draws
from mpp.data.sources.path import is_stream
from mpp.data.sources.shards import refuse_dots_in_keys
from mpp.data.streams import Stream, StreamReader, held_out, lane_count, stream_loader
from mpp.errors import UserError
from mpp.pretrain import main
from mpp.run.folder import read_metrics
from tests.helpers import SMALL, launch, losses, one_line, pretrain, two_processes, without_speeds, write_shards

VIEW = View((16, 16))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A folder of five shards of seven images."""
    return write_shards(tmp_path_factory.mktemp("wds") / "set", 5, 7)


def batches(
    folder: Path,
    share: Share,
    start: int = 0,
    steps: int = 6,
    positions: dict | None = None,
    workers: int = 0,
    on_error="stop",
):
    """The micro-batches of one process."""
    options = {"seed": 0, "share": share, "start": start, "steps": steps, "workers": workers}
    stream = Stream.open(str(folder), "train", on_error=on_error)
    loader = stream_loader(stream, VIEW, no_draws, positions=positions or {}, **options)
    return list(loader)


def test_a_folder_of_tar_files_is_a_stream_and_others_are_not(shards, tmp_path):
    assert is_stream(str(shards))
    assert not is_stream("shapes")


def test_an_epoch_of_a_stream_has_every_image_once(shards):
    stream = Stream.open(str(shards), "train")
    reader = StreamReader(stream, VIEW, no_draws, 0, Share(5), 0, 7, {})
    assert reader.lanes == 1
    seen = torch.cat([batch["images"] for batch in reader])
    assert len(seen) == 35
    assert len({image.numpy().tobytes() for image in seen}) == 35


def test_epochs_and_seeds_differ_in_order(shards):
    first, second = (torch.cat([b["images"] for b in batches(shards, Share(5), start=s, steps=s + 7)]) for s in (0, 0))
    assert torch.equal(first, second)
    longer = torch.cat([batch["images"] for batch in batches(shards, Share(5), steps=14)])
    assert torch.equal(longer[:35], first)
    assert not torch.equal(longer[35:], first)


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_and_accumulation_together_read_what_one_process_reads(shards, world_size):
    whole = batches(shards, Share(32))
    parts = [batches(shards, Share(32, rank, world_size, accumulate=2)) for rank in range(world_size)]
    assert set(whole[0]["positions"]) == {0, 1, 2, 3}
    for step in range(6):
        together = [parts[rank][2 * step + micro]["images"] for rank in range(world_size) for micro in range(2)]
        assert torch.equal(torch.cat(together), whole[step]["images"])


def test_workers_change_nothing(shards):
    alone, helped = batches(shards, Share(32)), batches(shards, Share(32), workers=2)
    for a, b in zip(alone, helped, strict=True):
        assert torch.equal(a["images"], b["images"])
        assert a["positions"] == b["positions"]


def test_a_stream_goes_on_from_the_positions_of_any_step(shards):
    whole = batches(shards, Share(16), steps=20)
    for step in (1, 9, 15):
        rest = batches(shards, Share(16), start=step, steps=20, positions=whole[step - 1]["positions"])
        assert all(torch.equal(a["images"], b["images"]) for a, b in zip(rest, whole[step:], strict=True))


@pytest.mark.parametrize(
    ("batch_size", "shards", "lanes"), [(32, 5, 4), (32, 100, 4), (7, 5, 1), (4096, 1000, 64), (6, 1, 1)]
)
def test_lanes_divide_a_batch_and_have_a_shard_and_eight_samples_each(batch_size, shards, lanes):
    assert lane_count(batch_size, shards) == lanes


def test_held_out_images_are_the_first_of_the_shards(shards):
    images = held_out(Stream.open(str(shards), "train").part(torch.tensor([4])), 100)
    assert len(images) == 7
    assert "train-0004.tar" in images.where(0)


def test_a_stream_trains_resumes_to_the_last_bit_and_holds_out_its_last_shard(shards, tmp_path):
    options = ["--data.path", str(shards), "--optim.decay", "none", "--train.steps", "9"]
    straight = pretrain(tmp_path / "straight", *options)
    assert straight[-1]["epoch"] > 1
    pretrain(tmp_path / "cut", *options, "--train.steps", "4")
    resumed = pretrain(tmp_path / "cut", *options, "--resume")
    assert losses(resumed) == losses(straight)
    assert without_speeds(resumed)[-1] == without_speeds(straight)[-1]


def test_a_damaged_image_in_a_shard_is_named_or_skipped(tmp_path, capsys):
    folder = write_shards(tmp_path / "set", 3, 8, damaged=3)
    with pytest.raises(UserError, match=r"train-0000\.tar: 000003 could not be read"):
        pretrain(tmp_path / "stopped", "--data.path", str(folder))
    lines = pretrain(tmp_path / "skipped", "--data.path", str(folder), "--data.on-error", "skip")
    assert len(lines) == 6
    assert "1 images in" in capsys.readouterr().out


def member(shard: Path, number: int) -> tarfile.TarInfo:
    with tarfile.open(shard) as tar:
        return tar.getmembers()[number]


def spoil(shard: Path, how: str) -> None:
    """Damage a shard: every image in it, or the shard itself half-way."""
    content = bytearray(shard.read_bytes())
    if how == "images":
        for at in [found.start() for found in re.finditer(b"\x89PNG", bytes(content))]:
            content[at : at + 4] = b"<htm"
    elif how == "zero bytes":
        content = bytearray()
    elif how == "no members":
        content = bytearray(10240)
    elif how == "no tar":
        content = bytearray(b"<html>" * 2000)
    elif how == "first sample":  # cut within it
        content = content[:600]
    elif how == "cut":
        content = content[: member(shard, 10).offset]
    elif how in ("header", "zeros"):  # in the middle, where tarfile stops without a word
        at = member(shard, 10).offset
        content[at : at + 1024] = (b"\xa5" if how == "header" else b"\0") * 1024
    else:  # a member that says to be longer than the file
        longer = member(shard, 8)
        start, longer.size = longer.offset, 10**6
        content[start:] = longer.tobuf() + bytes(1024)
    shard.write_bytes(content)


@pytest.mark.parametrize(("how", "bad"), [("images", 0), ("images", 2), ("shard", 2)])
def test_a_stream_goes_on_past_a_bad_shard_to_the_same_batches_however_they_are_read(tmp_path, how, bad):
    folder = write_shards(tmp_path / "set", 5, 8)
    spoil(folder / f"train-{bad:04d}.tar", how)
    whole = batches(folder, Share(32))  # four lanes, of which one has the bad shard alone
    assert all(len(batch["images"]) == 32 for batch in whole)
    assert set(whole[0]["unreadable"]) <= {w for batch in whole for w in batch["unreadable"]}
    assert all(f"train-{bad:04d}.tar" in where for batch in whole for where in batch["unreadable"])
    assert len({where for batch in whole for where in batch["unreadable"]}) == (8 if how == "images" else 1)
    for number, batch in enumerate(batches(folder, Share(32), workers=2)):
        assert torch.equal(batch["images"], whole[number]["images"])
    parts = [batches(folder, Share(32, rank, 4)) for rank in range(4)]
    rest = batches(folder, Share(32), start=3, positions=whole[2]["positions"])
    for step in range(6):
        assert torch.equal(torch.cat([part[step]["images"] for part in parts]), whole[step]["images"])
        assert step < 3 or torch.equal(rest[step - 3]["images"], whole[step]["images"])


@pytest.mark.parametrize("how", ["zero bytes", "no members", "no tar", "first sample", "cut", "header", "zeros"])
@pytest.mark.parametrize("bad", [0, 2])
def test_skip_goes_on_past_a_damaged_shard_and_stop_says_which(tmp_path, capsys, how, bad):
    folder = write_shards(tmp_path / "set", 5, 8)
    options = ["--data.path", str(folder), "--train.batch-size", "32", "--train.steps", "2"]
    spoil(folder / f"train-{bad:04d}.tar", how)
    stream = Stream.open(str(folder), "train", on_error="skip")
    *good, (where, why) = list(stream.samples(bad))
    assert (where, type(why)) == (f"train-{bad:04d}.tar: the rest of the shard", Unreadable)
    assert len(good) == (5 if how in ("cut", "header", "zeros") else 0)
    assert all(len(list(stream.samples(number))) == 8 for number in range(5) if number != bad)
    whole = batches(folder, Share(32), steps=2, on_error="skip")
    parts = [batches(folder, Share(32, rank, 2), steps=2, on_error="skip") for rank in range(2)]
    for step in range(2):
        assert torch.equal(torch.cat([part[step]["images"] for part in parts]), whole[step]["images"])
    with pytest.raises(UserError, match=r"could .*be read|is damaged or cut short"):
        pretrain(tmp_path / "stopped", *options)
    pretrain(tmp_path / "skipped", *options, "--data.on-error", "skip")
    assert f"train-{bad:04d}.tar: the rest of the shard" in capsys.readouterr().out


def test_shards_of_which_none_can_be_read_are_one_clear_error(tmp_path):
    folder = write_shards(tmp_path / "set", 3, 8)
    for shard, how in zip(sorted(folder.iterdir()), ("zero bytes", "no tar", "first sample"), strict=True):
        spoil(shard, how)
    with pytest.raises(UserError, match=r"none of 3 shards can be read, the first: train-0000\.tar, ") as told:
        pretrain(tmp_path / "run", "--data.path", str(folder), "--data.on-error", "skip")
    assert one_line(told)


def test_a_row_of_unreadable_images_that_is_longer_than_a_batch_is_passed(tmp_path):
    folder = write_shards(tmp_path / "set", 2, 20)
    spoil(folder / "train-0000.tar", "images")
    for batch in batches(folder, Share(5), steps=16):  # one lane; in each epoch some batches have not one good image
        assert len(batch["images"]) == 5


def test_a_bad_shard_is_counted_and_named_and_too_many_end_the_run(tmp_path, capsys):
    folder = write_shards(tmp_path / "set", 5, 8)
    spoil(folder / "train-0001.tar", "images")
    options = ["--data.path", str(folder), "--train.batch-size", "32", "--data.on-error", "skip"]
    options += ["--optim.decay", "none"]
    straight = pretrain(tmp_path / "run", *options)
    assert "8 images in" in (said := capsys.readouterr().out)
    assert "left out, the first: " in said
    pretrain(tmp_path / "cut", *options, "--train.steps", "4")
    assert losses(pretrain(tmp_path / "cut", *options, "--resume")) == losses(straight)
    found = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("run", "cut")]
    assert [len(result["unreadable_images"]) for result in found] == [8, 8]
    with pytest.raises(UserError, match=r"48 of 192 images in .*train-0001\.tar: 0000.*--data\.max-bad 0\.2 allows no"):
        pretrain(tmp_path / "strict", *options, "--data.max-bad", "0.2")
    pretrain(tmp_path / "strict", *options, "--resume", "--data.max-bad", "0.25")


def test_a_stream_with_no_image_that_can_be_read_ends_in_one_line(tmp_path):
    folder = write_shards(tmp_path / "set", 3, 8)
    options = ["--data.path", str(folder), "--data.on-error", "skip", "--data.max-bad", "1"]
    spoil(folder / "train-0002.tar", "images")  # which is held out
    with pytest.raises(UserError, match=r"8 of 8 held-out images in .*train-0002\.tar: 0000.* the right set\?$"):
        pretrain(tmp_path / "held-out", *options)
    for number in (0, 1):
        spoil(folder / f"train-{number:04d}.tar", "images")
    with pytest.raises(UserError, match="no readable image was found among 16 in a row"):
        pretrain(tmp_path / "none", *options)


def test_one_shard_alone_leaves_nothing_to_evaluate_on(tmp_path):
    folder = write_shards(tmp_path / "set", 1, 8)
    with pytest.raises(UserError, match=r"--data\.eval-split"):
        pretrain(tmp_path / "run", "--data.path", str(folder))


def test_a_stream_of_fewer_images_than_a_batch_trains(tmp_path):
    folder = write_shards(tmp_path / "set", 2, 3)
    main([*SMALL, "--data.path", str(folder), "--output", str(tmp_path / "run")])
    assert len(read_metrics(tmp_path / "run")) == 6


def test_a_stream_on_two_processes_that_is_cut_twice_goes_on_as_if_it_was_not(tmp_path):
    folder = write_shards(tmp_path / "set", 5, 20)
    options = ["--data.path", str(folder), "--train.batch-size", "16", "--optim.decay", "none", "--eval.every", "50"]
    straight = pretrain(tmp_path / "straight", *options, "--train.steps", "9")
    for steps in ("3", "6", "9"):
        output = ["--output", str(tmp_path / "cut"), "--resume", "--train.steps", steps]
        done = launch(*options, *output, launcher=two_processes())
        assert done.returncode == 0, done.stderr
    assert losses(read_metrics(tmp_path / "cut")) == pytest.approx(losses(straight), abs=1e-4)


@pytest.mark.parametrize("name", ["IMG_2024.05.{:04d}.png", "img.{}.png", "v1.{}.0.cls.png", "{}.{}.jpg"])
def test_dots_in_the_keys_of_a_shard_are_refused_with_one_name(tmp_path, name):
    with tarfile.open(write_shards(tmp_path, 2, 24) / "train-0001.tar", "w") as tar:
        for number in range(24):
            tar.addfile(tarfile.TarInfo(name.format(number, number)))
    with pytest.raises(UserError) as told:
        Stream.open(str(tmp_path), "train")
    first = name.format(0, 0)
    key, _, extension = first.rpartition(".")
    assert f"the shard train-0001.tar holds {first}, whose key has a dot" in one_line(told)
    assert f"name it {key.replace('.', '_')}.{extension}, and" in str(told.value)
    assert len(str(told.value)) < 400


def test_columns_of_several_words_are_no_dots_in_keys(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in (f"{number:04d}.{column}" for number in range(9) for column in ("left.png", "right.png", "cls")):
            tar.addfile(tarfile.TarInfo(name))
    refuse_dots_in_keys(str(tmp_path))
