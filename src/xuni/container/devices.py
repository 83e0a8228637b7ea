"""Device nodes and the links beside them. Where mknod is not allowed, as in a user namespace, the host's node is bound."""

from __future__ import annotations

import _stat as stat
import errno

from xuni.container.rooted import make_in_root, parent_in_root
from xuni.container.step import CallError, Run, SpecError, Step
from xuni.host.linux import kernel as k
from xuni.host.linux import system as os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from xuni.container.spec import IDMapping

KINDS: Final = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}

# config-linux.md, "Default Devices".
DEFAULT: Final = (("/dev/null", 1, 3), ("/dev/zero", 1, 5), ("/dev/full", 1, 7), ("/dev/random", 1, 8), ("/dev/urandom", 1, 9),
                  ("/dev/tty", 5, 0))  # fmt: skip
# runtime-linux.md, "Dev symbolic links", and the terminal multiplexer.
LINKS: Final = (("/dev/fd", "/proc/self/fd"), ("/dev/stdin", "/proc/self/fd/0"), ("/dev/stdout", "/proc/self/fd/1"),
                ("/dev/stderr", "/proc/self/fd/2"))  # fmt: skip


class OrdinaryDirectory(Step):
    """Make the directory that nodes go into; a link in its place is a mistake or worse."""

    path: str

    def apply(self, run: Run) -> None:
        try:
            os.close(run.kernel.openat2(run.root, self.path.lstrip("/"), os.O_PATH | os.O_DIRECTORY, 0,
                                        k.RESOLVE_IN_ROOT | k.RESOLVE_NO_SYMLINKS))  # fmt: skip
        except CallError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise SpecError(f"{self.path} in the root must be an ordinary directory, and is not") from None
            if error.errno != errno.ENOENT:
                raise
            os.close(make_in_root(run.kernel, run.root, self.path, directory=True))


class Node(Step):
    """Make a device node (or named pipe) at `path`; one that is there already with these numbers is taken as it is."""

    path: str
    kind: str
    major: int = 0
    minor: int = 0
    mode: int = 0o666
    uid: int = 0
    gid: int = 0
    bind: bool = False

    def apply(self, run: Run) -> None:
        kernel = run.kernel
        if self.bind:
            self._bind(run)
            return
        parent, name = parent_in_root(kernel, run.root, self.path)
        try:
            number = 0 if self.kind == "p" else os.makedev(self.major, self.minor)
            mask = os.umask(0)
            try:
                kernel.mknodat(parent, name, KINDS[self.kind] | self.mode, number)
            except CallError as error:
                if error.errno == errno.EPERM:
                    self._bind(run)
                    return
                if error.errno != errno.EEXIST or not self._same(parent, name, number):
                    raise
            finally:
                os.umask(mask)
            if self.uid or self.gid:
                os.chown(name, self.uid, self.gid, dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(parent)

    def _same(self, parent: int, name: str, number: int) -> bool:
        there = os.stat(name, dir_fd=parent, follow_symlinks=False)
        return stat.S_IFMT(there.st_mode) == KINDS[self.kind] and there.st_rdev == number

    def _bind(self, run: Run) -> None:
        """The host's node of the same path."""
        kernel = run.kernel
        tree = run.files.pop("device " + self.path, -1)
        if tree < 0 and self.kind == "p":
            raise SpecError(f"linux.devices: the named pipe {self.path} cannot be made here")
        if tree < 0:
            tree = kernel.open_tree(k.AT_FDCWD, self.path)
        kernel.mount_setattr(tree, set=k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NOEXEC)
        try:
            there = os.fstat(tree)
            if self.major >= 0 and (stat.S_IFMT(there.st_mode) != KINDS[self.kind]
                                    or there.st_rdev != os.makedev(self.major, self.minor)):  # fmt: skip
                raise SpecError(f"linux.devices: {self.path} of the host is not {self.kind} {self.major}:{self.minor}, "
                                "and only the host's own nodes can be used in a user namespace")  # fmt: skip
            place = make_in_root(kernel, run.root, self.path, directory=False)
            kernel.move_mount(tree, place)
            os.close(place)
        finally:
            os.close(tree)


class MakeNodes(Step):
    """For a user namespace, whose root may not make nodes: the runtime makes them in a tmpfs of its own, numbered."""

    nodes: tuple[Node, ...]
    uid: tuple[IDMapping, ...] = ()
    gid: tuple[IDMapping, ...] = ()

    def apply(self, run: Run) -> None:
        kernel = run.kernel
        context = kernel.fsopen("tmpfs")
        kernel.fsconfig_string(context, "mode", "755")
        kernel.fsconfig_create(context)
        top = run.files["nodes"] = kernel.fsmount(context, k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NOEXEC)
        os.close(context)
        mask = os.umask(0)
        try:
            for number, node in enumerate(self.nodes):
                device = 0 if node.kind == "p" else os.makedev(node.major, node.minor)
                kernel.mknodat(top, str(number), KINDS[node.kind] | node.mode, device)
                os.chown(str(number), host_id(node.uid, self.uid), host_id(node.gid, self.gid), dir_fd=top)
        finally:
            os.umask(mask)


def host_id(inner: int, maps: tuple[IDMapping, ...]) -> int:
    """Who `inner` of the user namespace is on the host. Raises SpecError."""
    for each in maps:
        if each.containerID <= inner < each.containerID + each.size:
            return each.hostID + inner - each.containerID
    raise SpecError(f"linux.devices: id {inner} is not mapped in the user namespace")


class TakeNodes(Step):
    """Clone each of these nodes, to be bound where it belongs. Only what is attached can be cloned (before Linux 6.15), so
    their tmpfs is over /proc for a moment: of our old root, where nothing of the container is yet."""

    paths: tuple[str, ...]

    def apply(self, run: Run) -> None:
        kernel = run.kernel
        top = run.files.pop("nodes")
        place = kernel.open("/proc", os.O_PATH | os.O_DIRECTORY)
        kernel.move_mount(top, place)
        for number, path in enumerate(self.paths):
            run.files["device " + path] = kernel.open_tree(top, str(number))
        here = os.open(".", os.O_PATH | os.O_CLOEXEC)
        kernel.fchdir(top)
        kernel.umount(".")
        kernel.fchdir(here)
        for descriptor in (top, place, here):
            os.close(descriptor)


class Link(Step):
    """Make a symbolic link; what is there already stays, except where it must not (`replace`)."""

    path: str
    to: str
    replace: bool = False

    def apply(self, run: Run) -> None:
        parent, name = parent_in_root(run.kernel, run.root, self.path)
        try:
            run.kernel.symlinkat(self.to, parent, name)
        except CallError as error:
            if error.errno == errno.EROFS or error.errno == errno.EEXIST and not self.replace:
                return
            if error.errno != errno.EEXIST:
                raise
            if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                return
            run.kernel.unlinkat(parent, name)
            run.kernel.symlinkat(self.to, parent, name)
        finally:
            os.close(parent)
