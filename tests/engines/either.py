"""Small guests on either engine, through the interface that both have and nothing else."""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from tests.engines.lockstep import END, MEMORY, NMI, RAISE, WAKE, Guest
from xuni.engine.kvm.engine import KvmEngine, lacking
from xuni.engine.soft.vcpu import SoftConfig, SoftVcpu
from xuni.exits import (
    Data,
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
from xuni.exits import EngineFailure as Failure
from xuni.isa.x86.features import DEFAULT
from xuni.machine.machine import CpuConfig
from xuni.memory.guest import GuestMemory

SECONDS = 60
Engine = Callable[[GuestMemory, CpuConfig], Vcpu]


def soft(memory: GuestMemory, config: CpuConfig) -> Vcpu:
    """xuni's own engine."""
    return SoftVcpu(memory, SoftConfig(DEFAULT, config.index, config.count), clock_base=0)


def kvm(memory: GuestMemory, config: CpuConfig) -> Vcpu:
    """KVM."""
    return KvmEngine(DEFAULT)(memory, config)


needs_kvm = pytest.mark.skipif(bool(lacking()), reason=lacking() or "-")
ENGINES = [pytest.param(soft, id="soft"), pytest.param(kvm, id="kvm", marks=needs_kvm)]


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
            case Shutdown() | Failure():
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
