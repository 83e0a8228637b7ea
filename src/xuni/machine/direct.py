"""Port accesses that an engine serves without leaving its own loop: the same work as for an exit, at half the price."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xuni.exits import Data, PortIn, PortOut

if TYPE_CHECKING:
    from xuni.machine.machine import Machine
    from xuni.machine.processor import Processor
    from xuni.trace import Probe


class DirectPorts:
    """What the loop does with `PortIn` and `PortOut`, for one processor. Whatever stops the machine kicks the processor,
    and a timer's deadline ends its `run`, so nothing else has to be looked at in between.
    """

    def __init__(self, processor: Processor, machine: Machine, on_exit: Probe, on_reply: Probe) -> None:
        self._processor = processor
        self._index = processor.index
        self._lock = machine.bus.lock
        self._read, self._write = machine.bus.ports.read, machine.bus.ports.write
        self._on_exit, self._on_reply = on_exit, on_reply

    def read(self, port: int, size: int) -> int:
        """IN."""
        if self._on_exit.on:
            self._on_exit(self._index, PortIn(port, size))
        with self._lock:
            self._processor.halted_with_interrupt = False
            value = self._read(port, size)
        if self._on_reply.on:
            self._on_reply(self._index, Data(value))
        return value

    def write(self, port: int, size: int, data: int) -> None:
        """OUT."""
        if self._on_exit.on:
            self._on_exit(self._index, PortOut(port, size, data))
        with self._lock:
            self._processor.halted_with_interrupt = False
            self._write(port, size, data)
