"""A clock that moves when told to, and wires to look at."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from xuni.bus.lines import Line, Wire
from xuni.bus.timers import NEVER, Timers


class Clock:
    """The guest clock, with the timers that hang on it."""

    def __init__(self) -> None:
        self.now = 0
        self.timers = Timers(lambda: self.now)

    def advance(self, nanoseconds: int) -> None:
        """Let time pass, firing timers at their deadlines."""
        end = self.now + nanoseconds
        while self.timers.deadline <= end:
            assert self.timers.deadline != NEVER
            self.now = max(self.timers.deadline, self.now)
            self.timers.run_due()
        self.now = end


@dataclass
class Probe:
    """The receiving end of a line."""

    line: Line = field(default_factory=lambda: Line(Wire()))
    edges: int = 0

    def __post_init__(self) -> None:
        self.line.wire.sinks.append(self._seen)

    def _seen(self, level: bool) -> None:
        self.edges += level

    @property
    def level(self) -> bool:
        return self.line.level


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def irq() -> Probe:
    return Probe()
