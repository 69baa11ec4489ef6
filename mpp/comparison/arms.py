"""The backbones that are compared: which are given, which are pretrained here, with which options, for how long."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mpp.comparison.pieces import Piece, Start
from mpp.config.bounds import check_bounds
from mpp.config.checks import check_corruption, check_pretraining, refuse_odd_shape, texts
from mpp.config.command_line import options_of, overlaid, without_shape
from mpp.config.commands import Compare, Pretrain, Supervised
from mpp.config.derived import height_width, is_resnet
from mpp.config.options import Data, LabelledAugment, LabelledData, LabelledTrain, Model, PooledModel, ProbedEval
from mpp.config.own import is_own
from mpp.config.presets import find_preset, read_toml
from mpp.config.schedule import refuse_epochs
from mpp.data.identity import Identity
from mpp.data.splits import open_labelled, open_splits
from mpp.errors import UserError, renamed
from mpp.models.backbone import Backbone
from mpp.models.backbones import downstream_vit

AnyPretraining = TypeVar("AnyPretraining", bound=Pretrain | Supervised)

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


def preset_of(source: str) -> tuple[str, str]:
    """The preset that an arm is pretrained here with, and the arm that it goes on from: of PRESET or PRESET@ARM; "" if
    there is none."""
    preset, at, arm = source.rpartition("@")
    for name, start in ((source, ""), (preset, arm) if at else ("", "")):
        if (file := find_preset(name)).suffix == ".toml" and file.is_file():
            return name, start
    return "", ""


def given_here(config: Compare) -> dict[str, str]:
    """The arms whose weights are given, by name as typed, with their INIT."""
    found = sources(config).items()
    return {name: source for name, source in found if source != "scratch" and is_given(source)}


def start_of(config: Compare, name: str, source: str, values: dict[str, Any]) -> str:
    """What the pretraining of an arm goes on from, as --init takes it: the weights of the arm that is named after @, or
    of the only one that has weights if the preset asks for some; else scratch."""
    start, given = preset_of(source)[1], given_here(config)
    known = f"; those with weights: {', '.join(given)}" if given else ""
    if start and start not in given:
        raise UserError(f"--arms {name}={source}: {start} is no arm with weights, as {start}=INIT would be{known}")
    if start or values.get("init") != "":
        return given[start] if start else values.get("init", "scratch")
    if len(given) != 1:
        raise UserError(
            f"--arms {name}={source}: this preset goes on from weights; say of which arm, as in {name}={source}@public "
            f"beside public=INIT{known}"
        )
    return next(iter(given.values()))


def is_given(source: str) -> bool:
    """Whether an arm's source is a backbone that is there already."""
    return source != "" and not is_own(source) and not preset_of(source)[0]


def trained_here(config: Compare, curves: bool = True) -> dict[str, Pretrain | Supervised]:
    """The options of every arm that is pretrained here, by name as typed; the seed and the folder come later. For
    `curves`, evaluations also probe the features on training images of the labelled set."""
    found: dict[str, Pretrain | Supervised] = {}
    for name, source in sources(config).items():
        if is_given(source):
            continue
        if is_own(source):
            values: dict[str, Any] = {"method": source}
        else:
            values = read_toml(preset_of(source)[0]) if source else METHODS.get(name, {})
        options = _pretraining(config, values, f"{name}={source}", start_of(config, name, source, values))
        options = _with_curve(options, config) if curves else options
        labelled = name == "supervised" or is_resnet(options.model)  # which has no patches to mask
        found[name] = _supervised(config, options) if labelled else options
    return found


def _pretraining(config: Compare, values: dict[str, Any], arm: str, init: str) -> Pretrain:
    """The --pretrain options with other values over them. The images stay --pretrain's: all arms see the same; weights
    have a shape of their own."""
    own = {key: value for key, value in values.get("data", {}).items() if key in ("target", "bits")}
    values = {key: value for key, value in values.items() if key not in ("seed", "init")} | {"data": own}
    model = config.pretrain.model
    if init != "scratch":
        model = Model(img_size=None, dropout=model.dropout, drop_path=model.drop_path)
        values = without_shape(values) if "model" in values else values
    options = overlaid(options_of(Pretrain, config.pretrain, init=init, model=model), values, "--arms", arm)
    with renamed("--", f"--arms {arm}: --", texts(options)):
        check_bounds(options)
        if init == "scratch" and is_resnet(options.model):
            refuse_odd_shape(options.model)
        elif init == "scratch":
            check_pretraining(options)
        else:
            check_corruption(options)
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
    given = {name: source for name, source in sources(config).items() if name in trained or is_given(source)}
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
    return Piece(words, folder, dataclasses.replace(seeded(options, seed), output=str(folder), resume=True))


def seeded(options: AnyPretraining, seed: int) -> AnyPretraining:
    """The options of a pretraining with a seed, and the weights for this seed if it goes on from such."""
    return dataclasses.replace(options, seed=seed, init=options.init.replace("{seed}", str(seed)))


def encoder_of(options: Pretrain | Supervised) -> Backbone:
    """The encoder that a pretraining begins with."""
    return downstream_vit(options.init, options.model, options.data.channels or 3)


def with_identity(arm: Arm) -> Arm:
    """An arm whose pretrainings know what their images are now."""
    return dataclasses.replace(arm, pretrainings=tuple(map(_with_identity, arm.pretrainings)))


def _with_identity(piece: Piece) -> Piece:
    config: Any = piece.config
    size = height_width(config.model.img_size) if config.init == "scratch" else encoder_of(config).img_size
    if isinstance(config, Pretrain):
        uncached = dataclasses.replace(config, data=dataclasses.replace(config.data, cache=False))
        data = Identity.of(*open_splits(uncached, size))
    else:
        data = Identity.of(*open_labelled(config.data, size, config.seed), labels=True)
    return dataclasses.replace(piece, data=data)


def shape_of(hub: dict[str, Any]) -> Model:
    """Model options from a backbone's own."""
    shape = {option.name: hub[option.name] for option in dataclasses.fields(Model) if option.name in hub}
    return Model(**shape | {"img_size": tuple(hub["img_size"])})
