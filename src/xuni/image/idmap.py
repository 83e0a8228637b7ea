"""Layers that look as if others owned them: mounts with an id map, which overlayfs takes from Linux 5.19 on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from xuni.host.linux import kernel as k
from xuni.host.linux import userns

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
    maps = f"0 {owner} {COUNT}\n"
    namespace = userns.holding(kernel, maps, maps)
    try:
        for number, layer in enumerate(layers):
            target = place / f"layer{number}"
            target.mkdir(exist_ok=True)
            tree = kernel.open_tree(k.AT_FDCWD, str(layer))
            try:
                kernel.mount_setattr(tree, set=k.MOUNT_ATTR_IDMAP, userns=namespace)
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
        os.close(namespace)
        for each in shown:
            kernel.umount(str(each))
        for each in place.glob("layer*"):
            each.rmdir()
