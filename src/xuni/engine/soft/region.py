"""Host memory that compiled code works on."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Mapping
from typing import Final

MAP_NORESERVE: Final = 0x4000
ALIGNMENT: Final = 64  # a cache line


class Region:
    """Zeroed host memory."""

    def __init__(self, size: int, executable: bool = False) -> None:
        prot = mmap.PROT_READ | mmap.PROT_WRITE | (mmap.PROT_EXEC if executable else 0)
        self.map = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE, prot)
        # SAFETY: `map` is never closed or resized while this object lives, and the owner keeps it as long as addresses
        # into it are known to compiled code.
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))

    def put(self, offset: int, data: bytes) -> int:
        """Copy bytes in; the host address of where they went."""
        self.map[offset : offset + len(data)] = data
        return self.address + offset


class Parts(Region):
    """A region of named parts, each on a cache line of its own."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.offset: dict[str, int] = {}
        at = 0
        for name, size in sizes.items():
            self.offset[name] = at
            at += -(-size // ALIGNMENT) * ALIGNMENT
        super().__init__(at)

    def address_of(self, name: str) -> int:
        """Host address of a part."""
        return self.address + self.offset[name]

    def put_part(self, name: str, data: bytes) -> None:
        """Copy bytes to the start of a part."""
        self.put(self.offset[name], data)
