"""Which hierarchies are mounted here, and which group of each a process is in (cgroups(7), proc(5))."""

from __future__ import annotations

from xuni.container.record import Record
from xuni.host.linux import system as os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = "/sys/fs/cgroup"
# Options of a cgroup mount that are neither controllers nor the name.
_PLAIN = ("rw", "ro", "xattr", "noprefix", "clone_children", "all", "none", "cpuset_v2_mode", "favordynmods", "nofavordynmods")


class Mounted(Record):
    """One mount of a hierarchy. `keys` are as in /proc/PID/cgroup: controllers, "name=systemd", or "" for v2."""

    keys: tuple[str, ...]
    point: str
    root: str = "/"  # the group that is the root of the mount, in this cgroup namespace

    @property
    def v2(self) -> bool:
        return self.keys == ("",)

    @property
    def name(self) -> str:
        """The directory below /sys/fs/cgroup; "" for a pure v2 host."""
        return self.point[len(ROOT) + 1 :] if self.point.startswith(ROOT + "/") else "" if self.v2 else ",".join(self.keys)

    @property
    def data(self) -> str:
        """The options of one more mount of it."""
        if self.v2:
            return ""
        named = [each for each in self.keys if each.startswith("name=")]
        others = [each for each in self.keys if not each.startswith("name=")]
        return ",".join(others + named if others else ["none", *named])

    def directory(self, group: str) -> str:
        """Where the group that /proc/PID/cgroup calls `group` is in the file system; "" if this mount does not show it."""
        if self.root != "/":
            if group != self.root and not group.startswith(self.root + "/"):
                return ""
            group = group[len(self.root) :]
        if group.startswith("/.."):
            return ""  # outside of our cgroup namespace
        return (self.point + group).rstrip("/")


def mounted(text: str | None = None) -> tuple[Mounted, ...]:
    """All hierarchies, each once (where several mounts show one, that below /sys/fs/cgroup, and the one that shows most). What
    another mount hides is left out; with `text`, instead of /proc/self/mountinfo, nothing is looked at.
    """
    look = text is None
    if text is None:
        with open("/proc/self/mountinfo", errors="surrogateescape") as stream:
            text = stream.read()
    found: dict[tuple[str, ...], Mounted] = {}
    for line in text.splitlines():
        before, dash, after = line.partition(" - ")
        if not dash or not after.startswith("cgroup"):
            continue
        kind, _, options = after.split(" ", 2)
        fields = before.split(" ")
        point, root = _unescaped(fields[4]), _unescaped(fields[3])
        if kind == "cgroup2":
            keys: tuple[str, ...] = ("",)
        elif kind == "cgroup":
            keys = tuple([each for each in options.split(",") if each not in _PLAIN and not each.startswith("release_agent=")])
        else:
            continue
        seen = found.get(keys)
        if (seen is None or _better(point, root, seen)) and not (look and _hidden(point, fields[2])):
            found[keys] = Mounted(keys, point, root)
    return tuple(found.values())


def _hidden(point: str, device: str) -> bool:
    """Whether something else is there now: mountinfo lists what lies below it, too."""
    major, _, minor = device.partition(":")
    try:
        return os.stat(point).st_dev != os.makedev(int(major), int(minor))
    except OSError:
        return True


def _better(point: str, root: str, seen: Mounted) -> bool:
    inside, before = point.startswith(ROOT), seen.point.startswith(ROOT)
    return inside > before or (inside == before and len(root) < len(seen.root))


def groups_of(pid: int | str = "self") -> Mapping[str, str]:
    """Key → group, from /proc/PID/cgroup. Raises OSError."""
    found = {}
    with open(f"/proc/{pid}/cgroup", errors="surrogateescape") as stream:
        for line in stream:
            _, keys, group = line.rstrip("\n").split(":", 2)
            for key in keys.split(","):
                found[key] = group
    return found


def above(directory: str, top: str) -> tuple[str, ...]:
    """`top` and every directory from there down to `directory`, in that order."""
    assert directory == top or directory.startswith(top + "/"), (directory, top)
    found = [top]
    for name in directory[len(top) :].split("/"):
        if name:
            found.append(f"{found[-1]}/{name}")
    return tuple(found)


def writable(directory: str) -> bool:
    """Whether we may make `directory`, or put processes into it if it exists."""
    while not os.path.isdir(directory):
        directory = os.path.dirname(directory)
    return os.access(directory, os.W_OK | os.X_OK) and os.access(f"{directory}/cgroup.procs", os.W_OK)


def _unescaped(field: str) -> str:
    if "\\" not in field:
        return field
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, character)
    return field
