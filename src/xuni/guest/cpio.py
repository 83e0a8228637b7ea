"""A cpio archive in the "new" format, the one that Linux unpacks as an initramfs.

Spec: Linux Documentation/driver-api/early-userspace/buffer-format.rst. Archives may follow each other in one initrd,
and a later file replaces an earlier one; that is how a command is handed to a guest.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field

MAX_SIZE = (1 << 32) - 1  # bytes: sizes are eight hexadecimal digits
TRAILER = "TRAILER!!!"


@dataclass(slots=True)
class Archive:
    """Entries owned by root, with no time stamp, in the order given: the same calls give the same bytes."""

    _parts: list[bytes] = field(default_factory=list)
    _entries: int = 0

    def folder(self, path: str, mode: int = 0o755) -> None:
        self._add(path, stat.S_IFDIR | mode)

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        self._add(path, stat.S_IFREG | mode, content)

    def link(self, path: str, target: str) -> None:
        """A symbolic link."""
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """A character device."""
        self._add(path, stat.S_IFCHR | mode, device=(major, minor))

    def to_bytes(self) -> bytes:
        """The whole archive, padded so that another can follow."""
        ended = Archive(list(self._parts), self._entries)
        ended._add(TRAILER, 0)
        return b"".join(ended._parts)

    def _add(self, path: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        if len(content) > MAX_SIZE:
            raise ValueError(f"{path}: {len(content)} bytes do not fit into a cpio archive")
        name = path.strip("/").encode() + b"\0"
        self._entries += 1
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (self._entries, mode, 0, 0, links, 0, len(content), 0, 0, *device, len(name), 0)
        header = b"070701" + b"".join(b"%08X" % value for value in fields)
        for part in (header + name, content):
            self._parts += part, bytes(-len(part) % 4)
