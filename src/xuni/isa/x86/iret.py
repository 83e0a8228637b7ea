"""IRET in all modes: real, virtual-8086, protected (to the same or an outer level, virtual-8086 mode, another task)
and IA-32e; SDM vol. 2, IRET, and vol. 3, 6.12 and 20.2."""

from __future__ import annotations

from typing import Final

from xuni.isa.bits import U64, Bits, select, u64
from xuni.isa.stage import native, staged
from xuni.isa.x86.cpu import Cpu
from xuni.isa.x86.exceptions import GuestFault, Vector
from xuni.isa.x86.frames import arrive, check_code_target, eflags_image, set_eflags, set_rsp
from xuni.isa.x86.instruction import instruction
from xuni.isa.x86.segment import (
    attributes,
    is_64bit,
    is_ia32e,
    is_virtual_8086,
    limit_of,
    peek,
    set_real,
    set_segment,
    stack_mask,
)
from xuni.isa.x86.state import ARITHMETIC, Cr0, Cr4, Eflags, Seg
from xuni.isa.x86.task import Switch, switch_task
from xuni.isa.x86.transfer import drop_inner_segments, load_cs, return_code, return_stack, set_returned_rsp

# Flags that an IRET may change whatever the privilege: all of FLAGS but IF and IOPL; with 32 bits also RF, AC and ID.
_ALWAYS: Final = ARITHMETIC | int(Eflags.TF | Eflags.DF | Eflags.NT)
_WIDE: Final = int(Eflags.RF | Eflags.AC | Eflags.ID)
_SUPERVISOR_WIDE: Final = int(Eflags.VIF | Eflags.VIP)


@native
def returned_flags(cpu: Cpu, image: U64, level: U64, size: int) -> U64:
    """EFLAGS after an IRET executed at privilege `level` that popped `image`."""
    old = eflags_image(cpu)
    may = u64(_ALWAYS if size == 2 else _ALWAYS | _WIDE)
    iopl = old >> 12 & 3
    may = may | select(level <= iopl, u64(Eflags.IF), u64(0))
    supervisor = int(Eflags.IOPL) if size == 2 else int(Eflags.IOPL) | _SUPERVISOR_WIDE
    may = may | select(level == 0, u64(supervisor), u64(0))
    return (old & ~may & ~u64(Eflags.VM)) | (image & may)


@native
def _finish(cpu: Cpu, rip: U64) -> None:
    """NMIs are taken again, and the next instruction is at `rip`."""
    cpu.s.nmi_blocked = 0
    arrive(cpu, rip)


@staged
def _after(cpu: Cpu, count: int) -> Bits:
    """RSP with `count` bytes popped."""
    mask = stack_mask(cpu)
    return (cpu.rsp & ~mask) | ((cpu.rsp + count) & mask)


@native
def _iret_real(cpu: Cpu, size: int) -> None:
    rip = peek(cpu, 0, 8 * size).zext(64)
    cs = peek(cpu, size, 8 * size).zext(64) & 0xFFFF
    image = peek(cpu, 2 * size, 8 * size).zext(64)
    if rip > cpu.s.seg_limit[Seg.CS].zext(64):
        raise GuestFault(cpu, Vector.GP, 0)
    set_rsp(cpu, _after(cpu, 3 * size))
    flags = returned_flags(cpu, image, u64(0), size)
    old = cpu.s.eflags
    set_real(cpu, Seg.CS, cs)
    kept = u64(int(Eflags.VIF | Eflags.VIP))  # real mode cannot change them
    set_eflags(cpu, (flags & ~kept) | (old & kept))
    _finish(cpu, rip)


@native
def _iret_8086(cpu: Cpu, size: int) -> None:
    """Virtual-8086 mode: with IOPL < 3 and CR4.VME a 16-bit IRET works on VIF instead of IF (20.3.3), else #GP(0)."""
    s = cpu.s
    iopl3 = (s.eflags & Eflags.IOPL) == int(Eflags.IOPL)
    virtual = u64(0)
    if ~iopl3:
        if size != 2:
            raise GuestFault(cpu, Vector.GP, 0)
        if (s.cr4 & Cr4.VME) == 0:
            raise GuestFault(cpu, Vector.GP, 0)
        virtual = u64(1)
    rip = peek(cpu, 0, 8 * size).zext(64)
    cs = peek(cpu, size, 8 * size).zext(64) & 0xFFFF
    image = peek(cpu, 2 * size, 8 * size).zext(64)
    if rip > s.seg_limit[Seg.CS].zext(64):
        raise GuestFault(cpu, Vector.GP, 0)
    may = u64(_ALWAYS if size == 2 else _ALWAYS | _WIDE)
    if virtual != 0:
        wants = (image & Eflags.IF) != 0
        if ((image & Eflags.TF) != 0) | (wants & ((s.eflags & Eflags.VIP) != 0)):
            raise GuestFault(cpu, Vector.GP, 0)
        image = (image & ~u64(Eflags.VIF)) | select(wants, u64(Eflags.VIF), u64(0))
        may = may | Eflags.VIF
    else:
        may = may | Eflags.IF
    flags = (eflags_image(cpu) & ~may) | (image & may)
    set_rsp(cpu, _after(cpu, 3 * size))
    set_real(cpu, Seg.CS, cs)
    set_eflags(cpu, flags)
    _finish(cpu, rip)


@native
def _to_8086(cpu: Cpu, rip: U64, cs: U64, image: U64) -> None:
    """IRETD at CPL 0 with VM set in the image: nine values are popped (20.2.2)."""
    s = cpu.s
    rsp = peek(cpu, 12, 32).zext(64)
    ss, es, ds, fs, gs = [peek(cpu, 16 + 4 * n, 32).zext(64) & 0xFFFF for n in range(5)]
    if rip > 0xFFFF:
        raise GuestFault(cpu, Vector.GP, 0)
    set_eflags(cpu, image)
    s.cpl = 3
    for segment, selector in ((Seg.CS, cs), (Seg.SS, ss), (Seg.ES, es), (Seg.DS, ds), (Seg.FS, fs), (Seg.GS, gs)):
        set_real(cpu, segment, selector)
    set_rsp(cpu, rsp)
    _finish(cpu, rip)


@native
def _iret_protected(cpu: Cpu, next_rip: U64, size: int) -> None:
    s = cpu.s
    ia32e = is_ia32e(cpu)
    if (s.eflags & Eflags.NT) != 0:
        if ia32e:
            raise GuestFault(cpu, Vector.GP, 0)
        link = cpu.load_linear(s.seg_base[Seg.TR], 16).zext(64)
        switch_task(cpu, link, u64(Switch.IRET), next_rip, eflags_image(cpu), u64(0))
        s.nmi_blocked = 0
        return
    rip = peek(cpu, 0, 8 * size).zext(64)
    cs = peek(cpu, size, 8 * size).zext(64) & 0xFFFF
    image = peek(cpu, 2 * size, 8 * size).zext(64)
    old_level = s.cpl
    if size == 4:
        if ((image & Eflags.VM) != 0) & (old_level == 0) & ~ia32e:
            _to_8086(cpu, rip, cs, image)
            return
    address, descriptor = return_code(cpu, cs)
    attr = attributes(descriptor)
    level = cs & 3
    flags = returned_flags(cpu, image, old_level, size)
    if (level == old_level) & ~is_64bit(cpu):
        check_code_target(cpu, attr, limit_of(descriptor), rip, u64(0))
        set_rsp(cpu, _after(cpu, 3 * size))
        load_cs(cpu, cs, address, descriptor, level)
    else:
        rsp = peek(cpu, 3 * size, 8 * size).zext(64)
        ss = peek(cpu, 4 * size, 8 * size).zext(64) & 0xFFFF
        base, limit, ss_attr = return_stack(cpu, ss, attr, level)
        check_code_target(cpu, attr, limit_of(descriptor), rip, u64(0))
        load_cs(cpu, cs, address, descriptor, level)
        set_segment(cpu, Seg.SS, ss, base, limit, ss_attr)
        set_returned_rsp(cpu, rsp, ss_attr)
        if level != old_level:
            drop_inner_segments(cpu)
    set_eflags(cpu, flags)
    _finish(cpu, rip)


@native
def interrupt_return(cpu: Cpu, next_rip: U64, size: int) -> None:
    """IRET with values of `size` bytes; `next_rip` is what a task switch saves."""
    if (cpu.s.cr0 & Cr0.PE) == 0:
        _iret_real(cpu, size)
    elif is_virtual_8086(cpu):
        _iret_8086(cpu, size)
    else:
        _iret_protected(cpu, next_rip, size)


@instruction("IRET", "CF", ends=True)
def iret(cpu: Cpu) -> None:
    interrupt_return(cpu, cpu.next_rip, cpu.osize // 8)
