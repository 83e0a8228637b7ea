"""`lo`, the one interface that every network namespace is born with, and the only one that needs no netlink."""

from __future__ import annotations

import _socket
import fcntl

from xuni.container.step import Run, Step


class Loopback(Step):
    """Bring `lo` up in the new network namespace."""

    def apply(self, run: Run) -> None:
        socket = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
        try:
            request = b"lo".ljust(16, b"\0")  # struct ifreq, 40 bytes
            flags = int.from_bytes(fcntl.ioctl(socket.fileno(), 0x8913, request + bytes(24))[16:18], "little")  # SIOCGIFFLAGS
            up = request + (flags | 1).to_bytes(2, "little") + bytes(22)
            fcntl.ioctl(socket.fileno(), 0x8914, up)  # SIOCSIFFLAGS, IFF_UP
        finally:
            socket.close()
