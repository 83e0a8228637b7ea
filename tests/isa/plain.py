"""Instruction definitions over plain ints: a processor with a few pages of flat memory, and operands to call them with.

    cpu = PlainCpu()
    run(cpu, "ADD", Register(cpu, Gpr.RAX, 32), Value(cpu, 5, 32))

Memory is the pages that a test maps; every other address is a page fault. Privilege is CPL 3 unless a test says
otherwise.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from xuni.isa.bits import Bits, const, mask, u64
from xuni.isa.struct import Place, PlainPlace
from xuni.isa.x86 import bcd, bit, integer, logic, misc, move, push, shift, string  # noqa: F401  (they register)
from xuni.isa.x86.cpu import Cpu
from xuni.isa.x86.exceptions import GuestFault, Vector
from xuni.isa.x86.flags import FLAG_BITS, Kind
from xuni.isa.x86.instruction import DEFINITIONS, Operand
from xuni.isa.x86.state import ARITHMETIC, Attr, Eflags, Gpr, Seg, State

PAGE = 4096
WRITE, USER = 2, 4
"""Bits of a page fault's error code."""


class PlainCpu(Cpu):
    """A processor whose memory is `pages`: linear page address to a buffer."""

    def __init__(self) -> None:
        self.buffer = ctypes.create_string_buffer(State.SIZE)
        # SAFETY: `buffer` lives as long as the processor that points into it.
        super().__init__(State(PlainPlace(ctypes.addressof(self.buffer))))
        self.pages: dict[int, ctypes.Array[ctypes.c_char]] = {}
        self.instruction_rip = 0
        self.length = 0
        self.limit = 4096
        self.again = False
        self.modes_changed = 0
        self.lacking: set[str] = set()
        self.tolerant = False
        self.data_segment = const(Seg.DS, 8)
        self.s.cpl = 3
        self.s.eflags = int(Eflags.FIXED | Eflags.IF)
        for segment in range(6):
            self.s.seg_limit[segment] = 0xFFFF_FFFF
            self.s.seg_attr[segment] = int(Attr.P | Attr.S | Attr.DB | 3)

    # -- what tests use --------------------------------------------------------------------------------------------
    def map(self, address: int, data: bytes = b"") -> None:
        """A page of memory that begins with `data`."""
        self.pages[address] = ctypes.create_string_buffer(data, PAGE)

    def peek(self, address: int, size: int) -> bytes:
        return bytes(self.pages[(address + i) & -PAGE].raw[(address + i) % PAGE] for i in range(size))

    def poke(self, address: int, data: bytes) -> None:
        for i, byte in enumerate(data):
            self.pages[(address + i) & -PAGE][(address + i) % PAGE] = bytes([byte])

    @property
    def eflags(self) -> int:
        return int(self.s.eflags) | int(self.flags.value)

    @eflags.setter
    def eflags(self, value: int) -> None:
        self.s.eflags = value & ~ARITHMETIC | Eflags.FIXED
        self.s.flag_kind, self.s.flag_a, self.s.flag_b = int(Kind.RAW), 0, value & ARITHMETIC

    def gprs(self) -> list[int]:
        return [int(self.s.gpr[n]) for n in range(16)]

    @property
    def undefined(self) -> int:
        """The flags that the last instruction left undefined, at their places in EFLAGS."""
        return sum(1 << FLAG_BITS[name] for name in self.flags.undefined)

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Undo what happens inside."""
        state, pages = self.buffer.raw, {at: page.raw for at, page in self.pages.items()}
        try:
            yield
        finally:
            ctypes.memmove(self.buffer, state, len(state))
            for at, page in self.pages.items():
                ctypes.memmove(page, pages[at], PAGE)

    # -- memory ----------------------------------------------------------------------------------------------------
    def linear(self, segment: int | Bits, offset: Bits, size: int, write: bool = False) -> int:
        number, at = int(segment), int(offset)
        fault = Vector.SS if number == Seg.SS else Vector.GP
        if self.long:
            at = at + (int(self.s.seg_base[number]) if number >= Seg.FS else 0) & (1 << 64) - 1
            if not -1 <= (at - (1 << 64) if at >> 63 else at) >> 47 <= 0:
                raise GuestFault(self, fault, 0)
            return at
        if at + size - 1 > int(self.s.seg_limit[number]) or (write and number == Seg.CS):
            raise GuestFault(self, fault, 0)
        return at + int(self.s.seg_base[number]) & 0xFFFF_FFFF

    def check(self, address: int, size: int, write: bool) -> None:
        for at in (address, (address + size - 1) & -PAGE):
            if at & -PAGE not in self.pages:
                self.s.fault_address = at
                raise GuestFault(self, Vector.PF, (WRITE if write else 0) | USER)

    def load(self, segment: int | Bits, offset: Bits, width: int, lanes: int = 1) -> Bits:
        size = width * lanes // 8
        address = self.linear(segment, offset, size)
        try:
            self.check(address, size, False)
        except GuestFault:
            if not self.tolerant:
                raise
            return const(0, width * lanes).as_lanes(width)
        return const(int.from_bytes(self.peek(address, size), "little"), width * lanes).as_lanes(width)

    def store(self, segment: int | Bits, offset: Bits, value: Bits) -> None:
        whole = value.as_lanes(value.width * value.lanes)
        address = self.linear(segment, offset, whole.width // 8, True)
        self.check(address, whole.width // 8, True)
        self.poke(address, int(whole).to_bytes(whole.width // 8, "little"))

    def window(self, segment: int | Bits, offset: Bits, write: bool) -> tuple[Bits, Bits]:
        address = self.linear(segment, offset, 1, write)
        self.check(address, 1, write)
        room = PAGE - address % PAGE
        if not self.long:
            room = min(room, int(self.s.seg_limit[int(segment)]) + 1 - int(offset))
        return u64(ctypes.addressof(self.pages[address & -PAGE]) + address % PAGE), u64(room)

    def at(self, pointer: Bits) -> Place:
        # SAFETY: `pointer` comes from `window`, whose buffers live as long as the processor.
        return PlainPlace(int(pointer))

    def copy_bytes(self, target: Bits, source: Bits, count: Bits) -> None:
        for i in range(int(count)):  # low addresses first, whatever overlaps
            ctypes.memmove(int(target) + i, int(source) + i, 1)

    def fill_bytes(self, target: Bits, byte: Bits, count: Bits) -> None:
        ctypes.memset(int(target), int(byte), int(count))

    # -- the stack -------------------------------------------------------------------------------------------------
    def _top(self, add: int) -> Bits:
        return (self.rsp + add) & int(push.stack_mask(self))

    def push(self, value: Bits) -> None:
        size = value.width // 8
        self.store(Seg.SS, self._top(-size), value)
        push.set_stack_register(self, Gpr.RSP, self.rsp - size)

    def pop(self, width: int) -> Bits:
        value = self.load(Seg.SS, self._top(0), width)
        push.set_stack_register(self, Gpr.RSP, self.rsp + width // 8)
        return value

    # -- the rest --------------------------------------------------------------------------------------------------
    @property
    def rip(self) -> Bits:
        return u64(self.instruction_rip)

    @property
    def next_rip(self) -> Bits:
        return u64(self.instruction_rip + self.length)

    @property
    def address_mask(self) -> Bits:
        return const(mask(self.asize), 64)

    def mode_changed(self) -> None:
        self.modes_changed += 1

    def repeat(self) -> None:
        self.again = True

    @property
    def iteration_limit(self) -> Bits:
        return u64(self.limit)

    def has_feature(self, name: str) -> Bits:
        return const(int(name not in self.lacking), 1)

    def random(self) -> Bits:
        return u64(0x0123_4567_89AB_CDEF)

    def divide(self, high: Bits, low: Bits, divisor: Bits, is_signed: bool) -> tuple[Bits, Bits]:
        assert not is_signed
        dividend, by = int(high) << low.width | int(low), int(divisor)
        assert dividend // by >> low.width == 0, "the caller checks that the quotient fits"
        return const(dividend // by, low.width), const(dividend % by, low.width)


# -- operands ------------------------------------------------------------------------------------------------------


class Register:
    """A general register; `high` is AH ... BH."""

    lanes = 1
    is_memory = False

    def __init__(self, cpu: PlainCpu, number: int, width: int, high: bool = False) -> None:
        self.cpu, self.number, self.width, self.high = cpu, number, width, high

    def read(self) -> Bits:
        return self.cpu.reg(self.number, 16).field(8, 8) if self.high else self.cpu.reg(self.number, self.width)

    def write(self, value: Bits) -> None:
        assert value.width == self.width
        if self.high:
            self.cpu.set_reg(self.number, value.zext(16) << 8 | self.cpu.reg(self.number, 16) & 0xFF)
        else:
            self.cpu.set_reg(self.number, value)

    @property
    def index(self) -> Bits:
        return const(self.number, 8)

    @property
    def offset(self) -> Bits:
        raise AssertionError("not a memory operand")

    segment = offset

    def displaced(self, by: Bits) -> Operand:
        raise AssertionError("not a memory operand")


class Value(Register):
    """An immediate."""

    def __init__(self, cpu: PlainCpu, value: int, width: int) -> None:
        super().__init__(cpu, 0, width)
        self.value = const(value, width)

    def read(self) -> Bits:
        return self.value

    def write(self, value: Bits) -> None:
        raise AssertionError("an immediate cannot be written")


class Memory(Register):
    """Memory at a fixed place."""

    is_memory = True

    def __init__(self, cpu: PlainCpu, width: int, segment: int | Bits, offset: Bits | int, lanes: int = 1) -> None:
        super().__init__(cpu, 0, width)
        self.lanes = lanes
        self._segment = const(int(segment), 8)
        self._offset = const(int(offset), 64)

    @property
    def offset(self) -> Bits:
        return self._offset

    @property
    def segment(self) -> Bits:
        return self._segment

    def displaced(self, by: Bits) -> Operand:
        return Memory(self.cpu, self.width, self.segment, (self.offset + by) & self.cpu.address_mask)

    def move(self, offset: int) -> None:
        self._offset = const(offset, 64)

    def read(self) -> Bits:
        return self.cpu.load(self.segment, self.offset, self.width, self.lanes)

    def write(self, value: Bits) -> None:
        assert (value.width, value.lanes) == (self.width, self.lanes)
        self.cpu.store(self.segment, self.offset, value)


# Others define instructions of the same names (MOV to a control register), and may be loaded or not.
FAMILIES = frozenset({"integer", "logic", "shift", "bit", "move", "push", "string", "bcd", "misc"})


def run(cpu: PlainCpu, name: str, *operands: Operand, encoding: str = "") -> None:
    """Execute the definition of that name; `encoding` chooses between several (its text begins with that)."""
    found = [d for d in DEFINITIONS if d.name == name and d.run.__module__.rpartition(".")[2] in FAMILIES
             and any(e.startswith(encoding) for e in d.encodings)]
    assert len(found) == 1, f"{name} {encoding}: {len(found)} definitions"
    cpu.flags.undefined.clear()
    found[0].run(cpu, *operands)
