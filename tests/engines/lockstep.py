"""Runs one guest on several virtual CPUs side by side, and compares what they are after every instruction."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator

from tests.engines.board import MEMORY, Board, Guest, image, memory_of
from xuni.engine.soft.plain import PlainVcpu
from xuni.engine.soft.vcpu import BaseVcpu, SoftVcpu
from xuni.exits import Exit
from xuni.isa.struct import Array, Field
from xuni.isa.x86.state import State


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
        self.memory = memory_of(guest)
        self.vcpu: BaseVcpu = kind(self.memory, clock_base=0)
        self.vcpu.state.random_seed = 1
        self.vcpu.start(guest.start)
        self.board = Board(self.vcpu)
        self.exits = self.board.exits

    @property
    def done(self) -> bool:
        """Whether the guest has come to its end."""
        return self.board.done

    def run(self, steps: int) -> Exit:
        """Execute `steps` instructions (0: no limit), or up to the next exit, and deal with that."""
        self.vcpu.state.steps = steps
        return self.board.run()

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
        return image(self.memory)

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
