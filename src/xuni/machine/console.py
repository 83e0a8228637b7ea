"""The serial console between a UART and a host's stream: buffered output, held-back input."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from xuni.devices.uart import Uart16550

FLUSH_SIZE: Final = 4096


class SerialConsole:
    """`write` takes what the guest printed, a line at a time where it prints lines.

    Input waits in `queue` until the guest listens, so that what is typed or piped in early is not lost to a driver
    that empties the receiver while it sets up.
    """

    uart: Uart16550

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._output = bytearray()
        self.queue = bytearray()

    def transmit(self, byte: int) -> None:
        """A byte from the guest."""
        self._output.append(byte)
        if byte == 0x0A or len(self._output) >= FLUSH_SIZE:
            self.flush()

    def flush(self) -> None:
        """Let the output out, and input in if the guest has begun to listen."""
        if self._output:
            data = bytes(self._output)
            self._output.clear()
            self._write(data)
        if self.queue:
            self.pump()

    def feed(self, data: bytes) -> None:
        """Bytes from the host; the caller holds the bus lock and bounds what it queues by looking at `queue`."""
        self.queue += data
        self.pump()

    def pump(self) -> None:
        """Hand the UART what it has room for."""
        if self.queue and self.uart.listening:
            del self.queue[: self.uart.receive(bytes(self.queue[:64]))]
