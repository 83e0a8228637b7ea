"""16550A UART: registers, FIFOs, interrupt causes. No bus, no threads, no host I/O.

The guest calls `read` and `write`; the host calls `receive` and is called back through `transmit`. Transmission takes
no guest time: the transmitter is always empty when the guest looks. Spec: PC16550D data sheet, section 8.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import Final

from xuni.bus.lines import Line


@dataclass(frozen=True, slots=True)
class UartConfig:
    """A serial port of the board."""

    base: int = 0x3F8
    """First of its eight I/O ports."""
    irq: int = 4
    """ISA interrupt line."""


COM_PORTS: Final = (UartConfig(0x3F8, 4), UartConfig(0x2F8, 3), UartConfig(0x3E8, 4), UartConfig(0x2E8, 3))


class Reg(IntEnum):
    """Register offsets; FCR is IIR's write side, and the divisor hides DATA and IER while LCR.DLAB is set."""

    DATA, IER, IIR, LCR, MCR, LSR, MSR, SCRATCH = range(8)


class Ier(IntFlag):
    """Interrupt enable register."""

    RX_READY, TX_EMPTY, LINE_STATUS, MODEM_STATUS = 1, 2, 4, 8


class Lsr(IntFlag):
    """Line status register."""

    RX_READY, OVERRUN, PARITY, FRAMING, BREAK, TX_EMPTY, TX_IDLE, FIFO_ERROR = (1 << bit for bit in range(8))


class Mcr(IntFlag):
    """Modem control register. OUT2 gates the interrupt pin on a PC."""

    DTR, RTS, OUT1, OUT2, LOOPBACK = (1 << bit for bit in range(5))


class Msr(IntFlag):
    """Modem status register: four changes, four levels."""

    DCTS, DDSR, TERI, DDCD, CTS, DSR, RI, DCD = (1 << bit for bit in range(8))


class Cause(IntEnum):
    """What IIR reports, highest priority first."""

    LINE_STATUS, RX_READY, RX_TIMEOUT, TX_EMPTY, MODEM_STATUS, NONE = 0b0110, 0b0100, 0b1100, 0b0010, 0b0000, 0b0001


FIFO_SIZE: Final = 16
FIFO_ENABLE, CLEAR_RX, CLEAR_TX = 1, 2, 4  # FCR
IIR_FIFOS_ENABLED: Final = 0xC0
DLAB: Final = 0x80
TRIGGER_LEVELS: Final = (1, 4, 8, 14)  # by FCR bits 7:6
CONNECTED: Final = Msr.CTS | Msr.DSR | Msr.DCD  # what a live terminal at the other end asserts
POLLING: Final = 32
"""So many reads of LSR in a row are no longer a wait for the transmitter, which is always ready."""
_LSR_IDLE: Final = int(Lsr.TX_EMPTY | Lsr.TX_IDLE)
_ERRORS: Final = int(Lsr.OVERRUN | Lsr.PARITY | Lsr.FRAMING | Lsr.BREAK)


@dataclass(slots=True)
class UartState:
    """Everything a snapshot carries. The interrupt cause is derived from it, never stored."""

    ier: int = 0
    lcr: int = 0x03
    mcr: int = 0
    fcr: int = 0
    msr: int = int(CONNECTED)
    scratch: int = 0
    divisor: int = 1
    errors: int = 0
    tx_empty_raised: bool = False
    polls: int = 0
    """LSR reads since the guest last sent something: a guest that reads it on and on waits for input."""
    rx: deque[int] = field(default_factory=deque)


class Uart16550:
    """One serial port. `transmit` takes each byte that the guest sends; `room` is called when input can be received."""

    def __init__(
        self,
        transmit: Callable[[int], None],
        irq: Line,
        room: Callable[[], None] = lambda: None,
        state: UartState | None = None,
    ) -> None:
        self.transmit = transmit
        self.room = room
        self.irq = irq
        self.state = state or UartState()

    def reset(self) -> None:
        """The master reset pin."""
        self.state = UartState()
        self.irq.set(False)

    @property
    def cause(self) -> Cause:
        """The pending interrupt cause of highest priority (data sheet, table III)."""
        s = self.state
        if s.errors and s.ier & Ier.LINE_STATUS:
            return Cause.LINE_STATUS
        if s.rx and s.ier & Ier.RX_READY:
            # Received bytes below the trigger level time out at once: nothing more is on its way.
            enough = not s.fcr & FIFO_ENABLE or len(s.rx) >= TRIGGER_LEVELS[s.fcr >> 6]
            return Cause.RX_READY if enough else Cause.RX_TIMEOUT
        if s.tx_empty_raised and s.ier & Ier.TX_EMPTY:
            return Cause.TX_EMPTY
        if s.msr & 0x0F and s.ier & Ier.MODEM_STATUS:
            return Cause.MODEM_STATUS
        return Cause.NONE

    @property
    def listening(self) -> bool:
        """Whether the guest takes input: its driver enabled the interrupt, or it polls."""
        s = self.state
        return bool(s.ier & Ier.RX_READY) or s.polls >= POLLING

    def receive(self, data: bytes) -> int:
        """Queue bytes from the host and return how many fitted; `room` tells when more will."""
        s = self.state
        if s.mcr & Mcr.LOOPBACK:
            return 0  # the receiver input is disconnected from the outside
        accepted = data[: max(self._capacity - len(s.rx), 0)]
        s.rx.extend(accepted)
        self._update_irq()
        return len(accepted)

    def read(self, offset: int) -> int:
        """A guest's read of one register."""
        s = self.state
        if offset == Reg.LSR:  # first, because drivers poll it before every byte
            s.polls += 1
            value = _LSR_IDLE | (1 if s.rx else 0) | s.errors
            if s.errors:
                s.errors = 0
                self._update_irq()
            return value
        value = 0
        match offset:
            case Reg.DATA if s.lcr & DLAB:
                return s.divisor & 0xFF
            case Reg.IER if s.lcr & DLAB:
                return s.divisor >> 8
            case Reg.DATA:
                if s.rx:
                    value = s.rx.popleft()
                    if not s.rx:
                        self.room()
            case Reg.IER:
                return s.ier
            case Reg.IIR:
                cause = self.cause
                if cause is Cause.TX_EMPTY:
                    s.tx_empty_raised = False  # the only cause that reading IIR clears
                value = cause | (IIR_FIFOS_ENABLED if s.fcr & FIFO_ENABLE else 0)
            case Reg.LCR:
                return s.lcr
            case Reg.MCR:
                return s.mcr
            case Reg.MSR:
                value = s.msr
                s.msr &= 0xF0  # reading clears the change bits
            case Reg.SCRATCH:
                return s.scratch
        self._update_irq()
        return value

    def write(self, offset: int, value: int) -> None:
        """A guest's write of one register."""
        s = self.state
        match offset:
            case Reg.DATA if s.lcr & DLAB:
                s.divisor = s.divisor & 0xFF00 | value
            case Reg.IER if s.lcr & DLAB:
                s.divisor = s.divisor & 0x00FF | value << 8
            case Reg.DATA:
                if s.mcr & Mcr.LOOPBACK:
                    self._loop_back(value)
                else:
                    self.transmit(value)
                s.tx_empty_raised = True
                s.polls = 0
            case Reg.IER:
                # Not in the data sheet: enabling TX_EMPTY while idle raises it, and drivers rely on that.
                s.tx_empty_raised |= bool(Ier.TX_EMPTY & value & ~s.ier)
                s.ier = value & 0x0F
            case Reg.IIR:
                self._write_fcr(value)
            case Reg.LCR:
                s.lcr = value
                return
            case Reg.MCR:
                self._write_mcr(value & 0x1F)
            case Reg.SCRATCH:
                s.scratch = value
                return
            case _:
                return  # LSR and MSR are read-only
        self._update_irq()

    @property
    def _capacity(self) -> int:
        return FIFO_SIZE if self.state.fcr & FIFO_ENABLE else 1

    def _update_irq(self) -> None:
        s = self.state
        if s.ier == 0:
            level = False
        else:
            level = bool(s.mcr & Mcr.OUT2) and not s.mcr & Mcr.LOOPBACK and self.cause is not Cause.NONE
        if level != self.irq.level:
            self.irq.set(level)

    def _loop_back(self, value: int) -> None:
        s = self.state
        if len(s.rx) < self._capacity:
            s.rx.append(value)
        else:
            s.errors |= Lsr.OVERRUN
            if not s.fcr & FIFO_ENABLE:
                s.rx[-1] = value  # without a FIFO the newer byte overwrites the buffer

    def _write_fcr(self, value: int) -> None:
        s = self.state
        if (value ^ s.fcr) & FIFO_ENABLE or value & FIFO_ENABLE and value & CLEAR_RX:
            s.rx.clear()  # switching the FIFOs on or off empties them too
            s.errors = 0
        if value & FIFO_ENABLE and value & CLEAR_TX:
            s.tx_empty_raised = True
        s.fcr = value & 0xC9 if value & FIFO_ENABLE else 0
        if not s.rx:
            self.room()

    def _write_mcr(self, value: int) -> None:
        """In loop-back the four modem outputs drive the four modem inputs (data sheet, section 8.6.7)."""
        s = self.state
        left_loopback = bool(s.mcr & ~value & Mcr.LOOPBACK)
        s.mcr = value
        if value & Mcr.LOOPBACK:
            levels = (
                (Msr.CTS if value & Mcr.RTS else 0)
                | (Msr.DSR if value & Mcr.DTR else 0)
                | (Msr.RI if value & Mcr.OUT1 else 0)
                | (Msr.DCD if value & Mcr.OUT2 else 0)
            )
        else:
            levels = int(CONNECTED)
        changed = (s.msr ^ levels) & 0xF0
        deltas = changed >> 4 & ~Msr.TERI
        if changed & Msr.RI and not levels & Msr.RI:
            deltas |= Msr.TERI  # the trailing edge of the ring indicator only
        s.msr = levels | s.msr & 0x0F | deltas
        if left_loopback and not s.rx:
            self.room()
