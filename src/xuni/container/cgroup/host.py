"""The groups of a container on this host: one directory in each hierarchy. What a limit needs decides which one is used."""

from __future__ import annotations

import errno
import time

from xuni.container.cgroup import Hierarchy, hierarchy
from xuni.container.cgroup.files import read, read_or, write
from xuni.container.record import SpecError
from xuni.host.linux import system as os
from xuni.host.linux import userns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Final

    from xuni.container.cgroup.hierarchy import Mounted
    from xuni.container.spec import Resources

PATIENCE: Final = 2.0  # seconds, for freezing and for processes that are about to be gone
DEEPEST: Final = 64  # levels of a container's own group
KILL: Final = 9


class HostGroup:
    """See `xuni.container.cgroup.Group`."""

    def __init__(self, paths: Mapping[str, str], mounted: tuple[Mounted, ...] | None = None) -> None:
        self.paths = paths
        self._mounted = mounted
        self._new: set[str] = set()  # made by us, so nothing lives there

    # ---- where

    def hierarchies(self) -> tuple[Hierarchy, ...]:
        return tuple([Hierarchy(each.name, each.v2, each.data, self.paths[each.keys[0]]) for each in self._mounts()
                      if each.keys[0] in self.paths])  # fmt: skip

    def _mounts(self) -> tuple[Mounted, ...]:
        if self._mounted is None:
            self._mounted = hierarchy.mounted()
        return self._mounted

    def _top(self, key: str) -> str:
        """The mount point that a directory of ours is below."""
        for each in self._mounts():
            if key in each.keys and self.paths[key].startswith(each.point + "/"):
                return each.point
        raise OSError(errno.ENOENT, "the hierarchy is not mounted here any more", self.paths[key])

    @property
    def _directories(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.paths.values()))  # cpu and cpuacct may be one

    @property
    def _unified(self) -> str:
        return self.paths.get("", "")

    def _place(self, controller: str, asked: str) -> tuple[str, bool]:
        """The directory that has the controller, and whether it is v2's. Raises SpecError that says why there is none."""
        directory = self.paths.get(controller)
        if directory is not None:
            return directory, False
        if self._unified:
            if controller in read(self._unified, "cgroup.controllers").split():
                return self._unified, True
            from xuni.container.cgroup.v2 import missing

            why = missing(controller, self._unified, self._top(""))
        elif any(controller in each.keys for each in self._mounts()):
            why = "its hierarchy is not ours to write (cgroup v1 cannot be delegated; rootless containers have limits on v2 only)"
        else:
            why = "no hierarchy with it is mounted, or this kernel has none"
        raise SpecError(f"linux.resources.{asked}: the {controller} controller is not available to this container: {why}")

    # ---- life

    def create(self) -> None:
        for left in (2, 1, 0):
            try:
                self._create()
                return
            except OSError as error:
                if error.errno != errno.ENOENT or not left:
                    raise  # else somebody has just removed the group above, empty as it was

    def _create(self) -> None:
        for key, directory in self.paths.items():
            if key == "":
                from xuni.container.cgroup import v2

                here = os.path.isdir(directory)
                v2.make(directory, self._top(""))
                if not here:
                    self._new.add(directory)
            elif directory not in self._new and _make(directory):
                self._new.add(directory)
            if key == "cpuset":
                from xuni.container.cgroup.v1 import cpuset_from_parents

                cpuset_from_parents(directory, self._top(key))

    def populated(self) -> bool:
        return any(_has_process(each) for each in self._directories if each not in self._new)

    def join(self, pid: int) -> None:
        for directory in self._directories:
            self._enter(directory, pid)

    def join_sub(self, pid: int, sub: Mapping[str, str]) -> None:
        """`sub`: controllers, or "" for all, to paths below the group, which exist; "" takes those hierarchies that have the
        path. Raises SpecError for others, OSError."""
        chosen: dict[str, str] = dict.fromkeys(self._directories, "")
        for key, path in sub.items():
            if key and key not in self.paths:
                raise SpecError(f"--cgroup: unknown controller {key!r}; this container has {', '.join(filter(None, self.paths))}")
            if ".." in path.split("/"):
                raise SpecError(f"--cgroup {path}: bad sub cgroup path: `..` components are not allowed")
            inside = os.path.normpath("/" + path).strip("/")
            places = [self.paths[key]] if key else [each for each in self._directories if os.path.isdir(f"{each}/{inside}")]
            if not places or not os.path.isdir(f"{places[0]}/{inside}"):
                raise SpecError(f"--cgroup {path}: adding pid {pid} to the cgroup {(places or self._directories)[0]}/{inside}: "
                                "no such file or directory")  # fmt: skip
            for each in places:
                if inside and (key or not chosen[each]):
                    chosen[each] = f"{each}/{inside}"
        for directory, target in chosen.items():
            if target:
                _join(target, pid)
            else:
                self._enter(directory, pid)

    def _enter(self, directory: str, pid: int) -> None:
        try:
            _join(directory, pid)
        except OSError as error:
            # v2: the container has made sub-groups and handed controllers to them, so it cannot hold processes any more.
            # Its first process has moved into one of them, and who comes later belongs there, too.
            if directory != self._unified or error.errno not in (errno.EBUSY, errno.EOPNOTSUPP):
                raise
            first = self._of_first_process()
            if not first or first == directory:
                raise
            _join(first, pid)

    def _of_first_process(self) -> str:
        from xuni.container.cgroup.tree import walk
        from xuni.container.state import process

        found = [(process(pid)[1], pid) for here in walk(self._unified) for pid in _processes(here)]
        group = hierarchy.groups_of(min(found)[1]).get("", "") if found else ""
        return next((each.directory(group) for each in self._mounts() if each.v2), "") if group else ""

    def clone_target(self) -> int:
        return os.open(self._unified, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) if self._unified else -1

    def entrances(self) -> list[int]:
        return [os.open(f"{each}/tasks", os.O_WRONLY | os.O_CLOEXEC) for each in self._directories if each != self._unified]

    def delete(self) -> None:
        deadline = time.monotonic() + PATIENCE
        for directory in reversed(self._directories):
            try:
                os.rmdir(directory)  # most have nothing below
            except OSError:
                from xuni.container.cgroup.tree import remove

                remove(directory, deadline)

    # ---- limits

    def apply(self, resources: Resources) -> None:
        cpu, memory, io = resources.cpu, resources.memory, resources.blockIO
        if cpu is not None:
            if cpu.cpus or cpu.mems:
                where, _ = self._place("cpuset", "cpu.cpus")
                from xuni.container.cgroup.v1 import cpuset

                cpuset(where, cpu)
            if _asks(cpu, "cpus", "mems"):
                where, unified = self._place("cpu", "cpu")
                (_v2() if unified else _v1()).cpu(where, cpu)
        if memory is not None and (_asks(memory, "useHierarchy", "checkBeforeUpdate", "kernel", "kernelTCP")
                                   or "memory" not in self.paths and _v2().no_swap(memory)):  # fmt: skip
            where, unified = self._place("memory", "memory")
            (_v2() if unified else _v1()).memory(where, memory)
        if resources.pids is not None and resources.pids.limit is not None:
            where, _ = self._place("pids", "pids")
            _v1().pids(where, resources.pids.limit)
        if io is not None and _asks(io):
            if "blkio" in self.paths:
                _v1().blkio(self.paths["blkio"], io)
            else:
                _v2().io(self._place("io", "blockIO")[0], io)
        if resources.hugepageLimits:
            where, unified = self._place("hugetlb", "hugepageLimits")
            (_v2() if unified else _v1()).hugetlb(where, resources.hugepageLimits)
        if resources.rdma:
            _v1().rdma(self._place("rdma", "rdma")[0], resources.rdma)
        if resources.network is not None:
            if resources.network.classID is not None:
                _v1().network_class(self._only_v1("net_cls", "network.classID"), resources.network)
            if resources.network.priorities:
                _v1().network_priorities(self._only_v1("net_prio", "network.priorities"), resources.network)
        if resources.devices:
            self._devices(resources)
        if resources.unified:
            if not self._unified:
                raise SpecError("invalid configuration: cannot use unified on cgroup v1, and no v2 hierarchy is mounted here")
            _v2().unified(self._unified, resources.unified, self._top(""), self.paths)

    def _devices(self, resources: Resources) -> None:
        """Without rights over devices there is nothing to restrict either: such a container can make no node."""
        from xuni.container.cgroup import devices

        try:
            if "devices" in self.paths:
                devices.apply_v1(self.paths["devices"], resources.devices)
            elif self._unified:
                devices.apply_v2(self._unified, resources.devices)
            elif os.geteuid() == 0 and not userns.inside():
                self._place("devices", "devices")
        except OSError as error:
            if error.errno != errno.EPERM or (os.geteuid() == 0 and not userns.inside()):
                raise

    def _only_v1(self, controller: str, asked: str) -> str:
        if controller not in self.paths:
            raise SpecError(f"linux.resources.{asked}: only a v1 hierarchy with {controller} has it, and none is mounted here")
        return self.paths[controller]

    # ---- processes

    def processes(self) -> list[int]:
        from xuni.container.cgroup.tree import walk

        found: set[int] = set()
        for directory in self._directories:
            for here in walk(directory):
                found.update(_processes(here))
        return sorted(found)

    def stats(self) -> dict[str, Any]:
        from xuni.container.cgroup.stats import collect

        return collect(self.paths)

    def freeze(self) -> None:
        if "freezer" in self.paths:
            from xuni.container.cgroup.freezer import freeze_v1

            freeze_v1(self.paths["freezer"], PATIENCE)
        elif self._unified:
            from xuni.container.cgroup.freezer import freeze_v2

            freeze_v2(self._unified, PATIENCE)
        else:
            raise SpecError("there is no freezer for this container: no hierarchy with it is mounted, or it is not ours")

    def thaw(self) -> None:
        if "freezer" in self.paths:
            write(self.paths["freezer"], "freezer.state", "THAWED")
        elif self._unified:
            write(self._unified, "cgroup.freeze", "0")

    def frozen(self) -> bool:
        """Whether it was frozen itself; not whether some group above is."""
        if "freezer" in self.paths:
            return read_or(self.paths["freezer"], "freezer.self_freezing", "0") == "1"
        return bool(self._unified) and read_or(self._unified, "cgroup.freeze", "0") == "1"

    def kill(self, signal: int) -> None:
        from xuni.container.cgroup.freezer import kill

        kill(self, self._unified, signal)


def _v1() -> Any:
    from xuni.container.cgroup import v1

    return v1


def _v2() -> Any:
    from xuni.container.cgroup import v2

    return v2


def _asks(record: Any, *but: str) -> bool:
    """Whether any other field than `but` was given."""
    zero_counts = ("burst", "idle", "swappiness")
    given = [(name, getattr(record, name)) for name in record.fields if name not in but]
    return any(value not in (None, (), "", 0) or (value == 0 and name in zero_counts) for name, value in given)


def _make(directory: str) -> bool:
    """mkdir -p; whether the last one is new."""
    try:
        os.mkdir(directory, 0o755)
    except FileExistsError:
        return False
    except FileNotFoundError:
        _make(os.path.dirname(directory))
        return _make(directory)
    return True


def _join(directory: str, pid: int) -> None:
    for left in range(5, 0, -1):
        try:
            write(directory, "cgroup.procs", pid)
            return
        except OSError as error:
            if error.errno != errno.EINVAL or left == 1:
                raise
            time.sleep(0.03)  # a process in the middle of its fork (TASK_NEW) can be moved a moment later


def _processes(directory: str) -> list[int]:
    try:
        text = read(directory, "cgroup.procs")
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENOTDIR):
            return []
        if error.errno != errno.EOPNOTSUPP:
            raise
        text = read_or(directory, "cgroup.threads", "")  # a threaded group: threads' numbers do for signals
    return [int(each) for each in text.split() if each != "0"]  # 0: not visible in our PID namespace


def _has_process(directory: str) -> bool:
    from xuni.container.cgroup.tree import walk

    return any(bool(_processes(here)) for here in walk(directory))


def place(cgroups_path: str, container: str, *, rootless: bool) -> HostGroup:
    own = hierarchy.groups_of()
    mounts = hierarchy.mounted()
    inside = os.path.normpath("/" + (cgroups_path or container)).strip("/")  # `..` leads nowhere
    if not inside:
        raise SpecError(f"linux.cgroupsPath: {cgroups_path!r} is the root group, which cannot be a container's")
    if inside.count("/") > DEEPEST:
        raise SpecError(f"linux.cgroupsPath has {inside.count('/') + 1} levels; {DEEPEST} are deep enough")
    paths: dict[str, str] = {}
    rootless = rootless or userns.inside()  # whose root is nobody special to the hierarchies
    for each in mounts:
        group = own.get(each.keys[0])
        if group is None:
            continue
        if cgroups_path.startswith("/"):
            base = each.point
        else:
            # On v2 our own group has a process, us, and could hand no controller down: the new one stands beside it.
            base = each.directory(os.path.dirname(group) if each.v2 else group) or each.point
        directory = f"{base.rstrip('/')}/{inside}"
        if rootless and not hierarchy.writable(directory):
            continue
        for key in each.keys:
            paths[key] = directory
    return HostGroup(paths, mounts)


def reopen(paths: Mapping[str, str]) -> HostGroup:
    return HostGroup(paths)
