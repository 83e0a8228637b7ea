"""Mounts of containers without a mount namespace of their own: they are the host's, and someone has to take them down."""

from __future__ import annotations

from xuni.host.linux.kernel import Linux


def count_mounts(path: str) -> int:
    """How many mounts are stacked at `path`."""
    with open("/proc/self/mountinfo") as file:
        return sum(line.split()[4] == path for line in file)


def unmount_extra(kernel: Linux, path: str, wanted: int) -> None:
    """Take down what is mounted at `path` beyond `wanted`, with all below it."""
    for _ in range(count_mounts(path) - wanted):
        kernel.umount(path)
