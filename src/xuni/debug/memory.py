"""Guest memory as a debugger sees it: linear addresses of one processor, through its page tables, or physical ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from xuni.memory.guest import PAGE_SIZE, GuestAddressError

if TYPE_CHECKING:
    from xuni.exits import Vcpu
    from xuni.memory.guest import GuestMemory

ADDRESS_MASK: Final = (1 << 64) - 1


class NotMapped(Exception):
    """No page, or no memory behind it: `address` is the first that cannot be reached."""

    def __init__(self, address: int) -> None:
        super().__init__(f"Cannot access memory at address {address:#x}")
        self.address = address


class AddressSpace:
    """Bytes behind addresses that `translate` leads to guest-physical memory. While the processors stand still.

    Devices are left alone: reading one may change it.
    """

    def __init__(self, memory: GuestMemory, translate: Callable[[int], int | None]) -> None:
        self._memory = memory
        self._translate = translate

    def read(self, address: int, length: int) -> bytes:
        """As many of `length` bytes as can be read. Raises NotMapped if there are none."""
        data = bytearray()
        try:
            for physical, count in self._pieces(address, length):
                data += self._memory.read(physical, count)
        except (NotMapped, GuestAddressError):
            if not data:
                raise NotMapped(address) from None
        return bytes(data)

    def read_all(self, address: int, length: int) -> bytes:
        """All of `length` bytes. Raises NotMapped with the first that cannot be read."""
        data = self.read(address, length)
        if len(data) < length:
            raise NotMapped(address + len(data) & ADDRESS_MASK)
        return data

    def write(self, address: int, data: bytes) -> None:
        """Store all of `data`, or nothing. Raises NotMapped if some of it has no place, or a read-only one."""
        pieces = list(self._pieces(address, len(data)))
        for physical, count in pieces:
            if not any(start <= physical and physical + count <= end for start, end in self._memory.ram):
                raise NotMapped(address)
        at = 0
        for physical, count in pieces:
            self._memory.write(physical, data[at : at + count])
            at += count

    def _pieces(self, address: int, length: int) -> Iterator[tuple[int, int]]:
        """The guest-physical ranges behind a range, page by page; addresses wrap at 2^64."""
        end = address + length
        while address < end:
            physical = self._translate(address & ADDRESS_MASK)
            if physical is None:
                raise NotMapped(address & ADDRESS_MASK)
            count = min(PAGE_SIZE - address % PAGE_SIZE, end - address)
            yield physical, count
            address += count


def linear(memory: GuestMemory, vcpu: Vcpu) -> AddressSpace:
    """What a processor's linear addresses lead to."""
    return AddressSpace(memory, vcpu.translate)


def physical(memory: GuestMemory) -> AddressSpace:
    """Guest-physical addresses as they are."""
    return AddressSpace(memory, lambda address: address)
