"""What this host offers to a virtualization stack, as findings that can be printed or serialized.

Each probe reads a few files (below `root`, which tests replace) or makes one harmless call; none changes anything,
needs root, or fails: what cannot be read is itself a finding.

To add one: a function that yields findings, its line in `survey`, and a test in tests/host/test_offers.py.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

ROOT: Final = Path("/")


class Verdict(Enum):
    """What a finding means for xuni."""

    GOOD = "good"
    LIMIT = "limit"  # works, with less
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Finding:
    """`value` is what was found; `means` is what follows from it, where that is not obvious."""

    topic: str
    name: str
    value: str
    verdict: Verdict = Verdict.GOOD
    means: str = ""


class KvmKind(Enum):
    """Who implements /dev/kvm."""

    INTEL = "kvm_intel"
    AMD = "kvm_amd"
    PVM = "kvm_pvm"
    UNKNOWN = "unknown"
    ABSENT = "absent"

    @property
    def hardware(self) -> bool:
        return self in (KvmKind.INTEL, KvmKind.AMD)


def survey(root: Path = ROOT) -> Iterator[Finding]:
    """Everything there is to know, in the order a reader wants it."""
    yield from processor(root)
    yield from kvm(root)
    yield from cgroups(root)
    yield from namespaces(root)
    yield from tracing(root)
    yield from tools()


# -- processor --------------------------------------------------------------------------------------------------------

# Feature flag of /proc/cpuinfo: what xuni gains from it.
FEATURES: Final = {
    "constant_tsc": "a guest's time stamp counter follows the host's",
    "sse4_2": "", "popcnt": "", "cx16": "", "bmi2": "", "adx": "", "avx2": "", "aes": "", "pclmulqdq": "", "sha_ni": "",
    "fsgsbase": "", "invpcid": "",
}
VIRTUALIZATION: Final = {"vmx": "Intel VT-x", "svm": "AMD-V"}


def processor(root: Path) -> Iterator[Finding]:
    """Model, processors and the instruction sets that guests' instructions are compiled to."""
    info = _cpuinfo(root)
    flags = set(info.get("flags", "").split())
    machine = os.uname().machine
    ours = machine == "x86_64"
    yield Finding("processor", "architecture", machine, Verdict.GOOD if ours else Verdict.MISSING,
                  "" if ours else "xuni's engine compiles for x86-64 hosts")
    yield Finding("processor", "model", info.get("model name", "unknown"))
    yield Finding("processor", "processors", str(len(os.sched_getaffinity(0))))
    has = [name for name in FEATURES if name in flags]
    lacks = [name for name in FEATURES if name not in flags]
    yield Finding("processor", "features", " ".join(has) or "none of interest")
    if lacks:
        yield Finding("processor", "features not here", " ".join(lacks), Verdict.LIMIT,
                      "guests may still have them: xuni's engine compiles them to what is here")
    for flag, name in VIRTUALIZATION.items():
        if flag in flags:
            yield Finding("processor", "virtualization", name)
    if "hypervisor" in flags:
        yield Finding("processor", "hypervisor", "this host is itself a virtual machine")


def _cpuinfo(root: Path) -> dict[str, str]:
    """The first processor's entry of /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in _read(root / "proc/cpuinfo").split("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        fields[key.strip()] = value.strip()
    return fields


# -- KVM --------------------------------------------------------------------------------------------------------------

SHOWN: Final = (  # what a machine on KVM wants first
    "IRQCHIP", "USER_MEMORY", "NR_VCPUS", "IOEVENTFD", "TSC_CONTROL", "MAX_VCPUS", "SYNC_REGS", "SPLIT_IRQCHIP",
    "IMMEDIATE_EXIT", "NESTED_STATE", "X86_USER_SPACE_MSR", "X86_MSR_FILTER", "DIRTY_LOG_RING", "SREGS2",
)  # fmt: skip


def kvm_kind(root: Path = ROOT) -> KvmKind:
    """Which module stands behind /dev/kvm; a module built into the kernel shows in /sys/module too."""
    if not (root / "dev/kvm").exists():
        return KvmKind.ABSENT
    for kind in (KvmKind.INTEL, KvmKind.AMD, KvmKind.PVM):
        if (root / "sys/module" / kind.value).is_dir():
            return kind
    return KvmKind.UNKNOWN


def kvm(root: Path) -> Iterator[Finding]:
    """The device, its module, and what it can do."""
    kind = kvm_kind(root)
    device = root / "dev/kvm"
    if kind is KvmKind.ABSENT:
        yield Finding("kvm", "/dev/kvm", "absent", Verdict.LIMIT, "guests run on xuni's own engine")
        return
    if not os.access(device, os.R_OK | os.W_OK):
        yield Finding("kvm", "/dev/kvm", "no permission", Verdict.LIMIT, "join the group kvm: usermod -aG kvm $USER")
    else:
        yield Finding("kvm", "/dev/kvm", "readable and writable")
    if kind.hardware:
        yield Finding("kvm", "module", kind.value, Verdict.GOOD, "hardware virtualization")
        nested = _read(root / "sys/module" / kind.value / "parameters/nested").strip()
        if nested:
            yield Finding("kvm", "nested", "on" if nested in ("1", "Y") else "off")
    else:
        why = {
            KvmKind.PVM: "no hardware virtualization: unmodified kernels run in the host kernel's instruction emulator",
            KvmKind.UNKNOWN: "neither kvm_intel nor kvm_amd is loaded, so this is no hardware virtualization",
        }[kind]
        yield Finding("kvm", "module", kind.value, Verdict.LIMIT, why)
    yield from _capabilities(device)


def engine(root: Path = ROOT) -> tuple[str, str]:
    """The engine that `auto` takes on this host, and the reason."""
    kind = kvm_kind(root)
    if kind is KvmKind.ABSENT:
        return "soft", "xuni's own x86-64 engine; this host has no /dev/kvm"
    if not kind.hardware:
        return "soft", f"xuni's own x86-64 engine; /dev/kvm here ({kind.value}) is no hardware virtualization"
    if not os.access(root / "dev/kvm", os.R_OK | os.W_OK):
        return "soft", f"xuni's own x86-64 engine; {kind.value} is here without permission: join the group kvm"
    return "kvm", f"{kind.value}: hardware virtualization"


def _capabilities(device: Path) -> Iterator[Finding]:
    from xuni.host.kvm import Kvm, KvmUnavailable
    from xuni.host.kvm.capabilities import CAPABILITIES

    numbers = {capability.name: capability.number for capability in CAPABILITIES}
    try:
        with Kvm(str(device)) as kvm:
            found = {name: kvm.check(numbers[name]) for name in SHOWN}
    except (KvmUnavailable, OSError) as error:
        yield Finding("kvm", "capabilities", f"cannot be read: {error}", Verdict.LIMIT)
        return
    shown = (name if value == 1 else f"{name}={value}" for name, value in found.items() if value > 0)
    yield Finding("kvm", "capabilities", " ".join(shown), Verdict.GOOD, "all of them: xuni doctor --kvm")
    if lacking := [name for name, value in found.items() if value <= 0]:
        yield Finding("kvm", "capabilities not here", " ".join(lacking), Verdict.LIMIT)


# -- containers -------------------------------------------------------------------------------------------------------


MOUNT_OPTIONS: Final = ("rw", "ro", "relatime", "nosuid", "nodev", "noexec")  # the others are controllers


def cgroups(root: Path) -> Iterator[Finding]:
    """Version 2 alone ("unified"), version 1 alone ("legacy"), or both ("hybrid"), and who may use them."""
    first: dict[str, Path] = {}
    second: list[Path] = []
    for line in _read(root / "proc/mounts").splitlines():
        fields = line.split(" ")
        if len(fields) < 4:
            continue
        place = root / fields[1].lstrip("/")
        if fields[2] == "cgroup":
            first |= {name: place for name in fields[3].split(",") if name not in MOUNT_OPTIONS}
        elif fields[2] == "cgroup2":
            second.append(place)
    if not first and not second:
        yield Finding("cgroups", "version", "none mounted", Verdict.MISSING, "containers would have no limits")
        return
    controllers = _read(second[0] / "cgroup.controllers").split() if second else []
    layout = "1 and 2 (hybrid)" if first and second else "2 (unified)" if second else "1 (legacy)"
    yield Finding("cgroups", "version", layout)
    if first:
        yield Finding("cgroups", "controllers, version 1", " ".join(sorted(name for name in first if "=" not in name)))
    if second:
        yield Finding("cgroups", "controllers, version 2", " ".join(controllers) or "none")
    place = second[0] if second and (controllers or not first) else next(iter(first.values()))
    if os.access(place, os.W_OK):
        yield Finding("cgroups", "writable", "yes")
    else:
        yield Finding("cgroups", "writable", "no", Verdict.LIMIT, "needs root, or a delegated group")


def namespaces(root: Path) -> Iterator[Finding]:
    """The kinds that the kernel has, and whether this user may make a user namespace."""
    try:
        kinds = sorted(entry.name for entry in (root / "proc/self/ns").iterdir() if not entry.name.endswith("children"))
    except OSError:
        kinds = []
    yield Finding("namespaces", "kinds", " ".join(kinds) or "none", Verdict.GOOD if kinds else Verdict.MISSING)
    for path, refusing in (("kernel/unprivileged_userns_clone", "0"), ("user/max_user_namespaces", "0"),
                           ("kernel/apparmor_restrict_unprivileged_userns", "1")):
        if _read(root / "proc/sys" / path).strip() == refusing:
            yield Finding("namespaces", "user namespaces", f"{path.replace('/', '.')} is {refusing}", Verdict.LIMIT,
                          "containers need root here")
            return
    if root != ROOT:
        return
    refused = _try_user_namespace()
    if refused:
        yield Finding("namespaces", "user namespaces", f"no: {refused}", Verdict.LIMIT, "containers need root here")
    else:
        yield Finding("namespaces", "user namespaces", "allowed")


CLONE_NEWUSER: Final = 0x10000000


def _try_user_namespace() -> str:
    """Make one in a child that ends at once; returns why not, or nothing."""
    unshare = ctypes.CDLL(None, use_errno=True).unshare
    child = os.fork()
    if child == 0:
        os._exit(0 if unshare(CLONE_NEWUSER) == 0 else ctypes.get_errno())
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return "" if code == 0 else os.strerror(abs(code))


# -- tracing ----------------------------------------------------------------------------------------------------------


def tracing(root: Path) -> Iterator[Finding]:
    """What the kernel would tell about VM exits and container steps."""
    place = next((path for name in ("sys/kernel/tracing", "sys/kernel/debug/tracing")
                  if (path := root / name).is_dir() and os.access(path / "events", os.R_OK | os.X_OK)), None)
    if place is None:
        supported = "tracefs" in _read(root / "proc/filesystems").split()
        value = "not mounted, or no permission" if supported else "not in this kernel"
        yield Finding("tracing", "tracefs", value, Verdict.LIMIT,
                      "mount -t tracefs tracefs /sys/kernel/tracing" if supported else "")
    else:
        yield Finding("tracing", "tracefs", str(place))
        events = place / "events/kvm"
        count = sum(entry.is_dir() for entry in events.iterdir()) if os.access(events, os.R_OK) else 0
        yield Finding("tracing", "kvm events", str(count) if count else "none")
    btf = os.access(root / "sys/kernel/btf/vmlinux", os.R_OK)
    yield Finding("tracing", "kernel types (BTF)", "yes" if btf else "no", Verdict.GOOD if btf else Verdict.LIMIT)
    paranoid = _read(root / "proc/sys/kernel/perf_event_paranoid").strip()
    if paranoid:
        yield Finding("tracing", "perf_event_paranoid", paranoid)


# -- tools ------------------------------------------------------------------------------------------------------------

TOOLS: Final = {"apt-get": "fetches guests", "dpkg-deb": "unpacks guests"}


def tools() -> Iterator[Finding]:
    """Programs of the host that xuni calls."""
    for name, purpose in TOOLS.items():
        path = shutil.which(name)
        if path:
            yield Finding("tools", name, path, Verdict.GOOD, purpose)
        else:
            yield Finding("tools", name, "absent", Verdict.LIMIT, f"{purpose}; without it: xuni vm run --kernel FILE")


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
