"""Load weights from elsewhere: only safetensors, and only with the shapes that their configuration asks for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub import ModelCard, ModelCardData, PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE
from huggingface_hub.errors import EntryNotFoundError
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mpp.files import ordinary_modes
from mpp.models.foreign.naming import WAY_OUT, whose
from mpp.models.sizes import refuse_beyond_use

_LONGEST_CONFIG = 16 << 20  # bytes: twenty times those of ImageNet-21k's classes


_LONGEST_CARD = 1 << 20  # bytes


_MOST_BESIDE = 256 << 20  # bytes: 24 blocks with relative positions of 32 x 32 patches take 192 MiB


class Pretrained(PyTorchModelHubMixin):
    """`from_pretrained` of a folder or a hub id, as in huggingface_hub's mixin, with three differences: it takes a
    run's folder, too, never reads a pickle (pytorch_model.bin), and allocates memory only for weights that exist."""

    in_run: ClassVar[str]  # where a run keeps such a model

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **options: Any) -> Any:
        """See huggingface_hub's mixin; a run's folder is one, too. Raises ValueError for a config.json that is no JSON
        object."""
        if Path(pretrained_model_name_or_path, cls.in_run, CONFIG_NAME).is_file():
            pretrained_model_name_or_path = Path(pretrained_model_name_or_path, cls.in_run)
        file = Path(pretrained_model_name_or_path, CONFIG_NAME)
        if file.is_file():
            short = file.stat().st_size <= _LONGEST_CONFIG
            if not (short and isinstance(json.loads(file.read_text(encoding="utf-8")), dict)):
                raise ValueError(f"{CONFIG_NAME} is no JSON object of at most {_LONGEST_CONFIG >> 20} MiB")
        model = super().from_pretrained(pretrained_model_name_or_path, **options)
        card = file.with_name("README.md")
        if card.is_file() and card.stat().st_size <= _LONGEST_CARD:
            model.card = card.read_text(encoding="utf-8", errors="replace")
        return model

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, map_location: str = "cpu", strict: bool = True, **options: Any
    ) -> Any:  # the mixin's hook for subclasses
        download = {
            name: options.pop(name)
            for name in ("revision", "cache_dir", "force_download", "local_files_only", "token")
            if name in options
        }
        for name in ("proxies", "resume_download"):  # from huggingface_hub before 1.0
            options.pop(name, None)
        file = Path(model_id, SAFETENSORS_SINGLE_FILE)
        try:
            if not Path(model_id).is_dir():
                file = Path(hf_hub_download(model_id, SAFETENSORS_SINGLE_FILE, **download))
        except EntryNotFoundError:
            file = Path()
        if not file.is_file():
            owner = whose(Path(model_id)) if Path(model_id).is_dir() else None
            raise ValueError(
                f"there is no {SAFETENSORS_SINGLE_FILE}, and pickles (pytorch_model.bin) are not loaded"
                + (f"; it is {owner}; {WAY_OUT}" if owner else "")
            )
        if owner := whose(file.parent):
            raise ValueError(f"it is {owner}; {WAY_OUT}")
        cls.refuse_odd(options)
        refuse_other_shapes(file, lambda: cls(**options))  # type: ignore[arg-type, return-value]
        model: Any = cls._load_as_safetensor(cls(**options), str(file), map_location, strict)
        if broken := not_finite(model.state_dict()):
            raise ValueError(f"{broken} in {file.name} holds values that are not finite (NaN or infinite)")
        return model

    card: str | None = None  # README.md of the folder that it was loaded from

    def generate_model_card(self, *args: Any, **options: Any) -> ModelCard:
        """The card that lay beside the weights, or one that says how to load them."""
        if self.card:
            return ModelCard(self.card, ignore_metadata_errors=True)
        name, info = type(self).__name__, self._hub_mixin_info.model_card_data
        text = f'```python\nfrom mpp import {name}\n\nmodel = {name}.from_pretrained("FOLDER_OR_HUB_ID")\n```\n'
        return ModelCard(as_card(text, None, info.tags or []))

    @classmethod
    def refuse_odd(cls, arguments: dict[str, Any]) -> None:
        """Raise ValueError for arguments from config.json that no model of ours writes."""

    def _save_pretrained(self, save_directory: Path) -> None:  # the mixin's hook for subclasses
        super()._save_pretrained(save_directory)
        ordinary_modes(save_directory)


def as_card(text: str, pipeline: str | None, tags: list[str]) -> str:
    """A model card, README.md on the hub: what its search reads, then the text."""
    data = ModelCardData(
        library_name="masked-patch-pretraining", license="apache-2.0", pipeline_tag=pipeline, tags=sorted(set(tags))
    )
    return f"---\n{data.to_yaml()}\n---\n\n{text}"


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds NaN or infinity."""
    mine = {name: tensor.to_local() if isinstance(tensor, DTensor) else tensor for name, tensor in tensors.items()}
    return next((name for name, tensor in mine.items() if not tensor.isfinite().all()), None)


def refuse_other_shapes(file: Path, build: Callable[[], nn.Module]) -> None:
    """Raise ValueError, which names the first mismatch, unless a safetensors file has the tensors of `build()`.

    Reads only the file's header and builds the model without memory, so absurd sizes cost nothing. What a model keeps
    beside its weights (the index of relative positions, which grows with the square of their table) has a limit.
    """
    with torch.device("meta"):
        model = build()
    asked = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    with safe_open(file, "pt") as tensors:
        there = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    for name in [*asked, *there]:
        if asked.get(name) != there.get(name):
            says = f"is {there[name]} in {file.name}" if name in there else f"is not in {file.name}"
            wants = f"config.json asks for {asked[name]}" if name in asked else "config.json asks for no such tensor"
            raise ValueError(f"{name} {says}, but {wants}")
    for part in model.modules():
        refuse_beyond_use(getattr(part, "img_size", (1, 1)), getattr(part, "patch_size", 1))
    beside = sum(tensor.nbytes for name, tensor in model.named_buffers() if name not in asked)
    if beside > _MOST_BESIDE:
        raise ValueError(
            f"config.json asks for {beside / 2**20:,.0f} MiB beside the weights (relative positions); "
            f"{_MOST_BESIDE >> 20} MiB at most are allowed"
        )
