"""What `xuni run` is asked for, checked. Spelled as docker spells it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from xuni.server import ContainerError

NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}\Z")
NETWORKS: Final = ("bridge", "none", "host")
USER_NAMESPACES: Final = ("auto", "host")
SIZES: Final = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
LEAST_MEMORY: Final = 6 << 20  # docker's rule: nothing starts in less


@dataclass(frozen=True, slots=True)
class Volume:
    """A directory or file of the host in the container."""

    source: str
    target: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Port:
    """A port of the host that leads to one of the container. `address` is the host's, "" for all."""

    host: int
    container: int
    protocol: str = "tcp"
    address: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    image: str
    command: tuple[str, ...] = ()
    name: str = ""
    interactive: bool = False
    tty: bool = False
    detach: bool = False
    remove: bool = False
    env: tuple[str, ...] = ()
    volumes: tuple[Volume, ...] = ()
    tmpfs: tuple[str, ...] = ()
    memory: int = 0
    memory_swap: int = 0
    cpus: float = 0
    cpu_shares: int = 0
    cpuset: str = ""
    pids: int = 0
    network: str = "bridge"
    ports: tuple[Port, ...] = ()
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    hosts: tuple[tuple[str, str], ...] = ()  # name and address
    hostname: str = ""
    entrypoint: tuple[str, ...] | None = None
    workdir: str = ""
    user: str = ""
    read_only: bool = False
    privileged: bool = False
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    stop_signal: str = ""
    runtime: str = "xuni"
    system: bool = False  # an init system is its first process
    userns: str = "host"

    def __post_init__(self) -> None:
        if self.name and not NAME.match(self.name):
            raise ContainerError(f"--name {self.name!r}: letters, digits and _ . - belong there, a letter or digit first")
        if self.network not in NETWORKS:
            raise ContainerError(f"--network {self.network!r}: {', '.join(NETWORKS)} are known")
        if self.userns not in USER_NAMESPACES:
            raise ContainerError(f"--userns {self.userns!r}: {', '.join(USER_NAMESPACES)} are known")
        if self.userns == "auto" and self.network == "host":
            raise ContainerError("--userns auto takes a network of its own: with --network host give --userns host as well")
        if self.system and self.privileged:
            raise ContainerError("--system gives an init system all it needs; --privileged would give it the host's devices")
        if self.system and (self.read_only or self.user):
            raise ContainerError("--system boots an init system as root, and it writes to its root: leave --read-only and -u out")
        if self.ports and self.network != "bridge":
            raise ContainerError(f"-p publishes ports of a bridge network; with --network {self.network} there are none")
        for each in self.dns:
            _address(each)
        for each in (*self.dns_search, *self.dns_options):
            if not each or any(letter.isspace() for letter in each):
                raise ContainerError(f"--dns-search, --dns-option: {each!r} is not a word")
        if self.memory and self.memory < LEAST_MEMORY:
            raise ContainerError(f"-m {self.memory}: a container takes at least 6 MiB")
        if self.memory_swap > 0 and not self.memory:
            raise ContainerError("--memory-swap is memory and swap together, so it takes -m as well")
        if self.memory_swap > 0 and self.memory_swap < self.memory:
            raise ContainerError("--memory-swap is memory and swap together, so it cannot be less than -m")
        if self.cpus < 0 or (self.cpus and self.cpus < 0.01):
            raise ContainerError(f"--cpus {self.cpus}: at least 0.01 of a CPU")


def size(text: str, option: str) -> int:
    """512m, 1g, 2048k, 1073741824, -1 for no limit. Raises ContainerError."""
    if text == "-1":
        return -1
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([bkmgt]?)b?", text.strip().lower())
    if not found:
        raise ContainerError(f"{option} {text!r}: a size like 512m or 1g belongs there")
    return int(float(found[1]) * SIZES[found[2]])


def volume(text: str) -> Volume:
    """SOURCE:TARGET[:OPTIONS]. Raises ContainerError."""
    import os

    parts = text.split(":")
    if len(parts) not in (2, 3) or not parts[0] or not parts[1].startswith("/"):
        raise ContainerError(f"-v {text!r}: /HOST/PATH:/CONTAINER/PATH[:ro] belongs there; named volumes there are none yet")
    source = os.path.abspath(os.path.expanduser(parts[0])) if parts[0].startswith(("/", ".", "~")) else ""
    if not source:
        raise ContainerError(f"-v {text!r}: {parts[0]!r} would be a named volume; for a directory write ./{parts[0]}")
    options = tuple(each for each in (parts[2].split(",") if len(parts) == 3 else ()) if each)
    known = ("ro rw rshared shared rslave slave rprivate private z Z exec noexec suid nosuid dev nodev bind rbind").split()
    for each in options:
        if each not in known:
            raise ContainerError(f"-v {text!r}: {each!r} is no option of a bind mount")
    return Volume(source, os.path.normpath(parts[1]), tuple(each for each in options if each not in ("z", "Z", "rw")))


def ports(text: str) -> tuple[Port, ...]:
    """[ADDRESS:][HOST:]CONTAINER[/PROTOCOL], ports or ranges of them. Raises ContainerError."""
    body, slash, protocol = text.partition("/")
    if protocol not in ("", "tcp", "udp") or (slash and not protocol):
        raise ContainerError(f"-p {text!r}: the protocol is tcp or udp")
    parts = body.rsplit(":", 2)
    address = parts[0] if len(parts) == 3 else ""
    if address and not re.fullmatch(r"\d{1,3}(\.\d{1,3}){3}", address):
        raise ContainerError(f"-p {text!r}: {address!r} is not an IPv4 address of this host")
    inside = _range(parts[-1], text)
    outside = _range(parts[-2], text) if len(parts) > 1 and parts[-2] else inside
    if len(inside) != len(outside):
        raise ContainerError(f"-p {text!r}: the two ranges differ in length")
    return tuple(Port(host, container, protocol or "tcp", "" if address == "0.0.0.0" else address)
                 for host, container in zip(outside, inside, strict=True))  # fmt: skip


def _address(text: str) -> None:
    import ipaddress

    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise ContainerError(f"--dns {text!r}: the address of a name server belongs there, like 9.9.9.9") from None


def host(text: str) -> tuple[str, str]:
    """NAME:ADDRESS, or NAME=ADDRESS. Raises ContainerError."""
    import ipaddress

    name, sign, address = text.partition("=" if "=" in text else ":")
    try:
        found = ipaddress.ip_address(address.strip("[]"))
    except ValueError:
        found = None
    if not sign or not NAME.match(name) or found is None:
        raise ContainerError(f"--add-host {text!r}: NAME:ADDRESS belongs there, like db:10.0.0.5")
    return name, str(found)


def _range(text: str, whole: str) -> range:
    first, dash, last = text.partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()):
        raise ContainerError(f"-p {whole!r}: [ADDRESS:][HOSTPORT:]CONTAINERPORT[/udp] belongs there")
    low, high = int(first), int(last) if dash else int(first)
    if not 0 < low <= high < 65536:
        raise ContainerError(f"-p {whole!r}: ports are 1 … 65535")
    return range(low, high + 1)
