"""Guest-physical memory: RAM and ROM as anonymous host mappings, laid out as on a PC.

RAM lies below 3 GiB as far as it goes; what is left begins at 4 GiB. The gap between belongs to devices::

    0 ........................ min(size, LOW_RAM_LIMIT)     RAM
    LOW_RAM_LIMIT ............ HIGH_RAM_BASE                devices (LAPIC, IOAPIC, PCI windows)
    HIGH_RAM_BASE ............ HIGH_RAM_BASE + the rest     RAM

The first MiB is RAM throughout. `add_rom` shadows RAM and `add_hole` takes it away, where a board wants that.
An engine reads `slots` for its own address translation, and registers in `on_write` and `on_remap` to learn what
changed behind its back.
"""

from __future__ import annotations

import ctypes
import mmap
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from struct import Struct
from types import TracebackType
from typing import Final, Self

LOW_RAM_LIMIT: Final = 0xC000_0000
"""Where RAM below 4 GiB ends at the latest."""
HIGH_RAM_BASE: Final = 0x1_0000_0000
"""Where RAM goes on that does not fit below `LOW_RAM_LIMIT`."""
PAGE_SIZE: Final = 4096
ADDRESS_LIMIT: Final = 1 << 52
"""Architectural end of physical addresses (SDM vol. 3A, section 4.1.4: MAXPHYADDR is at most 52)."""

MAP_NORESERVE: Final = 0x4000
"""<asm-generic/mman-common.h>; Python's `mmap` names it from 3.13 on only."""
FILL_CHUNK: Final = 1 << 20

_U16, _U32, _U64 = Struct("<H"), Struct("<I"), Struct("<Q")


class GuestAddressError(Exception):
    """A range of guest-physical addresses that memory does not back, or not in the way that was asked for."""

    def __init__(self, address: int, length: int, reason: str) -> None:
        super().__init__(f"guest-physical {address:#x}+{length:#x}: {reason}")
        self.address = address
        self.length = length
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Slot:
    """One run of guest-physical addresses that is also one run of host memory. All values are in bytes."""

    start: int
    size: int
    host_address: int
    """Where the run begins in this process."""
    writable: bool
    """False: the guest may read and execute, and its writes go nowhere."""

    @property
    def end(self) -> int:
        """First address behind the slot."""
        return self.start + self.size


@dataclass(frozen=True, slots=True)
class _Extent:
    """A slot together with the mapping behind it and the slot's place in that mapping."""

    slot: Slot
    mapping: mmap.mmap
    offset: int

    def part(self, start: int, end: int) -> _Extent:
        skipped = start - self.slot.start
        slot = Slot(start, end - start, self.slot.host_address + skipped, self.slot.writable)
        return _Extent(slot, self.mapping, self.offset + skipped)


class GuestMemory:
    """The guest's physical memory, for the host and for devices; the guest's own accesses go through its engine.

    `size` is the amount of RAM in bytes, a multiple of 4096. Host memory is taken when it is first touched. Raises
    ValueError for a size that no PC could have and OSError when the host refuses the address space.
    """

    def __init__(self, size: int, *, huge_pages: bool = False) -> None:
        if size <= 0 or size % PAGE_SIZE or size > ADDRESS_LIMIT // 2:
            raise ValueError(f"RAM size {size:#x}: must be a positive multiple of {PAGE_SIZE} bytes, below 2^51")
        self.size = size
        self.on_write: list[Callable[[int, int], None]] = []
        """Called with (address, length) after each write through this object, never for the guest's own writes."""
        self.on_remap: list[Callable[[], None]] = []
        """Called after `slots` has changed."""
        self._huge_pages = huge_pages
        self._mappings: list[mmap.mmap] = []
        self._extents: list[_Extent] = []
        self._starts: list[int] = []
        self._closed = False
        low = min(size, LOW_RAM_LIMIT)
        try:
            self._insert(self._map(0, low, writable=True))
            if size > low:
                self._insert(self._map(HIGH_RAM_BASE, size - low, writable=True))
        except OSError:
            self.close()
            raise

    # -- the map -----------------------------------------------------------------------------------------------------

    @property
    def slots(self) -> tuple[Slot, ...]:
        """What backs guest-physical addresses, in ascending order, without overlap."""
        return tuple(extent.slot for extent in self._extents)

    @property
    def ram(self) -> tuple[tuple[int, int], ...]:
        """The (start, end) ranges that the guest can write, neighbours merged: what a memory map calls usable."""
        ranges: list[tuple[int, int]] = []
        for extent in self._extents:
            if not extent.slot.writable:
                continue
            if ranges and ranges[-1][1] == extent.slot.start:
                ranges[-1] = (ranges[-1][0], extent.slot.end)
            else:
                ranges.append((extent.slot.start, extent.slot.end))
        return tuple(ranges)

    def add_ram(self, address: int, size: int) -> None:
        """Back `size` more bytes at `address` with zeros. Both are multiples of 4096; nothing may be there yet."""
        self._check_range(address, size)
        if any(e.slot.start < address + size and address < e.slot.end for e in self._extents):
            raise GuestAddressError(address, size, "overlaps memory that is already there")
        self._insert(self._map(address, size, writable=True))
        self._remapped()

    def add_rom(self, address: int, data: bytes) -> None:
        """Show `data` at `address` (a multiple of 4096), read-only to the guest; RAM there disappears behind it.

        The last page is filled up with zeros.
        """
        size = -(-len(data) // PAGE_SIZE) * PAGE_SIZE
        self._check_range(address, size)
        extent = self._map(address, size, writable=False)
        extent.mapping[: len(data)] = data
        self._carve(address, address + size)
        self._insert(extent)
        self._remapped()

    def add_hole(self, address: int, size: int) -> None:
        """Take memory away, so that accesses reach the bus: a device claims these addresses."""
        self._check_range(address, size)
        self._carve(address, address + size)
        self._remapped()

    # -- bytes -------------------------------------------------------------------------------------------------------

    def read(self, address: int, length: int) -> bytes:
        """Return `length` bytes. Raises GuestAddressError if memory does not back all of them."""
        extent = self._find(address, length)
        if address + length <= extent.slot.end:
            at = extent.offset + address - extent.slot.start
            return extent.mapping[at : at + length]
        return b"".join(part.mapping[at : at + count] for part, at, count in self._parts(address, length))

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Store `data`. Raises GuestAddressError if RAM does not back all of it, and then stores nothing."""
        length = len(data)
        extent = self._find(address, length)
        if address + length <= extent.slot.end and extent.slot.writable:
            at = extent.offset + address - extent.slot.start
            extent.mapping[at : at + length] = data
        else:
            done = 0
            for part, at, count in self._writable_parts(address, length):
                part.mapping[at : at + count] = data[done : done + count]
                done += count
        self._written(address, length)

    def fill(self, address: int, length: int, value: int = 0) -> None:
        """Store `length` bytes of `value`, without building them all in host memory first."""
        chunk = bytes([value]) * min(length, FILL_CHUNK)
        for part, at, count in self._writable_parts(address, length):
            for offset in range(0, count, FILL_CHUNK):
                piece = min(FILL_CHUNK, count - offset)
                part.mapping[at + offset : at + offset + piece] = chunk[:piece]
        self._written(address, length)

    def contains(self, address: int, length: int = 1) -> bool:
        """Whether memory, RAM or ROM, backs all of the range."""
        try:
            self._parts(address, length)
        except GuestAddressError:
            return False
        return True

    @contextmanager
    def view(self, address: int, length: int, *, writable: bool = False) -> Iterator[memoryview]:
        """Lend the bytes themselves, without a copy, until the `with` block ends.

        The range must lie in one slot. A writable view reports itself to `on_write` at the end of the block. While a
        view (or a slice of one that was kept) is alive, `close` refuses to unmap the memory.
        """
        extent = self._find(address, length)
        if address + length > extent.slot.end:
            raise GuestAddressError(address, length, "a view must lie in one memory slot")
        if writable and not extent.slot.writable:
            raise GuestAddressError(address, length, "read-only memory")
        at = extent.offset + address - extent.slot.start
        with memoryview(extent.mapping) as whole:
            lent = whole[at : at + length] if writable else whole[at : at + length].toreadonly()
            try:
                yield lent
            finally:
                lent.release()
        if writable:
            self._written(address, length)

    # -- integers, little-endian -------------------------------------------------------------------------------------

    def read_u8(self, address: int) -> int:
        """Load one byte."""
        return self.read(address, 1)[0]

    def read_u16(self, address: int) -> int:
        """Load two bytes, little-endian."""
        return int.from_bytes(self.read(address, 2), "little")

    def read_u32(self, address: int) -> int:
        """Load four bytes, little-endian."""
        return int.from_bytes(self.read(address, 4), "little")

    def read_u64(self, address: int) -> int:
        """Load eight bytes, little-endian."""
        return int.from_bytes(self.read(address, 8), "little")

    def write_u8(self, address: int, value: int) -> None:
        """Store one byte; higher bits of `value` are dropped, here and in the wider stores."""
        self.write(address, bytes((value & 0xFF,)))

    def write_u16(self, address: int, value: int) -> None:
        """Store two bytes, little-endian."""
        self.write(address, _U16.pack(value & 0xFFFF))

    def write_u32(self, address: int, value: int) -> None:
        """Store four bytes, little-endian."""
        self.write(address, _U32.pack(value & 0xFFFF_FFFF))

    def write_u64(self, address: int, value: int) -> None:
        """Store eight bytes, little-endian."""
        self.write(address, _U64.pack(value & 0xFFFF_FFFF_FFFF_FFFF))

    # -- life --------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Unmap everything. Raises BufferError, and unmaps nothing, while a view is alive. No-op when repeated."""
        if self._closed:
            return
        for index, mapping in enumerate(self._mappings):
            try:
                mapping.close()
            except BufferError:
                self._mappings = self._mappings[index:]
                raise BufferError("guest memory is still in use: a view of it is alive") from None
        self._mappings.clear()
        self._extents.clear()
        self._starts.clear()
        self._closed = True
        self._remapped()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -- inside ------------------------------------------------------------------------------------------------------

    def _map(self, address: int, size: int, *, writable: bool) -> _Extent:
        try:
            mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
        except (OSError, OverflowError) as error:
            number = getattr(error, "errno", None) or 12  # ENOMEM
            raise OSError(number, f"the host refuses {size >> 20} MiB of address space for the guest") from error
        if self._huge_pages:
            mapping.madvise(mmap.MADV_HUGEPAGE)
        self._mappings.append(mapping)
        # SAFETY: the address is valid until `close` unmaps it. Whoever keeps it from `slots` (an engine, KVM) must be
        # stopped by then; the owner of the machine, who calls `close`, sees to that. The ctypes object itself goes at
        # once, since it would count as a view and forbid `close`.
        host_address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        return _Extent(Slot(address, size, host_address, writable), mapping, 0)

    def _check_range(self, address: int, size: int) -> None:
        if address % PAGE_SIZE or size % PAGE_SIZE:
            raise GuestAddressError(address, size, f"not a multiple of the page size, {PAGE_SIZE}")
        if size <= 0 or address < 0 or address + size > ADDRESS_LIMIT:
            raise GuestAddressError(address, size, "empty, or beyond the 52 bits of a physical address")

    def _insert(self, extent: _Extent) -> None:
        self._extents.append(extent)
        self._index()

    def _index(self) -> None:
        self._extents.sort(key=lambda extent: extent.slot.start)
        self._starts = [extent.slot.start for extent in self._extents]

    def _carve(self, start: int, end: int) -> None:
        """Remove [start, end) from the extents, cutting those that it touches. The mappings stay until `close`."""
        kept: list[_Extent] = []
        for extent in self._extents:
            slot = extent.slot
            if slot.end <= start or end <= slot.start:
                kept.append(extent)
                continue
            if slot.start < start:
                kept.append(extent.part(slot.start, start))
            if end < slot.end:
                kept.append(extent.part(end, slot.end))
        self._extents = kept
        self._index()

    def _find(self, address: int, length: int) -> _Extent:
        """The extent in which the range begins."""
        index = bisect_right(self._starts, address) - 1
        if length < 0 or index < 0 or address >= self._extents[index].slot.end:
            raise GuestAddressError(address, length, "no memory at this address" if length >= 0 else "negative length")
        return self._extents[index]

    def _parts(self, address: int, length: int) -> list[tuple[_Extent, int, int]]:
        """The range cut at slot boundaries, as (extent, offset in its mapping, count)."""
        parts: list[tuple[_Extent, int, int]] = []
        end = address + length
        at = address
        while at < end:
            index = bisect_right(self._starts, at) - 1
            if index < 0 or at >= self._extents[index].slot.end:
                raise GuestAddressError(address, length, f"no memory at {at:#x}")
            extent = self._extents[index]
            count = min(end, extent.slot.end) - at
            parts.append((extent, extent.offset + at - extent.slot.start, count))
            at += count
        return parts

    def _writable_parts(self, address: int, length: int) -> list[tuple[_Extent, int, int]]:
        parts = self._parts(address, length)
        if not all(part.slot.writable for part, _, _ in parts):
            raise GuestAddressError(address, length, "read-only memory")
        return parts

    def _written(self, address: int, length: int) -> None:
        for callback in self.on_write:
            callback(address, length)

    def _remapped(self) -> None:
        for notify in self.on_remap:
            notify()
