"""Two 8237A DMA controllers and their page registers: programmed like real ones, with no device to move data for.

Spec: Intel 8237A data sheet (231466); PC wiring: IBM AT Technical Reference, "DMA Controllers".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

PAGES_BASE: Final = 0x80
PAGES_COUNT: Final = 16


@dataclass(slots=True)
class DmaState:
    """One chip: current and base address and count of four channels."""

    current: list[int] = field(default_factory=lambda: [0] * 8)
    """Address and count of channel 0, then of 1, 2, 3."""
    command: int = 0
    request: int = 0
    mask: int = 0xF
    modes: list[int] = field(default_factory=lambda: [0] * 4)
    high_byte: bool = False
    """The byte flip-flop: which half of a 16-bit register comes next."""


class Dma8237:
    """Registers at offsets 0-15, `stride` ports apart (the second controller of a PC sits on even ports)."""

    def __init__(self, stride: int = 1, state: DmaState | None = None) -> None:
        self._stride = stride
        self.state = state or DmaState()

    def reset(self) -> None:
        """Master clear; addresses and counts too."""
        self.state = DmaState()

    def read(self, offset: int) -> int:
        """Address and count halves, status (no request, terminal counts never reached), mask."""
        s, reg = self.state, offset // self._stride
        if reg < 8:
            value = s.current[reg] >> (8 if s.high_byte else 0) & 0xFF
            s.high_byte = not s.high_byte
            return value
        return 0xF0 | s.mask if reg == 15 else 0

    def write(self, offset: int, value: int) -> None:
        """Program a channel or the chip."""
        s, reg = self.state, offset // self._stride
        if reg < 8:
            shift = 8 if s.high_byte else 0
            s.current[reg] = s.current[reg] & ~(0xFF << shift) | value << shift
            s.high_byte = not s.high_byte
            return
        match reg:
            case 8:
                s.command = value
            case 9:
                bit = 1 << (value & 3)
                s.request = s.request | bit if value & 4 else s.request & ~bit
            case 10:
                bit = 1 << (value & 3)
                s.mask = s.mask | bit if value & 4 else s.mask & ~bit
            case 11:
                s.modes[value & 3] = value
            case 12:
                s.high_byte = False
            case 13:
                self.state = DmaState(current=s.current, modes=s.modes)
            case 14:
                s.mask = 0
            case 15:
                s.mask = value & 0xF


@dataclass(slots=True)
class PagesState:
    """Sixteen latches; number 0 is where firmware shows its power-on self test codes."""

    data: bytearray = field(default_factory=lambda: bytearray(PAGES_COUNT))


class DmaPages:
    """Ports 0x80-0x8F: address bits 23:16 of the channels, and plain latches between."""

    def __init__(self, state: PagesState | None = None) -> None:
        self.state = state or PagesState()

    def reset(self) -> None:
        """Zeros."""
        self.state = PagesState()

    def read(self, offset: int) -> int:
        """What was written."""
        return self.state.data[offset]

    def write(self, offset: int, value: int) -> None:
        """Keep the byte."""
        self.state.data[offset] = value
