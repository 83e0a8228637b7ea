"""Near transfers of control: JMP, Jcc, CALL, RET, LOOP, JCXZ.

`cpu.branch(condition)` is the direct branch to the displacement of the instruction: taken when the condition is 1.
`cpu.jump(target)` is the indirect one. Either is the last thing that an instruction does.
"""

from __future__ import annotations

from xuni.isa.bits import Bits, select, u1, u64
from xuni.isa.stage import staged
from xuni.isa.x86.cpu import Cpu
from xuni.isa.x86.flags import Condition
from xuni.isa.x86.instruction import Operand, instruction
from xuni.isa.x86.state import Gpr


@instruction("JMP", "EB f64 Jb", "E9 f64 Jz", ends=True)
def jmp(cpu: Cpu, target: Operand) -> None:
    cpu.branch(u1(1))


def _jcc(cc: int) -> None:
    def jcc(cpu: Cpu, target: Operand) -> None:
        cpu.branch(cpu.flags.condition(cc))

    name = Condition(cc).name
    instruction(f"J{name}", f"{0x70 + cc:02X} f64 Jb", f"0F {0x80 + cc:02X} f64 Jz", condition=True)(jcc)


for _cc in range(16):
    _jcc(_cc)


@instruction("JMP", "FF /4 f64 Ev", ends=True)
def jmp_indirect(cpu: Cpu, target: Operand) -> None:
    to = target.read().zext(64)
    cpu.check_target(to)
    cpu.jump(to)


@instruction("CALL", "E8 f64 Jz", ends=True)
def call(cpu: Cpu, target: Operand) -> None:
    cpu.check_branch()
    cpu.push(cpu.next_rip.trunc(cpu.osize))
    cpu.branch(u1(1))


@instruction("CALL", "FF /2 f64 Ev", ends=True)
def call_indirect(cpu: Cpu, target: Operand) -> None:
    to = target.read()
    cpu.check_target(to.zext(64))
    cpu.push(cpu.next_rip.trunc(cpu.osize))
    cpu.jump(to.zext(64))


@instruction("RET", "C3 f64", ends=True)
def ret(cpu: Cpu) -> None:
    target = cpu.top(cpu.osize).zext(64)
    cpu.check_target(target)
    cpu.drop(cpu.osize // 8)
    cpu.jump(target)


@instruction("RET", "C2 f64 Iw", ends=True)
def ret_release(cpu: Cpu, count: Operand) -> None:
    target = cpu.top(cpu.osize).zext(64)
    cpu.check_target(target)
    cpu.drop(count.read().zext(64) + cpu.osize // 8)
    cpu.jump(target)


@staged
def _loop(cpu: Cpu, wanted: Bits) -> None:
    """Decrement CX, ECX or RCX, by the address size; branch if it is not zero and the condition holds."""
    old = cpu.s.gpr[Gpr.RCX]
    mask = cpu.address_mask
    count = (old - 1) & mask
    taken = (count != 0) & wanted
    if taken:
        cpu.check_branch()
    cpu.s.gpr[Gpr.RCX] = count | select(mask == 0xFFFF, old & ~mask, u64(0))
    cpu.branch(taken)


@instruction("LOOPNE", "E0 f64 Jb")
def loopne(cpu: Cpu, target: Operand) -> None:
    _loop(cpu, ~cpu.flags.zf)


@instruction("LOOPE", "E1 f64 Jb")
def loope(cpu: Cpu, target: Operand) -> None:
    _loop(cpu, cpu.flags.zf)


@instruction("LOOP", "E2 f64 Jb")
def loop(cpu: Cpu, target: Operand) -> None:
    _loop(cpu, u1(1))


@instruction("JCXZ", "E3 f64 Jb")
def jcxz(cpu: Cpu, target: Operand) -> None:
    cpu.branch((cpu.s.gpr[Gpr.RCX] & cpu.address_mask) == 0)
