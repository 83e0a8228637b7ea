"""x87: loads, stores, constants, and what moves the stack."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xuni.isa.bits import U8, U64, Bits, const, lanes_of, select, u16, u64, vector
from xuni.isa.softfloat import Flag
from xuni.isa.stage import likely, native, staged, unlikely
from xuni.isa.x86 import x87_fp as fp
from xuni.isa.x86 import x87_stack as stack
from xuni.isa.x86.instruction import Operand, instruction
from xuni.isa.x86.mmx_state import check_pending
from xuni.isa.x86.x87_stack import C1, INDEFINITE, has_operand, has_room, offset
from xuni.isa.x86.x87_verdict import BEFORE, compute, judge

if TYPE_CHECKING:
    from xuni.isa.x86.cpu import Cpu

AFTER_STORE = BEFORE | int(Flag.OE | Flag.UE)  # unmasked, these prevent a store to memory


# -- loads -------------------------------------------------------------------------------------------------------------
def _load(name: str, encoding: str, kind: str) -> None:
    @instruction(name, encoding, feature="fpu", fpu="x87")
    def run(cpu: Cpu, src: Operand) -> None:
        check_pending(cpu)
        value = src.read()
        if likely(stack.ready(cpu, free=True)):
            stack.finish_push(cpu, fp.load(cpu, kind, offset(cpu, 7), value))
        else:
            load_checked(cpu, value.zext(64), kind)


@native
def load_checked(cpu: Cpu, wide: U64, kind: str) -> None:
    value = wide.trunc(fp.KINDS[kind][1])
    if not has_room(cpu):
        return
    # A denormal is loaded even if that exception is unmasked.
    if compute(cpu, offset(cpu, 7), lambda where: fp.load(cpu, kind, where, value), blocks=int(Flag.IE)):
        stack.rotate(cpu, -1)
        stack.set_valid(cpu, 0)


_load("FLD", "D9 /0 Md", "m32")
_load("FLD", "DD /0 Mq", "m64")
_load("FILD", "DF /0 Mw", "m16int")
_load("FILD", "DB /0 Md", "m32int")
_load("FILD", "DF /5 Mq", "m64int")


@instruction("FLD", "DB /5 Mt", feature="fpu", fpu="x87")
def fld_extended(cpu: Cpu, src: Operand) -> None:
    check_pending(cpu)
    value = src.read()
    if has_room(cpu):
        cpu.s.place.store(offset(cpu, 7), value)
        stack.finish_push(cpu, 0)


@instruction("FLD", "D9 C0+i STi", feature="fpu", fpu="x87")
def fld_register(cpu: Cpu, i: Operand) -> None:
    check_pending(cpu)
    if likely(stack.ready(cpu, i.index, free=True)):
        cpu.s.place.store(offset(cpu, 7), stack.read(cpu, i.index))
        stack.finish_push(cpu, 0)
    else:
        fld_checked(cpu, i.index)


@native
def fld_checked(cpu: Cpu, i: U8) -> None:
    if stack.is_empty(cpu, i):
        if stack.stack_fault(cpu, overflow=0):
            stack.push(cpu, INDEFINITE)
    elif has_room(cpu):
        stack.push(cpu, stack.read(cpu, i))
        stack.set_codes(cpu, C1, 0)


# Significand, exponent; what is added to the significand when rounding up, and down or to zero (SDM vol. 2, FLD1).
_CONSTANTS = (
    ("FLD1", "E8", 1 << 63, 0x3FFF, 0, 0),
    ("FLDL2T", "E9", 0xD49A784BCD1B8AFE, 0x4000, 1, 0),
    ("FLDL2E", "EA", 0xB8AA3B295C17F0BC, 0x3FFF, 0, -1),
    ("FLDPI", "EB", 0xC90FDAA22168C235, 0x4000, 0, -1),
    ("FLDLG2", "EC", 0x9A209A84FBCFF799, 0x3FFD, 0, -1),
    ("FLDLN2", "ED", 0xB17217F7D1CF79AC, 0x3FFE, 0, -1),
    ("FLDZ", "EE", 0, 0, 0, 0),
)


def _constant(name: str, opcode: str, significand: int, exponent: int, up: int, down: int) -> None:
    @instruction(name, f"D9 {opcode}", feature="fpu", fpu="x87")
    def run(cpu: Cpu) -> None:
        check_pending(cpu)
        if has_room(cpu):
            rounding = cpu.s.fpu_control >> 10 & 3
            change = select(rounding == 2, u64(up), select(rounding == 0, u64(0), u64(down)))
            cpu.s.place.store(offset(cpu, 7), vector([u64(significand) + change, u64(exponent)]))
            stack.finish_push(cpu, 0)


for _row in _CONSTANTS:
    _constant(*_row)


def probe(cpu: Cpu, memory: Operand, size: int) -> None:
    """Fault before the first byte is written if a byte of `size` cannot be."""
    cpu.probe_write(memory.segment, memory.offset, size)


# -- stores ------------------------------------------------------------------------------------------------------------
@staged
def store(cpu: Cpu, dst: Operand, kind: str, pops: int, truncate: bool, indefinite: int) -> None:
    """ST(0) to memory, converted."""
    if likely(stack.ready(cpu, 0)):
        value, raised = fp.store(cpu, kind, offset(cpu, 0), truncate)
        forget_new(cpu, raised)
        dst.write(value)
        stack.finish(cpu, raised, C1, pops)
    else:
        store_checked(cpu, dst, kind, pops, truncate, indefinite)


@staged
def store_checked(cpu: Cpu, dst: Operand, kind: str, pops: int, truncate: bool, indefinite: int) -> None:
    check_pending(cpu)
    if unlikely(stack.is_empty(cpu, 0)):
        empty_store(cpu, dst, const(indefinite, dst.width), pops)
        return
    if unlikely(~stack.is_masked(cpu)):
        fp.clear_host(cpu)
    value, raised = fp.store(cpu, kind, offset(cpu, 0), truncate)
    if unlikely(~stack.is_masked(cpu)):
        fp.clear_host(cpu)
        if not kind.endswith("int"):
            raised = raised | tiny_flag(cpu, value)
        if not judge_store(cpu, dst, raised):
            return
        dst.write(value)
        judge(cpu, raised, AFTER_STORE)
    else:
        forget_new(cpu, raised)
        dst.write(value)
        judge(cpu, raised, AFTER_STORE)
    for _ in range(pops):
        stack.pop(cpu)


@staged
def forget_new(cpu: Cpu, raised: Bits) -> None:
    """The write may fault: flags that are not in the status word yet must not stay in the host's."""
    if unlikely((raised & ~cpu.s.fpu_status & stack.FLAGS) != 0):
        fp.clear_host(cpu)


@staged
def judge_store(cpu: Cpu, dst: Operand, raised: Bits) -> Bits:
    """Whether memory may be written; if not, the flags are set. A page fault goes first either way."""
    if (raised & ~cpu.s.fpu_control & AFTER_STORE) != 0:
        probe(cpu, dst, 10 if dst.lanes == 2 else dst.width // 8)
        judge(cpu, raised & AFTER_STORE, AFTER_STORE)
        return const(0, 1)
    return const(1, 1)


def tiny_flag(cpu: Cpu, value: Bits) -> Bits:
    """UE for a denormal result, exact or not, if it is unmasked."""
    magnitude = value & ((1 << (value.width - 1)) - 1)
    tiny = (magnitude != 0) & (magnitude < 1 << (23 if value.width == 32 else 52))
    return select(tiny, u16(int(Flag.UE)), u16(0)) & ~cpu.s.fpu_control


@staged
def empty_store(cpu: Cpu, dst: Operand, indefinite: Bits, pops: int) -> None:
    """The response to a store from an empty register."""
    if stack.is_masked(cpu, int(Flag.IE)):
        dst.write(indefinite)
        stack.stack_fault(cpu, overflow=0)
        for _ in range(pops):
            stack.pop(cpu)
    else:
        probe(cpu, dst, 10 if dst.lanes == 2 else dst.width // 8)
        stack.stack_fault(cpu, overflow=0)


def _store(name: str, encoding: str, kind: str, pops: int, truncate: bool = False) -> None:
    width = fp.KINDS[kind][1]
    indefinite = {"m32": 0xFFC0 << 16, "m64": 0xFFF8 << 48}.get(kind, 1 << (width - 1))

    @instruction(name, encoding, feature="pni" if truncate else "fpu", fpu="x87")
    def run(cpu: Cpu, dst: Operand) -> None:
        store(cpu, dst, kind, pops, truncate, indefinite)


_store("FST", "D9 /2 Md", "m32", 0)
_store("FSTP", "D9 /3 Md", "m32", 1)
_store("FST", "DD /2 Mq", "m64", 0)
_store("FSTP", "DD /3 Mq", "m64", 1)
_store("FIST", "DF /2 Mw", "m16int", 0)
_store("FISTP", "DF /3 Mw", "m16int", 1)
_store("FIST", "DB /2 Md", "m32int", 0)
_store("FISTP", "DB /3 Md", "m32int", 1)
_store("FISTP", "DF /7 Mq", "m64int", 1)
_store("FISTTP", "DF /1 Mw", "m16int", 1, truncate=True)
_store("FISTTP", "DB /1 Md", "m32int", 1, truncate=True)
_store("FISTTP", "DD /1 Mq", "m64int", 1, truncate=True)


@instruction("FSTP", "DB /7 Mt", feature="fpu", fpu="x87")
def fstp_extended(cpu: Cpu, dst: Operand) -> None:
    check_pending(cpu)
    if unlikely(stack.is_empty(cpu, 0)):
        empty_store(cpu, dst, INDEFINITE, 1)
        return
    dst.write(stack.read(cpu, 0))
    stack.finish(cpu, 0, C1, 1)


def _store_register(name: str, *encodings: str, pops: int) -> None:
    @instruction(name, *encodings, feature="fpu", fpu="x87")
    def run(cpu: Cpu, i: Operand) -> None:
        check_pending(cpu)
        if has_operand(cpu, 0, i.index, pops):
            stack.write(cpu, i.index, stack.read(cpu, 0))
            stack.finish(cpu, 0, C1, pops)


_store_register("FST", "DD D0+i STi", pops=0)
# All but the first are aliases that manuals leave out.
_store_register("FSTP", "DD D8+i STi", "D9 D8+i STi", "DF D0+i STi", "DF D8+i STi", pops=1)


# -- exchange ----------------------------------------------------------------------------------------------------------
@instruction("FXCH", "D9 C8+i STi", "DD C8+i STi", "DF C8+i STi", feature="fpu", fpu="x87")
def fxch(cpu: Cpu, i: Operand) -> None:
    check_pending(cpu)
    if unlikely(stack.is_empty(cpu, 0) | stack.is_empty(cpu, i.index)):
        fill_empty(cpu, i.index)
    else:
        first, second = offset(cpu, 0), offset(cpu, i.index)
        a, b = cpu.s.place.load(first, 64, 2), cpu.s.place.load(second, 64, 2)
        cpu.s.place.store(first, b)
        cpu.s.place.store(second, a)
        stack.finish(cpu, 0)


@native
def fill_empty(cpu: Cpu, i: U8) -> None:
    """FXCH with an empty register: the default NaN takes its place."""
    if stack.stack_fault(cpu, overflow=0):
        if stack.is_empty(cpu, 0):
            stack.write(cpu, 0, INDEFINITE)
        if stack.is_empty(cpu, i):
            stack.write(cpu, i, INDEFINITE)
        a, b = stack.read(cpu, 0), stack.read(cpu, i)
        stack.write(cpu, 0, b)
        stack.write(cpu, i, a)
        stack.set_codes(cpu, C1, 0)


# -- the stack pointer and tags ----------------------------------------------------------------------------------------
@instruction("FFREE", "DD C0+i STi", feature="fpu", fpu="x87")
def ffree(cpu: Cpu, i: Operand) -> None:
    check_pending(cpu)
    stack.set_empty(cpu, i.index)
    stack.set_codes(cpu, C1, 0)


@instruction("FFREEP", "DF C0+i STi", feature="fpu", fpu="x87")
def ffreep(cpu: Cpu, i: Operand) -> None:
    check_pending(cpu)
    stack.set_empty(cpu, i.index)
    stack.set_codes(cpu, C1, 0)
    stack.pop(cpu)


def _rotate(name: str, encoding: str, by: int) -> None:
    @instruction(name, encoding, feature="fpu", fpu="x87")
    def run(cpu: Cpu) -> None:
        check_pending(cpu)
        stack.rotate(cpu, by)
        stack.set_codes(cpu, C1, 0)


_rotate("FDECSTP", "D9 F6", -1)
_rotate("FINCSTP", "D9 F7", 1)


# -- packed decimal: 18 digits in 9 bytes, the sign in the tenth -------------------------------------------------------
@instruction("FBLD", "DF /4 Mt", feature="fpu", fpu="x87", cold=True)
def fbld(cpu: Cpu, src: Operand) -> None:
    check_pending(cpu)
    packed = src.read()
    if not has_room(cpu):
        return
    value = u64(0)
    for n in reversed(range(18)):
        digit = packed.lane(n // 16) >> 4 * (n % 16) & 15
        value = value * 10 + digit
    if compute(cpu, offset(cpu, 7), lambda where: fp.load(cpu, "m64int", where, value)):
        stack.rotate(cpu, -1)
        stack.set_valid(cpu, 0)
        sign = packed.lane(1) & 0x8000
        loaded = stack.read(cpu, 0)
        stack.write(cpu, 0, vector([loaded.lane(0), loaded.lane(1) | sign]))


@instruction("FBSTP", "DF /6 Mt", feature="fpu", fpu="x87", cold=True)
def fbstp(cpu: Cpu, dst: Operand) -> None:
    check_pending(cpu)
    indefinite = lanes_of(64, 3 << 62, 0xFFFF)
    if stack.is_empty(cpu, 0):
        empty_store(cpu, dst, indefinite, 1)
        return
    if ~stack.is_masked(cpu):
        fp.clear_host(cpu)
    value, raised = fp.store(cpu, "m64int", offset(cpu, 0))
    sign = stack.read(cpu, 0).lane(1) & 0x8000
    magnitude = select(value[63], -value, value)
    invalid = magnitude >= 10**18
    packed = vector([u64(0), sign])
    low, high = u64(0), u64(0)
    for n in range(18):
        digit = magnitude.urem(u64(10))
        magnitude = magnitude.udiv(u64(10))
        if n < 16:
            low = low | digit << 4 * n
        else:
            high = high | digit << 4 * (n - 16)
    packed = select(invalid, indefinite, vector([low, high | sign]))
    raised = select(invalid, u16(int(Flag.IE)), raised)
    if judge_store(cpu, dst, raised):
        fp.clear_host(cpu)
        dst.write(packed)
        judge(cpu, raised, AFTER_STORE)
        stack.pop(cpu)
