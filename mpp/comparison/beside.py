"""What semi-supervised recipes share: a set with few labels, its options, and arms beside the first over seeds."""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mpp.comparison.report import Block, Table, as_markdown, made_with
from mpp.comparison.scaling import named_changes
from mpp.comparison.statistics import interval, points
from mpp.data.few_labels import FewLabels, few_labels
from mpp.data.sources.memory import from_memory
from mpp.errors import UserError, counted, escaped
from mpp.evaluation.intervals import interval_of
from mpp.files import write_whole
from mpp.run.folder import holds_a_run
from mpp.run.measured import told_time

OneSeed = tuple[dict[str, float], str]  # held-out accuracy of each arm, and what is said of it
BATCH = 32  # labelled images a step
_SMALL = ["patch_size=8", "embed_dim=96", "depth=4", "num_heads=3"]  # a tenth of the arithmetic of nano


def of_few_labels(description: str | None, steps: int, output: str) -> argparse.ArgumentParser:
    """A recipe's options: its images, its trainings and its folder."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="shapes", help="labelled images, as --data.path")
    parser.add_argument("--label-column", help="as --data.label-column; default: for shapes, colour")
    parser.add_argument("--labels", type=int, default=200, help="images with labels")
    parser.add_argument("--unlabelled", type=int, default=4000, help="images whose labels are not looked at")
    parser.add_argument("--held-out", type=int, default=2000, help="images to measure on, at most")
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--model", nargs="*", default=_SMALL, help=f"options of --model; default: {' '.join(_SMALL)}")
    parser.add_argument("--steps", type=int, default=steps, help="steps of each training")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of labels, weights and order")
    parser.add_argument("--output", type=Path, default=Path(output), help="folder of runs and table")
    parser.add_argument("--dry-run", action="store_true", help="only say how long it takes")
    return parser


def drawn(given: argparse.Namespace, seed: int) -> FewLabels:
    """The images that the options of `of_few_labels` ask for."""
    counts = (given.labels, given.unlabelled, given.held_out)
    column = given.label_column or ("colour" if given.data == "shapes" else None)  # shapes take longer to be learnt
    return few_labels(given.data, column, given.size, *counts, seed)


def begun(given: argparse.Namespace) -> None:
    """Note the options in the folder. Raises UserError if it was begun with others; seeds and rounds may be added."""
    free = ("output", "seeds", "rounds", "dry_run")
    options = {name: value for name, value in vars(given).items() if name not in free}
    file = given.output / "options.json"
    if file.exists() and (old := json.loads(file.read_text(encoding="utf-8"))) != options:
        other = next(name for name in options if old.get(name) != options[name])
        raise UserError(
            f"--output {given.output} was begun with --{other.replace('_', '-')} {old.get(other)}, not "
            f"{options[other]}: name another folder"
        )
    given.output.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(options, indent=1).encode())


def fine_tuning(given: argparse.Namespace, seed: int, steps: int) -> dict[str, Any]:
    """What `mpp.finetune` is given beside its images, in each arm."""
    return {
        "model": {"img_size": given.size} | named_changes("--model", " ".join(given.model), given.model),
        "train": {"steps": steps, "batch_size": BATCH},
        "optim": {"warmup_steps": given.steps // 8},
        "eval": {"every": steps},
        "seed": seed,
    }


def top1_of(output: Path, finetune: Callable[..., Mapping[str, Any]], **options: Any) -> float:
    """Held-out accuracy of a training into a folder, which is done if it is not yet, and goes on where it was cut."""
    done = (output / "result.json").exists()
    if not done and not finetune(**options, output=str(output), resume=holds_a_run(output)):
        raise SystemExit(f"stopped: the same command goes on with {output}")
    return json.loads((output / "result.json").read_text(encoding="utf-8"))["eval/top1"]


def beside(values: Mapping[str, Sequence[float]], images: int) -> Table:
    """A row for each arm from its accuracies, one a seed: mean and half the 95 % interval over seeds, and the same of
    the differences to the first arm, paired by seed. With one seed the interval is that of `images` held-out images."""
    first = next(iter(values))
    several = len(values[first]) > 1
    header = ["", "top-1, %", *([] if several else ["95 % interval of the images"]), f"beside {first}, points"]
    rows = []
    for arm, each in values.items():
        gains = [mine - theirs for mine, theirs in zip(each, values[first], strict=True)]
        gain, half = interval(gains)
        alike = half is None or all(math.isclose(gain, one) for one in gains)
        middle = [] if several else ["{:.1f} to {:.1f}".format(*(100 * edge for edge in interval_of(each[0], images)))]
        shown = "" if arm == first else points(gain + 0.0, None if alike else half)
        rows.append([arm, points(*interval(each)), *middle, shown])
    return header, rows


def over_seeds(
    given: argparse.Namespace,
    title: str,
    one_seed: Callable[[argparse.Namespace, FewLabels, int], OneSeed],
    trainings: float,
    finetune: Callable[..., Mapping[str, Any]],
) -> None:
    """Train every arm for every seed, then write results.csv and results.md, and print the table and what is said. With
    --dry-run only say how long it takes: as long as so many `trainings` on labels alone for each seed."""
    if given.dry_run:
        images = drawn(given, given.seeds[0])
        data = from_memory({"train": images.labelled, "test": images.held_out}, label_names=images.classes)
        found = finetune(data=data, **fine_tuning(given, given.seeds[0], given.steps), dry_run=True)
        needs = told_time(found["seconds"] * trainings * len(given.seeds))
        print(
            f"about {needs} in all: as long as {trainings:g} of these for each of {counted(len(given.seeds), 'seed')}"
        )
        return
    begun(given)
    values: dict[str, list[float]] = {}
    says: list[str] = []
    for seed in given.seeds:
        images = drawn(given, seed)
        top1, said = one_seed(given, images, seed)
        for arm, value in top1.items():
            values.setdefault(arm, []).append(value)
        says.append(f"seed {seed}: {said}")
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["arm", "seed", "top1"])
    writer.writerows([arm, *pair] for arm, each in values.items() for pair in zip(given.seeds, each, strict=True))
    write_whole(given.output / "results.csv", text.getvalue().encode())
    count = len(images.held_out[1])
    what = f"Top-1 on the same {count:,} held-out images; seeds {', '.join(map(str, given.seeds))}" + (
        ": mean ± half the 95 % interval over seeds, differences paired by seed." if len(given.seeds) > 1 else "."
    )
    table: Block = ("table", beside(values, count))
    blocks: list[Block] = [("h1", title), ("p", what), table, *(("p", each) for each in says), ("p", made_with())]
    write_whole(given.output / "results.md", as_markdown(blocks, given.output, escaped).encode())
    lines = "\n".join(says)
    print(f"\n{title}. {what}\n\n{as_markdown([table], given.output)}\n{lines}\n{given.output / 'results.md'}")
