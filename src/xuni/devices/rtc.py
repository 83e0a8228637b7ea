"""MC146818A real-time clock and CMOS memory.

The time is the host's at the start plus what the guest clock has counted since; nothing ticks, and a timer is armed
only while an interrupt is enabled. Spec: Motorola MC146818A data sheet; the layout of the CMOS is the IBM AT's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import Final

from xuni.bus.lines import Line
from xuni.bus.timers import Timers

SECOND: Final = 1_000_000_000
UPDATE_CYCLE: Final = 244_000
"""Register A says "update in progress" for so many ns before the registers change."""
SIZE: Final = 128


@dataclass(frozen=True, slots=True)
class RtcConfig:
    """The real-time clock."""

    base: int = 0x70
    """First of its two I/O ports, index and data."""
    irq: int = 8


class Reg(IntEnum):
    """Cells with a meaning in the chip; CENTURY is where ACPI's FADT says it is."""

    SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM, WEEKDAY, DAY, MONTH, YEAR = range(10)
    A, B, C, D = range(10, 14)
    SHUTDOWN = 0x0F
    EQUIPMENT = 0x14
    CENTURY = 0x32


class B(IntEnum):
    """Register B; its high nibble enables what register C reports."""

    DST, HOURS_24, BINARY, SQUARE_WAVE, UPDATE, ALARM, PERIODIC, SET = (1 << bit for bit in range(8))


class C(IntEnum):
    """Register C: flags, cleared by reading."""

    UPDATE, ALARM, PERIODIC, INTERRUPT = 0x10, 0x20, 0x40, 0x80


UIP: Final = 0x80
VALID_RAM_AND_TIME: Final = 0x80
DONT_CARE: Final = 0xC0
PM: Final = 0x80
TIME_CELLS: Final = (
    Reg.SECONDS, Reg.MINUTES, Reg.HOURS, Reg.WEEKDAY, Reg.DAY, Reg.MONTH, Reg.YEAR, Reg.CENTURY,
)  # fmt: skip
YEARS: Final = range(100, 9000)
"""What can be set: `datetime` knows the years 1 to 9999, and time goes on from there."""
_ENABLES: Final = int(B.UPDATE | B.ALARM | B.PERIODIC)


def to_bcd(value: int) -> int:
    """Two decimal digits."""
    return value // 10 << 4 | value % 10


def from_bcd(value: int) -> int:
    """Two decimal digits; digits above 9 count as they are."""
    return (value >> 4) * 10 + (value & 0xF)


def memory_size_cells(ram: int) -> dict[int, int]:
    """What firmware notes about `ram` bytes of memory: base, extended, above 16 MiB, and above 4 GiB.

    RAM below 4 GiB is assumed to end at 3 GiB at the latest, as it does on this board.
    """
    below, above = min(ram, 3 << 30), max(ram - (3 << 30), 0)
    extended = min(max(below - (1 << 20), 0) >> 10, 0xFFFF)
    beyond_16m = min(max(below - (16 << 20), 0) >> 16, 0xFFFF)
    cells = {0x15: 640 & 0xFF, 0x16: 640 >> 8}
    for low in (0x17, 0x30):
        cells |= {low: extended & 0xFF, low + 1: extended >> 8}
    cells |= {0x34: beyond_16m & 0xFF, 0x35: beyond_16m >> 8}
    cells |= {0x5B + i: above >> 16 + 8 * i & 0xFF for i in range(3)}
    return cells


@dataclass(slots=True)
class RtcState:
    """Cells; those of the time are stale unless SET holds them. `time` was the wall clock at guest time `at`."""

    cells: bytearray = field(default_factory=lambda: bytearray(SIZE))
    index: int = 0
    time: datetime = datetime(2000, 1, 1, tzinfo=UTC)
    at: int = 0
    seen: int = 0
    """Guest time up to which register C's flags account for update, alarm and periodic events."""


class Rtc:
    """The chip and its index port: offset 0 selects a cell, offset 1 is its data."""

    def __init__(
        self, timers: Timers, irq: Line, wall_clock: Callable[[], datetime], cells: dict[int, int] | None = None,
        state: RtcState | None = None, on_alarm: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._now = timers.now
        self._irq = irq
        self._on_alarm = on_alarm
        self._timer = timers.timer(self._event)
        if state is None:
            now = timers.now()
            state = RtcState(time=wall_clock().astimezone(UTC).replace(tzinfo=UTC), at=now, seen=now)
            state.cells[Reg.A] = 0x26  # 32.768 kHz time base, 1024 Hz
            state.cells[Reg.B] = B.HOURS_24
            state.cells[Reg.EQUIPMENT] = 0x06  # FPU and PS/2 pointer fields as a PC without diskette drives has them
            for cell, value in (cells or {}).items():
                state.cells[cell] = value
        self.state = state
        self._schedule()

    def reset(self) -> None:
        """The RESET pin: interrupts off; time and memory stay."""
        cells = self.state.cells
        cells[Reg.B] &= ~(_ENABLES | B.SQUARE_WAVE) & 0xFF
        cells[Reg.C] = 0
        self._irq.set(False)
        self._schedule()

    def read(self, offset: int) -> int:
        """The data port; the index port cannot be read."""
        s = self.state
        if offset == 0:
            return 0xFF
        match s.index:
            case Reg.A:
                return s.cells[Reg.A] | (UIP if self._updating() else 0)
            case Reg.C:
                self._catch_up()
                flags, s.cells[Reg.C] = s.cells[Reg.C], 0
                self._irq.set(False)
                self._schedule()
                return flags
            case Reg.D:
                return VALID_RAM_AND_TIME
            case index if index in TIME_CELLS and not s.cells[Reg.B] & B.SET:
                self._show_time()
                return s.cells[index]
            case index:
                return s.cells[index]

    def write(self, offset: int, value: int) -> None:
        """The index port (bit 7 masks NMIs, which no source raises) or the data port."""
        s = self.state
        if offset == 0:
            s.index = value & SIZE - 1
            return
        index = s.index
        if index in (Reg.C, Reg.D):
            return
        self._catch_up()
        if index == Reg.B:
            self._write_b(value)
        elif index in TIME_CELLS:
            if not s.cells[Reg.B] & B.SET:
                self._show_time()
            s.cells[index] = value
            if not s.cells[Reg.B] & B.SET:
                self._take_time()
        else:
            s.cells[index] = value & 0x7F if index == Reg.A else value
        self._raise()
        self._schedule()

    # -- time --------------------------------------------------------------------------------------------------------

    def time(self) -> datetime:
        """What the clock shows now."""
        s = self.state
        return s.time + timedelta(microseconds=(self._now() - s.at) // 1000)

    def _updating(self) -> bool:
        s = self.state
        if s.cells[Reg.B] & B.SET:
            return False
        return self._fraction(self._now()) >= SECOND - UPDATE_CYCLE

    def _fraction(self, at: int) -> int:
        """Nanoseconds since the last whole second of the clock, at guest time `at`."""
        s = self.state
        return (at - s.at + s.time.microsecond * 1000) % SECOND

    def _encode(self, value: int) -> int:
        return value if self.state.cells[Reg.B] & B.BINARY else to_bcd(value)

    def _decode(self, value: int) -> int:
        return value if self.state.cells[Reg.B] & B.BINARY else from_bcd(value)

    def _encode_hour(self, hour: int) -> int:
        if self.state.cells[Reg.B] & B.HOURS_24:
            return self._encode(hour)
        return self._encode((hour + 11) % 12 + 1) | (PM if hour >= 12 else 0)

    def _decode_hour(self, value: int) -> int:
        if self.state.cells[Reg.B] & B.HOURS_24:
            return self._decode(value)
        return self._decode(value & 0x7F) % 12 + (12 if value & PM else 0)

    def _show_time(self) -> None:
        """Copy the running time into the cells."""
        cells, time = self.state.cells, self.time()
        cells[Reg.SECONDS] = self._encode(time.second)
        cells[Reg.MINUTES] = self._encode(time.minute)
        cells[Reg.HOURS] = self._encode_hour(time.hour)
        cells[Reg.WEEKDAY] = time.isoweekday() % 7 + 1  # Sunday is 1
        cells[Reg.DAY] = self._encode(time.day)
        cells[Reg.MONTH] = self._encode(time.month)
        cells[Reg.YEAR] = self._encode(time.year % 100)
        cells[Reg.CENTURY] = self._encode(time.year // 100)

    def _take_time(self) -> None:
        """Set the running time from the cells; an impossible date leaves the time alone."""
        s, cells, now = self.state, self.state.cells, self._now()
        year = self._decode(cells[Reg.CENTURY]) * 100 + self._decode(cells[Reg.YEAR])
        if year not in YEARS:
            return
        try:
            s.time = datetime(
                year,
                self._decode(cells[Reg.MONTH]),
                self._decode(cells[Reg.DAY]),
                self._decode_hour(cells[Reg.HOURS]),
                self._decode(cells[Reg.MINUTES]),
                self._decode(cells[Reg.SECONDS]),
                microsecond=self.time().microsecond,
                tzinfo=UTC,
            )
        except ValueError:
            return
        s.at = now

    def _write_b(self, value: int) -> None:
        s, old = self.state, self.state.cells[Reg.B]
        if value & B.SET:
            if not old & B.SET:
                self._show_time()
            value &= ~B.UPDATE  # SET clears the update-ended enable
            s.cells[Reg.B] = value
        else:
            s.cells[Reg.B] = value
            if old & B.SET:
                self._take_time()
                # The divider chain restarts: the first update comes half a second later.
                s.time = s.time.replace(microsecond=500_000)
                s.seen = self._now()
            elif (old ^ value) & (B.BINARY | B.HOURS_24):
                self._show_time()

    # -- events ------------------------------------------------------------------------------------------------------

    @property
    def _period(self) -> int:
        """Nanoseconds between periodic interrupts; 0 when off (register A, rate selection)."""
        rate = self.state.cells[Reg.A] & 0xF
        if not rate:
            return 0
        return SECOND * (1 << (rate + 7 if rate < 3 else rate) - 1) // 32_768

    def _alarm_matches(self, time: datetime) -> bool:
        cells = self.state.cells
        return all(
            cells[cell] >= DONT_CARE or cells[cell] == value
            for cell, value in (
                (Reg.SECONDS_ALARM, self._encode(time.second)),
                (Reg.MINUTES_ALARM, self._encode(time.minute)),
                (Reg.HOURS_ALARM, self._encode_hour(time.hour)),
            )
        )

    def _catch_up(self) -> None:
        """Set the flags of all events since the last look."""
        s, now = self.state, self._now()
        if now <= s.seen:
            return
        flags, period = 0, self._period
        if period and now // period > s.seen // period:
            flags |= C.PERIODIC
        if not s.cells[Reg.B] & B.SET:
            # `updates` whole seconds of the clock began in (seen, now]; the last one at now - fraction.
            fraction = self._fraction(now)
            updates = max(now - fraction - s.seen + SECOND - 1, 0) // SECOND
            if updates:
                flags |= C.UPDATE
                last = self.time().replace(microsecond=0)
                seconds = range(min(updates, 86_400))  # the alarm repeats daily
                if not s.cells[Reg.C] & C.ALARM and any(
                    self._alarm_matches(last - timedelta(seconds=back)) for back in seconds
                ):
                    flags |= C.ALARM
        s.seen = now
        s.cells[Reg.C] |= flags

    def _raise(self) -> None:
        cells = self.state.cells
        if cells[Reg.C] & cells[Reg.B] & _ENABLES:
            cells[Reg.C] |= C.INTERRUPT
            self._irq.set(True)
            if cells[Reg.C] & cells[Reg.B] & C.ALARM:
                self._on_alarm()
        else:
            cells[Reg.C] &= ~C.INTERRUPT & 0xFF
            self._irq.set(False)

    def _event(self) -> None:
        self._catch_up()
        self._raise()
        self._schedule()

    def _schedule(self) -> None:
        """Wait for the next event that would interrupt and has not done so yet."""
        cells, now = self.state.cells, self._now()
        wanted = cells[Reg.B] & _ENABLES & ~cells[Reg.C]
        deadlines = []
        if wanted & B.PERIODIC and self._period:
            deadlines.append((now // self._period + 1) * self._period)
        if wanted & (B.UPDATE | B.ALARM) and not cells[Reg.B] & B.SET:
            deadlines.append(now - self._fraction(now) + SECOND)
        if deadlines:
            self._timer.set(min(deadlines))
        else:
            self._timer.cancel()
