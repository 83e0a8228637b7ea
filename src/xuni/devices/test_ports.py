"""Ports that real PCs lack and test programs use: debug exit, debug console, Bochs' shutdown port, pc-testdev.

Spec: QEMU documentation of isa-debug-exit, isa-debugcon and pc-testdev; Bochs documentation of port 0x8900.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from xuni.bus.lines import Line


@dataclass(frozen=True, slots=True)
class DebugExitConfig:
    """A port whose written value ends the machine with status value * 2 + 1."""

    base: int = 0xF4
    count: int = 4


class DebugExitPort:
    """`exit` gets the value of an access of any size."""

    def __init__(self, exit: Callable[[int], None]) -> None:
        self._exit = exit

    def read(self, offset: int, size: int) -> int:
        """Zero."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """End the machine."""
        self._exit(value)


@dataclass(frozen=True, slots=True)
class DebugConsoleConfig:
    """Ports that print a byte: 0xE9 is Bochs', 0x402 the firmware's."""

    ports: tuple[int, ...] = (0xE9, 0x402)


class DebugConsole:
    """Prints what is written; reads as `presence`, by which guests find it."""

    def __init__(self, transmit: Callable[[int], None], presence: int = 0xE9) -> None:
        self._transmit = transmit
        self._presence = presence

    def read(self, offset: int) -> int:
        """The value that says "here I am"."""
        return self._presence

    def write(self, offset: int, value: int) -> None:
        """Print one byte."""
        self._transmit(value)


SHUTDOWN: Final = b"Shutdown"


@dataclass(slots=True)
class ShutdownPortState:
    """How many letters of the word have been written."""

    matched: int = 0


class ShutdownPort:
    """Bochs' port 0x8900: the letters of "Shutdown", one write each, turn the power off."""

    def __init__(self, power_off: Callable[[], None], state: ShutdownPortState | None = None) -> None:
        self._power_off = power_off
        self.state = state or ShutdownPortState()

    def reset(self) -> None:
        """Power-on state."""
        self.state = ShutdownPortState()

    def read(self, offset: int) -> int:
        """Nothing is there to read."""
        return 0xFF

    def write(self, offset: int, value: int) -> None:
        """The next letter, or a wrong one, which begins again."""
        s = self.state
        if value != SHUTDOWN[s.matched]:
            s.matched = int(value == SHUTDOWN[0])
            return
        s.matched += 1
        if s.matched == len(SHUTDOWN):
            s.matched = 0
            self._power_off()


@dataclass(frozen=True, slots=True)
class TestDeviceConfig:
    """pc-testdev, which kvm-unit-tests look for."""

    __test__ = False  # the name begins with "Test", and is no test

    latch: int = 0xE0
    """Four ports that keep what is written to them."""
    flush: int = 0xE4
    """A dword written here names a guest-physical page whose mapping a hypervisor should drop."""
    io_latch: int = 0xE8
    irq: int = 0x2000
    """A port for each of the 24 interrupt lines: 1 asserts, 0 releases."""
    memory: int = 0xFF00_0000
    memory_size: int = 0x1_0000


@dataclass(slots=True)
class LatchState:
    """The bytes."""

    data: bytearray = field(default_factory=lambda: bytearray(4))


class Latch:
    """Bytes that read back as written; RAM behind a device's address."""

    def __init__(self, size: int, state: LatchState | None = None) -> None:
        self.state = state or LatchState(bytearray(size))

    def reset(self) -> None:
        """Zeros."""
        self.state.data[:] = bytes(len(self.state.data))

    def read(self, offset: int, size: int) -> int:
        """The bytes at `offset`."""
        return int.from_bytes(self.state.data[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Keep the bytes."""
        self.state.data[offset : offset + size] = value.to_bytes(size, "little")


class FlushPort:
    """Accepts page addresses; this machine has no mapping that would need dropping."""

    def read(self, offset: int, size: int) -> int:
        """Zero."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Nothing to do."""


class TestIrqs:
    """One port a line."""

    __test__ = False

    def __init__(self, lines: list[Line]) -> None:
        self._lines = lines

    def reset(self) -> None:
        """Release all."""
        for line in self._lines:
            line.set(False)

    def read(self, offset: int) -> int:
        """The line's level."""
        return int(self._lines[offset].level)

    def write(self, offset: int, value: int) -> None:
        """Assert or release the line."""
        self._lines[offset].set(bool(value))
