"""Flag instructions, no-operations, fences and cache control, UD, BOUND, CRC32, random numbers, SDM vol. 2."""

from __future__ import annotations

from xuni.isa.bits import U32, U64, mask, select, u8, u64
from xuni.isa.stage import native
from xuni.isa.x86.cpu import Cpu
from xuni.isa.x86.exceptions import GuestFault, Vector
from xuni.isa.x86.flags import OF
from xuni.isa.x86.instruction import Operand, instruction
from xuni.isa.x86.state import Eflags, Gpr, State

# -- flags -------------------------------------------------------------------------------------------------------------


@instruction("CLC", "F8")
def clc(cpu: Cpu) -> None:
    cpu.flags.change(cf=0)


@instruction("STC", "F9")
def stc(cpu: Cpu) -> None:
    cpu.flags.change(cf=1)


@instruction("CMC", "F5")
def cmc(cpu: Cpu) -> None:
    cpu.flags.set_all(cpu.flags.value ^ 1)


@instruction("CLD", "FC")
def cld(cpu: Cpu) -> None:
    cpu.s.eflags = cpu.s.eflags & ~int(Eflags.DF)


@instruction("STD", "FD")
def std(cpu: Cpu) -> None:
    cpu.s.eflags = cpu.s.eflags | Eflags.DF


@instruction("LAHF", "9F")
def lahf(cpu: Cpu) -> None:
    image = (cpu.flags.value & 0xD5) | 2
    cpu.set_reg(Gpr.RAX, (cpu.reg(Gpr.RAX, 16) & 0xFF) | image.trunc(16) << 8)


@instruction("SAHF", "9E")
def sahf(cpu: Cpu) -> None:
    cpu.flags.set_all((cpu.flags.value & (1 << OF)) | cpu.reg(Gpr.RAX, 16).zext(64) >> 8 & 0xD5)


@instruction("SALC", "D6 i64", cold=True)
def salc(cpu: Cpu) -> None:
    cpu.set_reg(Gpr.RAX, select(cpu.flags.cf, u8(0xFF), 0))


# -- nothing -----------------------------------------------------------------------------------------------------------


# 90 is XCHG rAX, rAX in the tables, as with REX.B it is XCHG r8, rAX: without, decoders make it (and PAUSE) do nothing.


@instruction("NOP", "0F 0D /r Ev", *(f"0F {op:02X} /r Ev" for op in range(0x18, 0x20)))
def nop_modrm(cpu: Cpu, ignored: Operand) -> None:
    """Prefetches, hints, ENDBR and the reserved no-operations: the operand is not accessed and cannot fault."""


@instruction("LFENCE", "NP 0F AE E8+i", feature="sse2")
def lfence(cpu: Cpu) -> None:
    pass  # loads are not reordered


@instruction("SFENCE", "NP 0F AE F8+i", feature="sse")
def sfence(cpu: Cpu) -> None:
    pass  # stores are not reordered


@instruction("MFENCE", "NP 0F AE F0+i", feature="sse2")
def mfence(cpu: Cpu) -> None:
    cpu.s.place.exchange(State.offset_of("reserved"), u64(0), u64(0))  # a locked access is a full fence on the host


@instruction("CLFLUSH", "NP 0F AE /7 Mb", feature="clflush")
def clflush(cpu: Cpu, line: Operand) -> None:
    line.read()  # checked like a load of one byte


@instruction("CLFLUSHOPT", "66 0F AE /7 Mb", feature="clflushopt")
def clflushopt(cpu: Cpu, line: Operand) -> None:
    line.read()


@instruction("CLWB", "66 0F AE /6 Mb", feature="clwb")
def clwb(cpu: Cpu, line: Operand) -> None:
    line.read()


# -- faults ------------------------------------------------------------------------------------------------------------


@instruction("UD2", "0F 0B", ends=True, cold=True)
def ud2(cpu: Cpu) -> None:
    raise GuestFault(cpu, Vector.UD)


@instruction("UD1", "0F B9 /r Gv Ev", ends=True, cold=True)
def ud1(cpu: Cpu, left: Operand, right: Operand) -> None:
    raise GuestFault(cpu, Vector.UD)


@instruction("UD0", "0F FF /r Gv Ev", ends=True, cold=True)
def ud0(cpu: Cpu, left: Operand, right: Operand) -> None:
    raise GuestFault(cpu, Vector.UD)


@instruction("UNDEFINED", "F3 0F 38 F0 M", "F3 0F 38 F1 M", "F2 0F C7 /6 Rv", "F3 0F C7 /6 Rv", "F2 0F C7 /7 Rv", ends=True,
             cold=True)  # fmt: skip
def undefined(cpu: Cpu, operand: Operand) -> None:
    """Prefixes that MOVBE, RDRAND and RDSEED, which else take any, do not bear."""
    raise GuestFault(cpu, Vector.UD)


@instruction("BOUND", "62 /r Gv M i64", cold=True)
def bound(cpu: Cpu, index: Operand, bounds: Operand) -> None:
    i, width = index.read(), index.width
    lower = cpu.load(bounds.segment, bounds.offset, width)
    upper = cpu.load(bounds.segment, (bounds.offset + width // 8) & mask(cpu.asize), width)
    if i.slt(lower) | i.sgt(upper):
        raise GuestFault(cpu, Vector.BR)


# -- CRC32, random numbers ---------------------------------------------------------------------------------------------


@instruction("CRC32", "F2 0F 38 F0 /r Gy Eb", "F2 0F 38 F1 /r Gy Ev", feature="sse4_2")
def crc32(cpu: Cpu, dst: Operand, src: Operand) -> None:
    r = crc32c(cpu, dst.read().trunc(32), src.read().zext(64), src.width)
    dst.write(r.zext(dst.width))


@native
def crc32c(cpu: Cpu, crc: U32, data: U64, bits: int) -> U32:
    """The CRC of the polynomial 11EDC6F41H, bit-reflected, over the low `bits` of `data`."""
    remainder, left = crc.zext(64) ^ data, u64(bits)
    while left != 0:
        remainder = remainder >> 1 ^ (-(remainder & 1) & 0x82F6_3B78)
        left = left - 1
    return remainder.trunc(32)


@instruction("RDRAND", "0F C7 /6 Rv", feature="rdrand")
def rdrand(cpu: Cpu, dst: Operand) -> None:
    dst.write(cpu.random().trunc(dst.width))
    cpu.flags.set_all(u64(1))


@instruction("RDSEED", "0F C7 /7 Rv", feature="rdseed")
def rdseed(cpu: Cpu, dst: Operand) -> None:
    dst.write(cpu.random().trunc(dst.width))
    cpu.flags.set_all(u64(1))
