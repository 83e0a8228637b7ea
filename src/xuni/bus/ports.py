"""The I/O port space: 65,536 byte-wide ports, each claimed by at most one device.

Every port exit passes here, so a claim is one dictionary look-up. An access that no device claims reads all ones and
writes nothing, as on an ISA bus with pull-ups. An access wider than its device is split into bytes, lowest first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

PORT_COUNT: Final = 0x10000
ALL_ONES: Final = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFF_FFFF, 8: 0xFFFF_FFFF_FFFF_FFFF}


class ByteDevice(Protocol):
    """An 8-bit chip: it sees one byte at a time, and `offset` counts from its first port."""

    def read(self, offset: int, /) -> int:
        """The byte at `offset`."""
        ...

    def write(self, offset: int, value: int, /) -> None:
        """Store a byte at `offset`."""
        ...


class WideDevice(Protocol):
    """A device that tells 1-, 2-, 4- (and, in memory space, 8-) byte accesses apart. `size` is in bytes."""

    def read(self, offset: int, size: int, /) -> int:
        """The `size` bytes at `offset`, little-endian; bits beyond them are ignored."""
        ...

    def write(self, offset: int, size: int, value: int, /) -> None:
        """Store `size` bytes at `offset`."""
        ...


class Ports:
    """Claims of port ranges, and the accesses that reach them."""

    def __init__(self) -> None:
        self._byte: dict[int, tuple[Callable[[int], int], Callable[[int, int], None], int]] = {}
        self._wide: dict[int, tuple[WideDevice, int, int]] = {}
        self._names: dict[int, str] = {}

    def attach(self, base: int, count: int, device: ByteDevice) -> None:
        """Give `count` ports from `base` to an 8-bit chip. Raises `ValueError` if one of them is taken."""
        self._claim(base, count, device)
        for offset in range(count):
            self._byte[base + offset] = (device.read, device.write, offset)

    def attach_wide(self, base: int, count: int, device: WideDevice) -> None:
        """Give `count` ports from `base` to a device that sees access sizes. Raises `ValueError` if one is taken."""
        self._claim(base, count, device)
        for offset in range(count):
            self._wide[base + offset] = (device, base, base + count)

    def detach(self, base: int, count: int) -> None:
        """Take `count` ports from `base` back; ports that nobody claimed are left alone."""
        for port in range(base, base + count):
            self._names.pop(port, None)
            self._byte.pop(port, None)
            self._wide.pop(port, None)

    def owner(self, port: int) -> str | None:
        """The class name of the device at `port`, for messages and listings."""
        return self._names.get(port)

    def read(self, port: int, size: int) -> int:
        """What the guest gets from `in` of `size` bytes."""
        if size == 1:
            claim = self._byte.get(port)
            if claim is not None:
                return claim[0](claim[2])
        wide = self._wide.get(port)
        if wide is not None and port + size <= wide[2]:
            return wide[0].read(port - wide[1], size) & ALL_ONES[size]
        if size == 1:
            return 0xFF
        return sum(self.read((port + i) % PORT_COUNT, 1) << 8 * i for i in range(size))

    def write(self, port: int, size: int, value: int) -> None:
        """What `out` of `size` bytes does."""
        if size == 1:
            claim = self._byte.get(port)
            if claim is not None:
                claim[1](claim[2], value & 0xFF)
                return
        wide = self._wide.get(port)
        if wide is not None and port + size <= wide[2]:
            wide[0].write(port - wide[1], size, value & ALL_ONES[size])
        elif size > 1:
            for i in range(size):
                self.write((port + i) % PORT_COUNT, 1, value >> 8 * i)

    def _claim(self, base: int, count: int, device: object) -> None:
        name = type(device).__name__
        if not (0 <= base and count > 0 and base + count <= PORT_COUNT):
            raise ValueError(f"{name}: ports {base:#x}+{count:#x} lie outside the port space 0-0xffff")
        for port in range(base, base + count):
            if port in self._names:
                raise ValueError(f"{name}: port {port:#x} already belongs to {self._names[port]}")
        self._names.update(dict.fromkeys(range(base, base + count), name))
