"""Timers: a heap of deadlines on the guest clock, in nanoseconds.

Chips own `Timer`s; the machine calls `run_due` when the guest clock has passed `Timers.deadline`, and hears through
`on_deadline` when the earliest deadline changes, so that it can tell the virtual CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Final

NEVER: Final = (1 << 63) - 1

SHORTEST_PERIOD: Final = 20_000
"""A periodic timer fires at most once in so many nanoseconds: a guest cannot make the host spin."""


class Timer:
    """One deadline and what happens then. A timer fires once; a periodic chip sets it again."""

    __slots__ = ("_timers", "deadline", "fire")

    def __init__(self, timers: Timers, fire: Callable[[], None]) -> None:
        self._timers = timers
        self.fire = fire
        self.deadline = NEVER

    def set(self, deadline: int) -> None:
        """Fire when the guest clock reaches `deadline` (at once, if it has); replaces the former deadline."""
        if deadline >= NEVER:
            self.cancel()
        elif deadline != self.deadline:
            self.deadline = deadline
            self._timers._push(self)

    def cancel(self) -> None:
        """Do not fire."""
        if self.deadline != NEVER:
            self.deadline = NEVER
            self._timers._settle()

    @property
    def armed(self) -> bool:
        """Whether it will fire."""
        return self.deadline != NEVER


class Timers:
    """All timers of a machine. `now` reads the guest clock."""

    def __init__(self, now: Callable[[], int]) -> None:
        self.now = now
        self.deadline = NEVER
        """The earliest deadline of all."""
        self.on_deadline: Callable[[int], None] = lambda deadline: None
        self._heap: list[tuple[int, int, Timer]] = []  # an entry is stale unless its time is its timer's deadline
        self._serial = 0

    def timer(self, fire: Callable[[], None]) -> Timer:
        """A new timer, not yet set."""
        return Timer(self, fire)

    def run_due(self) -> None:
        """Fire every timer whose deadline has passed, earliest first; one that is set again into the past waits."""
        now, heap = self.now(), self._heap
        due: list[Timer] = []
        while heap and heap[0][0] <= now:
            deadline, _, timer = heappop(heap)
            if timer.deadline == deadline and timer not in due:
                due.append(timer)
        for timer in due:
            if timer.deadline <= now:  # an earlier one may have cancelled or moved it
                timer.deadline = NEVER
                timer.fire()
        self._settle()

    def _push(self, timer: Timer) -> None:
        self._serial += 1
        if len(self._heap) > 4096:  # stale entries of timers set again and again
            self._heap = [entry for entry in self._heap if entry[2].deadline == entry[0]]
            heapify(self._heap)
        heappush(self._heap, (timer.deadline, self._serial, timer))
        self._settle()

    def _settle(self) -> None:
        """Drop stale entries from the top and announce the earliest deadline if it changed."""
        heap = self._heap
        while heap and heap[0][2].deadline != heap[0][0]:
            heappop(heap)
        deadline = heap[0][0] if heap else NEVER
        if deadline != self.deadline:
            self.deadline = deadline
            self.on_deadline(deadline)
