"""The cards of sets (README.md, .huggingface.yaml): the configurations they list, and the files these are made of."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpp.data.decode import is_within
from mpp.errors import UserError, first_line, printable

if TYPE_CHECKING:
    from datasets.utils.metadata import MetadataConfigs


def configurations(folder: str) -> MetadataConfigs:
    """The configurations that a folder's card lists, by name; none without a card.

    Raises UserError for a card that is damaged, or that names a URL or a path out of the folder.
    """
    from datasets import config
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCardData

    fields: dict[str, Any] = {}
    for name in (config.REPOCARD_FILENAME, config.REPOYAML_FILENAME):  # the second wins, as in `datasets`
        card = Path(folder, name)
        if card.is_file():
            try:
                fields |= _fields(card.read_text(encoding="utf-8-sig", errors="replace"), head=card.suffix == ".md")
                found = MetadataConfigs.from_dataset_card_data(DatasetCardData(**fields))
            except Exception as error:  # PyYAML's, and whatever `datasets` raises on fields of other types
                reason = printable(" ".join(str(error).split()) or first_line(error))
                raise UserError(f"{card}: this card cannot be read ({reason}); mend or remove it") from error
            for path in _paths(found):
                if "://" in path or "::" in path or os.path.isabs(path) or ".." in Path(path).parts:
                    raise UserError(f"{card} leads out of its folder, to {printable(path)}; {WAY_OUT}")
    return MetadataConfigs.from_dataset_card_data(DatasetCardData(**fields))


WAY_OUT = "a set reads no files but its own: mend the card, or give that place as --data.path"


@cache
def refuse_outside(source: str, config: str | None, revision: str | None = None) -> None:
    """Raise UserError if the card of a folder or of a hub id is made of files that are not in it: behind links, or of
    another repository."""
    from datasets import load_dataset_builder

    here = os.path.isdir(source)
    builder = load_dataset_builder(source, config, revision=revision)
    own = re.compile(rf"{re.escape(str(builder.base_path).partition('@')[0])}[@/]")  # hf://datasets/owner/name
    for file in (file for files in (builder.config.data_files or {}).values() for file in files):
        if not (is_within(os.path.realpath(file), source) if here else own.match(file)):
            raise UserError(f"the card of {source} leads out of it, to {printable(file)}; {WAY_OUT}")


def _fields(text: str, head: bool) -> dict[str, Any]:
    """The fields of a card: YAML, which is the `head` of a README between two lines of ---."""
    import yaml
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    if head:
        block = REGEX_YAML_BLOCK.search(text)
        text = block.group(2) if block else ""
    fields = yaml.safe_load(text)
    return fields if isinstance(fields, dict) else {}


def _paths(found: MetadataConfigs) -> Iterator[str]:
    """Every path, pattern or URL that configurations name."""
    from datasets.data_files import sanitize_patterns

    for fields in found.values():
        yield from (str(fields[name]) for name in ("data_dir",) if fields.get(name))
        if fields.get("data_files"):
            yield from (str(path) for paths in sanitize_patterns(fields["data_files"]).values() for path in paths)
