"""What a run's images were when it began, in its folder's data.json: a run goes on with these and no others."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from mpp.data.contents import Contents
from mpp.data.images import HeldOut, Images
from mpp.data.streams import Kept, Stream
from mpp.errors import UserError, warn
from mpp.files import write_whole

FILE = "data.json"


@dataclass(frozen=True)
class Identity:
    """What the splits of a run hold, and the images or shards that it holds out of the training split itself."""

    splits: dict[str, Contents]
    held_out: list[str] | None = None

    @classmethod
    def of(cls, train: Images | Stream, evaluated: Images, labels: bool = False) -> Identity:
        """The identity of the images to train and be measured on."""
        found = train.contents(labels)
        if isinstance(evaluated, HeldOut):
            return cls({found.split: found}, [found.names[i] for i in evaluated.indices] if found.names else None)
        measured = evaluated.contents(labels)
        if isinstance(evaluated, Kept) and measured.split == found.split:
            return cls({found.split: found}, evaluated.stream.shard_names)
        return cls({found.split: found, measured.split: measured})

    @property
    def digests(self) -> dict[str, str]:
        """The fingerprint of each split."""
        return {name: contents.digest for name, contents in self.splits.items()}

    def changes(self, folder: Path) -> str:
        """What has changed since the run in a folder began, in words; "" if nothing has, or if it is not known."""
        then = (recorded(folder) or {}).get("splits", {})
        found = {name: contents.changes(then[name]) for name, contents in self.splits.items() if name in then}
        return "; ".join(f"split {name}: {changes}" for name, changes in found.items() if changes)

    def write(self, folder: Path) -> None:
        """Note it in a run's folder."""
        splits = {name: contents.as_json() for name, contents in self.splits.items()}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / FILE, json.dumps({"splits": splits, "held_out": self.held_out}, indent=0).encode())
        except OSError as error:
            raise UserError(f"{folder / FILE} cannot be written ({error.strerror}); make room on the disk") from error


def recorded(folder: Path) -> dict[str, Any] | None:
    """What a run's data.json says; None if there is none, as in runs of older versions."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
        assert isinstance(found["splits"], dict)
        assert all(contents.keys() >= {"kind", "count", "also", "digest"} for contents in found["splits"].values())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError):
        raise UserError(
            f"{folder / FILE}, which says what the run's images were, is damaged; give another --output, or remove the "
            f"file to go on unchecked"
        ) from None
    return found


def recorded_digests(folder: Path) -> dict[str, str]:
    """The fingerprint of each split by a run's data.json."""
    return {name: contents["digest"] for name, contents in (recorded(folder) or {"splits": {}})["splits"].items()}


def held_out_before(folder: Path) -> set[str] | None:
    """The names of the images that the run in a folder holds out of its training split."""
    names = (recorded(folder) or {}).get("held_out")
    return None if names is None else set(names)


def trained_on(folder: Path, images: Images) -> set[str] | None:
    """The names of the images that a run on labels did not learn from, if `images` is the split that it was trained on;
    None if that is another set, or the folder holds no run."""
    if (found := recorded(folder)) is None or not found["splits"]:
        return None
    trained = next(iter(found["splits"].values()))
    same = trained["digest"] == images.contents(labels=bool(images.label_names)).digest
    return set(found.get("held_out") or []) if same else None


def keep(
    folder: Path,
    train: Images | Stream,
    evaluated: Images,
    accelerator: Accelerator,
    *,
    labels: bool = False,
    resume: bool = False,
    insist: bool = False,
    dry_run: bool = False,
) -> dict[str, str]:
    """Note in a run's folder what its images are, unless in a `dry_run`; returns the fingerprint of each split. All
    processes call it.

    Raises UserError if the run to `resume` was begun with other images, unless the user insists.
    """
    changes, digests = "", {}
    if accelerator.is_main_process and (resume or not dry_run):
        identity = Identity.of(train, evaluated, labels)
        digests = identity.digests
        begun = resume and any((folder / name).exists() for name in ("checkpoints", "lr_grid"))
        changes = identity.changes(folder) if begun else ""
        if (not changes or insist) and not dry_run:
            identity.write(folder)
    changes, digests = broadcast_object_list([changes, digests])
    if changes and not insist:
        raise UserError(
            f"--data.path holds other images than when {folder} was begun ({changes}); put the set back, give another "
            f"--output, or insist with --resume-anyway"
        )
    if changes and accelerator.is_main_process:
        warn(f"{folder} goes on with other images than it was begun with ({changes})")
    return digests
