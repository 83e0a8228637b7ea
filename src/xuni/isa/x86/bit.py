"""Bit tests, bit scans, counts, and BMI1/BMI2 on general registers, SDM vol. 2."""

from __future__ import annotations

from xuni.isa.bits import U64, Bits, const, mask, select, u64
from xuni.isa.stage import likely, native
from xuni.isa.x86.cpu import Cpu
from xuni.isa.x86.flags import ZF
from xuni.isa.x86.instruction import Operand, instruction
from xuni.isa.x86.state import Gpr

# -- bit tests ---------------------------------------------------------------------------------------------------------
# A bit offset in a register reaches outside a memory operand: it selects a word of the operand's width near the address
# first, signed. An immediate offset never does.

_REST = ("of", "sf", "af", "pf")  # ZF is unaffected


def _reach(base: Operand, index: Operand) -> Operand:
    """The word of memory that holds the bit."""
    size = base.width // 8
    word = index.read().sar(size.bit_length() + 2).sext(64)
    return base.displaced(word * size)


def _bit(base: Operand, index: Operand) -> Bits:
    """The bit's number inside its word, in the width of the operand."""
    n = index.read()
    if n.width < base.width:
        n = n.zext(base.width)
    return n & (base.width - 1)


def _change_carry(cpu: Cpu, word: Bits, number: Bits) -> None:
    cpu.flags.set_carry(word.bit(number))
    cpu.flags.leave_undefined(*_REST)


@instruction("BT", "0F A3 /r Ev Gv")
def bt(cpu: Cpu, base: Operand, index: Operand) -> None:
    word = _reach(base, index).read() if base.is_memory else base.read()
    _change_carry(cpu, word, _bit(base, index))


@instruction("BT", "0F BA /4 Ev Ib")
def bt_immediate(cpu: Cpu, base: Operand, index: Operand) -> None:
    _change_carry(cpu, base.read(), _bit(base, index))


@instruction("BTS", "0F AB /r Ev Gv", lock=True)
def bts(cpu: Cpu, base: Operand, index: Operand) -> None:
    place = _reach(base, index) if base.is_memory else base
    word, number = place.read(), _bit(base, index)
    place.write(word | const(1, word.width) << number)
    _change_carry(cpu, word, number)


@instruction("BTS", "0F BA /5 Ev Ib", lock=True)
def bts_immediate(cpu: Cpu, base: Operand, index: Operand) -> None:
    word, number = base.read(), _bit(base, index)
    base.write(word | const(1, word.width) << number)
    _change_carry(cpu, word, number)


@instruction("BTR", "0F B3 /r Ev Gv", lock=True)
def btr(cpu: Cpu, base: Operand, index: Operand) -> None:
    place = _reach(base, index) if base.is_memory else base
    word, number = place.read(), _bit(base, index)
    place.write(word & ~(const(1, word.width) << number))
    _change_carry(cpu, word, number)


@instruction("BTR", "0F BA /6 Ev Ib", lock=True)
def btr_immediate(cpu: Cpu, base: Operand, index: Operand) -> None:
    word, number = base.read(), _bit(base, index)
    base.write(word & ~(const(1, word.width) << number))
    _change_carry(cpu, word, number)


@instruction("BTC", "0F BB /r Ev Gv", lock=True)
def btc(cpu: Cpu, base: Operand, index: Operand) -> None:
    place = _reach(base, index) if base.is_memory else base
    word, number = place.read(), _bit(base, index)
    place.write(word ^ const(1, word.width) << number)
    _change_carry(cpu, word, number)


@instruction("BTC", "0F BA /7 Ev Ib", lock=True)
def btc_immediate(cpu: Cpu, base: Operand, index: Operand) -> None:
    word, number = base.read(), _bit(base, index)
    base.write(word ^ const(1, word.width) << number)
    _change_carry(cpu, word, number)


# -- scans and counts --------------------------------------------------------------------------------------------------


@instruction("BSF", "0F BC /r Gv Ev")
def bsf(cpu: Cpu, dst: Operand, src: Operand) -> None:
    value = src.read()
    if value != 0:  # otherwise the destination stays, upper half included
        dst.write(value.ctz())
    cpu.flags.set_logic(value)  # ZF tells of the source
    cpu.flags.leave_undefined("cf", "of", "sf", "af", "pf")


@instruction("BSR", "0F BD /r Gv Ev")
def bsr(cpu: Cpu, dst: Operand, src: Operand) -> None:
    value = src.read()
    if value != 0:
        dst.write(value.clz() ^ (value.width - 1))
    cpu.flags.set_logic(value)
    cpu.flags.leave_undefined("cf", "of", "sf", "af", "pf")


@instruction("TZCNT", "F3 0F BC /r Gv Ev")
def tzcnt(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """A processor without BMI1 ignores the prefix: programs rely on getting BSF then."""
    if likely(cpu.has_feature("bmi1")):
        value = src.read()
        r = value.ctz()
        dst.write(r)
        cpu.flags.set_result(r, cf=value == 0, of=0)
        cpu.flags.leave_undefined("of", "sf", "af", "pf")
    else:
        bsf(cpu, dst, src)


@instruction("LZCNT", "F3 0F BD /r Gv Ev")
def lzcnt(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """Without LZCNT this is BSR."""
    if likely(cpu.has_feature("lzcnt")):
        value = src.read()
        r = value.clz()
        dst.write(r)
        cpu.flags.set_result(r, cf=value == 0, of=0)
        cpu.flags.leave_undefined("of", "sf", "af", "pf")
    else:
        bsr(cpu, dst, src)


@instruction("POPCNT", "F3 0F B8 /r Gv Ev", feature="popcnt")
def popcnt(cpu: Cpu, dst: Operand, src: Operand) -> None:
    value = src.read()
    dst.write(value.popcount())
    cpu.flags.set_all((value == 0).zext(64) << ZF)


# -- BMI1 --------------------------------------------------------------------------------------------------------------


@instruction("ANDN", "VEX.L0.NP.0F38 F2 /r Gy By Ey", feature="bmi1")
def andn(cpu: Cpu, dst: Operand, left: Operand, right: Operand) -> None:
    r = ~left.read() & right.read()
    dst.write(r)
    cpu.flags.set_logic(r)
    cpu.flags.leave_undefined("af", "pf")


@instruction("BEXTR", "VEX.L0.NP.0F38 F7 /r Gy Ey By", feature="bmi1")
def bextr(cpu: Cpu, dst: Operand, src: Operand, control: Operand) -> None:
    value, how = src.read(), control.read()
    r = (value >> (how & 0xFF)) & _low(how.field(8, 8), dst.width)
    dst.write(r)
    cpu.flags.set_result(r, cf=0, of=0)
    cpu.flags.leave_undefined("sf", "af", "pf")


def _low(count: Bits, width: int) -> Bits:
    """The lowest `count` bits set, all of them from `width` on; `count` has 8 bits."""
    return ~(const(mask(width), width) << count.zext(width))


@instruction("BLSI", "VEX.L0.NP.0F38 F3 /3 By Ey", feature="bmi1")
def blsi(cpu: Cpu, dst: Operand, src: Operand) -> None:
    value = src.read()
    r = value & -value
    dst.write(r)
    cpu.flags.set_result(r, cf=value != 0, of=0)
    cpu.flags.leave_undefined("af", "pf")


@instruction("BLSMSK", "VEX.L0.NP.0F38 F3 /2 By Ey", feature="bmi1")
def blsmsk(cpu: Cpu, dst: Operand, src: Operand) -> None:
    value = src.read()
    r = value ^ (value - 1)
    dst.write(r)
    cpu.flags.set_result(r, cf=value == 0, of=0)
    cpu.flags.leave_undefined("af", "pf")


@instruction("BLSR", "VEX.L0.NP.0F38 F3 /1 By Ey", feature="bmi1")
def blsr(cpu: Cpu, dst: Operand, src: Operand) -> None:
    value = src.read()
    r = value & (value - 1)
    dst.write(r)
    cpu.flags.set_result(r, cf=value == 0, of=0)
    cpu.flags.leave_undefined("af", "pf")


# -- BMI2, ADX ---------------------------------------------------------------------------------------------------------


@instruction("BZHI", "VEX.L0.NP.0F38 F5 /r Gy Ey By", feature="bmi2")
def bzhi(cpu: Cpu, dst: Operand, src: Operand, index: Operand) -> None:
    value, count = src.read(), index.read().trunc(8)
    r = value & _low(count, dst.width)
    dst.write(r)
    cpu.flags.set_result(r, cf=count > dst.width - 1, of=0)
    cpu.flags.leave_undefined("af", "pf")


@instruction("MULX", "VEX.L0.F2.0F38 F6 /r Gy By Ey", feature="bmi2")
def mulx(cpu: Cpu, high: Operand, low: Operand, src: Operand) -> None:
    width = high.width
    product = cpu.reg(Gpr.RDX, width).zext(2 * width) * src.read().zext(2 * width)
    low.write(product.trunc(width))
    high.write(product.field(width, width))  # with one register for both, the high half stays


@instruction("PDEP", "VEX.L0.F2.0F38 F5 /r Gy By Ey", feature="bmi2")
def pdep(cpu: Cpu, dst: Operand, src: Operand, where: Operand) -> None:
    dst.write(deposit(cpu, src.read().zext(64), where.read().zext(64)).trunc(dst.width))


@instruction("PEXT", "VEX.L0.F3.0F38 F5 /r Gy By Ey", feature="bmi2")
def pext(cpu: Cpu, dst: Operand, src: Operand, where: Operand) -> None:
    dst.write(extract(cpu, src.read().zext(64), where.read().zext(64)).trunc(dst.width))


@native
def deposit(cpu: Cpu, source: U64, where: U64) -> U64:
    """The low bits of `source`, spread to the places of the 1 bits of `where`."""
    result = u64(0)
    while where != 0:
        result = result | (where & -where & -(source & 1))
        source = source >> 1
        where = where & (where - 1)
    return result


@native
def extract(cpu: Cpu, source: U64, where: U64) -> U64:
    """The bits of `source` at the 1 bits of `where`, gathered at the low end."""
    result, place = u64(0), u64(1)
    while where != 0:
        result = result | select((source & where & -where) != 0, place, 0)
        place = place << 1
        where = where & (where - 1)
    return result


def _sum(a: Bits, b: Bits, carry: Bits) -> tuple[Bits, Bits]:
    s = a + b
    r = s + carry.zext(a.width)
    return r, (s < a) | (r < s)


@instruction("ADCX", "66 0F 38 F6 /r Gy Ey", feature="adx")
def adcx(cpu: Cpu, dst: Operand, src: Operand) -> None:
    r, carry = _sum(dst.read(), src.read(), cpu.flags.cf)
    dst.write(r)
    cpu.flags.change(cf=carry)


@instruction("ADOX", "F3 0F 38 F6 /r Gy Ey", feature="adx")
def adox(cpu: Cpu, dst: Operand, src: Operand) -> None:
    r, carry = _sum(dst.read(), src.read(), cpu.flags.of)
    dst.write(r)
    cpu.flags.change(of=carry)
