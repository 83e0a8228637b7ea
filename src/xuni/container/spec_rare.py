"""The objects of config.json that few configurations have; spec.py has the others, and lends its name to these."""

from __future__ import annotations

from xuni.container.record import Record, i32, i64, u32, u64

# ---- process


class Box(Record):
    height: u64
    width: u64


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


# ---- root, mounts, hooks


class IDMapping(Record):
    containerID: u32
    hostID: u32
    size: u32


class Hook(Record):
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: i64 | None = None


# ---- linux.resources


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


# ---- linux


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
