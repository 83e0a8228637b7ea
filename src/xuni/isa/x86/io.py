"""Port input and output, SDM vol. 1, chapter 18: IN, OUT, INS, OUTS and who may use them."""

from __future__ import annotations

from xuni.isa.bits import U64, Bits, u1, u8, u64
from xuni.isa.stage import native, staged
from xuni.isa.x86.cpu import Cpu
from xuni.isa.x86.debug import note_port
from xuni.isa.x86.exceptions import GuestFault, Vector
from xuni.isa.x86.frames import TSS32
from xuni.isa.x86.instruction import Operand, instruction
from xuni.isa.x86.paging import Access, walk
from xuni.isa.x86.segment import is_virtual_8086, segment_address
from xuni.isa.x86.state import Cr0, Gpr, Seg
from xuni.isa.x86.string import advance, count_down, stride

IO_MAP_BASE = 0x66  # offset in the TSS


@native
def check_port(cpu: Cpu, port: U64, size: U64) -> None:
    """#GP(0) unless IOPL or the I/O permission bitmap of the TSS allows `size` ports from `port` (18.5)."""
    s = cpu.s
    if (s.cr0 & Cr0.PE) == 0:
        return
    iopl = s.eflags >> 12 & 3
    if (s.cpl <= iopl) & ~is_virtual_8086(cpu):
        return
    limit = s.seg_limit[Seg.TR].zext(64)
    if ((s.seg_attr[Seg.TR] & TSS32) == 0) | (limit < IO_MAP_BASE + 1):
        raise GuestFault(cpu, Vector.GP, 0)
    base = s.seg_base[Seg.TR]
    at = cpu.load_linear(base + IO_MAP_BASE, 16).zext(64) + (port >> 3)
    if at + 1 > limit:  # two bytes are always read
        raise GuestFault(cpu, Vector.GP, 0)
    bits = cpu.load_linear(base + at, 16).zext(64) >> (port & 7)
    if (bits & ((u64(1) << size) - 1)) != 0:
        raise GuestFault(cpu, Vector.GP, 0)


@staged
def _read(cpu: Cpu, port: Bits, width: int) -> Bits:
    check_port(cpu, port.zext(64), u64(width // 8))
    note_port(cpu, port.zext(64), u64(width // 8))
    return cpu.port_in(port, width)


@staged
def _write(cpu: Cpu, port: Bits, value: Bits) -> None:
    check_port(cpu, port.zext(64), u64(value.width // 8))
    note_port(cpu, port.zext(64), u64(value.width // 8))
    cpu.port_out(port, value)


@instruction("IN", "E4 AL Ib", "EC AL DX", ends=True, cold=True)
def in_byte(cpu: Cpu, dst: Operand, port: Operand) -> None:
    dst.write(_read(cpu, port.read().zext(16), 8))


@instruction("IN", "E5 Ib", "ED DX", ends=True, cold=True)
def in_word(cpu: Cpu, port: Operand) -> None:
    cpu.set_reg(Gpr.RAX, _read(cpu, port.read().zext(16), min(cpu.osize, 32)))


@instruction("OUT", "E6 Ib AL", "EE DX AL", ends=True, cold=True)
def out_byte(cpu: Cpu, port: Operand, src: Operand) -> None:
    _write(cpu, port.read().zext(16), src.read())


@instruction("OUT", "E7 Ib", "EF DX", ends=True, cold=True)
def out_word(cpu: Cpu, port: Operand) -> None:
    _write(cpu, port.read().zext(16), cpu.reg(Gpr.RAX, min(cpu.osize, 32)))


# -- INS and OUTS: one port access an execution, so that what a chip answered is never asked for twice -----------------
@native
def probe_store(cpu: Cpu, offset: U64, size: U64) -> None:
    """Fault now if a store to ES:offset would: after the port was read it would be too late."""
    linear = segment_address(cpu, u8(Seg.ES), offset, size, u1(1))
    access = u64(Access.WRITE)
    if cpu.s.cpl == 3:
        access = u64(Access.WRITE | Access.USER)
    walk(cpu, linear, access)
    if (linear & 0xFFF) + size > 0x1000:
        walk(cpu, linear + size - 1, access)


@staged
def _next_element(cpu: Cpu, index: Gpr, width: int) -> None:
    """Move on to the next element, and execute a repeated instruction again if there is one."""
    advance(cpu, index, stride(cpu, width), cpu.asize)
    if cpu.rep:
        if count_down(cpu, u64(1), cpu.asize) != 0:
            cpu.repeat()


@staged
def _input(cpu: Cpu, width: int) -> None:
    if cpu.rep:
        if cpu.reg(Gpr.RCX, cpu.asize) == 0:
            return
    offset = cpu.reg(Gpr.RDI, cpu.asize).zext(64)
    port = cpu.reg(Gpr.RDX, 16)
    check_port(cpu, port.zext(64), u64(width // 8))
    probe_store(cpu, offset, u64(width // 8))
    note_port(cpu, port.zext(64), u64(width // 8))
    cpu.store(Seg.ES, offset, cpu.port_in(port, width))
    _next_element(cpu, Gpr.RDI, width)


@staged
def _output(cpu: Cpu, segment: Bits, width: int) -> None:
    if cpu.rep:
        if cpu.reg(Gpr.RCX, cpu.asize) == 0:
            return
    check_port(cpu, cpu.s.gpr[Gpr.RDX] & 0xFFFF, u64(width // 8))
    _write(cpu, cpu.reg(Gpr.RDX, 16), cpu.load(segment, cpu.reg(Gpr.RSI, cpu.asize).zext(64), width))
    _next_element(cpu, Gpr.RSI, width)


@instruction("INS", "6C Yb", rep="rep", ends=True, cold=True)
def ins_byte(cpu: Cpu, dst: Operand) -> None:
    _input(cpu, 8)


@instruction("INS", "6D Yv", rep="rep", ends=True, cold=True)
def ins_word(cpu: Cpu, dst: Operand) -> None:
    _input(cpu, min(cpu.osize, 32))


@instruction("OUTS", "6E Xb", rep="rep", ends=True, cold=True)
def outs_byte(cpu: Cpu, src: Operand) -> None:
    _output(cpu, src.segment, 8)


@instruction("OUTS", "6F Xv", rep="rep", ends=True, cold=True)
def outs_word(cpu: Cpu, src: Operand) -> None:
    _output(cpu, src.segment, min(cpu.osize, 32))
