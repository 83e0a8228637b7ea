"""The soft engine without compiled code: the same decoder, loop and instructions over plain ints, on the same memory
layout.

It is thousands of times slower than compiled code and needs nothing but Python. What it is for: a second opinion on
what compiled code does, instruction by instruction, and a place to stop in with a debugger.

The `handler` of an Op is a number here. `PlainCpu` is the processor that native functions see; `PlainHandler` is what
the instruction in progress sees, and has what is static in a compiled handler.
"""

from __future__ import annotations

import ctypes
import functools
import os
import time
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from xuni.engine.soft import memory, program, run, tables, traces
from xuni.engine.soft.code_cache import CodeCache
from xuni.engine.soft.cpu import SoftCpu
from xuni.engine.soft.endings import Endings
from xuni.engine.soft.handlers import SPECIALS, Handler, Shape, emit, is_cold, returns, set_up, set_up_special
from xuni.engine.soft.records import OP_SIZE, Effect, LeafFlag, Op
from xuni.engine.soft.vcpu import BaseVcpu, SoftConfig
from xuni.isa.bits import Bits, const, signed, u64
from xuni.isa.stage import Unwind
from xuni.isa.struct import Place, PlainPlace
from xuni.isa.x86.encodings import Encoding
from xuni.isa.x86.state import State
from xuni.memory.guest import GuestMemory

if TYPE_CHECKING:
    from collections.abc import Callable

_QUANTUM: Final = 100  # instructions, about a quarter of a second


# -- tables ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class PlainHandlers:
    """The decoder's tables, and which instruction in which shape each handler number means."""

    tables: dict[str, Any]
    numbers: bytes  # what Ops hold: 1 for the first handler, and so on
    meaning: list[tuple[Encoding, Shape] | None]  # None: one of SPECIALS


@functools.cache
def plain_handlers() -> PlainHandlers:
    """One handler for each shape of each encoding; none is generated."""
    encodings = program.everything()
    meaning: dict[str, tuple[Encoding, Shape]] = {}
    leaves = []
    for number, encoding in enumerate(encodings):
        leaf = program.plan_leaf(encoding)
        # Flags are always read from the state, so neither variants by their producer nor fused pairs are of use.
        leaf.flags &= ~int(LeafFlag.CONDITION | LeafFlag.JCC)
        by_asize = not program.has_memory(encoding) and not leaf.flags & LeafFlag.BRANCH
        if by_asize:
            leaf.flags |= LeafFlag.FORM_IS_ASIZE
        leaf.names = [""] * program.positions(leaf)
        for position, shape in program.shapes(leaf, by_asize):
            name = leaf.names[position] = f"h{number}_{position}"
            meaning[name] = encoding, shape
        leaves.append(leaf.packed())
    effects = {name: (int(Effect.UNKNOWN), ()) for name in meaning}
    assembled = tables.assemble(encodings, [(leaves, effects, [], {})], None)
    names: list[str] = assembled["names"]
    numbers = array("Q", range(1, len(names) + 1)).tobytes()
    return PlainHandlers(assembled, numbers, [meaning.get(name) for name in names])


@functools.cache
def _updates(number: int) -> tuple[bool, ...]:
    """Which operands of a handler are both read and written: what generating it finds out."""
    meaning = plain_handlers().meaning[number - 1]
    assert meaning is not None
    encoding, shape = meaning
    probe = Handler("probe", encoding.definition, encoding, shape, slow=True)
    emit(probe, lambda native: None)
    return probe.updates


# -- the processor -----------------------------------------------------------------------------------------------------
class PlainCpu(SoftCpu):
    """The processor between instructions, and for native functions."""

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self.long = False  # what depends on the mode asks the state

    def at(self, pointer: Bits) -> Place:
        # SAFETY: pointers come from the engine's own records and from the slots of guest memory, as in compiled code.
        return PlainPlace(int(pointer))

    def handler_address(self, name: str) -> Bits:
        return u64(1 + next(i for i, special in enumerate(SPECIALS) if special.__name__ == name))

    def copy_bytes(self, target: Bits, source: Bits, count: Bits) -> None:
        # SAFETY: the caller has both ranges from `window` or from the engine's own records.
        ctypes.memmove(int(target), int(source), int(count))

    def fill_bytes(self, target: Bits, byte: Bits, count: Bits) -> None:
        # SAFETY: as in `copy_bytes`.
        ctypes.memset(int(target), int(byte), int(count))

    def yield_host(self) -> None:
        os.sched_yield()

    def clock(self) -> Bits:
        return u64(time.monotonic_ns()) - self.s.clock_base

    def divide(self, high: Bits, low: Bits, divisor: Bits, is_signed: bool) -> tuple[Bits, Bits]:
        width = low.width
        dividend, by = int(high) << width | int(low), int(divisor)
        if is_signed:
            dividend, by = signed(dividend, 2 * width), signed(by, width)
        quotient = abs(dividend) // abs(by) * (1 if (dividend < 0) == (by < 0) else -1)
        return const(quotient, width), const(dividend - quotient * by, width)

    def attempt(self, function: Callable[..., None]) -> Bits:
        try:
            function(self)
        except Unwind as unwind:
            return u64(unwind.code)
        return u64(0)

    def enter(self) -> None:
        handler = PlainHandler(self)
        while handler.following:
            handler.execute()


class Retry(Exception):
    """The instruction starts over."""


class PlainHandler(Endings, PlainCpu):
    """The processor as the instruction in progress sees it. `following` is the next Op, or 0 to leave."""

    def __init__(self, outside: PlainCpu) -> None:
        super().__init__(outside.s)
        self._outside = outside
        self.following = int(self.s.uop)
        self.n = self.s.budget

    @property
    def outside(self) -> PlainCpu:
        return self._outside

    @property
    def op(self) -> Op:
        return Op(PlainPlace(self.u))

    def execute(self) -> None:
        """One Op."""
        s = self.s
        self.u = self.following
        s.uop, s.budget = self.u, self.n
        self._entry = s.flag_kind, s.flag_a, s.flag_b
        number = int(self.op.handler)
        meaning = plain_handlers().meaning[number - 1]
        self.ended = False
        try:
            if meaning is None:
                set_up_special(self)
                SPECIALS[number - 1](self)
                assert self.ended
                return
            encoding, shape = meaning
            definition = encoding.definition
            operands = set_up(self, definition, encoding, shape, _updates(number))
            if returns(definition):
                s.rip = self.next_rip
            definition.run(self, *operands)
            if not self.ended:
                if returns(definition):
                    self.leave()
                else:
                    self.next()
        except Retry:
            s.flag_kind, s.flag_a, s.flag_b = self._entry
            self.again(self.n)
        except Unwind:
            if s.uop != 0 and (meaning is None or not is_cold(meaning[0].definition)):
                s.flag_kind, s.flag_a, s.flag_b = self._entry  # only complete instructions hand their flags on
            raise

    # -- endings -------------------------------------------------------------------------------------------------------
    def _go(self, op: int, n: Bits) -> None:
        self.ended, self.following, self.n = True, op, n

    def next(self) -> None:
        self._go(self.u + OP_SIZE, self.n)

    def dispatch(self, op: Bits, n: Bits) -> None:
        self._go(int(op), n)

    def again(self, n: Bits) -> None:
        self._go(self.u, n)

    def retry(self) -> None:
        raise Retry

    def finish(self) -> None:
        self._go(0, self.n)

    def common(self, name: str, n: Bits) -> None:
        s = self.s
        s.uop, s.budget = 0, n
        if name == "leave" or n.slt(0):
            self._go(0, n)
        elif name == "jump_miss":
            self._go(int(traces.lookup(self, u64(0))), n)
        else:
            assert name == "link_miss"
            self._go(int(traces.lookup_link(self, u64(self.u))), n)


def _host_write(state: int) -> None:
    # SAFETY: the address is that of the code cache's own state, which lives as long as the cache.
    memory.host_write(PlainCpu(State(PlainPlace(state))))


class PlainVcpu(BaseVcpu):
    """A virtual CPU without compiled code."""

    quantum = _QUANTUM

    def __init__(self, memory: GuestMemory, config: SoftConfig | None = None, *, clock_base: int | None = None,
                 cache: CodeCache | None = None) -> None:  # fmt: skip
        handlers = plain_handlers()
        config = config or SoftConfig()
        cache = cache or CodeCache(memory, handlers.tables, handlers.numbers, config.features, _host_write)
        super().__init__(memory, cache, config, clock_base)
        self.cpu = PlainCpu(self.state)

    def _call(self) -> None:
        run.run(self.cpu)

    def _flush(self) -> None:
        memory.flush_tlb(self.cpu)

    def _empty_arena(self) -> None:
        run.empty_arena(self.cpu)
