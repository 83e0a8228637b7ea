"""`lo`, the one interface that every network namespace is born with, and the only one that needs no netlink."""

from __future__ import annotations

from xuni.container.step import Run, Step
from xuni.host.linux import system as os
from xuni.host.linux.calls import space

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

SIOCGIFFLAGS: Final = 0x8913
SIOCSIFFLAGS: Final = 0x8914
IFF_UP: Final = 1


class Loopback(Step):
    """Bring `lo` up in the new network namespace."""

    def apply(self, run: Run) -> None:
        socket = run.kernel.socket_inet()
        try:
            request = space(40, b"lo")  # struct ifreq: the name, 16 bytes, then the flags
            run.kernel.ioctl(socket, SIOCGIFFLAGS, request, "SIOCGIFFLAGS")
            flags = int.from_bytes(request.raw[16:18], "little")
            request.raw = b"lo".ljust(16, b"\0") + (flags | IFF_UP).to_bytes(2, "little")
            run.kernel.ioctl(socket, SIOCSIFFLAGS, request, "SIOCSIFFLAGS")
        finally:
            os.close(socket)
