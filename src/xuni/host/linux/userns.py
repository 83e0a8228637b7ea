"""User namespaces: made for nothing but their id maps, which mounts take (mount_setattr(2), "ID-mapped mounts"); and ours."""

from __future__ import annotations

from xuni.host.linux import kernel as k
from xuni.host.linux import system as os


def holding(kernel: k.Linux, uid_map: str, gid_map: str) -> int:
    """A descriptor of a new one with these maps, lines of "INSIDE OUTSIDE COUNT" (user_namespaces(7)), made by a child that only
    lives for that. Raises CallError.
    """
    hold = os.pipe()
    pid, pidfd = kernel.clone3(k.CLONE_NEWUSER)
    if pid == 0:
        os.close(hold[1])
        os.read(hold[0], 1)
        os._exit(0)
    try:
        kernel.write_file(f"/proc/{pid}/uid_map", uid_map)
        kernel.write_file(f"/proc/{pid}/gid_map", gid_map)
        return kernel.open(f"/proc/{pid}/ns/user", os.O_RDONLY)
    finally:
        os.close(hold[0])
        os.close(hold[1])
        os.close(pidfd)
        os.waitpid(pid, 0)


def inside() -> bool:
    """Whether ids here are not the host's."""
    with open("/proc/self/uid_map") as file:
        return file.read().split() != ["0", "0", "4294967295"]
