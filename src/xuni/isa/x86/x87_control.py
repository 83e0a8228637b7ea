"""x87: the control, status and tag words, the environment, and the whole state in FNSAVE's format; EMMS."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xuni.isa.bits import Bits, u16, vector
from xuni.isa.stage import staged
from xuni.isa.x86 import x87_fp as fp
from xuni.isa.x86 import x87_stack as stack
from xuni.isa.x86.instruction import Operand, instruction
from xuni.isa.x86.mmx_state import check_pending
from xuni.isa.x86.x87_move import probe

if TYPE_CHECKING:
    from xuni.isa.x86.cpu import Cpu

CONTROL_FIXED = 0x40  # bit 6 reads as 1


def set_control(cpu: Cpu, value: Bits) -> None:
    """Load the control word; what it unmasks may become pending."""
    fp.load_control(cpu, value & stack.CONTROL_BITS | CONTROL_FIXED)
    stack.summarize(cpu)


def reset(cpu: Cpu) -> None:
    """As FNINIT does; the registers keep their contents."""
    s = cpu.s
    s.fpu_status = 0
    s.fpu_tag = 0xFFFF
    s.fpu_opcode = 0
    s.fpu_ip = 0
    s.fpu_dp = 0
    s.fpu_cs = 0
    s.fpu_ds = 0
    fp.clear_host(cpu)
    fp.load_control(cpu, u16(stack.CONTROL_RESET))


@instruction("FNINIT", "DB E3", feature="fpu", fpu="x87")
def fninit(cpu: Cpu) -> None:
    reset(cpu)


@instruction("FNCLEX", "DB E2", feature="fpu", fpu="x87")
def fnclex(cpu: Cpu) -> None:
    cpu.s.fpu_status = cpu.s.fpu_status & ~(stack.FLAGS | stack.SF | stack.ES | stack.BUSY)
    fp.clear_host(cpu)


@instruction("FNOP", "D9 D0", feature="fpu", fpu="x87")
def fnop(cpu: Cpu) -> None:
    check_pending(cpu)


# FNENI, FNDISI (8087) and FNSETPM (80287): later processors do nothing.
@instruction("FNENI", "DB E0", "DB E1", "DB E4", feature="fpu", fpu="x87")
def fneni(cpu: Cpu) -> None:
    pass


@instruction("FWAIT", "9B", feature="fpu", fpu="wait")
def fwait(cpu: Cpu) -> None:
    check_pending(cpu)


@instruction("EMMS", "NP 0F 77", feature="mmx", fpu="mmx")
def emms(cpu: Cpu) -> None:
    check_pending(cpu)
    cpu.s.fpu_tag = 0xFFFF
    cpu.s.fpu_status = cpu.s.fpu_status & ~stack.TOP


# -- words -------------------------------------------------------------------------------------------------------------
@instruction("FLDCW", "D9 /5 Mw", feature="fpu", fpu="x87")
def fldcw(cpu: Cpu, src: Operand) -> None:
    check_pending(cpu)
    set_control(cpu, src.read())


@instruction("FNSTCW", "D9 /7 Mw", feature="fpu", fpu="x87")
def fnstcw(cpu: Cpu, dst: Operand) -> None:
    dst.write(cpu.s.fpu_control)


@instruction("FNSTSW", "DD /7 Mw", "DF E0 AX", feature="fpu", fpu="x87")
def fnstsw(cpu: Cpu, dst: Operand) -> None:
    dst.write(cpu.s.fpu_status)


# -- the environment: 14 bytes with 16-bit operands, else 28 (SDM vol. 1, 8.1.10) --------------------------------------
def environment(cpu: Cpu) -> list[Bits]:
    """Its seven words: control, status, tags, instruction pointer and selector, data pointer and selector."""
    s = cpu.s
    if cpu.osize == 16:
        return [s.fpu_control, s.fpu_status, stack.full_tags(cpu), s.fpu_ip.trunc(16), s.fpu_cs, s.fpu_dp.trunc(16),
                s.fpu_ds]  # fmt: skip
    ones = 0xFFFF << 16  # the upper halves of words that have no use for them
    selector = s.fpu_cs.zext(32) | (s.fpu_opcode & 0x7FF).zext(32) << 16
    words = [s.fpu_control.zext(32) | ones, s.fpu_status.zext(32) | ones, stack.full_tags(cpu).zext(32) | ones]
    return [*words, s.fpu_ip.trunc(32), selector, s.fpu_dp.trunc(32), s.fpu_ds.zext(32) | ones]


def load_environment(cpu: Cpu, words: list[Bits]) -> None:
    s = cpu.s
    control, status, tags, ip, cs, dp, ds = words
    s.fpu_status = status.trunc(16)
    stack.load_tags(cpu, tags.trunc(16))
    s.fpu_ip = ip.zext(64)
    s.fpu_dp = dp.zext(64)
    s.fpu_cs = cs.trunc(16)
    s.fpu_ds = ds.trunc(16)
    if cpu.osize != 16:
        s.fpu_opcode = (cs >> 16).trunc(16) & 0x7FF
    fp.clear_host(cpu)
    set_control(cpu, control.trunc(16))


def field_width(cpu: Cpu) -> int:
    return 16 if cpu.osize == 16 else 32


def load_words(cpu: Cpu, memory: Operand) -> list[Bits]:
    width = field_width(cpu)
    return [cpu.load(memory.segment, memory.offset + n * width // 8, width) for n in range(7)]


@instruction("FNSTENV", "D9 /6 M", feature="fpu", fpu="x87", cold=True)
def fnstenv(cpu: Cpu, dst: Operand) -> None:
    """Also masks all exceptions."""
    width = field_width(cpu)
    probe(cpu, dst, 7 * width // 8)
    for n, word in enumerate(environment(cpu)):
        cpu.store(dst.segment, dst.offset + n * width // 8, word)
    set_control(cpu, cpu.s.fpu_control | stack.MASKS)


@instruction("FLDENV", "D9 /4 M", feature="fpu", fpu="x87", cold=True)
def fldenv(cpu: Cpu, src: Operand) -> None:
    check_pending(cpu)
    load_environment(cpu, load_words(cpu, src))


@instruction("FNSAVE", "DD /6 M", feature="fpu", fpu="x87", cold=True)
def fnsave(cpu: Cpu, dst: Operand) -> None:
    """The environment and ST(0) to ST(7), 10 bytes each; then as FNINIT."""
    width = field_width(cpu)
    size = 7 * width // 8
    probe(cpu, dst, size + 80)
    for n, word in enumerate(environment(cpu)):
        cpu.store(dst.segment, dst.offset + n * width // 8, word)
    for i in range(8):
        value = stack.read(cpu, i)
        cpu.store(dst.segment, dst.offset + (size + 10 * i), value.lane(0))
        cpu.store(dst.segment, dst.offset + (size + 10 * i + 8), value.lane(1).trunc(16))
    reset(cpu)


@instruction("FRSTOR", "DD /4 M", feature="fpu", fpu="x87", cold=True)
def frstor(cpu: Cpu, src: Operand) -> None:
    check_pending(cpu)
    size = 7 * field_width(cpu) // 8
    words = load_words(cpu, src)
    values = []
    for i in range(8):
        low = cpu.load(src.segment, src.offset + (size + 10 * i), 64)
        high = cpu.load(src.segment, src.offset + (size + 10 * i + 8), 16)
        values.append(vector([low, high.zext(64)]))
    load_environment(cpu, words)
    put_registers(cpu, values)


@staged
def put_registers(cpu: Cpu, values: list[Bits]) -> None:
    """ST(0) to ST(7); tags stay."""
    for i, value in enumerate(values):
        cpu.s.place.store(stack.offset(cpu, i), value)
