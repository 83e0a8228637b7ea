"""What the configuration says in v1's units, in v2's."""

from __future__ import annotations

from xuni.container.record import SpecError

DEFAULT_PERIOD = 100_000  # microseconds, of cpu.max and cpu.cfs_period_us


def weight_of_shares(shares: int) -> int:
    """cpu.weight (1 … 10000, 100 by default) for cpu.shares (2 … 262144, 1024 by default).

    Minimum, default and maximum meet: a parabola through the three on a logarithmic scale, as runc and crun have it.
    """
    import math

    if shares <= 2:
        return 1
    if shares >= 262144:
        return 10000
    scale = math.log2(shares)
    return math.ceil(10 ** ((scale * scale + 125 * scale) / 612 - 7 / 34))


def io_weight(weight: int) -> int:
    """io.weight (1 … 10000) for blockIO.weight (10 … 1000)."""
    return 1 + (weight - 10) * 9999 // 990


def swap_max(limit: int, swap: int) -> int | None:
    """memory.swap.max (-1 for "max", None to leave it) for memory.limit and memory.swap, which counts memory as well."""
    if limit == -1 and swap == 0:
        return -1  # v1 keeps memsw ≥ memory, so "no limit" there means both
    if swap in (-1, 0):
        return swap or None
    if limit in (0, -1):
        raise SpecError("memory.swap: a limit of memory and swap together takes a memory.limit")
    if swap < limit:
        raise SpecError(f"memory.swap: {swap} is memory and swap together, so it cannot be below memory.limit, {limit}")
    return swap - limit


def word(limit: int) -> str:
    return "max" if limit == -1 else str(limit)
