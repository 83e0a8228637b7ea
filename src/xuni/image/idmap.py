"""Layers that look as if others owned them: mounts with an id map, which overlayfs takes from Linux 5.19 on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from xuni.host.linux import kernel as k

COUNT: Final = 1 << 16  # ids


@contextlib.contextmanager
def mapped(layers: tuple[Path, ...], place: Path, owner: int) -> Iterator[tuple[Path, ...]]:
    """The layers with the ids 0 … 65,535 shown as those from `owner` on, as long as it takes to mount them into something that
    keeps them; themselves if `owner` is 0. Raises CallError."""
    if not owner:
        yield layers
        return
    kernel = k.Linux()
    shown: list[Path] = []
    userns = _user_namespace(kernel, owner)
    try:
        for number, layer in enumerate(layers):
            target = place / f"layer{number}"
            target.mkdir(exist_ok=True)
            tree = kernel.open_tree(k.AT_FDCWD, str(layer))
            try:
                kernel.mount_setattr(tree, set=k.MOUNT_ATTR_IDMAP, userns=userns)
                at = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    kernel.move_mount(tree, at)
                finally:
                    os.close(at)
            finally:
                os.close(tree)
            shown.append(target)
        yield tuple(shown)
    finally:
        os.close(userns)
        for each in shown:
            kernel.umount(str(each))
        for each in place.glob("layer*"):
            each.rmdir()


def _user_namespace(kernel: k.Linux, owner: int) -> int:
    """A descriptor of a user namespace with that map, made by a child that lives only for it."""
    hold = os.pipe()
    pid, pidfd = kernel.clone3(k.CLONE_NEWUSER)
    if pid == 0:
        os.close(hold[1])
        os.read(hold[0], 1)
        os._exit(0)
    try:
        for file in ("uid_map", "gid_map"):
            kernel.write_file(f"/proc/{pid}/{file}", f"0 {owner} {COUNT}\n")
        return kernel.open(f"/proc/{pid}/ns/user", os.O_RDONLY)
    finally:
        os.close(hold[0])
        os.close(hold[1])
        os.close(pidfd)
        os.waitpid(pid, 0)


def in_user_namespace() -> bool:
    """Whether ids here are not the host's."""
    with open("/proc/self/uid_map") as file:
        return file.read().split() != ["0", "0", "4294967295"]
