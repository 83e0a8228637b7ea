"""What a configuration may not say: told before anything is done, each with its place and the way out."""

from __future__ import annotations

from xuni.container.namespaces import KINDS
from xuni.container.process import IO_CLASSES, MEMORY_FLAGS, MEMORY_MODES, POLICIES, RLIMITS, SCHEDULER_FLAGS, numbers
from xuni.container.record import SpecError
from xuni.host.linux import system as os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

    from xuni.container.plan import Host
    from xuni.container.spec import Linux, Process, Scheduler, Spec

_UNCHANGED: Final = 0xFFFFFFFF  # setresuid(2), chown(2)
_PROPAGATIONS: Final = ("", "private", "shared", "slave", "unbindable", "rprivate", "rshared", "rslave", "runbindable")


def check(spec: Spec, host: Host) -> Linux:
    """The linux part, which must be there. Raises SpecError."""
    from xuni.container.spec import Linux

    _version(spec.ociVersion)
    linux = spec.linux or Linux()
    if spec.root is None or not spec.root.path:
        raise SpecError("root.path is missing: a container on Linux needs a root")
    if spec.process is not None:
        check_process(spec.process, host)
    _linux(spec, linux)
    for index, mount in enumerate(spec.mounts):
        if not mount.destination:
            raise SpecError(f"mounts[{index}].destination is empty")
        if mount.uidMappings and not mount.gidMappings or mount.gidMappings and not mount.uidMappings:
            raise SpecError(f"mounts[{index}]: uidMappings and gidMappings belong together")
    points: Iterable[str] = spec.hooks.fields if spec.hooks else ()
    for point in points:
        for index, hook in enumerate(getattr(spec.hooks, point)):
            if not hook.path.startswith("/"):
                raise SpecError(f"hooks.{point}[{index}].path: {hook.path!r} is not an absolute path")
            if hook.timeout is not None and hook.timeout <= 0:
                raise SpecError(f"hooks.{point}[{index}].timeout: {hook.timeout} is not greater than zero")
    return linux


def _version(version: str) -> None:
    parts = version.split("-")[0].split("+")[0].split(".")
    if len(version) > 64 or len(parts) != 3 or not all(each.isdecimal() for each in parts):
        raise SpecError(f"ociVersion: {version!r} is not a version such as 1.3.0")
    if int(parts[0]) != 1:
        raise SpecError(f"ociVersion: {version} is not supported; 1.0.0 up to 1.3.0 are")


def check_process(process: Process, host: Host) -> None:
    """Raises SpecError."""
    if not process.args:
        raise SpecError("process.args is empty: there is nothing to execute")
    if not process.cwd.startswith("/"):
        raise SpecError(f"process.cwd: {process.cwd!r} is not an absolute path")
    if process.terminal and host.create and not host.console_socket:
        raise SpecError("process.terminal: cannot allocate tty if runc will detach without setting console socket "
                        "(--console-socket)")  # fmt: skip
    if not process.terminal and host.console_socket:
        raise SpecError("--console-socket: cannot use console socket if runc will not detach or allocate tty "
                        "(process.terminal is false)")  # fmt: skip
    user = process.user
    for place, value in (("uid", user.uid), ("gid", user.gid), *[("additionalGids", each) for each in user.additionalGids]):
        if value == _UNCHANGED:
            raise SpecError(f"process.user.{place}: {value} is no id: it tells the kernel to leave the id as it is")
    if process.consoleSize is not None and max(process.consoleSize.width, process.consoleSize.height) > 0xFFFF:
        raise SpecError("process.consoleSize: a terminal has at most 65535 columns and lines")
    for index, variable in enumerate(process.env):
        if not variable or variable.startswith("="):
            raise SpecError(f"process.env[{index}]: {variable!r} has no name")
    seen = set()
    for index, limit in enumerate(process.rlimits):
        if limit.type not in RLIMITS:
            raise SpecError(f"process.rlimits[{index}].type: {limit.type!r} is not a limit of getrlimit(2)")
        if limit.type in seen:
            raise SpecError(f"process.rlimits[{index}]: {limit.type} is there twice")
        seen.add(limit.type)
        if limit.soft > limit.hard:
            raise SpecError(f"process.rlimits[{index}]: the soft limit {limit.soft} exceeds the hard one, {limit.hard}")
    if process.scheduler is not None:
        _one_of("process.scheduler.policy", process.scheduler.policy, POLICIES)
        _deadline(process.scheduler)
        for flag in process.scheduler.flags:
            _one_of("process.scheduler.flags", flag, SCHEDULER_FLAGS)
    if process.ioPriority is not None:
        _one_of("process.ioPriority.class", process.ioPriority.class_, IO_CLASSES)
        if not 0 <= process.ioPriority.priority <= 7:
            raise SpecError(f"process.ioPriority.priority: {process.ioPriority.priority} is not within 0 … 7")


def _deadline(scheduler: Scheduler) -> None:
    """sched(7): each of the three bounds the next, and the kernel counts from 2**10 ns up to 2**63."""
    name = "sched_setattr: `SCHED_DEADLINE`"
    if scheduler.policy != "SCHED_DEADLINE":
        return
    for field in ("runtime", "deadline"):
        value = getattr(scheduler, field)
        if value is None:
            raise SpecError(f"{name} requires `{field}` (process.scheduler.{field})")
        if value == 0:
            raise SpecError(f"{name} {field} must be greater than 0")
        if not 1024 <= value < 1 << 63:
            raise SpecError(f"{name} {field} {value} must be between 1024 and {(1 << 63) - 1}")
    runtime, deadline, period = scheduler.runtime or 0, scheduler.deadline or 0, scheduler.period or 0
    if runtime > deadline:
        raise SpecError(f"{name} runtime {runtime} must be <= deadline {deadline}")
    if period and deadline > period:
        raise SpecError(f"{name} deadline {deadline} must be <= period {period}")


def _linux(spec: Spec, linux: Linux) -> None:
    seen: dict[str, str] = {}
    for index, each in enumerate(linux.namespaces):
        _one_of(f"linux.namespaces[{index}].type", each.type, KINDS)
        if each.type in seen:
            raise SpecError(f"linux.namespaces[{index}]: {each.type} is there twice")
        seen[each.type] = each.path
    if "user" in seen and not seen["user"] and not (linux.uidMappings and linux.gidMappings):
        raise SpecError("linux.uidMappings and gidMappings: a new user namespace needs both")
    if (linux.uidMappings or linux.gidMappings) and "user" not in seen:
        raise SpecError("linux.uidMappings: id maps belong to a user namespace, and linux.namespaces has none")
    if spec.hostname and "uts" not in seen:
        raise SpecError("hostname: unable to set hostname without a private UTS namespace (add it to linux.namespaces)")
    if spec.domainname and "uts" not in seen:
        raise SpecError("domainname: unable to set domainname without a private UTS namespace (add it to linux.namespaces)")
    named = (linux.sysctl or {}).get("kernel.domainname")
    if spec.domainname and named is not None and named != spec.domainname:
        raise SpecError(f"domainname: {spec.domainname!r} and linux.sysctl's kernel.domainname, {named!r}, contradict each other")
    if linux.timeOffsets and seen.get("time") != "":
        raise SpecError("linux.timeOffsets: time namespace offsets need a new time namespace in linux.namespaces")
    for clock in linux.timeOffsets or {}:
        _one_of("linux.timeOffsets", clock, ("boottime", "monotonic"))
    if linux.rootfsPropagation not in _PROPAGATIONS:
        raise SpecError(f"linux.rootfsPropagation: {linux.rootfsPropagation!r} is none of private, shared, slave, unbindable")
    for index, device in enumerate(linux.devices):
        if device.type not in ("c", "b", "u", "p"):
            raise SpecError(f"linux.devices[{index}].type: {device.type!r} is none of c, b, u, p")
        if device.type != "p" and not (0 <= device.major < 1 << 12 and 0 <= device.minor < 1 << 20):
            raise SpecError(f"linux.devices[{index}]: {device.major}:{device.minor} is not the number of a device: Linux has "
                            "major numbers below 4096 and minor ones below 1048576")  # fmt: skip
    if linux.netDevices and seen.get("network") is None:
        raise SpecError("linux.netDevices: interfaces can only be moved into a network namespace of linux.namespaces")
    if linux.memoryPolicy is not None:
        _one_of("linux.memoryPolicy.mode: invalid memory policy mode", linux.memoryPolicy.mode, MEMORY_MODES)
        for flag in linux.memoryPolicy.flags:
            _one_of("linux.memoryPolicy.flags: invalid memory policy flag", flag, MEMORY_FLAGS)
        nodes = numbers(linux.memoryPolicy.nodes, "linux.memoryPolicy.nodes: invalid memory policy node")
        if nodes and linux.memoryPolicy.mode in ("MPOL_DEFAULT", "MPOL_LOCAL"):
            raise SpecError(f"linux.memoryPolicy.nodes: {linux.memoryPolicy.mode}: mode requires 0 nodes but got {len(nodes)} "
                            f"({linux.memoryPolicy.nodes})")  # fmt: skip
    _sysctl(linux, seen)
    if linux.intelRdt is not None:
        raise SpecError("linux.intelRdt is not supported: it would need the resctrl file system; remove it")


_IPC: Final = frozenset(("kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax",
                         "kernel.shmmni", "kernel.shm_rmid_forced", "kernel.msg_next_id", "kernel.sem_next_id",
                         "kernel.shm_next_id"))  # fmt: skip


def _sysctl(linux: Linux, namespaces: dict[str, str]) -> None:
    """Only what a namespace of the container keeps apart: everything else would change the host."""
    for key in linux.sysctl or {}:
        name = key.replace("/", ".")
        if name in _IPC or name.startswith("fs.mqueue."):
            wanted = "ipc"
        elif name.startswith("net."):
            wanted = "network"
        elif name == "kernel.domainname":
            wanted = "uts"
        elif name == "kernel.hostname":
            raise SpecError("linux.sysctl: kernel.hostname is what the property hostname sets; use that")
        elif name.startswith("user."):
            wanted = "user"
        else:
            raise SpecError(f"linux.sysctl: {key} is not in a separate kernel namespace, so setting it would change the host")
        if wanted not in namespaces or namespaces[wanted] and _ours(wanted, namespaces[wanted]):
            raise SpecError(f"linux.sysctl: {key} is not allowed in the host's {wanted} namespace; add one to linux.namespaces")


def _ours(kind: str, path: str) -> bool:
    """Whether the namespace to be joined is the one that we are in."""
    try:
        theirs, own = os.stat(path), os.stat(f"/proc/self/ns/{KINDS[kind][1]}")
    except OSError:
        return False  # whoever opens it will say what is wrong
    return (theirs.st_dev, theirs.st_ino) == (own.st_dev, own.st_ino)


def _one_of(place: str, value: str, known: object) -> None:
    if value not in known:  # type: ignore[operator]
        raise SpecError(f"{place}: {value!r} is none of {', '.join(known)}")  # type: ignore[arg-type]
