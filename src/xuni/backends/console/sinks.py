"""What happens to the bytes that a guest sends. A sink is called on the thread of a virtual CPU."""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Callable

Sink = Callable[[bytes], object]


def nowhere(data: bytes) -> None:
    """Forget it."""


class Tail:
    """Remembers the last bytes, to show them if the guest ends badly."""

    def __init__(self, limit: int = 8192) -> None:
        self._kept: deque[int] = deque(maxlen=limit)

    def __call__(self, data: bytes) -> None:
        self._kept.extend(data)

    def lines(self, count: int) -> list[str]:
        """The last lines that are not empty, without control characters."""
        text = bytes(self._kept).decode(errors="replace")
        clean = ("".join(filter(str.isprintable, line)) for line in text.splitlines())
        return [line for line in clean if line.strip()][-count:]


class Descriptor:
    """Writes to an open file descriptor. A slow reader stops the guest, as a slow terminal stops a program.

    When nobody reads any more (EPIPE), or the host cannot write (a full disk), `failure` keeps the reason, `on_failure`
    is called once, and what follows is dropped.
    """

    def __init__(self, descriptor: int, on_failure: Callable[[], None] = lambda: None) -> None:
        self.descriptor = descriptor
        self.on_failure = on_failure
        self.failure: OSError | None = None

    def __call__(self, data: bytes) -> None:
        left = memoryview(data)
        while left and self.failure is None:
            try:
                left = left[os.write(self.descriptor, left) :]
            except BlockingIOError:
                select.select([], [self.descriptor], [])
            except OSError as error:
                self.failure = error
                self.on_failure()
