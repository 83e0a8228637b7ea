"""Progress on standard error for what may take over a second: one line on a terminal, a word at the start elsewhere.

The line appears only once the work has lasted `PATIENCE` seconds, and is gone when the work ends.
"""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import Self

PATIENCE = 0.8  # seconds: work that ends sooner says nothing
BAR = 28  # columns


class Progress:
    """`with Progress("fetching debian") as progress: progress(0.25)`. A fraction of None draws no bar."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._started = time.monotonic()
        self._drawn = 0.0
        self._live = sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
        self._shown = False

    def __enter__(self) -> Self:
        return self

    def __call__(self, fraction: float | None = None, detail: str = "") -> None:
        """Say how far the work has come: `fraction` in 0..1."""
        now = time.monotonic()
        if now - self._started < PATIENCE or now - self._drawn < 0.1:
            return
        if not self._live:
            if not self._shown:
                print(f"{self.title} ...", file=sys.stderr, flush=True)
        else:
            sys.stderr.write(f"\r\x1b[K{self._line(fraction, detail)}")
            sys.stderr.flush()
        self._drawn, self._shown = now, True

    def _line(self, fraction: float | None, detail: str) -> str:
        line = self.title
        if fraction is not None:
            fraction = min(max(fraction, 0.0), 1.0)
            full = round(fraction * BAR)
            line += f"  [{'#' * full}{'.' * (BAR - full)}] {fraction:4.0%}"
        line = f"{line}  {detail}".rstrip()
        try:
            return line[: os.get_terminal_size(sys.stderr.fileno()).columns - 1]
        except OSError:
            return line

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live and self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
