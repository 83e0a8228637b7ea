"""`xuni run` without root: this process becomes root of a user namespace, and goes on as if it were the host's.

The namespace has the user's own id as its root and, where /etc/subuid and /etc/subgid give the user a range and newuidmap(1)
is installed, 65,536 ids and more besides; otherwise that one id. All containers of a user share it while one of them runs: who
signals or enters them must be in it (user_namespaces(7), "Capabilities").
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from typing import Final

from xuni.host.linux import kernel as k
from xuni.host.linux.calls import CallError
from xuni.server import ContainerError, where
from xuni.server.kept import Containers, began

MOST_RANGES: Final = 64
LISTS: Final = {"newuidmap": "/etc/subuid", "newgidmap": "/etc/subgid"}


def enter() -> None:
    """Be root; the host's root is already. One thread only. Raises ContainerError."""
    if os.geteuid() == 0:
        return
    with open(f"{where.run_directory()}/namespace", "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        for pid in _candidates(file.read()):
            if _join(pid):
                return
        _make()
        file.truncate(0)
        file.write(f"{os.getpid()} {began(os.getpid())}")


def _candidates(noted: str) -> Iterator[int]:
    """Processes that are in our namespace if it is still there: who made it, and the containers'."""
    words = noted.split()
    if len(words) == 2 and all(each.isdecimal() for each in words) and began(int(words[0])) == int(words[1]) != 0:
        yield int(words[0])
    for record in Containers().all():
        if record.status == "running" and record.pid and began(record.pid) == record.began:
            yield record.pid


def _join(pid: int) -> bool:
    try:
        descriptor = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    kernel = k.Linux()
    try:
        kernel.setns(descriptor, k.CLONE_NEWUSER, "user")
    except CallError:
        return False  # it has just ended, or it is not ours
    finally:
        os.close(descriptor)
    kernel.unshare(k.CLONE_NEWNS)
    _arrive(kernel)
    return True


def _make() -> None:
    user, uid, gid = _name(os.getuid()), os.getuid(), os.getgid()
    ranges = {program: _ranges(path, user, uid) for program, path in LISTS.items()}
    programs = {program: _find(program) for program in LISTS}
    several = all(ranges.values()) and all(programs.values())
    told, tell = os.pipe()
    helper = os.fork()
    if helper == 0:  # outside of the namespace, where the ranges mean something
        status = 1
        try:
            os.close(tell)
            os.read(told, 1)
            status = 0
            for program, own in (("newuidmap", uid), ("newgidmap", gid)) if several else ():
                words = [programs[program], str(os.getppid()), "0", str(own), "1"]
                first = 1
                for start, count in ranges[program]:
                    words += [str(first), str(start), str(count)]
                    first += count
                status = status or os.waitstatus_to_exitcode(os.waitpid(os.posix_spawn(words[0], words, os.environ), 0)[1])
        finally:
            os._exit(status)
    kernel = k.Linux()
    try:
        kernel.unshare(k.CLONE_NEWUSER | k.CLONE_NEWNS)
    except CallError as error:
        raise ContainerError(f"without root, containers are in a user namespace, and this kernel lets {user} make none "
                             f"({error.strerror}; sysctl user.max_user_namespaces, "
                             "kernel.unprivileged_userns_clone)") from None  # fmt: skip
    finally:
        os.close(tell)
        os.close(told)
        _, status = os.waitpid(helper, 0)
    if status:
        raise ContainerError(f"newuidmap and newgidmap refuse the ranges that {' and '.join(LISTS.values())} have for {user}")
    if not several:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    _arrive(kernel)


def _arrive(kernel: k.Linux) -> None:
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    try:
        os.setgroups([])
    except OSError as error:
        if error.errno != errno.EPERM:  # with a single id they stay
            raise
    kernel.mount_setattr(k.AT_FDCWD, "/", propagation=k.MS_SLAVE, recursive=True)


def _ranges(path: str, user: str, uid: int) -> list[tuple[int, int]]:
    """subuid(5): the first id and how many, of each line of the user's."""
    found = []
    try:
        with open(path, errors="replace") as file:
            for line in file:
                name, _, rest = line.strip().partition(":")
                start, _, count = rest.partition(":")
                if name in (user, str(uid)) and start.isdecimal() and count.isdecimal() and int(count):
                    found.append((int(start), int(count)))
    except OSError:
        pass
    return found[:MOST_RANGES]


def _find(program: str) -> str:
    import shutil

    return shutil.which(program) or ""


def _name(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def single() -> bool:
    """Whether no other id than ours is mapped: nothing can belong to another user, and setgroups(2) is denied."""
    with open("/proc/self/gid_map") as file:
        return sum(int(line.split()[2]) for line in file) == 1
