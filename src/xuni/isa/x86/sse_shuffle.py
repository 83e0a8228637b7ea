"""SSE to SSE4.1 and MMX: packing, unpacking, shuffling, aligning and blending.

Orders that an immediate or a register chooses at run time become PSHUFB's control bytes (`Bits.permute`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from xuni.isa.bits import Bits, lanes_of, select, splat, u8, vector
from xuni.isa.x86.instruction import Operand, instruction
from xuni.isa.x86.mmx_state import check_pending, enter_mmx
from xuni.isa.x86.sse_int import packed
from xuni.isa.x86.sse_move import lane_mask

if TYPE_CHECKING:
    from xuni.isa.x86.cpu import Cpu


# -- packing -----------------------------------------------------------------------------------------------------------
def _pack(is_signed: bool) -> Callable[[Bits, Bits], Bits]:
    """Both operands' signed lanes, saturated to half their width."""

    def run(a: Bits, b: Bits) -> Bits:
        both = a.shuffle(range(2 * a.lanes), b)
        half = a.width // 2
        low, high = (-1 << (half - 1), (1 << (half - 1)) - 1) if is_signed else (0, (1 << half) - 1)
        return both.smax(low).smin(high).trunc(half)

    return run


packed("PACKSSWB", "0F 63", 16, _pack(True))
packed("PACKUSWB", "0F 67", 16, _pack(False))
packed("PACKSSDW", "0F 6B", 32, _pack(True))
packed("PACKUSDW", "0F 38 2B", 32, _pack(False), mmx="", sse="sse4_1")


# -- unpacking ---------------------------------------------------------------------------------------------------------
def interleave(a: Bits, b: Bits, high: bool) -> Bits:
    """The low or high halves of both, lane by lane in turn."""
    half = a.lanes // 2
    start = half if high else 0
    return a.shuffle([i + which for i in range(start, start + half) for which in (0, a.lanes)], b)


def _unpack(name: str, opcode: str, width: int, high: bool) -> None:
    """PUNPCK: the MMX form of a low half reads 32 bits only."""

    @instruction(name, f"NP 0F {opcode} /r Pq Q{'q' if high else 'd'}", feature="mmx", fpu="mmx")
    def run_mmx(cpu: Cpu, dst: Operand, src: Operand) -> None:
        check_pending(cpu)
        b = src.read().zext(64).as_lanes(width)
        dst.write(interleave(dst.read().as_lanes(width), b, high).as_lanes(64))
        enter_mmx(cpu)

    _unpack_xmm(name, f"66 0F {opcode}", width, high, "sse2")


def _unpack_xmm(name: str, opcode: str, width: int, high: bool, feature: str) -> None:
    @instruction(name, f"{opcode} /r Vx Wx", feature=feature, fpu="sse")
    def run(cpu: Cpu, dst: Operand, src: Operand) -> None:
        b = src.read().as_lanes(width)
        dst.write(interleave(dst.read().as_lanes(width), b, high).as_lanes(64))


for _name, _opcode, _width, _high in (
    ("PUNPCKLBW", "60", 8, False), ("PUNPCKLWD", "61", 16, False), ("PUNPCKLDQ", "62", 32, False),
    ("PUNPCKHBW", "68", 8, True), ("PUNPCKHWD", "69", 16, True), ("PUNPCKHDQ", "6A", 32, True),
):  # fmt: skip
    _unpack(_name, _opcode, _width, _high)
_unpack_xmm("PUNPCKLQDQ", "66 0F 6C", 64, False, "sse2")
_unpack_xmm("PUNPCKHQDQ", "66 0F 6D", 64, True, "sse2")
_unpack_xmm("UNPCKLPS", "NP 0F 14", 32, False, "sse")
_unpack_xmm("UNPCKHPS", "NP 0F 15", 32, True, "sse")
_unpack_xmm("UNPCKLPD", "66 0F 14", 64, False, "sse2")
_unpack_xmm("UNPCKHPD", "66 0F 15", 64, True, "sse2")


# -- orders given by an immediate --------------------------------------------------------------------------------------
def dword_order(imm: Bits) -> Bits:
    """The control bytes of four doublewords, two bits each."""
    numbers = (splat(imm.zext(32), 4) >> lanes_of(32, 0, 2, 4, 6)) & 3
    return (numbers * 0x04040404 + 0x03020100).as_lanes(8)


def word_order(imm: Bits, high: bool) -> Bits:
    """The control bytes of four words of one half, two bits each; the other half stays."""
    shifts = (0, 0, 0, 0, 0, 2, 4, 6) if high else (0, 2, 4, 6, 0, 0, 0, 0)
    masks = (0, 0, 0, 0, 3, 3, 3, 3) if high else (3, 3, 3, 3, 0, 0, 0, 0)
    stay = (0x0100, 0x0302, 0x0504, 0x0706) if high else (0x0908, 0x0B0A, 0x0D0C, 0x0F0E)
    first = (0x0908,) * 4 if high else (0x0100,) * 4
    numbers = (splat(imm.zext(16), 8) >> lanes_of(16, *shifts)) & lanes_of(16, *masks)
    base = lanes_of(16, *(stay + first if high else first + stay))
    return (numbers * 0x0202 + base).as_lanes(8)


@instruction("PSHUFD", "66 0F 70 /r Vx Wx Ib", feature="sse2", fpu="sse")
def pshufd(cpu: Cpu, dst: Operand, src: Operand, imm: Operand) -> None:
    dst.write(src.read().as_lanes(8).permute(dword_order(imm.read())).as_lanes(64))


@instruction("PSHUFLW", "F2 0F 70 /r Vx Wx Ib", feature="sse2", fpu="sse")
def pshuflw(cpu: Cpu, dst: Operand, src: Operand, imm: Operand) -> None:
    dst.write(src.read().as_lanes(8).permute(word_order(imm.read(), high=False)).as_lanes(64))


@instruction("PSHUFHW", "F3 0F 70 /r Vx Wx Ib", feature="sse2", fpu="sse")
def pshufhw(cpu: Cpu, dst: Operand, src: Operand, imm: Operand) -> None:
    dst.write(src.read().as_lanes(8).permute(word_order(imm.read(), high=True)).as_lanes(64))


@instruction("PSHUFW", "NP 0F 70 /r Pq Qq Ib", feature="sse", fpu="mmx")
def pshufw(cpu: Cpu, dst: Operand, src: Operand, imm: Operand) -> None:
    check_pending(cpu)
    value = _doubled(src.read().as_lanes(8)).permute(word_order(imm.read(), high=False))
    dst.write(value.as_lanes(64).lane(0))
    enter_mmx(cpu)


@instruction("SHUFPS", "NP 0F C6 /r Vx Wx Ib", feature="sse", fpu="sse")
def shufps(cpu: Cpu, dst: Operand, src: Operand, imm: Operand) -> None:
    order = dword_order(imm.read())
    high = src.read().as_lanes(8).permute(order).as_lanes(64)
    low = dst.read().as_lanes(8).permute(order).as_lanes(64)
    dst.write(low.shuffle((0, 3), high))


@instruction("SHUFPD", "66 0F C6 /r Vx Wx Ib", feature="sse2", fpu="sse")
def shufpd(cpu: Cpu, dst: Operand, src: Operand, imm: Operand) -> None:
    order, b = imm.read(), src.read()
    a = dst.read()
    low = select(order[0], a.shuffle((1, 1)), a.shuffle((0, 0)))
    high = select(order[1], b.shuffle((1, 1)), b.shuffle((0, 0)))
    dst.write(low.shuffle((0, 2), high))


# -- orders given by a register, and shifts of the whole register ------------------------------------------------------
def _doubled(value: Bits) -> Bits:
    """Eight lanes as both halves of sixteen."""
    return value.shuffle((*range(8), *range(8)))


@instruction("PSHUFB", "66 0F 38 00 /r Vx Wx", feature="ssse3", fpu="sse")
def pshufb(cpu: Cpu, dst: Operand, src: Operand) -> None:
    control = src.read().as_lanes(8)
    dst.write(dst.read().as_lanes(8).permute(control).as_lanes(64))


@instruction("PSHUFB", "NP 0F 38 00 /r Pq Qq", feature="ssse3", fpu="mmx")
def pshufb_mmx(cpu: Cpu, dst: Operand, src: Operand) -> None:
    check_pending(cpu)
    control = _doubled(src.read().as_lanes(8)) & 0x87
    dst.write(_doubled(dst.read().as_lanes(8)).permute(control).as_lanes(64).lane(0))
    enter_mmx(cpu)


def bytes_right(value: Bits, count: Bits) -> Bits:
    """16 bytes shifted right by `count` bytes (8 bits wide, any value); zeros come in."""
    # Above 0x7F a control byte gives 0: 0x70 + 15 is the last that does not.
    return value.permute(splat(count.umin(16) + 0x70, 16) + lanes_of(8, *range(16)))


def bytes_left(value: Bits, count: Bits) -> Bits:
    """16 bytes shifted left by `count` bytes; zeros come in."""
    return value.permute(lanes_of(8, *range(16)) - splat(count.umin(16), 16))


@instruction("PSRLDQ", "66 0F 73 /3 Ux Ib", feature="sse2", fpu="sse")
def psrldq(cpu: Cpu, dst: Operand, imm: Operand) -> None:
    dst.write(bytes_right(dst.read().as_lanes(8), imm.read()).as_lanes(64))


@instruction("PSLLDQ", "66 0F 73 /7 Ux Ib", feature="sse2", fpu="sse")
def pslldq(cpu: Cpu, dst: Operand, imm: Operand) -> None:
    dst.write(bytes_left(dst.read().as_lanes(8), imm.read()).as_lanes(64))


@instruction("PALIGNR", "66 0F 3A 0F /r Vx Wx Ib", feature="ssse3", fpu="sse")
def palignr(cpu: Cpu, dst: Operand, src: Operand, imm: Operand) -> None:
    """The operands joined, the first above the second, and shifted right by bytes."""
    count, b = imm.read(), src.read().as_lanes(8)
    a = dst.read().as_lanes(8)
    upper = select(count > 16, bytes_right(a, count - 16), bytes_left(a, u8(16) - count.umin(16)))
    dst.write((bytes_right(b, count) | upper).as_lanes(64))


@instruction("PALIGNR", "NP 0F 3A 0F /r Pq Qq Ib", feature="ssse3", fpu="mmx")
def palignr_mmx(cpu: Cpu, dst: Operand, src: Operand, imm: Operand) -> None:
    check_pending(cpu)
    joined = vector([src.read(), dst.read()]).as_lanes(8)
    dst.write(bytes_right(joined, imm.read()).as_lanes(64).lane(0))
    enter_mmx(cpu)


# -- blending ----------------------------------------------------------------------------------------------------------
def _blend(name: str, opcode: str, width: int) -> None:
    @instruction(name, f"66 0F 3A {opcode} /r Vx Wx Ib", feature="sse4_1", fpu="sse")
    def run(cpu: Cpu, dst: Operand, src: Operand, imm: Operand) -> None:
        b = src.read().as_lanes(width)
        chosen = lane_mask(imm.read(), width, b.lanes)
        dst.write(select(chosen, b, dst.read().as_lanes(width)).as_lanes(64))


def _blend_variable(name: str, opcode: str, width: int) -> None:
    """Lanes of the source where the sign of XMM0's lane is set."""

    @instruction(name, f"66 0F 38 {opcode} /r Vx Wx", feature="sse4_1", fpu="sse")
    def run(cpu: Cpu, dst: Operand, src: Operand) -> None:
        b = src.read().as_lanes(width)
        chosen = cpu.s.xmm[0].as_lanes(width).slt(0)
        dst.write(select(chosen, b, dst.read().as_lanes(width)).as_lanes(64))


_blend("BLENDPS", "0C", 32)
_blend("BLENDPD", "0D", 64)
_blend("PBLENDW", "0E", 16)
_blend_variable("PBLENDVB", "10", 8)
_blend_variable("BLENDVPS", "14", 32)
_blend_variable("BLENDVPD", "15", 64)


@instruction("MPSADBW", "66 0F 3A 42 /r Vx Wx Ib", feature="sse4_1", fpu="sse")
def mpsadbw(cpu: Cpu, dst: Operand, src: Operand, imm: Operand) -> None:
    """Eight sums of four differences: four bytes of the source against four at eight places of the destination."""
    control = imm.read()
    b = bytes_right(src.read().as_lanes(8), (control & 3) << 2)
    a = bytes_right(dst.read().as_lanes(8), control & 4)
    total = lanes_of(16, *[0] * 8)
    for i in range(4):
        left = a.shuffle(range(i, i + 8)).zext(16)
        right = b.shuffle((i,) * 8).zext(16)
        total = total + (left.umax(right) - left.umin(right))
    dst.write(total.as_lanes(64))
