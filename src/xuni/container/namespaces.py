"""Namespaces: which ones are made, which are joined, and what belongs into them at once."""

from __future__ import annotations

import errno

from xuni.container.step import Run, SpecError, Step
from xuni.host.linux import kernel as k
from xuni.host.linux import system as os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from xuni.container.spec import IDMapping

# The specification's name: the flag, and the name in /proc/PID/ns. In the order in which they are joined by who lacks
# privilege: the user namespace first, since it gives the right to join the others. The host's root joins it last (plan.py).
KINDS: Final = {
    "user": (k.CLONE_NEWUSER, "user"),
    "ipc": (k.CLONE_NEWIPC, "ipc"),
    "uts": (k.CLONE_NEWUTS, "uts"),
    "network": (k.CLONE_NEWNET, "net"),
    "pid": (k.CLONE_NEWPID, "pid"),
    "mount": (k.CLONE_NEWNS, "mnt"),
    "cgroup": (k.CLONE_NEWCGROUP, "cgroup"),
    "time": (k.CLONE_NEWTIME, "time"),
}


class Join(Step):
    """Enter the namespace of `kind` at `path`."""

    kind: str
    path: str

    def apply(self, run: Run) -> None:
        descriptor = run.files.pop("namespace " + self.kind, -1)
        if descriptor < 0:
            descriptor = run.kernel.open(self.path, os.O_RDONLY)
        try:
            run.kernel.setns(descriptor, KINDS[self.kind][0], self.path)
        finally:
            os.close(descriptor)


class OpenNamespace(Step):
    """Open the namespace at `path`, and see that it is one of its kind, while the host's files are still in sight."""

    kind: str
    path: str

    def apply(self, run: Run) -> None:
        descriptor = run.kernel.open(self.path, os.O_RDONLY)
        run.files["namespace " + self.kind] = descriptor
        import fcntl

        try:
            kind = fcntl.ioctl(descriptor, 0xB703)  # NS_GET_NSTYPE
        except OSError:
            raise SpecError(f"linux.namespaces: {self.path} is not a namespace") from None
        if kind != KINDS[self.kind][0]:
            raise SpecError(f"linux.namespaces: {self.path} is not a namespace of type {self.kind}")


class JoinAll(Step):
    """Enter all namespaces of the container's init in which we are not yet."""

    def apply(self, run: Run) -> None:
        flags = 0
        for flag, name in KINDS.values():
            try:
                theirs, ours = os.stat(f"/proc/{run.pid}/ns/{name}"), os.stat(f"/proc/self/ns/{name}")
            except FileNotFoundError:  # a kernel without such namespaces
                continue
            if theirs.st_ino != ours.st_ino:
                flags |= flag
        if flags & k.CLONE_NEWTIME:
            # Before the others: our /proc is gone after them.
            with_time = run.kernel.open(f"/proc/{run.pid}/ns/time", os.O_RDONLY)
            if not flags & k.CLONE_NEWUSER:
                run.kernel.setns(with_time, k.CLONE_NEWTIME, "time")
                flags &= ~k.CLONE_NEWTIME
            os.close(with_time)
        if flags:
            run.kernel.setns(run.pidfd, flags, f"pidfd of {run.pid}")


class Unshare(Step):
    """Make the namespaces of these kinds."""

    kinds: tuple[str, ...]

    def apply(self, run: Run) -> None:
        flags = 0
        for kind in self.kinds:
            flags |= KINDS[kind][0]
        run.kernel.unshare(flags)


class MapIds(Step):
    """Write the id maps of init's user namespace: directly with the right to, else through newuidmap and newgidmap."""

    uid: tuple[IDMapping, ...]
    gid: tuple[IDMapping, ...]

    def apply(self, run: Run) -> None:
        if os.geteuid() != 0:
            self._rootless(run)
            return
        for file, maps in (("uid_map", self.uid), ("gid_map", self.gid)):
            run.kernel.write_file(f"/proc/{run.pid}/{file}", _lines(maps))

    def _rootless(self, run: Run) -> None:
        for file, tool, maps, own in (("uid_map", "newuidmap", self.uid, os.geteuid()),
                                      ("gid_map", "newgidmap", self.gid, os.getegid())):  # fmt: skip
            if len(maps) == 1 and maps[0].size == 1 and maps[0].hostID == own:
                if file == "gid_map":  # user_namespaces(7): without privilege, only after setgroups is denied
                    run.kernel.write_file(f"/proc/{run.pid}/setgroups", "deny")
                run.kernel.write_file(f"/proc/{run.pid}/{file}", _lines(maps))
                continue
            import subprocess

            numbers = [str(each) for m in maps for each in (m.containerID, m.hostID, m.size)]
            try:
                done = subprocess.run([tool, str(run.pid), *numbers], capture_output=True, text=True)
            except FileNotFoundError:
                raise SpecError(f"{tool} is not installed (Debian: uidmap); without it only your own id can be mapped") from None
            if done.returncode:
                raise SpecError(f"{done.stderr.strip()}; /etc/sub{file[0]}id says which ids you may map")


def _lines(maps: tuple[IDMapping, ...]) -> str:
    return "".join([f"{each.containerID} {each.hostID} {each.size}\n" for each in maps])


class BecomeRoot(Step):
    """Take id 0 of the user namespace: capabilities in it are kept, files that are made belong to its root.

    The change takes our own files in /proc from us. Taking them back (`own_files`) lets the others of a user namespace look
    into us, too, so it is for one in which there is nobody else.
    """

    keep_groups: bool = False
    own_files: bool = True

    def apply(self, run: Run) -> None:
        try:
            if not self.keep_groups:
                run.kernel.setgroups(())
        except OSError as error:
            if error.errno != errno.EPERM:  # setgroups is denied in the map of a single id
                raise
        try:
            run.kernel.setresgid(0)
            run.kernel.setresuid(0)
        except OSError as error:
            if error.errno != errno.EINVAL:  # id 0 is not mapped: go on as nobody, with every capability
                raise
        if self.own_files:
            run.kernel.prctl(k.PR_SET_DUMPABLE, 1)


class TimeOffsets(Step):
    """Shift the clocks of the new time namespace, then enter it: offsets are fixed once somebody is inside."""

    offsets: tuple[tuple[str, int, int], ...] = ()

    def apply(self, run: Run) -> None:
        if self.offsets:
            lines = "".join([f"{clock} {seconds} {nanoseconds}\n" for clock, seconds, nanoseconds in self.offsets])
            run.kernel.write_file("/proc/self/timens_offsets", lines)
        descriptor = run.kernel.open("/proc/self/ns/time_for_children", os.O_RDONLY)
        try:
            run.kernel.setns(descriptor, k.CLONE_NEWTIME, "/proc/self/ns/time_for_children")
        finally:
            os.close(descriptor)


class Hostname(Step):
    name: str

    def apply(self, run: Run) -> None:
        run.kernel.sethostname(self.name)


class Domainname(Step):
    name: str

    def apply(self, run: Run) -> None:
        run.kernel.setdomainname(self.name)


class Sysctl(Step):
    """Set a kernel parameter of the container's own namespaces. /proc is still the host's: no mount of the image's stands
    in the way, and the kernel shows each process the values of its own namespaces."""

    key: str
    value: str

    def apply(self, run: Run) -> None:
        # sysctl(8): dots separate, and slashes stand for dots inside a name; a key with slashes first is the reverse.
        dot, slash = self.key.find("."), self.key.find("/")
        path = self.key if slash >= 0 and (dot < 0 or slash < dot) else self.key.translate({46: "/", 47: "."})
        run.kernel.write_file("/proc/sys/" + path, self.value)
