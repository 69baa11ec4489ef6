"""The reproduction book: the ViT paper's figures of its inside and of masked patch prediction, small, on one page.

`python recipes/book.py` runs every part on the built-in images and writes book.html: each claim of the paper, our
figure, our number with its interval, the paper's number, and the command. A book that was cut goes on; `--only inside`
makes a part alone, `--dry-run` says how long each part takes.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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

    def run(self, folder: str, *words: str) -> tuple[Path, str]:
        """Run a command into a folder of the book, unless it is done; returns the folder and the command's line."""
        output = self.output / folder
        line = [*words, "--output", str(output)]
        shown = " ".join(["mpp", *(f"'{word}'" if " " in word or "*" in word else word for word in line)])
        if self.dry_run:
            print(f"\n{shown}")
            command(words[0])([*line[1:], *([] if words[0] == "look" else ["--dry-run"])])
        elif not any((output / name).exists() for name in ("result.json", "book.done")):
            print(f"\n{shown}")
            command(words[0])(line[1:])
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


def masked(setting: Setting) -> list[Block]:
    """What masked patch prediction learns."""
    words = ("--data.path", setting.unlabelled, "--train.steps", str(4 * setting.steps), "--train.log-every", "10")
    run, line = setting.run("pretrained", "pretrain", *words)
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
    init = setting.output / "pretrained"
    if not setting.dry_run and not (init / "result.json").exists():
        masked(setting)
    if setting.dry_run:
        print("\nmpp look: under a minute, of the run of part masked")
        return []
    run, line = setting.run("look", "look", "--init", str(init), "--data.path", setting.labelled)
    with (run / "distance.csv").open(encoding="utf-8") as file:
        pixels: dict[str, list[float]] = {}
        for row in csv.DictReader(file):
            pixels.setdefault(row["block"], []).append(float(row["pixels"]))
    header, means = list(pixels), [f"{sum(each) / len(each):.1f}" for each in pixels.values()]
    return [
        ("h2", "Inside (figure 7, appendix D.7)"),
        ("p", "Claim: the filters are a basis for the fine structure of a patch."),
        ("figure", (run / "filters.png", "Principal components of the patch-embedding filters")),
        ("p", "Claim: position embeddings of near patches are alike, by rows and columns."),
        ("figure", (run / "positions.png", "Similarity of position embeddings")),
        ("p", "Claim: heads look further with depth; in the first blocks some look over the whole image."),
        ("table", (["block", *header], [["mean attention distance, pixels", *means]])),
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


PAPERS_POSITIONS = {"2d": "64.0", "relative": "64.0", "none": "61.4"}
PARTS: dict[str, Callable[[Setting], list[Block]]] = {
    "masked": masked,
    "help": help_,
    "inside": inside,
    "positions": positions,
    "choices": choices,
    "scaling": scaling,
}
MISSING = (
    "What the paper shows and this book does not: hybrids and ResNets (section 4.2, figure 5), the 19 tasks of VTAB-1k "
    "(table 2; recipes/vtab.py), images a second against input size (appendix D.5), and the references that are no "
    "ViT: Noisy Student, S4L, and VIVI, which learns from video and is cited only."
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
