"""What several test files share: the command in this process or in others, and files of images."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image

from mpp.data.images import load_images
from mpp.pretrain import main
from mpp.run.folder import read_metrics

ROOT = Path(__file__).parents[1]
PRESETS = ROOT / "recipes" / "presets"
SMALL = [
    *("--model.img-size", "16", "--model.embed-dim", "32", "--model.depth", "2", "--model.num-heads", "2"),
    *("--train.steps", "6", "--train.batch-size", "8", "--eval.every", "3", "--eval.images", "20"),
    *("--train.checkpoint-every", "2", "--optim.warmup-steps", "2"),
]


def pretrain(output: Path, *options: str) -> list[dict[str, float]]:
    """Run the command in this process; returns the lines of metrics.jsonl."""
    reset_accelerate()
    main([*SMALL, "--output", str(output), *options])
    return read_metrics(output)


def reset_accelerate() -> None:
    """Forget the processes and precision of the last command of this process."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def command(*options: str, launcher: tuple[str, ...] = (sys.executable,)) -> list[str]:
    """The command as a user runs it."""
    return [*launcher, str(ROOT / "mpp" / "pretrain.py"), *SMALL, *options]


def launch(*options: str, launcher: tuple[str, ...] = (sys.executable,)) -> subprocess.CompletedProcess[str]:
    """Run the command to its end in a process of its own."""
    return launch_file("mpp/pretrain.py", *SMALL, *options, launcher=launcher)


def launch_file(file: str, *options: str, launcher: tuple[str, ...] | None = None) -> subprocess.CompletedProcess[str]:
    """Run any command of the project to its end, as a user runs it."""
    line = [*(launcher or (sys.executable,)), str(ROOT / file), *options]
    return subprocess.run(line, capture_output=True, text=True, timeout=240, check=False)


def two_processes() -> tuple[str, ...]:
    """The launcher of two processes on this machine."""
    port = str(20_000 + os.getpid() % 20_000)
    accelerate = str(Path(sys.executable).with_name("accelerate"))
    return accelerate, "launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", port


def one_and_two_processes(
    main: Callable[[list[str]], object], file: str, folder: Path, options: Callable[[str], list[str]]
) -> None:
    """Run a command in this process, and in two of their own, into folder/one and folder/two."""
    reset_accelerate()
    main([*options("one"), "--output", str(folder / "one")])
    done = launch_file(file, *options("two"), "--output", str(folder / "two"), launcher=two_processes())
    assert done.returncode == 0, done.stderr


def wait_for(condition: Callable[[], object], process: subprocess.Popen | None = None) -> None:
    """Wait until a condition holds, while a process runs, for a minute at most."""
    end = time.monotonic() + 60
    while not condition():
        assert process is None or process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)


def losses(lines: list[dict[str, float]]) -> list[float]:
    """train/loss of every line."""
    return [line["train/loss"] for line in lines]


def without_speeds(lines: list[dict[str, float]]) -> list[dict[str, float]]:
    """Lines without what depends on the clock."""
    return [{name: value for name, value in line.items() if not name.startswith("speed/")} for line in lines]


# Files of images


def flat(value, size=(8, 8)):
    """A PIL image of one grey."""
    return Image.fromarray(np.full((*size, 3), value, np.uint8))


def slopes(height, width):
    """A smooth PIL image in which every place differs."""
    y, x = np.mgrid[:height, :width]
    rows = [x * 255 // max(1, width - 1), y * 255 // max(1, height - 1), (x + y) * 255 // max(1, height + width - 2)]
    return Image.fromarray(np.stack(rows, -1).astype(np.uint8))


def encode(image, kind="PNG", **options):
    """An image as a file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height, width):
    """A PIL image that no format makes small."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def put(path, value):
    """Write a grey image file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flat(value).save(path)


def one_line(error):
    """The message of a caught UserError, after checking that it is one line."""
    message = str(error.value)
    assert message
    assert "\n" not in message
    return message


def turned_file(image, kind, orientation, how="exif"):
    """A file that says to turn its image."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(image, kind, **({"exif": exif} if how == "exif" else {"xmp": xmp(orientation)}))


def xmp(orientation):
    """XMP that gives an orientation, as some cameras and editors write instead of EXIF."""
    return f'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{orientation}"/>'.encode()


def chunk(kind, data):
    """A PNG chunk."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def declared_png(side):
    """A PNG of a few bytes that declares a grey image of `side` x `side` pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\x00")) + chunk(b"IEND", b"")


def write_shards(
    folder: Path, shards: int, each: int, damaged: int | None = None, label: Callable[[int], str] | None = "1".format
) -> Path:
    """WebDataset shards of small PNGs with labels; image number `damaged` is cut short."""
    folder.mkdir(parents=True, exist_ok=True)
    images = load_images("shapes", size=(16, 16)).read(range(shards * each))
    for number in range(shards):
        with tarfile.open(folder / f"train-{number:04d}.tar", "w") as tar:
            for i in range(number * each, (number + 1) * each):
                file = io.BytesIO()
                images[i].save(file, "PNG")
                data = file.getvalue()[:60] if i == damaged else file.getvalue()
                for extension, content in (("png", data), *([("cls", label(i).encode())] if label else [])):
                    info = tarfile.TarInfo(f"{i:06d}.{extension}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return folder
