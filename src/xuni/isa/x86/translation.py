"""From a linear to a physical address as a debugger looks: no permissions, no faults, and nothing is marked accessed.

`paging.walk` is what the processor itself does; this is for those who look on from outside. SDM vol. 3, chapter 4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from xuni.isa.x86.paging import PAGE_SIZE, PRESENT
from xuni.isa.x86.state import Cr0, Cr4, Efer

FRAME: Final = 0x000F_FFFF_FFFF_F000


def translate(read: Callable[[int, int], bytes], cr0: int, cr3: int, cr4: int, efer: int, linear: int) -> int | None:
    """The guest-physical address, or None where no page is. `read(address, length)` reads guest-physical memory."""
    if not cr0 & Cr0.PG:
        return linear & 0xFFFF_FFFF
    if efer & Efer.LMA:
        levels = 5 if cr4 & Cr4.LA57 else 4
        if linear >> 12 + 9 * levels - 1 not in (0, (1 << 64 - (12 + 9 * levels - 1)) - 1):
            return None  # not canonical
        return _descend(read, cr3 & FRAME, linear, tuple(range(12 + 9 * (levels - 1), 11, -9)), 9, 8, large=(30, 21))
    linear &= 0xFFFF_FFFF
    if cr4 & Cr4.PAE:
        return _descend(read, cr3 & 0xFFFF_FFE0, linear, (30, 21, 12), 9, 8, large=(21,))
    return _descend(read, cr3 & 0xFFFF_F000, linear, (22, 12), 10, 4, large=(22,) if cr4 & Cr4.PSE else ())


def _descend(
    read: Callable[[int, int], bytes], table: int, linear: int, shifts: tuple[int, ...], bits: int, size: int,
    large: tuple[int, ...],
) -> int | None:
    for shift in shifts:
        index = linear >> shift & (1 << bits) - 1
        entry = int.from_bytes(read(table + index * size, size), "little")
        if not entry & PRESENT:
            return None
        if shift == 12 or shift in large and entry & PAGE_SIZE:
            offset = linear & (1 << shift) - 1
            frame = entry & FRAME
            if size == 4 and shift == 22:  # PSE-36: bits 20:13 hold address bits 39:32
                frame = entry & 0xFFC0_0000 | (entry >> 13 & 0xFF) << 32
            return frame & -(1 << shift) | offset
        table = entry & FRAME
    return None
