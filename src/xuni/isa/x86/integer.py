"""Integer arithmetic, SDM vol. 2. Every function reads, computes, writes, then sets flags: a fault leaves no trace."""

from __future__ import annotations

from xuni.isa.bits import Bits, concat, const, mask, select, vector
from xuni.isa.stage import staged
from xuni.isa.x86.cpu import Cpu
from xuni.isa.x86.exceptions import GuestFault, Vector
from xuni.isa.x86.flags import adjust, overflow_add, overflow_sub
from xuni.isa.x86.instruction import Operand, instruction
from xuni.isa.x86.state import Gpr, Seg


@instruction("ADD", "00 /r Eb Gb", "01 /r Ev Gv", "02 /r Gb Eb", "03 /r Gv Ev", "04 AL Ib", "05 rAX Iz",
             "80 /0 Eb Ib", "81 /0 Ev Iz", "82 /0 Eb Ib i64", "83 /0 Ev Ibs", lock=True)  # fmt: skip
def add(cpu: Cpu, dst: Operand, src: Operand) -> None:
    a, b = dst.read(), src.read()
    r = a + b
    dst.write(r)
    cpu.flags.set_add(b, r)


@instruction("ADC", "10 /r Eb Gb", "11 /r Ev Gv", "12 /r Gb Eb", "13 /r Gv Ev", "14 AL Ib", "15 rAX Iz",
             "80 /2 Eb Ib", "81 /2 Ev Iz", "82 /2 Eb Ib i64", "83 /2 Ev Ibs", lock=True)  # fmt: skip
def adc(cpu: Cpu, dst: Operand, src: Operand) -> None:
    a, b, carry = dst.read(), src.read(), cpu.flags.cf
    s = a + b
    r = s + carry.zext(a.width)
    dst.write(r)
    cpu.flags.set_result(r, cf=(s < a) | (r < s), of=overflow_add(a, b, r), af=adjust(a, b, r))


@instruction("SUB", "28 /r Eb Gb", "29 /r Ev Gv", "2A /r Gb Eb", "2B /r Gv Ev", "2C AL Ib", "2D rAX Iz",
             "80 /5 Eb Ib", "81 /5 Ev Iz", "82 /5 Eb Ib i64", "83 /5 Ev Ibs", lock=True)  # fmt: skip
def sub(cpu: Cpu, dst: Operand, src: Operand) -> None:
    a, b = dst.read(), src.read()
    dst.write(a - b)
    cpu.flags.set_sub(a, b)


@instruction("SBB", "18 /r Eb Gb", "19 /r Ev Gv", "1A /r Gb Eb", "1B /r Gv Ev", "1C AL Ib", "1D rAX Iz",
             "80 /3 Eb Ib", "81 /3 Ev Iz", "82 /3 Eb Ib i64", "83 /3 Ev Ibs", lock=True)  # fmt: skip
def sbb(cpu: Cpu, dst: Operand, src: Operand) -> None:
    a, b, borrow = dst.read(), src.read(), cpu.flags.cf.zext(src.width)
    d = a - b
    r = d - borrow
    dst.write(r)
    cpu.flags.set_result(r, cf=(a < b) | (d < borrow), of=overflow_sub(a, b, r), af=adjust(a, b, r))


@instruction("CMP", "38 /r Eb Gb", "39 /r Ev Gv", "3A /r Gb Eb", "3B /r Gv Ev", "3C AL Ib", "3D rAX Iz",
             "80 /7 Eb Ib", "81 /7 Ev Iz", "82 /7 Eb Ib i64", "83 /7 Ev Ibs")  # fmt: skip
def cmp(cpu: Cpu, left: Operand, right: Operand) -> None:
    cpu.flags.set_sub(left.read(), right.read())


@instruction("INC", "40+r Zv i64", "FE /0 Eb", "FF /0 Ev", lock=True)
def inc(cpu: Cpu, dst: Operand) -> None:
    r = dst.read() + 1
    dst.write(r)
    cpu.flags.set_result(r, cf=cpu.flags.cf, of=r == 1 << (r.width - 1), af=(r & 15) == 0)


@instruction("DEC", "48+r Zv i64", "FE /1 Eb", "FF /1 Ev", lock=True)
def dec(cpu: Cpu, dst: Operand) -> None:
    a = dst.read()
    r = a - 1
    dst.write(r)
    cpu.flags.set_result(r, cf=cpu.flags.cf, of=a == 1 << (a.width - 1), af=(a & 15) == 0)


@instruction("NEG", "F6 /3 Eb", "F7 /3 Ev", lock=True)
def neg(cpu: Cpu, dst: Operand) -> None:
    a = dst.read()
    dst.write(-a)
    cpu.flags.set_sub(const(0, a.width), a)


@instruction("XADD", "0F C0 /r Eb Gb", "0F C1 /r Ev Gv", lock=True)
def xadd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    a, b = dst.read(), src.read()
    r = a + b
    if dst.is_memory:  # may fault, so it comes first
        dst.write(r)
        src.write(a)
    else:  # with one register for both, the sum stays
        src.write(a)
        dst.write(r)
    cpu.flags.set_add(b, r)


@instruction("CMPXCHG", "0F B0 /r Eb Gb AL", "0F B1 /r Ev Gv rAX", lock=True)
def cmpxchg(cpu: Cpu, dst: Operand, src: Operand, accumulator: Operand) -> None:
    old, new, expected = dst.read(), src.read(), accumulator.read()
    equal = old == expected
    if dst.is_memory:  # written in any case: the fault of a read-only destination does not depend on data
        dst.write(select(equal, new, old))
    elif equal:
        dst.write(new)
    if not equal:
        accumulator.write(old)
    cpu.flags.set_sub(expected, old)


@instruction("CMPXCHG8B", "REX.W0 0F C7 /1 Mq", lock=True)
def cmpxchg8b(cpu: Cpu, dst: Operand) -> None:
    old = dst.read()
    equal = old == concat(cpu.reg(Gpr.RDX, 32), cpu.reg(Gpr.RAX, 32))
    dst.write(select(equal, concat(cpu.reg(Gpr.RCX, 32), cpu.reg(Gpr.RBX, 32)), old))
    if not equal:
        cpu.set_reg(Gpr.RAX, old.trunc(32))
        cpu.set_reg(Gpr.RDX, old.field(32, 32))
    cpu.flags.change(zf=equal)


@instruction("CMPXCHG16B", "REX.W 0F C7 /1 Mdq", feature="cx16", lock=True)
def cmpxchg16b(cpu: Cpu, dst: Operand) -> None:
    # Only FS and GS have a base in 64-bit mode.
    base = select(dst.segment >= Seg.FS, cpu.s.seg_base[dst.segment & 7], 0)
    if ((base + dst.offset) & 15) != 0:
        raise GuestFault(cpu, Vector.GP, 0)
    old = dst.read()
    low, high = old.lane(0), old.lane(1)
    equal = (low == cpu.reg(Gpr.RAX, 64)) & (high == cpu.reg(Gpr.RDX, 64))
    new_low, new_high = select(equal, cpu.reg(Gpr.RBX, 64), low), select(equal, cpu.reg(Gpr.RCX, 64), high)
    dst.write(vector([new_low, new_high]))
    if not equal:
        cpu.set_reg(Gpr.RAX, low)
        cpu.set_reg(Gpr.RDX, high)
    cpu.flags.change(zf=equal)


# -- multiplication ----------------------------------------------------------------------------------------------------


def _write_product(cpu: Cpu, product: Bits) -> None:
    """To AX, DX:AX, EDX:EAX or RDX:RAX."""
    width = product.width // 2
    if width == 8:
        cpu.set_reg(Gpr.RAX, product)
    else:
        cpu.set_reg(Gpr.RAX, product.trunc(width))
        cpu.set_reg(Gpr.RDX, product.field(width, width))


@instruction("MUL", "F6 /4 Eb", "F7 /4 Ev")
def mul(cpu: Cpu, src: Operand) -> None:
    width = src.width
    exact = cpu.reg(Gpr.RAX, width).zext(2 * width) * src.read().zext(2 * width)
    _write_product(cpu, exact)
    overflow = exact.field(width, width) != 0
    cpu.flags.set_result(exact.trunc(width), cf=overflow, of=overflow)
    cpu.flags.leave_undefined("sf", "zf", "af", "pf")


@instruction("IMUL", "F6 /5 Eb", "F7 /5 Ev")
def imul_wide(cpu: Cpu, src: Operand) -> None:
    width = src.width
    exact = cpu.reg(Gpr.RAX, width).sext(2 * width) * src.read().sext(2 * width)
    _write_product(cpu, exact)
    _imul_flags(cpu, exact)


@instruction("IMUL", "69 /r Gv Ev Iz", "6B /r Gv Ev Ibs", "0F AF /r Gv Gv Ev")
def imul(cpu: Cpu, dst: Operand, left: Operand, right: Operand) -> None:
    exact = left.read().sext(2 * dst.width) * right.read().sext(2 * dst.width)
    dst.write(exact.trunc(dst.width))
    _imul_flags(cpu, exact)


def _imul_flags(cpu: Cpu, exact: Bits) -> None:
    r = exact.trunc(exact.width // 2)
    overflow = r.sext(exact.width) != exact
    cpu.flags.set_result(r, cf=overflow, of=overflow)
    cpu.flags.leave_undefined("sf", "zf", "af", "pf")


# -- division ----------------------------------------------------------------------------------------------------------


@instruction("DIV", "F6 /6 Eb", "F7 /6 Ev")
def div(cpu: Cpu, src: Operand) -> None:
    width, divisor = src.width, src.read()
    if width == 64:
        high, low = cpu.reg(Gpr.RDX, 64), cpu.reg(Gpr.RAX, 64)
        if high >= divisor:  # the quotient needs more than 64 bits; a divisor of 0 is included
            raise GuestFault(cpu, Vector.DE)
        quotient, remainder = cpu.divide(high, low, divisor, False)
    else:
        if divisor == 0:
            raise GuestFault(cpu, Vector.DE)
        dividend = _dividend(cpu, width)
        wide = divisor.zext(2 * width)
        whole = dividend.udiv(wide)
        if whole > mask(width):
            raise GuestFault(cpu, Vector.DE)
        quotient, remainder = whole.trunc(width), dividend.urem(wide).trunc(width)
    _write_quotient(cpu, quotient, remainder)


@instruction("IDIV", "F6 /7 Eb", "F7 /7 Ev")
def idiv(cpu: Cpu, src: Operand) -> None:
    width, divisor = src.width, src.read()
    if width == 64:
        quotient, remainder = _divide_signed(cpu, cpu.reg(Gpr.RDX, 64), cpu.reg(Gpr.RAX, 64), divisor)
    else:
        if divisor == 0:
            raise GuestFault(cpu, Vector.DE)
        dividend, wide = _dividend(cpu, width).sext(64), divisor.sext(64)
        if width == 32:  # the one quotient that even 64 bits cannot hold
            if (dividend == 1 << 63) & (wide == mask(64)):
                raise GuestFault(cpu, Vector.DE)
        whole = dividend.sdiv(wide)
        quotient, remainder = whole.trunc(width), dividend.srem(wide).trunc(width)
        if quotient.sext(64) != whole:
            raise GuestFault(cpu, Vector.DE)
    _write_quotient(cpu, quotient, remainder)


@staged
def _divide_signed(cpu: Cpu, high: Bits, low: Bits, divisor: Bits) -> tuple[Bits, Bits]:
    """128 by 64 bits through the magnitudes, so that every quotient that does not fit is seen."""
    negative, against = high[63], divisor[63]
    borrow = (low != 0).zext(64)
    low_magnitude = select(negative, -low, low)
    high_magnitude = select(negative, -high - borrow, high)
    divisor_magnitude = select(against, -divisor, divisor)
    if high_magnitude >= divisor_magnitude:
        raise GuestFault(cpu, Vector.DE)
    quotient, remainder = cpu.divide(high_magnitude, low_magnitude, divisor_magnitude, False)
    opposite = negative ^ against
    if quotient > (1 << 63) - 1 + opposite.zext(64):
        raise GuestFault(cpu, Vector.DE)
    return select(opposite, -quotient, quotient), select(negative, -remainder, remainder)


def _dividend(cpu: Cpu, width: int) -> Bits:
    """AX, DX:AX or EDX:EAX."""
    if width == 8:
        return cpu.reg(Gpr.RAX, 16)
    return concat(cpu.reg(Gpr.RDX, width), cpu.reg(Gpr.RAX, width))


def _write_quotient(cpu: Cpu, quotient: Bits, remainder: Bits) -> None:
    if quotient.width == 8:
        cpu.set_reg(Gpr.RAX, concat(remainder, quotient))
    else:
        cpu.set_reg(Gpr.RAX, quotient)
        cpu.set_reg(Gpr.RDX, remainder)
    cpu.flags.leave_undefined("cf", "of", "sf", "zf", "af", "pf")


# -- sign extension of the accumulator ---------------------------------------------------------------------------------


@instruction("CBW", "98 rAX")
def cbw(cpu: Cpu, dst: Operand) -> None:
    """CBW, CWDE or CDQE by operand size."""
    dst.write(cpu.reg(Gpr.RAX, dst.width // 2).sext(dst.width))


@instruction("CWD", "99 rAX")
def cwd(cpu: Cpu, src: Operand) -> None:
    """CWD, CDQ or CQO by operand size."""
    cpu.set_reg(Gpr.RDX, src.read().sar(src.width - 1))
