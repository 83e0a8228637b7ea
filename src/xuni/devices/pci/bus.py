"""PCI configuration space behind ports 0xCF8 and 0xCFC, and what a function must offer to live there.

Spec: PCI Local Bus Specification 3.0, section 3.2.2.3.2 (configuration mechanism #1).

    0xCF8  31 enable | 23..16 bus | 15..11 device | 10..8 function | 7..2 register

Bits 1..0 read 0. Programs exist that write a byte offset there and then use 0xCFC alone, since emulators add it to the
register's; so does this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from xuni.bus.ports import ByteDevice

ENABLE: Final = 0x8000_0000
DATA: Final = 4
RESET_CONTROL: Final = 1
"""A byte access one port above the address register reaches the reset control register, 0xCF9."""


class PciFunction(Protocol):
    """One function's 256 bytes of configuration space; accesses never cross a 4-byte boundary."""

    def read_config(self, offset: int, size: int, /) -> int:
        """`size` bytes at `offset`."""
        ...

    def write_config(self, offset: int, size: int, value: int, /) -> None:
        """Store `size` bytes at `offset`."""
        ...


@dataclass(frozen=True, slots=True)
class PciConfig:
    """The PCI host."""

    base: int = 0xCF8
    """Address register; the data register is 4 above."""


class ConfigSpace:
    """A plain header: bytes with a mask of those that the guest may change."""

    def __init__(self, vendor: int, device: int, class_code: int, revision: int = 0, header_type: int = 0) -> None:
        self.data = bytearray(256)
        self.writable = bytearray(256)
        self._put(0x00, 2, vendor)
        self._put(0x02, 2, device)
        self._put(0x08, 1, revision)
        self._put(0x09, 3, class_code)
        self._put(0x0E, 1, header_type)
        self.writable[0x04:0x06] = b"\x07\x05"  # command: I/O, memory, bus master, parity response, SERR#
        self.writable[0x0C] = self.writable[0x3C] = 0xFF  # cache line size, interrupt line

    def read_config(self, offset: int, size: int) -> int:
        """`size` bytes at `offset`."""
        return int.from_bytes(self.data[offset : offset + size], "little")

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Change the writable bits among `size` bytes at `offset`."""
        for i in range(offset, offset + size):
            mask = self.writable[i]
            self.data[i] = self.data[i] & ~mask | value >> 8 * (i - offset) & mask

    def _put(self, offset: int, size: int, value: int) -> None:
        self.data[offset : offset + size] = value.to_bytes(size, "little")


def host_bridge() -> ConfigSpace:
    """An 82441FX host bridge, which lives at 00:00.0."""
    return ConfigSpace(vendor=0x8086, device=0x1237, class_code=0x060000, revision=2)


@dataclass(slots=True)
class PciBusState:
    """The address register."""

    address: int = 0


class PciBus:
    """Functions by (bus, device, function); an absent one reads all ones. This is offsets 0-7 of ports 0xCF8-0xCFF."""

    def __init__(self, reset_control: ByteDevice | None = None, state: PciBusState | None = None) -> None:
        self.functions: dict[tuple[int, int, int], PciFunction] = {}
        self.state = state or PciBusState()
        self._reset_control = reset_control

    def add(self, function: PciFunction, device: int, number: int = 0, bus: int = 0) -> None:
        """Plug a function in. Raises ValueError if the slot is taken or does not exist."""
        slot = (bus, device, number)
        if not (0 <= bus < 256 and 0 <= device < 32 and 0 <= number < 8):
            raise ValueError(f"no PCI slot {bus:02x}:{device:02x}.{number}")
        if slot in self.functions:
            raise ValueError(f"PCI slot {bus:02x}:{device:02x}.{number} is taken")
        self.functions[slot] = function

    def reset(self) -> None:
        """The address register; functions that have a reset are reset by the board."""
        self.state.address = 0

    def read(self, offset: int, size: int) -> int:
        """The address register (dword), the reset control register (byte), or configuration data."""
        if offset >= DATA:
            register, function = self._register(offset), self._selected()
            if function is None or register % 4 + size > 4:
                return 0xFFFF_FFFF
            return function.read_config(register, size)
        if offset == 0 and size == 4:
            return self.state.address & ~3
        if offset == RESET_CONTROL and size == 1 and self._reset_control is not None:
            return self._reset_control.read(0)
        return 0xFFFF_FFFF

    def write(self, offset: int, size: int, value: int) -> None:
        """The same registers."""
        if offset >= DATA:
            register, function = self._register(offset), self._selected()
            if function is not None and register % 4 + size <= 4:
                function.write_config(register, size, value)
        elif offset == 0 and size == 4:
            self.state.address = value & 0x80FF_FFFF
        elif offset == RESET_CONTROL and size == 1 and self._reset_control is not None:
            self._reset_control.write(0, value)

    def _register(self, offset: int) -> int:
        return self.state.address & 0xFF | offset - DATA

    def _selected(self) -> PciFunction | None:
        address = self.state.address
        if not address & ENABLE:
            return None
        return self.functions.get((address >> 16 & 0xFF, address >> 11 & 0x1F, address >> 8 & 7))
