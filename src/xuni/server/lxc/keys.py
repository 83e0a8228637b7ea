"""What becomes of each key of lxc.container.conf(5). To add one: a function or a line here, and tests/server/test_lxc.py.

A rule changes the draft and says what it did; a value that makes no sense is a ValueError with the rule that it breaks.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
from collections.abc import Callable
from typing import Final

from xuni.server.bundle import ALL_CAPABILITIES
from xuni.server.lxc.mounts import automatic, entry, table
from xuni.server.lxc.text import Line
from xuni.server.lxc.translation import Draft, Verdict

Rule = Callable[[Draft, Line], Verdict]
KINDS: Final = {"ipc": "ipc", "mnt": "mount", "net": "network", "pid": "pid", "user": "user", "uts": "uts", "cgroup": "cgroup",
                "time": "time"}  # fmt: skip
MAX_NETWORKS: Final = 256


def honoured(about: str) -> Verdict:
    return Verdict("honoured", about)


def translated(about: str) -> Verdict:
    return Verdict("translated", about)


def refused(about: str) -> Verdict:
    return Verdict("refused", about)


def rule(line: Line) -> Rule:
    """The rule for a key."""
    if line.key in RULES:
        return RULES[line.key]
    for beginning, found in FAMILIES.items():
        if line.key.startswith(beginning):
            return found
    for beginning, why in REFUSED.items():
        if line.key == beginning or line.key.startswith(beginning + "."):
            return lambda _, __: refused(why)
    return lambda _, __: refused("no key of lxc.container.conf(5)")


def number(text: str, least: int = 0, most: int = (1 << 63) - 1) -> int:
    if not re.fullmatch(r"-?\d{1,19}", text) or not least <= int(text) <= most:
        raise ValueError(f"a number within {least} … {most} belongs there")
    return int(text)


def size(text: str) -> int:
    """1048576, 512K, 64M, 2G; -1 for none."""
    found = re.fullmatch(r"(\d{1,15})([kKmMgG]?)[bB]?", text)
    if text == "-1":
        return -1
    if not found:
        raise ValueError("a size like 512M belongs there")
    return int(found[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[found[2].lower()]


def flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("0 or 1 belongs there")
    return text == "1"


# ---- the process


def _name(draft: Draft, line: Line) -> Verdict:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", line.value):
        raise ValueError("a host name has up to 64 letters, digits, dots and dashes")
    draft.config["hostname"] = line.value
    return honoured("hostname")


def _command(draft: Draft, line: Line) -> Verdict:
    words = shlex.split(line.value)
    if not words:
        raise ValueError("a command belongs there")
    draft.process["args"] = words
    return honoured("process.args")


def _directory(draft: Draft, line: Line) -> Verdict:
    if not line.value.startswith("/"):
        raise ValueError("an absolute path belongs there")
    draft.process["cwd"] = line.value
    return honoured("process.cwd")


def _user(draft: Draft, line: Line) -> Verdict:
    name = line.key.rsplit(".", 1)[1]
    draft.process["user"][name] = number(line.value, 0, (1 << 32) - 2)
    return honoured(f"process.user.{name}")


def _groups(draft: Draft, line: Line) -> Verdict:
    draft.process["user"]["additionalGids"] = [number(each.strip(), 0, (1 << 32) - 2) for each in line.value.split(",")]
    return honoured("process.user.additionalGids")


def _environment(draft: Draft, line: Line) -> Verdict:
    name, equals, _ = line.value.partition("=")
    if not name:
        raise ValueError("NAME=VALUE belongs there")
    kept = [each for each in draft.process["env"] if each.partition("=")[0] != name]
    if equals:
        draft.process["env"] = [*kept, line.value]
        return honoured("process.env")
    if name not in os.environ:
        return refused(f"{name} is not in this environment")
    draft.process["env"] = [*kept, f"{name}={os.environ[name]}"]
    return translated("process.env, with the value that it has here and now")


def _no_new_privileges(draft: Draft, line: Line) -> Verdict:
    draft.process["noNewPrivileges"] = flag(line.value)
    return honoured("process.noNewPrivileges")


def _capabilities(draft: Draft, line: Line) -> Verdict:
    names = [each.upper().removeprefix("CAP_") for each in line.value.split()]
    keeping = line.key.endswith("keep")
    for each in names:
        if each not in ALL_CAPABILITIES and not (keeping and each == "NONE"):
            raise ValueError(f"{each.lower()!r} is no capability (capabilities(7))")
    if keeping:
        draft.kept = [] if "NONE" in names else [*(draft.kept or ()), *names]
    else:
        draft.dropped += names
    if draft.kept is not None and draft.dropped:
        raise ValueError("lxc.cap.keep and lxc.cap.drop exclude each other")
    return honoured("process.capabilities")


def _limit(draft: Draft, line: Line) -> Verdict:
    from xuni.container.process import RLIMITS

    kind = "RLIMIT_" + line.key.rsplit(".", 1)[1].upper()
    if kind not in RLIMITS:
        raise ValueError(f"{kind} is no limit of getrlimit(2)")
    soft, _, hard = (each.strip() for each in line.value.partition(":"))
    values = [(1 << 64) - 1 if each == "unlimited" else number(each) for each in (soft, hard or soft)]
    if values[0] > values[1]:
        raise ValueError("the soft limit exceeds the hard one")
    draft.process.setdefault("rlimits", []).append({"type": kind, "soft": values[0], "hard": values[1]})
    return honoured("process.rlimits")


def _proc(draft: Draft, line: Line) -> Verdict:
    if line.key != "lxc.proc.oom_score_adj":
        return refused("of /proc/PID, config.json has oom_score_adj alone")
    draft.process["oomScoreAdj"] = number(line.value, -1000, 1000)
    return honoured("process.oomScoreAdj")


def _apparmor(draft: Draft, line: Line) -> Verdict:
    if line.value == "generated":
        return refused("LXC's own tool makes this profile; name one that is loaded, or unconfined")
    if line.value in ("unconfined", "unchanged"):
        return translated("no process.apparmorProfile: it keeps the runtime's")
    draft.process["apparmorProfile"] = line.value
    return honoured("process.apparmorProfile")


def _selinux(draft: Draft, line: Line) -> Verdict:
    draft.process["selinuxLabel"] = line.value
    return honoured("process.selinuxLabel")


def _stop_signal(draft: Draft, line: Line) -> Verdict:
    name = line.value.upper().removeprefix("SIG")
    realtime = re.fullmatch(r"RTM(IN\+|AX-)\d{1,2}", name)
    if not (name.isdecimal() and 0 < int(name) < 65) and f"SIG{name}" not in signal.Signals.__members__ and not realtime:
        raise ValueError("a signal like SIGPWR or SIGRTMIN+3 belongs there")
    draft.config["annotations"]["org.opencontainers.image.stopSignal"] = name if name.isdecimal() else f"SIG{name}"
    return translated("annotation org.opencontainers.image.stopSignal, for whoever stops it")


# ---- the root


def _root(draft: Draft, line: Line) -> Verdict:
    kind, colon, rest = line.value.partition(":")
    path = rest if colon and not line.value.startswith("/") else line.value
    if colon and not line.value.startswith("/") and kind not in ("dir", "btrfs"):
        return refused(f"storage of kind {kind} is not mounted here: mount it, and name the directory")
    if not path.startswith("/"):
        raise ValueError("an absolute path belongs there")
    draft.config["root"]["path"] = os.path.normpath(path)
    return honoured("root.path") if path == line.value else translated("root.path, as a directory")


def _root_options(draft: Draft, line: Line) -> Verdict:
    options = [each for each in line.value.split(",") if each]
    unknown = [each for each in options if each not in ("ro", "rw")]
    if unknown:
        return refused(f"{', '.join(unknown)}: config.json has read-only roots alone; mount it so before")
    draft.config["root"]["readonly"] = bool(options) and options[-1] == "ro"
    return translated("root.readonly")


# ---- namespaces and maps


def _idmap(draft: Draft, line: Line) -> Verdict:
    words = line.value.split()
    if len(words) != 4 or words[0] not in ("u", "g", "b"):
        raise ValueError("u|g|b CONTAINER HOST COUNT belongs there")
    inside, outside, count = (number(each, 0, (1 << 32) - 1) for each in words[1:])
    if not count or inside + count > 1 << 32 or outside + count > 1 << 32:
        raise ValueError("the range ends behind the last id")
    draft.namespace("user")
    names = ["uidMappings"] * (words[0] != "g") + ["gidMappings"] * (words[0] != "u")
    for name in names:
        draft.linux.setdefault(name, []).append({"containerID": inside, "hostID": outside, "size": count})
    return honoured(" and ".join(f"linux.{name}" for name in names))


def _namespaces(draft: Draft, line: Line) -> Verdict:
    wanted = line.value.split()
    for each in wanted:
        if each not in KINDS:
            raise ValueError(f"{each!r} is none of {', '.join(KINDS)}")
    for each, kind in KINDS.items():
        if line.key.endswith("keep") and each in wanted:
            draft.namespace(kind, None)
        elif line.key.endswith("clone"):
            has = any(present["type"] == kind for present in draft.linux["namespaces"])
            if (each in wanted) != has:
                draft.namespace(kind, "" if each in wanted else None)
    return honoured("linux.namespaces")


def _share(draft: Draft, line: Line) -> Verdict:
    short = line.key.rsplit(".", 1)[1]
    if short not in KINDS:
        raise ValueError(f"{short!r} is none of {', '.join(KINDS)}")
    if line.value.startswith("/"):
        draft.namespace(KINDS[short], line.value)
        return honoured("linux.namespaces[].path")
    if line.value.isdecimal():
        draft.namespace(KINDS[short], f"/proc/{number(line.value, 1, 1 << 22)}/ns/{short}")
        return translated("linux.namespaces[].path, below /proc")
    return refused(f"{line.value}: LXC's containers are not known here by name; give a pid or a path")


def _offset(draft: Draft, line: Line) -> Verdict:
    clock = line.key.rsplit(".", 1)[1]
    found = re.fullmatch(r"(-?)(\d{1,12})\s*(h|m|s|ms|us|ns)", line.value)
    if clock not in ("boot", "monotonic") or not found:
        raise ValueError("lxc.time.offset.boot or .monotonic takes a time like 12h, 90m, 30s or 5ms")
    scale = {"h": 3600 * 10**9, "m": 60 * 10**9, "s": 10**9, "ms": 10**6, "us": 1000, "ns": 1}[found[3]]
    seconds, nanoseconds = divmod(int(found[1] + found[2]) * scale, 10**9)
    draft.namespace("time")
    offsets = draft.linux.setdefault("timeOffsets", {})
    offsets["boottime" if clock == "boot" else clock] = {"secs": seconds, "nanosecs": nanoseconds}
    return honoured("linux.timeOffsets")


def _architecture(draft: Draft, line: Line) -> Verdict:
    own = os.uname().machine
    if line.value in ("x86", "i386", "i486", "i586", "i686", "linux32"):
        draft.linux["personality"] = {"domain": "LINUX32"}
    elif line.value in (own, "linux64") or (line.value, own) in (("amd64", "x86_64"), ("arm64", "aarch64")):
        draft.linux["personality"] = {"domain": "LINUX"}
    else:
        return refused(f"this host is {own}")
    return honoured("linux.personality")


def _sysctl(draft: Draft, line: Line) -> Verdict:
    draft.linux.setdefault("sysctl", {})[line.key.removeprefix("lxc.sysctl.")] = line.value
    return honoured("linux.sysctl")


# ---- control groups

_V1: Final[dict[str, tuple[str, str, Callable[[str], int | str]]]] = {
    "memory.limit_in_bytes": ("memory", "limit", size), "memory.memsw.limit_in_bytes": ("memory", "swap", size),
    "memory.soft_limit_in_bytes": ("memory", "reservation", size), "memory.swappiness": ("memory", "swappiness", number),
    "cpu.shares": ("cpu", "shares", number), "cpu.cfs_period_us": ("cpu", "period", number),
    "cpu.cfs_quota_us": ("cpu", "quota", lambda text: number(text, -1)), "cpuset.cpus": ("cpu", "cpus", str),
    "cpuset.mems": ("cpu", "mems", str), "pids.max": ("pids", "limit", lambda text: -1 if text == "max" else number(text)),
    "blkio.weight": ("blockIO", "weight", lambda text: number(text, 10, 1000)),
    "net_cls.classid": ("network", "classID", lambda text: int(text, 0)),
}  # fmt: skip


def _cgroup(draft: Draft, line: Line) -> Verdict:
    family, name = line.key.split(".", 2)[1:]
    if name in ("devices.allow", "devices.deny"):
        return _device(draft, line.value, name == "devices.allow")
    if family == "cgroup2":
        if "/" in name:
            raise ValueError("a file of the group belongs there")
        draft.resource("unified")[name] = line.value
        return honoured(f"linux.resources.unified, {name}")
    if name not in _V1:
        return refused("config.json has no place for this file of a v1 controller")
    group, field, read = _V1[name]
    draft.resource(group)[field] = read(line.value)
    return honoured(f"linux.resources.{group}.{field}")


def _device(draft: Draft, text: str, allow: bool) -> Verdict:
    rules = draft.linux["resources"].setdefault("devices", [])
    if text == "a":
        rules.append({"allow": allow, "access": "rwm"})
        return honoured("linux.resources.devices")
    found = re.fullmatch(r"([abc])\s+(\d{1,9}|\*):(\d{1,9}|\*)\s+([rwm]{1,3})", text)
    if not found:
        raise ValueError("a, or c|b MAJOR:MINOR rwm belongs there")
    made: dict[str, object] = {"allow": allow, "type": found[1], "access": found[4]}
    made |= {name: int(each) for name, each in (("major", found[2]), ("minor", found[3])) if each != "*"}
    rules.append(made)
    return honoured("linux.resources.devices")


def _group_path(draft: Draft, line: Line) -> Verdict:
    if ".." in line.value.split("/"):
        raise ValueError("a path without .. belongs there")
    draft.linux["cgroupsPath"] = "/" + line.value.strip("/")
    return translated("linux.cgroupsPath, the same in each hierarchy")


# ---- network


def note_network(draft: Draft, line: Line) -> None:
    """The settings of one interface depend on each other, whatever their order."""
    found = re.fullmatch(r"lxc\.net\.(\d{1,4})\.(.+)", line.key)
    if found and (int(found[1]) in draft.networks or len(draft.networks) < MAX_NETWORKS):
        draft.networks.setdefault(int(found[1]), {})[found[2]] = line.value


def _network(draft: Draft, line: Line) -> Verdict:
    found = re.fullmatch(r"lxc\.net\.(\d{1,4})\.(.+)", line.key)
    if not found or int(found[1]) not in draft.networks:
        raise ValueError(f"lxc.net.NUMBER.SETTING belongs there, up to {MAX_NETWORKS} interfaces")
    settings = draft.networks[int(found[1])]
    kind = settings.get("type", "")
    setting = found[2]
    if setting == "type":
        if kind == "none":
            draft.namespace("network", None)
            return honoured("no network in linux.namespaces: the host's")
        if kind == "empty":
            return honoured("network in linux.namespaces, with its loopback alone")
        if kind == "phys":
            if not settings.get("link"):
                raise ValueError(f"type phys takes lxc.net.{found[1]}.link")
            name = settings.get("name")
            draft.linux.setdefault("netDevices", {})[settings["link"]] = {"name": name} if name else {}
            return translated("linux.netDevices: the interface moves into the container")
        return refused(f"the runtime makes no {kind} interface; `xuni run` connects containers to a bridge")
    if kind == "phys" and setting in ("link", "name"):
        return translated("linux.netDevices")
    if setting == "flags" and line.value == "up":
        if kind in ("phys", "empty"):
            return honoured("moved interfaces and the loopback are up")
        return refused(f"goes with the interface of type {kind or 'that nobody named'}")
    return refused("config.json has no addresses or properties of interfaces; a createRuntime hook can set them")


# ---- devices, hooks


def _autodev(draft: Draft, line: Line) -> Verdict:
    if flag(line.value):
        return honoured("a tmpfs at /dev, with the usual devices")
    draft.config["mounts"] = [each for each in draft.config["mounts"] if not f"{each['destination']}/".startswith("/dev/")]
    return translated("no mount at /dev; the runtime still makes the usual devices in the image's")


def _autodev_size(draft: Draft, line: Line) -> Verdict:
    bytes_ = size(line.value)
    if (there := draft.mount("/dev")) is None:
        return refused("there is no tmpfs at /dev")
    there["options"] = [*(each for each in there["options"] if not each.startswith("size=")), f"size={bytes_}"]
    return honoured("the size of the tmpfs at /dev")


def _terminals(draft: Draft, line: Line) -> Verdict:
    most = number(line.value, 0, 1 << 20)
    if (there := draft.mount("/dev/pts")) is None:
        return refused("there is no mount at /dev/pts")
    there["options"] = [*there["options"], f"max={most}"]
    return honoured("the option max of /dev/pts")


def _console(draft: Draft, line: Line) -> Verdict:
    if line.value == "none":
        return honoured("process.terminal is false")
    return refused("a terminal comes through --console-socket, not from a path")


_HOOKS: Final = {"pre-start": "createRuntime", "start-host": "createRuntime", "mount": "createContainer",
                 "start": "startContainer", "post-stop": "poststop"}  # fmt: skip


def _hook(draft: Draft, line: Line) -> Verdict:
    point = _HOOKS.get(line.key.removeprefix("lxc.hook."))
    if point is None:
        return refused("no hook of config.json runs at that moment")
    words = shlex.split(line.value)
    if not words or not words[0].startswith("/"):
        raise ValueError("a program's absolute path belongs there")
    draft.config.setdefault("hooks", {}).setdefault(point, []).append({"path": words[0], "args": words})
    return translated(f"hooks.{point}; it is given the state on standard input, not LXC_* variables")


def _keyring(_: Draft, line: Line) -> Verdict:
    return honoured("a new session keyring") if flag(line.value) else translated("give `xuni oci` --no-new-keyring")


def _include(_: Draft, __: Line) -> Verdict:
    return honoured("read; its settings follow")


RULES: Final[dict[str, Rule]] = {
    "lxc.include": _include, "lxc.uts.name": _name, "lxc.arch": _architecture,
    "lxc.init.cmd": _command, "lxc.execute.cmd": _command, "lxc.init.cwd": _directory, "lxc.init.uid": _user,
    "lxc.init.gid": _user, "lxc.init.groups": _groups, "lxc.environment": _environment,
    "lxc.environment.runtime": _environment, "lxc.no_new_privs": _no_new_privileges,
    "lxc.cap.drop": _capabilities, "lxc.cap.keep": _capabilities, "lxc.apparmor.profile": _apparmor,
    "lxc.selinux.context": _selinux, "lxc.signal.halt": _stop_signal, "lxc.rootfs.path": _root,
    "lxc.rootfs.options": _root_options, "lxc.idmap": _idmap, "lxc.namespace.clone": _namespaces,
    "lxc.namespace.keep": _namespaces, "lxc.cgroup.dir": _group_path, "lxc.cgroup.dir.container": _group_path,
    "lxc.mount.entry": entry, "lxc.mount.fstab": table, "lxc.mount.auto": automatic, "lxc.autodev": _autodev,
    "lxc.autodev.tmpfs.size": _autodev_size, "lxc.pty.max": _terminals, "lxc.console.path": _console,
    "lxc.keyring.session": _keyring,
}  # fmt: skip
REFUSED: Final = {
    "lxc.cgroup.dir": "xuni attends a container from outside of its groups, and makes none for that",
    "lxc.cgroup.relative": "linux.cgroupsPath says where the groups are",
    "lxc.cgroup": "lxc.cgroup.FILE = VALUE sets a file of a group",
    "lxc.rootfs": "the root is used where it is, and nobody here removes it",
    "lxc.seccomp": "profiles in LXC's format are not read; linux.seccomp of config.json takes the calls",
    "lxc.selinux": "config.json has no label for the keyring",
    "lxc.apparmor": "no AppArmor profiles are made here, only those that are loaded are used",
    "lxc.hook": "hooks are told of the container by its state, in JSON",
    "lxc.environment.hooks": "each hook of config.json has its own environment",
    "lxc.signal": "signals are sent by name: `xuni oci kill ID SIGNAL`",
    "lxc.tty": "there are no further consoles: `xuni oci exec -t` gives terminals",
    "lxc.console": "the console's log is the business of whoever attends the container",
    "lxc.log": "xuni's log goes where --log says",
    "lxc.start": "when a container starts is up to whoever starts it",
    "lxc.group": "there are no groups of containers",
    "lxc.monitor": "there is no monitor process: whoever calls the runtime attends",
    "lxc.ephemeral": "`xuni run --rm` removes a container at its end; a bundle stays",
    "lxc.sched.core": "config.json has no core scheduling",
    "lxc.net": "lxc.net.NUMBER.SETTING belongs there",
    "lxc.kmsg": "there is no /dev/kmsg in a container",
    "lxc.pivotdir": "pivot_root takes no directory any more",
}
FAMILIES: Final[dict[str, Rule]] = {
    "lxc.prlimit.": _limit, "lxc.proc.": _proc, "lxc.namespace.share.": _share, "lxc.time.offset.": _offset,
    "lxc.sysctl.": _sysctl, "lxc.net.": _network, "lxc.cgroup2.": _cgroup,
    **{f"lxc.hook.{each}": _hook for each in ("pre-start", "start-host", "mount", "start", "post-stop", "pre-mount", "autodev",
                                             "stop", "clone", "destroy")},
}  # fmt: skip


def _v1_or_refused(draft: Draft, line: Line) -> Verdict:
    if line.key.startswith(("lxc.cgroup.dir.", "lxc.cgroup.relative")):
        return refused(REFUSED["lxc.cgroup.dir" if ".dir" in line.key else "lxc.cgroup.relative"])
    return _cgroup(draft, line)


FAMILIES["lxc.cgroup."] = _v1_or_refused
