"""The firmware configuration device: items that a boot program reads by key, byte by byte or by DMA.

Spec: QEMU's "QEMU Firmware Configuration (fw_cfg) Device". Offsets: 0 selector (16 bits), 1 data (8 bits), 4 and 8 the
halves of the DMA address (big-endian).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from struct import Struct
from typing import Final, Protocol


class DmaMemory(Protocol):
    """The part of guest memory that DMA uses. An access outside memory raises `GuestAddressError`."""

    def read(self, address: int, length: int, /) -> bytes:
        """`length` bytes at a guest-physical address."""
        ...

    def write(self, address: int, data: bytes, /) -> None:
        """Store bytes at a guest-physical address."""
        ...


@dataclass(frozen=True, slots=True)
class FwCfgConfig:
    """The firmware configuration device."""

    base: int = 0x510
    """First of its twelve I/O ports."""
    dma: bool = True
    files: tuple[tuple[str, bytes], ...] = ()
    """What the user gives the guest: names (by custom they begin with opt/) and contents."""
    uuid: bytes = bytes(16)
    """The machine's, in network byte order."""


class Key(IntEnum):
    """Well-known items; files have keys from FILES on and are listed in FILE_DIR."""

    SIGNATURE = 0x00
    ID = 0x01
    UUID = 0x02
    RAM_SIZE = 0x03
    NOGRAPHIC = 0x04
    NB_CPUS = 0x05
    MACHINE_ID = 0x06
    KERNEL_ADDR = 0x07
    KERNEL_SIZE = 0x08
    KERNEL_CMDLINE = 0x09
    INITRD_ADDR = 0x0A
    INITRD_SIZE = 0x0B
    BOOT_DEVICE = 0x0C
    NUMA = 0x0D
    BOOT_MENU = 0x0E
    MAX_CPUS = 0x0F
    KERNEL_ENTRY = 0x10
    KERNEL_DATA = 0x11
    INITRD_DATA = 0x12
    CMDLINE_ADDR = 0x13
    CMDLINE_SIZE = 0x14
    CMDLINE_DATA = 0x15
    SETUP_ADDR = 0x16
    SETUP_SIZE = 0x17
    SETUP_DATA = 0x18
    FILE_DIR = 0x19
    FILES = 0x20
    E820_TABLE = 0x8003


class Dma(IntEnum):
    """DMA control word; the selected key is in bits 31:16."""

    ERROR, READ, SKIP, SELECT, WRITE = 1, 2, 4, 8, 16


SELECTOR, DATA, DMA_HIGH, DMA_LOW = 0, 1, 4, 8
PORTS: Final = 12
SIGNATURE: Final = b"QEMU"
DMA_SIGNATURE: Final = b"QEMU CFG"
TRADITIONAL, WITH_DMA = 1, 2  # bits of the ID item
MAX_FILES: Final = 0x1000
NAME_SIZE: Final = 56
CHUNK: Final = 1 << 16
FILE_ENTRY, FILE_COUNT, DMA_ACCESS = Struct(">IHH56s"), Struct(">I"), Struct(">IIQ")


@dataclass(slots=True)
class FwCfgState:
    """What the guest has selected, and the DMA address it is writing."""

    key: int = 0
    offset: int = 0
    dma_address: int = 0
    files: list[str] = field(default_factory=list)
    """File names in key order."""


class FwCfg:
    """Items by key. `unreachable` is the exception that `memory` raises for an address outside memory."""

    def __init__(
        self,
        memory: DmaMemory | None,
        unreachable: type[Exception] = ValueError,
        state: FwCfgState | None = None,
    ) -> None:
        self._memory = memory
        self._unreachable = unreachable
        self.state = state or FwCfgState()
        self.items: dict[int, bytes] = {
            Key.SIGNATURE: SIGNATURE,
            Key.ID: (TRADITIONAL | (WITH_DMA if memory is not None else 0)).to_bytes(4, "little"),
            Key.FILE_DIR: FILE_COUNT.pack(0),
        }

    def reset(self) -> None:
        """Nothing selected; the items stay."""
        self.state.key = self.state.offset = self.state.dma_address = 0

    def add(self, key: int, data: bytes) -> None:
        """Offer an item under a well-known key, replacing what it held."""
        self.items[key] = data

    def add_number(self, key: int, value: int, size: int = 4) -> None:
        """Offer a little-endian number of `size` bytes."""
        self.add(key, value.to_bytes(size, "little"))

    def add_file(self, name: str, data: bytes) -> int:
        """Offer a named file and return its key. A file of the same name is replaced.

        Raises ValueError if the name does not fit in 55 ASCII characters or the directory is full.
        """
        files = self.state.files
        if not name or not name.isascii() or len(name) >= NAME_SIZE:
            raise ValueError(f"fw_cfg file name {name!r}: 1 to {NAME_SIZE - 1} ASCII characters are allowed")
        if name not in files:
            if len(files) >= MAX_FILES:
                raise ValueError(f"fw_cfg holds at most {MAX_FILES} files")
            files.append(name)
        key = Key.FILES + files.index(name)
        self.items[key] = data
        entries = (
            FILE_ENTRY.pack(len(self.items[number]), number, 0, entry.encode("ascii"))
            for number, entry in enumerate(files, Key.FILES)
        )
        self.items[Key.FILE_DIR] = FILE_COUNT.pack(len(files)) + b"".join(entries)
        return key

    def read(self, offset: int, size: int) -> int:
        """The data port, one byte at a time; the DMA register's signature; the selector reads as 0."""
        if offset == DATA and size == 1:
            s = self.state
            item = self.items.get(s.key, b"")
            s.offset += 1
            return item[s.offset - 1] if s.offset <= len(item) else 0
        if DMA_HIGH <= offset and offset + size <= PORTS and self._memory is not None:
            return int.from_bytes(DMA_SIGNATURE[offset - DMA_HIGH :][:size], "little")
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """The selector (16 bits), or the halves of the DMA address (32 bits each, big-endian); the low one starts."""
        s = self.state
        if offset == SELECTOR and size == 2:
            self._select(value)
        elif self._memory is not None and size == 4:
            half = int.from_bytes(value.to_bytes(4, "little"), "big")
            if offset == DMA_HIGH:
                s.dma_address = half << 32
            elif offset == DMA_LOW:
                address, s.dma_address = s.dma_address | half, 0
                self._transfer(address, self._memory)

    def _select(self, key: int) -> None:
        self.state.key, self.state.offset = key & 0xBFFF, 0  # bit 14 once meant "write"

    def _transfer(self, address: int, memory: DmaMemory) -> None:
        """Carry out the access that the 16 bytes at `address` describe, then clear or fail its control word."""
        try:
            control, length, target = DMA_ACCESS.unpack(memory.read(address, DMA_ACCESS.size))
        except self._unreachable:
            return  # nowhere to put even an error
        s = self.state
        if control & Dma.SELECT:
            self._select(control >> 16)
        result = 0
        if control & Dma.READ:
            item = self.items.get(s.key, b"")
            try:
                if length:
                    memory.read((target + length - 1) % (1 << 64), 1)  # a length that leaves memory fails at once
                for start in range(0, length, CHUNK):
                    size = min(CHUNK, length - start)
                    memory.write(target + start, item[s.offset : s.offset + size].ljust(size, b"\0"))
                    s.offset += size
            except self._unreachable:
                result = int(Dma.ERROR)
        elif control & Dma.SKIP:
            s.offset += length
        elif control & Dma.WRITE:
            result = int(Dma.ERROR)  # no item is writable
        try:
            memory.write(address, result.to_bytes(4, "big"))
        except self._unreachable:
            return
