"""Where nothing can stand between our program and the container's (no trampoline for this processor, or a filter that refuses
execveat): see at least that what is executed is not our own program, under whatever name (CVE-2019-5736).

Weaker than the trampoline: whoever may write the root could exchange the file between this look and execve.
"""

from __future__ import annotations

import os

from xuni.container.step import Run, SpecError, Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_STATUS: Final = os.stat("/proc/self/exe")  # while the host's /proc is in sight
DEEPEST: Final = 6  # interpreters of interpreters: one more than the kernel follows


class RefuseOurselves(Step):
    """Raise SpecError if the program that was found is ours."""

    def apply(self, run: Run) -> None:
        refuse(run.program)


def refuse(path: str) -> None:
    """Raises SpecError for our own program, be it by a link or as the interpreter of a script."""
    name = path
    for _ in range(DEEPEST):
        try:
            status = os.stat(name)
            if (status.st_dev, status.st_ino) == (_STATUS.st_dev, _STATUS.st_ino):
                raise SpecError(f"exec {path}: it leads to the runtime's own program on the host, which is not for containers")
            if status.st_mode & 0o170000 != 0o100000:  # a device does something when it is opened
                return
            descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return  # execve will say what is wrong
        try:
            head = os.read(descriptor, 256)
        except OSError:
            return
        finally:
            os.close(descriptor)
        words = head.partition(b"\n")[0][2:].split()
        if not head.startswith(b"#!") or not words:
            return
        name = os.fsdecode(words[0])
