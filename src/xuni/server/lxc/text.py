"""The files of an LXC configuration as lines: comments, quotes, includes, the names of before LXC 2.1. Nothing is run, and all of
it is bounded: these files may be anybody's."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

MAX_FILE: Final = 1 << 20  # bytes
MAX_LINE: Final = 8192  # characters
MAX_LINES: Final = 10_000  # settings, over all files
MAX_FILES: Final = 256
MAX_DEPTH: Final = 8  # of includes

# Names of before LXC 2.1: what they are called since. One that ends in "." stands for all that begin so.
LEGACY: Final = {
    "lxc.aa_allow_incomplete": "lxc.apparmor.allow_incomplete", "lxc.aa_profile": "lxc.apparmor.profile",
    "lxc.console": "lxc.console.path", "lxc.devttydir": "lxc.tty.dir", "lxc.haltsignal": "lxc.signal.halt",
    "lxc.id_map": "lxc.idmap", "lxc.init_cmd": "lxc.init.cmd", "lxc.init_gid": "lxc.init.gid", "lxc.init_uid": "lxc.init.uid",
    "lxc.limit": "lxc.prlimit", "lxc.limit.": "lxc.prlimit.", "lxc.logfile": "lxc.log.file", "lxc.loglevel": "lxc.log.level",
    "lxc.mount": "lxc.mount.fstab", "lxc.pts": "lxc.pty.max", "lxc.rebootsignal": "lxc.signal.reboot",
    "lxc.rootfs": "lxc.rootfs.path", "lxc.se_context": "lxc.selinux.context", "lxc.seccomp": "lxc.seccomp.profile",
    "lxc.stopsignal": "lxc.signal.stop", "lxc.syslog": "lxc.log.syslog", "lxc.tty": "lxc.tty.max", "lxc.utsname": "lxc.uts.name",
}  # fmt: skip
_LEGACY_NETWORK: Final = {"ipv4": "ipv4.address", "ipv6": "ipv6.address"}
_KEY: Final = re.compile(r"lxc(\.[A-Za-z0-9_@/:-]+)+\Z")


class ConfigurationError(Exception):
    """What is wrong, with its file and line."""


@dataclass(frozen=True, slots=True)
class Line:
    """One setting. `key` is the name that it has since LXC 2.1, `written` that in the file."""

    file: str
    number: int
    key: str
    value: str
    written: str

    @property
    def place(self) -> str:
        return f"{self.file}:{self.number}"


def read(path: str) -> tuple[Line, ...]:
    """All settings in order; those of an included file come after its lxc.include. Raises ConfigurationError, OSError."""
    found = _Reading()
    found.file(path, (), "")
    return tuple(found.lines)


def regular(path: str, place: str) -> str:
    """The text of an ordinary file of bounded size. Raises ConfigurationError; `place` says who named the file."""
    said = f"{place}: " if place else ""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{said}{path!r}: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ConfigurationError(f"{said}{path}: not an ordinary file")
    with open(descriptor, "rb") as file:
        content = file.read(MAX_FILE + 1)
    if len(content) > MAX_FILE:
        raise ConfigurationError(f"{said}{path}: longer than {MAX_FILE} bytes; a configuration is shorter")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"{path}:{number}: not UTF-8 text") from None


class _Reading:
    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.files = 0
        self.networks = -1  # the index of the last lxc.network.type

    def file(self, path: str, above: tuple[str, ...], place: str) -> None:
        if len(above) > MAX_DEPTH:
            raise ConfigurationError(f"{place}: includes nest more than {MAX_DEPTH} deep ({' → '.join(above[-3:])} → {path}); "
                                     "does a file include itself?")  # fmt: skip
        self.files += 1
        if self.files > MAX_FILES:
            raise ConfigurationError(f"{place}: more than {MAX_FILES} files are included")
        for line in _settings(regular(path, place), path):
            if len(self.lines) >= MAX_LINES:
                raise ConfigurationError(f"{line.place}: more than {MAX_LINES} settings")
            self.lines.append(self._today(line))
            if line.key == "lxc.include" and line.value:
                for each in self._included(line):
                    self.file(each, (*above, path), line.place)

    def _included(self, line: Line) -> list[str]:
        """A file, or all *.conf of a directory."""
        if not os.path.isdir(line.value):
            return [line.value]
        names = sorted(each for each in os.listdir(line.value) if each.endswith(".conf"))
        return [os.path.join(line.value, each) for each in names]

    def _today(self, line: Line) -> Line:
        key = line.key
        if key == "lxc.network.type":
            self.networks += 1
        if key == "lxc.network" or key.startswith("lxc.network."):
            rest = key.removeprefix("lxc.network").removeprefix(".")
            if not rest:
                return replace(line, key="lxc.net")
            if rest.split(".")[0].isdecimal():
                return replace(line, key=f"lxc.net.{_LEGACY_NETWORK.get(rest, rest)}")
            if self.networks < 0:
                raise ConfigurationError(f"{line.place}: {key} before any lxc.network.type: which network is meant?")
            return replace(line, key=f"lxc.net.{self.networks}.{_LEGACY_NETWORK.get(rest, rest)}")
        for old, new in LEGACY.items():
            if key == old:
                return replace(line, key=new)
            if old.endswith(".") and key.startswith(old):
                return replace(line, key=new + key[len(old) :])
        return line


def _settings(text: str, path: str) -> Iterator[Line]:
    for number, raw in enumerate(text.split("\n"), 1):
        if len(raw) > MAX_LINE:
            raise ConfigurationError(f"{path}:{number}: longer than {MAX_LINE} characters")
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        key, equals, value = (each.strip() for each in line.partition("="))
        if not equals:
            raise ConfigurationError(f"{path}:{number}: {short(line)} is not of the form KEY = VALUE")
        if not _KEY.match(key):
            raise ConfigurationError(f"{path}:{number}: {short(key)} is no key; those of LXC begin with lxc.")
        if "\0" in value:
            raise ConfigurationError(f"{path}:{number}: a zero byte")
        if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        yield Line(path, number, key, value, key)


def short(text: str) -> str:
    """For messages."""
    return repr(text if len(text) <= 40 else text[:39] + "…")
