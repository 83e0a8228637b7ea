"""The framing of gdb's remote serial protocol: `$data#sum`, acknowledgements, and the lone byte of Ctrl-C.

Spec: "Debugging with GDB", appendix E, section "Overview".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

PACKET_SIZE: Final = 0x8000
"""Bytes of a packet's data, as we tell gdb; it may escape each of them, and adds four around them."""
ESCAPE: Final = 0x7D
_ESCAPED: Final = b"#$*}"


class Signal(Enum):
    """What is not a packet."""

    ACK = b"+"
    NACK = b"-"
    INTERRUPT = b"\x03"
    BAD_SUM = b""
    """A packet that was damaged on the way."""


class Garbage(Exception):
    """Bytes that no debugger sends: whoever is there speaks another protocol."""


@dataclass(slots=True)
class PacketReader:
    """Splits what gdb sends. Never keeps more than one packet."""

    _buffer: bytearray = field(default_factory=bytearray)

    def feed(self, data: bytes) -> Iterator[bytes | Signal]:
        """Packets, unescaped, and signals, in order. Raises Garbage for anything else."""
        buffer = self._buffer
        buffer += data
        while buffer:
            if buffer[0] != ord("$"):
                try:
                    signal = Signal(bytes(buffer[:1]))
                except ValueError:
                    raise Garbage(f"it sent {bytes(buffer[:16])!r}, which is not gdb's protocol") from None
                del buffer[0]
                yield signal
                continue
            end = buffer.find(b"#", 1, 2 * PACKET_SIZE + 2)
            if end < 0 and len(buffer) > 2 * PACKET_SIZE + 1:
                raise Garbage(f"it sent a packet of more than {PACKET_SIZE} bytes")
            if end < 0 or len(buffer) < end + 3:
                return
            body, digits = bytes(buffer[1:end]), bytes(buffer[end + 1 : end + 3])
            del buffer[: end + 3]
            yield _unescape(body) if digits.lower() == b"%02x" % (sum(body) & 0xFF) else Signal.BAD_SUM


def frame(data: bytes) -> bytes:
    """A packet around data that holds none of the bytes with a meaning, or has them escaped."""
    return b"$%b#%02x" % (data, sum(data) & 0xFF)


def escape(data: bytes) -> bytes:
    """Binary data for a packet."""
    if not any(byte in data for byte in _ESCAPED):
        return data
    return b"".join(bytes((ESCAPE, byte ^ 0x20)) if byte in _ESCAPED else bytes((byte,)) for byte in data)


def _unescape(data: bytes) -> bytes:
    first, *others = data.split(bytes((ESCAPE,)))
    return first + b"".join(bytes((part[0] ^ 0x20,)) + part[1:] for part in others if part)
