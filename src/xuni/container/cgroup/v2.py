"""Limits on the unified hierarchy (Documentation/admin-guide/cgroup-v2.rst), and the rules by which groups nest there."""

from __future__ import annotations

import errno

from xuni.container.cgroup import units
from xuni.container.cgroup.files import exists, read, read_or, write
from xuni.container.record import SpecError
from xuni.host.linux import system as os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

    from xuni.container.spec import BlockIO, Cpu, HugepageLimit, Memory

# Controllers that a threaded group may have; all others need a domain.
THREADED: Final = ("cpu", "cpuset", "perf_event", "pids")


def make(directory: str, top: str) -> None:
    """Make the group and those above it, and hand every controller there is down to it.

    A controller that some group on the way cannot hand down (it has processes of its own, or is not ours) is missing
    below, and `missing` says why once a limit asks for it.
    """
    from xuni.container.cgroup.hierarchy import above

    levels = above(directory, top)
    for here in levels[1:]:
        _hand_down(os.path.dirname(here))
        try:
            os.mkdir(here, 0o755)
        except FileExistsError:
            continue
        if read_or(here, "cgroup.type", "domain") == "domain invalid":
            write(here, "cgroup.type", "threaded")  # below a threaded group nothing else is possible


def _hand_down(directory: str) -> None:
    there, handed = read(directory, "cgroup.controllers").split(), read(directory, "cgroup.subtree_control").split()
    wanted = [f"+{each}" for each in there if each not in handed]
    if not wanted:
        return
    try:
        write(directory, "cgroup.subtree_control", " ".join(wanted))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return  # it has processes; one by one would make it a threaded domain, in which no container can live
        for each in wanted:  # it is all or nothing; so one by one
            try:
                write(directory, "cgroup.subtree_control", each)
            except OSError:
                pass


def missing(controller: str, directory: str, top: str) -> str:
    """Why the group does not have the controller."""
    from xuni.container.cgroup.hierarchy import above

    if controller not in read(top, "cgroup.controllers").split():
        return "this kernel has none, or a v1 hierarchy that is not mounted here holds it"
    for here in above(directory, top)[:-1]:
        if controller in read(here, "cgroup.subtree_control").split():
            continue
        kind = read_or(here, "cgroup.type", "domain")
        if kind != "domain" and controller not in THREADED:
            return f"{here} is {kind}, and {controller} takes a domain"
        if here != top and read_or(here, "cgroup.procs", ""):
            return (f"{here} has processes of its own, and a group with processes may not hand controllers down "
                    "('no internal processes')")  # fmt: skip
        if not os.access(f"{here}/cgroup.subtree_control", os.W_OK):
            return f"{here}/cgroup.subtree_control does not name it and is not ours to write: it was not delegated"
        return f"{here}/cgroup.subtree_control does not name it"
    return f"{directory} went away"


def cpu(directory: str, wanted: Cpu) -> None:
    if wanted.realtimeRuntime or wanted.realtimePeriod:
        raise SpecError("cpu.realtimeRuntime and cpu.realtimePeriod: the unified hierarchy has no limits for real-time processes")
    if wanted.idle is not None:
        write(directory, "cpu.idle", wanted.idle)
    if wanted.shares and not wanted.idle:  # an idle group has weight 0 and takes no other
        write(directory, "cpu.weight", units.weight_of_shares(wanted.shares))
    late = ""
    if wanted.burst is not None:
        try:
            write(directory, "cpu.max.burst", wanted.burst)
        except OSError as error:
            if error.errno != errno.EINVAL or not wanted.quota:
                raise
            late = str(wanted.burst)  # larger than the quota that is about to be raised
    if wanted.quota or wanted.period:
        quota, _, period = read(directory, "cpu.max").partition(" ")
        if wanted.quota:
            quota = "max" if wanted.quota < 0 else str(wanted.quota)
        write(directory, "cpu.max", f"{quota} {wanted.period or period or units.DEFAULT_PERIOD}")
    if late:
        write(directory, "cpu.max.burst", late)


def memory(directory: str, wanted: Memory) -> None:
    limit, swap = wanted.limit or 0, wanted.swap or 0
    if wanted.swappiness is not None:
        raise SpecError("memory.swappiness: the unified hierarchy has none; vm.swappiness is the host's")
    if wanted.disableOOMKiller:
        raise SpecError("memory.disableOOMKiller: the unified hierarchy always kills; memory.high throttles before")
    if wanted.checkBeforeUpdate:
        _check_usage(directory, limit, swap)
    apart = units.swap_max(limit, swap)
    if no_swap(wanted):
        apart = 0
    if apart is not None:
        try:
            write(directory, "memory.swap.max", units.word(apart))
        except OSError as error:
            if error.errno != errno.ENOENT or apart > 0:  # a kernel without swap accounting keeps no swap to itself
                raise
    if limit:
        write(directory, "memory.max", units.word(limit))
    if wanted.reservation:
        write(directory, "memory.low", units.word(wanted.reservation))


def no_swap(wanted: Memory) -> bool:
    """A swap of 0 with no limit of memory to count it from: none at all is meant, as crun has it. v1 cannot say that."""
    return wanted.swap == 0 and wanted.limit is None


def _check_usage(directory: str, limit: int, swap: int) -> None:
    """A limit below what is in use would kill something: v1 refuses it, v2 does not."""
    usage = int(read_or(directory, "memory.current", "0"))
    for name, value in (("memory+swap", swap), ("memory", limit)):
        if 0 < value <= usage:
            raise SpecError(f"rejecting {name} limit {value} <= usage {usage} (checkBeforeUpdate)")


def io(directory: str, wanted: BlockIO) -> None:
    bfq = exists(directory, "io.bfq.weight")
    if wanted.leafWeight or any(each.leafWeight for each in wanted.weightDevice):
        raise SpecError("blockIO.leafWeight: the unified hierarchy has none: only leaves hold processes there")
    if wanted.weight:
        if bfq:
            write(directory, "io.bfq.weight", wanted.weight)
        else:
            write(directory, "io.weight", units.io_weight(wanted.weight))
    for device in wanted.weightDevice:
        if device.weight:
            weight = device.weight if bfq else units.io_weight(device.weight)
            write(directory, "io.bfq.weight" if bfq else "io.weight", f"{device.major}:{device.minor} {weight}")
    for name, devices in (("rbps", wanted.throttleReadBpsDevice), ("wbps", wanted.throttleWriteBpsDevice),
                          ("riops", wanted.throttleReadIOPSDevice), ("wiops", wanted.throttleWriteIOPSDevice)):
        for each in devices:
            write(directory, "io.max", f"{each.major}:{each.minor} {name}={each.rate or 'max'}")


def hugetlb(directory: str, limits: tuple[HugepageLimit, ...]) -> None:
    from xuni.container.cgroup.v1 import page_size

    for each in limits:
        size = page_size(each.pageSize)
        write(directory, f"hugetlb.{size}.max", each.limit)
        if exists(directory, f"hugetlb.{size}.rsvd.max"):
            write(directory, f"hugetlb.{size}.rsvd.max", each.limit)


def unified(directory: str, keys: Mapping[str, str], top: str, v1: Mapping[str, str]) -> None:
    """linux.resources.unified: files by name, values with several lines line by line. `v1` has the controllers elsewhere."""
    for name, value in keys.items():
        controller, dot, _ = name.partition(".")
        if "/" in name or not dot:
            raise SpecError("linux.resources.unified: it takes names of files, without a path; the specified key has not the "
                            f"form CONTROLLER.VALUE `{name}`")  # fmt: skip
        try:
            for line in value.splitlines() or [""]:
                write(directory, name, line)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EPERM, errno.EACCES) and controller != "cgroup":
                if controller in v1:
                    raise SpecError(f"invalid configuration: unified resource {name!r}: cannot use unified on cgroup v1, and the "
                                    f"controller {controller!r} is on a v1 hierarchy here") from None  # fmt: skip
                if controller not in read(directory, "cgroup.controllers").split():
                    raise SpecError(f"unified resource {name!r} can't be set: the requested cgroup controller `{controller}` "
                                    f"is not available: {missing(controller, directory, top)}") from None  # fmt: skip
            raise
