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
    found = _search(cpuinfo, r"^address sizes\s*: (\d{2}) bits physical")
    return int(found) if found else USUAL_ADDRESS_BITS


def vendor(cpuinfo: Path = CPUINFO) -> bytes | None:
    """Who made it, in the twelve letters of CPUID; None if the host does not tell."""
    found = _search(cpuinfo, r"^vendor_id\s*: (\S{12})$")
    return found.encode() if found else None


def _search(cpuinfo: Path, pattern: str) -> str | None:
    try:
        text = cpuinfo.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = re.search(pattern, text, re.MULTILINE)
    return found[1] if found else None
