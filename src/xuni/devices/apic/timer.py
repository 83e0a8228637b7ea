"""The local APIC's timer: one-shot, periodic and TSC-deadline (SDM vol. 3A, section "APIC Timer")."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from xuni.bus.timers import SHORTEST_PERIOD, Timers
from xuni.devices.apic.state import ONE_SHOT, PERIODIC, TSC_DEADLINE, LocalApicConfig, LocalApicState, Reg

SECOND: Final = 1_000_000_000
_LVT_TIMER: Final = int(Reg.LVT_TIMER)


class ApicTimer:
    """Counts down on the guest clock. `tsc_time` tells at which guest time the time-stamp counter reaches a value."""

    def __init__(
        self,
        timers: Timers,
        tsc_time: Callable[[int], int],
        expired: Callable[[], None],
        config: LocalApicConfig,
        state: LocalApicState,
    ) -> None:
        self._now = timers.now
        self._tsc_time = tsc_time
        self._expired = expired
        self._hz = config.bus_hz
        self.state = state
        self._timer = timers.timer(self._fire)
        self.schedule()

    @property
    def mode(self) -> int:
        """The mode in the LVT entry."""
        return self.state.lvt[_LVT_TIMER] >> 17 & 3

    @property
    def divisor(self) -> int:
        """1 to 128: bits 3, 1 and 0 of the divide register select 2, 4 ... 128, 1."""
        code = self.state.divide
        return 1 << ((code & 3 | code >> 1 & 4) + 1 & 7)

    def current_count(self) -> int:
        """The count-down register."""
        s = self.state
        if not s.initial_count or s.ran_out or self.mode == TSC_DEADLINE:
            return 0
        elapsed = self._ticks(self._now() - s.timer_start)
        if self.mode == PERIODIC:
            return s.initial_count - elapsed % s.initial_count
        return max(s.initial_count - elapsed, 0)

    def write_initial_count(self, value: int) -> None:
        """Start counting; 0 stops the timer. Ignored in TSC-deadline mode."""
        if self.mode == TSC_DEADLINE:
            return
        self.state.initial_count, self.state.timer_start, self.state.ran_out = value, self._now(), False
        self.schedule()

    def write_divide(self, value: int) -> None:
        """Change the divider; the count goes on from where it stands."""
        s, count, now = self.state, self.current_count(), self._now()
        s.divide = value & 0b1011
        s.timer_start = now - self._nanoseconds(s.initial_count - count)
        self.schedule()

    def mode_changed(self, old: int) -> None:
        """The LVT entry was written. To and from TSC-deadline mode disarms the timer."""
        s = self.state
        if (old == TSC_DEADLINE) != (self.mode == TSC_DEADLINE):
            s.initial_count = s.tsc_deadline = 0
        if old == ONE_SHOT and self.mode == PERIODIC and self._ticks(self._now() - s.timer_start) >= s.initial_count:
            s.ran_out = True  # what has come to its end does not start again by itself
        if old != self.mode:
            self.schedule()

    def write_deadline(self, tsc: int) -> None:
        """IA32_TSC_DEADLINE: 0 disarms. Ignored in the other modes."""
        if self.mode == TSC_DEADLINE:
            self.state.tsc_deadline = tsc
            self.schedule()

    def schedule(self) -> None:
        """Arm the host's timer for what the registers say."""
        s = self.state
        if self.mode == TSC_DEADLINE:
            if s.tsc_deadline:
                self._timer.set(max(self._tsc_time(s.tsc_deadline), self._now()))
            else:
                self._timer.cancel()
        elif not s.initial_count or s.ran_out:
            self._timer.cancel()
        elif self.mode == PERIODIC:
            elapsed = self._ticks(self._now() - s.timer_start)
            periods = elapsed // s.initial_count + 1
            self._timer.set(s.timer_start + self._nanoseconds(periods * s.initial_count))
        elif self.current_count():
            self._timer.set(s.timer_start + self._nanoseconds(s.initial_count))
        else:
            self._timer.cancel()

    def _ticks(self, nanoseconds: int) -> int:
        return max(nanoseconds, 0) * self._hz // (SECOND * self.divisor)

    def _nanoseconds(self, ticks: int) -> int:
        return -(-ticks * SECOND * self.divisor // self._hz)

    def _fire(self) -> None:
        s = self.state
        if self.mode == TSC_DEADLINE:
            s.tsc_deadline = 0
        elif self.mode == PERIODIC:
            earliest = self._ticks(self._now() + SHORTEST_PERIOD - s.timer_start)
            periods = max(earliest // s.initial_count, self._ticks(self._now() - s.timer_start) // s.initial_count + 1)
            self._timer.set(s.timer_start + self._nanoseconds(periods * s.initial_count))
        self._expired()
