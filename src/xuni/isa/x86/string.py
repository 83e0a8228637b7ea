"""String instructions, SDM vol. 2: MOVS, CMPS, SCAS, LODS, STOS, alone and repeated.

A repeated instruction is exact by iteration: RSI, RDI and RCX are those of the iterations done whenever one faults. It
does at most `cpu.iteration_limit` iterations at once and is then executed again, so that interrupts and the clock get
their turn.
"""

from __future__ import annotations

from xuni.isa.bits import U1, U8, U64, U128, Bits, concat, mask, select, u1, u64
from xuni.isa.stage import native, staged
from xuni.isa.x86.cpu import Cpu
from xuni.isa.x86.instruction import Operand, instruction
from xuni.isa.x86.state import Eflags, Gpr, Seg


def stride(cpu: Cpu, width: int) -> Bits:
    """What one iteration adds to an index register: the element's size in bytes, negative with DF set."""
    size = u64(width // 8)
    return select((cpu.s.eflags & Eflags.DF) != 0, -size, size)


def advance(cpu: Cpu, index: Gpr, by: Bits, asize: int) -> None:
    """Add to an index register at address size."""
    cpu.set_reg(index, cpu.reg(index, asize) + by.trunc(asize))


def count_down(cpu: Cpu, done: Bits, asize: int) -> Bits:
    """Take finished iterations off the count register; the rest, 64 bits wide."""
    rest = cpu.reg(Gpr.RCX, asize) - done.trunc(asize)
    cpu.set_reg(Gpr.RCX, rest)
    return rest.zext(64)


# -- MOVS --------------------------------------------------------------------------------------------------------------


@instruction("MOVS", "A4 Yb Xb", "A5 Yv Xv", rep="rep")
def movs(cpu: Cpu, dst: Operand, src: Operand) -> None:
    if cpu.rep:
        if repeat_movs(cpu, src.segment, cpu.iteration_limit, dst.width, cpu.asize):
            cpu.repeat()
    else:
        dst.write(src.read())
        by = stride(cpu, dst.width)
        advance(cpu, Gpr.RSI, by, cpu.asize)
        advance(cpu, Gpr.RDI, by, cpu.asize)


@native
def repeat_movs(cpu: Cpu, segment: U8, limit: U64, width: int, asize: int) -> U1:
    """REP MOVS for at most `limit` iterations; whether there are more to do."""
    size, by = width // 8, stride(cpu, width)
    rest, budget = cpu.reg(Gpr.RCX, asize).zext(64), limit
    while (rest != 0) & (budget != 0):
        source, target = cpu.reg(Gpr.RSI, asize).zext(64), cpu.reg(Gpr.RDI, asize).zext(64)
        done = u64(0)
        if by == size:
            done = _move_windows(cpu, segment, source, target, rest.umin(budget), width, asize)
        if done == 0:
            cpu.store(Seg.ES, target, cpu.load(segment, source, width))
            done = u64(1)
        advance(cpu, Gpr.RSI, by * done, asize)
        advance(cpu, Gpr.RDI, by * done, asize)
        rest = count_down(cpu, done, asize)
        budget = budget - done
    return rest != 0


@staged
def _move_windows(cpu: Cpu, segment: Bits, source: Bits, target: Bits, most: Bits, width: int, asize: int) -> Bits:
    """Move up to `most` elements upward inside one page of each side; how many were moved."""
    size = width // 8
    from_host, readable = cpu.window(segment, source, False)
    to_host, writable = cpu.window(Seg.ES, target, True)
    elements = _elements(readable.umin(writable), source.umax(target), most, width, asize)
    distance = to_host - from_host
    if distance >= elements * size:  # no byte is read after it was written; the target below the source included
        cpu.copy_bytes(to_host, from_host, elements * size)
    else:  # what was written comes around again: a pattern spreads, element by element
        reader, writer, at, end = cpu.at(from_host), cpu.at(to_host), u64(0), elements * size
        while at != end:
            writer.store(at, reader.load(at, width))
            at = at + size
    return elements


def _elements(room: Bits, offset: Bits, most: Bits, width: int, asize: int) -> Bits:
    """How many elements fit in `room` bytes of a window from `offset` upward, before the address size wraps."""
    if asize < 64:
        room = room.umin((1 << asize) - offset)
    return (room >> (width // 8).bit_length() - 1).umin(most)


# -- STOS --------------------------------------------------------------------------------------------------------------


@instruction("STOS", "AA Yb AL", "AB Yv rAX", rep="rep")
def stos(cpu: Cpu, dst: Operand, src: Operand) -> None:
    if cpu.rep:
        if repeat_stos(cpu, cpu.iteration_limit, dst.width, cpu.asize):
            cpu.repeat()
    else:
        dst.write(src.read())
        advance(cpu, Gpr.RDI, stride(cpu, dst.width), cpu.asize)


@native
def repeat_stos(cpu: Cpu, limit: U64, width: int, asize: int) -> U1:
    """REP STOS for at most `limit` iterations; whether there are more to do."""
    size, by, value = width // 8, stride(cpu, width), cpu.reg(Gpr.RAX, width)
    rest, budget = cpu.reg(Gpr.RCX, asize).zext(64), limit
    while (rest != 0) & (budget != 0):
        target, done = cpu.reg(Gpr.RDI, asize).zext(64), u64(0)
        if by == size:
            done = _fill_window(cpu, target, value, rest.umin(budget), asize)
        if done == 0:
            cpu.store(Seg.ES, target, value)
            done = u64(1)
        advance(cpu, Gpr.RDI, by * done, asize)
        rest = count_down(cpu, done, asize)
        budget = budget - done
    return rest != 0


@staged
def _fill_window(cpu: Cpu, target: Bits, value: Bits, most: Bits, asize: int) -> Bits:
    """Store up to `most` elements upward inside one page; how many were stored."""
    size, byte = value.width // 8, value.trunc(8)
    to_host, writable = cpu.window(Seg.ES, target, True)
    elements = _elements(writable, target, most, value.width, asize)
    if value == byte.zext(value.width) * (mask(value.width) // 0xFF):  # one byte, repeated
        cpu.fill_bytes(to_host, byte, elements * size)
    else:
        writer, at, end = cpu.at(to_host), u64(0), elements * size
        while at != end:
            writer.store(at, value)
            at = at + size
    return elements


# -- LODS --------------------------------------------------------------------------------------------------------------


@instruction("LODS", "AC AL Xb", "AD rAX Xv", rep="rep")
def lods(cpu: Cpu, dst: Operand, src: Operand) -> None:
    if cpu.rep:
        if repeat_lods(cpu, src.segment, cpu.iteration_limit, dst.width, cpu.asize):
            cpu.repeat()
    else:
        dst.write(src.read())
        advance(cpu, Gpr.RSI, stride(cpu, dst.width), cpu.asize)


@native
def repeat_lods(cpu: Cpu, segment: U8, limit: U64, width: int, asize: int) -> U1:
    """REP LODS for at most `limit` iterations; whether there are more to do."""
    by = stride(cpu, width)
    rest, budget = cpu.reg(Gpr.RCX, asize).zext(64), limit
    while (rest != 0) & (budget != 0):
        cpu.set_reg(Gpr.RAX, cpu.load(segment, cpu.reg(Gpr.RSI, asize).zext(64), width))
        advance(cpu, Gpr.RSI, by, asize)
        rest = count_down(cpu, u64(1), asize)
        budget = budget - 1
    return rest != 0


# -- CMPS, SCAS --------------------------------------------------------------------------------------------------------
# The flags of a repeated comparison are set when it stops, so a fault in a later iteration finds those from before.


@instruction("CMPS", "A6 Xb Yb", "A7 Xv Yv", rep="repe")
def cmps(cpu: Cpu, left: Operand, right: Operand) -> None:
    if cpu.rep:
        if cpu.reg(Gpr.RCX, cpu.asize) != 0:
            equal = u1(1 if cpu.rep == "repe" else 0)
            pair, more = repeat_cmps(cpu, left.segment, cpu.iteration_limit, equal, left.width, cpu.asize)
            cpu.flags.set_sub(pair.field(64, 64).trunc(left.width), pair.trunc(left.width))
            if more:
                cpu.repeat()
    else:
        a, b = left.read(), right.read()
        by = stride(cpu, left.width)
        advance(cpu, Gpr.RSI, by, cpu.asize)
        advance(cpu, Gpr.RDI, by, cpu.asize)
        cpu.flags.set_sub(a, b)


@native
def repeat_cmps(cpu: Cpu, segment: U8, limit: U64, equal: U1, width: int, asize: int) -> tuple[U128, U1]:
    """REPE (`equal`) or REPNE CMPS with a count that is not 0: the last pair compared, whether there is more to do."""
    by = stride(cpu, width)
    a, b = cpu.reg(Gpr.RAX, width), cpu.reg(Gpr.RAX, width)
    rest, budget, go = u64(1), limit, u1(1)
    while go & (rest != 0) & (budget != 0):
        a = cpu.load(segment, cpu.reg(Gpr.RSI, asize).zext(64), width)
        b = cpu.load(Seg.ES, cpu.reg(Gpr.RDI, asize).zext(64), width)
        advance(cpu, Gpr.RSI, by, asize)
        advance(cpu, Gpr.RDI, by, asize)
        rest = count_down(cpu, u64(1), asize)
        budget = budget - 1
        go = (a == b) == equal
    return concat(a.zext(64), b.zext(64)), go & (rest != 0)


@instruction("SCAS", "AE AL Yb", "AF rAX Yv", rep="repe")
def scas(cpu: Cpu, left: Operand, right: Operand) -> None:
    if cpu.rep:
        if cpu.reg(Gpr.RCX, cpu.asize) != 0:
            equal = u1(1 if cpu.rep == "repe" else 0)
            last, more = repeat_scas(cpu, cpu.iteration_limit, equal, left.width, cpu.asize)
            cpu.flags.set_sub(left.read(), last.trunc(left.width))
            if more:
                cpu.repeat()
    else:
        a, b = left.read(), right.read()
        advance(cpu, Gpr.RDI, stride(cpu, left.width), cpu.asize)
        cpu.flags.set_sub(a, b)


@native
def repeat_scas(cpu: Cpu, limit: U64, equal: U1, width: int, asize: int) -> tuple[U64, U1]:
    """REPE (`equal`) or REPNE SCAS with a count that is not 0: the last element, whether there is more to do."""
    by, wanted = stride(cpu, width), cpu.reg(Gpr.RAX, width)
    last = wanted
    rest, budget, go = u64(1), limit, u1(1)
    while go & (rest != 0) & (budget != 0):
        last = cpu.load(Seg.ES, cpu.reg(Gpr.RDI, asize).zext(64), width)
        advance(cpu, Gpr.RDI, by, asize)
        rest = count_down(cpu, u64(1), asize)
        budget = budget - 1
        go = (last == wanted) == equal
    return last.zext(64), go & (rest != 0)
