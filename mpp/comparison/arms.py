"""The backbones that are compared: which are given, which are pretrained here, with which options, for how long."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpp.comparison.pieces import Piece, Start
from mpp.config.bounds import check_bounds
from mpp.config.checks import check_pretraining, texts
from mpp.config.command_line import options_of, overlaid
from mpp.config.commands import Compare, Pretrain, Supervised
from mpp.config.derived import height_width
from mpp.config.options import Data, LabelledAugment, LabelledData, LabelledTrain, Model, PooledModel, ProbedEval
from mpp.config.presets import find_preset, read_toml
from mpp.config.schedule import refuse_epochs
from mpp.data.identity import Identity
from mpp.data.splits import open_labelled, open_splits
from mpp.errors import UserError, renamed

TITLES = {"mpp": "MPP"}  # of an arm, where it is not its name
METHODS: dict[str, dict[str, Any]] = {  # the options of an arm that is named alone, over --pretrain's
    "mpp": {"method": "mpp"},
    "visible": {"method": "visible", "data": {"target": "hog+0.1*pixels"}},
}
TRAINED = (*METHODS, "supervised")


@dataclass(frozen=True)
class Arm:
    """One backbone that is compared, or one for each pretraining seed."""

    name: str
    inits: tuple[str, ...]  # as --init takes them, one for each pretraining seed
    pretrainings: tuple[Piece, ...] = ()  # the runs that make them; none of backbones that are given
    img_size: int | None = None  # the side of the images it is measured on, if it has its own

    def at(self, img_size: int) -> Arm:
        """The same backbones, measured on images of another side."""
        return dataclasses.replace(self, name=f"{self.name} at {img_size} px", img_size=img_size)

    def starts(self) -> list[Start]:
        """What downstream runs start from, for each pretraining seed."""
        pieces = self.pretrainings or (None,) * len(self.inits)
        return [Start(self.name, init, piece, self.img_size) for init, piece in zip(self.inits, pieces, strict=True)]


def pretrain_seeds(config: Compare) -> tuple[int, ...]:
    """Seeds of the pretrainings."""
    return config.pretrain_seeds or (config.pretrain.seed,)


def sources(config: Compare) -> dict[str, str]:
    """Where each arm comes from, by name as typed: "scratch", an INIT, a preset's name, or "" for trained here."""
    if not config.arms:
        found = {"scratch": "scratch", "mpp": config.mpp or "", "supervised": config.supervised or ""}
        return {name: source for name, source in found.items() if source != "none"} | _named("--others", config.others)
    return _named("--arms", config.arms)


def _named(option: str, entries: tuple[str, ...]) -> dict[str, str]:
    """Arms written as NAME=SOURCE and, in --arms, as NAME."""
    found: dict[str, str] = {}
    for entry in entries:
        name, given, source = entry.partition("=")
        taken = [*found, *(() if option == "--arms" else ("scratch", *TITLES, *TITLES.values(), "supervised"))]
        named = name.replace("-", "_").isidentifier() and name not in taken
        if not named or not (source or (not given and option == "--arms")):
            raise UserError(f"{option} {entry} must be NAME=INIT, with a name of its own, in letters and digits")
        if not source and name not in ("scratch", *TRAINED):
            raise UserError(
                f"{option} {entry}: only scratch, {', '.join(TRAINED)} are trained by their name alone; give "
                f"{entry}=INIT or {entry}=PRESET"
            )
        found[name] = source or ("scratch" if name == "scratch" else "")
    return found


def is_preset(source: str) -> bool:
    """Whether an arm's source is a preset, to be pretrained here."""
    return (file := find_preset(source)).suffix == ".toml" and file.is_file()


def trained_here(config: Compare, curves: bool = True) -> dict[str, Pretrain | Supervised]:
    """The options of every arm that is pretrained here, by name as typed; the seed and the folder come later. For
    `curves`, evaluations also probe the features on training images of the labelled set."""
    found: dict[str, Pretrain | Supervised] = {}
    for name, source in sources(config).items():
        if source and not is_preset(source):
            continue
        values = read_toml(source) if source else METHODS.get(name, {})
        options = _pretraining(config, values, f"{name}={source}")
        options = _with_curve(options, config) if curves else options
        found[name] = _supervised(config, options) if name == "supervised" else options
    return found


def _pretraining(config: Compare, values: dict[str, Any], arm: str) -> Pretrain:
    """The --pretrain options with other values over them. The images stay --pretrain's: all arms see the same."""
    own = {key: value for key, value in values.get("data", {}).items() if key in ("target", "bits")}
    values = {key: value for key, value in values.items() if key != "seed"} | {"data": own}
    options = overlaid(options_of(Pretrain, config.pretrain), values, "--arms", arm)
    with renamed("--", f"--arms {arm}: --", texts(options)):
        check_bounds(options)
        check_pretraining(options)
        refuse_epochs(options.train)
    return options


def _with_curve(options: Pretrain, config: Compare) -> Pretrain:
    """Options whose evaluations also probe features on the labelled set, if --eval.probe can name it."""
    data = config.data
    if options.eval.probe or not curve_is_possible(data):
        return options
    probed = dataclasses.replace(options.eval, probe=data.path, probe_label_column=data.label_column)
    return dataclasses.replace(options, eval=probed)


def curve_is_possible(data: Data) -> bool:
    """Whether --eval.probe can name the labelled set of a comparison."""
    return (data.config, data.labels_file, data.class_level, data.split) == (None, None, None, Data().split)


def _supervised(config: Compare, of: Pretrain) -> Supervised:
    """Supervised pretraining with the same images, model, augmentation, optimiser and steps as `of`."""
    return Supervised(
        data=options_of(LabelledData, of.data),
        model=options_of(PooledModel, of.model, pool=config.finetune.model.pool),
        augment=options_of(LabelledAugment, of.augment),
        optim=of.optim,
        train=options_of(LabelledTrain, of.train),
        eval=options_of(ProbedEval, of.eval),
        seed=of.seed,
    )


def arms_of(
    config: Compare, trained: dict[str, Pretrain | Supervised], output: Path, img_sizes: Sequence[int] = ()
) -> list[Arm]:
    """All arms, in order, with the runs that make them; then all again, measured at each of `img_sizes`."""
    seeds = pretrain_seeds(config)
    given = sources(config)
    arms = []
    for name in dict.fromkeys([*given, *trained]):
        if name in trained:
            pieces = tuple(_piece(config, name, trained[name], seed, output) for seed in seeds)
            arms.append(Arm(TITLES.get(name, name), tuple(str(piece.folder) for piece in pieces), pieces))
        else:
            arms.append(Arm(TITLES.get(name, name), tuple(given[name].replace("{seed}", str(seed)) for seed in seeds)))
    return [*arms, *(arm.at(side) for side in img_sizes for arm in arms)]


def _piece(config: Compare, name: str, options: Pretrain | Supervised, seed: int, output: Path) -> Piece:
    """The pretraining of an arm with a seed."""
    folder = output / "pretrain" / (name if seed == config.pretrain.seed else f"{name}-seed-{seed}")
    title = {"mpp": "by masked patch prediction", "supervised": "with labels", "visible": "from visible patches"}
    words = f"pretraining {title.get(name, name)}" + (f", seed {seed}" if config.pretrain_seeds else "")
    return Piece(words, folder, dataclasses.replace(options, seed=seed, output=str(folder), resume=True))


def with_identity(arm: Arm) -> Arm:
    """An arm whose pretrainings know what their images are now."""
    return dataclasses.replace(arm, pretrainings=tuple(map(_with_identity, arm.pretrainings)))


def _with_identity(piece: Piece) -> Piece:
    config: Any = piece.config
    if isinstance(config, Pretrain):
        uncached = dataclasses.replace(config, data=dataclasses.replace(config.data, cache=False))
        data = Identity.of(*open_splits(uncached, height_width(config.model.img_size)))
    else:
        data = Identity.of(*open_labelled(config.data, height_width(config.model.img_size), config.seed), labels=True)
    return dataclasses.replace(piece, data=data)


def shape_of(hub: dict[str, Any]) -> Model:
    """Model options from a backbone's own."""
    shape = {option.name: hub[option.name] for option in dataclasses.fields(Model) if option.name in hub}
    return Model(**shape | {"img_size": tuple(hub["img_size"])})
