"""From a command line, presets and config.toml to the options of a command, and back."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from mpp.config.bounds import Mark, Options, marked, option_name
from mpp.config.help import help_of
from mpp.config.options import SHAPE, Model
from mpp.config.presets import read_toml
from mpp.config.words import given, nearest, spelt_out
from mpp.errors import SaidByTheFirst, UserError, is_first_process
from mpp.files import write_whole

Config = TypeVar("Config", bound=Options)


def parse(
    kind: type[Config], args: list[str] | None = None, prog: str | None = None, in_place: Sequence[str] = ()
) -> Config:
    """Read a command line into `kind`, over the preset that --config names. `in_place` are the options whose values may
    come first, without their names. Raises UserError for a bad option; --help ends the process."""
    default = kind()
    args = spelt_out(sys.argv[1:] if args is None else args, flattened(default), in_place)
    if every := {"--help-all", "--help", "-h"}.intersection(args):
        if is_first_process():
            _show(help_of(kind, prog or Path(sys.argv[0]).name, in_place, "--help-all" in every))
        sys.exit(0)
    path = _value_of("--config", args)
    if path is None and "--resume" in args and (output := _value_of("--output", args)):
        own = Path(output) / "config.toml"  # a run goes on with its own options
        path = str(own) if own.exists() else None
    try:
        if path:
            values = read_toml(path)
            init = _value_of("--init", args) or values.get("init")
            if init not in (None, "", "scratch") and (yields := shape_in(values)):
                values = without_shape(values)
                if is_first_process():
                    print(f"the shape in --config {path} ({', '.join(yields)}) yields to that of --init {init}")
            default = overlaid(default, values, "--config", path)
        return _read(args, default)
    except UserError as error:
        if not is_first_process():
            raise SaidByTheFirst(str(error)) from error
        raise


def shape_in(values: dict[str, Any]) -> list[str]:
    """The options in a file that set another shape of the model than the default one, as the command line says them."""
    model = values.get("model")
    found = {name: model[name] for name in SHAPE if name in model} if isinstance(model, dict) else {}
    return [f"{option_name(f'model.{name}')} {value}" for name, value in found.items() if value != getattr(Model, name)]


def without_shape(values: dict[str, Any]) -> dict[str, Any]:
    """The options of a file without the shape of a model: weights bring their own, and their image size."""
    return values | {"model": {name: v for name, v in values["model"].items() if name not in (*SHAPE, "img_size")}}


def overlaid(config: Config, values: dict[str, Any], option: str, file: str) -> Config:
    """Options with the values of a file over them, which `option` names."""
    _refuse_unknown(values, config, f"{option} {file}")
    return _read(as_arguments(values), config, f" (in {file})")


def _show(text: str) -> None:
    """Print a text whose reader may end before it does (`| head`)."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _read(args: list[str], default: Config, where: str = "") -> Config:
    """Read a command line over `default`."""
    args = spelt_out(args, flattened(default))
    _choose_steps_or_epochs(args, default, where)
    import tyro
    from tyro._errors import on_parse_error  # private in tyro 1.0, so pyproject.toml keeps tyro below 1.1

    def refuse(event: Any) -> NoReturn:
        raise UserError(_complaint(event, list(flattened(default))) + where)

    with on_parse_error(refuse):
        return tyro.cli(type(default), args=args, default=default, console_outputs=is_first_process())


def _complaint(event: Any, known: list[str]) -> str:
    """What a parse error of tyro says, in one line."""
    if tokens := getattr(event, "tokens", None):
        found = dict.fromkeys(near for token in tokens if token.startswith("--") for near in nearest(token, known))
        hint = f"did you mean {' or '.join(found)}?" if found else "--help lists them all"
        return f"Unrecognized options: {', '.join(tokens)}; {hint}"
    argument = event.argument.lowered.name_or_flags[0] if getattr(event, "argument", None) else "an option"
    if choices := getattr(event, "choices", ()):
        return f"invalid choice {event.value!r} for argument '{argument}'. Expected one of {', '.join(choices)}"
    if message := getattr(event, "message", ""):
        return f"{argument}: {' '.join(message.split())}"
    return f"Missing value for argument '{argument}'"


def _choose_steps_or_epochs(args: list[str], default: Options, where: str) -> None:
    """Have what a command line gives of --train.steps and --train.epochs take the place of the other one's default.
    Raises UserError if it gives both."""
    for steps in [name for name in given(args) if name.rpartition(".")[2] == "steps"]:
        epochs = f"{steps.removesuffix('steps')}epochs"
        if epochs in given(args):
            raise UserError(
                f"{option_name(steps)} and {option_name(epochs)} are two ways to say how long: give one of them{where}"
            )
        group: Any = default
        for part in steps.split(".")[:-1]:
            group = getattr(group, part, None)
        if hasattr(group, "epochs"):
            group.epochs = None


def _refuse_unknown(values: dict[str, Any], default: Options, where: str) -> None:
    """Raise UserError for names and values in a file that are not options: a file may not ask for --help, or have the
    parser write files."""
    known = flattened(default)
    for name, value in _flatten(values).items():
        option = f"{where}: {option_name(name)}"
        if name.replace("-", "_") not in known:
            near = " or ".join(nearest(name, known))
            raise UserError(f"{option} is no option; {f'did you mean {near}?' if near else '--help lists them all'}")
        if name.replace("-", "_") in marked(default, Mark.ONCE) and value is not False:  # as old config.toml files say
            raise UserError(
                f"{option} is for the command line alone: a file of options names nothing to write or to go on with"
            )
        if isinstance(known[name.replace("-", "_")], bool) != isinstance(value, bool):
            raise UserError(f"{option} {value!r}: only switches, and all of them, are true or false")
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, str) and part.startswith("-"):
                raise UserError(f"{option} {part!r} reads like another option")


def write_toml(config: Options, path: Path) -> None:
    """Write a configuration so that `--config path` repeats it. TOML has no None: a None that is the default is left
    out, and any other is the word "None", which the command line takes."""
    import tomli_w

    def kept(values: dict[str, Any], default: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in values.items():
            if isinstance(value, dict):
                found[key] = kept(value, default[key], f"{prefix}{key}.")
            elif prefix + key not in once and (value is not None or default[key] is not None):
                found[key] = "None" if value is None else value
        return found

    once = marked(config, Mark.ONCE)
    values = kept(dataclasses.asdict(config), dataclasses.asdict(type(config)()))
    write_whole(path, tomli_w.dumps(values).encode())


def options_of(kind: type[Config], source: Options, **own: Any) -> Config:
    """Options of `kind` with the values that `source` has too, and `own` values before them."""
    shared = {f.name: getattr(source, f.name) for f in dataclasses.fields(kind) if hasattr(source, f.name)}
    return kind(**shared | own)


def flattened(config: Options) -> dict[str, Any]:
    """A configuration as {"data.path": ..., ...}: the names of the command line, with underscores."""
    return _flatten(dataclasses.asdict(config))


def differences(file: Path, config: Options) -> dict[str, tuple[Any, Any]]:
    """Options whose values in a run's config.toml differ from those of `config`: (there, here)."""
    there, once = flattened(parse(type(config), ["--config", str(file)])), marked(config, Mark.ONCE)
    here = {name: value for name, value in flattened(config).items() if name not in once}
    return {name: (there[name], value) for name, value in here.items() if there[name] != value}


def as_arguments(values: Mapping[str, Any]) -> list[str]:
    """Nested values as the command line that sets them, so that one parser checks both."""
    arguments = []
    for name, value in _flatten(values).items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            group, _, last = option.rpartition(".")
            arguments.append("--" + ".".join(filter(None, [group, last if value else f"no-{last}"])))
        else:
            arguments += [f"--{option}", *map(str, value if isinstance(value, list | tuple) else [value])]
    return arguments


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def _value_of(option: str, args: list[str]) -> str | None:
    """The value of an option, wherever it stands, given as two words or with '='."""
    for i, arg in enumerate(args):
        if arg == option and i + 1 < len(args):
            return args[i + 1]
        if arg.startswith(f"{option}="):
            return arg.removeprefix(f"{option}=")
    return None
