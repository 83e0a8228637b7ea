"""16550A UART: registers, FIFOs, interrupt causes. No bus, no threads, no host I/O.

The guest calls `read` and `write`; the host calls `receive` and is called back through `transmit`. Transmission takes
no guest time: the transmitter is always empty when the guest looks. Spec: PC16550D data sheet, section 8.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
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


# Bits of each register. Plain numbers, not members of an enum: every byte of a serial console passes here.
IER_RX_READY, IER_TX_EMPTY, IER_LINE_STATUS, IER_MODEM_STATUS = 1, 2, 4, 8
LSR_RX_READY, LSR_OVERRUN, LSR_PARITY, LSR_FRAMING, LSR_BREAK, LSR_TX_EMPTY, LSR_TX_IDLE = (1 << i for i in range(7))
MCR_DTR, MCR_RTS, MCR_OUT1, MCR_OUT2, MCR_LOOPBACK = (1 << bit for bit in range(5))  # OUT2 gates the interrupt on a PC
MSR_DCTS, MSR_DDSR, MSR_TERI, MSR_DDCD, MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD = (1 << bit for bit in range(8))

# Interrupt causes as IIR reports them, highest priority first.
LINE_STATUS, RX_READY, RX_TIMEOUT, TX_EMPTY, MODEM_STATUS, NONE = 0b0110, 0b0100, 0b1100, 0b0010, 0b0000, 0b0001

FIFO_SIZE: Final = 16
FIFO_ENABLE, CLEAR_RX, CLEAR_TX = 1, 2, 4  # FCR
IIR_FIFOS_ENABLED: Final = 0xC0
DLAB: Final = 0x80
TRIGGER_LEVELS: Final = (1, 4, 8, 14)  # by FCR bits 7:6
CONNECTED: Final = MSR_CTS | MSR_DSR | MSR_DCD  # what a live terminal at the other end asserts
POLLING: Final = 32
"""So many reads of LSR in a row are no longer a wait for the transmitter, which is always ready."""
_LSR_IDLE: Final = LSR_TX_EMPTY | LSR_TX_IDLE
_ERRORS: Final = LSR_OVERRUN | LSR_PARITY | LSR_FRAMING | LSR_BREAK


@dataclass(slots=True)
class UartState:
    """Everything a snapshot carries. The interrupt cause is derived from it, never stored."""

    ier: int = 0
    lcr: int = 0x03
    mcr: int = 0
    fcr: int = 0
    msr: int = CONNECTED
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
        self._reads = (
            self._read_data, self._read_ier, self._read_iir, self._read_lcr,
            self._read_mcr, self._read_lsr, self._read_msr, self._read_scratch,
        )  # fmt: skip
        self._writes = (
            self._write_data, self._write_ier, self._write_fcr, self._write_lcr,
            self._write_mcr, self._write_read_only, self._write_read_only, self._write_scratch,
        )  # fmt: skip

    def reset(self) -> None:
        """The master reset pin."""
        self.state = UartState()
        self.irq.set(False)

    @property
    def cause(self) -> int:
        """The pending interrupt cause of highest priority (data sheet, table III)."""
        s = self.state
        if s.errors and s.ier & IER_LINE_STATUS:
            return LINE_STATUS
        if s.rx and s.ier & IER_RX_READY:
            # Received bytes below the trigger level time out at once: nothing more is on its way.
            enough = not s.fcr & FIFO_ENABLE or len(s.rx) >= TRIGGER_LEVELS[s.fcr >> 6]
            return RX_READY if enough else RX_TIMEOUT
        if s.tx_empty_raised and s.ier & IER_TX_EMPTY:
            return TX_EMPTY
        if s.msr & 0x0F and s.ier & IER_MODEM_STATUS:
            return MODEM_STATUS
        return NONE

    @property
    def listening(self) -> bool:
        """Whether the guest takes input: its driver enabled the interrupt, or it polls."""
        s = self.state
        return bool(s.ier & IER_RX_READY) or s.polls >= POLLING

    def receive(self, data: bytes) -> int:
        """Queue bytes from the host and return how many fitted; `room` tells when more will."""
        s = self.state
        if s.mcr & MCR_LOOPBACK:
            return 0  # the receiver input is disconnected from the outside
        accepted = data[: max(self._capacity - len(s.rx), 0)]
        s.rx.extend(accepted)
        self._update_irq()
        return len(accepted)

    def read(self, offset: int) -> int:
        """A guest's read of one register."""
        return self._reads[offset]()

    def write(self, offset: int, value: int) -> None:
        """A guest's write of one register."""
        self._writes[offset](value)

    # -- registers, in the order of Reg ------------------------------------------------------------------------------

    def _read_data(self) -> int:
        s = self.state
        if s.lcr & DLAB:
            return s.divisor & 0xFF
        value = 0
        if s.rx:
            value = s.rx.popleft()
            if not s.rx:
                self.room()
        self._update_irq()
        return value

    def _write_data(self, value: int) -> None:
        s = self.state
        if s.lcr & DLAB:
            s.divisor = s.divisor & 0xFF00 | value
            return
        if s.mcr & MCR_LOOPBACK:
            self._loop_back(value)
        else:
            self.transmit(value)
        s.tx_empty_raised = True
        s.polls = 0
        if s.ier:
            self._update_irq()

    def _read_ier(self) -> int:
        s = self.state
        return s.divisor >> 8 if s.lcr & DLAB else s.ier

    def _write_ier(self, value: int) -> None:
        s = self.state
        if s.lcr & DLAB:
            s.divisor = s.divisor & 0x00FF | value << 8
            return
        # Not in the data sheet: enabling TX_EMPTY while idle raises it, and drivers rely on that.
        s.tx_empty_raised |= bool(IER_TX_EMPTY & value & ~s.ier)
        s.ier = value & 0x0F
        self._update_irq()

    def _read_iir(self) -> int:
        s, cause = self.state, self.cause
        if cause == TX_EMPTY:
            s.tx_empty_raised = False  # the only cause that reading IIR clears
            self._update_irq()
        return cause | (IIR_FIFOS_ENABLED if s.fcr & FIFO_ENABLE else 0)

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
        self._update_irq()

    def _read_lcr(self) -> int:
        return self.state.lcr

    def _write_lcr(self, value: int) -> None:
        self.state.lcr = value

    def _read_mcr(self) -> int:
        return self.state.mcr

    def _write_mcr(self, value: int) -> None:
        """In loop-back the four modem outputs drive the four modem inputs (data sheet, section 8.6.7)."""
        s = self.state
        value &= 0x1F
        left_loopback = bool(s.mcr & ~value & MCR_LOOPBACK)
        s.mcr = value
        if value & MCR_LOOPBACK:
            levels = (
                (MSR_CTS if value & MCR_RTS else 0)
                | (MSR_DSR if value & MCR_DTR else 0)
                | (MSR_RI if value & MCR_OUT1 else 0)
                | (MSR_DCD if value & MCR_OUT2 else 0)
            )
        else:
            levels = CONNECTED
        changed = (s.msr ^ levels) & 0xF0
        deltas = changed >> 4 & ~MSR_TERI
        if changed & MSR_RI and not levels & MSR_RI:
            deltas |= MSR_TERI  # the trailing edge of the ring indicator only
        s.msr = levels | s.msr & 0x0F | deltas
        if left_loopback and not s.rx:
            self.room()
        self._update_irq()

    def _read_lsr(self) -> int:
        s = self.state
        s.polls += 1
        if not s.errors:
            return _LSR_IDLE | 1 if s.rx else _LSR_IDLE
        value = _LSR_IDLE | (LSR_RX_READY if s.rx else 0) | s.errors
        s.errors = 0
        self._update_irq()
        return value

    def _read_msr(self) -> int:
        s = self.state
        value = s.msr
        s.msr &= 0xF0  # reading clears the change bits
        self._update_irq()
        return value

    def _write_read_only(self, value: int) -> None:
        """LSR and MSR."""

    def _read_scratch(self) -> int:
        return self.state.scratch

    def _write_scratch(self, value: int) -> None:
        self.state.scratch = value

    # -- inside ------------------------------------------------------------------------------------------------------

    @property
    def _capacity(self) -> int:
        return FIFO_SIZE if self.state.fcr & FIFO_ENABLE else 1

    def _update_irq(self) -> None:
        s = self.state
        if s.ier == 0:
            level = False
        else:
            level = bool(s.mcr & MCR_OUT2) and not s.mcr & MCR_LOOPBACK and self.cause != NONE
        if level != self.irq.level:
            self.irq.set(level)

    def _loop_back(self, value: int) -> None:
        s = self.state
        if len(s.rx) < self._capacity:
            s.rx.append(value)
        else:
            s.errors |= LSR_OVERRUN
            if not s.fcr & FIFO_ENABLE:
                s.rx[-1] = value  # without a FIFO the newer byte overwrites the buffer
