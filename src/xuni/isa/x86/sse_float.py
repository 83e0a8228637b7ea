"""SSE to SSE4.1: floating-point arithmetic, comparison and conversion. What the operations do is in `sse_fp`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from xuni.isa.bits import Bits, select, u64, vector
from xuni.isa.stage import staged
from xuni.isa.x86 import sse_fp as fp
from xuni.isa.x86.exceptions import GuestFault, Vector
from xuni.isa.x86.instruction import Operand, instruction
from xuni.isa.x86.mmx_state import check_pending, enter_mmx
from xuni.isa.x86.sse_move import lane_mask

if TYPE_CHECKING:
    from xuni.isa.x86.cpu import Cpu

Binary = Callable[["Cpu", Bits, Bits], Bits]
Unary = Callable[["Cpu", Bits], Bits]

# prefix, suffix, operands, lane width, feature of the four forms
_FORMS = (
    ("NP", "PS", "Vx Wx", 32, "sse"),
    ("66", "PD", "Vx Wx", 64, "sse2"),
    ("F3", "SS", "Vss Wss", 32, "sse"),
    ("F2", "SD", "Vsd Wsd", 64, "sse2"),
)


def _lanes(value: Bits, width: int) -> Bits:
    """An operand as lanes, a scalar as it is."""
    return value.as_lanes(width) if value.lanes > 1 else value


def _whole(value: Bits) -> Bits:
    """A result in the form that its operand takes."""
    return value.as_lanes(64) if value.lanes > 1 else value


# -- arithmetic --------------------------------------------------------------------------------------------------------
def _binary(name: str, encoding: str, width: int, feature: str, operation: Binary) -> None:
    @instruction(name, encoding, feature=feature, fpu="sse")
    def run(cpu: Cpu, dst: Operand, src: Operand) -> None:
        b = _lanes(src.read(), width)
        dst.write(_whole(operation(cpu, _lanes(dst.read(), width), b)))


def _unary(name: str, encoding: str, width: int, feature: str, operation: Unary) -> None:
    @instruction(name, encoding, feature=feature, fpu="sse")
    def run(cpu: Cpu, dst: Operand, src: Operand) -> None:
        dst.write(_whole(operation(cpu, _lanes(src.read(), width))))


def _arithmetic(op: str) -> Binary:
    return lambda cpu, a, b: fp.arithmetic(cpu, op, a, b)


def _approximate(op: str) -> Unary:
    return lambda cpu, a: fp.approximate(cpu, op, a)


for _prefix, _suffix, _operands, _width, _feature in _FORMS:
    for _name, _opcode in (("ADD", "58"), ("MUL", "59"), ("SUB", "5C"), ("MIN", "5D"), ("DIV", "5E"), ("MAX", "5F")):
        _encoding = f"{_prefix} 0F {_opcode} /r {_operands}"
        _binary(f"{_name}{_suffix}", _encoding, _width, _feature, _arithmetic(_name.lower()))
    _unary(f"SQRT{_suffix}", f"{_prefix} 0F 51 /r {_operands}", _width, _feature, fp.square_root)
    if _width == 32:
        _unary(f"RSQRT{_suffix}", f"{_prefix} 0F 52 /r {_operands}", _width, _feature, _approximate("rsqrt"))
        _unary(f"RCP{_suffix}", f"{_prefix} 0F 53 /r {_operands}", _width, _feature, _approximate("rcp"))

_binary("ADDSUBPD", "66 0F D0 /r Vx Wx", 64, "pni", fp.add_subtract)
_binary("ADDSUBPS", "F2 0F D0 /r Vx Wx", 32, "pni", fp.add_subtract)


def _horizontal(op: str) -> Binary:
    def run(cpu: Cpu, a: Bits, b: Bits) -> Bits:
        left = a.shuffle(range(0, 2 * a.lanes, 2), b)
        right = a.shuffle(range(1, 2 * a.lanes, 2), b)
        return fp.arithmetic(cpu, op, left, right)

    return run


for _name, _opcode in (("HADD", "7C"), ("HSUB", "7D")):
    _binary(f"{_name}PD", f"66 0F {_opcode} /r Vx Wx", 64, "pni", _horizontal(_name[1:].lower()))
    _binary(f"{_name}PS", f"F2 0F {_opcode} /r Vx Wx", 32, "pni", _horizontal(_name[1:].lower()))


# -- operations that an immediate chooses ------------------------------------------------------------------------------
@staged
def _compared(cpu: Cpu, predicate: Bits, a: Bits, b: Bits) -> Bits:
    """CMPPS and its kin: the immediate's low three bits."""
    which = predicate & 7
    if which & 4 != 0:
        if which & 2 != 0:
            if which == 7:
                return fp.compare(cpu, 7, a, b)
            return fp.compare(cpu, 6, a, b)
        if which == 5:
            return fp.compare(cpu, 5, a, b)
        return fp.compare(cpu, 4, a, b)
    if which & 2 != 0:
        if which == 3:
            return fp.compare(cpu, 3, a, b)
        return fp.compare(cpu, 2, a, b)
    if which == 1:
        return fp.compare(cpu, 1, a, b)
    return fp.compare(cpu, 0, a, b)


@staged
def _rounded(cpu: Cpu, control: Bits, a: Bits) -> Bits:
    """ROUNDPS and its kin: bit 2 takes MXCSR's rounding, bit 3 suppresses PE."""
    which = select(control[2], control & 12, control & 11)
    result = a
    for number in (0, 1, 2, 3, 4, 8, 9, 10, 11, 12):
        if which == number:
            result = fp.round_integral(cpu, a, number)
    return result


def _compare(name: str, encoding: str, width: int, feature: str) -> None:
    @instruction(name, encoding, feature=feature, fpu="sse")
    def run(cpu: Cpu, dst: Operand, src: Operand, imm: Operand) -> None:
        b = _lanes(src.read(), width)
        dst.write(_whole(_compared(cpu, imm.read(), _lanes(dst.read(), width), b)))


def _round(name: str, opcode: str, operands: str, width: int) -> None:
    @instruction(name, f"66 0F 3A {opcode} /r {operands} Ib", feature="sse4_1", fpu="sse")
    def run(cpu: Cpu, dst: Operand, src: Operand, imm: Operand) -> None:
        dst.write(_whole(_rounded(cpu, imm.read(), _lanes(src.read(), width))))


for _prefix, _suffix, _operands, _width, _feature in _FORMS:
    _cmp_name = "CMPSD_XMM" if _suffix == "SD" else f"CMP{_suffix}"
    _compare(_cmp_name, f"{_prefix} 0F C2 /r {_operands} Ib", _width, _feature)
for (_, _suffix, _operands, _width, _), _opcode in zip(_FORMS, ("08", "09", "0A", "0B"), strict=True):
    _round(f"ROUND{_suffix}", _opcode, _operands, _width)


def _dot_product(name: str, opcode: str, width: int) -> None:
    @instruction(name, f"66 0F 3A {opcode} /r Vx Wx Ib", feature="sse4_1", fpu="sse")
    def run(cpu: Cpu, dst: Operand, src: Operand, imm: Operand) -> None:
        control, b = imm.read(), src.read().as_lanes(width)
        a = dst.read().as_lanes(width)
        zeros = a ^ a
        used = lane_mask(control >> 4, width, a.lanes)  # a product left out is +0, which raises nothing
        result = fp.dot_product(cpu, select(used, a, zeros), select(used, b, zeros))
        dst.write(select(lane_mask(control, width, a.lanes), result, zeros).as_lanes(64))


_dot_product("DPPS", "40", 32)
_dot_product("DPPD", "41", 64)


# -- comparison into EFLAGS --------------------------------------------------------------------------------------------
def _order(name: str, encoding: str, feature: str, signalling: bool) -> None:
    @instruction(name, encoding, feature=feature, fpu="sse")
    def run(cpu: Cpu, left: Operand, right: Operand) -> None:
        b = right.read()
        cpu.flags.set_all(fp.order_flags(cpu, left.read(), b, signalling))


_order("UCOMISS", "NP 0F 2E /r Vss Wss", "sse", False)
_order("UCOMISD", "66 0F 2E /r Vsd Wsd", "sse2", False)
_order("COMISS", "NP 0F 2F /r Vss Wss", "sse", True)
_order("COMISD", "66 0F 2F /r Vsd Wsd", "sse2", True)


# -- conversion: scalar ------------------------------------------------------------------------------------------------
def _convert_scalar(name: str, encoding: str, feature: str, operation: Callable[[Cpu, Bits, int], Bits]) -> None:
    @instruction(name, encoding, feature=feature, fpu="sse")
    def run(cpu: Cpu, dst: Operand, src: Operand) -> None:
        dst.write(operation(cpu, src.read(), dst.width))


_convert_scalar("CVTSI2SS", "F3 0F 2A /r Vss Ey", "sse", fp.from_integer)
_convert_scalar("CVTSI2SD", "F2 0F 2A /r Vsd Ey", "sse2", fp.from_integer)
_convert_scalar("CVTTSS2SI", "F3 0F 2C /r Gy Wss", "sse", lambda cpu, a, width: fp.to_integer(cpu, a, width, True))
_convert_scalar("CVTTSD2SI", "F2 0F 2C /r Gy Wsd", "sse2", lambda cpu, a, width: fp.to_integer(cpu, a, width, True))
_convert_scalar("CVTSS2SI", "F3 0F 2D /r Gy Wss", "sse", lambda cpu, a, width: fp.to_integer(cpu, a, width, False))
_convert_scalar("CVTSD2SI", "F2 0F 2D /r Gy Wsd", "sse2", lambda cpu, a, width: fp.to_integer(cpu, a, width, False))
_convert_scalar("CVTSS2SD", "F3 0F 5A /r Vsd Wss", "sse2", fp.convert)
_convert_scalar("CVTSD2SS", "F2 0F 5A /r Vss Wsd", "sse2", fp.convert)


# -- conversion: packed ------------------------------------------------------------------------------------------------
def _convert_packed(name: str, encoding: str, source: int, operation: Unary) -> None:
    """`operation` on the source's lanes of `source` bits; two lanes of 32 bits become a register's low half."""

    @instruction(name, encoding, feature="sse2", fpu="sse")
    def run(cpu: Cpu, dst: Operand, src: Operand) -> None:
        result = operation(cpu, src.read().as_lanes(source))
        if result.lanes * result.width == 64:
            dst.write(vector([result.as_lanes(64), u64(0)]))
        else:
            dst.write(result.as_lanes(64))


_convert_packed("CVTPS2PD", "NP 0F 5A /r Vx Wq", 32, lambda cpu, a: fp.convert(cpu, a, 64))
_convert_packed("CVTPD2PS", "66 0F 5A /r Vx Wx", 64, lambda cpu, a: fp.convert(cpu, a, 32))
_convert_packed("CVTDQ2PS", "NP 0F 5B /r Vx Wx", 32, lambda cpu, a: fp.from_integer(cpu, a, 32))
_convert_packed("CVTPS2DQ", "66 0F 5B /r Vx Wx", 32, lambda cpu, a: fp.to_integer(cpu, a, 32, False))
_convert_packed("CVTTPS2DQ", "F3 0F 5B /r Vx Wx", 32, lambda cpu, a: fp.to_integer(cpu, a, 32, True))
_convert_packed("CVTDQ2PD", "F3 0F E6 /r Vx Wq", 32, lambda cpu, a: fp.from_integer(cpu, a, 64))
_convert_packed("CVTPD2DQ", "F2 0F E6 /r Vx Wx", 64, lambda cpu, a: fp.to_integer(cpu, a, 32, False))
_convert_packed("CVTTPD2DQ", "66 0F E6 /r Vx Wx", 64, lambda cpu, a: fp.to_integer(cpu, a, 32, True))


# -- conversion: MMX registers -----------------------------------------------------------------------------------------
# The x87 state becomes MMX state if an MMX register takes part, before an unmasked exception is found. It is not
# touched by conversions from memory (SDM vol. 2, CVTPI2PD; processors differ for CVTPI2PS).
def _from_mmx(name: str, prefix: str, width: int, feature: str) -> None:
    @instruction(name, f"{prefix} 0F 2A /r Vx Nq", feature=feature, fpu="mmx")
    def register(cpu: Cpu, dst: Operand, src: Operand) -> None:
        check_pending(cpu)
        value = src.read().as_lanes(32)
        enter_mmx(cpu)
        dst.write(_with_high(dst, fp.from_integer(cpu, value, width)))

    @instruction(name, f"{prefix} 0F 2A /r Vx Mq", feature=feature, fpu="sse")
    def memory(cpu: Cpu, dst: Operand, src: Operand) -> None:
        dst.write(_with_high(dst, fp.from_integer(cpu, src.read().as_lanes(32), width)))


def _with_high(dst: Operand, result: Bits) -> Bits:
    """Two doubles, or two singles below what the destination has above them."""
    return result if result.width == 64 else vector([result.as_lanes(64), dst.read().lane(1)])


def _to_mmx(name: str, encoding: str, width: int, feature: str, truncate: bool) -> None:
    @instruction(name, encoding, feature=feature, fpu="mmx")
    def run(cpu: Cpu, dst: Operand, src: Operand) -> None:
        check_pending(cpu)
        value = src.read().as_lanes(width)
        enter_mmx(cpu)
        dst.write(fp.to_integer(cpu, value, 32, truncate).as_lanes(64))


_from_mmx("CVTPI2PS", "NP", 32, "sse")
_from_mmx("CVTPI2PD", "66", 64, "sse2")
_to_mmx("CVTTPS2PI", "NP 0F 2C /r Pq Wq", 32, "sse", True)
_to_mmx("CVTPS2PI", "NP 0F 2D /r Pq Wq", 32, "sse", False)
_to_mmx("CVTTPD2PI", "66 0F 2C /r Pq Wx", 64, "sse2", True)
_to_mmx("CVTPD2PI", "66 0F 2D /r Pq Wx", 64, "sse2", False)


# -- MXCSR -------------------------------------------------------------------------------------------------------------
@instruction("LDMXCSR", "NP 0F AE /2 Md", feature="sse", fpu="sse")
def ldmxcsr(cpu: Cpu, src: Operand) -> None:
    value = src.read()
    check_mxcsr(cpu, value)
    fp.load_mxcsr(cpu, value)


@staged
def check_mxcsr(cpu: Cpu, value: Bits) -> None:
    """#GP(0) for a reserved bit (SDM vol. 1, 10.2.3)."""
    if (value & ~fp.MXCSR_MASK) != 0:
        raise GuestFault(cpu, Vector.GP, 0)


@instruction("STMXCSR", "NP 0F AE /3 Md", feature="sse", fpu="sse")
def stmxcsr(cpu: Cpu, dst: Operand) -> None:
    dst.write(fp.fetch_mxcsr(cpu))
