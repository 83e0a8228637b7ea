"""AND, OR, XOR, NOT, TEST, SDM vol. 2."""

from __future__ import annotations

from xuni.isa.x86.cpu import Cpu
from xuni.isa.x86.instruction import Operand, instruction


@instruction("AND", "20 /r Eb Gb", "21 /r Ev Gv", "22 /r Gb Eb", "23 /r Gv Ev", "24 AL Ib", "25 rAX Iz",
             "80 /4 Eb Ib", "81 /4 Ev Iz", "82 /4 Eb Ib i64", "83 /4 Ev Ibs", lock=True)  # fmt: skip
def and_(cpu: Cpu, dst: Operand, src: Operand) -> None:
    r = dst.read() & src.read()
    dst.write(r)
    cpu.flags.set_logic(r)
    cpu.flags.leave_undefined("af")


@instruction("OR", "08 /r Eb Gb", "09 /r Ev Gv", "0A /r Gb Eb", "0B /r Gv Ev", "0C AL Ib", "0D rAX Iz",
             "80 /1 Eb Ib", "81 /1 Ev Iz", "82 /1 Eb Ib i64", "83 /1 Ev Ibs", lock=True)  # fmt: skip
def or_(cpu: Cpu, dst: Operand, src: Operand) -> None:
    r = dst.read() | src.read()
    dst.write(r)
    cpu.flags.set_logic(r)
    cpu.flags.leave_undefined("af")


@instruction("XOR", "30 /r Eb Gb", "31 /r Ev Gv", "32 /r Gb Eb", "33 /r Gv Ev", "34 AL Ib", "35 rAX Iz",
             "80 /6 Eb Ib", "81 /6 Ev Iz", "82 /6 Eb Ib i64", "83 /6 Ev Ibs", lock=True)  # fmt: skip
def xor(cpu: Cpu, dst: Operand, src: Operand) -> None:
    r = dst.read() ^ src.read()
    dst.write(r)
    cpu.flags.set_logic(r)
    cpu.flags.leave_undefined("af")


@instruction("TEST", "84 /r Eb Gb", "85 /r Ev Gv", "A8 AL Ib", "A9 rAX Iz", "F6 /0 Eb Ib", "F6 /1 Eb Ib",
             "F7 /0 Ev Iz", "F7 /1 Ev Iz")  # fmt: skip
def test(cpu: Cpu, left: Operand, right: Operand) -> None:
    cpu.flags.set_logic(left.read() & right.read())
    cpu.flags.leave_undefined("af")


@instruction("NOT", "F6 /2 Eb", "F7 /2 Ev", lock=True)
def not_(cpu: Cpu, dst: Operand) -> None:
    dst.write(~dst.read())
