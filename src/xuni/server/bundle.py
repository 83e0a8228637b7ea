"""From a request and an image to the config.json of an OCI bundle. Pure: given the same, it gives the same.

The defaults are docker's: its capabilities, its hidden paths; its seccomp profile turned round, as a list of what is
denied.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from xuni.image.spec import Config
from xuni.server import ContainerError, system
from xuni.server.request import Request

PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PERIOD: Final = 100_000  # microseconds
INIT: Final = "/dev/init"  # of --init, in a file system of its own, so that nothing is left in the root
UNLIMITED: Final = (1 << 64) - 1  # RLIM_INFINITY
CAPABILITIES: Final = ("CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
                       "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE")  # fmt: skip
# By their numbers (linux/capability.h).
ALL_CAPABILITIES: Final = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST "
    "NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE "
    "SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM "
    "BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
).split()
MASKED: Final = ("/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                 "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap",
                 "/sys/firmware")  # fmt: skip
READ_ONLY: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
# Calls that change the host or look into other processes, or that have been the way out of containers before.
DENIED: Final = (
    "_sysctl acct add_key bpf clock_adjtime clock_settime create_module delete_module fanotify_init finit_module fsconfig "
    "fsmount fsopen fspick get_kernel_syms init_module io_uring_enter io_uring_register io_uring_setup ioperm iopl kcmp "
    "kexec_file_load kexec_load keyctl lookup_dcookie mount mount_setattr move_mount move_pages nfsservctl "
    "open_by_handle_at open_tree perf_event_open pivot_root process_vm_readv process_vm_writev query_module quotactl "
    "quotactl_fd reboot request_key setdomainname sethostname setns settimeofday stime swapoff swapon sysfs syslog umount "
    "umount2 unshare uselib userfaultfd ustat vhangup vm86 vm86old"
).split()
NAMESPACE_FLAGS: Final = (0x80, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)


@dataclass(frozen=True, slots=True)
class Given:
    """What was looked up on the host for the request."""

    devices: tuple[tuple[dict[str, Any], str], ...] = ()  # entries of linux.devices with their "source", and some of rwm
    disks: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # major and minor, by path
    init: str = ""
    profile: dict[str, Any] | None = None  # of seccomp
    joined: Mapping[str, str] = field(default_factory=dict)  # other containers' namespaces: their paths, by type
    shared: tuple[str, ...] = ()  # of the host's, for --ipc host
    group: str = ""  # of the control groups; else /xuni and its id
    accounts_swap: bool = True
    grouped: bool = True  # control groups can be made, or are wanted anyway
    nodes: bool = True  # devices can be made; else the host's are bound
    proc: bool = True  # may be mounted: the PID namespace is the container's, or ours
    several_ids: bool = True  # more than one user is mapped
    sysfs: bool = True  # may be mounted: the network namespace is the container's, or ours


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the process is: numbers, looked up in the image's own files."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = "/"


def arguments(request: Request, image: Config) -> tuple[str, ...]:
    """--entrypoint replaces the image's, and with it the image's command. Raises ContainerError."""
    if request.system and request.entrypoint is None:
        return (system.INIT, *request.command)
    entrypoint = image.entrypoint if request.entrypoint is None else request.entrypoint
    command = request.command or (image.cmd if request.entrypoint is None else ())
    if not (*entrypoint, *command):
        raise ContainerError(f"the image {request.image} names no command: say one, like `xuni run {request.image} sh`")
    return (*entrypoint, *command)


def environment(request: Request, image: Config, identity: Identity, hostname: str) -> list[str]:
    """A later one of the same name wins; `-e NAME` takes the caller's own."""
    found = dict([PATH.split("=", 1)])
    found["HOSTNAME"] = hostname
    if request.tty:
        found["TERM"] = "xterm"
    for each in image.env:
        name, _, value = each.partition("=")
        found[name] = value
    for each in request.env:
        name, equals, value = each.partition("=")
        if not equals:
            if name not in os.environ:
                found.pop(name, None)
                continue
            value = os.environ[name]
        found[name] = value
    if request.system:
        found |= system.ENVIRONMENT
    found.setdefault("HOME", identity.home)
    return [f"{name}={value}" for name, value in found.items()]


def capabilities(request: Request) -> list[str]:
    if request.privileged:
        return all_capabilities()
    found = [each.removeprefix("CAP_") for each in all_capabilities()] if request.system else list(CAPABILITIES)
    if request.system:
        found = [each for each in found if each not in system.WITHHELD]
    for given, adding in ((request.cap_drop, False), (request.cap_add, True)):
        for each in given:
            name = each.upper().removeprefix("CAP_")
            if name == "ALL":
                found = [each.removeprefix("CAP_") for each in all_capabilities()] if adding else []
            elif name not in ALL_CAPABILITIES:
                raise ContainerError(f"--cap-{'add' if adding else 'drop'} {each}: there is no such capability (capabilities(7))")
            elif adding and name not in found:
                found.append(name)
            elif not adding and name in found:
                found.remove(name)
    return [f"CAP_{each}" for each in found]


def all_capabilities() -> list[str]:
    """"All" are those that we may give: a capability that we lack cannot be passed on."""
    from xuni.host.linux.kernel import Linux

    permitted = Linux().capget()[1]
    return [f"CAP_{name}" for number, name in enumerate(ALL_CAPABILITIES) if permitted >> number & 1]


def seccomp(denied: Sequence[str] = ()) -> dict[str, Any]:
    """A filter of the calls that are `denied`; of DENIED, and of new namespaces, if none are named."""
    refuse = {"action": "SCMP_ACT_ERRNO", "errnoRet": 1}
    rules: list[dict[str, Any]] = [{"names": list(denied or DENIED), **refuse}]
    if not denied:
        rules += [{"names": ["clone"], **refuse,
                   "args": [{"index": 0, "value": bit, "valueTwo": bit, "op": "SCMP_CMP_MASKED_EQ"}]} for bit in NAMESPACE_FLAGS]
        # Its flags lie in memory, out of a filter's sight; told that there is no such call, libraries take clone.
        rules.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38})
    return {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
            if os.uname().machine == "x86_64" else [], "syscalls": rules}  # fmt: skip


def config(request: Request, image: Config, identity: Identity, container: str, root: str,
           files: dict[str, str], given: Given | None = None) -> dict[str, Any]:  # fmt: skip
    """`files`: what is bound over files of the image, by target. Raises ContainerError."""
    given = given or Given()
    hostname = request.hostname or container[:12]
    caps = capabilities(request)
    linux: dict[str, Any] = {"namespaces": namespaces(request, given)}
    if given.grouped:
        linux |= {"cgroupsPath": given.group or f"/xuni/{container}", "resources": resources(request, given)}
    if not request.privileged:
        linux |= {"maskedPaths": list(MASKED), "readonlyPaths": list(READ_ONLY)}
        if given.profile is not None:
            linux["seccomp"] = given.profile
        elif request.seccomp == "unconfined":
            pass
        elif request.system:
            linux["seccomp"] = seccomp(system.DENIED)
        elif "CAP_SYS_ADMIN" not in caps:
            linux["seccomp"] = seccomp()
    if request.userns == "auto":
        linux |= {"uidMappings": system.maps(container), "gidMappings": system.maps(container)}
    if given.devices and given.nodes:
        linux["devices"] = [{key: value for key, value in entry.items() if key != "source"} for entry, _ in given.devices]
    if request.sysctls:
        linux["sysctl"] = dict(request.sysctls)
    words = arguments(request, image)
    process: dict[str, Any] = {
        "terminal": request.tty,
        "user": {"uid": identity.uid, "gid": identity.gid, "additionalGids": list(identity.groups) if given.several_ids else []},
        "args": [INIT, "--", *words] if given.init else list(words),
        "env": environment(request, image, identity, hostname),
        "cwd": request.workdir or image.cwd or "/",
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), caps),
        "noNewPrivileges": request.no_new_privileges,
    }
    if request.ulimits:
        process["rlimits"] = [{"type": each.name, "soft": each.soft & UNLIMITED, "hard": each.hard & UNLIMITED}
                              for each in request.ulimits]  # fmt: skip
    if request.oom_score:
        process["oomScoreAdj"] = request.oom_score
    return {
        "ociVersion": "1.0.2",  # that of crun 1.8 and runc 1.1, who refuse younger ones
        "process": process,
        "root": {"path": root, "readonly": request.read_only},
        **({} if request.uts == "host" else {"hostname": hostname}),
        "mounts": mounts(request, files, given),
        "linux": linux,
        "annotations": dict(each.partition("=")[::2] for each in request.labels),
    }  # fmt: skip


def namespaces(request: Request, given: Given) -> list[dict[str, str]]:
    shared = {kind for kind, wanted in (("network", request.network), ("pid", request.pid), ("ipc", request.ipc),
                                        ("uts", request.uts)) if wanted == "host"}  # fmt: skip
    kinds = ["pid", "ipc", "uts", "mount", "cgroup", "network"] + (["user"] if request.userns == "auto" else [])
    return [{"type": each, "path": given.joined[each]} if each in given.joined else {"type": each}
            for each in kinds if each not in shared]  # fmt: skip


def mounts(request: Request, files: dict[str, str], given: Given) -> list[dict[str, Any]]:
    quiet, reading = ["nosuid", "noexec", "nodev"], [] if request.privileged else ["ro"]
    shm = f"size={request.shm_size or 64 << 20}"
    sizes = "size=65536k"
    found: list[dict[str, Any]] = [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": quiet} if given.proc else
        {"destination": "/proc", "type": "bind", "source": "/proc", "options": ["rbind", "rslave", *quiet]},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", sizes]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
         "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", *(["gid=5"] if given.several_ids else [])]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*quiet, *reading]} if given.sysfs else
        {"destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind", "rslave", *quiet, *reading]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": [*quiet, *reading]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": quiet},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": [*quiet, "mode=1777", shm]},
    ]  # fmt: skip
    if request.ipc == "host" or "ipc" in given.joined:
        found = [each for each in found if each["destination"] not in ("/dev/mqueue", "/dev/shm")]
        if request.ipc == "host":
            found += [{"destination": each, "type": "bind", "source": each, "options": ["rbind", *quiet]}
                      for each in given.shared]  # fmt: skip
    if given.init:
        found.append({"destination": INIT, "type": "bind", "source": given.init, "options": ["bind", "ro"]})
    for entry, _ in () if given.nodes else given.devices:
        found.append({"destination": entry["path"], "type": "bind", "source": entry["source"],
                      "options": ["bind", "nosuid", "noexec"]})  # fmt: skip
    if request.system:
        found = system.mounts(found)
    for each in request.tmpfs:
        target, _, options = each.partition(":")
        found.append({"destination": target, "type": "tmpfs", "source": "tmpfs",
                      "options": ["nosuid", "nodev", *(options.split(",") if options else ["mode=1777"])]})  # fmt: skip
    for volume in request.volumes:
        spread = [] if {"private", "rprivate", "shared", "rshared", "slave", "rslave"} & set(volume.options) else ["rprivate"]
        # A volume of ours keeps the container's own ids, whichever the host's are.
        mapped = ["idmap"] if volume.name and request.userns == "auto" else []
        given_options = [each for each in volume.options if each != "nocopy"]
        found.append({"destination": volume.target, "type": "bind", "source": volume.source,
                      "options": ["rbind", *spread, *mapped, *given_options]})  # fmt: skip
    taken = {each["destination"] for each in found}
    for target, source in files.items():
        if target not in taken:
            found.append({"destination": target, "type": "bind", "source": source, "options": ["rbind", "rprivate"]})
    binds = [each for each in found if each["type"] == "bind"]
    return [each for each in found if each not in binds] + sorted(binds, key=lambda each: each["destination"].count("/"))


def resources(request: Request, given: Given | None = None) -> dict[str, Any]:
    """As docker has it, as much swap as memory unless it is said, on kernels that count it."""
    given = given or Given()
    found: dict[str, Any] = {"devices": [{"allow": request.privileged, "access": "rwm"}]}
    for entry, access in given.devices if not request.privileged else ():
        found["devices"].append({"allow": True, **{key: entry[key] for key in ("type", "major", "minor")}, "access": access})
    memory: dict[str, int] = {}
    if request.memory:
        memory["limit"] = request.memory
        if request.memory_swap or given.accounts_swap:
            memory["swap"] = request.memory_swap or (request.memory * 2 if request.memory > 0 else -1)
    if request.memory_reservation:
        memory["reservation"] = request.memory_reservation
    if memory:
        found["memory"] = memory
    cpu: dict[str, Any] = {}
    if request.cpus:
        cpu |= {"quota": int(request.cpus * PERIOD), "period": PERIOD}
    if request.cpu_shares:
        cpu["shares"] = request.cpu_shares
    if request.cpuset:
        cpu["cpus"] = request.cpuset
    if cpu:
        found["cpu"] = cpu
    if request.pids:
        found["pids"] = {"limit": request.pids}
    disks: dict[str, Any] = {"weight": request.blkio_weight} if request.blkio_weight else {}
    for each in request.rates:
        major, minor = given.disks[each.device]
        disks.setdefault(each.kind, []).append({"major": major, "minor": minor, "rate": each.rate})
    if disks:
        found["blockIO"] = disks
    return found
