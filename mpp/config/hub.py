"""What on the Hugging Face hub an option names, and at which revision. What looks like a path is never asked for."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from mpp.config.bounds import Options, option_name, walk
from mpp.config.presets import read_toml
from mpp.errors import UserError, first_line, warn

Kind = Literal["model", "dataset"]
Config = TypeVar("Config", bound=Options)

_OPTIONS: dict[str, Kind] = {
    "init": "model",
    "mpp": "model",
    "supervised": "model",
    "others": "model",
    "arms": "model",
    "data.path": "dataset",
    "eval.probe": "dataset",
    "pretrain.data.path": "dataset",
    "pretrain.eval.probe": "dataset",
}
_NAME = r"[A-Za-z0-9][\w.-]{0,95}"
_FILES = (
    *(".arrow", ".bin", ".ckpt", ".csv", ".gz", ".h5", ".jpeg", ".jpg", ".json", ".jsonl", ".mpp", ".npy", ".npz"),
    *(".onnx", ".parquet", ".pkl", ".png", ".pt", ".pth", ".safetensors", ".tar", ".tgz", ".toml", ".tsv", ".zip"),
)


@dataclass(frozen=True)
class OnHub:
    """A model or a set of images on the hub; `revision` is a commit, a branch or a tag."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"hf://{self.repo}" + (f"@{self.revision}" if self.revision else "")


def on_hub(name: str, option: str) -> OnHub | None:
    """What hf://owner/name[@revision] names, or owner/name where there is no folder `owner`; None for what is or looks
    like a path. Raises UserError if hf:// is followed by no such name."""
    if name.startswith(("hf:", "timm:")) and not name.startswith("hf://"):
        name = _of_library(name, option)
    if name.startswith("hf://"):
        found = re.fullmatch(rf"hf://((?:{_NAME}/)?{_NAME})(?:@([\w./-]+))?", name)
        if not found:
            raise UserError(f"{option} {name} is no name on the hub: hf://owner/name, or hf://owner/name@revision")
        return OnHub(found[1], found[2])
    path = Path(name)
    if not re.fullmatch(f"{_NAME}/{_NAME}", name) or path.suffix.lower() in _FILES:
        return None
    return None if path.parent.exists() or path.exists() else OnHub(name)


def _of_library(name: str, option: str) -> str:
    """hf:FOLDER, timm:FOLDER -> the folder; hf:owner/name, timm:MODEL.TAG -> hf://owner/name."""
    library, _, rest = name.partition(":")
    path = Path(rest).expanduser()
    if path.exists() or rest.startswith((".", "/", "~")) or (library == "hf" and path.parent.exists() and "/" in rest):
        return rest
    if library == "timm" and "." not in rest:
        try:
            from timm.models import get_pretrained_cfg
        except ImportError as error:
            raise UserError(f"{option} {name}: give the tag, too, as in timm:vit_base_patch16_224.mae") from error
        found = get_pretrained_cfg(rest, allow_unregistered=True)
        if not (found and found.hf_hub_id):
            raise UserError(f"{option} {name}: timm has no weights of that name")
        return f"hf://{found.hf_hub_id.rstrip('/')}" + (rest if found.hf_hub_id.endswith("/") else "")
    return f"hf://timm/{rest}" if library == "timm" else f"hf://{rest}"


def missing(option: str, name: str) -> UserError:
    """What to say of a path that does not exist."""
    return UserError(f"{option} {name} does not exist (on the hub: hf://owner/name)")


def pinned(config: Config) -> Config:
    """The options with every name on the hub at the commit that it has now, or had when the run in --output began."""
    named = {name: kind for name, kind, value in _named(config) if value.revision is None}
    if not named:
        return config
    config, before = copy.deepcopy(config), _begun_with(config)
    for name, kind in named.items():
        *groups, last = name.split(".")
        group: Any = config
        for part in groups:
            group = getattr(group, part)
        value, then = getattr(group, last), _value(before, name)
        if isinstance(value, tuple):
            old = dict(entry.partition("=")[::2] for entry in then or ())
            entries = (entry.partition("=") for entry in value)
            pins = (arm + given + _pin(init, old.get(arm), kind, option_name(name)) for arm, given, init in entries)
            setattr(group, last, tuple(pins))
        else:
            setattr(group, last, _pin(value, then, kind, option_name(name)))
    return config


def _named(config: Options) -> Iterator[tuple[str, Kind, OnHub]]:
    """The options that name something on the hub."""
    for name, value, _ in walk(config):
        if name in _OPTIONS:
            texts = [entry.partition("=")[2] for entry in value] if isinstance(value, tuple) else [value]
            for text in texts:
                if text and (there := on_hub(text, option_name(name))):
                    yield name, _OPTIONS[name], there


def _begun_with(config: Any) -> dict[str, Any]:
    """The options in the config.toml of --output; empty if there is none."""
    output = getattr(config, "output", None)  # `predict` has none
    file = Path(output or "", "config.toml")
    return read_toml(file) if output and file.is_file() else {}


def _value(values: dict[str, Any], name: str) -> Any:
    for part in name.split("."):
        values = values.get(part, {}) if isinstance(values, dict) else {}
    return values or None


def _pin(name: str, then: str | None, kind: Kind, option: str) -> str:
    """A name on the hub with its commit; any other text as it is."""
    there = on_hub(name, option)
    if there is None or there.revision:
        return name
    if then and (old := on_hub(then, option)) and old.repo == there.repo and old.revision:
        return then
    commit = commit_of(there, kind, option)
    return str(OnHub(there.repo, commit)) if commit else name


def commit_of(there: OnHub, kind: Kind, option: str) -> str | None:
    """The commit of what is on the hub now, or lies in the cache if the hub cannot be asked; None if neither says."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    api = huggingface_hub.HfApi()
    try:
        info = api.model_info(there.repo) if kind == "model" else api.dataset_info(there.repo)
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"{option} {there}: there is no such {kind} on the hub, or it is private ({first_line(error)})"
        ) from error
    except Exception as error:  # no network, in as many forms as there are libraries for it
        cached = huggingface_hub.try_to_load_from_cache(there.repo, "config.json") if kind == "model" else None
        if isinstance(cached, str):
            return Path(cached).parent.name
        why = first_line(error)[:200]
        if kind == "model":
            raise UserError(
                f"{option} {there.repo}: no backbone could be loaded from it (there is no such folder, it is not in "
                f"the cache, and the hub cannot be asked: {why})"
            ) from error
        warn(f"{option} {there}: the hub cannot be asked for its revision ({why}), so it is not pinned")
        return None
    return info.sha
