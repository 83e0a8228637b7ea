"""What a small guest is, and the board that it talks to, whatever executes it."""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from xuni.exits import (
    Data,
    EngineFailure,
    Exit,
    Halt,
    Inject,
    InterruptWindow,
    MmioRead,
    PortIn,
    PortOut,
    Reply,
    Resume,
    Shutdown,
    Sliced,
    Vcpu,
)
from xuni.isa.x86.cpustate import CpuState
from xuni.memory.guest import GuestMemory

MEMORY = 1 << 20
SECONDS = 60
END, RAISE, NMI, WAKE = 0xE0, 0xE1, 0xE2, 0xE3
"""Ports: the guest is done; raise an interrupt (the vector is written); an NMI; an interrupt at the next HLT."""


@dataclass(frozen=True, slots=True)
class Guest:
    """Code and its surroundings. `labels` are linear addresses, for the reports."""

    name: str
    start: CpuState
    memory: dict[int, bytes]
    labels: dict[str, int] = field(default_factory=dict)


@contextmanager
def limit(seconds: int = SECONDS) -> Iterator[None]:
    """End the test if a guest does not end."""

    def late(*_: object) -> None:
        raise TimeoutError("the guest does not end")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class Board:
    """What the guests of `tests.engines.guests` talk to."""

    vcpu: Vcpu
    exits: list[Exit] = field(default_factory=list)
    reply: Reply = field(default_factory=Resume)
    vector: int = 0
    wake: int = 0
    reads: int = 0
    done: bool = False

    def run(self) -> Exit:
        """Up to the next exit, and its answer."""
        leave = self.vcpu.run(self.reply)
        self.reply = self._answer(leave)
        if not isinstance(leave, Sliced):
            self.exits.append(leave)
        return leave

    def to_the_end(self) -> None:
        """Until the guest is done."""
        with limit():
            while not self.done:
                self.run()

    def _answer(self, leave: Exit) -> Reply:
        match leave:
            case PortOut(port, _, data) if port == RAISE:
                self.vector = data & 0xFF
                self.vcpu.set_interrupt(True)
            case PortOut(port, _, _) if port == NMI:
                self.vcpu.nmi()
            case PortOut(port, _, data) if port == WAKE:
                self.wake = data & 0xFF
            case PortOut(port, _, _) if port == END:
                self.done = True
            case PortIn(_, size) | MmioRead(_, size):
                self.reads += 1
                return Data(self.reads * 0x1122_3344_5566_7788 & (1 << 8 * size) - 1)
            case InterruptWindow():
                self.vcpu.set_interrupt(False)
                return Inject(self.vector)
            case Halt():
                self.done = not self.wake
                self.vector, self.wake = self.wake, 0
                self.vcpu.set_interrupt(bool(self.vector))
            case Shutdown() | EngineFailure():
                self.done = True
        return Resume()


def memory_of(guest: Guest) -> GuestMemory:
    """Guest memory with the guest in it."""
    memory = GuestMemory(MEMORY)
    for address, data in guest.memory.items():
        memory.write(address, data)
    return memory


def image(memory: GuestMemory) -> bytes:
    """All of it."""
    return ctypes.string_at(memory.slots[0].host_address, MEMORY)
