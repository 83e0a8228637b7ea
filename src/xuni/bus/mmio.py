"""Memory-mapped devices: guest-physical ranges outside memory, found by bisection.

Memory itself never comes here: the engine serves it. A range that no device claims reads all ones and ignores writes.
"""

from __future__ import annotations

from bisect import bisect_right

from xuni.bus.ports import ALL_ONES, WideDevice


class Mmio:
    """Claims of guest-physical ranges, and the accesses that reach them."""

    def __init__(self) -> None:
        self._bases: list[int] = []
        self._claims: list[tuple[int, int, WideDevice]] = []  # (base, end, device), sorted like _bases

    def attach(self, base: int, size: int, device: WideDevice) -> None:
        """Give `size` bytes from `base` to `device`. Raises `ValueError` if the range overlaps another."""
        name, end = type(device).__name__, base + size
        if base < 0 or size <= 0 or end > 1 << 64:
            raise ValueError(f"{name}: range {base:#x}+{size:#x} lies outside the 64-bit address space")
        index = bisect_right(self._bases, base)
        for other_base, other_end, other in self._claims[max(index - 1, 0) : index + 1]:
            if base < other_end and other_base < end:
                raise ValueError(
                    f"{name}: range {base:#x}-{end - 1:#x} overlaps {type(other).__name__}"
                    f" at {other_base:#x}-{other_end - 1:#x}"
                )
        self._bases.insert(index, base)
        self._claims.insert(index, (base, end, device))

    def detach(self, base: int) -> None:
        """Take back the range that begins at `base`; nothing happens if none does."""
        index = bisect_right(self._bases, base) - 1
        if index >= 0 and self._bases[index] == base:
            del self._bases[index], self._claims[index]

    def read(self, address: int, size: int) -> int:
        """What a load of `size` bytes gets."""
        index = bisect_right(self._bases, address) - 1
        if index >= 0:
            base, end, device = self._claims[index]
            if address + size <= end:
                return device.read(address - base, size) & ALL_ONES[size]
            if address < end:
                return self._read_split(address, size)
        following = index + 1
        if following < len(self._bases) and self._bases[following] < address + size:
            return self._read_split(address, size)
        return ALL_ONES[size]

    def write(self, address: int, size: int, value: int) -> None:
        """What a store of `size` bytes does."""
        index = bisect_right(self._bases, address) - 1
        if index >= 0:
            base, end, device = self._claims[index]
            if address + size <= end:
                device.write(address - base, size, value & ALL_ONES[size])
                return
            if address < end:
                self._write_split(address, size, value)
                return
        following = index + 1
        if following < len(self._bases) and self._bases[following] < address + size:
            self._write_split(address, size, value)

    def _read_split(self, address: int, size: int) -> int:
        """An access that crosses the edge of a range: byte by byte, each where it belongs."""
        return sum(self.read(address + i, 1) << 8 * i for i in range(size))

    def _write_split(self, address: int, size: int, value: int) -> None:
        for i in range(size):
            self.write(address + i, 1, value >> 8 * i & 0xFF)
