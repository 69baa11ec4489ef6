"""List the files below a folder: its images, and those that are left out, with one line on why."""

from __future__ import annotations

import os
import stat
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from mpp.data.decode import FORMATS, pages_are_bands
from mpp.data.sources.columns import METADATA
from mpp.data.sources.layout import Parts
from mpp.errors import UserError, counted, is_first_process, printable, warn

_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")  # an image behind one of these is named as one that cannot be read


_ARCHIVES = (".zip", ".rar", ".7z", ".tgz", *_COMPRESSED)


_OF_FOLDERS = ("a folder ", "a link to a folder")  # how a reason begins that holds for a whole folder


_OF_NO_READER = {".avif", ".heic", ".heif", ".jxl"}  # images of kinds that PIL may not read


_SURE = [name for name in FORMATS if name not in ("BMP", "PPM")]  # recognised by more than two letters at the start


_TRIED = 4  # files of an unknown extension that are opened; if one is an image, all are


_MANY_FRAMES = (".apng", ".gif", ".png", ".tif", ".tiff", ".webp")


_OPENED = 5_000  # most files that are opened to count those with several pages: a second


@dataclass
class Listing:
    """The files below a folder."""

    folder: str
    images: defaultdict[Parts, list[str]] = field(default_factory=lambda: defaultdict(list))  # folder -> names
    left_out: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # why -> paths
    others: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # extension -> paths
    empty: list[str] = field(default_factory=list)  # images of no bytes
    changed: dict[str, int] = field(default_factory=dict)  # folder -> when it last changed, in nanoseconds
    tables: bool = False  # whether tables or shards lie among the files
    metadata: list[str] = field(default_factory=list)  # the paths of tables that describe the images

    @classmethod
    def of(cls, folder: str) -> Listing:
        """List what lies below a folder. Links to folders are not followed.

        Raises UserError for a name that `datasets` cannot handle (not UTF-8, or with ::), and for a .tar shard without
        its end: a shard that was cut between two files would only seem to hold fewer images.
        """
        found = cls(folder)
        extensions = known_extensions()
        for parts, file, hidden in found._files(folder, ()):
            found._add(parts, file, hidden, extensions)
        for extension, paths in found.others.items():
            if any(map(_is_image, paths[:_TRIED])):
                why = f"{extension} is not a supported file type in folders" if extension else "no extension"
                found.left_out[f"an image, but {why}; rename or convert it"] += filter(_is_image, paths)
        return found

    def what_else(self) -> str:
        """The other files, by extension: " (2 .txt, 1 .csv)"."""
        kinds = sorted(self.others.items(), key=lambda kind: -len(kind[1]))[:5]
        counts = ", ".join(
            f"{len(paths):,} {printable(extension) or 'without extension'}" for extension, paths in kinds
        )
        return f" (it holds {counts})" if counts else ""

    def is_as_it_was(self) -> bool:
        """Whether no folder has got or lost a file."""
        return all(_changed(folder) == changed for folder, changed in self.changed.items())

    def _files(self, folder: str, parts: Parts, hidden: bool = False) -> Iterator[tuple[Parts, os.DirEntry[str], bool]]:
        """Yield every file with its folder, and whether it or a folder above is hidden."""
        self.changed[folder] = _changed(folder)
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            denied = isinstance(error, PermissionError)
            why = (
                "a folder that this user may not read" if denied else f"a folder that cannot be read: {error.strerror}"
            )
            self.left_out[why].append(folder)
            return
        for entry in entries:
            own = hidden or entry.name.startswith(".") or entry.name == "__MACOSX"
            if entry.is_dir(follow_symlinks=False):
                yield from self._files(entry.path, (*parts, entry.name), own)
            elif entry.is_symlink() and entry.is_dir():
                if not own:
                    self.left_out["a link to a folder; such links are not followed"].append(entry.path)
            else:
                yield parts, entry, own

    def _add(self, parts: Parts, file: os.DirEntry[str], hidden: bool, extensions: set[str]) -> None:
        stem, extension = os.path.splitext(file.name.lower())
        behind = os.path.splitext(stem)[1] if extension in _COMPRESSED else extension
        if hidden:
            if behind in extensions | _OF_NO_READER:
                self.left_out["hidden: its name, or that of a folder above, begins with a dot or is __MACOSX"].append(
                    file.path
                )
            return
        if file.name in METADATA:
            self.metadata.append(file.path)
        self.tables |= extension in (".parquet", ".tar", ".arrow") and file.name not in METADATA
        if behind in extensions:
            self._add_image(parts, file)
        elif extension in _OF_NO_READER:
            self.left_out[f"{extension} is not a supported file type in folders; convert it"].append(file.path)
        elif extension in _ARCHIVES:
            self.left_out["an archive; unpack it"].append(file.path)
        elif file.is_file():
            self.others[extension].append(file.path)

    def _add_image(self, parts: Parts, file: os.DirEntry[str]) -> None:
        path = os.path.join(*parts, file.name)
        try:
            status = file.stat()
        except OSError:
            self.left_out["a broken link"].append(file.path)
            return
        if not stat.S_ISREG(status.st_mode):
            self.left_out["not a regular file"].append(file.path)
        elif any("\ud800" <= c <= "\udfff" for c in path):  # Python's code for bytes that are not UTF-8
            raise UserError(f"--data.path {printable(file.path)}: the name of this file is not UTF-8; rename it")
        elif "::" in file.path:
            raise UserError(f"--data.path {printable(file.path)}: `datasets` takes :: for an archive's path; rename it")
        else:
            self.images[parts].append(file.name)
            if not status.st_size:
                self.empty.append(file.path)


def known_extensions() -> set[str]:
    """Extensions of images in a folder: those of `datasets`, and what it skips: .npy, and .avif if PIL reads it."""
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    ours = [".npy", *([".avif"] if "AVIF" in FORMATS else [])]
    ImageFolder.EXTENSIONS = [*ImageFolder.EXTENSIONS, *(e for e in ours if e not in ImageFolder.EXTENSIONS)]
    return set(ImageFolder.EXTENSIONS)


def _changed(folder: str) -> int:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return -1


def _is_image(path: str) -> bool:
    """Whether a file begins as an image does, whatever its name says."""
    try:
        with open(path, "rb") as file:
            start = file.read(16)
        return any(accepts(start) is True for name in _SURE if (accepts := Image.OPEN[name][1]))
    except (OSError, IndexError):
        return False


# What is said of files


def tell_left_out(left_out: Mapping[str, list[str]], of_folders: Mapping[str, Counter[str]]) -> None:
    """Warn, in one line, of what is left out: reason -> paths. `of_folders` has the reasons that hold for folders of
    images: reason -> the folders' names, with the number of images in them."""
    total = sum(map(len, left_out.values()))
    if not total or not is_first_process():
        return
    nouns = {"folder" if why.startswith(_OF_FOLDERS) else "file" for why in left_out}
    texts = []
    for why, paths in left_out.items():
        where = f": {_in_folders(of_folders[why])}" if why in of_folders else ""
        texts.append(f"{printable(min(paths))} ({why}{where})")
    counts = [len(paths) for paths in left_out.values()]
    more = "".join(f"; {n:,} as {text}" for n, text in zip(counts[1:], texts[1:], strict=True))
    what = are(total, nouns.pop() if len(nouns) == 1 else "file or folder")
    warn(f"{what} left out{', the first' if total > 1 else ''}: {texts[0]}{more}")


def are(count: int, noun: str) -> str:
    """1 file is; 2 files are."""
    return counted(count, noun, f"{noun.replace(' ', 's ')}s") + (" is" if count == 1 else " are")


def _in_folders(counts: Counter[str]) -> str:
    shown = [
        f"{count:,} in {printable(name)}" if name else f"{count:,} beside them" for name, count in counts.most_common(5)
    ]
    return ", ".join([*shown, *(["..."] if len(counts) > 5 else [])])


def tell_unread_parts(paths: Sequence[str], empty: Sequence[str]) -> None:
    """Warn of images of no bytes, and of pages and frames after a file's first, which are not read."""
    if not is_first_process():
        return
    if empty:
        which = f", the first: {printable(min(empty))}" if len(empty) > 1 else f": {printable(empty[0])}"
        warn(f"{are(len(empty), 'image file')} empty (0 bytes; --data.on-error skip passes over them){which}")
    several = [path for path in paths if path.lower().endswith(_MANY_FRAMES)]
    looked_at = [several[int(i)] for i in np.linspace(0, len(several) - 1, min(len(several), _OPENED))]
    frames = {path: count for path in looked_at if (count := _frames(path)) > 1}
    if frames:
        path, count = next(iter(frames.items()))
        holds = "file holds" if len(frames) == 1 else "files hold"
        among = f" among {len(looked_at):,} looked at" if len(looked_at) < len(several) else ""
        which = f"{', the first file' if len(frames) > 1 else ''}: {printable(path)} ({count:,})"
        warn(f"{len(frames):,} {holds} more than one page or frame{among}; only the first of each is read{which}")


def _frames(path: str) -> int:
    try:
        with Image.open(path, formats=FORMATS) as image:
            return 1 if image.format == "TIFF" and pages_are_bands(image) else getattr(image, "n_frames", 1)
    except Exception:  # PIL's plug-ins raise nearly any exception on damaged files; reading this one names it
        return 1
