"""File systems by mount(2): fsconfig(2) takes values of at most 255 bytes, and engines give overlay longer lists of layers."""

from __future__ import annotations

from xuni.container.rooted import make_in_root, open_in_root
from xuni.container.step import Run
from xuni.host.linux import system as os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

LONGEST: Final = 255  # bytes of a value (fs/fsopen.c)


def too_long(data: tuple[tuple[str, str | None], ...]) -> bool:
    return any(value is not None and len(value.encode()) > LONGEST for _, value in data)


def tree(run: Run, kind: str, source: str, target: str, data: tuple[tuple[str, str | None], ...]) -> int:
    """The file system as a detached tree. It is mounted where it will be, taken from there, and can get its attributes then."""
    kernel = run.kernel
    place = make_in_root(kernel, run.root, target, directory=True)
    try:
        text = ",".join([key if value is None else f"{key}={value}" for key, value in data])
        kernel.mount(source or kind, f"/proc/self/fd/{place}", kind, 0, text)
    finally:
        os.close(place)
    mounted = open_in_root(kernel, run.root, target)
    try:
        made = kernel.open_tree(mounted, "")
        kernel.umount(f"/proc/self/fd/{mounted}")
    finally:
        os.close(mounted)
    return made
