"""config.json of the OCI runtime specification 1.3, as records. Every name is the specification's own.

Each record is one object of config.md or config-linux.md; what only other systems have (solaris, windows, vm, zos,
freebsd) is not here and is ignored, as the specification asks for unknown properties.

To add a property: a field here, where it takes effect (plan.py says which step), and tests/container/test_spec.py.
"""

from __future__ import annotations

from xuni.container.record import Record, i32, i64, u32, u64

__all__ = ["Spec", "i32", "i64", "u32", "u64"]

# ---- process


class Box(Record):
    height: u64
    width: u64


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


class Scheduler(Record):
    policy: str
    nice: i32 = 0
    priority: i32 = 0
    flags: tuple[str, ...] = ()
    runtime: u64 | None = None
    deadline: u64 | None = None
    period: u64 | None = None


class IoPriority(Record):
    # JSON calls it `class`, which Python will not have as an identifier; record.py drops the underscore.
    class_: str
    priority: i32 = 0


class CpuAffinity(Record):
    initial: str = ""
    final: str = ""


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


class IDMapping(Record):
    containerID: u32
    hostID: u32
    size: u32


class Mount(Record):
    destination: str
    type: str = ""
    source: str = ""
    options: tuple[str, ...] = ()
    uidMappings: tuple[IDMapping, ...] = ()
    gidMappings: tuple[IDMapping, ...] = ()


class Hook(Record):
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: i64 | None = None


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


class Memory(Record):
    limit: i64 | None = None
    reservation: i64 | None = None
    swap: i64 | None = None
    kernel: i64 | None = None
    kernelTCP: i64 | None = None
    swappiness: u64 | None = None
    disableOOMKiller: bool | None = None
    useHierarchy: bool | None = None
    checkBeforeUpdate: bool | None = None


class Cpu(Record):
    shares: u64 | None = None
    quota: i64 | None = None
    burst: u64 | None = None
    period: u64 | None = None
    realtimeRuntime: i64 | None = None
    realtimePeriod: u64 | None = None
    cpus: str = ""
    mems: str = ""
    idle: i64 | None = None


class Pids(Record):
    limit: i64 | None = None


class WeightDevice(Record):
    major: i64
    minor: i64
    weight: u32 | None = None
    leafWeight: u32 | None = None


class ThrottleDevice(Record):
    major: i64
    minor: i64
    rate: u64 = 0


class BlockIO(Record):
    weight: u32 | None = None
    leafWeight: u32 | None = None
    weightDevice: tuple[WeightDevice, ...] = ()
    throttleReadBpsDevice: tuple[ThrottleDevice, ...] = ()
    throttleWriteBpsDevice: tuple[ThrottleDevice, ...] = ()
    throttleReadIOPSDevice: tuple[ThrottleDevice, ...] = ()
    throttleWriteIOPSDevice: tuple[ThrottleDevice, ...] = ()


class HugepageLimit(Record):
    pageSize: str
    limit: u64


class InterfacePriority(Record):
    name: str
    priority: u32


class Network(Record):
    classID: u32 | None = None
    priorities: tuple[InterfacePriority, ...] = ()


class Rdma(Record):
    hcaHandles: u32 | None = None
    hcaObjects: u32 | None = None


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


class Device(Record):
    type: str
    path: str
    major: i64 = 0
    minor: i64 = 0
    fileMode: u32 | None = None
    uid: u32 | None = None
    gid: u32 | None = None


class NetDevice(Record):
    name: str = ""


class SyscallArg(Record):
    index: u32
    value: u64
    op: str
    valueTwo: u64 = 0


class Syscall(Record):
    names: tuple[str, ...]
    action: str
    errnoRet: u32 | None = None
    args: tuple[SyscallArg, ...] = ()


class Seccomp(Record):
    defaultAction: str
    defaultErrnoRet: u32 | None = None
    architectures: tuple[str, ...] = ()
    flags: tuple[str, ...] | None = None
    listenerPath: str = ""
    listenerMetadata: str = ""
    syscalls: tuple[Syscall, ...] = ()


class IntelRdt(Record):
    closID: str = ""
    schemata: tuple[str, ...] = ()
    l3CacheSchema: str = ""
    memBwSchema: str = ""
    enableMonitoring: bool = False


class MemoryPolicy(Record):
    mode: str = ""
    nodes: str = ""
    flags: tuple[str, ...] = ()


class Personality(Record):
    domain: str
    flags: tuple[str, ...] = ()


class TimeOffset(Record):
    secs: i64 = 0
    nanosecs: u32 = 0


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
