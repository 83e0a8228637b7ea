"""System containers: an init system, such as systemd, as the first process. What it needs that a single program does not.

systemd's own list of wishes is its document "The Container Interface": $container, a writable control group tree in a
control group namespace, a read-only /sys (so that no udev runs), tmpfs at /run and /tmp, a console, /etc/machine-id.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from xuni.host.linux.kernel import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, Linux
from xuni.server import ContainerError

if TYPE_CHECKING:
    from xuni.container.cgroup import Group
    from xuni.server.request import Request

INIT: Final = "/sbin/init"
ENVIRONMENT: Final = {"container": "xuni"}
# reboot(2) in a PID namespace: its first process ends by this signal, as its parent sees it.
REBOOT: Final = 128 + signal.SIGHUP
POWER_OFF: Final = 128 + signal.SIGINT
SHORTEST_LIFE: Final = 1.0  # seconds; what wants to reboot sooner does not get up, and is left ended
# What would reach past the container: the clock, the kernel's modules, its ports, its log, the host's security modules.
WITHHELD: Final = ("SYS_TIME", "SYS_MODULE", "SYS_RAWIO", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "MAC_ADMIN", "MAC_OVERRIDE",
                   "PERFMON", "BPF", "SYS_PACCT", "CHECKPOINT_RESTORE", "AUDIT_CONTROL", "AUDIT_READ")  # fmt: skip
DENIED: Final = (
    "_sysctl acct bpf clock_adjtime clock_settime create_module delete_module finit_module get_kernel_syms init_module ioperm "
    "iopl kexec_file_load kexec_load lookup_dcookie nfsservctl open_by_handle_at perf_event_open query_module settimeofday stime "
    "swapoff swapon syslog uselib userfaultfd vm86 vm86old"
).split()
IDS: Final = 1 << 16
# The range for containers in systemd's "Users, Groups, UIDs and GIDs on systemd Systems".
FIRST, LAST = 0x0008_0000, 0x6FFF_FFFF


def base(container: str) -> int:
    """The host's id that is the container's root: one of 28,656 ranges, chosen by the container's id."""
    return FIRST + int(container[:12], 16) % ((LAST + 1 - FIRST) // IDS) * IDS


def owner(request: Request, container: str) -> int:
    """The host's id of its root."""
    return base(container) if request.userns == "auto" else 0


def maps(container: str) -> list[dict[str, int]]:
    return [{"containerID": 0, "hostID": base(container), "size": IDS}]


def mounts(usual: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The usual ones, with control groups that can be written, and tmpfs where an init system expects it."""
    found = []
    for each in usual:
        if each["destination"] == "/sys/fs/cgroup":
            each = {**each, "options": [option for option in each["options"] if option != "ro"]}
        found.append(each)
    return [*found,
            {"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=755"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=1777"]}]  # fmt: skip


def identify(root: Path, container: str, owner: int) -> None:
    """Its own /etc/machine-id (machine-id(5)), an ordinary file: systemd makes one that is mounted permanent, or fails at it.
    No link of the image leads out of it. Raises ContainerError."""
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_CLOEXEC
        file = Linux().openat2(directory, "etc/machine-id", flags, 0o444, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
        try:
            os.fchmod(file, 0o444)
            os.fchown(file, owner, owner)
            os.write(file, f"{container[:32]}\n".encode())
        finally:
            os.close(file)
    except OSError as error:
        raise ContainerError(f"--system: /etc/machine-id of the image cannot be written: {error.strerror}; "
                             "is it the root file system of a whole system?") from None  # fmt: skip
    finally:
        os.close(directory)


def delegate(group: Group, owner: int) -> None:
    """Give the container's groups to its root: the directory, and the files that move processes and enable controllers below.
    The limits of the groups stay the host's."""
    for each in group.hierarchies():
        for name in ("", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control", "tasks"):
            with contextlib.suppress(FileNotFoundError):  # each version has its own
                os.chown(os.path.join(each.directory, name), owner, owner, follow_symlinks=False)
