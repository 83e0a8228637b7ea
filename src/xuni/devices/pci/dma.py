"""How PCI functions reach memory and interrupt controllers: both are memory requests that carry who asks.

Spec: PCI Local Bus Specification 3.0, section 6.8 (message-signalled interrupts are memory writes); the requester
identifier is the function's bus, device and function number, as in PCI Express.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

from xuni.bus.messages import MSI_BASE, MSI_END, InterruptSink, decode_msi
from xuni.memory.guest import GuestAddressError

PAGE_SIZE: Final = 4096


class DmaMemory(Protocol):
    """The part of guest memory that DMA uses. An access outside memory raises `GuestAddressError`."""

    def read(self, address: int, length: int, /) -> bytes:
        """`length` bytes at a guest-physical address."""
        ...

    def write(self, address: int, data: bytes, /) -> None:
        """Store bytes at a guest-physical address."""
        ...


class DmaPort(Protocol):
    """Where a function's memory requests go. None fails: what nobody answers reads all ones and stores nothing.

    `source` is the requester: bus << 8 | device << 3 | function.
    """

    def fetch(self, source: int, address: int, length: int, /) -> bytes:
        """Read `length` bytes at a bus address."""
        ...

    def store(self, source: int, address: int, data: bytes, /) -> None:
        """Write bytes at a bus address."""
        ...


def pages(address: int, length: int) -> Iterator[tuple[int, int, int]]:
    """The parts of a range that lie in one 4-KiB page each: (offset in the range, address, length)."""
    offset = 0
    while offset < length:
        part = min(length - offset, PAGE_SIZE - (address + offset) % PAGE_SIZE)
        yield offset, address + offset, part
        offset += part


def is_interrupt(address: int, data: bytes) -> bool:
    """Whether a write is an interrupt message: an aligned dword in the range of the local APICs."""
    return MSI_BASE <= address < MSI_END and len(data) == 4 and address % 4 == 0


class DirectDma:
    """Bus addresses are guest-physical ones: a board without an IOMMU."""

    def __init__(self, memory: DmaMemory, sink: InterruptSink) -> None:
        self._memory = memory
        self._sink = sink

    def fetch(self, source: int, address: int, length: int) -> bytes:
        """Read guest memory; pages without any read all ones."""
        return b"".join(self._page(at, part) for _, at, part in pages(address, length))

    def store(self, source: int, address: int, data: bytes) -> None:
        """Write guest memory, or send an interrupt message."""
        if MSI_BASE <= address < MSI_END:
            if is_interrupt(address, data):
                self._sink.deliver(decode_msi(address, int.from_bytes(data, "little")))
            return
        for offset, at, part in pages(address, len(data)):
            try:
                self._memory.write(at, data[offset : offset + part])
            except GuestAddressError:
                continue  # master abort

    def _page(self, address: int, length: int) -> bytes:
        try:
            return self._memory.read(address, length)
        except GuestAddressError:
            return b"\xff" * length  # master abort
