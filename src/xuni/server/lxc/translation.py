"""From the lines of an LXC configuration to a config.json, and what became of each line."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from xuni.server.bundle import ALL_CAPABILITIES, PATH
from xuni.server.lxc.text import ConfigurationError, Line, short

Status = Literal["honoured", "translated", "refused"]
# Keys that may be there many times; of all others the last one counts.
LISTS: Final = ("lxc.include", "lxc.idmap", "lxc.mount.entry", "lxc.mount.auto", "lxc.environment", "lxc.environment.runtime",
                "lxc.environment.hooks", "lxc.cap.drop", "lxc.cap.keep", "lxc.apparmor.raw", "lxc.group",
                "lxc.namespace.clone", "lxc.namespace.keep")  # fmt: skip
LIST_GROUPS: Final = ("lxc.hook.",)
DEVICE_LISTS: Final = tuple(f"{each}.devices.{verb}" for each in ("lxc.cgroup", "lxc.cgroup2") for verb in ("allow", "deny"))


@dataclass(frozen=True, slots=True)
class Verdict:
    """honoured: config.json says the same. translated: something else there has that effect, or nearly. refused: neither."""

    status: Status
    about: str


@dataclass(frozen=True, slots=True)
class Finding:
    line: Line
    status: Status
    about: str

    def as_json(self) -> dict[str, str | int]:
        return {"file": self.line.file, "line": self.line.number, "key": self.line.written, "value": self.line.value,
                "status": self.status, "about": self.about}  # fmt: skip


@dataclass(slots=True)
class Draft:
    """config.json in the making. It begins as LXC's container does: all namespaces, every capability, /sbin/init."""

    config: dict[str, Any]
    networks: dict[int, dict[str, str]] = field(default_factory=dict)  # settings of lxc.net.N
    dropped: list[str] = field(default_factory=list)
    kept: list[str] | None = None

    @property
    def process(self) -> dict[str, Any]:
        return self.config["process"]  # type: ignore[no-any-return]

    @property
    def linux(self) -> dict[str, Any]:
        return self.config["linux"]  # type: ignore[no-any-return]

    def resource(self, group: str) -> dict[str, Any]:
        return self.linux["resources"].setdefault(group, {})  # type: ignore[no-any-return]

    def namespace(self, kind: str, path: str | None = "") -> None:
        """Have one of that kind, new or at `path`; with None, the host's."""
        self.linux["namespaces"] = [each for each in self.linux["namespaces"] if each["type"] != kind]
        if path is not None:
            self.linux["namespaces"].append({"type": kind, **({"path": path} if path else {})})

    def mount(self, destination: str) -> dict[str, Any] | None:
        return next((each for each in self.config["mounts"] if each["destination"] == destination), None)


def blank() -> Draft:
    quiet = ["nosuid", "noexec", "nodev"]
    return Draft({
        "ociVersion": "1.2.0",
        "process": {"terminal": False, "user": {"uid": 0, "gid": 0}, "args": ["/sbin/init"], "env": [PATH, "container=lxc"],
                    "cwd": "/"},
        "root": {"path": ""},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": quiet},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755",
                                                                                    "size=500k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "nodev", "mode=1777"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": quiet},
        ],
        "linux": {"namespaces": [{"type": each} for each in ("pid", "ipc", "uts", "mount", "network", "cgroup")],
                  "resources": {}},
        "annotations": {},
    })  # fmt: skip


def translate(lines: tuple[Line, ...]) -> tuple[tuple[Finding, ...], dict[str, Any]]:
    """What becomes of each line, and the config.json of all. A value that makes no sense raises ConfigurationError."""
    from xuni.server.lxc import keys

    fate = _superseded(lines)
    draft = blank()
    for index, line in enumerate(lines):
        if index not in fate and line.value:
            keys.note_network(draft, line)
    # The root first: targets of mounts may begin with its path, and it may be told after them.
    for index in sorted(range(len(lines)), key=lambda each: lines[each].key != "lxc.rootfs.path"):
        if index not in fate:
            fate[index] = _decide(keys.rule(lines[index]), draft, lines[index])
    _finish(draft)
    return tuple(Finding(line, fate[index].status, fate[index].about) for index, line in enumerate(lines)), draft.config


def _decide(rule: Callable[[Draft, Line], Verdict], draft: Draft, line: Line) -> Verdict:
    if not line.value:
        return Verdict("honoured", "forgets what was set above")
    try:
        return rule(draft, line)
    except ValueError as error:
        raise ConfigurationError(f"{line.place}: {line.written} = {short(line.value)}: {error}") from None


def _superseded(lines: tuple[Line, ...]) -> dict[int, Verdict]:
    """Lines that a later one takes back: an empty value forgets its key and those below, a value replaces an earlier one."""
    found: dict[int, Verdict] = {}
    last: dict[str, list[int]] = {}
    for index, line in enumerate(lines):
        many = line.key in LISTS or line.key in DEVICE_LISTS or line.key.startswith(LIST_GROUPS)
        if not line.value:
            gone = [key for key in last if key == line.key or key.startswith(line.key + ".")]
            for key in gone:
                for each in last.pop(key):
                    found[each] = Verdict("honoured", f"forgotten at {line.place}")
        elif many:
            last.setdefault(line.key, []).append(index)
        else:
            for each in last.get(line.key, ()):
                found[each] = Verdict("honoured", f"replaced at {line.place}")
            last[line.key] = [index]
    return found


def _finish(draft: Draft) -> None:
    if draft.kept is not None:
        names = [each for each in ALL_CAPABILITIES if each in draft.kept]
    else:
        names = [each for each in ALL_CAPABILITIES if each not in draft.dropped]
    caps = [f"CAP_{each}" for each in names]
    draft.process["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), caps)
    if not any(each["type"] == "network" and "path" not in each for each in draft.linux["namespaces"]):
        draft.linux.pop("netDevices", None)
    if not draft.config["annotations"]:
        del draft.config["annotations"]


def write_bundle(directory: str, config: dict[str, Any], file: str) -> str:
    """config.json in the directory, which is made. What the runtime would refuse raises ConfigurationError, and nothing is
    written then; one that is there already is kept. The path is returned."""
    import json

    from xuni.container.check import check
    from xuni.container.plan import Host
    from xuni.container.record import SpecError, decode
    from xuni.container.spec import Spec

    if not config["root"]["path"]:
        raise ConfigurationError(f"{file}: no lxc.rootfs.path that can be used, and a bundle needs a root; add one")
    try:
        check(decode(Spec, config), Host())
    except SpecError as error:
        raise ConfigurationError(f"{file}: what it says makes no container: {error}") from None
    path = os.path.join(directory, "config.json")
    os.makedirs(directory, exist_ok=True)
    try:
        with open(path, "x") as written:
            json.dump(config, written, indent=2)
            written.write("\n")
    except FileExistsError:
        raise ConfigurationError(f"{path}: there is one already; remove it, or name another directory") from None
    return path
