"""Data movement between general registers, memory and immediates, SDM vol. 2: MOV and its kin, XCHG, SETcc, CMOVcc."""

from __future__ import annotations

from xuni.isa.bits import Bits, const, mask, select
from xuni.isa.x86.cpu import Cpu
from xuni.isa.x86.flags import Condition
from xuni.isa.x86.instruction import Operand, instruction
from xuni.isa.x86.state import Gpr


@instruction("MOV", "88 /r Eb Gb", "89 /r Ev Gv", "8A /r Gb Eb", "8B /r Gv Ev", "A0 AL Ob", "A1 rAX Ov", "A2 Ob AL",
             "A3 Ov rAX", "B0+r Zb Ib", "B8+r Zv Iv", "C6 /0 Eb Ib", "C7 /0 Ev Iz")  # fmt: skip
def mov(cpu: Cpu, dst: Operand, src: Operand) -> None:
    dst.write(src.read())


@instruction("MOVZX", "0F B6 /r Gv Eb", "0F B7 /r Gv Ew")
def movzx(cpu: Cpu, dst: Operand, src: Operand) -> None:
    dst.write(src.read().zext(dst.width))


@instruction("MOVSX", "0F BE /r Gv Eb", "0F BF /r Gv Ew")
def movsx(cpu: Cpu, dst: Operand, src: Operand) -> None:
    dst.write(src.read().sext(dst.width))


@instruction("MOVSXD", "63 /r Gv Ez o64")
def movsxd(cpu: Cpu, dst: Operand, src: Operand) -> None:
    dst.write(src.read().sext(dst.width))


@instruction("LEA", "8D /r Gv M")
def lea(cpu: Cpu, dst: Operand, src: Operand) -> None:
    dst.write(src.offset.trunc(dst.width))


@instruction("XCHG", "86 /r Eb Gb", "87 /r Ev Gv", "90+r Zv rAX", lock=True)
def xchg(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """A memory operand is exchanged atomically, LOCK or not."""
    a, b = dst.read(), src.read()
    dst.write(b)
    src.write(a)


@instruction("BSWAP", "0F C8+r Zv")
def bswap(cpu: Cpu, dst: Operand) -> None:
    if dst.width == 16:  # undefined; processors give 0
        dst.write(const(0, 16))
    else:
        dst.write(dst.read().bswap())


@instruction("MOVBE", "0F 38 F0 /r Gv Mv", "0F 38 F1 /r Mv Gv", feature="movbe")
def movbe(cpu: Cpu, dst: Operand, src: Operand) -> None:
    dst.write(src.read().bswap())


@instruction("MOVNTI", "NP 0F C3 /r My Gy", feature="sse2")
def movnti(cpu: Cpu, dst: Operand, src: Operand) -> None:
    dst.write(src.read())


@instruction("XLAT", "D7 Xb")
def xlat(cpu: Cpu, table: Operand) -> None:
    """AL from the table at rBX; `table` only tells the segment."""
    offset = (cpu.reg(Gpr.RBX, 64) + cpu.reg(Gpr.RAX, 8).zext(64)) & mask(cpu.asize)
    cpu.set_reg(Gpr.RAX, cpu.load(table.segment, offset, 8))


# -- by condition ------------------------------------------------------------------------------------------------------


def _define(condition: Condition) -> None:
    cc = int(condition)

    @instruction(f"SET{condition.name}", f"0F {0x90 + cc:02X} /r Eb", condition=True)
    def setcc(cpu: Cpu, dst: Operand) -> None:
        dst.write(cpu.flags.condition(cc).zext(8))

    @instruction(f"CMOV{condition.name}", f"0F {0x40 + cc:02X} /r Gv Ev", condition=True)
    def cmov(cpu: Cpu, dst: Operand, src: Operand) -> None:
        # The source is read and the register written (a 32-bit one zero-extended) whatever the condition.
        value: Bits = src.read()
        dst.write(select(cpu.flags.condition(cc), value, dst.read()))


for _condition in Condition:
    _define(_condition)
