"""x87: arithmetic, comparison and rounding. The stack is in `x87_stack`, the computing in `x87_fp`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xuni.isa.bits import U8, U64, Bits, const, select, u16, u64
from xuni.isa.softfloat import Flag
from xuni.isa.stage import likely, native, staged
from xuni.isa.x86 import x87_fp as fp
from xuni.isa.x86 import x87_stack as stack
from xuni.isa.x86.flags import Condition
from xuni.isa.x86.instruction import Operand, instruction
from xuni.isa.x86.mmx_state import check_pending
from xuni.isa.x86.x87_stack import C0, C1, C2, C3, has_operand, offset
from xuni.isa.x86.x87_verdict import BEFORE, compute, judge

if TYPE_CHECKING:
    from xuni.isa.x86.cpu import Cpu

Number = Bits | int  # of a stack register


# -- arithmetic --------------------------------------------------------------------------------------------------------
# Each operation has a hot path, and a native function for all cases, which gives the same where both apply.
@staged
def operate(cpu: Cpu, op: str, dst: Number, left: Number, right: Number, pops: int) -> None:
    """ST(dst) := ST(left) op ST(right)."""
    if likely(stack.ready(cpu, left, right)):
        raised = fp.binary(cpu, op, offset(cpu, dst), offset(cpu, left), offset(cpu, right))
        stack.finish(cpu, raised, C1, pops)
    else:
        operate_checked(cpu, _u8(dst), _u8(left), _u8(right), op, pops)


def _u8(number: Number) -> Bits:
    return const(number, 8) if isinstance(number, int) else number


@native
def operate_checked(cpu: Cpu, dst: U8, left: U8, right: U8, op: str, pops: int) -> None:
    check_pending(cpu)
    if not has_operand(cpu, left, dst, pops):
        return
    if not has_operand(cpu, right, dst, pops):
        return
    a, b = offset(cpu, left), offset(cpu, right)
    written = compute(cpu, offset(cpu, dst), lambda where: fp.binary(cpu, op, where, a, b),
                      scaled=lambda where, up: fp.scaled_binary(cpu, op, where, a, b, up))  # fmt: skip
    if pops:
        if written:
            stack.pop(cpu)


@staged
def operate_memory(cpu: Cpu, op: str, kind: str, src: Operand) -> None:
    """ST(0) := ST(0) op memory."""
    check_pending(cpu)
    value = src.read()
    if likely(stack.ready(cpu, 0)):
        a = offset(cpu, 0)
        stack.finish(cpu, fp.binary_memory(cpu, op, kind, a, a, value))
    else:
        operate_memory_checked(cpu, value.zext(64), op, kind)


@native
def operate_memory_checked(cpu: Cpu, wide: U64, op: str, kind: str) -> None:
    value = wide.trunc(fp.KINDS[kind][1])
    if not has_operand(cpu, 0, 0):
        return
    a = offset(cpu, 0)
    compute(cpu, a, lambda where: fp.binary_memory(cpu, op, kind, where, a, value),
            scaled=lambda where, up: fp.scaled_binary(cpu, op, where, a, fp.widened(cpu, kind, value), up))  # fmt: skip


def _arithmetic(name: str, op: str, digit: int, top: str, other: str, other_op: str) -> None:
    """All forms: `top` is the register form's ModRM with ST(0) as destination, `other` that with ST(i)."""

    @instruction(name, f"D8 {top}+i STi", feature="fpu", fpu="x87")
    def to_top(cpu: Cpu, i: Operand) -> None:
        operate(cpu, op, 0, 0, i.index, 0)

    @instruction(name, f"DC {other}+i STi", feature="fpu", fpu="x87")
    def to_register(cpu: Cpu, i: Operand) -> None:
        operate(cpu, other_op, i.index, 0, i.index, 0)

    @instruction(f"{name}P", f"DE {other}+i STi", feature="fpu", fpu="x87")
    def popping(cpu: Cpu, i: Operand) -> None:
        operate(cpu, other_op, i.index, 0, i.index, 1)

    for opcode, code, kind, integer in (("D8", "Md", "m32", ""), ("DC", "Mq", "m64", ""),
                                        ("DA", "Md", "m32int", "I"), ("DE", "Mw", "m16int", "I")):  # fmt: skip
        _with_memory(f"F{integer}{name[1:]}", f"{opcode} /{digit} {code}", op, kind)


def _with_memory(name: str, encoding: str, op: str, kind: str) -> None:
    @instruction(name, encoding, feature="fpu", fpu="x87")
    def run(cpu: Cpu, src: Operand) -> None:
        operate_memory(cpu, op, kind, src)


# The operands of `other_op` are ST(0) and ST(i), in this order.
_arithmetic("FADD", "add", 0, "C0", "C0", "add")
_arithmetic("FMUL", "mul", 1, "C8", "C8", "mul")
_arithmetic("FSUB", "sub", 4, "E0", "E8", "subr")
_arithmetic("FSUBR", "subr", 5, "E8", "E0", "sub")
_arithmetic("FDIV", "div", 6, "F0", "F8", "divr")
_arithmetic("FDIVR", "divr", 7, "F8", "F0", "div")


def _unary(name: str, encoding: str, op: str) -> None:
    @instruction(name, encoding, feature="fpu", fpu="x87")
    def run(cpu: Cpu) -> None:
        if likely(stack.ready(cpu, 0)):
            a = offset(cpu, 0)
            stack.finish(cpu, fp.unary(cpu, op, a, a))
        else:
            unary_checked(cpu, op)


@native
def unary_checked(cpu: Cpu, op: str) -> None:
    check_pending(cpu)
    if not has_operand(cpu, 0, 0):
        return
    a = offset(cpu, 0)
    compute(cpu, a, lambda where: fp.unary(cpu, op, where, a))


_unary("FSQRT", "D9 FA", "fsqrt")
_unary("FRNDINT", "D9 FC", "frndint")


def _sign(name: str, encoding: str, clear: int, flip: int) -> None:
    @instruction(name, encoding, feature="fpu", fpu="x87")
    def run(cpu: Cpu) -> None:
        check_pending(cpu)
        if has_operand(cpu, 0, 0):
            at = offset(cpu, 0) + 8
            head = cpu.s.place.load(at, 16)
            cpu.s.place.store(at, (head & ~clear) ^ flip)
            stack.finish(cpu, 0)


_sign("FCHS", "D9 E0", 0, 0x8000)
_sign("FABS", "D9 E1", 0x8000, 0)


# -- comparison --------------------------------------------------------------------------------------------------------
# Codes and flags are set even if an exception is unmasked, which only keeps the stack from being popped.
@staged
def has_operands(cpu: Cpu, i: Number, j: Number, pops: int, flags: bool = False) -> Bits:
    """For comparisons: an empty register is an invalid operand, and unordered; if `flags`, that is for the caller."""
    if stack.is_empty(cpu, i) | stack.is_empty(cpu, j):
        stack.stack_fault(cpu, overflow=0)
        if not flags:
            stack.set_codes(cpu, C0 | C2 | C3, C0 | C2 | C3)
        if stack.is_masked(cpu, int(Flag.IE)):
            for _ in range(pops):
                stack.pop(cpu)
        return const(0, 1)
    return const(1, 1)


@staged
def compare_registers(cpu: Cpu, i: Number, signalling: bool, pops: int) -> None:
    if likely(stack.ready(cpu, 0, i)):
        raised = fp.compare(cpu, offset(cpu, 0), offset(cpu, i), signalling)
        stack.finish(cpu, raised, stack.CODES, pops)
    else:
        compare_registers_checked(cpu, _u8(i), signalling, pops)


@native
def compare_registers_checked(cpu: Cpu, i: U8, signalling: bool, pops: int) -> None:
    check_pending(cpu)
    if not has_operands(cpu, 0, i, pops):
        return
    raised = fp.compare(cpu, offset(cpu, 0), offset(cpu, i), signalling)
    if judge(cpu, raised, BEFORE, stack.CODES):
        for _ in range(pops):
            stack.pop(cpu)


@staged
def compare_with_memory(cpu: Cpu, kind: str, src: Operand, pops: int) -> None:
    check_pending(cpu)
    value = src.read()
    if likely(stack.ready(cpu, 0)):
        stack.finish(cpu, fp.compare_memory(cpu, kind, offset(cpu, 0), value), stack.CODES, pops)
    else:
        compare_with_memory_checked(cpu, value.zext(64), kind, pops)


@native
def compare_with_memory_checked(cpu: Cpu, wide: U64, kind: str, pops: int) -> None:
    value = wide.trunc(fp.KINDS[kind][1])
    if not has_operands(cpu, 0, 0, pops):
        return
    raised = fp.compare_memory(cpu, kind, offset(cpu, 0), value)
    if judge(cpu, raised, BEFORE, stack.CODES):
        for _ in range(pops):
            stack.pop(cpu)


@staged
def compare_into_flags(cpu: Cpu, i: Number, signalling: bool, pops: int) -> None:
    """FCOMI and its kin: ZF, PF, CF instead of C3, C2, C0."""
    if likely(stack.ready(cpu, 0, i)):
        raised = fp.compare(cpu, offset(cpu, 0), offset(cpu, i), signalling)
        stack.finish(cpu, raised & stack.FLAGS, 0, pops)
        cpu.flags.set_all((raised >> 8).zext(64) & 0x45)  # C0, C2, C3 where CF, PF, ZF are
    else:
        cpu.flags.set_all(compare_into_flags_checked(cpu, _u8(i), signalling, pops))


@native
def compare_into_flags_checked(cpu: Cpu, i: U8, signalling: bool, pops: int) -> U64:
    check_pending(cpu)
    if not has_operands(cpu, 0, i, pops, flags=True):
        return u64(0x45)
    raised = fp.compare(cpu, offset(cpu, 0), offset(cpu, i), signalling)
    stands = judge(cpu, raised & stack.FLAGS, BEFORE, 0)
    if stands:
        for _ in range(pops):
            stack.pop(cpu)
    return (raised >> 8).zext(64) & 0x45


def _compare(name: str, *encodings: str, signalling: bool, pops: int, flags: bool = False) -> None:
    @instruction(name, *encodings, feature="cmov" if flags else "fpu", fpu="x87")
    def run(cpu: Cpu, i: Operand) -> None:
        if flags:
            compare_into_flags(cpu, i.index, signalling, pops)
        else:
            compare_registers(cpu, i.index, signalling, pops)


def _compare_memory(name: str, encoding: str, kind: str, pops: int) -> None:
    @instruction(name, encoding, feature="fpu", fpu="x87")
    def run(cpu: Cpu, src: Operand) -> None:
        compare_with_memory(cpu, kind, src, pops)


# The second encodings are aliases that processors have and manuals leave out.
_compare("FCOM", "D8 D0+i STi", "DC D0+i STi", signalling=True, pops=0)
_compare("FCOMP", "D8 D8+i STi", "DC D8+i STi", "DE D0+i STi", signalling=True, pops=1)
_compare("FUCOM", "DD E0+i STi", signalling=False, pops=0)
_compare("FUCOMP", "DD E8+i STi", signalling=False, pops=1)
_compare("FCOMI", "DB F0+i STi", signalling=True, pops=0, flags=True)
_compare("FCOMIP", "DF F0+i STi", signalling=True, pops=1, flags=True)
_compare("FUCOMI", "DB E8+i STi", signalling=False, pops=0, flags=True)
_compare("FUCOMIP", "DF E8+i STi", signalling=False, pops=1, flags=True)
for _name, _digit, _pops in (("COM", 2, 0), ("COMP", 3, 1)):
    _compare_memory(f"F{_name}", f"D8 /{_digit} Md", "m32", _pops)
    _compare_memory(f"F{_name}", f"DC /{_digit} Mq", "m64", _pops)
    _compare_memory(f"FI{_name}", f"DA /{_digit} Md", "m32int", _pops)
    _compare_memory(f"FI{_name}", f"DE /{_digit} Mw", "m16int", _pops)


@instruction("FCOMPP", "DE D9", feature="fpu", fpu="x87")
def fcompp(cpu: Cpu) -> None:
    compare_registers(cpu, 1, True, 2)


@instruction("FUCOMPP", "DA E9", feature="fpu", fpu="x87")
def fucompp(cpu: Cpu) -> None:
    compare_registers(cpu, 1, False, 2)


@instruction("FTST", "D9 E4", feature="fpu", fpu="x87")
def ftst(cpu: Cpu) -> None:
    check_pending(cpu)
    if not has_operands(cpu, 0, 0, 0):
        return
    raised = fp.compare_memory(cpu, "m16int", offset(cpu, 0), u16(0))
    judge(cpu, raised, BEFORE, stack.CODES)


@instruction("FXAM", "D9 E5", feature="fpu", fpu="x87")
def fxam(cpu: Cpu) -> None:
    """C1: sign; C3 C2 C0: 000 unsupported, 001 NaN, 010 normal, 011 infinity, 100 zero, 101 empty, 110 denormal."""
    check_pending(cpu)
    value = stack.read(cpu, 0)
    low, high = value.lane(0), value.lane(1).trunc(16)
    exponent = high & 0x7FFF
    integer, fraction = low[63], low << 1 != 0
    special = select(~integer, u16(0), select(fraction, u16(C0), u16(C2 | C0)))
    tiny = select(low == 0, u16(C3), u16(C3 | C2))
    normal = select(integer, u16(C2), u16(0))
    codes = select(exponent == 0x7FFF, special, select(exponent == 0, tiny, normal))
    codes = select(stack.is_empty(cpu, 0), u16(C3 | C0), codes)
    stack.set_codes(cpu, stack.CODES, codes | (high >> 15) * C1)


# -- conditional moves -------------------------------------------------------------------------------------------------
def _move_if(name: str, encoding: str, condition: Condition) -> None:
    @instruction(name, encoding, feature="cmov", fpu="x87", condition=True)
    def run(cpu: Cpu, i: Operand) -> None:
        check_pending(cpu)
        if not has_operand(cpu, 0, 0):
            return
        if not has_operand(cpu, i.index, 0):
            return
        if cpu.flags.condition(condition):
            stack.write(cpu, 0, stack.read(cpu, i.index))


for _name, _row, _condition in (("B", 0xC0, Condition.B), ("E", 0xC8, Condition.E), ("BE", 0xD0, Condition.BE),
                                ("U", 0xD8, Condition.P)):  # fmt: skip
    _move_if(f"FCMOV{_name}", f"DA {_row:02X}+i STi", _condition)
    _move_if(f"FCMOVN{_name}", f"DB {_row:02X}+i STi", Condition(_condition + 1))
