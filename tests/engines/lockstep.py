"""Runs one guest on several virtual CPUs side by side, and compares what they are after every instruction."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from xuni.engine.soft.plain import PlainVcpu
from xuni.engine.soft.vcpu import BaseVcpu, SoftVcpu
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
)
from xuni.isa.struct import Array, Field
from xuni.isa.x86.cpustate import CpuState
from xuni.isa.x86.state import State
from xuni.memory.guest import GuestMemory

MEMORY = 1 << 20
END, RAISE, NMI, WAKE = 0xE0, 0xE1, 0xE2, 0xE3
"""Ports: the guest is done; raise an interrupt (the vector is written); an NMI; an interrupt at the next HLT."""


@dataclass(frozen=True, slots=True)
class Guest:
    """Code and its surroundings. `labels` are linear addresses, for the reports."""

    name: str
    start: CpuState
    memory: dict[int, bytes]
    labels: dict[str, int] = field(default_factory=dict)


def _compared() -> tuple[str, ...]:
    """The names of `State` that are the same in every engine at every instruction boundary."""
    names = [n for n, item in vars(State).items() if isinstance(item, Field | Array)]
    own = {"misc_msr"}  # what hosts decide
    return ("gpr", "seg_base", *(n for n in names[names.index("rip") : names.index("fault_vector")] if n not in own))


COMPARED = _compared()


class Runner:
    """One virtual CPU with its own memory and board."""

    def __init__(self, kind: type[PlainVcpu] | type[SoftVcpu], guest: Guest) -> None:
        self.guest = guest
        self.memory = GuestMemory(MEMORY)
        for address, data in guest.memory.items():
            self.memory.write(address, data)
        self.vcpu: BaseVcpu = kind(self.memory, clock_base=0)
        self.vcpu.state.random_seed = 1
        self.vcpu.start(guest.start)
        self.exits: list[Exit] = []
        self.reply: Reply = Resume()
        self.vector = 0
        self.wake = 0
        self.reads = 0
        self.done = False

    def run(self, steps: int) -> Exit:
        """Execute `steps` instructions (0: no limit), or up to the next exit, and deal with that."""
        self.vcpu.state.steps = steps
        leave = self.vcpu.run(self.reply)
        self.reply = self._answer(leave)
        if not isinstance(leave, Sliced):
            self.exits.append(leave)
        return leave

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

    def values(self) -> dict[str, object]:
        """The architectural state."""
        s = self.vcpu.state
        out: dict[str, object] = {"rflags": self.vcpu.rflags}
        for name in COMPARED:
            item = vars(State)[name]
            value = getattr(s, name)
            out[name] = tuple(value[i].raw for i in range(item.count)) if isinstance(item, Array) else value.raw
        return out

    def image(self) -> bytes:
        """Guest memory."""
        return ctypes.string_at(self.memory.slots[0].host_address, MEMORY)

    @property
    def where(self) -> str:
        """RIP as the nearest label."""
        rip = int(self.vcpu.state.rip)
        below = [(at, name) for name, at in self.guest.labels.items() if at <= rip]
        at, name = max(below, default=(0, ""))
        return f"{rip:#x} ({name}+{rip - at:#x})"

    def close(self) -> None:
        self.vcpu.close()
        self.memory.close()


def differences(a: Runner, b: Runner) -> list[str]:
    """What two processors do not agree on, memory included."""
    found = []
    x, y = a.values(), b.values()
    for name in x:
        if x[name] != y[name]:
            found.append(f"{name}: {_hex(x[name])}, {_hex(y[name])}")
    first, second = a.memory.slots[0].host_address, b.memory.slots[0].host_address
    if _memcmp(first, second, MEMORY):
        i, j = a.image(), b.image()
        at = next(n for n in range(MEMORY) if i[n] != j[n])
        found.append(f"memory at {at:#x}: {i[at : at + 16].hex()}, {j[at : at + 16].hex()}")
    return found


def _hex(value: object) -> str:
    if isinstance(value, tuple):
        return "(" + " ".join(_hex(v) for v in value) + ")"
    return hex(value) if isinstance(value, int) else str(value)


_memcmp: Callable[[int, int, int], int] = ctypes.CDLL(None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)  # type: ignore[attr-defined]


def in_step(a: Runner, b: Runner, limit: int) -> Iterator[str]:
    """Run two processors instruction by instruction; yields the differences after each, with where it was."""
    for number in range(limit):
        where = a.where
        first, second = a.run(1), b.run(1)
        found = differences(a, b)
        if first != second:
            found.insert(0, f"exits: {first}, {second}")
        if found:
            yield "\n    ".join([f"instruction {number} at {where}", *found])
        if a.done:
            return
    yield f"no end after {limit} instructions, at {a.where}"


def to_the_end(a: Runner, limit: int = 10_000) -> None:
    """Run at full speed until the guest is done."""
    for _ in range(limit):
        a.run(0)
        if a.done:
            return
    raise AssertionError(f"no end after {limit} exits, at {a.where}")
