"""Commands taken in turn, round after round, so that whatever else the machine does falls on all of them alike."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

WARM_UP = 2  # rounds that do not count


def call(command: Sequence[str], environment: Mapping[str, str] | None = None) -> float:
    """Seconds of wall time. Raises CalledProcessError with what it said."""
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL, env=environment, timeout=60)
    return time.perf_counter() - began


def said(error: subprocess.CalledProcessError) -> str:
    lines = error.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"status {error.returncode}"


def compare(ours: str, names: Sequence[str], command: Callable[[str, int], Sequence[str]], rounds: int,
            environment: Mapping[str, str] | None = None) -> None:  # fmt: skip
    """Print the median of each, and the ratio of `ours` to it; `command` is given a name and the number of the round. What does
    not run here is named with its own words.
    """
    times: dict[str, list[float]] = {each: [] for each in names}
    for number in range(rounds + WARM_UP):
        for name in list(times):
            try:
                took = call(command(name, number), environment)
            except subprocess.CalledProcessError as error:
                print(f"{name}: does not run here: {said(error)}")
                del times[name]
                continue
            if number >= WARM_UP:
                times[name].append(took)
    print(f"load {os.getloadavg()[0]:.1f}, {rounds} rounds")
    if ours not in times:
        sys.exit(f"{ours} did not run, so there is nothing to compare")
    own = statistics.median(times[ours])
    for name, taken in times.items():
        median = statistics.median(taken)
        print(f"{name:<12} {median * 1000:7.1f} ms  (min {min(taken) * 1000:.1f})  {ours} takes {own / median:.2f} of it")
