"""Processors by name: which features they have, and as what they present themselves in CPUID.

The names are QEMU's; a model has what the real processor of that name has, down to what is implemented here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from xuni.isa.x86 import features

PHYSICAL_BITS: Final = 40


@dataclass(frozen=True, slots=True)
class CpuModel:
    """A virtual processor, the same for every engine."""

    name: str = "max"
    features: frozenset[str] = features.DEFAULT
    """Names of `features.BY_NAME`, closed under what they require (`features.choose`)."""
    physical_bits: int = PHYSICAL_BITS
    """Width of a guest-physical address, MAXPHYADDR: 32 to 52."""


MAX: Final = CpuModel()
"""All that is implemented."""
