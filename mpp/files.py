"""Files that are there as a whole or not at all, and their checksums."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that readers see the old content or the new, never a part."""
    draft = path.with_name(path.name + ".tmp")
    draft.write_bytes(content)
    flush(draft)
    os.replace(draft, path)


def sha256_of(path: Path) -> str:
    """The checksum of a file, read in parts."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def flush(path: Path) -> None:
    """Have a file or folder on the disk itself, not only in the system's cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def shipped(folder: str) -> Path:
    """A folder of the repository ("recipes/presets", "tools"), which a wheel carries inside the package."""
    package = Path(__file__).parent
    inside = package / Path(folder).name
    return inside if inside.is_dir() else package.parent / folder
