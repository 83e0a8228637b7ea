"""The E820 memory map: which guest-physical addresses are RAM (ACPI 6.5, section 15)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct

from xuni.boot.layout import EBDA, HIGH_MEMORY
from xuni.memory.guest import GuestMemory


class Kind(IntEnum):
    """Address range types (ACPI 6.5, table 15.2)."""

    RAM, RESERVED, ACPI, NVS, UNUSABLE = 1, 2, 3, 4, 5


ENTRY = Struct("<QQI")
"""Base, length, type: an entry of Linux's boot_params and of INT 15h, AX=E820h."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Guest-physical [start, start + size) in bytes."""

    start: int
    size: int
    kind: Kind

    def pack(self) -> bytes:
        """The 20 bytes of `ENTRY`."""
        return ENTRY.pack(self.start, self.size, self.kind)


def memory_map(memory: GuestMemory) -> tuple[Entry, ...]:
    """Describe the RAM of `memory`, with the firmware area 0x9FC00-0xFFFFF reserved as on every PC."""
    entries = [Entry(EBDA, HIGH_MEMORY - EBDA, Kind.RESERVED)]
    for low, high in memory.ram:
        for start, end in ((low, min(high, EBDA)), (max(low, HIGH_MEMORY), high)):
            if start < end:
                entries.append(Entry(start, end - start, Kind.RAM))
    for slot in memory.slots:
        start = max(slot.start, HIGH_MEMORY)
        if not slot.writable and start < slot.end:
            entries.append(Entry(start, slot.end - start, Kind.RESERVED))
    return tuple(sorted(entries, key=lambda entry: entry.start))
