"""Limits on v1 hierarchies: which file, which value, in which order (Documentation/admin-guide/cgroup-v1).

Zero means "not given" where runc says so; engines rely on it.
"""

from __future__ import annotations

import errno
import itertools

from xuni.container.cgroup.files import exists, number, read, write
from xuni.container.record import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from xuni.container.spec import BlockIO, Cpu, HugepageLimit, Memory, Network, Rdma


def cpuset_from_parents(directory: str, top: str) -> None:
    """A new cpuset group has neither CPUs nor memory and takes no process: give it, and those above, their parent's."""
    from xuni.container.cgroup.hierarchy import above

    levels = above(directory, top)
    for parent, here in itertools.pairwise(levels):
        for name in ("cpuset.cpus", "cpuset.mems"):
            if not read(here, name).strip():
                write(here, name, read(parent, name))


def cpuset(directory: str, wanted: Cpu) -> None:
    if wanted.cpus:
        write(directory, "cpuset.cpus", wanted.cpus)
    if wanted.mems:
        write(directory, "cpuset.mems", wanted.mems)


def cpu(directory: str, wanted: Cpu) -> None:
    if wanted.shares:
        write(directory, "cpu.shares", wanted.shares)
        taken = int(read(directory, "cpu.shares"))
        if taken != wanted.shares:  # the kernel clamps silently
            bound = "maximum" if taken < wanted.shares else "minimum"
            raise SpecError(f"cpu.shares: {wanted.shares}; the {bound} allowed cpu-shares is {taken}")
    _bandwidth(directory, wanted)
    if wanted.idle is not None:
        write(directory, "cpu.idle", wanted.idle)
    realtime(directory, wanted)


def _bandwidth(directory: str, wanted: Cpu) -> None:
    """Quota, period and burst, none of which may contradict the other two as they are, nor the parent's share."""
    late = []
    if wanted.period:
        late += _try(directory, "cpu.cfs_period_us", wanted.period, bool(wanted.quota))
    if wanted.burst is not None and exists(directory, "cpu.cfs_burst_us"):
        late += _try(directory, "cpu.cfs_burst_us", wanted.burst, bool(wanted.quota))
    if wanted.quota:
        write(directory, "cpu.cfs_quota_us", max(wanted.quota, -1))
    for name, value in late:
        write(directory, name, value)


def realtime(directory: str, wanted: Cpu) -> None:
    late = []
    if wanted.realtimePeriod:
        late += _try(directory, "cpu.rt_period_us", wanted.realtimePeriod, bool(wanted.realtimeRuntime))
    if wanted.realtimeRuntime:
        write(directory, "cpu.rt_runtime_us", wanted.realtimeRuntime)
    for name, value in late:
        write(directory, name, value)


def _try(directory: str, name: str, value: int, again: bool) -> list[tuple[str, int]]:
    """Write; what the kernel finds inconsistent with a value that follows comes back, to be written after it."""
    try:
        write(directory, name, value)
    except OSError as error:
        if error.errno != errno.EINVAL or not again:
            raise
        return [(name, value)]
    return []


def memory(directory: str, wanted: Memory) -> None:
    limit, swap = wanted.limit or 0, wanted.swap or 0
    accounts_swap = exists(directory, "memory.memsw.limit_in_bytes")
    if limit == -1 and swap == 0 and accounts_swap:
        swap = -1
    if swap and not accounts_swap:
        if swap > 0:
            raise SpecError("memory.swap: this kernel does not count swap; boot it with swapaccount=1, or leave this out")
        swap = 0
    # memsw ≥ limit must hold at every moment: raise memsw first, lower it last.
    writes = [("memory.limit_in_bytes", limit), ("memory.memsw.limit_in_bytes", swap)]
    if limit and swap:
        now = number(read(directory, "memory.limit_in_bytes"))
        if swap == -1 or (now is not None and now < swap):
            writes.reverse()
    for name, value in writes:
        if value:
            _memory_limit(directory, name, value)
    if wanted.reservation:
        write(directory, "memory.soft_limit_in_bytes", wanted.reservation)
    if wanted.disableOOMKiller is not None:
        disabled = "oom_kill_disable 1" in read(directory, "memory.oom_control")
        if disabled != wanted.disableOOMKiller:
            write(directory, "memory.oom_control", int(wanted.disableOOMKiller))
    if wanted.swappiness is not None and wanted.swappiness != (1 << 64) - 1:
        if wanted.swappiness > 100:
            raise SpecError(f"memory.swappiness: {wanted.swappiness} is not within 0 … 100")
        write(directory, "memory.swappiness", wanted.swappiness)


def _memory_limit(directory: str, name: str, value: int) -> None:
    try:
        write(directory, name, value)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        part = name.removesuffix(".limit_in_bytes")
        usage, peak = read(directory, f"{part}.usage_in_bytes"), read(directory, f"{part}.max_usage_in_bytes")
        raise SpecError(f"unable to set memory limit to {value} (current usage: {usage}, peak usage: {peak}): the kernel could "
                        "not reclaim enough; stop something, or ask for more") from None  # fmt: skip


def pids(directory: str, limit: int) -> None:
    write(directory, "pids.max", "max" if limit < 0 else max(limit, 1))


def blkio(directory: str, wanted: BlockIO) -> None:
    file = "blkio.bfq.weight" if exists(directory, "blkio.bfq.weight") else "blkio.weight"
    if wanted.weight:
        write(directory, file, wanted.weight)
    if wanted.leafWeight:
        write(directory, "blkio.leaf_weight", wanted.leafWeight)
    for device in wanted.weightDevice:
        place = f"{device.major}:{device.minor}"
        if device.weight:
            write(directory, file + "_device", f"{place} {device.weight}")
        if device.leafWeight:
            write(directory, "blkio.leaf_weight_device", f"{place} {device.leafWeight}")
    for name, devices in (("read_bps", wanted.throttleReadBpsDevice), ("write_bps", wanted.throttleWriteBpsDevice),
                          ("read_iops", wanted.throttleReadIOPSDevice), ("write_iops", wanted.throttleWriteIOPSDevice)):
        for each in devices:
            write(directory, f"blkio.throttle.{name}_device", f"{each.major}:{each.minor} {each.rate}")


def hugetlb(directory: str, limits: tuple[HugepageLimit, ...]) -> None:
    for each in limits:
        size = page_size(each.pageSize)
        write(directory, f"hugetlb.{size}.limit_in_bytes", each.limit)
        reserved = f"hugetlb.{size}.rsvd.limit_in_bytes"
        if exists(directory, reserved):  # from Linux 5.7 on: what is mapped but not touched yet counts as well
            write(directory, reserved, each.limit)


def page_size(name: str) -> str:
    """ "2MB", as the files are called; the file system's path must not come from a configuration."""
    if not (name[-2:] in ("KB", "MB", "GB") and name[:-2].isdecimal()):
        raise SpecError(f"hugepageLimits.pageSize: {name!r} is not a size of pages like 2MB")
    return name


def rdma(directory: str, devices: Mapping[str, Rdma]) -> None:
    for name, each in devices.items():
        parts = [name]
        if each.hcaHandles is not None:
            parts.append(f"hca_handle={each.hcaHandles}")
        if each.hcaObjects is not None:
            parts.append(f"hca_object={each.hcaObjects}")
        write(directory, "rdma.max", " ".join(parts))


def network_class(directory: str, wanted: Network) -> None:
    if wanted.classID is not None:
        write(directory, "net_cls.classid", wanted.classID)


def network_priorities(directory: str, wanted: Network) -> None:
    for each in wanted.priorities:
        write(directory, "net_prio.ifpriomap", f"{each.name} {each.priority}")
