"""Control groups: what the runtime asks of them, whatever the hierarchy. v1, v2 and hybrid hosts look the same from here.

`place(spec.cgroupsPath, id)` decides where the group will be (pure but for reading /proc/self/mountinfo and
/proc/self/cgroup) and creates nothing, so that the runtime can write the paths into its state *before* `create`; a
runtime that was killed in between leaves nothing that `reopen(paths).delete()` cannot remove. Every call of a `Group`
may be repeated.

This package is on the path of a container's start: no dataclasses, enum, typing, re, json, pathlib at import time.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Protocol

    from xuni.container.record import Record
    from xuni.container.spec import Resources
else:
    Protocol = object
    from xuni.container.record import Record


class Hierarchy(Record):
    """One mounted hierarchy, for a container's mount of type `cgroup`.

    `name` is its directory below /sys/fs/cgroup ("cpu,cpuacct", "systemd", "unified"; "" for a pure v2 host);
    `data` are the options of a fresh mount in a cgroup namespace ("cpu,cpuacct", "none,name=systemd"; "" for v2);
    `directory` is the container's own group in it, on the host.
    """

    name: str
    v2: bool
    data: str
    directory: str


class Group(Protocol):
    """The cgroup of one container, in all hierarchies. Errors are OSError with the file as filename, or
    `xuni.container.record.SpecError` for resources that the host's hierarchies cannot express."""

    @property
    def paths(self) -> Mapping[str, str]:
        """Controller ("cpu", "memory", "name=systemd"; "" for v2) → directory. What the state file keeps."""

    def hierarchies(self) -> tuple[Hierarchy, ...]: ...

    def create(self) -> None:
        """Make the directories, and on v2 enable the controllers above. Existing ones are taken as they are."""

    def populated(self) -> bool:
        """Whether a process lives in it or below it (a container must not take over a group in use)."""

    def join(self, pid: int) -> None:
        """Put the process there. For exec too: on v2 with sub-groups (`subgroup` of exec --cgroup: `join_sub`)."""

    def join_sub(self, pid: int, sub: Mapping[str, str]) -> None:
        """`runc exec --cgroup [controllers:]path`: controllers ("" for all) → path below the group."""

    def apply(self, resources: Resources) -> None:
        """Write the limits: every one given, in an order the kernel accepts; devices too (v1 lists, v2 BPF)."""

    def clone_target(self) -> int:
        """A descriptor of the v2 directory for CLONE_INTO_CGROUP, -1 if there is none. The caller closes it."""

    def entrances(self) -> list[int]:
        """Descriptors of v1 files into which a process with one thread writes b"0" to join: with `clone_target`, what
        `join` does, and the caller closes them.

        To move another process the kernel stops all forks of the machine until an RCU grace period is over, some 10 ms; a
        single thread that moves itself waits for nobody (cgroup_procs_write_start). So: the runtime opens them, the new
        process, born into `clone_target`, writes.
        """

    def processes(self) -> list[int]:
        """All processes in it and below it, in the caller's PID namespace."""

    def stats(self) -> dict[str, Any]:
        """The `data` object of `runc events --stats`: cpu, cpuset, memory, pids, blkio, hugetlb (runc's field names)."""

    def freeze(self) -> None:
        """Stop every process; returns when they are stopped (or raises OSError ETIMEDOUT after 2 s and thaws)."""

    def thaw(self) -> None: ...

    def frozen(self) -> bool: ...

    def kill(self, signal: int) -> None:
        """Send to every process in it and below, without a race with forks (cgroup.kill, or freeze, kill, thaw)."""

    def delete(self) -> None:
        """Remove the directories, sub-groups first, waiting up to 2 s for dying processes. Absent ones are fine."""


def place(cgroups_path: str, container: str, *, rootless: bool) -> Group:
    """The group for `linux.cgroupsPath` (config-linux.md, "Cgroups Path"): absolute below the mount point of each
    hierarchy, relative or empty below the caller's own group. With `rootless`, a hierarchy the caller may not write is
    left out, and `apply` raises only for resources that were asked for."""
    from xuni.container.cgroup.host import place as found

    return found(cgroups_path, container, rootless=rootless)


def reopen(paths: Mapping[str, str]) -> Group:
    """The group whose `paths` a state file kept."""
    from xuni.container.cgroup.host import reopen as found

    return found(paths)
