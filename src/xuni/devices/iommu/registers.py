"""The register block: little-endian bytes, each bit read-only, writable, or cleared by writing 1.

Spec: VT-d 3.1, section 11.4.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

SIZE: Final = 0x1000
"""Bytes of address space; registers that are not listed read 0."""
PAGE: Final = 0x000F_FFFF_FFFF_F000
"""Address bits of registers and table entries that point to a page."""


class Reg(IntEnum):
    """Offsets. The last two lie where CAP and ECAP say."""

    VER, CAP, ECAP = 0x00, 0x08, 0x10
    GCMD, GSTS, RTADDR, CCMD = 0x18, 0x1C, 0x20, 0x28
    FSTS, FECTL, FEDATA, FEADDR, FEUADDR = 0x34, 0x38, 0x3C, 0x40, 0x44
    IQH, IQT, IQA = 0x80, 0x88, 0x90
    ICS, IECTL, IEDATA, IEADDR, IEUADDR = 0x9C, 0xA0, 0xA4, 0xA8, 0xAC
    IRTA = 0xB8
    IVA, IOTLB = 0xF0, 0xF8
    FRCD = 0x220


class RegisterFile:
    """The bytes, and what the guest may do to them."""

    def __init__(self, capabilities: int, extended: int) -> None:
        self._data = bytearray(SIZE)
        self._writable = bytearray(SIZE)
        self._clearable = bytearray(SIZE)
        event_mask = 1 << 31
        self.put(Reg.VER, 4, 0x10)
        self.put(Reg.CAP, 8, capabilities)
        self.put(Reg.ECAP, 8, extended)
        self._define(Reg.GCMD, 4, writable=0xFFFF_FFFF)
        self._define(Reg.RTADDR, 8, writable=PAGE)
        self._define(Reg.CCMD, 8, writable=0xE000_0003_FFFF_FFFF)
        self._define(Reg.FSTS, 4, clearable=0x71)
        self._define(Reg.IQT, 8, writable=0x7_FFF0)
        self._define(Reg.IQA, 8, writable=PAGE | 7)
        self._define(Reg.ICS, 4, clearable=1)
        for control in (Reg.FECTL, Reg.IECTL):
            self._define(control, 4, value=event_mask, writable=event_mask)
            self._define(control + 4, 4, writable=0xFFFF)
            self._define(control + 8, 8, writable=0xFFFF_FFFF_FFFF_FFFC)
        self._define(Reg.IRTA, 8, writable=PAGE | 0xF)
        self._define(Reg.IOTLB, 8, writable=0xB003_FFFF_0000_0000)
        self._define(Reg.FRCD + 8, 8, clearable=1 << 63)

    def get(self, offset: int, size: int) -> int:
        """The value of `size` bytes."""
        return int.from_bytes(self._data[offset : offset + size], "little")

    def put(self, offset: int, size: int, value: int) -> None:
        """The unit itself sets a register."""
        self._data[offset : offset + size] = value.to_bytes(size, "little")

    def guest_write(self, offset: int, size: int, value: int) -> None:
        """A store by the guest, within the block."""
        for at, byte in enumerate(value.to_bytes(size, "little"), offset):
            writable = self._writable[at]
            self._data[at] = (self._data[at] & ~writable | byte & writable) & ~(byte & self._clearable[at])

    def _define(self, offset: int, size: int, value: int = 0, writable: int = 0, clearable: int = 0) -> None:
        self.put(offset, size, value)
        self._writable[offset : offset + size] = writable.to_bytes(size, "little")
        self._clearable[offset : offset + size] = clearable.to_bytes(size, "little")
