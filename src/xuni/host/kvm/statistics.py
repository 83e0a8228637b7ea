"""KVM's statistics of a machine or a virtual CPU, from the file that KVM_GET_STATS_FD gives."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from struct import unpack

from xuni.host.kvm.ioctls import Descriptor
from xuni.host.kvm.structures import StatsDesc, StatsHeader

MAX_NAMES = 4096
"""More than any kernel has."""


@dataclass(frozen=True, slots=True)
class Statistic:
    """A count, or the buckets of a histogram. `unit` as KVM numbers it: 0 none, 1 bytes, 2 seconds, 3 cycles, 4 boolean;
    the values are to be multiplied by 10 (or 2, for bytes) to the power of `exponent`.
    """

    name: str
    values: tuple[int, ...]
    kind: int
    """0 cumulative, 1 instant, 2 peak, 3 linear histogram, 4 logarithmic histogram."""
    unit: int
    exponent: int


def read(file: Descriptor) -> dict[str, Statistic]:
    """All statistics, by name."""
    header = StatsHeader.from_buffer_copy(os.pread(file.fd, ctypes.sizeof(StatsHeader), 0))
    size = ctypes.sizeof(StatsDesc) + header.name_size
    count = min(header.num_desc, MAX_NAMES)
    rows = os.pread(file.fd, size * count, header.desc_offset)
    found = {}
    for n in range(len(rows) // size):
        row = rows[n * size : (n + 1) * size]
        desc = StatsDesc.from_buffer_copy(row)
        name = row[ctypes.sizeof(StatsDesc) :].split(b"\0")[0].decode("ascii", "replace")
        data = os.pread(file.fd, 8 * desc.size, header.data_offset + desc.offset)
        values = unpack(f"<{len(data) // 8}Q", data)
        found[name] = Statistic(name, values, desc.flags & 0xF, desc.flags >> 4 & 0xF, int(desc.exponent))
    return found
