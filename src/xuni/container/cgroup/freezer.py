"""Stopping all processes of a group at once, and signals that no fork can escape."""

from __future__ import annotations

import errno
import os
import time

from xuni.container.cgroup.files import exists, flat, read, write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from xuni.container.cgroup import Group

KILL: Final = 9
ROUNDS: Final = 1000  # of signals to a group without a freezer


def freeze_v1(directory: str, patience: float) -> None:
    """FREEZING until every task has stopped; tasks that keep appearing can hold it there, so write it again, and thaw
    now and then to let the kernel come along (freezer-subsystem.rst). Raises OSError ETIMEDOUT, thawed."""
    deadline = time.monotonic() + patience
    tries = 0
    try:
        while True:
            write(directory, "freezer.state", "FROZEN")
            if read(directory, "freezer.state") == "FROZEN":
                return
            if time.monotonic() > deadline:
                raise OSError(errno.ETIMEDOUT, f"not all processes have stopped within {patience:g} s", directory)
            tries += 1
            if tries % 50 == 0:
                write(directory, "freezer.state", "THAWED")
                time.sleep(0.01)
            elif tries > 5:
                time.sleep(0.001)
    except OSError:
        write(directory, "freezer.state", "THAWED")
        raise


def freeze_v2(directory: str, patience: float) -> None:
    """Raises OSError ETIMEDOUT, thawed."""
    deadline = time.monotonic() + patience
    pause = 0.0001
    write(directory, "cgroup.freeze", "1")
    try:
        while not flat(read(directory, "cgroup.events")).get("frozen"):
            if time.monotonic() > deadline:
                raise OSError(errno.ETIMEDOUT, f"not all processes have stopped within {patience:g} s", directory)
            time.sleep(pause)
            pause = min(pause * 2, 0.01)
    except OSError:
        write(directory, "cgroup.freeze", "0")
        raise


def kill(group: Group, unified: str, signal: int) -> None:
    """To every process in it and below: SIGKILL by cgroup.kill where there is one; else while they are frozen."""
    if signal == KILL and unified and exists(unified, "cgroup.kill"):
        try:
            write(unified, "cgroup.kill", "1")
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):  # gone; going; threaded
                raise
    was_frozen = group.frozen()
    if not was_frozen:
        try:
            group.freeze()
        except (OSError, ValueError):
            _chase(group, signal)  # no freezer, or something in there does not stop
            return
    try:
        for pid in group.processes():
            _send(pid, signal)
    finally:
        try:
            if not was_frozen or signal == KILL:  # on v1 a frozen process does not even die
                group.thaw()
            if signal == KILL and "freezer" in group.paths:
                _thaw_below(group.paths["freezer"])
        except OSError as error:  # whoever attends the container may have removed its groups by now
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise


def _thaw_below(directory: str) -> None:
    """Groups that a container has made and frozen by itself."""
    from xuni.container.cgroup.tree import walk

    for here in walk(directory):
        if here != directory:
            try:
                write(here, "freezer.state", "THAWED")
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENODEV):
                    raise


def _chase(group: Group, signal: int) -> None:
    """Without a freezer: signal whoever is new until nobody is; against SIGKILL forks lose this race."""
    told: set[int] = set()
    for _ in range(ROUNDS):
        new = [pid for pid in group.processes() if signal == KILL or pid not in told]
        if not new:
            return
        for pid in new:
            _send(pid, signal)
        told.update(new)
        if signal == KILL:
            time.sleep(0.001)


def _send(pid: int, signal: int) -> None:
    try:
        os.kill(pid, signal)
    except ProcessLookupError:
        pass
