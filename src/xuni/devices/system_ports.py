"""The PC's odd system ports: 0x61, 0x92, 0xCF9 and the power-on self test's 0x80.

Spec: IBM AT Technical Reference, "System Control Port B"; Intel 82371SB data sheet, section 2.5 (reset control, A20).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from xuni.devices.pit import Counter

REFRESH: Final = 15_085
"""Bit 4 of port 0x61 toggles at every refresh request, which comes so many ns apart."""


@dataclass(slots=True)
class SystemControlBState:
    """The writable bits: 0 timer gate, 1 speaker, 2 and 3 error checks disabled."""

    control: int = 0


class SystemControlB:
    """Port 0x61: the gate and output of timer counter 2, the speaker, and the refresh toggle."""

    def __init__(self, counter2: Counter, now: Callable[[], int], state: SystemControlBState | None = None) -> None:
        self._counter = counter2
        self._now = now
        self.state = state or SystemControlBState()

    def reset(self) -> None:
        """Power-on state."""
        self.write(0, 0)

    def read(self, offset: int) -> int:
        """Control bits, refresh toggle (4), timer output (5); no errors (6, 7)."""
        now = self._now()
        return self.state.control | (now // REFRESH & 1) << 4 | self._counter.output(now) << 5

    def write(self, offset: int, value: int) -> None:
        """Set the control bits."""
        self.state.control = value & 0x0F
        self._counter.set_gate(bool(value & 1))


@dataclass(slots=True)
class SystemControlAState:
    """Bit 1 is the A20 gate, open after reset as firmware leaves it."""

    control: int = 0x02


class SystemControlA:
    """Port 0x92: fast reset (bit 0) and fast A20 gate (bit 1)."""

    def __init__(
        self,
        reset: Callable[[], None],
        set_a20: Callable[[bool], None] = lambda enabled: None,
        state: SystemControlAState | None = None,
    ) -> None:
        self._reset_machine = reset
        self._set_a20 = set_a20
        self.state = state or SystemControlAState()

    def reset(self) -> None:
        """Power-on state."""
        self.state = SystemControlAState()

    def read(self, offset: int) -> int:
        """The control bits."""
        return self.state.control

    def write(self, offset: int, value: int) -> None:
        """A rising bit 0 resets."""
        rising = value & ~self.state.control
        self.state.control = value
        self._set_a20(bool(value & 0x02))
        if rising & 0x01:
            self._reset_machine()


@dataclass(slots=True)
class ResetControlState:
    """Bit 1: hard rather than soft reset."""

    control: int = 0


class ResetControl:
    """Port 0xCF9: bit 2 resets the machine when it rises."""

    def __init__(self, reset: Callable[[], None], state: ResetControlState | None = None) -> None:
        self._reset_machine = reset
        self.state = state or ResetControlState()

    def reset(self) -> None:
        """Power-on state."""
        self.state = ResetControlState()

    def read(self, offset: int) -> int:
        """The control bits."""
        return self.state.control

    def write(self, offset: int, value: int) -> None:
        """Choose the kind of reset, or reset."""
        rising = value & ~self.state.control
        self.state.control = value & 0x0A  # the trigger falls by itself
        if rising & 0x04:
            self._reset_machine()
