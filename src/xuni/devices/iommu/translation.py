"""DMA remapping: root table, context table, second-level paging.

Spec: VT-d 3.1, sections 3.4 (legacy mode address translation), 3.7 (second-level translation), 9.1, 9.3, 9.8.
"""

from __future__ import annotations

from typing import Final

from xuni.devices.iommu.faults import Fault, Reason
from xuni.devices.iommu.registers import PAGE
from xuni.devices.pci.dma import DmaMemory
from xuni.memory.guest import GuestAddressError

PRESENT, FAULT_DISABLE = 1 << 0, 1 << 1
MULTI_LEVEL, PASS_THROUGH = 0, 2  # context entry, translation type
READ, WRITE, LARGE = 1 << 0, 1 << 1, 1 << 7  # second-level paging entry
SNOOP: Final = 1 << 11
"""Reserved in paging entries, since ECAP.SC is 0."""
BEYOND_PHYSICAL: Final = 0xFFF << 52
ROOT_RESERVED: Final = ~(PAGE | PRESENT)
CONTEXT_RESERVED: Final = 0xFF0 | BEYOND_PHYSICAL
CONTEXT_RESERVED_UPPER: Final = ~0xFF_FF7F


def translate(memory: DmaMemory, root_table: int, source: int, address: int, *, write: bool, widths: tuple[int, ...]) -> int:
    """The guest-physical address of a requester's bus address. `Fault` blocks the request.

    `widths` are the address widths in bits that CAP offers.
    """
    page = address & ~0xFFF
    root, root_upper = _entry(memory, root_table + 16 * (source >> 8), Reason.ROOT_UNREACHABLE, page)
    if not root & PRESENT:
        raise Fault(Reason.ROOT_NOT_PRESENT, page)
    if root & ROOT_RESERVED or root_upper:
        raise Fault(Reason.ROOT_RESERVED, page)
    context, upper = _entry(memory, (root & PAGE) + 16 * (source & 0xFF), Reason.CONTEXT_UNREACHABLE, page)
    silent = bool(context & FAULT_DISABLE)
    if not context & PRESENT:
        raise Fault(Reason.CONTEXT_NOT_PRESENT, page, silent)
    if context & CONTEXT_RESERVED or upper & CONTEXT_RESERVED_UPPER:
        raise Fault(Reason.CONTEXT_RESERVED, page, silent)
    kind, width = context >> 2 & 3, 30 + 9 * (upper & 7)
    if kind not in (MULTI_LEVEL, PASS_THROUGH) or width not in widths:
        raise Fault(Reason.CONTEXT_INVALID, page, silent)
    if address >> width:
        raise Fault(Reason.ADDRESS_BEYOND_WIDTH, page, silent)
    if kind == PASS_THROUGH:
        return address
    return _walk(memory, context & PAGE, (width - 12) // 9, address, write=write, silent=silent)


def _walk(memory: DmaMemory, table: int, level: int, address: int, *, write: bool, silent: bool) -> int:
    """Through `level` tables; an access needs its permission in each entry."""
    needed, denied = (WRITE, Reason.NO_WRITE_PERMISSION) if write else (READ, Reason.NO_READ_PERMISSION)
    page = address & ~0xFFF
    while True:
        shift = 12 + 9 * (level - 1)
        try:
            entry = int.from_bytes(memory.read(table + 8 * (address >> shift & 0x1FF), 8), "little")
        except GuestAddressError:
            raise Fault(Reason.TABLE_UNREACHABLE, page, silent) from None
        if not entry & needed:
            raise Fault(denied, page, silent)
        inside = (1 << shift) - 1
        leaf = level == 1 or (entry & LARGE and level <= 3)
        reserved = SNOOP if leaf else LARGE | SNOOP
        if leaf and level > 1:
            reserved |= inside & PAGE
        if entry & reserved:
            raise Fault(Reason.PAGING_RESERVED, page, silent)
        if leaf:
            return entry & PAGE | address & inside
        table, level = entry & PAGE, level - 1


def _entry(memory: DmaMemory, at: int, unreachable: Reason, page: int) -> tuple[int, int]:
    """The two quadwords of a root or context entry."""
    try:
        data = memory.read(at, 16)
    except GuestAddressError:
        raise Fault(unreachable, page) from None
    return int.from_bytes(data[:8], "little"), int.from_bytes(data[8:], "little")
