"""`update`: new limits, from a file or from options."""

from __future__ import annotations

import os

from xuni.container import json, state
from xuni.container.record import SpecError, decode
from xuni.container.spec import Resources

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

# Option: where its number belongs.
_NUMBERS: Final = {
    "blkio-weight": ("blockIO", "weight"), "cpu-period": ("cpu", "period"), "cpu-quota": ("cpu", "quota"),
    "cpu-burst": ("cpu", "burst"), "cpu-share": ("cpu", "shares"), "cpu-rt-period": ("cpu", "realtimePeriod"),
    "cpu-rt-runtime": ("cpu", "realtimeRuntime"), "cpu-idle": ("cpu", "idle"), "memory": ("memory", "limit"),
    "memory-reservation": ("memory", "reservation"), "memory-swap": ("memory", "swap"), "pids-limit": ("pids", "limit"),
}  # fmt: skip
_TEXTS: Final = {"cpuset-cpus": ("cpu", "cpus"), "cpuset-mems": ("cpu", "mems")}
_SIZES: Final = {"memory", "memory-reservation", "memory-swap"}
_UNITS: Final = {"": 0, "b": 0, "k": 10, "kb": 10, "m": 20, "mb": 20, "g": 30, "gb": 30, "t": 40, "tb": 40}


def changed(given: dict[str, str]) -> Resources:
    """Raises SpecError."""
    if "l3-cache-schema" in given or "mem-bw-schema" in given:
        raise SpecError("--l3-cache-schema, --mem-bw-schema: Intel RDT is not supported")
    if "resources" in given:
        name = given["resources"]
        text = _standard_input() if name == "-" else state.read_file(name)
        return decode(Resources, json.loads(text, name), "resources")
    found: dict[str, Any] = {}
    for option, (part, field) in (_NUMBERS | _TEXTS).items():
        if option in given:
            found.setdefault(part, {})[field] = given[option] if option in _TEXTS else _number(option, given[option])
    return decode(Resources, found, "resources")


def _number(option: str, text: str) -> int:
    unit = text.lstrip("-0123456789").lower() if option in _SIZES else ""
    digits = text[: len(text) - len(unit)]
    if unit not in _UNITS or not digits.removeprefix("-").isdecimal():
        hint = ", such as 512M" if option in _SIZES else ""
        raise SpecError(f"--{option}: invalid value {text!r}: a number belongs here{hint}")
    return int(digits) << _UNITS[unit]


def _standard_input() -> bytes:
    said = b""
    while piece := os.read(0, 65536):
        said += piece
    return said
