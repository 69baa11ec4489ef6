"""Sets written by `save_to_disk` of `datasets`: of all splits, or of one, which counts as train."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from mpp.data.decode import is_within
from mpp.errors import UserError, printable

if TYPE_CHECKING:
    from datasets import Dataset

_ALL, _ONE = "dataset_dict.json", "state.json"


def is_saved(folder: str) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return any(Path(os.path.expanduser(folder), name).is_file() for name in (_ALL, _ONE))


def saved_splits(folder: str) -> list[str]:
    """The splits of a saved set. Raises UserError for names that are no folders of it."""
    if not Path(folder, _ALL).is_file():
        return ["train"]
    names = json.loads(Path(folder, _ALL).read_text(encoding="utf-8"))["splits"]
    for name in names:
        if not is_within(os.path.realpath(Path(folder, name, _ONE)), folder):
            raise UserError(f"{Path(folder, _ALL)} leads out of its folder, to {printable(name)}; save the set again")
    return list(names)


def load_saved(folder: str, split: str) -> Dataset:
    """One split of a saved set. Raises UserError if it is made of files that are not in the folder."""
    from datasets import load_from_disk

    place = Path(folder, split) if Path(folder, _ALL).is_file() else Path(folder)
    for part in json.loads((place / _ONE).read_text(encoding="utf-8"))["_data_files"]:
        if not is_within(os.path.realpath(place / part["filename"]), folder):
            raise UserError(
                f"{place / _ONE} leads out of its folder, to {printable(part['filename'])}; save the set again"
            )
    return load_from_disk(str(place)).with_format(None)
