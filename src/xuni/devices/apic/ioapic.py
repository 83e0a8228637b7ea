"""82093AA I/O APIC: 24 pins, each with a redirection entry.

Spec: Intel 82093AA data sheet (290566); the EOI register of later versions: Intel ICH9 data sheet, section 13.5.

    redirection entry  63..56 destination | 16 mask | 15 level | 14 remote IRR | 13 active low | 12 pending
                       11 logical | 10..8 delivery mode | 7..0 vector
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from xuni.bus.messages import MSI_BASE, Delivery, InterruptMessage, InterruptSink

PINS: Final = 24
SELECT, WINDOW, EOI = 0x00, 0x10, 0x40  # MMIO offsets
ID, VERSION, ARBITRATION, TABLE = 0x00, 0x01, 0x02, 0x10  # registers behind the window
VERSION_VALUE: Final = PINS - 1 << 16 | 0x20
MASKED, LEVEL, REMOTE_IRR, PENDING, LOGICAL = 1 << 16, 1 << 15, 1 << 14, 1 << 12, 1 << 11
READ_ONLY: Final = REMOTE_IRR | PENDING
_DELIVERIES: Final = tuple(Delivery)
_VECTORED: Final = (Delivery.FIXED, Delivery.LOWEST_PRIORITY)
WRITABLE: Final = 0xFF00_0000_0001_AFFF
REMAPPABLE: Final = 0x00FF_0000_0000_0000
"""Bits 55:48, which only an entry for an interrupt remapping unit has: 48 is the format, 49 on the table index."""


@dataclass(frozen=True, slots=True)
class IoApicConfig:
    """The I/O interrupt controller."""

    base: int = 0xFEC0_0000
    """Guest-physical address of its registers."""
    id: int = 0
    """I/O APIC id after reset (0-15)."""


@dataclass(slots=True)
class IoApicState:
    """Registers, and the levels of the pins."""

    id: int = 0
    select: int = 0
    table: list[int] = field(default_factory=lambda: [MASKED] * PINS)
    levels: int = 0
    requests: int = 0
    """Edges seen and not yet delivered; level-triggered pins ask through `levels`."""


class IoApic:
    """The chip: a select register and a data window. Pin levels are logical; the polarity bit is kept, not used."""

    SIZE: Final = 0x1000

    def __init__(
        self,
        sink: InterruptSink,
        config: IoApicConfig | None = None,
        state: IoApicState | None = None,
        remap: Callable[[int, int], InterruptMessage | None] | None = None,
    ) -> None:
        """`remap` says what a message (address, data as of an MSI) means, or None to block it."""
        self._sink = sink
        self._remap = remap
        self._writable = WRITABLE | REMAPPABLE if remap else WRITABLE
        self._config = config or IoApicConfig()
        self.state = state or IoApicState(id=self._config.id)

    def reset(self) -> None:
        """Power-on state; the pins keep their levels."""
        self.state = IoApicState(id=self._config.id, levels=self.state.levels)

    def set_pin(self, pin: int, level: bool) -> None:
        """A new level of one pin."""
        s, bit = self.state, 1 << pin
        if level:
            rose = not s.levels & bit
            s.levels |= bit
            # The data sheet has edges on a masked pin ignored.
            if rose and not s.table[pin] & (LEVEL | MASKED):
                s.requests |= bit
            self._service(pin)
        else:
            s.levels &= ~bit

    def eoi(self, vector: int) -> None:
        """A local APIC finished a level-triggered interrupt: a pin that is still up interrupts again."""
        s = self.state
        for pin, entry in enumerate(s.table):
            if entry & REMOTE_IRR and entry & LEVEL and entry & 0xFF == vector:
                s.table[pin] = entry & ~REMOTE_IRR
                self._service(pin)

    def read(self, offset: int, size: int) -> int:
        """A load; the registers are 32 bits wide at multiples of 16."""
        s = self.state
        if offset == SELECT:
            return s.select
        if offset != WINDOW:
            return 0
        match s.select:
            case 0x00 | 0x02:
                return s.id << 24
            case 0x01:
                return VERSION_VALUE
            case index if TABLE <= index < TABLE + 2 * PINS:
                return s.table[index - TABLE >> 1] >> 32 * (index & 1) & 0xFFFF_FFFF
            case _:
                return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """A store."""
        s = self.state
        value &= 0xFFFF_FFFF
        match offset:
            case 0x00:
                s.select = value & 0xFF
            case 0x10:
                if s.select == ID:
                    s.id = value >> 24 & 0xF
                elif TABLE <= s.select < TABLE + 2 * PINS:
                    self._write_entry(s.select - TABLE >> 1, s.select & 1, value)
            case 0x40:
                self.eoi(value & 0xFF)

    def _write_entry(self, pin: int, half: int, value: int) -> None:
        s = self.state
        old = s.table[pin]
        written = old & 0xFFFF_FFFF | value << 32 if half else old & ~0xFFFF_FFFF | value
        entry = written & self._writable | old & READ_ONLY
        if not entry & LEVEL:
            entry &= ~REMOTE_IRR  # what makes drivers' "switch to edge and back" clear it
        s.table[pin] = entry
        self._service(pin)

    def _service(self, pin: int) -> None:
        """Deliver what the pin asks for, unless it is masked or still in service."""
        s, bit = self.state, 1 << pin
        entry = s.table[pin]
        if entry & MASKED:
            return
        level = bool(entry & LEVEL)
        if level:
            if entry & REMOTE_IRR or not s.levels & bit:
                return
        elif s.requests & bit:
            s.requests &= ~bit
        else:
            return
        message = self._message(entry)
        if message is None:
            return
        fixed = message.delivery in _VECTORED
        if level and fixed:
            s.table[pin] |= REMOTE_IRR
        if not self._sink.deliver(message) and level and fixed:
            s.table[pin] &= ~REMOTE_IRR  # nobody took it: nobody will send an EOI

    def _message(self, entry: int) -> InterruptMessage | None:
        """What the entry says; None if the remapping unit blocks it."""
        if self._remap:
            # As a message on the bus (VT-d 3.1, section 5.1.5.1): bits 63:48 become 19:4, bit 11 becomes 2.
            address = MSI_BASE | entry >> 44 & 0xF_FFF0 | entry >> 9 & 0b100
            return self._remap(address, entry & (LEVEL | 0x7FF))
        return InterruptMessage(
            vector=entry & 0xFF,
            destination=entry >> 56,
            logical=bool(entry & LOGICAL),
            delivery=_DELIVERIES[entry >> 8 & 7],
            level=bool(entry & LEVEL),
        )
