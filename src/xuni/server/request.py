"""What `xuni run` is asked for, checked. Spelled as docker spells it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from xuni.server import ContainerError, where

NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}\Z")
NETWORKS: Final = ("bridge", "none", "host")
USER_NAMESPACES: Final = ("auto", "host")
SIZES: Final = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
LEAST_MEMORY: Final = 6 << 20  # docker's rule: nothing starts in less


@dataclass(frozen=True, slots=True)
class Volume:
    """A directory or file of the host in the container; with a `name`, or without a source yet, a volume of ours."""

    source: str
    target: str
    options: tuple[str, ...] = ()
    name: str = ""


@dataclass(frozen=True, slots=True)
class Limit:
    """Of setrlimit(2), by the kernel's name; -1 is unlimited."""

    name: str
    soft: int
    hard: int


@dataclass(frozen=True, slots=True)
class Device:
    """A device of the host, and what the container may do with it: some of rwm."""

    source: str
    target: str
    access: str = "rwm"


@dataclass(frozen=True, slots=True)
class Rate:
    """At most that much, bytes or operations a second, from or to a disk. `kind` is the OCI configuration's name."""

    kind: str
    device: str
    rate: int


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
    network: str = ""  # bridge, or without root none
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
    init: bool = False
    ulimits: tuple[Limit, ...] = ()
    devices: tuple[Device, ...] = ()
    rates: tuple[Rate, ...] = ()
    blkio_weight: int = 0
    memory_reservation: int = 0
    shm_size: int = 0
    sysctls: tuple[tuple[str, str], ...] = ()
    no_new_privileges: bool = False
    seccomp: str = ""  # unconfined, or the path of a profile
    pid: str = ""
    ipc: str = ""
    uts: str = ""
    groups: tuple[str, ...] = ()
    oom_score: int = 0
    stop_timeout: float = 10
    restart: str = ""  # on-failure, always, unless-stopped
    restart_most: int = 0

    def __post_init__(self) -> None:
        if not self.network:
            object.__setattr__(self, "network", "none" if where.rootless() else "bridge")
        if self.name and not NAME.match(self.name):
            raise ContainerError(f"--name {self.name!r}: letters, digits and _ . - belong there, a letter or digit first")
        if self.network not in NETWORKS and not self.network.startswith("container:"):
            raise ContainerError(f"--network {self.network!r}: {', '.join(NETWORKS)} and container:NAME are known")
        for option, wanted in (("pid", self.pid), ("ipc", self.ipc), ("uts", self.uts)):
            if wanted not in ("", "private", "host") and not (wanted.startswith("container:") and option != "uts"):
                known = "private, host" + ("" if option == "uts" else ", container:NAME")
                raise ContainerError(f"--{option} {wanted!r}: {known} are known")
        if self.restart and self.remove:
            raise ContainerError("--restart starts it again, and --rm removes it: one of the two")
        if self.uts == "host" and self.hostname:
            raise ContainerError("--hostname would rename the host with --uts host")
        if not -1000 <= self.oom_score <= 1000:
            raise ContainerError(f"--oom-score-adj {self.oom_score}: -1000 … 1000 (proc_pid_oom_score_adj(5))")
        if self.blkio_weight and not 10 <= self.blkio_weight <= 1000:
            raise ContainerError(f"--blkio-weight {self.blkio_weight}: 10 … 1000")
        if self.memory_reservation > self.memory > 0:
            raise ContainerError("--memory-reservation is what is left to it when memory is short: at most -m")
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


BIND_OPTIONS: Final = ("ro rw rshared shared rslave slave rprivate private z Z exec noexec suid nosuid dev nodev bind rbind "
                       "nocopy").split()  # fmt: skip


def volume(text: str) -> Volume:
    """SOURCE:TARGET[:OPTIONS], or TARGET alone for a volume without a name. Raises ContainerError."""
    parts = text.split(":")
    if len(parts) == 1:
        parts = ["", *parts]
    if len(parts) not in (2, 3) or not parts[1].startswith("/") or (text.startswith(":")):
        raise ContainerError(f"-v {text!r}: /HOST/PATH:/CONTAINER/PATH[:ro] or NAME:/CONTAINER/PATH[:ro] belongs there")
    options = tuple(each for each in (parts[2].split(",") if len(parts) == 3 else ()) if each)
    for each in options:
        if each not in BIND_OPTIONS:
            raise ContainerError(f"-v {text!r}: {each!r} is no option of a bind mount")
    return _volume(parts[0], parts[1], options, f"-v {text!r}")


def _volume(source: str, target: str, options: tuple[str, ...], place: str) -> Volume:
    import os

    options = tuple(each for each in options if each not in ("z", "Z", "rw"))
    target = os.path.normpath(target)
    if target == "/":
        raise ContainerError(f"{place}: / is the image's; a directory below it belongs there")
    if source.startswith(("/", ".", "~")):
        return Volume(os.path.abspath(os.path.expanduser(source)), target, options)
    if source and not NAME.match(source):
        raise ContainerError(f"{place}: {source!r} is no volume's name (letters, digits, _ . -); a directory is ./{source}")
    return Volume("", target, options, source)


def mount(text: str) -> Volume | str:
    """--mount type=bind|volume|tmpfs,source=…,target=…: a volume, or what --tmpfs takes. Raises ContainerError."""
    given: dict[str, str] = {}
    for each in text.split(","):
        key, _, value = each.partition("=")
        given[{"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}.get(key, key)] = value
    kind, target = given.pop("type", "volume"), given.pop("target", "")
    place = f"--mount {text!r}"
    if not target.startswith("/"):
        raise ContainerError(f"{place}: target=/CONTAINER/PATH is missing")
    if kind == "tmpfs":
        options = [f"size={given.pop('tmpfs-size')}"] if "tmpfs-size" in given else []
        options.append(f"mode={given.pop('tmpfs-mode', '1777')}")
        found: Volume | str = f"{target}:{','.join(options)}"
    elif kind in ("bind", "volume"):
        source = given.pop("source", "")
        if kind == "bind" and not source.startswith(("/", ".", "~")):
            raise ContainerError(f"{place}: source=/HOST/PATH is missing")
        if kind == "volume" and source.startswith(("/", ".", "~")):
            raise ContainerError(f"{place}: {source!r} is a path: type=bind mounts it")
        readonly = given.pop("readonly", "false") in ("", "true", "1")
        spread = given.pop("bind-propagation", "")
        nocopy = "volume-nocopy" in given and given.pop("volume-nocopy") in ("", "true", "1")
        options = [*(["ro"] if readonly else []), *([spread] if spread else []), *(["nocopy"] if nocopy else [])]
        if not set(options) <= set(BIND_OPTIONS):
            raise ContainerError(f"{place}: bind-propagation={spread}: private, shared, slave and their r forms are known")
        found = _volume(source, target, tuple(options), place)
    else:
        raise ContainerError(f"{place}: type={kind}: bind, volume and tmpfs are known")
    if given:
        raise ContainerError(f"{place}: {next(iter(given))!r} is not known")
    return found


def ulimit(text: str) -> Limit:
    """NAME=SOFT[:HARD], by the names of prlimit(1). Raises ContainerError."""
    import resource

    name, _, values = text.partition("=")
    known = [each.removeprefix("RLIMIT_").lower() for each in dir(resource) if each.startswith("RLIMIT_")]
    if name not in known:
        raise ContainerError(f"--ulimit {text!r}: {', '.join(sorted(known))} are known")
    soft, _, hard = values.partition(":")
    try:
        return Limit(f"RLIMIT_{name.upper()}", int(soft), int(hard or soft))
    except ValueError:
        raise ContainerError(f"--ulimit {text!r}: NAME=SOFT[:HARD] belongs there, like nofile=1024; -1 is unlimited") from None


def device(text: str) -> Device:
    """HOST[:CONTAINER[:rwm]]. Raises ContainerError."""
    parts = text.split(":")
    if len(parts) == 2 and parts[1] and set(parts[1]) <= set("rwm"):
        parts = [parts[0], parts[0], parts[1]]
    source, target, access = [*parts, "", ""][:3]
    if len(parts) > 3 or not source.startswith("/") or not set(access) <= set("rwm") or (target and not target.startswith("/")):
        raise ContainerError(f"--device {text!r}: /dev/HOST[:/dev/CONTAINER[:rwm]] belongs there")
    return Device(source, target or source, access or "rwm")


def rate(kind: str, text: str) -> Rate:
    """PATH:RATE. Raises ContainerError."""
    path, _, value = text.rpartition(":")
    option = "--device-" + {"throttleReadBpsDevice": "read-bps", "throttleWriteBpsDevice": "write-bps",
                            "throttleReadIOPSDevice": "read-iops", "throttleWriteIOPSDevice": "write-iops"}[kind]  # fmt: skip
    if not path.startswith("/"):
        raise ContainerError(f"{option} {text!r}: /dev/DISK:RATE belongs there, like /dev/sda:1m")
    return Rate(kind, path, size(value, option))


def pair(text: str, option: str) -> tuple[str, str]:
    """NAME=VALUE. Raises ContainerError."""
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise ContainerError(f"{option} {text!r}: NAME=VALUE belongs there")
    return name, value


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
