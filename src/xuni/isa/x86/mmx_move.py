"""MMX: instructions that move MMX registers, whole or in part, and the stores under a mask of both register files.

A memory operand is read or written before the x87 state changes, so that a fault leaves that as it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xuni.isa.bits import U8, U64, Bits, mask, u64
from xuni.isa.stage import native
from xuni.isa.x86.instruction import Operand, instruction
from xuni.isa.x86.mmx_state import check_pending, enter_mmx
from xuni.isa.x86.sse_move import insert_lane, low
from xuni.isa.x86.state import Gpr

if TYPE_CHECKING:
    from xuni.isa.x86.cpu import Cpu


# -- whole registers ---------------------------------------------------------------------------------------------------
@instruction("MOVD", "NP 0F 6E /r Pq Ey", feature="mmx", fpu="mmx")
def movd_load(cpu: Cpu, dst: Operand, src: Operand) -> None:
    check_pending(cpu)
    dst.write(src.read().zext(64))
    enter_mmx(cpu)


@instruction("MOVD", "NP 0F 7E /r Ey Pq", feature="mmx", fpu="mmx")
def movd_store(cpu: Cpu, dst: Operand, src: Operand) -> None:
    check_pending(cpu)
    dst.write(src.read().trunc(dst.width))
    enter_mmx(cpu)


def _move(name: str, *encodings: str, feature: str) -> None:
    @instruction(name, *encodings, feature=feature, fpu="mmx")
    def run(cpu: Cpu, dst: Operand, src: Operand) -> None:
        check_pending(cpu)
        dst.write(src.read())
        enter_mmx(cpu)


_move("MOVQ", "NP 0F 6F /r Pq Qq", "NP 0F 7F /r Qq Pq", feature="mmx")
_move("MOVNTQ", "NP 0F E7 /r Mq Pq", feature="sse")


@instruction("MOVQ2DQ", "F3 0F D6 /r Vx Nq", feature="sse2", fpu="mmx")
def movq2dq(cpu: Cpu, dst: Operand, src: Operand) -> None:
    check_pending(cpu)
    dst.write(low(src.read()))
    enter_mmx(cpu)


@instruction("MOVDQ2Q", "F2 0F D6 /r Pq Ux", feature="sse2", fpu="mmx")
def movdq2q(cpu: Cpu, dst: Operand, src: Operand) -> None:
    check_pending(cpu)
    dst.write(src.read().lane(0))
    enter_mmx(cpu)


# -- parts -------------------------------------------------------------------------------------------------------------
@instruction("PINSRW", "NP 0F C4 /r Pq Rd Ib", "NP 0F C4 /r Pq Mw Ib", feature="sse", fpu="mmx")
def pinsrw(cpu: Cpu, dst: Operand, src: Operand, imm: Operand) -> None:
    check_pending(cpu)
    element = src.read().trunc(16)
    dst.write(insert_lane(dst.read().as_lanes(16), imm.read(), element).as_lanes(64))
    enter_mmx(cpu)


@instruction("PEXTRW", "NP 0F C5 /r Gd Nq Ib", feature="sse", fpu="mmx")
def pextrw(cpu: Cpu, dst: Operand, src: Operand, imm: Operand) -> None:
    check_pending(cpu)
    shift = (imm.read() & 3).zext(64) << 4
    dst.write((src.read() >> shift).trunc(16).zext(dst.width))
    enter_mmx(cpu)


@instruction("PMOVMSKB", "NP 0F D7 /r Gd Nq", feature="sse", fpu="mmx")
def pmovmskb(cpu: Cpu, dst: Operand, src: Operand) -> None:
    check_pending(cpu)
    dst.write(src.read().as_lanes(8).slt(0).as_lanes(8).zext(dst.width))
    enter_mmx(cpu)


# -- stores under a mask -----------------------------------------------------------------------------------------------
@native
def store_masked(cpu: Cpu, segment: U8, offset: U64, wrap: U64, data: U64, chosen: U64) -> None:
    """Write those bytes of `data` whose byte of `chosen` has its top bit set; `wrap` cuts their offsets."""
    while chosen != 0:
        if (chosen & 0x80) != 0:
            cpu.store(segment, offset & wrap, data.trunc(8))
        data = data >> 8
        chosen = chosen >> 8
        offset = offset + 1


def _masked(cpu: Cpu, segment: Bits, data: Bits, chosen: Bits) -> None:
    """To rDI, in the data segment. All bytes must be writable if any is written."""
    wrap = mask(cpu.asize)
    offset = cpu.reg(Gpr.RDI, 64) & wrap
    size = 8 * data.lanes
    parts = [(data.lane(n), chosen.lane(n)) for n in range(data.lanes)] if data.lanes > 1 else [(data, chosen)]
    cpu.probe_write(segment, offset, size)
    for n, (part, which) in enumerate(parts):
        store_masked(cpu, segment, offset + 8 * n, u64(wrap), part, which)


@instruction("MASKMOVQ", "NP 0F F7 /r Pq Nq Xb", feature="sse", fpu="mmx")
def maskmovq(cpu: Cpu, src: Operand, chosen: Operand, memory: Operand) -> None:
    """`memory` only tells the segment. The x87 state changes even where the store faults."""
    check_pending(cpu)
    enter_mmx(cpu)
    _masked(cpu, memory.segment, src.read(), chosen.read())


@instruction("MASKMOVDQU", "66 0F F7 /r Vx Ux Xb", feature="sse2", fpu="sse")
def maskmovdqu(cpu: Cpu, src: Operand, chosen: Operand, memory: Operand) -> None:
    """`memory` only tells the segment."""
    _masked(cpu, memory.segment, src.read(), chosen.read())
