"""Compare our speed with that of other libraries: `python tools/benchmark.py --help`.

After a warm-up the contenders take turns in one process, with the same images, model size, batch size and precision.
The benchmark reports the median over rounds, the spread, and ratios of medians.
"""

from __future__ import annotations

import gc
import json
import math
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from mpp.data.augment import View
from mpp.data.contents import Contents
from mpp.data.images import load_images
from mpp.data.loader import Share, no_draws, train_loader
from mpp.data.packing import pack
from mpp.errors import UserError, first_line
from mpp.run.command import run_command
from mpp.run.machine import keep_freed_memory, use_all_cores
from mpp.training.flops import peak_flops

sys.path.insert(0, str(Path(__file__).parent))  # `mpp benchmark` runs this file from elsewhere
from contenders import (  # type: ignore[import-not-found,unused-ignore]
    AS_MAE,
    FLOOR,
    MAE_PEERS,
    OURS,
    PEERS,
    VISIBLE,
    Contender,
    Setting,
    Step,
    Variant,
    build,
    our_method,
)

Part = Literal["step", "small", "loader", "train", "memory", "size", "batch"]


@dataclass
class Benchmark:
    """Measure a training step, the loader, the training command, and cost against image size. Writes tables, JSON, PNG.

    Peers: vit-pytorch's MPP and MAE, transformers' ViTForMaskedImageModeling and ViTMAEForPreTraining. The floor is
    timm's bare ViT, forward and backward, without head or optimiser. The benchmark skips peers that are not installed
    and names them.
    """

    parts: tuple[Part, ...] = ("step", "loader", "train", "memory", "size")
    """What to measure. step and loader: ours and the peers'. small: a step of the nano model on 32 x 32 images, in
    patches of 4 and batches of 128, of all contenders. train: speed of the training command. memory: its memory
    with a packed set of 100,000 images. size: cost against image size. batch: our speed against the batch size."""
    quick: bool = False
    """Fewer rounds and smaller sizes: under two minutes on two CPU cores."""
    variant: Variant = "S"
    """Model size for the training step."""
    img_size: int = 224
    """Height and width of the images for the training step, in pixels."""
    patch_size: int = 16
    """Height and width of a patch for the training step, in pixels."""
    batch_size: int | None = None
    """Images per step. Default: 8 on a CPU (4 with --quick), 128 on a GPU."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on a GPU, fp32 on a CPU."""
    rounds: int = 7
    """Number of timed rounds for each contender."""
    contenders: tuple[Contender, ...] = ("ours", "vit-pytorch MPP", "transformers MIM", "timm ViT, no head")
    """Contenders whose training step to measure; must include one of ours. As MAE: the pixels of all hidden patches,
    by a self-attention decoder of two blocks as wide as the encoder (at most 512), as in MAE's peers."""
    steps: int | None = None
    """Steps of the training command. Default: 200 (30 with --quick)."""
    compile: bool | None = None
    """Also measure every contender compiled. Default: only on a GPU."""
    out: str = "runs/benchmark"
    """Folder for benchmark.json and the plots."""
    memory_of: str | None = None
    """Internal: run one contender alone and print its peak memory."""


@dataclass
class Measured:
    """The times of one contender: seconds per step in each round."""

    name: str
    seconds: list[float] = field(default_factory=list)

    def rate(self, images: int) -> float:
        """Images/s in the median round; `images` is the number of images per step."""
        return images / statistics.median(self.seconds)

    def spread(self) -> float:
        """Half the interquartile range (with fewer than 4 rounds, half the range), divided by the median."""
        if len(self.seconds) < 4:
            return (max(self.seconds) - min(self.seconds)) / 2 / statistics.median(self.seconds)
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return (high - low) / 2 / statistics.median(self.seconds)


def main(args: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns the contents of benchmark.json."""
    config = tyro.cli(Benchmark, args=args)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config.batch_size = config.batch_size or (128 if device.type == "cuda" else 4 if config.quick else 8)
    config.compile = device.type == "cuda" if config.compile is None else config.compile
    config.precision = {"auto": "bf16" if device.type == "cuda" else "fp32"}.get(config.precision, config.precision)  # type: ignore[assignment]
    if config.quick:
        config.rounds = min(config.rounds, 5)
    if config.memory_of == BARE:
        train_well_on(device)
        train_bare(config, device)
        return {}
    if config.memory_of:
        print(peak_memory_here(config, device))
        return {}
    train_well_on(device)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"machine": machine(device), "options": vars(config).copy()}
    measures = {
        "step": measure_step,
        "small": measure_small,
        "loader": measure_loader,
        "train": measure_training,
        "memory": measure_memory,
        "size": measure_sizes,
        "batch": measure_batches,
    }
    for part in config.parts:
        started = time.perf_counter()
        found[part] = measures[part](config, device, out)
        found[part]["took_seconds"] = round(time.perf_counter() - started, 1)
        (out / "benchmark.json").write_text(json.dumps(found, indent=1))
    print(f"\nall numbers: {out / 'benchmark.json'}")
    return found


# --- a training step -------------------------------------------------------------------------------------------------


def measure_step(config: Benchmark, device: torch.device, out: Path) -> dict[str, Any]:
    """Images/s and peak memory of every contender's whole training step."""
    if not set(config.contenders) & {OURS, VISIBLE, AS_MAE}:
        raise UserError("--contenders must include one of ours; the benchmark compares the others with it")
    images = config.batch_size or 1
    rows: list[Measured] = []
    steps: dict[str, Step] = {}
    memory: dict[str, float] = {}  # only on a GPU, where this process can measure it
    for name in config.contenders:
        for compiled in (False, True) if config.compile else (False,):
            title = f"{name}, compiled" if compiled else name
            others = forget_peak(device)
            try:
                step = build(name, setting_of(config, device, compiled))
                for _ in range(3 if compiled else 2):
                    step()
                if device.type == "cuda":
                    memory[title] = (torch.cuda.max_memory_allocated() - others) / 2**20
            except ImportError as error:
                print(f"left out: {name} ({error})")
                break
            except Exception as error:  # a peer may fail to compile: name it and go on
                print(f"left out: {title} ({first_line(error)})")
                continue
            steps[title] = step
            rows.append(Measured(title))
    take_turns(rows, steps, config.rounds, device)
    peak = peak_flops(device, torch.bfloat16 if config.precision == "bf16" else torch.float32)
    floor = next((row.rate(images) for row in rows if row.name == FLOOR), math.nan)
    table: list[dict[str, Any]] = [
        {
            "name": row.name,
            "images_per_second": row.rate(images),
            "spread": row.spread(),
            "of_floor": row.rate(images) / floor,
            "peak_memory_mib": memory[row.name] if memory else memory_of(config, row.name),
        }
        for row in rows
    ]
    result: dict[str, Any] = {"table": table, "peak_flops": peak, "over": {}}
    for ours, peers in ((OURS, PEERS), (VISIBLE, MAE_PEERS), (AS_MAE, MAE_PEERS)):
        if best := fastest(table, (ours,)):
            result["over"][ours] = compared(best, table, {"peer": peers, "floor": (FLOOR,)})
            flops = our_method(ours, setting_of(config, device)).flops
            result["over"][ours] |= {"flops_per_image": flops, "mfu": best["images_per_second"] * flops / peak}
    size, patch = config.img_size, config.patch_size
    show(
        f"A training step: ViT-{config.variant}/{patch} at {size}, batch {images}, {config.precision}",
        ["", "images/s", "spread", "of the floor", "peak memory"],
        [
            [
                e["name"],
                f"{e['images_per_second']:.1f}",
                f"{e['spread']:.1%}",
                f"{e['of_floor']:.2f}",
                "-" if e["peak_memory_mib"] is None else f"{e['peak_memory_mib']:,.0f} MiB",
            ]
            for e in table
        ],
    )
    for ours, over in result["over"].items():
        ratios = [f"{ratio:.2f} x {name}" for name, ratio in over["ratios"].items()]
        print(f"{ours} is {', '.join(ratios) or 'alone'}; MFU {over['mfu']:.0%} of {peak / 1e12:.2f} TFLOP/s")
    return result


def measure_small(config: Benchmark, device: torch.device, out: Path) -> dict[str, Any]:
    """The step of the nano model on 32 x 32 images, of all contenders."""
    small = replace(config, variant="nano", img_size=32, patch_size=4, batch_size=128, contenders=get_args(Contender))
    return measure_step(small, device, out)


def setting_of(config: Benchmark, device: torch.device, compiled: bool = False) -> Setting:
    """What the contenders of a training step have in common."""
    size, patch, batch = config.img_size, config.patch_size, config.batch_size or 1
    return Setting(config.variant, size, patch, batch, config.precision, device, compiled)


def compared(best: dict[str, Any], table: list[dict[str, Any]], kinds: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    """Ratios of a row's images/s to those of the contenders of each kind, and of its memory to the fastest one's."""
    found: dict[str, Any] = {"ratios": {}}
    for kind, names in kinds.items():
        for entry in table:
            if entry["name"].removesuffix(", compiled") in names:
                found["ratios"][entry["name"]] = best["images_per_second"] / entry["images_per_second"]
        if other := fastest(table, names):
            found[f"over_best_{kind}"] = best["images_per_second"] / other["images_per_second"]
            if best["peak_memory_mib"] and other["peak_memory_mib"]:
                found[f"memory_over_best_{kind}"] = best["peak_memory_mib"] / other["peak_memory_mib"]
    return found


def fastest(table: list[dict[str, Any]], names: tuple[str, ...]) -> dict[str, Any]:
    """The row with the most images/s of the contenders `names`, compiled or not; {} if the table has none of them."""
    rows = [entry for entry in table if entry["name"].removesuffix(", compiled") in names]
    return max(rows, key=lambda entry: entry["images_per_second"], default={})


def take_turns(rows: list[Measured], steps: dict[str, Step], rounds: int, device: torch.device) -> None:
    """Time the contenders in turns. On a GPU a round is 20 steps, so that kernel launches do not count."""
    repeat = 20 if device.type == "cuda" else 1
    for _ in range(rounds):
        for row in rows:
            settle(device)
            started = time.perf_counter()
            for _ in range(repeat):
                steps[row.name]()
            settle(device)
            row.seconds.append((time.perf_counter() - started) / repeat)


def forget_peak(device: torch.device) -> int:
    """Reset the peak memory statistics of a GPU; returns the bytes that tensors use now (0 on a CPU)."""
    if device.type != "cuda":
        return 0
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def memory_of(config: Benchmark, name: str) -> float | None:
    """Peak memory in MiB that two steps of a contender add in a new process; None if the process fails."""
    options = ["--variant", config.variant, "--img-size", str(config.img_size), "--patch-size", str(config.patch_size)]
    options += ["--batch-size", str(config.batch_size), "--precision", config.precision]
    line = [sys.executable, __file__, *options, "--memory-of", name]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    return float(done.stdout.split()[-1]) if done.returncode == 0 and done.stdout.split() else None


def peak_memory_here(config: Benchmark, device: torch.device) -> float:
    """Peak memory in MiB that two steps add to this process."""
    train_well_on(device)
    name = config.memory_of or ""
    compiled = name.endswith(", compiled")
    step = build(name.removesuffix(", compiled"), setting_of(config, device, compiled))
    before = resident_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak, which building the model has raised
    for _ in range(2):
        step()
    return resident_mib("VmHWM") - before


def resident_mib(field: str) -> float:
    """Memory of this process in MiB: VmRSS (now) or VmHWM (peak)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


# --- the loader ------------------------------------------------------------------------------------------------------


Batches = Callable[[], Iterator[Tensor]]


def measure_loader(config: Benchmark, device: torch.device, out: Path) -> dict[str, Any]:
    """Images/s of one process that reads, decodes, crops and flips small images and photograph-sized images."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for title, count, (height, width), size, crop, batch in (
            ("32 x 32 JPEGs", 1024 if config.quick else 4096, (32, 32), 32, "pad", 256),
            ("500 x 375 JPEGs", 96 if config.quick else 384, (375, 500), 224, "resized", 32),
        ):
            root = Path(folder) / title.replace(" ", "")
            make_jpegs(root / "train", count, height, width)
            loaders: dict[str, Batches] = {
                OURS: our_batches(str(root), size, crop, batch, count),
                "ImageFolder + PIL": image_folder_batches(root, size, crop, batch),
                "datasets + with_transform": datasets_batches(root, size, crop, batch),
            }
            packed = root / "set.mpp"
            pack({"train": load_images(str(root))}, packed, title, short_side=256, progress=False)
            loaders[PACKED] = our_batches(str(packed), size, crop, batch, count * (20 if crop == "pad" else 1))
            rows = [Measured(name) for name in loaders]
            for turn in range(1 + config.rounds):
                for row in rows:
                    started = time.perf_counter()
                    seen = sum(len(images) for images in loaders[row.name]())
                    if turn:  # the first turn reads files that are not yet cached
                        row.seconds.append((time.perf_counter() - started) / seen)
            rates = {row.name: row.rate(1) for row in rows}
            found[title] = {
                row.name: {
                    "images_per_second": rates[row.name],
                    "spread": row.spread(),
                    "over": {other: rates[row.name] / rate for other, rate in rates.items()},
                }
                for row in rows
            }
            others = [name for name in rates if name not in (OURS, PACKED)]
            show(
                f"The loader, one core: {title} to {size} x {size}, crop {crop} and flip",
                ["", "images/s", "spread", *(f"/ {name}" for name in others)],
                [
                    [row.name, f"{rates[row.name]:,.0f}", f"{row.spread():.1%}"]
                    + [f"{rates[row.name] / rates[name]:.2f} x" for name in others]
                    for row in rows
                ],
            )
    train_well_on(device)
    return found


PACKED = "ours, packed"  # stores photographs with a short side of 256


def make_jpegs(folder: Path, count: int, height: int, width: int) -> None:
    """Write JPEGs of smooth random fields with some noise, which compress as photographs do."""
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / str(i % 4) / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        noisy = np.clip(np.asarray(coarse, np.int16) + rng.normal(0, 6, (height, width, 1)), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(path, quality=90)


def our_batches(path: str, size: int, crop: Any, batch: int, seen: int) -> Batches:
    """Training batches as mpp/pretrain.py reads them, without the corruption."""
    images = load_images(path, "train", size=(size, size))
    view = View((size, size), crop, pad=4, scale=(0.2, 1.0), flip=0.5)

    def batches() -> Iterator[Tensor]:
        share, steps = Share(batch), seen // batch
        for found in train_loader(images, view, no_draws, seed=0, share=share, start=0, steps=steps, workers=0):
            yield found["images"]

    return batches


def pil_transforms(size: int, crop: str) -> Any:
    """The usual torchvision transforms, from PIL images to uint8 tensors."""
    from torchvision.transforms import v2

    pad = v2.RandomCrop(size, padding=4, padding_mode="reflect")
    cut = (
        pad
        if crop == "pad"
        else v2.RandomResizedCrop(size, scale=(0.2, 1.0), interpolation=v2.InterpolationMode.BICUBIC)
    )
    return v2.Compose([cut, v2.RandomHorizontalFlip(), v2.PILToTensor()])


def image_folder_batches(root: Path, size: int, crop: str, batch: int) -> Batches:
    """torchvision's ImageFolder and a DataLoader."""
    from torchvision.datasets import ImageFolder

    loader = DataLoader(
        ImageFolder(str(root / "train"), pil_transforms(size, crop)), batch, shuffle=True, drop_last=True
    )
    return lambda: (images for images, _ in loader)


def datasets_batches(root: Path, size: int, crop: str, batch: int) -> Batches:
    """`datasets` with a transform, as in transformers' run_mim."""
    from datasets import load_dataset

    transform = pil_transforms(size, crop)
    images = load_dataset(str(root), split="train").with_transform(
        lambda rows: {"pixel_values": [transform(image.convert("RGB")) for image in rows["image"]]}
    )
    loader = DataLoader(images, batch, shuffle=True, drop_last=True)
    return lambda: (rows["pixel_values"] for rows in loader)


# --- the training command, and cost against size ---------------------------------------------------------------------


class Noise:
    """Images of 32 x 32 pixels, each of one colour that no other image has."""

    label_names = None

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def read(self, indices: Sequence[int]) -> list[Image.Image]:
        return [Image.frombytes("RGB", (32, 32), i.to_bytes(3, "big") * 1024) for i in indices]

    def labels(self, indices: Sequence[int]) -> np.ndarray:
        raise NotImplementedError

    def where(self, index: int) -> str:
        return f"image {index}"

    def contents(self, labels: bool = False) -> Contents:
        return Contents("train", "image", self.count, [], [])


def measure_training(config: Benchmark, device: torch.device, out: Path) -> dict[str, Any]:
    """Images/s, MFU and share of time waiting for data of the training command. Runs the small preset on a packed set
    with two worker processes; on a GPU also --variant on JPEGs of 500 x 375."""
    steps = config.steps or (30 if config.quick else 200)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        pack({"train": Noise(20_000)}, root / "small.mpp", "noise", progress=False)
        runs = {"nano, 32 x 32, packed": ["--data.path", str(root / "small.mpp"), "--data.workers", "2"]}
        if device.type == "cuda":
            make_jpegs(root / "photos" / "train", 2000, 375, 500)
            size = [
                "--model.variant",
                config.variant,
                "--model.img-size",
                str(config.img_size),
                "--model.patch-size",
                "16",
            ]
            size += ["--train.batch-size", str(config.batch_size), "--train.compile", "--optim.name", "adamw"]
            size += ["--optim.lr", "1e-4"]
            size += ["--augment.crop", "resized", "--data.path", str(root / "photos"), "--train.log-every", "20"]
            runs[f"{config.variant}/16, JPEGs of 500 x 375"] = size
        found: dict[str, dict[str, float]] = {}
        for title, options in reversed(runs.items()):  # the larger first; printed at once in case time runs out
            found[title] = run_training(root / str(len(found)), steps, options)
            print(f"{title}: {found[title]}", flush=True)
    show(
        f"mpp/pretrain.py, {steps} steps",
        ["", "images/s", "waiting for data", "MFU", "whole command"],
        [
            [
                title,
                f"{e['images_per_second']:,.0f}",
                f"{e['data_wait']:.1%}",
                f"{e['mfu']:.0%}",
                f"{e['seconds']:.0f} s",
            ]
            for title, e in found.items()
        ],
    )
    return found


def run_training(output: Path, steps: int, options: list[str]) -> dict[str, float]:
    """Run the training command in a new process: median speeds after the first tenth of the steps, total seconds."""
    script = str(Path(__file__).parents[1] / "mpp" / "pretrain.py")
    shared = ["--train.steps", str(steps), "--eval.every", str(steps), "--eval.images", "64", "--output", str(output)]
    started = time.perf_counter()
    said_by([script, *shared, *options], f"mpp/pretrain.py {' '.join(options)}")
    took = time.perf_counter() - started
    lines = [json.loads(text) for text in (output / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "speed/mfu" in line and line["step"] > steps / 10]
    median = {
        n: statistics.median(line[f"speed/{n}"] for line in lines) for n in ("images_per_second", "data_wait", "mfu")
    }
    return median | {"seconds": took}


def measure_memory(config: Benchmark, device: torch.device, out: Path) -> dict[str, Any]:
    """Peak process memory in MiB of the training command with a packed set of 100,000 images, and of training the bare
    model. Both train the small preset at batch 256: the command 100 steps (10 with --quick), the bare model 10."""
    with tempfile.TemporaryDirectory() as folder:
        pack({"train": Noise(100_000)}, Path(folder) / "set.mpp", "noise", progress=False)
        options = ["--train.steps", "100", "--train.batch-size", "256", "--eval.every", "100", "--eval.images", "256"]
        if config.quick:
            options[1] = "10"
        script = str(Path(__file__).parents[1] / "mpp" / "pretrain.py")
        options += ["--data.path", f"{folder}/set.mpp", "--data.workers", "0", "--output", f"{folder}/run"]
        command = most_memory([script, *options])
    bare = most_memory([__file__, "--memory-of", BARE])
    show(
        "Peak memory of the process, nano at batch 256",
        ["", "MiB"],
        [["mpp/pretrain.py, 100,000 packed images", f"{command:,.0f}"], ["training the bare model", f"{bare:,.0f}"]],
    )
    return {"command_mib": command, "bare_mib": bare, "above_mib": command - bare}


BARE = "bare"


def train_bare(config: Benchmark, device: torch.device) -> None:
    """Ten steps of the small preset's model on random images, without loader, training loop or run folder."""
    step = build(OURS, setting_of(replace(config, variant="nano", img_size=32, patch_size=4, batch_size=256), device))
    for _ in range(10):
        step()


def most_memory(line: list[str]) -> float:
    """Peak memory of a Python script in MiB. The script itself prints it at exit, because the system's figure for a
    child process includes the memory of this process at the start."""
    code = (
        "import atexit, runpy, sys; sys.argv = sys.argv[1:]; "
        "tell = lambda: print(*(x.split()[1] for x in open('/proc/self/status') if x.startswith('VmHWM'))); "
        "atexit.register(tell); "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    return int(said_by(["-c", code, *line], " ".join(line)).split()[-1]) / 1024


def said_by(line: list[str], title: str) -> str:
    """Output of a new Python process with these arguments. Raises UserError with its last error line if it fails."""
    done = subprocess.run([sys.executable, *line], capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise UserError(f"{title} failed: {said[-1]}")
    return done.stdout


def measure_sizes(config: Benchmark, device: torch.device, out: Path) -> dict[str, Any]:
    """Images/s against image size and, on a GPU, the largest batch that fits: two figures of the ViT paper."""
    from matplotlib.figure import Figure

    sizes = (64, 128, 224) if config.quick else (64, 128, 224, 288, 384)
    variants: tuple[Variant, ...] = (
        ("Ti",) if config.quick else ("Ti", "S") if device.type == "cpu" else ("S", "B", "L")
    )
    found: dict[str, Any] = {}
    for variant in variants:
        for size in sizes:
            each = replace(config, variant=variant, img_size=size, patch_size=16)
            step = build(OURS, setting_of(each, device))
            step()
            row = Measured(f"{variant} {size}")
            take_turns([row], {row.name: step}, 2 if config.quick else 5, device)
            found[row.name] = {
                "variant": variant,
                "img_size": size,
                "patches": (size // 16) ** 2,
                "images_per_second": row.rate(config.batch_size or 1),
                "largest_batch": largest_batch(each) if device.type == "cuda" else None,
            }
            del step
            gc.collect()
    panels = 2 if device.type == "cuda" else 1  # the largest batch is tried on a GPU alone
    figure = Figure(figsize=(5 * panels, 4), layout="constrained")
    speed, *others = figure.subplots(1, panels, squeeze=False)[0]
    for variant in variants:
        entries = [e for e in found.values() if e["variant"] == variant]
        patches = np.array([e["patches"] for e in entries], float)
        seconds = np.array([1 / e["images_per_second"] for e in entries])
        # seconds per image = a N + b N^2 for N patches; attention causes the quadratic term
        terms, *_ = np.linalg.lstsq(np.stack([patches, patches**2], 1), seconds, rcond=None)
        at = np.linspace(sizes[0], sizes[-1])
        n = (at / 16) ** 2
        points = speed.plot(
            [e["img_size"] for e in entries], [e["images_per_second"] for e in entries], "o", label=variant
        )
        speed.plot(at, 1 / (terms[0] * n + terms[1] * n**2), color=points[0].get_color(), alpha=0.6)
        found[f"{variant} terms"] = {"seconds_per_patch": terms[0], "seconds_per_pair": terms[1]}
        for batch in others:
            batch.plot([e["img_size"] for e in entries], [e["largest_batch"] for e in entries], "o-", label=variant)
    speed.set(xlabel="image size", ylabel="images/s", yscale="log", title="lines: a N + b N² fitted, N patches")
    for batch in others:
        batch.set(xlabel="image size", ylabel="largest batch that fits", yscale="log")
    speed.legend()
    figure.savefig(out / "sizes.png", dpi=110)
    show(
        "Cost against image size (patches of 16)",
        ["", "patches", "images/s", "largest batch"],
        [
            [name, str(e["patches"]), f"{e['images_per_second']:.1f}", str(e["largest_batch"] or "-")]
            for name, e in found.items()
            if "patches" in e
        ],
    )
    return found


def measure_batches(config: Benchmark, device: torch.device, out: Path) -> dict[str, Any]:
    """Images/s of our step, not compiled, at 1/4, 1/2, 1, 2 and 4 times --batch-size."""
    found = {}
    for images in (max(1, (config.batch_size or 1) * quarters // 4) for quarters in (1, 2, 4, 8, 16)):
        step = build(OURS, setting_of(replace(config, batch_size=images), device))
        step()
        row = Measured(str(images))
        take_turns([row], {row.name: step}, config.rounds, device)
        found[row.name] = {"images_per_second": row.rate(images), "spread": row.spread()}
        print(f"batch {images}: {row.rate(images):,.1f} images/s, spread {row.spread():.1%}", flush=True)
        del step
        gc.collect()
    return found


def largest_batch(config: Benchmark) -> int:
    """The largest power of two as batch size, from 8 on, at which a step fits into the GPU's memory."""
    device, batch = torch.device("cuda"), 8
    while batch < 1 << 16:
        try:
            build(OURS, setting_of(replace(config, batch_size=2 * batch), device))()
            batch *= 2
        except torch.cuda.OutOfMemoryError:
            break
        finally:
            gc.collect()
            torch.cuda.empty_cache()
    return batch


# --- shared ----------------------------------------------------------------------------------------------------------


def settle(device: torch.device) -> None:
    """Wait until a GPU has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def train_well_on(device: torch.device) -> None:
    """Apply the process settings of our training; they hold for all contenders."""
    use_all_cores()
    if device.type == "cpu":
        keep_freed_memory()


def machine(device: torch.device) -> dict[str, Any]:
    """Device, threads, PyTorch version and date of the measurement."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__, "date": time.strftime("%F")}


def show(title: str, header: list[str], rows: list[list[str]]) -> None:
    """Print a table."""
    widths = [max(len(row[k]) for row in [header, *rows]) for k in range(len(header))]
    print(f"\n{title}")
    for row in [header, *rows]:
        print(
            "  "
            + "  ".join(
                cell.ljust(w) if k == 0 else cell.rjust(w) for k, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
        )


if __name__ == "__main__":
    run_command(main)
