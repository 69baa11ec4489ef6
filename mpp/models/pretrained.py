"""Load weights from elsewhere: only safetensors, and only with the shapes that their configuration asks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE
from huggingface_hub.errors import EntryNotFoundError
from safetensors import safe_open
from torch import nn

from mpp.files import ordinary_modes


class Pretrained(PyTorchModelHubMixin):
    """`from_pretrained` of a folder or a hub id, as in huggingface_hub's mixin, with two differences: it never reads a
    pickle (pytorch_model.bin), and it allocates memory only for weights that exist."""

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
            raise ValueError(f"there is no {SAFETENSORS_SINGLE_FILE}, and pickles (pytorch_model.bin) are not loaded")
        refuse_other_shapes(file, lambda: cls(**options))  # type: ignore[arg-type, return-value]
        return cls._load_as_safetensor(cls(**options), str(file), map_location, strict)

    def _save_pretrained(self, save_directory: Path) -> None:  # the mixin's hook for subclasses
        super()._save_pretrained(save_directory)
        ordinary_modes(save_directory)


def refuse_other_shapes(file: Path, build: Callable[[], nn.Module]) -> None:
    """Raise ValueError, which names the first mismatch, unless a safetensors file has the tensors of `build()`.

    Reads only the file's header and builds the model without memory, so absurd sizes cost nothing.
    """
    with torch.device("meta"):
        asked = {name: tuple(tensor.shape) for name, tensor in build().state_dict().items()}
    with safe_open(file, "pt") as tensors:
        there = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    for name in [*asked, *there]:
        if asked.get(name) != there.get(name):
            says = f"is {there[name]} in {file.name}" if name in there else f"is not in {file.name}"
            wants = f"config.json asks for {asked[name]}" if name in asked else "config.json asks for no such tensor"
            raise ValueError(f"{name} {says}, but {wants}")
