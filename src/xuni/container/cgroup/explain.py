"""Which limits are in force for a process, and which group above it each one comes from.

A limit holds for a group and all below it, so the tightest on the way from the root to the process is the one that
counts. To add one: a line in LIMITS (or a function beside `_sets`), and tests/container/cgroup/test_explain.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

from xuni.container.cgroup import hierarchy
from xuni.container.cgroup.files import nested, number, read_or


@dataclass(frozen=True, slots=True)
class Finding:
    """One limit. `value` is None where nothing limits; `group` and `file` say where the value stands."""

    limit: str
    unit: str
    value: float | int | str | None
    group: str = ""
    file: str = ""
    usage: int | None = None
    of: str = ""
    """The device or the size of pages, for limits that there are several of."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Levels:
    """The groups of a process in one hierarchy, root first: their names, and their directories."""

    v2: bool
    names: tuple[str, ...]
    directories: tuple[str, ...]


class NoGroup(ValueError):
    """The process has no group that can be seen from here; the text says why."""


# Name, unit, controller; v1: file and usage; v2: file and usage.
LIMITS: Final = (
    ("memory", "bytes", "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes"), ("memory.max", "memory.current")),
    ("memory+swap", "bytes", "memory", ("memory.memsw.limit_in_bytes", "memory.memsw.usage_in_bytes"), None),
    ("swap", "bytes", "memory", None, ("memory.swap.max", "memory.swap.current")),
    ("memory throttled from", "bytes", "memory", None, ("memory.high", "memory.current")),
    ("processes", "processes", "pids", ("pids.max", "pids.current"), ("pids.max", "pids.current")),
)


def explain(pid: int) -> tuple[Finding, ...]:
    """Raises OSError if there is no such process, NoGroup."""
    mounts, groups = hierarchy.mounted(), hierarchy.groups_of(pid)
    found: dict[str, _Levels] = {}
    for mount in mounts:
        directory = mount.directory(groups.get(mount.keys[0], "/.."))
        if not directory or not os.path.isdir(directory):
            continue
        directories = hierarchy.above(directory, mount.point)
        names = tuple(each[len(mount.point) :] or "/" for each in directories)
        levels = _Levels(mount.v2, names, directories)
        for key in mount.keys:
            if key:
                found[key] = levels
            else:
                for controller in read_or(mount.point, "cgroup.controllers", "").split():
                    found.setdefault("blkio" if controller == "io" else controller, levels)
                found[""] = levels
    if not found:
        raise NoGroup(f"process {pid} is in no group that is visible here: no hierarchy is mounted, or its groups lie outside of "
                      "our cgroup namespace")  # fmt: skip
    return tuple(_all(found))


def _all(found: dict[str, _Levels]) -> Iterator[Finding]:
    for name, unit, controller, v1, v2 in LIMITS:
        if controller in found and (files := v2 if found[controller].v2 else v1):
            yield _tightest(found[controller], name, unit, *files)
    if "cpu" in found:
        yield _quota(found["cpu"])
        yield _weight(found["cpu"])
    if "cpuset" in found:
        yield from _sets(found["cpuset"])
    if "blkio" in found:
        yield from _throttles(found["blkio"])
    if "hugetlb" in found:
        yield from _huge_pages(found["hugetlb"])
    if "devices" in found or "" in found:
        yield _devices(found)
    freezer = found.get("freezer") or found.get("")
    if freezer:
        yield _frozen(freezer)


def _tightest(levels: _Levels, name: str, unit: str, file: str, usage: str, of: str = "") -> Finding:
    """The lowest of equal ones: it would have to be raised first."""
    best = Finding(name, unit, None, file=file, of=of)
    for group, directory in zip(levels.names, levels.directories, strict=True):
        value = number(read_or(directory, file, "max"))
        if value is not None and (best.value is None or value <= int(best.value)):
            best = Finding(name, unit, value, group, file, int(read_or(directory, usage, "0") or 0), of)
    return best


def _quota(levels: _Levels) -> Finding:
    file = "cpu.max" if levels.v2 else "cpu.cfs_quota_us"
    best = Finding("CPU time", "CPUs", None, file=file)
    for group, directory in zip(levels.names, levels.directories, strict=True):
        if levels.v2:
            quota, _, period = read_or(directory, file, "max 100000").partition(" ")
        else:
            quota, period = read_or(directory, file, "-1"), read_or(directory, "cpu.cfs_period_us", "100000")
        if quota in ("max", "-1"):
            continue
        cpus = int(quota) / int(period)
        if best.value is None or cpus <= float(best.value):
            best = Finding("CPU time", "CPUs", cpus, group, file)
    return best


def _weight(levels: _Levels) -> Finding:
    """Among its siblings: weights above decide about the groups there."""
    file = "cpu.weight" if levels.v2 else "cpu.shares"
    value = number(read_or(levels.directories[-1], file, ""))
    return Finding("CPU weight", "weight" if levels.v2 else "shares", value, levels.names[-1] if value else "", file)


def _sets(levels: _Levels) -> Iterator[Finding]:
    for name, part in (("CPUs", "cpus"), ("memory nodes", "mems")):
        file = f"cpuset.{part}.effective" if levels.v2 else f"cpuset.effective_{part}"
        values = [read_or(directory, file, "") for directory in levels.directories]
        known = max((index for index, value in enumerate(values) if value), default=None)
        if known is None:
            continue  # v2 has it where the controller is handed down only
        first = known
        while first and values[first - 1] == values[known]:
            first -= 1
        yield Finding(name, "list", values[known], levels.names[first], f"cpuset.{part}")


def _throttles(levels: _Levels) -> Iterator[Finding]:
    best: dict[tuple[str, str], Finding] = {}
    for group, directory in zip(levels.names, levels.directories, strict=True):
        for name, device, value, file in _rates(directory, levels.v2):
            seen = best.get((device, name))
            if seen is None or seen.value is None or value <= int(seen.value):
                unit = "operations/s" if "operations" in name else "bytes/s"
                best[device, name] = Finding(name, unit, value, group, file, of=device)
    yield from (best[key] for key in sorted(best))


_RATES: Final = (("reads", "read_bps", "rbps"), ("writes", "write_bps", "wbps"),
                 ("read operations", "read_iops", "riops"), ("write operations", "write_iops", "wiops"))


def _rates(directory: str, v2: bool) -> Iterator[tuple[str, str, int, str]]:
    if v2:
        for device, pairs in nested(read_or(directory, "io.max", "")):
            for name, _, key in _RATES:
                if (value := number(pairs.get(key, "max"))) is not None:
                    yield name, device, value, "io.max"
        return
    for name, part, _ in _RATES:
        file = f"blkio.throttle.{part}_device"
        for line in read_or(directory, file, "").splitlines():
            device, _, value_text = line.partition(" ")
            yield name, device, int(value_text), file


def _huge_pages(levels: _Levels) -> Iterator[Finding]:
    usage = ".current" if levels.v2 else ".usage_in_bytes"
    for name in sorted(os.listdir(levels.directories[-1])):
        size = name.removeprefix("hugetlb.").removesuffix(usage)
        if name == f"hugetlb.{size}{usage}" and "." not in size:
            file = f"hugetlb.{size}.{'max' if levels.v2 else 'limit_in_bytes'}"
            yield _tightest(levels, "huge pages", "bytes", file, name, size)


def _devices(found: dict[str, _Levels]) -> Finding:
    if "devices" in found:
        levels = found["devices"]
        lists = [read_or(directory, "devices.list", "") for directory in levels.directories]
        if lists[-1].startswith("a "):
            return Finding("devices", "rules", None, file="devices.list")
        first = len(lists) - 1
        while first and lists[first - 1] == lists[-1]:
            first -= 1
        return Finding("devices", "rules", f"{len(lists[-1].splitlines())} allowed", levels.names[first], "devices.list")
    from xuni.container.cgroup import bpf

    levels, holders = found[""], []
    for group, directory in zip(levels.names, levels.directories, strict=True):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if bpf.attached(descriptor):
                holders.append(group)
        except OSError:
            return Finding("devices", "programs", "unknown: asking takes root", file="BPF_CGROUP_DEVICE")
        finally:
            os.close(descriptor)
    if not holders:
        return Finding("devices", "programs", None, file="BPF_CGROUP_DEVICE")
    value = "all must allow" if len(holders) > 1 else "one decides"
    return Finding("devices", "programs", value, " ".join(holders), "BPF_CGROUP_DEVICE")


def _frozen(levels: _Levels) -> Finding:
    file = "cgroup.freeze" if levels.v2 else "freezer.self_freezing"
    for group, directory in zip(levels.names, levels.directories, strict=True):
        if read_or(directory, file, "0") == "1":
            return Finding("frozen", "", "yes", group, file)
    return Finding("frozen", "", None, file=file)
