"""The reproduction book: every system and figure of the ViT paper, small, on one page.

`python recipes/book.py` runs every part on the built-in images and writes book.html: each claim of the paper, our
figure, our number with its interval, the paper's number, and the command. A book that was cut goes on; `--only inside`
makes a part alone, `--dry-run` says how long each part takes.
"""

from __future__ import annotations

import argparse
import csv
import json
import runpy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mpp.comparison.report import Block, as_html, made_with
from mpp.comparison.statistics import Finding, cell_values, interval, points
from mpp.console import command
from mpp.files import write_whole


@dataclass(frozen=True)
class Setting:
    """What every part is made with."""

    output: Path
    unlabelled: str
    labelled: str
    steps: int
    seeds: tuple[str, ...]
    dry_run: bool

    def run(self, folder: str, name: str, *words: str) -> tuple[Path, str]:
        """Run a command, or the program of a recipe (NAME.py), into a folder of the book, unless it is done; returns
        the folder and the command's line. What looks at a run that is not there yet is not rehearsed."""
        output = self.output / folder
        line = [*words, "--output", str(output)]
        quoted = (f"'{word}'" if " " in word or "*" in word else word for word in line)
        shown = " ".join([f"python recipes/{name}" if name.endswith(".py") else f"mpp {name}", *quoted])
        program = partial(run_recipe, name) if name.endswith(".py") else command(name)
        if self.dry_run:
            print(f"\n{shown}")
            places = [Path(word.rpartition("=")[2]) for word in words]
            if any(place.parent == self.output and not place.exists() for place in places):
                print("it is rehearsed once the run that it begins with is there")
            elif name == "look":
                print("a minute")
            else:
                program([*line, "--dry-run"])
        elif not any((output / done).exists() for done in ("result.json", "book.done")):
            print(f"\n{shown}")
            if program(line) == {}:  # of a command that a signal stopped
                raise SystemExit(f"stopped: the same command goes on with {self.output}")
            (output / "book.done").touch()
        return output, shown

    @property
    def pretraining(self) -> list[str]:
        """Options of the pretrainings inside a comparison, alike in all parts."""
        return [
            *("--pretrain.data.path", self.unlabelled, "--data.path", self.labelled),
            *("--pretrain.train.steps", str(self.steps), "--pretrain-seeds", *self.seeds),
            *("--probe-labels", "2000", "--probe.eval-images", "2000"),
        ]


def pretraining(setting: Setting, name: str = "pretrained", *options: str) -> tuple[Path, str]:
    """A pretraining that several parts look at, four times as long as those of the comparisons."""
    words = ("--data.path", setting.unlabelled, "--train.steps", str(4 * setting.steps), "--train.log-every", "10")
    return setting.run(name, "pretrain", *words, *options)


def pretrained(setting: Setting, *name_and_options: str) -> str:
    """Such a run, made if it is missing, as --init takes it."""
    return str(pretraining(setting, *name_and_options)[0])


def masked(setting: Setting) -> list[Block]:
    """What masked patch prediction learns."""
    run, line = pretraining(setting)
    if setting.dry_run:
        return []
    found = json.loads((run / "result.json").read_text(encoding="utf-8"))
    rows = [
        ["the model", points(found["eval/bin_accuracy"])],
        ["guessing from the nearest visible patches", points(found["eval/baseline_neighbours"])],
        ["guessing the commonest colour", points(found["eval/baseline_majority"])],
    ]
    return [
        ("h2", "Masked patch prediction (appendix B.1.2)"),
        ("p", "Claim: a ViT can learn from images alone, by predicting the mean colour of corrupted patches."),
        ("table", (["accuracy on the corrupted patches of held-out images, %", "here"], rows)),
        ("figure", (max((run / "samples").glob("*.png")), "Input, corrupted, predicted and true colours")),
        ("p", f"Command: {line}"),
    ]


def help_(setting: Setting) -> list[Block]:
    """What pretraining buys."""
    given = setting.pretraining
    words = ("--arms", "mpp", "scratch", "supervised", "--labels", "1000", "--seeds", "0")
    run, line = setting.run("compared", "compare", *given, *words)
    if setting.dry_run:
        return []
    findings = read_findings(run / "results.csv")
    paper = {"MPP": "79.9", "scratch": "77.9", "supervised": "about 84"}
    rows = [[arm, cell(findings, arm, "fine-tuned"), paper[arm]] for arm in paper]
    return [
        ("h2", "Does it help? (section 4.6)"),
        (
            "p",
            "Claim: masked patch prediction is 2 points better than training from scratch, and 4 behind supervision.",
        ),
        ("table", (["fine-tuned, top-1 in %", "here", "ViT-B/16, ImageNet"], rows)),
        ("figure", (run / "plots" / "accuracy.png", "Accuracy of each arm")),
        ("p", f"Command: {line}"),
    ]


def inside(setting: Setting) -> list[Block]:
    """Filters, positions, attention."""
    init, hybrid = pretrained(setting), pretrained(setting, "hybrid", "--model.stem", "conv")
    beside = ("--beside", hybrid, "--data.path", setting.labelled)
    run, line = setting.run("look", "look", "--init", init, *beside)
    if setting.dry_run:
        return []
    rows = []
    for model, name in (("plain", "distance.csv"), ("hybrid", "distance-beside.csv")):
        with (run / name).open(encoding="utf-8") as file:
            pixels: dict[str, list[float]] = {}
            for row in csv.DictReader(file):
                pixels.setdefault(row["block"], []).append(float(row["pixels"]))
        rows.append([model, *(f"{sum(each) / len(each):.1f}" for each in pixels.values())])
    return [
        ("h2", "Inside (figure 7, appendix D.7)"),
        ("p", "Claim: the filters are a basis for the fine structure of a patch."),
        ("figure", (run / "filters.png", "Principal components of the patch-embedding filters")),
        ("p", "Claim: position embeddings of near patches are alike, by rows and columns."),
        ("figure", (run / "positions.png", "Similarity of position embeddings")),
        (
            "p",
            "Claim: heads look further with depth, some of the first blocks everywhere; a hybrid starts higher.",
        ),
        ("table", (["mean attention distance in pixels, by block", *pixels], rows)),
        ("figure", (run / "distance.png", "Mean attention distance by depth")),
        ("p", "Claim: the model attends to what matters for the class (there: of a supervised model)."),
        ("figure", (run / "rollout.png", "Attention rollout")),
        ("figure", (run / "features.png", "Components of the patches' features")),
        ("figure", (run / "predictions.png", "What the run of part masked predicts, and its best and worst patches")),
        ("figure", (run / "confusion.png", "Which colours it takes for which")),
        ("p", f"Command: {line}"),
    ]


def positions(setting: Setting) -> list[Block]:
    """Position embeddings compared."""
    preset = ("--config", "ablate-positions", *setting.pretraining)
    run, line = setting.run("positions", "ablate", *preset)
    if setting.dry_run:
        return []
    findings = read_findings(run / "results.csv")
    paper = {
        "MPP": "64.2",
        "model.pos_embed=2d": "64.0",
        "model.pos_embed=relative": "64.0",
        "model.pos_embed=none": "61.4",
    }
    arms = list(dict.fromkeys(finding.arm for finding in findings))
    rows = [[arm, cell(findings, arm, "5 labels a class"), paper.get(arm, "")] for arm in arms]
    return [
        ("h2", "Position embeddings (table 8)"),
        ("p", "Claim: 1-D, 2-D and relative embeddings are alike; without any, the model is 3 points worse."),
        ("table", (["5 labels a class, top-1 in % (MPP: 1-D)", "here", "ViT-B/16, ImageNet, 5-shot"], rows)),
        ("figure", (run / "ablation.png", "Differences to 1-D embeddings")),
        ("p", f"Command: {line}"),
    ]


def choices(setting: Setting) -> list[Block]:
    """The choices of masked patch prediction."""
    run, line = setting.run("choices", "ablate", "--config", "ablate-paper", *setting.pretraining)
    if setting.dry_run:
        return []
    findings = read_findings(run / "results.csv")
    paper = {"MPP": "best", "corrupt.ratio=0.15": "slightly worse", "data.target=pixels": "slightly worse"}
    arms = list(dict.fromkeys(finding.arm for finding in findings))
    rows = [[arm, cell(findings, arm, "5 labels a class"), paper.get(arm, "")] for arm in arms]
    return [
        ("h2", "The choices of masked patch prediction (appendix B.1.2)"),
        (
            "p",
            "Claim: the mean colour is the best target, pixels are slightly worse; corrupting 15 % is worse than 50 %.",
        ),
        ("table", (["5 labels a class, top-1 in %", "here", "paper"], rows)),
        ("figure", (run / "ablation.png", "Differences to the paper's setting")),
        ("p", f"Command: {line}"),
    ]


def scaling(setting: Setting) -> list[Block]:
    """Accuracy against compute and against images."""
    steps = [str(max(2, round(setting.steps * share))) for share in (0.25, 0.5, 1.0)]
    given = ("--config", "scaling-small", *setting.pretraining, "--steps", *steps)
    run, line = setting.run("scaling", "scaling", *given)
    if setting.dry_run:
        return []
    law = [text for text in (run / "scaling.md").read_text(encoding="utf-8").splitlines() if "to the power of" in text]
    return [
        ("h2", "Compute and images (figures 3, 4 and 5)"),
        ("p", "Claim: accuracy grows with pretraining compute and does not saturate; small sets need regularisation."),
        *(("p", sentence) for sentence in law),
        ("figure", (run / "scaling.png", "Accuracy of frozen features against pretraining FLOPs")),
        ("figure", (run / "data.png", "Accuracy against the share of the pretraining images")),
        ("p", f"Command: {line}"),
    ]


def kinds(setting: Setting) -> list[Block]:
    """Plain Vision Transformers, hybrids and a ResNet at equal compute."""
    steps = [str(max(2, round(setting.steps * share))) for share in (0.25, 0.5, 1.0)]
    given = ("--config", "scaling-supervised", *setting.pretraining, "--steps", *steps)
    run, line = setting.run("kinds", "scaling", *given)
    if setting.dry_run:
        return []
    law = [text for text in (run / "scaling.md").read_text(encoding="utf-8").splitlines() if "to the power of" in text]
    return [
        ("h2", "Plain, hybrid, ResNet (section 4.4, figure 5)"),
        (
            "p",
            "Claim: a ViT takes a half to a quarter of a ResNet's pretraining compute for the same accuracy; hybrids "
            "are a little better at small budgets, and the difference vanishes for larger models.",
        ),
        *(("p", sentence) for sentence in law),
        ("figure", (run / "scaling.png", "Accuracy of frozen features against FLOPs of pretraining with labels")),
        ("p", f"Command: {line}"),
    ]


def tasks(setting: Setting) -> list[Block]:
    """Many tasks with 1,000 labels each."""
    inits = ("--init", "scratch", f"pretrained={pretrained(setting)}")
    run, line = setting.run("tasks", "vtab.py", "shapes", "--small", *inits, "--seeds", *setting.seeds)
    if setting.dry_run:
        return []
    return [
        ("h2", "Many tasks, 1,000 labels each (VTAB-1k: section 4.2, table 2, figure 2)"),
        ("p", "Claim: pretraining helps most on natural images, and on tasks of structure, too."),
        ("table", (["mean of the 19 tasks, top-1 in %", "paper"], [list(row) for row in VTAB])),
        ("figure", (run / "results.png", "Accuracy by task and group, on the built-in images")),
        ("p", "The 19 tasks themselves: python recipes/vtab.py vtab-1k --data DIR --init RUN --output DIR."),
        ("p", f"Command: {line}"),
    ]


def cost(setting: Setting) -> list[Block]:
    """Images a second and the largest batch against input size."""
    backbones = ("nano", "nano stem=conv", "bit-nano patch_size=8")
    run, line = setting.run("cost", "cost.py", "--backbones", *backbones, "--sizes", "32", "64", "96")
    if setting.dry_run:
        return []
    return [
        ("h2", "Cost (appendix D.5, figure 12)"),
        ("p", "Claim: ViTs are as fast as ResNets of like accuracy, and larger batches of them fit into memory."),
        ("figure", (run / "speed.png", "Images a second against input size")),
        ("figure", (run / "batch.png", "Largest batch against input size")),
        ("p", f"Command: {line}"),
    ]


def dense(setting: Setting) -> list[Block]:
    """Segmentation and depth from frozen patches, the first open question of the paper."""
    rows, pictures, lines = [], [], []
    for task, measure in (("segmentation", "eval/miou"), ("depth", "eval/depth_rmse")):
        for name, init in {"pretrained": pretrained(setting), "random weights": "scratch"}.items():
            words = ["--init", init, "--data.path", "shapes", "--task", task]
            words += ["--data.label-column", "colour"] if task == "segmentation" else []
            run, line = setting.run(f"dense-{task}-{name.split()[0]}", "dense", *words)
            if setting.dry_run:
                continue
            found = json.loads((run / "result.json").read_text(encoding="utf-8"))
            low, high = found[f"{measure}_interval"]
            rows.append([task, name, f"{found[measure]:.3f}", f"{low:.3f} to {high:.3f}"])
            if name == "pretrained":
                pictures.append((max(run.glob("*.png")), f"{task}: image, truth, predictions"))
                lines.append(line)
    if setting.dry_run:
        return []
    return [
        ("h2", "Other tasks (section 5: detection and segmentation are open)"),
        (
            "p",
            "The paper leaves it open. Here frozen patches tell the class and the depth of each pixel.",
        ),
        ("table", (["task", "weights", "mean IoU, or RMSE", "95 % interval"], rows)),
        *(("figure", picture) for picture in pictures),
        *(("p", f"Command: {line}") for line in lines),
    ]


def references(setting: Setting) -> list[Block]:
    """The methods that the paper compares with."""
    blocks: list[Block] = []
    for name, title in (("noisy_student", "Noisy Student"), ("s4l", "S4L-Rotation")):
        run, line = setting.run(name, f"{name}.py", "--seeds", *setting.seeds)
        if setting.dry_run:
            continue
        with (run / "results.csv").open(encoding="utf-8") as file:
            found: dict[str, list[float]] = {}
            for row in csv.DictReader(file):
                found.setdefault(row["arm"], []).append(float(row["top1"]))
        rows = [[arm, points(*interval(values))] for arm, values in found.items()]
        blocks += [("table", ([f"{title}: held-out top-1 in %", "here"], rows)), ("p", f"Command: {line}")]
    return [
        ("h2", "The references (table 2, figure 2)"),
        (
            "p",
            "Noisy Student (arXiv 1911.04252) and S4L (1905.03670) run here as small recipes; BiT is the ResNet of the "
            "part above; VIVI (1912.02783) learns from video and is cited only.",
        ),
        ("table", (["ImageNet top-1, %", "paper"], [list(row) for row in IMAGENET])),
        *blocks,
    ]


VTAB = (  # arXiv 2010.11929, table 2
    ("ViT-H/14, JFT-300M", "77.63 ± 0.23"),
    ("ViT-L/16, JFT-300M", "76.28 ± 0.46"),
    ("ViT-L/16, ImageNet-21k", "72.72 ± 0.21"),
    ("BiT-L (ResNet152x4), JFT-300M", "76.29 ± 1.70"),
)
IMAGENET = (  # the same table
    ("ViT-H/14, JFT-300M", "88.55 ± 0.04"),
    ("ViT-L/16, JFT-300M", "87.76 ± 0.03"),
    ("ViT-L/16, ImageNet-21k", "85.30 ± 0.02"),
    ("BiT-L (ResNet152x4), JFT-300M", "87.54 ± 0.02"),
    ("Noisy Student (EfficientNet-L2)", "88.4 / 88.5"),
)


def run_recipe(file: str, args: Sequence[str]) -> None:
    """Run the program of another recipe."""
    runpy.run_path(str(Path(__file__).with_name(file)))["main"](args)


PARTS: dict[str, Callable[[Setting], list[Block]]] = {
    "masked": masked,
    "help": help_,
    "inside": inside,
    "positions": positions,
    "choices": choices,
    "scaling": scaling,
    "kinds": kinds,
    "tasks": tasks,
    "cost": cost,
    "dense": dense,
    "references": references,
}
MISSING = (
    "What the paper shows and this book does not: its own data (JFT-300M, ImageNet-21k) and sizes, the figures on "
    "ImageNet and ReaL, and VIVI. Every command here takes other images and sizes."
)


def read_findings(file: Path) -> list[Finding]:
    """All numbers of a comparison's results.csv."""
    with file.open(encoding="utf-8") as table:
        return [
            Finding(
                *(row["arm"], row["protocol"], int(row["labels"]), int(row["seed"])),
                *(float(row["value"]), int(row["pretrain_seed"])),
            )
            for row in csv.DictReader(table)
        ]


def cell(findings: list[Finding], arm: str, protocol: str) -> str:
    """Mean and interval of an arm in a protocol."""
    labels = next(finding.labels for finding in findings if finding.protocol == protocol)
    return points(*interval(cell_values(findings, arm, protocol, labels)))


def main(args: Sequence[str] | None = None) -> None:
    """Make the book."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/book"), help="the book's folder")
    parser.add_argument("--unlabelled", default="shapes", help="images to pretrain on, as --data.path")
    parser.add_argument("--labelled", default="shapes", help="labelled images to measure on, as --data.path")
    parser.add_argument("--steps", type=int, default=200, help="steps of each short pretraining")
    parser.add_argument("--seeds", nargs="+", default=["0", "1", "2"], help="seeds of pretraining")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="make these parts alone")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done, and how long it takes")
    given = parser.parse_args(args)
    setting = Setting(
        given.output, given.unlabelled, given.labelled, given.steps, tuple(given.seeds), dry_run=given.dry_run
    )
    chapters = [block for name in PARTS if name in given.only for block in PARTS[name](setting)]
    if setting.dry_run:
        return
    blocks: list[Block] = [
        ("h1", "An image is worth 16 x 16 words, small"),
        ("p", "Each claim of the ViT paper (arXiv 2010.11929) beside what this machine measures with ViT nano."),
        *chapters,
        ("h2", "Not here"),
        ("p", MISSING),
        ("h2", "Made with"),
        ("p", made_with()),
    ]
    write_whole(setting.output / "book.html", as_html(blocks, "The reproduction book").encode())
    print(f"\n{setting.output / 'book.html'}")


if __name__ == "__main__":
    main()
