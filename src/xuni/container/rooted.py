"""Paths of the container, opened inside its root: no symbolic link of an image leads out of it, whoever races with us.

An existing path takes one openat2(RESOLVE_IN_ROOT). One that is to be made is walked component by component, each opened
with O_NOFOLLOW in the descriptor of its directory; links are followed by hand and `..` goes back along the way we came.
"""

from __future__ import annotations

import _stat as stat
import errno

from xuni.host.linux import kernel as k
from xuni.host.linux import system as os
from xuni.host.linux.calls import CallError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from xuni.host.linux.kernel import Linux

LINKS: Final = 40  # as many as the kernel follows


def open_in_root(kernel: Linux, root: int, path: str, flags: int = os.O_PATH) -> int:
    """A descriptor of what `path` names below `root`. Raises CallError."""
    return kernel.openat2(root, path.lstrip("/") or ".", flags, 0, k.RESOLVE_IN_ROOT | k.RESOLVE_NO_MAGICLINKS)


def make_in_root(kernel: Linux, root: int, path: str, *, directory: bool, mode: int = 0o755) -> int:
    """As open_in_root, after making the directories on the way and at the end a directory or an empty file."""
    try:
        return open_in_root(kernel, root, path)
    except CallError as error:
        if error.errno != errno.ENOENT:
            raise
    way = [os.dup(root)]
    todo = [each for each in reversed(path.split("/")) if each not in ("", ".")]
    links = 0
    try:
        while todo:
            name = todo.pop()
            if name == "..":
                if len(way) > 1:
                    os.close(way.pop())
                continue
            here = way[-1]
            try:
                there = kernel.open(name, os.O_PATH | os.O_NOFOLLOW, at=here)
            except CallError as error:
                if error.errno != errno.ENOENT:
                    raise
                try:
                    if todo or directory:
                        kernel.mkdirat(here, name, 0o755 if todo else mode)
                    else:
                        os.close(kernel.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode & 0o666, at=here))
                except CallError as again:
                    if again.errno != errno.EEXIST:
                        raise
                there = kernel.open(name, os.O_PATH | os.O_NOFOLLOW, at=here)
            if stat.S_ISLNK(os.fstat(there).st_mode):
                links += 1
                if links > LINKS:
                    os.close(there)
                    raise CallError(errno.ELOOP, "openat", (root, path, "in the container's root"))
                target = os.readlink("", dir_fd=there)
                os.close(there)
                todo += [each for each in reversed(target.split("/")) if each not in ("", ".")]
                if target.startswith("/"):
                    while len(way) > 1:
                        os.close(way.pop())
                continue
            way.append(there)
        return way.pop()
    finally:
        for each in way:
            os.close(each)


def parent_in_root(kernel: Linux, root: int, path: str) -> tuple[int, str]:
    """The directory that holds the last component of `path`, made if need be, and that component."""
    head, _, name = path.rstrip("/").rpartition("/")
    if name in ("", ".", ".."):
        raise CallError(errno.EINVAL, "openat", (root, path, "a name belongs at the end"))
    return make_in_root(kernel, root, head or "/", directory=True), name
