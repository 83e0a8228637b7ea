"""Named volumes: directories that outlive containers, $XDG_DATA_HOME/xuni/volumes/NAME/_data, as docker lays them out.

An empty one takes what the image has at the place where it is mounted first. Nothing but `xuni volume rm` and `prune` removes
a volume with a name; one without (`-v /path`) goes with its container's `rm -v`, or its `--rm`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from xuni.host.linux.calls import CallError
from xuni.host.linux.kernel import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, Linux
from xuni.image.content import default_root
from xuni.server import ContainerError, rootless
from xuni.server.kept import Containers, locked, now
from xuni.server.request import NAME, Request

if TYPE_CHECKING:
    from xuni.server.kept import Record

DATA: Final = "_data"


@dataclass(frozen=True, slots=True)
class Kept:
    """volume.json, beside the data."""

    name: str
    created: str
    anonymous: bool = False
    filled: bool = False  # it has got what the image had


class Volumes:
    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or default_root()) / "volumes"

    def data(self, name: str) -> Path:
        return self.root / name / DATA

    def lock(self) -> AbstractContextManager[None]:
        return locked(self.root)

    def create(self, name: str = "") -> Kept:
        """The one of that name, new if there is none; without a name, a new one. Raises ContainerError."""
        anonymous = not name
        name = name or os.urandom(32).hex()
        if not NAME.match(name):
            raise ContainerError(f"a volume's name is of letters, digits and _ . -, a letter or digit first; {name!r} is not")
        with self.lock():
            with contextlib.suppress(ContainerError):
                return self.find(name)
            (self.root / name).mkdir(mode=0o711)
            self.data(name).mkdir(mode=0o755)
            kept = Kept(name, now(), anonymous)
            self._write(kept)
        return kept

    def _write(self, kept: Kept) -> None:
        scratch = self.root / kept.name / ".volume.json"
        scratch.write_text(json.dumps(asdict(kept)))
        scratch.rename(self.root / kept.name / "volume.json")

    def find(self, name: str) -> Kept:
        """Raises ContainerError."""
        place = self.root / name
        if not NAME.match(name) or not place.is_dir():
            raise ContainerError(f"there is no volume {name!r}; `xuni volume ls` lists them", 1)
        try:
            said = json.loads((place / "volume.json").read_bytes())
            return Kept(name, str(said["created"]), bool(said["anonymous"]), bool(said["filled"]))
        except (OSError, ValueError, KeyError, TypeError):
            return Kept(name, "", False, True)  # whatever was lost, its data is not ours to throw away

    def all(self) -> tuple[Kept, ...]:
        """By name."""
        names = sorted(each.name for each in self.root.iterdir() if NAME.match(each.name)) if self.root.is_dir() else []
        return tuple(map(self.find, names))

    def users(self) -> dict[str, list[str]]:
        """The names of the containers that have each volume."""
        found: dict[str, list[str]] = {}
        for record in Containers(self.root.parent).all():
            for volume in record.request.volumes:
                if volume.name:
                    found.setdefault(volume.name, []).append(record.name)
        return found

    def remove(self, name: str) -> None:
        """With all that is in it. Raises ContainerError if a container has it."""
        rootless.enter()
        with self.lock():
            self.find(name)
            users = self.users().get(name)
            if users:
                raise ContainerError(f"volume {name} is in use by {', '.join(users)}; `xuni rm` them first", 1)
            shutil.rmtree(self.root / name)

    def fill(self, name: str, root: Path, target: str, base: int) -> None:
        """Give a new, empty volume what the image has at `target` below the container's root, where owners are `base` higher."""
        with self.lock():
            kept = self.find(name)
            if kept.filled:
                return
            self._write(replace(kept, filled=True))
            if any(self.data(name).iterdir()):
                return
            top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                flags, resolve = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
                found = Linux().openat2(top, target.lstrip("/") or ".", flags, 0, resolve)
            except CallError:
                return  # the image has nothing there
            finally:
                os.close(top)
            try:
                from xuni.server import copying

                status = os.stat(f"/proc/self/fd/{found}")
                copying.copy(found, DATA, str(self.root / name), lambda each: max(each - base, 0))
                os.chown(self.data(name), max(status.st_uid - base, 0), max(status.st_gid - base, 0))
                os.chmod(self.data(name), stat.S_IMODE(status.st_mode))
            finally:
                os.close(found)


def claim(request: Request) -> Request:
    """The request with the places of its named volumes; those that are not there are made. Raises ContainerError."""
    store = Volumes()
    found = []
    for each in request.volumes:
        if not each.source:
            name = store.create(each.name).name
            each = replace(each, name=name, source=str(store.data(name)))
        found.append(each)
    return replace(request, volumes=tuple(found))


def fill(request: Request, root: Path, base: int) -> None:
    """What the image has goes into volumes that are new. Raises ContainerError."""
    for each in request.volumes:
        if each.name and "nocopy" not in each.options:
            Volumes().fill(each.name, root, each.target, base)


def forget(record: Record) -> None:
    """A container has gone, and with it its volumes without names."""
    store = Volumes()
    for each in record.request.volumes:
        if each.name:
            with contextlib.suppress(ContainerError):
                if store.find(each.name).anonymous:
                    store.remove(each.name)
