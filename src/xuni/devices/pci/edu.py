"""QEMU's educational device: a PCI function for drivers to practise on.

Spec: QEMU, docs/specs/edu. BAR 0 is 1 MiB; below 0x80 accesses are 4 bytes wide, from there on 4 or 8::

    00 identification   04 liveness (inverted)   08 factorial   20 status   24 interrupt status
    60 interrupt raise  64 interrupt acknowledge
    80 DMA source       88 DMA destination       90 DMA count   98 DMA command

A transfer goes between memory and the device's buffer, 4 KiB that DMA addresses from 0x40000 on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from math import factorial
from typing import Final

from xuni.bus.lines import Line
from xuni.bus.ports import ALL_ONES
from xuni.bus.timers import Timers
from xuni.devices.pci.dma import DmaPort
from xuni.devices.pci.function import PciDevice

VENDOR, DEVICE, REVISION, CLASS = 0x1234, 0x11E8, 0x10, 0x00FF00
IDENTIFICATION: Final = 0x0100_00ED
BAR_SIZE: Final = 1 << 20
WIDE: Final = 0x80
"""From this offset on registers are 64 bits wide."""
BUFFER, BUFFER_SIZE = 0x4_0000, 4096
FACTORIAL_TIME: Final = 10_000
"""Guest nanoseconds that a factorial takes."""
TRANSFER_TIME: Final = 100_000
"""Guest nanoseconds that a transfer takes."""
VANISHES: Final = 34
"""From here on a factorial is a multiple of 2^32."""


class Reg(IntEnum):
    """Offsets in BAR 0."""

    IDENTIFICATION, LIVENESS, FACTORIAL, STATUS, IRQ_STATUS = 0x00, 0x04, 0x08, 0x20, 0x24
    IRQ_RAISE, IRQ_ACKNOWLEDGE = 0x60, 0x64
    DMA_SOURCE, DMA_DESTINATION, DMA_COUNT, DMA_COMMAND = 0x80, 0x88, 0x90, 0x98


class Status(IntFlag):
    """The status register."""

    COMPUTING = 0x01
    RAISE_AFTER_FACTORIAL = 0x80


class Command(IntFlag):
    """The DMA command register."""

    START = 0x01
    TO_MEMORY = 0x02
    RAISE_AFTER_TRANSFER = 0x04


class Irq(IntFlag):
    """Interrupt causes of the device's own; the guest may raise others."""

    FACTORIAL = 0x001
    TRANSFER = 0x100


@dataclass(frozen=True, slots=True)
class EduConfig:
    """The educational device."""

    device: int = 4
    """Its number on PCI bus 0."""
    irq: int = 10
    """Interrupt line that its pin is wired to."""
    dma_bits: int = 28
    """How many address bits its DMA drives; the others are 0."""


@dataclass(slots=True)
class EduState:
    """Registers and the buffer."""

    liveness: int = 0
    factorial: int = 0
    status: int = 0
    irq_status: int = 0
    source: int = 0
    destination: int = 0
    count: int = 0
    command: int = 0
    buffer: bytearray = field(default_factory=lambda: bytearray(BUFFER_SIZE))


class Edu(PciDevice):
    """The function. `address` is where firmware left BAR 0."""

    def __init__(self, timers: Timers, dma: DmaPort, line: Line, address: int, config: EduConfig | None = None) -> None:
        config = config or EduConfig()
        super().__init__(VENDOR, DEVICE, CLASS, REVISION, source=config.device << 3, dma=dma, line=line)
        self.add_region(0, BAR_SIZE, self, address)
        self.add_msi()
        self.state = EduState()
        self._mask = (1 << config.dma_bits) - 1
        self._factorial_done = timers.timer(self._finish_factorial)
        self._transfer_done = timers.timer(self._transfer)
        self._now = timers.now

    def reset(self) -> None:
        """Power-on state; what was being computed or transferred is dropped."""
        self._factorial_done.cancel()
        self._transfer_done.cancel()
        self.state = EduState()
        super().reset()

    def read(self, offset: int, size: int) -> int:
        """A load from BAR 0; all ones in a width that the register does not have, or where there is none."""
        s = self.state
        if size not in _widths(offset):
            return ALL_ONES[size]
        match offset:
            case Reg.IDENTIFICATION: return IDENTIFICATION
            case Reg.LIVENESS: return s.liveness
            case Reg.FACTORIAL: return s.factorial
            case Reg.STATUS: return s.status
            case Reg.IRQ_STATUS: return s.irq_status
            case Reg.DMA_SOURCE: return s.source
            case Reg.DMA_DESTINATION: return s.destination
            case Reg.DMA_COUNT: return s.count
            case Reg.DMA_COMMAND: return s.command
            case _: return ALL_ONES[size]

    def write(self, offset: int, size: int, value: int) -> None:
        """A store to BAR 0. The factorial and the DMA registers keep their values while they are in use."""
        s = self.state
        if size not in _widths(offset):
            return
        idle = not s.command & Command.START
        match offset:
            case Reg.LIVENESS: s.liveness = ~value & 0xFFFF_FFFF
            case Reg.FACTORIAL if not s.status & Status.COMPUTING:
                s.factorial = value
                s.status |= Status.COMPUTING
                self._factorial_done.set(self._now() + FACTORIAL_TIME)
            case Reg.STATUS:
                s.status = s.status & ~Status.RAISE_AFTER_FACTORIAL | value & Status.RAISE_AFTER_FACTORIAL
            case Reg.IRQ_RAISE: self._raise(value)
            case Reg.IRQ_ACKNOWLEDGE:
                s.irq_status &= ~value
                if not s.irq_status:
                    self.interrupt(False)
            case Reg.DMA_SOURCE if idle: s.source = value
            case Reg.DMA_DESTINATION if idle: s.destination = value
            case Reg.DMA_COUNT if idle: s.count = value
            case Reg.DMA_COMMAND if idle and value & Command.START:
                s.command = value & 0b111
                self._transfer_done.set(self._now() + TRANSFER_TIME)

    def _raise(self, causes: int) -> None:
        self.state.irq_status |= causes
        if self.state.irq_status:
            self.interrupt(True)

    def _finish_factorial(self) -> None:
        s = self.state
        s.factorial = factorial(s.factorial) & 0xFFFF_FFFF if s.factorial < VANISHES else 0
        s.status &= ~Status.COMPUTING
        if s.status & Status.RAISE_AFTER_FACTORIAL:
            self._raise(Irq.FACTORIAL)

    def _transfer(self) -> None:
        """Move the bytes; a range that leaves the buffer moves none."""
        s = self.state
        to_memory = s.command & Command.TO_MEMORY
        start = (s.source if to_memory else s.destination) - BUFFER
        if start >= 0 and start + s.count <= BUFFER_SIZE:
            if to_memory:
                self.store(s.destination & self._mask, bytes(s.buffer[start : start + s.count]))
            else:
                s.buffer[start : start + s.count] = self.fetch(s.source & self._mask, s.count)
        s.command &= ~Command.START
        if s.command & Command.RAISE_AFTER_TRANSFER:
            self._raise(Irq.TRANSFER)


def _widths(offset: int) -> tuple[int, ...]:
    return (4, 8) if offset >= WIDE else (4,)
