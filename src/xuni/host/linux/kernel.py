"""The kernel as a container's steps see it: one method a call. Steps are given a `Linux`; tests give them a recorder.

Every failure is a CallError (an OSError that knows its call and arguments). Paths are text, descriptors are numbers that
the caller closes.
"""

from __future__ import annotations

from xuni.host.linux import system as os
from xuni.host.linux.calls import AT_FDCWD as AT_FDCWD
from xuni.host.linux.calls import CallError, address, call, space, try_call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Final, TypeVar

    T = TypeVar("T")

MARK: Final = b"\x01"  # by which a program between the runtime and the container's knows its call (trampoline.py)

# ---- clone, unshare, setns
CLONE_NEWTIME: Final = 0x80
CLONE_PIDFD: Final = 0x1000
CLONE_PARENT: Final = 0x8000
CLONE_NEWNS: Final = 0x20000
CLONE_NEWCGROUP: Final = 0x2000000
CLONE_NEWUTS: Final = 0x4000000
CLONE_NEWIPC: Final = 0x8000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000
CLONE_INTO_CGROUP: Final = 0x200000000

# ---- mounts
AT_RECURSIVE: Final = 0x8000
AT_EMPTY_PATH: Final = 0x1000
AT_SYMLINK_NOFOLLOW: Final = 0x100
OPEN_TREE_CLONE: Final = 1
OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4
MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40
FSOPEN_CLOEXEC: Final = 1
FSMOUNT_CLOEXEC: Final = 1
FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE, FSCONFIG_CMD_RECONFIGURE = 0, 1, 6, 7
MOUNT_ATTR_RDONLY: Final = 0x1
MOUNT_ATTR_NOSUID: Final = 0x2
MOUNT_ATTR_NODEV: Final = 0x4
MOUNT_ATTR_NOEXEC: Final = 0x8
MOUNT_ATTR__ATIME: Final = 0x70  # the field of the three that follow
MOUNT_ATTR_NOATIME: Final = 0x10
MOUNT_ATTR_STRICTATIME: Final = 0x20
MOUNT_ATTR_NODIRATIME: Final = 0x80
MOUNT_ATTR_IDMAP: Final = 0x100000
MOUNT_ATTR_NOSYMFOLLOW: Final = 0x200000
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_MOVE: Final = 8192
MS_REC: Final = 16384
MS_UNBINDABLE: Final = 1 << 17
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MS_SHARED: Final = 1 << 20
MNT_DETACH: Final = 2

# ---- openat2
RESOLVE_NO_XDEV: Final = 1
RESOLVE_NO_MAGICLINKS: Final = 2
RESOLVE_NO_SYMLINKS: Final = 4
RESOLVE_BENEATH: Final = 8
RESOLVE_IN_ROOT: Final = 0x10

# ---- prctl
PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_SET_KEEPCAPS: Final = 8
PR_CAPBSET_READ: Final = 23
PR_CAPBSET_DROP: Final = 24
PR_SET_NAME: Final = 15
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_RAISE: Final = 2
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
CLOSE_RANGE_CLOEXEC: Final = 4


class Flags:
    """An argument that prints as strace would print it, "A|B|0x40", should that ever be needed."""

    __slots__ = ("names", "value")

    def __init__(self, value: int, names: dict[int, str]) -> None:
        self.value, self.names = value, names

    def __str__(self) -> str:
        said, value = [], self.value
        for bit, name in self.names.items():
            if value & bit == bit:
                said.append(name)
                value &= ~bit
        if value:
            said.append(hex(value))
        return "|".join(said) or "0"


class Linux:
    """Passes each call on."""

    # ---- processes and namespaces

    def clone3(self, flags: int, cgroup: int = -1) -> tuple[int, int]:
        """Fork into new namespaces: (0, -1) in the child, (pid, pidfd) in the parent."""
        pidfd = space(4)
        fields = [flags | CLONE_PIDFD, address(pidfd), 0, 0, 17, 0, 0, 0, 0, 0, 0]  # 17: SIGCHLD
        if flags & CLONE_PARENT:
            fields[4] = 0  # the kernel takes the caller's own
        if cgroup >= 0:
            fields[0] |= CLONE_INTO_CGROUP
            fields[10] = cgroup
        arguments = b"".join([each.to_bytes(8, "little") for each in fields])
        # SAFETY: no stack is given, so the child goes on with a copy of this one, as after fork(2); no threads run.
        pid = try_call("clone3", arguments, 88)
        if pid < 0:
            raise CallError(-pid, "clone3", (Flags(fields[0], CLONE_NAMES), "SIGCHLD"))
        return pid, int.from_bytes(pidfd.raw, "little") if pid else -1

    def unshare(self, flags: int) -> None:
        call("unshare", flags, shown=(Flags(flags, CLONE_NAMES),))

    def setns(self, descriptor: int, kind: int, shown: object = None) -> None:
        call("setns", descriptor, kind, shown=(shown or descriptor, Flags(kind, CLONE_NAMES)))

    def pidfd_open(self, pid: int) -> int:
        return call("pidfd_open", pid, 0, shown=(pid, 0))

    def pidfd_getfd(self, pidfd: int, descriptor: int) -> int:
        return call("pidfd_getfd", pidfd, descriptor, 0, shown=(pidfd, descriptor, 0))

    def pidfd_send_signal(self, pidfd: int, signal: int) -> None:
        call("pidfd_send_signal", pidfd, signal, 0, 0, shown=(pidfd, signal, "NULL", 0))

    def signalfd(self, signals: int) -> int:
        """Signals of this mask (bit n-1 for signal n), which must be blocked, as 128-byte records to read."""
        flags = os.O_CLOEXEC | os.O_NONBLOCK
        return call("signalfd4", -1, signals.to_bytes(8, "little"), 8, flags, shown=(-1, hex(signals), 8, flags))

    def close_range(self, first: int, flags: int = CLOSE_RANGE_CLOEXEC, last: int = 0xFFFFFFFF) -> None:
        call("close_range", first, last, flags, shown=(first, "~0" if last == 0xFFFFFFFF else last, flags))

    # ---- mounts

    def open_tree(self, at: int, path: str, *, recursive: bool = False, clone: bool = True, follow: bool = True) -> int:
        flags = OPEN_TREE_CLOEXEC | (OPEN_TREE_CLONE if clone else 0) | (AT_RECURSIVE if recursive else 0)
        flags |= (AT_EMPTY_PATH if path == "" else 0) | (0 if follow else AT_SYMLINK_NOFOLLOW)
        return call("open_tree", at, path.encode(), flags, shown=(at, path, Flags(flags, OPEN_TREE_NAMES)))

    def fsopen(self, kind: str) -> int:
        return call("fsopen", kind.encode(), FSOPEN_CLOEXEC, shown=(kind, "FSOPEN_CLOEXEC"))

    def fsconfig_string(self, context: int, key: str, value: str) -> None:
        self._fsconfig(context, FSCONFIG_SET_STRING, key, value)

    def fsconfig_flag(self, context: int, key: str) -> None:
        self._fsconfig(context, FSCONFIG_SET_FLAG, key, None)

    def fsconfig_create(self, context: int) -> None:
        self._fsconfig(context, FSCONFIG_CMD_CREATE, None, None)

    def _fsconfig(self, context: int, command: int, key: str | None, value: str | None) -> None:
        result = try_call("fsconfig", context, command, key and key.encode(), value if value is None else value.encode(), 0)
        if result < 0:
            failed = CallError(-result, "fsconfig", (context, FSCONFIG_NAMES[command], key or "NULL", value or "NULL"))
            said = self._messages(context)
            if said:
                failed.strerror = f"{failed.strerror} ({said})"
            raise failed

    def _messages(self, context: int) -> str:
        """What the file system wrote about the failure into its context."""
        said = []
        try:
            while message := os.read(context, 4096):
                said.append(message.decode(errors="replace").strip())
        except OSError:
            pass
        return "; ".join(said)

    def fsmount(self, context: int, attributes: int) -> int:
        result = try_call("fsmount", context, FSMOUNT_CLOEXEC, attributes)
        if result < 0:
            failed = CallError(-result, "fsmount", (context, "FSMOUNT_CLOEXEC", Flags(attributes, ATTR_NAMES)))
            said = self._messages(context)
            if said:
                failed.strerror = f"{failed.strerror} ({said})"
            raise failed
        return result

    def mount_setattr(self, tree: int, path: str = "", *, set: int = 0, clear: int = 0, propagation: int = 0,
                      userns: int = 0, recursive: bool = False) -> None:  # fmt: skip
        attributes = b"".join([each.to_bytes(8, "little") for each in (set, clear, propagation, userns)])
        flags = (0 if path else AT_EMPTY_PATH) | (AT_RECURSIVE if recursive else 0)
        shown = (tree, path, Flags(flags, OPEN_TREE_NAMES), Flags(set, ATTR_NAMES), Flags(clear, ATTR_NAMES),
                 Flags(propagation, MS_NAMES), userns)  # fmt: skip
        call("mount_setattr", tree, path.encode(), flags, attributes, 32, shown=shown)

    def move_mount(self, tree: int, target: int, path: str = "") -> None:
        flags = MOVE_MOUNT_F_EMPTY_PATH | (0 if path else MOVE_MOUNT_T_EMPTY_PATH)
        call("move_mount", tree, b"", target, path.encode(), flags, shown=(tree, "", target, path, hex(flags)))

    def mount(self, source: str, target: str, kind: str, flags: int, data: str = "") -> None:
        """The old call, for what the new ones lack."""
        call("mount", source.encode(), target.encode(), kind.encode(), flags, data.encode(),
             shown=(source, target, kind, Flags(flags, MS_NAMES), data))  # fmt: skip

    def umount(self, path: str, flags: int = MNT_DETACH) -> None:
        call("umount2", path.encode(), flags, shown=(path, "MNT_DETACH" if flags == MNT_DETACH else flags))

    def pivot_root(self, new: str, old: str) -> None:
        call("pivot_root", new.encode(), old.encode(), shown=(new, old))

    # ---- files

    def openat2(self, at: int, path: str, flags: int, mode: int = 0, resolve: int = RESOLVE_IN_ROOT) -> int:
        how = b"".join([each.to_bytes(8, "little") for each in (flags | os.O_CLOEXEC, mode, resolve)])
        for _ in range(32):
            result = try_call("openat2", at, path.encode(), how, 24)
            if result != -11:  # EAGAIN: something was renamed meanwhile, so the kernel could not be sure
                break
        if result < 0:
            raise CallError(-result, "openat2", (at, path, Flags(flags, OPEN_NAMES), Flags(resolve, RESOLVE_NAMES)))
        return result

    def open(self, path: str, flags: int, mode: int = 0, at: int = AT_FDCWD) -> int:
        return self._os("openat", (at, path, Flags(flags, OPEN_NAMES)), os.open, path, flags | os.O_CLOEXEC, mode,
                        dir_fd=None if at == AT_FDCWD else at)  # fmt: skip

    def mkdirat(self, at: int, name: str, mode: int) -> None:
        self._os("mkdirat", (at, name, oct(mode)), os.mkdir, name, mode, dir_fd=at)

    def mknodat(self, at: int, name: str, mode: int, device: int) -> None:
        self._os("mknodat", (at, name, oct(mode), f"makedev({os.major(device)}, {os.minor(device)})"), os.mknod, name, mode,
                 device, dir_fd=at)  # fmt: skip

    def symlinkat(self, target: str, at: int, name: str) -> None:
        self._os("symlinkat", (target, at, name), os.symlink, target, name, dir_fd=at)

    def readlinkat(self, at: int, name: str) -> str:
        target: str = self._os("readlinkat", (at, name), os.readlink, name, dir_fd=at)
        return target

    def unlinkat(self, at: int, name: str) -> None:
        self._os("unlinkat", (at, name), os.unlink, name, dir_fd=at)

    def write_file(self, path: str, content: str | bytes, at: int = AT_FDCWD) -> None:
        """Into a file that exists, in one write: what /proc and the cgroup files want."""
        descriptor = self.open(path, os.O_WRONLY, at=at)
        try:
            data = content if isinstance(content, bytes) else content.encode()
            self._os("write", (path, content), os.write, descriptor, data)
        finally:
            os.close(descriptor)

    def chdir(self, path: str) -> None:
        self._os("chdir", (path,), os.chdir, path)

    def fchdir(self, descriptor: int) -> None:
        self._os("fchdir", (descriptor,), os.fchdir, descriptor)

    def chroot(self, path: str) -> None:
        self._os("chroot", (path,), os.chroot, path)

    def socket_inet(self) -> int:
        """A datagram socket, for the interfaces' ioctls: importing `socket` for it would take longer than all of them."""
        return call("socket", 2, 2 | os.O_CLOEXEC, 0, shown=("AF_INET", "SOCK_DGRAM|SOCK_CLOEXEC", 0))

    def ioctl(self, descriptor: int, request: int, argument: Any, name: str) -> int:
        return call("ioctl", descriptor, request, argument, shown=(descriptor, name, "…"))

    def fcntl(self, descriptor: int, command: int, argument: int) -> int:
        return call("fcntl", descriptor, command, argument, shown=(descriptor, command, argument))

    # ---- what a process is

    def prctl(self, option: int, a: int = 0, b: int = 0, c: int = 0) -> int:
        return call("prctl", option, a, b, c, shown=(PR_NAMES.get(option, option), a, b, c))

    def capset(self, effective: int, permitted: int, inheritable: int) -> None:
        header = space(8, (0x20080522).to_bytes(4, "little") + bytes(4))  # _LINUX_CAPABILITY_VERSION_3, this process
        low, words = 0xFFFFFFFF, b""
        for shift in (0, 32):
            words += b"".join([(each >> shift & low).to_bytes(4, "little") for each in (effective, permitted, inheritable)])
        call("capset", header, words,
             shown=(f"{{effective={effective:#x}, permitted={permitted:#x}, inheritable={inheritable:#x}}}",))  # fmt: skip

    def capget(self, pid: int = 0) -> tuple[int, int, int]:
        """Effective, permitted, inheritable."""
        header = space(8, (0x20080522).to_bytes(4, "little") + pid.to_bytes(4, "little"))
        words = space(24)
        call("capget", header, words, shown=(pid,))
        raw = words.raw
        low, high = ([int.from_bytes(raw[base + 4 * i : base + 4 * i + 4], "little") for i in range(3)] for base in (0, 12))
        return low[0] | high[0] << 32, low[1] | high[1] << 32, low[2] | high[2] << 32

    def setgroups(self, groups: Sequence[int]) -> None:
        self._os("setgroups", (list(groups),), os.setgroups, groups)

    def setresgid(self, gid: int) -> None:
        self._os("setresgid", (gid, gid, gid), os.setresgid, gid, gid, gid)

    def setresuid(self, uid: int) -> None:
        self._os("setresuid", (uid, uid, uid), os.setresuid, uid, uid, uid)

    def prlimit(self, pid: int, resource: int, soft: int, hard: int, name: str) -> None:
        limits = soft.to_bytes(8, "little") + hard.to_bytes(8, "little")
        call("prlimit64", pid, resource, limits, 0, shown=(pid, name, f"{{soft={soft}, hard={hard}}}"))

    def personality(self, persona: int) -> None:
        call("personality", persona, shown=(hex(persona),))

    def sethostname(self, name: str) -> None:
        call("sethostname", name.encode(), len(name.encode()), shown=(name,))

    def setdomainname(self, name: str) -> None:
        call("setdomainname", name.encode(), len(name.encode()), shown=(name,))

    def join_session_keyring(self, name: str) -> int:
        return call("keyctl", 1, name.encode(), shown=("KEYCTL_JOIN_SESSION_KEYRING", name))

    def sched_setattr(self, attributes: bytes, shown: str) -> None:
        call("sched_setattr", 0, attributes, 0, shown=(0, shown))

    def ioprio_set(self, value: int) -> None:
        call("ioprio_set", 1, 0, value, shown=("IOPRIO_WHO_PROCESS", 0, hex(value)))

    def set_mempolicy(self, mode: int, nodes: int, shown: str) -> None:
        size = max(8, (nodes.bit_length() + 63) // 64 * 8)
        mask = nodes.to_bytes(size, "little") if nodes else None
        call("set_mempolicy", mode, mask, size * 8 + 1 if nodes else 0, shown=(shown, hex(nodes)))

    def seccomp(self, operation: int, flags: int, program: bytes) -> int:
        """Load a filter of `struct sock_filter`s; the descriptor of its listener if the flags ask for one."""
        code = space(len(program), program)
        # SAFETY: struct sock_fprog points at `code`, alive until the call returns; the kernel copies it.
        fprog = (len(program) // 8).to_bytes(8, "little") + address(code).to_bytes(8, "little")
        return call("seccomp", operation, flags, fprog, shown=(operation, hex(flags), f"{len(program) // 8} instructions"))

    def memfd_create(self, name: str, flags: int) -> int:
        return call("memfd_create", name.encode(), flags, shown=(name, hex(flags)))

    def execve(self, path: str, arguments: Sequence[bytes], environment: Sequence[bytes], through: int = -1) -> None:
        """Returns only by raising. With `through`, that descriptor's program is executed and given the path before all else."""
        if through >= 0:
            arguments = [MARK, path.encode(), *arguments]
        keep, vectors = [], []
        for strings in (arguments, environment):
            memory = [space(len(each) + 1, each) for each in strings]
            keep.append(memory)
            vectors.append(b"".join([address(each).to_bytes(8, "little") for each in memory]) + bytes(8))
        # SAFETY: both vectors point into `keep`, which outlives the call.
        if through >= 0:
            call("execveat", through, b"", vectors[0], vectors[1], AT_EMPTY_PATH, shown=(through, "", "…", "…", "AT_EMPTY_PATH"))
        call("execve", path.encode(), vectors[0], vectors[1], shown=(path, [each.decode(errors="replace") for each in arguments]))

    def _os(self, name: str, shown: tuple[object, ...], function: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """A call that Python itself has, failing as the others do."""
        try:
            return function(*arguments, **named)
        except OSError as error:
            raise CallError(error.errno or 0, name, shown) from None


# ---- names for messages

CLONE_NAMES: Final = {CLONE_NEWTIME: "CLONE_NEWTIME", CLONE_PIDFD: "CLONE_PIDFD", CLONE_PARENT: "CLONE_PARENT",
    CLONE_NEWNS: "CLONE_NEWNS", CLONE_NEWCGROUP: "CLONE_NEWCGROUP", CLONE_NEWUTS: "CLONE_NEWUTS", CLONE_NEWIPC: "CLONE_NEWIPC",
    CLONE_NEWUSER: "CLONE_NEWUSER", CLONE_NEWPID: "CLONE_NEWPID", CLONE_NEWNET: "CLONE_NEWNET",
    CLONE_INTO_CGROUP: "CLONE_INTO_CGROUP"}  # fmt: skip
OPEN_TREE_NAMES: Final = {OPEN_TREE_CLONE: "OPEN_TREE_CLONE", OPEN_TREE_CLOEXEC: "OPEN_TREE_CLOEXEC",
    AT_RECURSIVE: "AT_RECURSIVE",
    AT_EMPTY_PATH: "AT_EMPTY_PATH", AT_SYMLINK_NOFOLLOW: "AT_SYMLINK_NOFOLLOW"}  # fmt: skip
ATTR_NAMES: Final = {MOUNT_ATTR_RDONLY: "RDONLY", MOUNT_ATTR_NOSUID: "NOSUID", MOUNT_ATTR_NODEV: "NODEV",
    MOUNT_ATTR_NOEXEC: "NOEXEC", MOUNT_ATTR_NOATIME: "NOATIME", MOUNT_ATTR_STRICTATIME: "STRICTATIME",
    MOUNT_ATTR_NODIRATIME: "NODIRATIME", MOUNT_ATTR_IDMAP: "IDMAP", MOUNT_ATTR_NOSYMFOLLOW: "NOSYMFOLLOW"}  # fmt: skip
MS_NAMES: Final = {1: "MS_RDONLY", 2: "MS_NOSUID", 4: "MS_NODEV", 8: "MS_NOEXEC", MS_REMOUNT: "MS_REMOUNT", MS_BIND: "MS_BIND",
    MS_MOVE: "MS_MOVE", MS_REC: "MS_REC", MS_UNBINDABLE: "MS_UNBINDABLE", MS_PRIVATE: "MS_PRIVATE", MS_SLAVE: "MS_SLAVE",
    MS_SHARED: "MS_SHARED"}  # fmt: skip
OPEN_NAMES: Final = {os.O_WRONLY: "O_WRONLY", os.O_RDWR: "O_RDWR", os.O_CREAT: "O_CREAT", os.O_EXCL: "O_EXCL",
    os.O_PATH: "O_PATH", os.O_DIRECTORY: "O_DIRECTORY", os.O_NOFOLLOW: "O_NOFOLLOW", os.O_NONBLOCK: "O_NONBLOCK"}  # fmt: skip
RESOLVE_NAMES: Final = {RESOLVE_NO_XDEV: "RESOLVE_NO_XDEV", RESOLVE_NO_MAGICLINKS: "RESOLVE_NO_MAGICLINKS",
    RESOLVE_NO_SYMLINKS: "RESOLVE_NO_SYMLINKS", RESOLVE_BENEATH: "RESOLVE_BENEATH",
    RESOLVE_IN_ROOT: "RESOLVE_IN_ROOT"}  # fmt: skip
FSCONFIG_NAMES: Final = {FSCONFIG_SET_FLAG: "FSCONFIG_SET_FLAG", FSCONFIG_SET_STRING: "FSCONFIG_SET_STRING",
    FSCONFIG_CMD_CREATE: "FSCONFIG_CMD_CREATE", FSCONFIG_CMD_RECONFIGURE: "FSCONFIG_CMD_RECONFIGURE"}  # fmt: skip
PR_NAMES: Final = {PR_SET_PDEATHSIG: "PR_SET_PDEATHSIG", PR_SET_DUMPABLE: "PR_SET_DUMPABLE", PR_SET_KEEPCAPS: "PR_SET_KEEPCAPS",
    PR_CAPBSET_READ: "PR_CAPBSET_READ", PR_CAPBSET_DROP: "PR_CAPBSET_DROP", PR_SET_NAME: "PR_SET_NAME",
    PR_SET_NO_NEW_PRIVS: "PR_SET_NO_NEW_PRIVS", PR_CAP_AMBIENT: "PR_CAP_AMBIENT"}  # fmt: skip


def attributes(bits: int) -> str:
    """As mount(8) says them: "nosuid,noexec"; a number for what has no name."""
    names = [name.lower().replace("rdonly", "ro") for bit, name in ATTR_NAMES.items() if bits & bit]
    if bits & MOUNT_ATTR__ATIME == MOUNT_ATTR__ATIME:
        names = [each for each in names if each not in ("noatime", "strictatime")] + ["atime"]
    rest = bits & ~(sum(ATTR_NAMES) | MOUNT_ATTR__ATIME)
    return ",".join(names + [hex(rest)] * bool(rest)) or "0"
