"""Integer SIMD that computes lane by lane: MMX and its SSE2 to SSE4.1 forms have one definition.

`packed` registers both forms: on MMX registers (64 bits) and on XMM registers (128 bits). What operations do is said in
functions of two values of equal shape, lanes of the width they need.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from xuni.isa.bits import Bits, select, u64, vector
from xuni.isa.x86.instruction import Operand, instruction
from xuni.isa.x86.mmx_state import check_pending, enter_mmx

if TYPE_CHECKING:
    from xuni.isa.x86.cpu import Cpu

Operation = Callable[[Bits, Bits], Bits]


def packed(name: str, opcode: str, width: int, operation: Operation, mmx: str = "mmx", sse: str = "sse2") -> None:
    """Both forms of `operation` on lanes of `width` bits; `mmx` and `sse` name their features, "" for no such form."""
    if mmx:

        @instruction(name, f"NP {opcode} /r Pq Qq", feature=mmx, fpu="mmx")
        def run_mmx(cpu: Cpu, dst: Operand, src: Operand) -> None:
            check_pending(cpu)
            b = src.read().as_lanes(width)
            dst.write(operation(dst.read().as_lanes(width), b).as_lanes(64))
            enter_mmx(cpu)

    @instruction(name, f"66 {opcode} /r Vx Wx", feature=sse, fpu="sse")
    def run_sse(cpu: Cpu, dst: Operand, src: Operand) -> None:
        b = src.read().as_lanes(width)
        dst.write(operation(dst.read().as_lanes(width), b).as_lanes(64))


# -- arithmetic --------------------------------------------------------------------------------------------------------
for _name, _opcode, _width in (("PADDB", "0F FC", 8), ("PADDW", "0F FD", 16), ("PADDD", "0F FE", 32)):
    packed(_name, _opcode, _width, lambda a, b: a + b)
for _name, _opcode, _width in (("PSUBB", "0F F8", 8), ("PSUBW", "0F F9", 16), ("PSUBD", "0F FA", 32)):
    packed(_name, _opcode, _width, lambda a, b: a - b)
packed("PADDQ", "0F D4", 64, lambda a, b: a + b, mmx="sse2")
packed("PSUBQ", "0F FB", 64, lambda a, b: a - b, mmx="sse2")
for _offset, _width, _letter in ((0, 8, "B"), (1, 16, "W")):
    packed(f"PADDUS{_letter}", f"0F {0xDC + _offset:02X}", _width, lambda a, b: a.add_saturated(b, False))
    packed(f"PADDS{_letter}", f"0F {0xEC + _offset:02X}", _width, lambda a, b: a.add_saturated(b, True))
    packed(f"PSUBUS{_letter}", f"0F {0xD8 + _offset:02X}", _width, lambda a, b: a.sub_saturated(b, False))
    packed(f"PSUBS{_letter}", f"0F {0xE8 + _offset:02X}", _width, lambda a, b: a.sub_saturated(b, True))


def average(a: Bits, b: Bits) -> Bits:
    """Rounded up."""
    wide = a.zext(2 * a.width) + b.zext(2 * a.width) + 1
    return (wide >> 1).trunc(a.width)


packed("PAVGB", "0F E0", 8, average, mmx="sse")
packed("PAVGW", "0F E3", 16, average, mmx="sse")
packed("PMULLW", "0F D5", 16, lambda a, b: a * b)
packed("PMULHW", "0F E5", 16, lambda a, b: (a.sext(32) * b.sext(32) >> 16).trunc(16))
packed("PMULHUW", "0F E4", 16, lambda a, b: (a.zext(32) * b.zext(32) >> 16).trunc(16), mmx="sse")
packed("PMULHRSW", "0F 38 0B", 16, lambda a, b: ((a.sext(32) * b.sext(32) >> 14) + 1 >> 1).trunc(16),
        mmx="ssse3", sse="ssse3")  # fmt: skip
packed("PMULLD", "0F 38 40", 32, lambda a, b: a * b, mmx="", sse="sse4_1")
packed("PMULUDQ", "0F F4", 64, lambda a, b: (a & 0xFFFFFFFF) * (b & 0xFFFFFFFF), mmx="sse2")
packed("PMULDQ", "0F 38 28", 64, lambda a, b: (a << 32).sar(32) * (b << 32).sar(32), mmx="", sse="sse4_1")


def even(value: Bits) -> Bits:
    return value.shuffle(range(0, value.lanes, 2)) if value.lanes > 2 else value.lane(0)


def odd(value: Bits) -> Bits:
    return value.shuffle(range(1, value.lanes, 2)) if value.lanes > 2 else value.lane(1)


def multiply_add(a: Bits, b: Bits) -> Bits:
    """PMADDWD: products of signed words, added by pairs."""
    products = a.sext(32) * b.sext(32)
    return even(products) + odd(products)


def multiply_add_saturated(a: Bits, b: Bits) -> Bits:
    """PMADDUBSW: products of unsigned and signed bytes, added by pairs with saturation."""
    products = a.zext(16) * b.sext(16)
    return even(products).add_saturated(odd(products), True)


def absolute_differences(a: Bits, b: Bits) -> Bits:
    """PSADBW: the sum of 8 differences of bytes, in each 64 bits."""
    sums = (a.umax(b) - a.umin(b)).zext(16)
    for _ in range(3):
        sums = even(sums) + odd(sums)
    return sums.zext(64)


packed("PMADDWD", "0F F5", 16, multiply_add)
packed("PMADDUBSW", "0F 38 04", 8, multiply_add_saturated, mmx="ssse3", sse="ssse3")
packed("PSADBW", "0F F6", 8, absolute_differences, mmx="sse")


# -- logic -------------------------------------------------------------------------------------------------------------
packed("PAND", "0F DB", 64, lambda a, b: a & b)
packed("PANDN", "0F DF", 64, lambda a, b: ~a & b)
packed("POR", "0F EB", 64, lambda a, b: a | b)
packed("PXOR", "0F EF", 64, lambda a, b: a ^ b)


def _logic(name: str, opcode: str, operation: Operation) -> None:
    """ANDPS and ANDPD, and so on: the same bits under two names."""

    @instruction(f"{name}PS", f"NP 0F {opcode} /r Vx Wx", feature="sse", fpu="sse")
    def single(cpu: Cpu, dst: Operand, src: Operand) -> None:
        b = src.read()
        dst.write(operation(dst.read(), b))

    @instruction(f"{name}PD", f"66 0F {opcode} /r Vx Wx", feature="sse2", fpu="sse")
    def double(cpu: Cpu, dst: Operand, src: Operand) -> None:
        b = src.read()
        dst.write(operation(dst.read(), b))


_logic("AND", "54", lambda a, b: a & b)
_logic("ANDN", "55", lambda a, b: ~a & b)
_logic("OR", "56", lambda a, b: a | b)
_logic("XOR", "57", lambda a, b: a ^ b)


# -- comparison, minimum, maximum --------------------------------------------------------------------------------------
for _offset, _width, _letter in ((0, 8, "B"), (1, 16, "W"), (2, 32, "D")):
    packed(f"PCMPEQ{_letter}", f"0F {0x74 + _offset:02X}", _width, lambda a, b: (a == b).sext(a.width))
    packed(f"PCMPGT{_letter}", f"0F {0x64 + _offset:02X}", _width, lambda a, b: a.sgt(b).sext(a.width))
packed("PCMPEQQ", "0F 38 29", 64, lambda a, b: (a == b).sext(64), mmx="", sse="sse4_1")
packed("PCMPGTQ", "0F 38 37", 64, lambda a, b: a.sgt(b).sext(64), mmx="", sse="sse4_2")
packed("PMINUB", "0F DA", 8, lambda a, b: a.umin(b), mmx="sse")
packed("PMAXUB", "0F DE", 8, lambda a, b: a.umax(b), mmx="sse")
packed("PMINSW", "0F EA", 16, lambda a, b: a.smin(b), mmx="sse")
packed("PMAXSW", "0F EE", 16, lambda a, b: a.smax(b), mmx="sse")
for _name, _opcode, _width, _operation in (
    ("PMINSB", "38", 8, lambda a, b: a.smin(b)), ("PMINSD", "39", 32, lambda a, b: a.smin(b)),
    ("PMINUW", "3A", 16, lambda a, b: a.umin(b)), ("PMINUD", "3B", 32, lambda a, b: a.umin(b)),
    ("PMAXSB", "3C", 8, lambda a, b: a.smax(b)), ("PMAXSD", "3D", 32, lambda a, b: a.smax(b)),
    ("PMAXUW", "3E", 16, lambda a, b: a.umax(b)), ("PMAXUD", "3F", 32, lambda a, b: a.umax(b)),
):  # fmt: skip
    packed(_name, f"0F 38 {_opcode}", _width, _operation, mmx="", sse="sse4_1")


# -- SSSE3 -------------------------------------------------------------------------------------------------------------
def horizontal(operation: Operation) -> Operation:
    """Pairs of neighbours: those of the first operand give the low half, those of the second the high half."""

    def run(a: Bits, b: Bits) -> Bits:
        left = a.shuffle(range(0, 2 * a.lanes, 2), b)
        right = a.shuffle(range(1, 2 * a.lanes, 2), b)
        return operation(left, right)

    return run


_ssse3 = {"mmx": "ssse3", "sse": "ssse3"}
packed("PHADDW", "0F 38 01", 16, horizontal(lambda a, b: a + b), **_ssse3)
packed("PHADDD", "0F 38 02", 32, horizontal(lambda a, b: a + b), **_ssse3)
packed("PHADDSW", "0F 38 03", 16, horizontal(lambda a, b: a.add_saturated(b, True)), **_ssse3)
packed("PHSUBW", "0F 38 05", 16, horizontal(lambda a, b: a - b), **_ssse3)
packed("PHSUBD", "0F 38 06", 32, horizontal(lambda a, b: a - b), **_ssse3)
packed("PHSUBSW", "0F 38 07", 16, horizontal(lambda a, b: a.sub_saturated(b, True)), **_ssse3)


def with_sign(a: Bits, b: Bits) -> Bits:
    """PSIGN: `a` negated, kept or cleared as `b` is negative, positive or zero."""
    return select(b == 0, b, select(b.slt(0), -a, a))


for _offset, _width, _letter in ((0, 8, "B"), (1, 16, "W"), (2, 32, "D")):
    packed(f"PSIGN{_letter}", f"0F 38 {0x08 + _offset:02X}", _width, with_sign, **_ssse3)
    packed(f"PABS{_letter}", f"0F 38 {0x1C + _offset:02X}", _width, lambda a, b: select(b.slt(0), -b, b), **_ssse3)


# -- shifts: one count for all lanes; a count of the width or more clears (PSRA: fills with the sign) ------------------
def _shift(name: str, opcode: str, group: str, digit: int, width: int, op: str) -> None:
    @instruction(name, f"NP 0F {opcode} /r Pq Qq", feature="mmx", fpu="mmx")
    def by_mmx(cpu: Cpu, dst: Operand, src: Operand) -> None:
        check_pending(cpu)
        count = src.read()
        dst.write(_shift_mmx(dst.read(), op, count, width))
        enter_mmx(cpu)

    @instruction(name, f"NP 0F {group} /{digit} Nq Ib", feature="mmx", fpu="mmx")
    def mmx_by_number(cpu: Cpu, dst: Operand, imm: Operand) -> None:
        check_pending(cpu)
        dst.write(_shift_mmx(dst.read(), op, imm.read().zext(64), width))
        enter_mmx(cpu)

    @instruction(name, f"66 0F {opcode} /r Vx Wx", feature="sse2", fpu="sse")
    def by_xmm(cpu: Cpu, dst: Operand, src: Operand) -> None:
        count = src.read().lane(0)
        dst.write(dst.read().as_lanes(width).shift_all(op, count).as_lanes(64))

    @instruction(name, f"66 0F {group} /{digit} Ux Ib", feature="sse2", fpu="sse")
    def xmm_by_number(cpu: Cpu, dst: Operand, imm: Operand) -> None:
        dst.write(dst.read().as_lanes(width).shift_all(op, imm.read().zext(64)).as_lanes(64))


def _shift_mmx(value: Bits, op: str, count: Bits, width: int) -> Bits:
    """64 bits, as the low half of 128."""
    return vector([value, u64(0)]).as_lanes(width).shift_all(op, count).as_lanes(64).lane(0)


for _group, _width, _letter, _offset in (("71", 16, "W", 1), ("72", 32, "D", 2), ("73", 64, "Q", 3)):
    _shift(f"PSRL{_letter}", f"{0xD0 + _offset:02X}", _group, 2, _width, "lshr")
    _shift(f"PSLL{_letter}", f"{0xF0 + _offset:02X}", _group, 6, _width, "shl")
    if _width < 64:
        _shift(f"PSRA{_letter}", f"{0xE0 + _offset:02X}", _group, 4, _width, "ashr")


# -- SSE4.1 over the whole register ------------------------------------------------------------------------------------
@instruction("PTEST", "66 0F 38 17 /r Vx Wx", feature="sse4_1", fpu="sse")
def ptest(cpu: Cpu, left: Operand, right: Operand) -> None:
    b = right.read()
    a = left.read()
    both, rest = a & b, ~a & b
    zf = (both.lane(0) | both.lane(1)) == 0
    cf = (rest.lane(0) | rest.lane(1)) == 0
    cpu.flags.set_all(zf.zext(64) << 6 | cf.zext(64))


@instruction("PHMINPOSUW", "66 0F 38 41 /r Vx Wx", feature="sse4_1", fpu="sse")
def phminposuw(cpu: Cpu, dst: Operand, src: Operand) -> None:
    words = src.read().as_lanes(16)
    least = words.lane(0).zext(32) << 16
    for i in range(1, 8):  # the value above its index: the least one is found with the lowest index
        least = least.umin(words.lane(i).zext(32) << 16 | i)
    result = least >> 16 | (least & 7) << 16
    dst.write(vector([result.zext(64), u64(0)]))
