"""Intel 8254 programmable interval timer: three counters at 1.193182 MHz.

Nothing ticks: a counter's value and output follow from the guest clock, and only counter 0 owns a timer, set to the
next rising edge of its output (interrupt 0). Spec: Intel 8254 data sheet (231164).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from xuni.bus.lines import Line
from xuni.bus.timers import SHORTEST_PERIOD, Timers

FREQUENCY: Final = 1_193_182
"""Hertz."""
SECOND: Final = 1_000_000_000
CONTROL: Final = 3
"""Offset of the control word register; the counters are at 0, 1 and 2."""
LOW_BYTE, HIGH_BYTE, BOTH_BYTES = 1, 2, 3  # access modes (RW1, RW0)
READ_BACK: Final = 3  # in the counter-select field of the control word


@dataclass(frozen=True, slots=True)
class PitConfig:
    """The interval timer."""

    base: int = 0x40
    """First of its four I/O ports."""
    irq: int = 0
    """Interrupt line of counter 0."""


@dataclass(slots=True)
class CounterState:
    """One counter. Counting began at `start` (guest ns) and is frozen at `frozen` ticks while the gate holds it."""

    mode: int = 3
    access: int = BOTH_BYTES
    bcd: bool = False
    reload: int = 0x10000
    """Ticks; 0x10000 (10000 in BCD) is written as 0."""
    loaded: bool = False
    """A count was written since the control word."""
    triggered: bool = False
    """Modes 1 and 5: the gate rose since the control word."""
    start: int = 0
    frozen: int | None = None
    gate: bool = True
    next_reload: int | None = None
    """Modes 2 and 3: a count written meanwhile, which takes effect at `next_start`."""
    next_start: int = 0
    low_byte: int | None = None
    """First half of a two-byte count."""
    read_high: bool = False
    latched_count: list[int] = field(default_factory=list)
    """Bytes still to be read from the count latch."""
    latched_status: int | None = None


def ticks_at(nanoseconds: int) -> int:
    """Whole ticks in a time."""
    return nanoseconds * FREQUENCY // SECOND


def time_of(ticks: int) -> int:
    """The first nanosecond at which so many ticks have passed."""
    return -(-ticks * SECOND // FREQUENCY)


class Counter:
    """One of the three counters."""

    def __init__(self, now: Callable[[], int], changed: Callable[[], None], state: CounterState) -> None:
        self._now = now
        self._changed = changed
        self.state = state

    # -- what the clock makes of the state ---------------------------------------------------------------------------

    def ticks(self, now: int) -> int:
        """Ticks since the counter began to count, after taking over a count that has come into effect."""
        s = self.state
        if s.next_reload is not None and now >= s.next_start:
            s.reload, s.start, s.next_reload = s.next_reload, s.next_start, None
        return s.frozen if s.frozen is not None else max(ticks_at(now - s.start), 0)

    def count(self, now: int) -> int:
        """The counting element, as the guest reads it (BCD if programmed so)."""
        s, ticks = self.state, self.ticks(now)
        modulus = 10_000 if s.bcd else 0x10000
        if s.mode == 2:
            value = s.reload - ticks % s.reload
        elif s.mode == 3:  # counts by two, twice a period
            even = s.reload & ~1
            value = even - 2 * ticks % even if even else 1
        elif s.mode in (1, 5) and not s.triggered:
            value = s.reload
        else:
            value = s.reload - ticks
        value %= modulus
        return int(str(value), 16) if s.bcd else value

    def output(self, now: int) -> bool:
        """The OUT pin."""
        s, ticks = self.state, self.ticks(now)
        if not s.loaded:
            return s.mode != 0
        match s.mode:
            case 0:
                return ticks >= s.reload
            case 1:
                return not s.triggered or ticks >= s.reload
            case 2:
                return not s.gate or ticks % s.reload != s.reload - 1
            case 3:
                return not s.gate or ticks % s.reload < (s.reload + 1) // 2
            case 4:
                return ticks != s.reload
            case _:
                return not s.triggered or ticks != s.reload

    def next_rise(self, now: int) -> int | None:
        """Guest time of the next rising edge of OUT after `now`, or None."""
        s, ticks = self.state, self.ticks(now)
        if not s.loaded or s.frozen is not None or s.mode in (1, 5) and not s.triggered:
            return None
        if s.mode in (2, 3):
            if s.next_reload is not None:
                return s.next_start
            period = s.reload
            earliest = max(ticks + 1, ticks_at(now + SHORTEST_PERIOD - s.start)) if period < 64 else ticks + 1
            return s.start + time_of(-(-earliest // period) * period)
        edge = s.reload + (1 if s.mode in (4, 5) else 0)
        return s.start + time_of(edge) if ticks < edge else None

    # -- what the guest does -----------------------------------------------------------------------------------------

    def program(self, access: int, mode: int, bcd: bool) -> None:
        """A control word: the counter waits for a new count."""
        s = self.state
        self.state = CounterState(
            mode=mode if mode < 6 else mode - 4,  # the data sheet's "don't care" bit of modes 2 and 3
            access=access,
            bcd=bcd,
            reload=s.reload,
            start=self._now(),
            frozen=0,
            gate=s.gate,
            latched_count=s.latched_count,
            latched_status=s.latched_status,
        )
        self._changed()

    def write(self, value: int) -> None:
        """A byte of the count."""
        s = self.state
        if s.access == BOTH_BYTES:
            if s.low_byte is None:
                s.low_byte = value
                if s.mode == 0:  # the first byte stops counting
                    s.loaded, s.frozen = False, self.ticks(self._now())
                    self._changed()
                return
            self._load(value << 8 | s.low_byte)
            s.low_byte = None
        else:
            self._load(value if s.access == LOW_BYTE else value << 8)

    def read(self) -> int:
        """Latched status, then latched count, then the running count."""
        s = self.state
        if s.latched_status is not None:
            status, s.latched_status = s.latched_status, None
            return status
        if s.latched_count:
            return s.latched_count.pop(0)
        count = self.count(self._now())
        if s.access == LOW_BYTE:
            return count & 0xFF
        if s.access == HIGH_BYTE:
            return count >> 8
        s.read_high = not s.read_high
        return count & 0xFF if s.read_high else count >> 8

    def latch_count(self) -> None:
        """Hold the count until it is read; a second latch before that is ignored."""
        s = self.state
        if not s.latched_count:
            count = self.count(self._now())
            low, high = count & 0xFF, count >> 8
            s.latched_count = {LOW_BYTE: [low], HIGH_BYTE: [high]}.get(s.access, [low, high])

    def latch_status(self) -> None:
        """Hold the status byte: OUT, null count, access, mode, BCD."""
        s = self.state
        if s.latched_status is None:
            now = self._now()
            out = self.output(now)
            null = not s.loaded or s.next_reload is not None
            s.latched_status = out << 7 | null << 6 | s.access << 4 | s.mode << 1 | s.bcd

    def set_gate(self, level: bool) -> None:
        """Drive the GATE pin."""
        s, now = self.state, self._now()
        if level == s.gate:
            return
        ticks = self.ticks(now)
        s.gate = level
        if s.mode in (1, 5):
            if level:
                s.triggered, s.start, s.frozen = True, now, None
                if not s.loaded:
                    s.frozen = 0
        elif not level:
            s.frozen = ticks
        elif s.loaded:
            # Modes 2 and 3 begin a new period; modes 0 and 4 go on from where they stood.
            s.start = now if s.mode in (2, 3) else now - time_of(ticks)
            s.frozen = None
        self._changed()

    def _load(self, written: int) -> None:
        s, now = self.state, self._now()
        if s.bcd:
            digits = [min(written >> shift & 0xF, 9) for shift in (12, 8, 4, 0)]
            reload = int("".join(map(str, digits))) or 10_000
        else:
            reload = written or 0x10000
        if s.mode in (2, 3):
            reload = max(reload, 2)  # 1 is illegal
            if s.loaded and s.gate and s.frozen is None:
                ticks = self.ticks(now)
                s.next_reload = reload
                s.next_start = s.start + time_of((ticks // s.reload + 1) * s.reload)
                self._changed()
                return
        s.reload, s.next_reload = reload, None
        if s.mode in (1, 5):
            if s.loaded and s.triggered:  # takes effect at the next trigger
                return
            s.loaded = True
            return
        s.loaded, s.start = True, now
        s.frozen = None if s.gate else 0
        self._changed()


class Pit8254:
    """The chip: counters at offsets 0-2, control word at 3. Counter 0's output drives `irq`."""

    def __init__(self, timers: Timers, irq: Line, state: list[CounterState] | None = None) -> None:
        self._now = timers.now
        self._irq = irq
        self._timer = timers.timer(self._rise)
        states = state or [CounterState(), CounterState(), CounterState(gate=False)]
        changed: tuple[Callable[[], None], ...] = (self._schedule, lambda: None, lambda: None)
        self.counters = tuple(Counter(timers.now, change, each) for change, each in zip(changed, states, strict=True))
        self._schedule()

    def reset(self) -> None:
        """Power-on state."""
        for counter, gate in zip(self.counters, (True, True, False), strict=True):
            counter.state = CounterState(gate=gate)
        self._schedule()

    def start_periodic(self, reload: int = 0x10000) -> None:
        """What firmware does: counter 0 in mode 2."""
        self.write(CONTROL, 0b00_11_010_0)
        self.write(0, reload & 0xFF)
        self.write(0, reload >> 8 & 0xFF)

    def read(self, offset: int) -> int:
        """A guest's read of a counter; the control word cannot be read."""
        return self.counters[offset].read() if offset < CONTROL else 0

    def write(self, offset: int, value: int) -> None:
        """A guest's write of a count or of a control word."""
        if offset < CONTROL:
            self.counters[offset].write(value)
            return
        select, access, mode, bcd = value >> 6, value >> 4 & 3, value >> 1 & 7, bool(value & 1)
        if select == READ_BACK:
            for number, counter in enumerate(self.counters):
                if value >> 1 + number & 1:
                    if not value & 0x20:
                        counter.latch_count()
                    if not value & 0x10:
                        counter.latch_status()
        elif access == 0:
            self.counters[select].latch_count()
        else:
            self.counters[select].program(access, mode, bcd)

    def _schedule(self) -> None:
        """Counter 0 changed: put its output on the line and wait for the next rising edge."""
        counter, now = self.counters[0], self._now()
        self._irq.set(counter.output(now))
        rise = counter.next_rise(now)
        if rise is None:
            self._timer.cancel()
        else:
            self._timer.set(rise)

    def _rise(self) -> None:
        # The low phase before the edge is not shown: no controller can tell, and it would cost a second timer.
        self._irq.edge()
        rise = self.counters[0].next_rise(self._now())
        if rise is not None:
            self._timer.set(rise)
