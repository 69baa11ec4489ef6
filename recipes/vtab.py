"""VTAB-1k (arXiv 1910.04867): what a backbone is worth with 1,000 labels, on many tasks of three kinds.

`python recipes/vtab.py SUITE --init scratch RUN [RUN ...] --data DIR --output OUT` fine-tunes every backbone on every
task of a suite: 1,000 training labels, one recipe for all tasks (--choose-lr tries rates on 200 labels), the test split
looked at once. SUITE is a TOML file or a name in recipes/suites: `vtab-1k`, the 19 tasks; `shapes` and `offline`,
which need no download. OUT gets results.md, results.csv and results.png. A suite that was cut goes on.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mpp.comparison.plots import paint_suite
from mpp.comparison.report import made_with
from mpp.comparison.suite import Score, as_csv, as_markdown, rows_of
from mpp.config.hub import on_hub
from mpp.config.presets import read_toml
from mpp.console import command, run_file
from mpp.errors import UserError, counted, listed
from mpp.files import as_json, write_whole

SUITES = Path(__file__).parent / "suites"
GROUPS = ("natural", "specialized", "structured")
OPTIONS = ("label_column", "image_column", "labels_file", "class_level", "config", "split", "eval_split", "hold_out")


@dataclass(frozen=True)
class Task:
    """A labelled set, given by its place or by the loader that reads it there."""

    name: str
    group: str
    path: str = ""
    loader: str = ""
    options: dict[str, Any] = field(default_factory=dict)  # of --data

    def words(self, folder: Path) -> list[str]:
        """The options that name the set; `folder` is --data. Raises UserError if it is not there."""
        here = folder / os.path.expanduser(self.path)
        if self.loader:
            from mpp.data.sources.vtab import load_task

            path = load_task(self.loader, here)
        elif self.path == "shapes" or here.exists() or on_hub(self.path, "path") is not None:
            path = str(here) if here.exists() else self.path
        else:
            raise UserError(f"task {self.name}: {here} does not exist; put the set there, or name others with --only")
        found = ["--data.path", path]
        for name, value in self.options.items():
            value = folder / value if name == "labels_file" else value
            found += [f"--data.{name.replace('_', '-')}", str(value)]
        return found


def read_suite(name: str) -> tuple[str, list[Task]]:
    """The title and the tasks of a suite. Raises UserError that names what is wrong in its file."""
    file = Path(name) if Path(name).exists() else SUITES / f"{name.removesuffix('.toml')}.toml"
    if not file.is_file():
        known = sorted(path.stem for path in SUITES.glob("*.toml"))
        raise UserError(f"SUITE {name} is no file, and none of those that come along: {', '.join(known)}")
    values = read_toml(file)
    tasks = [_task(file, number, entry) for number, entry in enumerate(values.get("tasks", []), start=1)]
    if not tasks:
        raise UserError(f"{file} has no [[tasks]]")
    if twice := {task.name for task in tasks if sum(other.name == task.name for other in tasks) > 1}:
        raise UserError(f"{file} has two tasks called {listed(sorted(twice))}")
    return str(values.get("title", file.stem)), tasks


def _task(file: Path, number: int, entry: dict[str, Any]) -> Task:
    known = ("name", "group", "path", "loader", *OPTIONS)
    if unknown := [key for key in entry if key not in known]:
        raise UserError(f"{file}, task {number}: {listed(unknown)} is no key of a task; these are: {', '.join(known)}")
    if not re.fullmatch(r"[\w.-]+", str(entry.get("name", ""))) or entry.get("group") not in GROUPS:
        raise UserError(
            f"{file}, task {number}: it needs a name (letters, digits, . - _) and a group: {', '.join(GROUPS)}"
        )
    if "path" not in entry and "loader" not in entry:
        raise UserError(f"{file}, task {number}: it needs path (as --data.path) or loader")
    options = {key: entry[key] for key in OPTIONS if key in entry}
    return Task(entry["name"], entry["group"], str(entry.get("path", "")), str(entry.get("loader", "")), options)


def backbones_of(given: Sequence[str]) -> dict[str, str]:
    """Name -> what --init takes, from NAME=RUN or RUN, whose name is that of its folder."""
    found: dict[str, str] = {}
    for word in given:
        name, equals, init = word.partition("=")
        if not equals:
            name, init = Path(word).name, word
        if not re.fullmatch(r"[\w.:@+-]+", name) or name in found:
            raise UserError(f"--init {word}: {name!r} is no name, or one of two; give NAME={init}")
        found[name] = init
    return found


def recipe_of(given: argparse.Namespace) -> list[str]:
    """The options of every fine-tuning but its set, backbone and seed. The image size is said on the line: in a preset
    it would yield to that of the weights."""
    preset = given.recipe or ("vtab-small" if given.small else "vtab-paper")
    words = ["--config", preset, "--data.labels", str(given.labels)]
    if (size := read_toml(preset).get("model", {}).get("img_size")) is not None:
        words += ["--model.img-size", str(size)]
    return words + (["--optim.lr-grid", *map(str, given.choose_lr)] if given.choose_lr else [])


def settle(output: Path, recipe: list[str], tasks: list[Task], backbones: dict[str, str]) -> None:
    """Note in the suite's folder what its runs are made with. Raises UserError if runs there were made otherwise."""
    file = output / "suite.json"
    then = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    now = {"recipe": {"words": recipe, "preset": read_toml(recipe[1])}, "backbones": backbones}
    now = json.loads(as_json(now | {"tasks": {task.name: asdict(task) for task in tasks}}))
    for kind, entries in now.items():
        before = then.setdefault(kind, {})
        if changed := [name for name in entries if name in before and before[name] != entries[name]]:
            what = f"another {kind.removesuffix('s')} ({listed(changed)}; {file} has it)"
            raise UserError(f"--output {output} was begun with {what}; give another folder")
        before |= entries
    output.mkdir(parents=True, exist_ok=True)
    write_whole(file, as_json(then).encode())


def run_suite(given: argparse.Namespace) -> list[Score] | None:
    """Fine-tune all backbones on all tasks, with all seeds; returns what is done, and None if a signal stopped it."""
    title, tasks = read_suite(given.suite)
    backbones, recipe = backbones_of(given.init), recipe_of(given)
    if strangers := [name for name in given.only or [] if name not in {task.name for task in tasks}]:
        raise UserError(f"--only {listed(strangers)}: {title} has the tasks {', '.join(task.name for task in tasks)}")
    chosen = [task for task in tasks if task.name in (given.only or [task.name])]
    for task in chosen:
        if not task.loader:
            task.words(given.data)  # a set that is missing is told before others have run for hours
    if not given.dry_run:
        settle(given.output, recipe, tasks, backbones)
    seeds = list(dict.fromkeys(given.seeds))
    print(
        f"{title}: {counted(len(chosen), 'task')}, {counted(len(backbones), 'backbone')}, "
        f"{counted(len(seeds), 'seed')}: {counted(len(chosen) * len(backbones) * len(seeds), 'fine-tuning')}"
    )
    for task in chosen:
        places = {(b, seed): given.output / task.name / b / str(seed) for b in backbones for seed in seeds}
        missing = [key for key, place in places.items() if not (place / "result.json").exists()]
        data = task.words(given.data) if missing else []
        for backbone, seed in missing:
            place = places[backbone, seed]
            line = ["--init", backbones[backbone], *recipe, *data, "--seed", str(seed), "--output", str(place)]
            print(f"\n{task.name}, {backbone}, seed {seed}: mpp finetune {' '.join(line)}")
            if given.dry_run:
                command("finetune")([*line, "--dry-run"])
                break  # the others take as long
            if not command("finetune")([*line, "--resume"]):
                print("the same command goes on with the suite")
                return None
    return [
        score_of(task, backbone, seed, given.output)
        for task in tasks
        for backbone in backbones
        for seed in seeds
        if all((given.output / task.name / b / str(s) / "result.json").exists() for b in backbones for s in seeds)
    ]


def score_of(task: Task, backbone: str, seed: int, output: Path) -> Score:
    """The score of a fine-tuning that is done."""
    found = json.loads((output / task.name / backbone / str(seed) / "result.json").read_text(encoding="utf-8"))
    return Score(
        *(task.name, task.group, backbone, seed, found["eval/top1"], found["eval_images"], found["classes"]),
        *(found["labels"], found["step"], found["lr"], found["seconds"]),
    )


def write_tables(scores: list[Score], title: str, given: argparse.Namespace) -> None:
    """Write the results as a table, lines and a plot, and print the table."""
    recipe = " ".join(recipe_of(given))
    chosen = " The rate is the best of several on a fifth of the labels." if given.choose_lr else ""
    how = f"Fine-tuned with {given.labels:,} labels (`mpp finetune {recipe}`).{chosen} {made_with()}"
    text = as_markdown(title, scores, how)
    write_whole(given.output / "results.md", text.encode())
    write_whole(given.output / "results.csv", as_csv(scores).encode())
    picture = io.BytesIO()
    paint_suite(rows_of(scores), title).savefig(picture, format="png", dpi=110)
    write_whole(given.output / "results.png", picture.getvalue())
    print(f"\n{text}")
    print(f"{given.output / 'results.md'}, .csv and .png")


def main(args: Sequence[str] | None = None) -> None:
    """Run a suite."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", metavar="SUITE", help="a TOML file of tasks, or a name in recipes/suites")
    parser.add_argument(
        "--init", nargs="+", required=True, help="backbones, as finetune's --init, or NAME=RUN; scratch"
    )
    parser.add_argument("--output", type=Path, required=True, help="the folder of all runs and of the tables")
    parser.add_argument("--data", type=Path, default=Path(), help="the folder that the suite's paths begin in")
    parser.add_argument(
        "--only", nargs="+", metavar="TASK", help="run these tasks alone; the tables have all that is done"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="each draws other labels (default: 0)")
    parser.add_argument("--labels", type=int, default=1000, help="training labels of each task")
    parser.add_argument(
        "--small", action="store_true", help="the recipe for CPUs, 32 px and 300 steps, not the paper's"
    )
    parser.add_argument("--recipe", metavar="PRESET", help="another recipe: a preset of finetune, by name or file")
    parser.add_argument(
        "--choose-lr", nargs="+", type=float, metavar="LR", help="rates to try on a fifth of the labels"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what a fine-tuning of each task takes; write nothing"
    )
    given = parser.parse_args(args)
    scores = run_suite(given)
    if given.dry_run or scores is None:
        return
    if not scores:
        raise UserError("no task is done with all backbones and seeds")
    write_tables(scores, read_suite(given.suite)[0], given)


if __name__ == "__main__":
    run_file(__file__, main)
