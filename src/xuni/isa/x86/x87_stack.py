"""The x87 register stack, its status and tags, SDM vol. 1, chapter 8.

`s.st[n]` is physical register n as two lanes of 64 bits: the significand, and the exponent with the sign in the low 16
bits of the upper lane. ST(i) is physical register `TOP + i` modulo 8. `s.fpu_tag` keeps 3 for empty registers and 0 for
all others; what distinguishes these is read off the registers when the tag word is stored (`full_tags`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xuni.isa.bits import U8, Bits, const, lanes_of, select, u16
from xuni.isa.softfloat import Flag
from xuni.isa.stage import native, staged, unlikely
from xuni.isa.x86.state import State

if TYPE_CHECKING:
    from xuni.isa.x86.cpu import Cpu

FLAGS, SF, ES, C0, C1, C2, TOP, C3, BUSY = 0x3F, 1 << 6, 1 << 7, 1 << 8, 1 << 9, 1 << 10, 7 << 11, 1 << 14, 1 << 15
CODES = C0 | C1 | C2 | C3
MASKS, CONTROL_BITS, CONTROL_RESET = 0x3F, 0x1F3F, 0x37F
STACK_FAULT = int(Flag.IE) | SF
INDEFINITE = lanes_of(64, 3 << 62, 0xFFFF)  # the default NaN
_ST = State.offset_of("st")
SCRATCH = State.offset_of("scratch") + 8 * 48  # where results wait for a verdict, and operands pass through memory


def physical(cpu: Cpu, i: Bits | int) -> Bits:
    """Number of the register that ST(i) is, 16 bits wide."""
    top = cpu.s.fpu_status >> 11
    number = i if isinstance(i, int) else i.zext(16)
    return (top + number) & 7


def offset(cpu: Cpu, i: Bits | int) -> Bits:
    """Where in the state ST(i) lies."""
    return (physical(cpu, i).zext(64) << 4) + _ST


def read(cpu: Cpu, i: Bits | int) -> Bits:
    """ST(i) as two lanes of 64 bits."""
    return cpu.s.place.load(offset(cpu, i), 64, 2)


def write(cpu: Cpu, i: Bits | int, value: Bits) -> None:
    """Set ST(i) and make it valid."""
    cpu.s.place.store(offset(cpu, i), value)
    set_valid(cpu, i)


def _tag_place(cpu: Cpu, i: Bits | int) -> Bits:
    """How far left the tag of ST(i) is in the tag word; rotations take it modulo 16."""
    number = i if isinstance(i, int) else i.zext(16)
    return ((cpu.s.fpu_status >> 11) + number) << 1


def is_empty(cpu: Cpu, i: Bits | int) -> Bits:
    """One bit of the tag tells: it is 0 or 3."""
    return cpu.s.fpu_tag.rotr(_tag_place(cpu, i))[0]


def set_valid(cpu: Cpu, i: Bits | int) -> None:
    cpu.s.fpu_tag = cpu.s.fpu_tag & u16(0xFFFC).rotl(_tag_place(cpu, i))


def set_empty(cpu: Cpu, i: Bits | int) -> None:
    cpu.s.fpu_tag = cpu.s.fpu_tag | u16(3).rotl(_tag_place(cpu, i))


def load_tags(cpu: Cpu, word: Bits) -> None:
    """Set the tag word from one with all four kinds of tags."""
    empty = word & (word >> 1) & 0x5555
    cpu.s.fpu_tag = empty | empty << 1


def rotate(cpu: Cpu, by: int) -> None:
    """Add to TOP."""
    status = cpu.s.fpu_status
    cpu.s.fpu_status = (status & ~TOP) | ((status + (by << 11 & 0xFFFF)) & TOP)


def pop(cpu: Cpu) -> None:
    set_empty(cpu, 0)
    rotate(cpu, 1)


def push(cpu: Cpu, value: Bits) -> None:
    """A new ST(0); the caller has found that there is room."""
    rotate(cpu, -1)
    write(cpu, 0, value)


# -- the hot path: all exceptions are masked, so none is pending, and the registers are as the instruction needs them --
def ready(cpu: Cpu, *used: Bits | int, free: bool = False) -> Bits:
    """Whether all exceptions are masked, the registers ST(i) are in use and, if `free`, a value may be pushed."""
    fine = is_masked(cpu)
    for i in used:
        fine = fine & ~is_empty(cpu, i)
    return fine & is_empty(cpu, 7) if free else fine


def finish(cpu: Cpu, raised: Bits | int, clears: int = C1, pops: int = 0) -> None:
    """Add flags and codes, then pop."""
    status = cpu.s.fpu_status
    result = status & ~clears | raised
    if pops:
        cpu.s.fpu_tag = cpu.s.fpu_tag | u16((1 << 2 * pops) - 1).rotl(_tag_place(cpu, 0))
        result = (result & ~TOP) | ((status + (pops << 11)) & TOP)
    cpu.s.fpu_status = result


def finish_push(cpu: Cpu, raised: Bits | int, clears: int = C1) -> None:
    """Add flags and codes; what lies in ST(7) is the new ST(0)."""
    status = cpu.s.fpu_status
    cpu.s.fpu_tag = cpu.s.fpu_tag & u16(0xFFFC).rotl(_tag_place(cpu, 7))
    cpu.s.fpu_status = (status & ~(clears | TOP)) | raised | ((status + (7 << 11)) & TOP)


# -- status ------------------------------------------------------------------------------------------------------------
def set_codes(cpu: Cpu, which: int, value: Bits | int) -> None:
    """Replace condition codes."""
    cpu.s.fpu_status = cpu.s.fpu_status & ~which | value


def summarize(cpu: Cpu) -> None:
    """ES and B follow from the flags and their masks."""
    cpu.s.fpu_status = with_summary(cpu.s.fpu_status, cpu.s.fpu_control)


def with_summary(status: Bits, control: Bits) -> Bits:
    pending = (status & ~control & FLAGS) != 0
    return (status & ~(ES | BUSY)) | select(pending, u16(ES | BUSY), u16(0))


def raise_flags(cpu: Cpu, flags: Bits | int) -> None:
    """Add exception flags."""
    cpu.s.fpu_status = with_summary(cpu.s.fpu_status | flags, cpu.s.fpu_control)


def is_masked(cpu: Cpu, flags: int = FLAGS) -> Bits:
    """Whether all these exceptions are masked."""
    return (cpu.s.fpu_control & flags) == flags


def stack_fault(cpu: Cpu, overflow: Bits | int) -> Bits:
    """Note a stack overflow (C1 = 1) or underflow (C1 = 0); whether the masked response follows."""
    c1 = (C1 if overflow else 0) if isinstance(overflow, int) else select(overflow, u16(C1), u16(0))
    set_codes(cpu, C1, c1)
    raise_flags(cpu, STACK_FAULT)
    return is_masked(cpu, Flag.IE)


@staged
def has_operand(cpu: Cpu, i: Bits | int, result: Bits | int, pops: int = 0) -> Bits:
    """Whether ST(i) is in use. If not: the response to a stack underflow, with the default NaN in ST(result)."""
    if unlikely(is_empty(cpu, i)):
        underflow(cpu, const(result, 8) if isinstance(result, int) else result, pops)
        return const(0, 1)
    return const(1, 1)


@native
def underflow(cpu: Cpu, result: U8, pops: int) -> None:
    if stack_fault(cpu, overflow=0):
        write(cpu, result, INDEFINITE)
        for _ in range(pops):
            pop(cpu)


@staged
def has_room(cpu: Cpu) -> Bits:
    """Whether a value may be pushed. If not: the response to a stack overflow, which pushes the default NaN."""
    if unlikely(~is_empty(cpu, 7)):
        overflow(cpu)
        return const(0, 1)
    return const(1, 1)


@native
def overflow(cpu: Cpu) -> None:
    if stack_fault(cpu, overflow=1):
        push(cpu, INDEFINITE)


# -- tags --------------------------------------------------------------------------------------------------------------
def full_tags(cpu: Cpu) -> Bits:
    """The tag word as FNSTENV stores it: 0 valid, 1 zero, 2 special, 3 empty."""
    word = u16(0)
    for n in range(8):
        value = cpu.s.st[n]
        low, exponent = value.lane(0), value.lane(1).trunc(16) & 0x7FFF
        zero = (low == 0) & (exponent == 0)
        special = (exponent == 0x7FFF) | (exponent == 0) | ~low[63]
        tag = select(zero, u16(1), select(special, u16(2), u16(0)))
        empty = (cpu.s.fpu_tag >> 2 * n) & 3 == 3
        word = word | select(empty, u16(3), tag) << 2 * n
    return word
