"""The command `cache`: list or clear the sets that training has decoded into its cache."""

from __future__ import annotations

from datetime import datetime

from mpp.config.using import Cache
from mpp.data.cache import Entry, cache_folder, clear_marks, entries, gigabytes, refuse_untrusted
from mpp.errors import UserError, counted, printable


def run_cache(config: Cache) -> list[Entry]:
    """List what is in the cache, or clear it; returns what is there at the end."""
    if (folder := cache_folder()) is None:
        raise UserError("this user has no home folder, and so no cache; set MPP_CACHE to a folder for it")
    refuse_untrusted(folder)
    found = entries(folder)
    if not config.clear:
        for entry in found:
            used = f"{datetime.fromtimestamp(entry.used):%Y-%m-%d %H:%M}"
            print(f"{entry.path}\n    {printable(entry.origin)}, {gigabytes(entry.size)}, last used {used}")
        print(f"{folder}: {_sets(found)}")
        return found
    kept = [entry for entry in found if not entry.remove()]
    clear_marks(folder)
    for entry in kept:
        print(f"kept, as it is in use: {entry}")
    print(
        f"{folder}: {len(found) - len(kept):,} sets removed, {gigabytes(sum(e.size for e in found if e not in kept))}"
    )
    return kept


def _sets(some: list[Entry]) -> str:
    return f"{counted(len(some), 'set')} of {gigabytes(sum(entry.size for entry in some))}"
