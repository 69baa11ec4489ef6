"""Read WebDataset shards sequentially, for sets too large to be read by index.

The shards are divided among lanes, and each lane fills a fixed part of every global batch. So the samples of a batch
depend only on the seed, the shards and the batch size, and a process opens only the lanes of its share. In every epoch,
a lane reads its shards in a new order, through a shuffle buffer. Its position is two numbers (epoch, samples read),
which a checkpoint stores.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mpp.data.augment import View
from mpp.data.bands import Bands
from mpp.data.contents import Contents, files_contents
from mpp.data.decode import Opened, Unreadable, open_image
from mpp.data.loader import Batch, Draws, Samples, Share, as_it_is, leave_signals, read_batch
from mpp.data.randomness import Purpose, generator
from mpp.data.sources.path import naming_the_source, source_of
from mpp.data.sources.shards import columns_of, refuse_broken_off, refuse_cut, refuse_dots_in_keys
from mpp.data.sources.table import pick_column
from mpp.errors import UserError, first_line, printable

if TYPE_CHECKING:
    from datasets import IterableDataset as Shards


_MAX_LANES = 64  # most files that a process holds open


_BUFFER = 8192  # encoded samples in the shuffle buffers of all lanes together


_NO_LABELS = "shards that are streamed have no labels"


Positions = dict[int, tuple[int, int]]  # lane -> (epoch, samples read in it)


Sample = tuple[str, dict | Unreadable]  # its place, and the encoded image or why there is none


class Stream:
    """Some shards of one split."""

    def __init__(
        self,
        shards: Shards,
        path: str,
        files: list[str],
        contents: Contents,
        indices: list[int],
        image_column: str,
        bands: Bands = Bands(3),  # noqa: B008
    ) -> None:
        self.shards, self.path, self._files, self._contents, self.bands = shards, path, files, contents, bands
        self.indices, self.image_column = indices, image_column

    @classmethod
    def open(
        cls, path: str, split: str, image_column: str | None = None, config: str | None = None, on_error: str = "stop"
    ) -> Stream:
        """Open all shards of a split. Raises UserError if the set cannot be read: with `on_error` "skip", if no shard
        can; else if one is cut, or the first cannot."""
        import datasets

        name, options = source_of(path, config)
        if on_error == "stop":
            refuse_cut(path)
        if image_column is None:
            refuse_dots_in_keys(path)
        with naming_the_source(path):
            builder = datasets.load_dataset_builder(name, **options)
            files = list(map(str, (builder.config.data_files or {}).get(split, [])))
            if on_error == "skip" and builder.info.features is None:
                builder.info.features = columns_of(files)
            shards = builder.as_streaming_dataset(split=split)
            contents = files_contents(files, path, split, "shard")
        column = pick_column(shards, image_column, "image")
        shards = shards.cast_column(column, datasets.Image(decode=False))
        return cls(shards, path, files, contents, list(range(shards.num_shards)), column)

    def part(self, indices: np.ndarray) -> Stream:
        """The shards numbered `indices` of this stream."""
        numbers = [self.indices[i] for i in indices]
        return Stream(self.shards, self.path, self._files, self._contents, numbers, self.image_column, self.bands)

    def contents(self, labels: bool = False) -> Contents:
        """What the whole split holds: its shards by name, size and content."""
        return self._contents

    @property
    def shard_names(self) -> list[str]:
        """The files of these shards."""
        return [self._contents.names[i] for i in self.indices]

    def samples(self, number: int) -> Iterator[Sample]:
        """Yield the place and the encoded image of each sample of shard `number`. Of a damaged shard, the rest is one
        unreadable sample."""
        index = self.indices[number]
        shard = self.shards.shard(num_shards=self.shards.num_shards, index=index)
        try:
            with naming_the_source(self.path):
                # .iter(): plain iteration divides rows among DataLoader workers, which `StreamReader` does itself
                for rows in shard.iter(batch_size=16):
                    urls, keys = rows["__url__"], rows["__key__"]
                    yield from zip(map("{}: {}".format, urls, keys), rows[self.image_column], strict=True)
                refuse_broken_off(self._files[index])
        except UserError as error:
            why = printable(first_line(error.__cause__ or error))
            yield f"{self._contents.names[index]}: the rest of the shard", Unreadable(why)


def held_out(stream: Stream, count: int | None) -> Kept:
    """The first `count` samples of a stream, kept in memory encoded, to be read by index for evaluation."""
    every = (sample for number in range(len(stream.indices)) for sample in stream.samples(number))
    return Kept(list(islice(every, count)), stream)


class StreamReader(IterableDataset):
    """This process's micro-batches of a stream, from step `start` on; its lanes continue at `positions`.

    Each worker process reads all samples of the lanes and decodes only those of its own micro-batches. Every worker
    repeats the reading, so use few. To resume within an epoch, a lane reads its earlier samples again, undecoded.
    """

    def __init__(
        self,
        stream: Stream,
        view: View,
        draws: Draws,
        seed: int,
        share: Share,
        start: int,
        steps: int,
        positions: Positions,
    ) -> None:
        self.stream, self.view, self.draws, self.seed = stream, view, draws, seed
        self.share, self.start, self.steps, self.positions = share, start, steps, positions
        self.lanes = lane_count(share.batch_size, len(stream.indices))

    def __len__(self) -> int:
        return (self.steps - self.start) * self.share.accumulate

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        turn, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        width = self.share.batch_size // self.lanes  # samples of a lane in every batch
        mine = sorted({place // width for micro in range(self.share.accumulate) for place in self.share.places(micro)})
        lanes = Lanes(self.stream, self.seed, self.lanes, width, self.start, self.positions)
        number = 0
        for step in range(self.start, self.steps):
            row = Row(lanes, step)
            positions = {n: lanes.rows(n, step).position for n in mine}
            for micro in range(self.share.accumulate):
                if number % workers == turn:
                    places = self.share.places(micro)
                    samples = Samples(np.asarray(places), step, places)
                    batch = read_batch(
                        row, samples, self.view, self.draws, self.seed, Purpose.TRAIN, stand_in=row.stand_in
                    )
                    batch["where"] = [row.where(place) for place in batch["index"].tolist()]  # only known here
                    yield batch | {"positions": positions}
                number += 1


class Kept:
    """A set of images: samples of `stream` in memory, by index."""

    label_names = None

    def __init__(self, samples: list[Sample], stream: Stream) -> None:
        self.samples, self.stream, self.bands = samples, stream, stream.bands

    def __len__(self) -> int:
        return len(self.samples)

    def sample(self, index: int) -> Sample:
        return self.samples[index]

    def read(self, indices: Sequence[int]) -> list[Opened | Unreadable]:
        found = (self.sample(int(index))[1] for index in indices)
        return [image if isinstance(image, Unreadable) else open_image(image) for image in found]

    def labels(self, indices: Sequence[int]) -> np.ndarray:
        raise UserError(_NO_LABELS)

    def where(self, index: int) -> str:
        return printable(self.sample(int(index))[0])

    def contents(self, labels: bool = False) -> Contents:
        return self.stream.contents(labels)


class Row(Kept):
    """A set of images: the samples of one global batch, by place. Those of the next batch have the numbers after them,
    and so on: they stand in for what cannot be read. A process reads what it asks for."""

    def __init__(self, lanes: Lanes, step: int) -> None:
        super().__init__([], lanes.stream)
        self.lanes, self.step = lanes, step

    def __len__(self) -> int:
        return self.lanes.count * self.lanes.width

    def _find(self, index: int) -> tuple[list[Sample], int]:
        ahead, place = divmod(index, len(self))
        lane, number = divmod(place, self.lanes.width)
        return self.lanes.rows(lane, self.step).row(ahead), number

    def sample(self, index: int) -> Sample:
        row, number = self._find(index)
        return row[number]

    def stand_in(self, index: int, error: Unreadable) -> int | None:
        """The sample after one that cannot be read: the next of its lane in the batch, else of the other lanes, else of
        the batches to come; None if a whole epoch has none. The same on any number of processes and workers."""
        row, number = self._find(index)
        row[number] = (row[number][0], error)  # it is not tried, nor kept in memory, again
        ahead, place = divmod(index, len(self))
        lane, width, count = place // self.lanes.width, self.lanes.width, self.lanes.count
        last = self.lanes.rows(lane, self.step).epoch(0) + 1
        while self.lanes.rows(lane, self.step).epoch(ahead) <= last:
            for other in range(lane, lane + count):
                row = self.lanes.rows(other % count, self.step).row(ahead)
                for turn in range(number + 1, number + 1 + width):
                    if not isinstance(row[turn % width][1], Unreadable):
                        return ahead * len(self) + other % count * width + turn % width
            ahead += 1
        return None


class Lanes:
    """The lanes of a stream, each in rows of `width` samples, one a step. Those that a process asks for are opened."""

    def __init__(self, stream: Stream, seed: int, count: int, width: int, start: int, positions: Positions) -> None:
        self.stream, self.seed, self.count, self.width = stream, seed, count, width
        self.start, self.positions = start, positions
        self.open: dict[int, Rows] = {}

    def rows(self, lane: int, step: int) -> Rows:
        """The rows of a lane from `step` on."""
        if lane not in self.open:
            at = self.positions.get(lane, (0, 0))
            self.open[lane] = Rows(Lane(self.stream, self.seed, lane, self.count, at), self.width, self.start)
        self.open[lane].go_on_to(step)
        return self.open[lane]


class Rows:
    """A lane in rows of samples, from one step on; later ones may be looked at ahead."""

    def __init__(self, lane: Lane, width: int, step: int) -> None:
        self.lane, self.width, self.step = lane, width, step
        self.read: deque[tuple[list[Sample], tuple[int, int]]] = deque()  # rows, and the lane's position after each

    def go_on_to(self, step: int) -> None:
        while self.step < step:
            self._reach(0)
            self.read.popleft()
            self.step += 1

    def row(self, ahead: int) -> list[Sample]:
        self._reach(ahead)
        return self.read[ahead][0]

    def epoch(self, ahead: int) -> int:
        self._reach(ahead)
        return self.read[ahead][1][0]

    @property
    def position(self) -> tuple[int, int]:
        """Where the lane is after the row of this step."""
        self._reach(0)
        return self.read[0][1]

    def _reach(self, ahead: int) -> None:
        while len(self.read) <= ahead:
            self.read.append(([next(self.lane) for _ in range(self.width)], self.lane.position))


class Lane:
    """An endless iterator over one lane's samples, starting at a position."""

    def __init__(self, stream: Stream, seed: int, lane: int, lanes: int, position: tuple[int, int]) -> None:
        self.stream, self.seed, self.lane = stream, seed, lane
        self.numbers = np.arange(lane, len(stream.indices), lanes)
        self.buffer_size = max(1, _BUFFER // lanes)
        self.position = position
        self.samples = self._from(position)

    def __next__(self) -> Sample:
        epoch, done, sample = next(self.samples)
        self.position = (epoch, done)
        return sample

    def _from(self, position: tuple[int, int]) -> Iterator[tuple[int, int, Sample]]:
        epoch, done = position
        while True:
            empty = True
            for number, sample in enumerate(self._epoch(epoch), start=1):
                empty = False
                if number > done:
                    yield epoch, number, sample
            if empty:
                raise UserError(f"{self.stream.path}: the shards of lane {self.lane} hold no images")
            epoch, done = epoch + 1, 0

    def _epoch(self, epoch: int) -> Iterator[Sample]:
        rng = generator(self.seed, Purpose.ORDER, epoch, self.lane)
        buffer: list[Sample] = []
        for number in rng.permutation(self.numbers):
            for sample in self.stream.samples(int(number)):
                buffer.append(sample)
                if len(buffer) == self.buffer_size:
                    yield buffer.pop(_swap_to_end(buffer, rng))
        while buffer:
            yield buffer.pop(_swap_to_end(buffer, rng))


def _swap_to_end(buffer: list, rng: np.random.Generator) -> int:
    """Move a random element to the end, where popping is cheap. Returns its index, -1."""
    i = int(rng.integers(len(buffer)))
    buffer[i], buffer[-1] = buffer[-1], buffer[i]
    return -1


def lane_count(batch_size: int, shards: int) -> int:
    """The largest number of lanes, at most 64, that divides a batch and gives each lane a shard and 8 samples a batch.
    So an unreadable sample has neighbours that can replace it, and few files are open."""
    most = min(shards, _MAX_LANES)
    return max(n for n in range(1, most + 1) if n == 1 or (batch_size % n == 0 and batch_size // n >= 8))


def stream_loader(
    stream: Stream,
    view: View,
    draws: Draws,
    *,
    seed: int,
    share: Share,
    start: int,
    steps: int,
    workers: int,
    positions: Positions,
    pin_memory: bool = False,
) -> DataLoader:
    """Training batches from a stream; see `mpp.data.loader.train_loader`."""
    return DataLoader(
        StreamReader(stream, view, draws, seed, share, start, steps, positions),
        batch_size=None,
        collate_fn=as_it_is,
        num_workers=workers,
        worker_init_fn=leave_signals,
        pin_memory=pin_memory,
    )
