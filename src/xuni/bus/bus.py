"""The board's wiring in one record."""

from __future__ import annotations

from collections.abc import Callable
from threading import RLock

from xuni.bus.lines import InterruptLines
from xuni.bus.mmio import Mmio
from xuni.bus.ports import Ports
from xuni.bus.timers import Timers


class Bus:
    """Ports, memory-mapped ranges, interrupt lines and timers, and the one lock that guards all chips.

    Whoever touches a chip holds `lock`: a virtual CPU's loop while it serves an exit, a backend while it feeds input.
    """

    def __init__(self, now: Callable[[], int]) -> None:
        self.lock = RLock()
        self.ports = Ports()
        self.mmio = Mmio()
        self.lines = InterruptLines()
        self.timers = Timers(now)
