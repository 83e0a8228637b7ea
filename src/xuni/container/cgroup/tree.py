"""Groups below a group, as deep as somebody in a container has made them, under whatever names.

A path would be too long for the kernel after some 20 levels of long names, and a descriptor a level are too many: we hold one, go
down by names and up by `..`.
"""

from __future__ import annotations

import errno
import time

from xuni.host.linux import system as os
from xuni.host.linux.calls import CallError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_GONE = (errno.ENOENT, errno.ENODEV, errno.ENOTDIR)


def walk(directory: str) -> Iterator[str]:
    """The group and all below it, parents first, as directories to read from: each is good until the next is asked for. What
    goes away meanwhile is left out."""
    yield directory
    try:
        here = os.open(directory, _FLAGS)
    except OSError as error:
        if error.errno in _GONE:
            return
        raise
    left = [_below(here)]  # names at each level that are still to be visited
    try:
        while True:
            if left[-1]:
                there = _down(here, left[-1].pop())
                if there >= 0:
                    os.close(here)
                    here = there
                    yield f"/proc/self/fd/{here}"
                    left.append(_below(here))
                continue
            left.pop()
            if not left:
                return
            try:
                here = _up(here)
            except OSError as error:
                if error.errno in _GONE:  # with all that was above it
                    return
                raise
    finally:
        os.close(here)


def remove(directory: str, deadline: float) -> None:
    """The group and all below it; one that is busy may become free until the deadline (of time.monotonic)."""
    try:
        here = os.open(directory, _FLAGS)
    except OSError as error:
        if error.errno in _GONE:
            return
        raise
    names: list[str] = []  # by which we came down
    left = [_below(here)]
    try:
        while True:
            if left[-1]:
                name = left[-1].pop()
                there = _down(here, name)
                if there >= 0:
                    os.close(here)
                    here = there
                    names.append(name)
                    left.append(_below(here))
                continue
            left.pop()
            if not names:
                break
            here = _up(here)
            _rmdir(names.pop(), here, deadline)
    finally:
        os.close(here)
    _rmdir(directory, None, deadline)


def _below(here: int) -> list[str]:
    try:
        with os.scandir(here) as entries:
            return [each.name for each in entries if each.is_dir(follow_symlinks=False)]
    except OSError as error:
        if error.errno in _GONE:
            return []
        raise


def _down(here: int, name: str) -> int:
    """-1 if it has gone."""
    try:
        return os.open(name, _FLAGS, dir_fd=here)
    except OSError as error:
        if error.errno in _GONE:
            return -1
        raise


def _up(here: int) -> int:
    above = os.open("..", _FLAGS, dir_fd=here)
    os.close(here)
    return above


def _rmdir(name: str, at: int | None, deadline: float) -> None:
    pause = 0.001
    while True:
        try:
            os.rmdir(name, dir_fd=at)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise CallError(error.errno or 0, "rmdir", (name,)) from None
            time.sleep(pause)  # killed processes stay in their group until they are gone entirely
            pause = min(pause * 2, 0.05)
            continue
        return
