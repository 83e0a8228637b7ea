"""A writer for ACPI Machine Language: each function returns the bytes of one term (ACPI 6.5, section 20.2).

Only what a static description of devices needs: names, packages, buffers and resource descriptors; no control flow.
"""

from __future__ import annotations

from struct import pack
from typing import Final

ZERO_OP, ONE_OP, NAME_OP = b"\x00", b"\x01", b"\x08"
BYTE_PREFIX, WORD_PREFIX, DWORD_PREFIX, STRING_PREFIX, QWORD_PREFIX = b"\x0a", b"\x0b", b"\x0c", b"\x0d", b"\x0e"
SCOPE_OP, BUFFER_OP, PACKAGE_OP = b"\x10", b"\x11", b"\x12"
DEVICE_OP: Final = b"\x5b\x82"

END_TAG: Final = b"\x79\x00"
"""Ends a resource template; the zero checksum means "not checked" (section 6.4.2.9)."""


def package_length(size: int) -> bytes:
    """PkgLength for a term whose contents, behind the PkgLength itself, have `size` bytes (section 20.2.4)."""
    if size + 1 < 1 << 6:
        return bytes([size + 1])
    for extra in (1, 2, 3):
        total = size + 1 + extra
        if total < 1 << 4 + 8 * extra:
            return bytes([extra << 6 | total & 0xF]) + (total >> 4).to_bytes(extra, "little")
    raise AssertionError(f"a term of {size} bytes does not fit in a PkgLength")


def name_string(path: str) -> bytes:
    """A NameString: `\\_SB_`, `_HID`, `\\_SB_.PCI0`. Segments are filled up with underscores (section 20.2.2)."""
    root = b"\\" if path.startswith("\\") else b""
    segments = [segment.ljust(4, "_").encode("ascii") for segment in path.lstrip("\\").split(".") if segment]
    assert all(len(segment) == 4 for segment in segments), path
    match len(segments):
        case 0: return root + b"\x00"
        case 1: return root + segments[0]
        case 2: return root + b"\x2e" + b"".join(segments)
        case count: return root + b"\x2f" + bytes([count]) + b"".join(segments)  # fmt: skip


def integer(value: int) -> bytes:
    """The shortest ComputationalData for an unsigned integer."""
    if value == 0:
        return ZERO_OP
    if value == 1:
        return ONE_OP
    if value < 1 << 8:
        return BYTE_PREFIX + pack("<B", value)
    if value < 1 << 16:
        return WORD_PREFIX + pack("<H", value)
    if value < 1 << 32:
        return DWORD_PREFIX + pack("<I", value)
    return QWORD_PREFIX + pack("<Q", value)


def string(text: str) -> bytes:
    """A String object."""
    return STRING_PREFIX + text.encode("ascii") + b"\0"


def eisa_id(identifier: str) -> bytes:
    """A compressed EISA identifier, as `EISAID("PNP0501")` gives it (section 19.3.4)."""
    letters, digits = identifier[:3], int(identifier[3:], 16)
    packed = 0
    for letter in letters:
        packed = packed << 5 | ord(letter) - 0x40
    return DWORD_PREFIX + pack(">HH", packed, digits)


def package(*elements: bytes) -> bytes:
    """A Package of terms."""
    body = bytes([len(elements)]) + b"".join(elements)
    return PACKAGE_OP + package_length(len(body)) + body


def buffer(data: bytes) -> bytes:
    """A Buffer that holds `data`."""
    body = integer(len(data)) + data
    return BUFFER_OP + package_length(len(body)) + body


def name(path: str, value: bytes) -> bytes:
    """`Name (path, value)`."""
    return NAME_OP + name_string(path) + value


def scope(path: str, *terms: bytes) -> bytes:
    """`Scope (path) { terms }`."""
    body = name_string(path) + b"".join(terms)
    return SCOPE_OP + package_length(len(body)) + body


def device(path: str, *terms: bytes) -> bytes:
    """`Device (path) { terms }`."""
    body = name_string(path) + b"".join(terms)
    return DEVICE_OP + package_length(len(body)) + body


# -- resource descriptors (section 6.4) ------------------------------------------------------------------------------


def resources(*descriptors: bytes) -> bytes:
    """`ResourceTemplate () { descriptors }`."""
    return buffer(b"".join(descriptors) + END_TAG)


def io(port: int, count: int, align: int = 1) -> bytes:
    """`IO (Decode16, port, port, align, count)`."""
    return pack("<BBHHBB", 0x47, 1, port, port, align, count)


def irq(number: int) -> bytes:
    """`IRQNoFlags () {number}`: edge-triggered, active high."""
    return pack("<BH", 0x22, 1 << number)


MEMORY_RANGE, IO_RANGE, BUS_RANGE = 0, 1, 2
_MIN_FIXED, _MAX_FIXED = 1 << 2, 1 << 3


def _address_space(kind: int, type_flags: int, first: int, last: int, width: int) -> bytes:
    """A Word or DWord Address Space Descriptor of a producer: granularity, minimum, maximum, translation, length."""
    tag, code = {2: (0x88, "H"), 4: (0x87, "I")}[width]
    body = pack("<BBB", kind, _MIN_FIXED | _MAX_FIXED, type_flags)
    body += pack(f"<5{code}", 0, first, last, 0, last - first + 1)
    return pack("<BH", tag, len(body)) + body


def bus_numbers(first: int, last: int) -> bytes:
    """`WordBusNumber`: the buses behind a host bridge."""
    return _address_space(BUS_RANGE, 0, first, last, 2)


def io_window(first: int, last: int) -> bytes:
    """`WordIO`: ports that a host bridge passes on (the whole range, ISA and non-ISA)."""
    return _address_space(IO_RANGE, 3, first, last, 2)


def memory_window(first: int, last: int) -> bytes:
    """`DWordMemory (..., NonCacheable, ReadWrite, ...)`: guest-physical addresses that a host bridge passes on."""
    return _address_space(MEMORY_RANGE, 1, first, last, 4)
