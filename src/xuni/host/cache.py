"""The cache folder: `$XDG_CACHE_HOME/xuni`, else `~/.cache/xuni`. What lies there can be deleted at any time.

A folder in it appears whole or not at all: it is filled under another name, then renamed (`filling`).
"""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def root() -> Path:
    """Where xuni keeps what it can fetch or compute again. A relative `XDG_CACHE_HOME` is invalid, says its spec."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(named) if named.startswith("/") else Path.home() / ".cache"
    return base / "xuni"


@contextmanager
def only_one(place: Path) -> Iterator[None]:
    """Wait until no other process is inside `only_one` for the same `place`."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(place.parent / f".{place.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def replace(place: Path, content: bytes) -> None:
    """Write a file so that readers see the old content or the new, never half of it."""
    import tempfile  # here, since every start of a guest imports this file and few write anything

    with tempfile.NamedTemporaryFile(prefix=f".{place.name}.", dir=place.parent, delete=False) as scratch:
        try:
            scratch.write(content)
            scratch.close()
            os.chmod(scratch.name, 0o644)
            os.replace(scratch.name, place)
        except BaseException:
            os.unlink(scratch.name)
            raise


@contextmanager
def filling(place: Path) -> Iterator[Path]:
    """Give an empty folder to fill; once the block ends well it becomes `place`, replacing what was there.

    The caller is inside `only_one(place)`; what a killed process left half filled goes then.
    """
    import tempfile

    place.parent.mkdir(parents=True, exist_ok=True)
    for left in place.parent.glob(f".{glob.escape(place.name)}.*/"):
        shutil.rmtree(left, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        fresh = scratch / "new"
        fresh.mkdir()
        yield fresh
        if place.exists():
            place.rename(scratch / "old")  # rename(2) cannot replace a folder that has something in it
        fresh.rename(place)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
