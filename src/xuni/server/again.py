"""--restart: whether a container that has ended starts again, and when. Its attendant does it; there is nobody else."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from xuni.server import ContainerError

POLICIES: Final = ("no", "on-failure", "always", "unless-stopped")
FIRST, LAST = 0.1, 60.0  # seconds before a start; twice as many each time, as docker has it
LONG: Final = 10.0  # seconds of a life that was worth it: the next start is soon again
LOOK: Final = 0.1  # seconds between two looks for somebody who wants it to stay ended


def policy(text: str) -> tuple[str, int]:
    """NAME, or on-failure:MOST; 0 for any number. Raises ContainerError."""
    name, colon, most = text.partition(":")
    if name not in POLICIES or (colon and (name != "on-failure" or not most.isdecimal())):
        raise ContainerError(f"--restart {text!r}: no, on-failure[:MOST], always and unless-stopped are known")
    return "" if name == "no" else name, int(most or 0)


class Again:
    """`stopping` is a file that says that somebody wants it to end."""

    def __init__(self, policy: str, most: int, stopping: Path) -> None:
        self.times = 0
        self._policy, self._most, self._stopping = policy, most, stopping
        self._delay = FIRST
        stopping.unlink(missing_ok=True)

    def wanted(self, status: int, lived: float) -> bool:
        if not self._policy or self._stopping.exists():
            return False
        if self._policy == "on-failure" and (status == 0 or 0 < self._most <= self.times):
            return False
        if lived >= LONG:
            self._delay = FIRST
        return True

    def wait(self) -> bool:
        """Until it is time; False if somebody wants it to stay ended after all."""
        end = time.monotonic() + self._delay
        self._delay = min(self._delay * 2, LAST)
        while not self._stopping.exists():
            rest = end - time.monotonic()
            if rest <= 0:
                self.times += 1
                return True
            time.sleep(min(rest, LOOK))
        return False
