"""Interrupt remapping: what a message in remappable format means.

Spec: VT-d 3.1, sections 5.1.2 (request formats), 5.1.3 (checks), 9.10 (interrupt remapping table entry).

    address  19..5 handle 14:0 | 4 format (1: remappable) | 3 subhandle valid | 2 handle 15
    entry    83..82 SVT | 81..80 SQ | 79..64 source | 47..40 destination | 23..16 vector | 15 posted | 7..5 delivery
             4 trigger | 3 redirection hint | 2 logical | 1 fault processing disable | 0 present
"""

from __future__ import annotations

from typing import Final

from xuni.bus.messages import Delivery, InterruptMessage
from xuni.devices.iommu.faults import Fault, Reason
from xuni.devices.pci.dma import DmaMemory
from xuni.memory.guest import GuestAddressError

REMAPPABLE, SUBHANDLE_VALID = 1 << 4, 1 << 3
PRESENT, FAULT_DISABLE, LOGICAL, REDIRECTION_HINT, LEVEL = (1 << bit for bit in range(5))
RESERVED: Final = 0xFFFF_00FF_FF00_F000  # destinations have 8 bits; entries are never posted
RESERVED_UPPER: Final = ~0xF_FFFF
VERIFY_SOURCE, VERIFY_BUS = 1, 2  # source validation type; 3 is reserved
QUALIFIERS: Final = (0xFFFF, 0xFFFB, 0xFFF9, 0xFFF8)
"""Which bits of the source count, by source qualifier."""


def remap(memory: DmaMemory, table: int, entries: int, address: int, data: int, source: int | None) -> InterruptMessage:
    """The interrupt of a message in remappable format. `Fault` blocks it.

    `source` is the requester; None, as from the IOAPIC, is not verified.
    """
    index = address >> 5 & 0x7FFF | (address & 0b100) << 13
    if address & SUBHANDLE_VALID:
        if data >> 16:
            raise Fault(Reason.REQUEST_RESERVED, index << 48)
        index += data
    information = (index & 0xFFFF) << 48
    if index >= entries:
        raise Fault(Reason.INDEX_BEYOND_TABLE, information)
    try:
        entry = memory.read(table + 16 * index, 16)
    except GuestAddressError:
        raise Fault(Reason.ENTRY_UNREACHABLE, information) from None
    low, upper = int.from_bytes(entry[:8], "little"), int.from_bytes(entry[8:], "little")
    silent = bool(low & FAULT_DISABLE)
    if not low & PRESENT:
        raise Fault(Reason.ENTRY_NOT_PRESENT, information, silent)
    if low & RESERVED or upper & RESERVED_UPPER or upper >> 18 & 3 > VERIFY_BUS:
        raise Fault(Reason.ENTRY_RESERVED, information, silent)
    if source is not None and not _accepted(upper, source):
        raise Fault(Reason.SOURCE_REJECTED, information, silent)
    delivery = Delivery(low >> 5 & 7)
    if low & REDIRECTION_HINT and delivery is Delivery.FIXED:
        delivery = Delivery.LOWEST_PRIORITY
    return InterruptMessage(low >> 16 & 0xFF, low >> 40 & 0xFF, bool(low & LOGICAL), delivery, bool(low & LEVEL))


def _accepted(upper: int, source: int) -> bool:
    match upper >> 18 & 3:
        case 1:
            return not (upper ^ source) & QUALIFIERS[upper >> 16 & 3]
        case 2:
            return upper >> 8 & 0xFF <= source >> 8 <= upper & 0xFF
        case _:
            return True
