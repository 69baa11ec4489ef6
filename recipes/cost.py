"""What a backbone costs against the size of its input: images/s, and the largest batch that fits into memory.

As appendix D.5 of the ViT paper (figure 12), for any backbones beside each other, each a variant and options of
--model: `python recipes/cost.py --backbones nano "S patch_size=16" --sizes 32 64 128 224`. Backbones take turns. On a
GPU the largest batch is tried; on a CPU it is extrapolated from the peak memory of two batches. Writes cost.csv,
cost.md, speed.png and batch.png; what --output already holds is kept.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

from mpp.comparison.input_size import MODES, as_csv, backbones_of, in_turns, read_rows, write_page
from mpp.config.options import Model
from mpp.console import run_file
from mpp.errors import UserError
from mpp.files import write_whole
from mpp.run.machine import let_go, start_accelerator
from mpp.run.measured import told_bytes, told_devices, told_time
from mpp.training.cost import backbone_on, images_for, pass_over, seconds_in_turns

_TO_MEASURE_MEMORY = 15.0  # seconds of a CPU for one backbone, size and mode; for --dry-run


def main(args: Sequence[str] | None = None) -> None:
    """Measure what is missing, then write table and plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["nano", "nano patch_size=8", "Ti patch_size=16"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[32, 64, 128, 224], help="sides of the input in pixels")
    parser.add_argument("--batch-size", type=int, default=8, help="images a pass when speed is measured, if they fit")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each backbone, of which the median counts")
    parser.add_argument("--memory", type=float, help="GiB that a batch is to fit into; default: all of the device")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--output", type=Path, default=Path("runs/cost"), help="folder of table and plots")
    parser.add_argument("--dry-run", action="store_true", help="only say how long it takes")
    given = parser.parse_args(args)
    for option in ("batch_size", "rounds"):
        if getattr(given, option) < 1:
            raise UserError(f"--{option.replace('_', '-')} {getattr(given, option)} must be above 0")
    every = {size: backbones_of(given.backbones, size) for size in sorted(set(given.sizes))}
    accelerator = start_accelerator(given.precision)
    try:
        measure(given, every, accelerator)
    finally:
        let_go(accelerator)


def measure(given: argparse.Namespace, every: dict[int, dict[str, Model]], accelerator: Accelerator) -> None:
    """Measure every size after the other; a table of what there is stands after each."""
    device, precision = told_devices(accelerator).rsplit(", in ", 1)
    memory = round(given.memory * 2**30) if given.memory else memory_of_device(accelerator.device)
    rows = read_rows(given.output / "cost.csv")
    if rows and (rows[0].device, rows[0].precision, rows[0].memory) != (device, precision, memory):
        raise UserError(
            f"--output {given.output} holds what was measured on {rows[0].device} in {rows[0].precision} for "
            f"{told_bytes(rows[0].memory)}, and this is {device} in {precision} for {told_bytes(memory)}: name another"
        )
    there, needs = {(row.backbone, row.img_size, row.mode) for row in rows}, 0.0
    for size, backbones in every.items():
        for mode in MODES:
            missing = {name: model for name, model in backbones.items() if (name, size, mode) not in there}
            if given.dry_run:
                needs += rehearsed(given, missing, mode, accelerator)
            elif missing:
                turns = (given.batch_size, given.rounds, memory, accelerator)
                rows += in_turns(missing, mode, *turns, {"device": device, "precision": precision})
                given.output.mkdir(parents=True, exist_ok=True)
                write_whole(given.output / "cost.csv", as_csv(rows))
    if given.dry_run:
        print(f"about {told_time(needs)} for what --output does not hold yet, as measured on {device} in {precision}")
        return
    asked = [row for row in rows if row.backbone in given.backbones and row.img_size in every]
    write_page(given.output, sorted(asked, key=lambda row: (given.backbones.index(row.backbone), row.img_size)))


def memory_of_device(device: torch.device) -> int:
    """Bytes of the GPU, else of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def rehearsed(given: argparse.Namespace, backbones: dict[str, Model], mode: str, accelerator: Accelerator) -> float:
    """Seconds that measuring would take, from one image of each backbone."""
    total = 0.0
    for model in backbones.values():
        images, train = images_for(model, 1, accelerator), mode == "training"
        go = pass_over(backbone_on(model, accelerator, train), images, train)
        [one] = seconds_in_turns({"": go}, 1)[""]
        passes = max(0.1, given.batch_size * one) * given.rounds + 2 * given.batch_size * one
        total += passes + (_TO_MEASURE_MEMORY if accelerator.device.type == "cpu" else 60 * one)
    return total


if __name__ == "__main__":
    run_file(__file__, main)
