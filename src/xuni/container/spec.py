"""config.json of the OCI runtime specification 1.3, as records. Every name is the specification's own.

Each record is one object of config.md or config-linux.md; what only other systems have (solaris, windows, vm, zos,
freebsd) is not here and is ignored, as the specification asks for unknown properties. What few configurations have is in
spec_rare.py, and is this module's all the same: a class takes 20 µs to make, which a container's start has better uses for.

To add a property: a field here or there, where it takes effect (plan.py says which step), and tests/container/test_record.py.
"""

from __future__ import annotations

from xuni.container.record import Record, i32, i64, u32, u64

TYPE_CHECKING = False
if TYPE_CHECKING:
    from xuni.container.spec_rare import BlockIO as BlockIO
    from xuni.container.spec_rare import Box as Box
    from xuni.container.spec_rare import Cpu as Cpu
    from xuni.container.spec_rare import CpuAffinity as CpuAffinity
    from xuni.container.spec_rare import Device as Device
    from xuni.container.spec_rare import Hook as Hook
    from xuni.container.spec_rare import HugepageLimit as HugepageLimit
    from xuni.container.spec_rare import IDMapping as IDMapping
    from xuni.container.spec_rare import IntelRdt as IntelRdt
    from xuni.container.spec_rare import InterfacePriority as InterfacePriority
    from xuni.container.spec_rare import IoPriority as IoPriority
    from xuni.container.spec_rare import Memory as Memory
    from xuni.container.spec_rare import MemoryPolicy as MemoryPolicy
    from xuni.container.spec_rare import NetDevice as NetDevice
    from xuni.container.spec_rare import Network as Network
    from xuni.container.spec_rare import Personality as Personality
    from xuni.container.spec_rare import Pids as Pids
    from xuni.container.spec_rare import Rdma as Rdma
    from xuni.container.spec_rare import Scheduler as Scheduler
    from xuni.container.spec_rare import Seccomp as Seccomp
    from xuni.container.spec_rare import Syscall as Syscall
    from xuni.container.spec_rare import SyscallArg as SyscallArg
    from xuni.container.spec_rare import ThrottleDevice as ThrottleDevice
    from xuni.container.spec_rare import TimeOffset as TimeOffset
    from xuni.container.spec_rare import WeightDevice as WeightDevice
else:

    def __getattr__(name: str) -> type[Record]:
        if name[0] == "_":  # the import system asks for some
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from xuni.container import spec_rare

        return getattr(spec_rare, name)


__all__ = ["Spec", "i32", "i64", "u32", "u64"]

# ---- process


class User(Record):
    uid: u32 = 0
    gid: u32 = 0
    umask: u32 | None = None
    additionalGids: tuple[u32, ...] = ()
    username: str = ""


class Capabilities(Record):
    bounding: tuple[str, ...] = ()
    effective: tuple[str, ...] = ()
    inheritable: tuple[str, ...] = ()
    permitted: tuple[str, ...] = ()
    ambient: tuple[str, ...] = ()


class Rlimit(Record):
    type: str
    soft: u64
    hard: u64


class Process(Record):
    cwd: str
    terminal: bool = False
    consoleSize: Box | None = None
    user: User = User()
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    capabilities: Capabilities | None = None
    rlimits: tuple[Rlimit, ...] = ()
    noNewPrivileges: bool = False
    apparmorProfile: str = ""
    oomScoreAdj: i32 | None = None
    selinuxLabel: str = ""
    scheduler: Scheduler | None = None
    ioPriority: IoPriority | None = None
    execCPUAffinity: CpuAffinity | None = None


# ---- root, mounts, hooks


class Root(Record):
    path: str
    readonly: bool = False


class Mount(Record):
    destination: str
    type: str = ""
    source: str = ""
    options: tuple[str, ...] = ()
    uidMappings: tuple[IDMapping, ...] = ()
    gidMappings: tuple[IDMapping, ...] = ()


class Hooks(Record):
    prestart: tuple[Hook, ...] = ()
    createRuntime: tuple[Hook, ...] = ()
    createContainer: tuple[Hook, ...] = ()
    startContainer: tuple[Hook, ...] = ()
    poststart: tuple[Hook, ...] = ()
    poststop: tuple[Hook, ...] = ()


# ---- linux.resources


class DeviceCgroup(Record):
    allow: bool
    type: str = "a"
    major: i64 | None = None
    minor: i64 | None = None
    access: str = "rwm"


class Resources(Record):
    devices: tuple[DeviceCgroup, ...] = ()
    memory: Memory | None = None
    cpu: Cpu | None = None
    pids: Pids | None = None
    blockIO: BlockIO | None = None
    hugepageLimits: tuple[HugepageLimit, ...] = ()
    network: Network | None = None
    rdma: dict[str, Rdma] | None = None
    unified: dict[str, str] | None = None


# ---- linux


class Namespace(Record):
    type: str
    path: str = ""


class Linux(Record):
    namespaces: tuple[Namespace, ...] = ()
    uidMappings: tuple[IDMapping, ...] = ()
    gidMappings: tuple[IDMapping, ...] = ()
    timeOffsets: dict[str, TimeOffset] | None = None
    devices: tuple[Device, ...] = ()
    netDevices: dict[str, NetDevice] | None = None
    cgroupsPath: str = ""
    resources: Resources | None = None
    rootfsPropagation: str = ""
    seccomp: Seccomp | None = None
    sysctl: dict[str, str] | None = None
    maskedPaths: tuple[str, ...] = ()
    readonlyPaths: tuple[str, ...] = ()
    mountLabel: str = ""
    intelRdt: IntelRdt | None = None
    memoryPolicy: MemoryPolicy | None = None
    personality: Personality | None = None


class Spec(Record):
    ociVersion: str
    process: Process | None = None
    root: Root | None = None
    hostname: str = ""
    domainname: str = ""
    mounts: tuple[Mount, ...] = ()
    hooks: Hooks | None = None
    annotations: dict[str, str] | None = None
    linux: Linux | None = None
