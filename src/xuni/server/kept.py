"""What is kept of each container: $XDG_DATA_HOME/xuni/containers/ID/, one directory a container.

    container.json    the record below, replaced whole
    config.json       of the bundle
    rootfs, upper, work, hosts, hostname, resolv.conf
    log.json          one JSON object a line, as docker's json-file driver writes it
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from xuni.image.content import default_root
from xuni.server import ContainerError
from xuni.server.request import Device, Limit, Port, Rate, Request, Volume

LEFT: Final = ("amber brave calm clear deep eager fair fleet gentle glad keen kind lucid mild neat plain quick quiet ready "
               "sharp sleek smart solid still sunny swift warm wise witty young").split()  # fmt: skip
RIGHT: Final = ("aspen birch brook cedar cliff cloud comet coral crane delta ember falcon fern grove harbor heron lake larch "
                "maple meadow otter pine quartz raven river robin sparrow stone willow wren").split()  # fmt: skip


@dataclass(frozen=True, slots=True)
class Record:
    """`pid` and `began` (field 22 of /proc/PID/stat) name the first process, whoever gets its number later."""

    id: str
    name: str
    request: Request
    image: str
    layers: tuple[str, ...]
    command: tuple[str, ...]
    created: str
    runtime: str
    status: str = "created"  # then running, perhaps restarting, exited
    pid: int = 0
    began: int = 0
    started: str = ""
    finished: str = ""
    exit: int = 0
    error: str = ""
    oom_killed: bool = False
    address: str = ""
    monitor: int = 0
    restarts: int = 0

    @classmethod
    def parse(cls, value: dict[str, Any]) -> Record:
        known = {each.name for each in fields(cls)}
        given: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item
                                 for key, item in value.items() if key in known}  # fmt: skip
        request = dict(given["request"])
        request["volumes"] = tuple(Volume(**{**each, "options": tuple(each["options"])}) for each in request["volumes"])
        for key, kind in (("ports", Port), ("ulimits", Limit), ("devices", Device), ("rates", Rate)):
            request[key] = tuple(kind(**each) for each in request.get(key, ()))
        for key in ("hosts", "sysctls"):
            request[key] = tuple(tuple(each) for each in request.get(key, ()))
        names = {each.name for each in fields(Request)}
        request = {key: tuple(item) if isinstance(item, list) else item for key, item in request.items() if key in names}
        given["request"] = Request(**request)
        return cls(**given)


def now() -> str:
    """RFC 3339, in UTC."""
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{nanoseconds // 1000:06}Z"


def began(pid: int) -> int:
    """When the process began, in ticks since the boot; 0 if there is none, or only its remains."""
    try:
        fields_after_name = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return 0
    return 0 if fields_after_name[0] in (b"Z", b"X") else int(fields_after_name[19])


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """One at a time in this directory, which is made. Its entries have names that others may not list."""
    root.mkdir(parents=True, exist_ok=True)
    root.chmod(0o711)
    with open(root / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Containers:
    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or default_root()) / "containers"

    def place(self, container: str) -> Path:
        return self.root / container

    def lock(self) -> AbstractContextManager[None]:
        return locked(self.root)

    def claim(self, record: Record) -> Record:
        """Give it a directory, and its name or one that is free. Raises ContainerError."""
        with self.lock():
            taken = {each.name: each.id for each in self.all()}
            name = record.name
            if name in taken:
                raise ContainerError(f"the name {name} is taken by container {taken[name][:12]}; `xuni rm {name}` frees it")
            while not name or name in taken:
                left, right, number, _ = os.urandom(4)
                name = f"{LEFT[left % len(LEFT)]}_{RIGHT[right % len(RIGHT)]}" + (f"_{number}" if name else "")
            record = replace(record, name=name)
            self.place(record.id).mkdir(mode=0o711)
            self.write(record)
        return record

    def rename(self, wanted: str, name: str) -> Record:
        """Raises ContainerError if another has the name."""
        with self.lock():
            record = self.find(wanted)
            if any(each.name == name and each.id != record.id for each in self.all()):
                raise ContainerError(f"the name {name} is taken by another container", 1)
            record = replace(record, name=name, request=replace(record.request, name=name))
            self.write(record)
        return record

    def write(self, record: Record) -> None:
        place = self.place(record.id)
        scratch = place / f".container.json.{os.getpid()}"
        scratch.write_text(json.dumps(asdict(record)))
        scratch.rename(place / "container.json")

    def change(self, container: str, **fields: Any) -> Record:
        """These fields of what is kept, whatever others have changed meanwhile. Raises ContainerError if it is gone."""
        with self.lock():
            record = replace(self.read(container), **fields)
            self.write(record)
        return record

    def read(self, container: str) -> Record:
        """Raises ContainerError if it is gone."""
        try:
            return Record.parse(json.loads((self.place(container) / "container.json").read_bytes()))
        except FileNotFoundError:
            raise ContainerError(f"container {container[:12]} is gone") from None

    def all(self) -> tuple[Record, ...]:
        """Newest first."""
        found = []
        for each in self.root.iterdir() if self.root.is_dir() else ():
            try:
                found.append(Record.parse(json.loads((each / "container.json").read_bytes())))
            except (OSError, ValueError, KeyError, TypeError):
                continue  # half made, or half removed
        return tuple(sorted((_seen(each) for each in found), key=lambda each: each.created, reverse=True))

    def find(self, wanted: str) -> Record:
        """By name, id, or the beginning of an id. Raises ContainerError."""
        everything = self.all()
        for each in everything:
            if wanted in (each.name, each.id):
                return each
        matching = [each for each in everything if wanted and each.id.startswith(wanted)]
        if len(matching) == 1:
            return matching[0]
        if matching:
            raise ContainerError(f"{wanted!r} begins the ids of {len(matching)} containers; write more of it", 1)
        raise ContainerError(f"there is no container {wanted!r}; `xuni ps -a` lists them", 1)

    def layers_in_use(self) -> set[str]:
        return {layer for each in self.all() for layer in each.layers}


def _seen(record: Record) -> Record:
    """What really is: a container whose process has gone while nobody watched has ended."""
    if record.status in ("running", "restarting") and began(record.pid) != record.began and began(record.monitor) == 0:
        unseen = "its end was not seen: whoever stayed with it was killed"
        return replace(record, status="exited", exit=record.exit or 255, error=record.error or unseen)
    return record
