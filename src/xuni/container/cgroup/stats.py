"""What a container uses: the `data` of `runc events --stats`, field for field, from whatever hierarchies there are."""

from __future__ import annotations

from xuni.container.cgroup.files import UNLIMITED, flat, nested, number, numbers, read_or

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

TICK = 10_000_000  # nanoseconds: USER_HZ, the unit of cpuacct.stat, is 100 everywhere


def collect(paths: Mapping[str, str]) -> dict[str, Any]:
    """Files that are missing count as zero: an older kernel, or a controller that is not handed down."""
    unified = paths.get("", "")
    stats: dict[str, Any] = {"cpu": _cpu_v1(paths) if "cpu" in paths or "cpuacct" in paths else _cpu_v2(unified)}
    stats["cpuset"] = _cpuset(paths.get("cpuset") or unified)
    stats["memory"] = _memory_v1(paths["memory"]) if "memory" in paths else _memory_v2(unified)
    pids = paths.get("pids") or unified
    stats["pids"] = {"current": _value(pids, "pids.current"), "limit": number(read_or(pids, "pids.max", "max")) or 0}
    stats["blkio"] = _blkio_v1(paths["blkio"]) if "blkio" in paths else _io_v2(unified)
    stats["hugetlb"] = _hugetlb(paths.get("hugetlb") or unified, "hugetlb" in paths)
    stats["intel_rdt"] = {}
    stats["network_interfaces"] = None
    return stats


def oom_kills(paths: Mapping[str, str]) -> int:
    """How many processes of the group its memory limit has killed so far; 0 once it is gone."""
    place, file = (paths["memory"], "memory.oom_control") if "memory" in paths else (paths.get("", ""), "memory.events")
    return _flat(place, file).get("oom_kill", 0)


def _value(directory: str, name: str) -> int:
    text = read_or(directory, name, "0") if directory else "0"
    return int(text) if text.lstrip("-").isdecimal() else 0


def _flat(directory: str, name: str) -> dict[str, int]:
    return flat(read_or(directory, name, "")) if directory else {}


def _limit(directory: str, name: str) -> int:
    """runc has the kernel's own word for unlimited on v1, and the largest number on v2."""
    text = read_or(directory, name, "0")
    return UNLIMITED if text == "max" else int(text)


# ---- cpu


def _cpu_v1(paths: Mapping[str, str]) -> dict[str, Any]:
    account, scheduled = paths.get("cpuacct", ""), _flat(paths.get("cpu", ""), "cpu.stat")
    ticks = _flat(account, "cpuacct.stat")
    columns = [line.split() for line in read_or(account, "cpuacct.usage_all", "").splitlines()[1:]]
    return {
        "usage": {
            "total": _value(account, "cpuacct.usage"),
            "percpu": [int(each) for each in read_or(account, "cpuacct.usage_percpu", "").split()],
            "percpu_kernel": [int(each[2]) for each in columns],
            "percpu_user": [int(each[1]) for each in columns],
            "kernel": ticks.get("system", 0) * TICK,
            "user": ticks.get("user", 0) * TICK,
        },
        "throttling": {"periods": scheduled.get("nr_periods", 0), "throttledPeriods": scheduled.get("nr_throttled", 0),
                       "throttledTime": scheduled.get("throttled_time", 0)},
        "burst": {"burstsPeriods": scheduled.get("nr_bursts", 0), "burstTime": scheduled.get("burst_time", 0)},
    }  # fmt: skip


def _cpu_v2(directory: str) -> dict[str, Any]:
    found = _flat(directory, "cpu.stat")
    stats: dict[str, Any] = {
        "usage": {"total": found.get("usage_usec", 0) * 1000, "kernel": found.get("system_usec", 0) * 1000,
                  "user": found.get("user_usec", 0) * 1000},
        "throttling": {"periods": found.get("nr_periods", 0), "throttledPeriods": found.get("nr_throttled", 0),
                       "throttledTime": found.get("throttled_usec", 0) * 1000},
        "burst": {"burstsPeriods": found.get("nr_bursts", 0), "burstTime": found.get("burst_usec", 0) * 1000},
    }  # fmt: skip
    return _with_pressure(stats, directory, "cpu.pressure")


def _with_pressure(stats: dict[str, Any], directory: str, name: str) -> dict[str, Any]:
    """Pressure stall information (accounting/psi.rst), where the kernel keeps it."""
    text = read_or(directory, name, "") if directory else ""
    psi = {kind: {key: int(value) if key == "total" else float(value) for key, value in pairs.items()}
           for kind, pairs in nested(text)}
    if psi:
        stats["psi"] = psi
    return stats


_CPUSET = ("cpu_exclusive", "mem_hardwall", "mem_exclusive", "memory_migrate", "memory_spread_page", "memory_spread_slab",
           "memory_pressure", "sched_load_balance", "sched_relax_domain_level")


def _cpuset(directory: str) -> dict[str, Any]:
    stats: dict[str, Any] = {}
    for name, file in (("cpus", "cpuset.cpus"), ("mems", "cpuset.mems")):
        text = read_or(directory, file, "") or read_or(directory, file + ".effective", "")
        stats[name] = list(numbers(text))
    return stats | {name: _value(directory, f"cpuset.{name}") for name in _CPUSET}


# ---- memory


def _memory_v1(directory: str) -> dict[str, Any]:
    def entry(part: str) -> dict[str, int]:
        usage, most = _value(directory, f"{part}.usage_in_bytes"), _value(directory, f"{part}.max_usage_in_bytes")
        limit, failed = _limit(directory, f"{part}.limit_in_bytes"), _value(directory, f"{part}.failcnt")
        return {"limit": limit, "usage": usage, "max": most, "failcnt": failed}

    raw = _flat(directory, "memory.stat")
    return {"cache": raw.get("cache", 0), "usage": entry("memory"), "swap": entry("memory.memsw"),
            "kernel": entry("memory.kmem"), "kernelTCP": entry("memory.kmem.tcp"), "raw": raw}  # fmt: skip


def _memory_v2(directory: str) -> dict[str, Any]:
    raw, events = _flat(directory, "memory.stat"), _flat(directory, "memory.events")
    usage, limit = _value(directory, "memory.current"), _limit(directory, "memory.max") if directory else 0
    refused = _flat(directory, "memory.swap.events").get("fail", 0)
    swapped, swap = _value(directory, "memory.swap.current"), _limit(directory, "memory.swap.max") if directory else 0
    both = UNLIMITED if UNLIMITED in (limit, swap) else limit + swap  # as v1's memsw counts
    nothing = {"limit": 0, "usage": 0, "max": 0, "failcnt": 0}
    stats = {
        "cache": raw.get("file", 0),
        "usage": {"limit": limit, "usage": usage, "max": _value(directory, "memory.peak"), "failcnt": events.get("max", 0)},
        "swap": {"limit": both, "usage": usage + swapped, "max": 0, "failcnt": refused},
        "kernel": nothing | {"usage": raw.get("kernel", 0)},
        "kernelTCP": nothing,
        "raw": raw,
    }
    return _with_pressure(stats, directory, "memory.pressure")


# ---- block devices


_OPERATIONS = {"rbytes": ("ioServiceBytesRecursive", "Read"), "wbytes": ("ioServiceBytesRecursive", "Write"),
               "dbytes": ("ioServiceBytesRecursive", "Discard"), "rios": ("ioServicedRecursive", "Read"),
               "wios": ("ioServicedRecursive", "Write"), "dios": ("ioServicedRecursive", "Discard")}  # fmt: skip


def _blkio_v1(directory: str) -> dict[str, Any]:
    stats: dict[str, Any] = {}
    for key, name in (("ioServiceBytesRecursive", "io_service_bytes_recursive"),
                      ("ioServicedRecursive", "io_serviced_recursive")):  # fmt: skip
        text = read_or(directory, f"blkio.bfq.{name}", "")
        if len(text.splitlines()) <= 1:  # nothing but the total: another scheduler is at work
            text = read_or(directory, f"blkio.throttle.{name}", "")
        entries = []
        for line in text.splitlines():
            fields = line.split()
            if len(fields) == 3:
                entries.append(_entry(fields[0], fields[1], int(fields[2])))
        stats[key] = entries
    return stats


def _io_v2(directory: str) -> dict[str, Any]:
    stats: dict[str, Any] = {"ioServiceBytesRecursive": [], "ioServicedRecursive": []}
    for device, values in nested(read_or(directory, "io.stat", "") if directory else ""):
        for name, value in values.items():
            if name in _OPERATIONS and ":" in device:
                key, operation = _OPERATIONS[name]
                stats[key].append(_entry(device, operation, int(value)))
    return _with_pressure(stats, directory, "io.pressure")


def _entry(device: str, operation: str, value: int) -> dict[str, Any]:
    major, _, minor = device.partition(":")
    return {"major": int(major), "minor": int(minor), "op": operation, "value": value}


def _hugetlb(directory: str, v1: bool) -> dict[str, Any]:
    import os

    if not directory:
        return {}
    usage, stats = ".usage_in_bytes" if v1 else ".current", {}
    for name in sorted(os.listdir(directory)):
        size = name.removeprefix("hugetlb.").removesuffix(usage)
        if name == f"hugetlb.{size}{usage}" and "." not in size:
            part = f"hugetlb.{size}"
            failed = _value(directory, f"{part}.failcnt") if v1 else _flat(directory, f"{part}.events").get("max", 0)
            most = _value(directory, f"{part}.max_usage_in_bytes")
            stats[size] = {"usage": _value(directory, name), "max": most, "failcnt": failed}
    return stats
