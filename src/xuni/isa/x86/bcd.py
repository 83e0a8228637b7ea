"""Decimal adjustment, SDM vol. 2; 64-bit mode has none of it."""

from __future__ import annotations

from xuni.isa.bits import concat, select, u8, u16
from xuni.isa.x86.cpu import Cpu
from xuni.isa.x86.exceptions import GuestFault, Vector
from xuni.isa.x86.flags import CF
from xuni.isa.x86.instruction import Operand, instruction
from xuni.isa.x86.state import Gpr


@instruction("DAA", "27 i64", cold=True)
def daa(cpu: Cpu) -> None:
    al, flags = cpu.reg(Gpr.RAX, 8), cpu.flags.value
    low = ((al & 15) > 9) | flags[4]
    high = (al > 0x99) | flags[CF]
    r = al + select(low, u8(6), 0) + select(high, u8(0x60), 0)
    cpu.set_reg(Gpr.RAX, r)
    cpu.flags.set_result(r, cf=high, of=0, af=low)
    cpu.flags.leave_undefined("of")


@instruction("DAS", "2F i64", cold=True)
def das(cpu: Cpu) -> None:
    al, flags = cpu.reg(Gpr.RAX, 8), cpu.flags.value
    low = ((al & 15) > 9) | flags[4]
    high = (al > 0x99) | flags[CF]
    r = al - select(low, u8(6), 0) - select(high, u8(0x60), 0)
    cpu.set_reg(Gpr.RAX, r)
    cpu.flags.set_result(r, cf=high | (low & (al < 6)), of=0, af=low)
    cpu.flags.leave_undefined("of")


@instruction("AAA", "37 i64", cold=True)
def aaa(cpu: Cpu) -> None:
    ax = cpu.reg(Gpr.RAX, 16)
    adjust = ((ax & 15) > 9) | cpu.flags.af
    r = (ax + select(adjust, u16(0x106), 0)) & 0xFF0F
    cpu.set_reg(Gpr.RAX, r)
    cpu.flags.set_result(r.trunc(8), cf=adjust, of=0, af=adjust)
    cpu.flags.leave_undefined("of", "sf", "zf", "pf")


@instruction("AAS", "3F i64", cold=True)
def aas(cpu: Cpu) -> None:
    ax = cpu.reg(Gpr.RAX, 16)
    adjust = ((ax & 15) > 9) | cpu.flags.af
    r = (ax - select(adjust, u16(0x106), 0)) & 0xFF0F
    cpu.set_reg(Gpr.RAX, r)
    cpu.flags.set_result(r.trunc(8), cf=adjust, of=0, af=adjust)
    cpu.flags.leave_undefined("of", "sf", "zf", "pf")


@instruction("AAM", "D4 Ib i64", cold=True)
def aam(cpu: Cpu, base: Operand) -> None:
    al, divisor = cpu.reg(Gpr.RAX, 8), base.read()
    if divisor == 0:
        raise GuestFault(cpu, Vector.DE)
    r = al.urem(divisor)
    cpu.set_reg(Gpr.RAX, concat(al.udiv(divisor), r))
    cpu.flags.set_logic(r)
    cpu.flags.leave_undefined("cf", "of", "af")


@instruction("AAD", "D5 Ib i64", cold=True)
def aad(cpu: Cpu, base: Operand) -> None:
    ax = cpu.reg(Gpr.RAX, 16)
    r = ax.trunc(8) + ax.field(8, 8) * base.read()
    cpu.set_reg(Gpr.RAX, r.zext(16))
    cpu.flags.set_logic(r)
    cpu.flags.leave_undefined("cf", "of", "af")
