"""The one door to every command: `mpp NAME`, the files that `accelerate launch` runs, and `mpp.pretrain(...)`.

A command goes the same way from each: options -> checks -> devices -> the work.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib import import_module, util
from importlib.metadata import version
from typing import Any, NoReturn

from mpp.config import (
    Ablate,
    Cache,
    Compare,
    Convert,
    Dense,
    Doctor,
    Embed,
    FineTune,
    LinearProbe,
    Look,
    Pack,
    Predict,
    Pretrain,
    Scaling,
    Supervised,
)
from mpp.config.checks import check
from mpp.config.command_line import as_arguments, parse
from mpp.config.commands import AnyCommand, Plain, Run
from mpp.config.options import LabelledData, PretrainData
from mpp.config.own import name_of
from mpp.config.presets import presets, purpose
from mpp.config.words import given
from mpp.errors import UserError, is_first_process, plain_warnings
from mpp.files import shipped
from mpp.run.command import loss_of_a_process, run_command
from mpp.run.launch import launched, processes_asked_for
from mpp.run.log import LOG
from mpp.run.stops import STOP, Stopped


@dataclass(frozen=True)
class Command:
    """A command: its options, and the function that does its work, as "module:function"."""

    options: type
    work: str
    in_place: tuple[str, ...] = ()  # options whose values may come first, without their names


_DATA, _RUN_DATA = ("--data.path",), ("--init", "--data.path")
COMMANDS = {
    "pretrain": Command(Pretrain, "mpp.commands.pretrain:run_pretraining", _DATA),
    "supervised": Command(Supervised, "mpp.commands.supervised:run_supervised", _DATA),
    "finetune": Command(FineTune, "mpp.commands.finetune:run_finetune", _RUN_DATA),
    "probe": Command(LinearProbe, "mpp.commands.linear_probe:run_probe", _RUN_DATA),
    "compare": Command(Compare, "mpp.comparison.compare:run_comparison", _DATA),
    "ablate": Command(Ablate, "mpp.comparison.ablate:run_ablation", _DATA),
    "scaling": Command(Scaling, "mpp.comparison.scaling:run_scaling", _DATA),
    "predict": Command(Predict, "mpp.commands.predict:run_predict", _RUN_DATA),
    "embed": Command(Embed, "mpp.commands.embed:run_embed", _RUN_DATA),
    "dense": Command(Dense, "mpp.commands.dense:run_dense", _RUN_DATA),
    "look": Command(Look, "mpp.commands.look:run_look", _RUN_DATA),
    "convert": Command(Convert, "mpp.commands.convert:run_convert", ("--init",)),
    "pack": Command(Pack, "mpp.commands.pack:run_pack", _DATA),
    "doctor": Command(Doctor, "mpp.commands.doctor:run_doctor", _DATA),
    "cache": Command(Cache, "mpp.commands.cache:run_cache"),
}
OTHERS = {
    "benchmark": "Measure training steps, the loader and the training command, beside other libraries.",
    "completion": 'Print what completes commands and options in bash or zsh: eval "$(mpp completion bash)".',
    "presets": "List the presets: their names, what they are for, and their files.",
}


def start(config: AnyCommand) -> Any:
    """Check a command's options, set up the devices and do its work. Returns what the command found, and nothing if a
    signal stopped it."""
    with plain_warnings(), LOG.listening(), STOP:
        check(config)
        try:
            return _work(config)
        except Stopped as stop:
            if is_first_process():
                print(stop.way_on, flush=True)
        except Exception as error:
            if not (STOP.requested and loss_of_a_process(error)):  # another process was stopped first
                raise
    return {}


def _work(config: AnyCommand) -> Any:
    module, function = next(c.work for c in COMMANDS.values() if type(config) is c.options).split(":")
    work = getattr(import_module(module), function)  # heavy imports come after the checks
    if isinstance(config, Plain):
        return work(config)
    from mpp.run.machine import let_go, pinned_by_one, start_accelerator

    accelerator = start_accelerator(precision_of(config))
    try:
        found = work(pinned_by_one(config, accelerator), accelerator)
        accelerator.end_training()
    finally:
        let_go(accelerator)
    return found


def precision_of(config: Run | Compare | Ablate | Scaling | Predict | Embed | Look) -> str:
    """The precision that a command computes in."""
    if isinstance(config, LinearProbe | Predict | Embed | Dense):
        return config.precision
    if isinstance(config, Look):
        return "fp32"
    if isinstance(config, Ablate | Scaling):
        return config.pretrain.train.precision
    return (config.finetune if isinstance(config, Compare) else config).train.precision


def command(name: str) -> Callable[[list[str] | None], Any]:
    """The `main` of a command's file: it takes the words of a command line (default: this process's)."""

    def main(args: list[str] | None = None) -> Any:
        return start(parse(COMMANDS[name].options, args, in_place=COMMANDS[name].in_place))

    return main


def call(name: str, config: AnyCommand | Mapping[str, Any] | None = None, **options: Any) -> Any:
    """A command from Python. `config` is an object of its options, or their names and values: {"train.steps": 20};
    `options` are groups of options: train={"steps": 20}. A set of images may be given itself, as data=array or
    data=(images, labels): see `mpp.from_memory`."""
    kind = COMMANDS[name].options
    if config is not None and not isinstance(config, Mapping):
        if options:
            raise UserError("options are in the object that is given; leave the others out")
        return start(config)
    words = as_arguments(_named({**(config or {}), **options}))
    if unknown := [name for name in given(words) if name in ("h", "help") or name.startswith(("help_", "tyro_"))]:
        raise UserError(f"{unknown[0]!r} is no option; names here are those of options, as 'train.steps'")
    return start(parse(kind, words))


def _named(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Options with the names of the sets of images that are given in place of a path."""
    found = {}
    for key, value in options.items():
        name = f"{prefix}{key}"
        if name.rpartition(".")[2] == "data" and not _are_options(value):
            key, name = f"{key}.path", f"{name}.path"
        if name.endswith(("data.path", "eval.probe", "against")) and not isinstance(value, str | None):
            from mpp.data.sources.memory import from_memory

            value = str(value) if isinstance(value, os.PathLike) else from_memory(value)
        if name.endswith("data.target") and not isinstance(value, str):
            value = name_of(name, value, "of")
        if name.rpartition(".")[2] == "method" and not isinstance(value, str):
            value = name_of(name, value, "training_step")
        if name in ("arms", "others") and isinstance(value, Mapping):
            value = [_arm(f"{name}.{arm}", source) for arm, source in value.items()]
        found[key] = _named(value, f"{name}.") if isinstance(value, Mapping) else value
    return found


def _arm(name: str, source: Any) -> str:
    """An arm of a comparison as the command line names it: None is one that is known by its name alone."""
    arm = name.partition(".")[2]
    if source is None:
        return arm
    return f"{arm}={source if isinstance(source, str | os.PathLike) else name_of(name, source, 'training_step')}"


def _are_options(value: Any) -> bool:
    """Whether what is given for `data` is a group of options, and no set of images."""
    known = {field.name for field in fields(LabelledData)} | {field.name for field in fields(PretrainData)}
    return isinstance(value, Mapping) and all(str(key).replace("-", "_") in known for key in value)


def run_file(file: str, main: Callable[..., object]) -> NoReturn:
    """Run a command's file. Its own folder, where Python looks first, is taken off the import path: a module in it
    must not hide an installed one of that name."""
    here = os.path.dirname(os.path.realpath(file))
    sys.path[:] = [path for path in sys.path if os.path.realpath(path or os.curdir) != here or path in ("", os.curdir)]
    run_command(main)


def main(args: list[str] | None = None) -> NoReturn:
    """The console command `mpp`, and `python -m mpp`."""
    words = sys.argv[1:] if args is None else args
    run_command(lambda: _dispatch(words))


def _dispatch(words: list[str]) -> None:
    name, rest = (words[0], words[1:]) if words else ("--help", [])
    if name in ("-h", "--help"):
        print(overview())
    elif name in ("-V", "--version"):
        print(f"mpp {version('masked-patch-pretraining')}")
    elif name == "completion":
        from mpp.config.completion import completion

        print(completion(" ".join(rest), {name: c.options for name, c in COMMANDS.items()}, OTHERS))
    elif name in COMMANDS:
        processes, rest = processes_asked_for(rest)
        if processes > 1:
            sys.exit(launched(processes, [name, *rest]))
        start(parse(COMMANDS[name].options, rest, f"mpp {name}", COMMANDS[name].in_place))
    elif name == "presets":
        print("\n".join(f"{name}\n    {purpose(file)}\n    {file}" for name, file in presets().items()))
    elif name == "benchmark":
        spec = util.spec_from_file_location("benchmark", shipped("tools") / "benchmark.py")
        assert spec
        assert spec.loader
        sys.modules["benchmark"] = module = util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.main(rest)
    else:
        near = difflib.get_close_matches(name, [*COMMANDS, *OTHERS], 1)
        raise UserError(
            f"mpp has no command {name!r}; {f'did you mean {near[0]}?' if near else '`mpp --help` lists them'}"
        )


def overview() -> str:
    """What `mpp --help` says."""
    lines = {name: (c.options.__doc__ or "").splitlines()[0] for name, c in COMMANDS.items()} | OTHERS
    return "\n".join(
        [
            "usage: mpp COMMAND [OPTIONS]\n",
            "Masked patch prediction: pretrain Vision Transformers on images without labels.\n",
            *(f"  {name:12}{line}" for name, line in lines.items()),
            "\n`mpp COMMAND --help` explains the main options, --help-all every one.",
            "On several processes: mpp COMMAND --processes N, or accelerate launch -m mpp COMMAND ...",
        ]
    )
