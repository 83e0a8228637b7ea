"""SSE4.2: PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM, SDM vol. 2, 4.1.

The immediate: bits 1:0 element (unsigned bytes, unsigned words, signed bytes, signed words), 3:2 aggregation (equal
any, ranges, equal each, equal ordered), 5:4 polarity, 6 which index or mask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xuni.isa.bits import U64, Bits, const, select, u64, vector
from xuni.isa.stage import native, staged
from xuni.isa.x86.instruction import Operand, instruction
from xuni.isa.x86.state import Gpr

if TYPE_CHECKING:
    from xuni.isa.x86.cpu import Cpu

ANY, RANGES, EACH, ORDERED = range(4)
# EFLAGS images.
CF, ZF, SF, OF = 1, 1 << 6, 1 << 7, 1 << 11


@native
def compare_text(cpu: Cpu, low_a: U64, high_a: U64, low_b: U64, high_b: U64, length_a: U64, length_b: U64,
                 imm: U64) -> U64:  # fmt: skip
    """IntRes2: one bit an element of the second operand. Lengths are in elements, at most 8 or 16."""
    a, b = vector([low_a, high_a]), vector([low_b, high_b])
    if imm[0]:
        return _compare(a, b, 16, length_a, length_b, imm)
    return _compare(a, b, 8, length_a, length_b, imm)


@staged
def _compare(a: Bits, b: Bits, width: int, length_a: Bits, length_b: Bits, imm: Bits) -> Bits:
    count = 128 // width
    left, right = a.as_lanes(width), b.as_lanes(width)
    valid_a, valid_b = _below(length_a, count), _below(length_b, count)
    aggregation = imm.field(2, 2)
    result = const(0, count)
    if aggregation == ANY:
        for i in range(count):
            equal = (vector([left.lane(i)] * count) == right).as_lanes(count)
            result = result | select(valid_a[i], equal, const(0, count))
        result = result & valid_b
    elif aggregation == RANGES:
        for i in range(0, count, 2):
            low, high = vector([left.lane(i)] * count), vector([left.lane(i + 1)] * count)
            unsigned = (low <= right).as_lanes(count) & (right <= high).as_lanes(count)
            signed = low.sle(right).as_lanes(count) & right.sle(high).as_lanes(count)
            inside = select(imm[1], signed, unsigned)
            result = result | select(valid_a[i] & valid_a[i + 1], inside, const(0, count))
        result = result & valid_b
    elif aggregation == EACH:
        equal = (left == right).as_lanes(count)
        result = (equal & valid_a & valid_b) | (~valid_a & ~valid_b)  # beyond both ends counts as equal
    else:
        result = ~result
        for i in range(count):  # element i of the pattern against the text, moved by i
            equal = (vector([left.lane(i)] * count) == right).as_lanes(count) & valid_b
            # What lies beyond the pattern matches all; what lies beyond the text's register is not looked at.
            beyond = const(((1 << i) - 1) << (count - i), count) if i else const(0, count)
            result = result & ((equal >> i) | beyond | select(valid_a[i], const(0, count), ~const(0, count)))
    polarity = imm.field(4, 2)
    negated = select(polarity[1], valid_b, ~const(0, count))
    return (result ^ select(polarity[0], negated, const(0, count))).zext(64)


def _below(length: Bits, count: int) -> Bits:
    """Ones for the elements before the end."""
    return ((u64(1) << length) - 1).trunc(count)


@staged
def implicit_length(value: Bits, words: Bits) -> Bits:
    """Elements before the first that is 0, 64 bits."""
    if words:
        return ((value.as_lanes(16) == 0).as_lanes(8).zext(64) | 1 << 8).ctz()
    return ((value.as_lanes(8) == 0).as_lanes(16).zext(64) | 1 << 16).ctz()


@staged
def explicit_length(cpu: Cpu, register: Gpr, width: int, count: Bits) -> Bits:
    """The magnitude of EAX or EDX (RAX, RDX with REX.W), at most `count`."""
    value = cpu.reg(register, width).sext(64)
    return select(value.slt(0), -value, value).umin(count)


@staged
def finish(cpu: Cpu, result: Bits, length_a: Bits, length_b: Bits, count: Bits) -> None:
    """The flags; AF and PF are 0."""
    cf = select(result != 0, u64(CF), u64(0))
    zf = select(length_b < count, u64(ZF), u64(0))
    sf = select(length_a < count, u64(SF), u64(0))
    of = select(result[0], u64(OF), u64(0))
    cpu.flags.set_all(cf | zf | sf | of)


@staged
def give_index(cpu: Cpu, result: Bits, imm: Bits, count: Bits) -> None:
    """ECX: the lowest or highest element found, or how many there are."""
    lowest, highest = (result | 1 << 16).ctz().umin(count), u64(63) - result.clz()
    index = select(imm[6], select(result == 0, count, highest), lowest)
    cpu.set_reg(Gpr.RCX, index.trunc(32))


@staged
def give_mask(cpu: Cpu, result: Bits, imm: Bits) -> None:
    """XMM0: the bits, or a mask of elements."""
    if imm[6]:
        if imm[0]:
            cpu.s.xmm[0] = _spread(result, 16)
        else:
            cpu.s.xmm[0] = _spread(result, 8)
    else:
        cpu.s.xmm[0] = vector([result, u64(0)])


def _spread(result: Bits, width: int) -> Bits:
    bits = [result[i] for i in range(128 // width)]
    return vector(bits).sext(width).as_lanes(64)


def _text(name: str, encoding: str, explicit: int, mask: bool) -> None:
    """`explicit`: the width of the registers that give the lengths, or 0."""

    @instruction(name, f"66 {encoding} /r Vx Wxu Ib", feature="sse4_2", fpu="sse")
    def run(cpu: Cpu, first: Operand, second: Operand, immediate: Operand) -> None:
        imm, b = immediate.read().zext(64), second.read()
        a = first.read()
        count = select(imm[0], u64(8), u64(16))
        if explicit:
            length_a = explicit_length(cpu, Gpr.RAX, explicit, count)
            length_b = explicit_length(cpu, Gpr.RDX, explicit, count)
        else:
            length_a, length_b = implicit_length(a, imm[0]), implicit_length(b, imm[0])
        result = compare_text(cpu, a.lane(0), a.lane(1), b.lane(0), b.lane(1), length_a, length_b, imm)
        if mask:
            give_mask(cpu, result, imm)
        else:
            give_index(cpu, result, imm, count)
        finish(cpu, result, length_a, length_b, count)


for _prefix, _width in (("REX.W0", 32), ("REX.W", 64)):
    _text("PCMPESTRM", f"{_prefix} 0F 3A 60", _width, mask=True)
    _text("PCMPESTRI", f"{_prefix} 0F 3A 61", _width, mask=False)
_text("PCMPISTRM", "0F 3A 62", 0, mask=True)
_text("PCMPISTRI", "0F 3A 63", 0, mask=False)
