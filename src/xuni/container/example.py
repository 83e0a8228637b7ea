"""`spec`: a config.json to begin with, runc's in all that programs rely on."""

from __future__ import annotations

import os

from xuni.container import json
from xuni.container.record import SpecError
from xuni.container.state import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_CAPS: Final = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
_QUIET: Final = ["nosuid", "noexec", "nodev"]


def example(*, rootless: bool) -> dict[str, Any]:
    """The configuration as JSON has it."""
    mounts: list[dict[str, Any]] = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
         "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
         "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] + ([] if rootless else ["gid=5"])},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": [*_QUIET, "mode=1777", "size=65536k"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": _QUIET},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*_QUIET, "ro"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": [*_QUIET, "relatime", "ro"]},
    ]  # fmt: skip
    if rootless:
        mounts[5] = {"destination": "/sys", "type": "none", "source": "/sys", "options": ["rbind", *_QUIET, "ro"]}
    kinds = ["pid", "network", "ipc", "uts", "mount"] if not rootless else ["pid", "ipc", "uts", "mount", "user"]
    if os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        kinds.append("cgroup")  # as runc's: on v1 and hybrid hosts a container sees where its groups are
    linux: dict[str, Any] = {
        "namespaces": [{"type": kind} for kind in kinds],
        "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                        "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"],
        "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
    }  # fmt: skip
    if rootless:
        linux["uidMappings"] = [{"containerID": 0, "hostID": os.geteuid(), "size": 1}]
        linux["gidMappings"] = [{"containerID": 0, "hostID": os.getegid(), "size": 1}]
    else:
        linux["resources"] = {"devices": [{"allow": False, "access": "rwm"}]}
    return {
        "ociVersion": VERSION,
        "process": {
            "terminal": True, "user": {"uid": 0, "gid": 0}, "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"], "cwd": "/",
            "capabilities": {"bounding": _CAPS, "effective": _CAPS, "permitted": _CAPS},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}], "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "xuni",
        "mounts": mounts,
        "linux": linux,
    }  # fmt: skip


def write(bundle: str, *, rootless: bool) -> None:
    """config.json in the bundle. Raises SpecError rather than replace one."""
    path = os.path.join(bundle, "config.json")
    text = json.dumps(example(rootless=rootless), indent=1).replace(b"\n ", b"\n\t")
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        raise SpecError(f"{path}: file exists, remove it first") from None
    os.write(descriptor, text + b"\n")
    os.close(descriptor)
