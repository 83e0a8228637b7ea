"""What the host's processor says of itself in /proc/cpuinfo."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

CPUINFO: Final = Path("/proc/cpuinfo")
USUAL_ADDRESS_BITS: Final = 40
"""Where the host does not tell."""


def physical_address_bits(cpuinfo: Path = CPUINFO) -> int:
    """Bits of a host-physical address."""
    try:
        text = cpuinfo.read_text(encoding="ascii", errors="replace")
    except OSError:
        return USUAL_ADDRESS_BITS
    found = re.search(r"^address sizes\s*: (\d{2}) bits physical", text, re.MULTILINE)
    return int(found[1]) if found else USUAL_ADDRESS_BITS
