"""System instructions of no other file: interrupts on and off, HLT, TLB and cache control, protection keys."""

from __future__ import annotations

from typing import Final

from xuni.isa.bits import U64, concat, select, u64
from xuni.isa.stage import native, staged
from xuni.isa.x86.cpu import Cpu
from xuni.isa.x86.exceptions import GuestFault, Vector
from xuni.isa.x86.instruction import Operand, instruction
from xuni.isa.x86.msr import put_edx_eax
from xuni.isa.x86.paging import set_pkru
from xuni.isa.x86.segment import is_canonical, is_canonical_base, is_virtual_8086, require_cpl0
from xuni.isa.x86.state import Cr0, Cr4, Eflags, Gpr, Seg

SHADOW: Final = 1  # no interrupt before the next instruction has ended


# -- CLI, STI, HLT -----------------------------------------------------------------------------------------------------
@native
def interrupt_flag(cpu: Cpu) -> U64:
    """Which flag CLI and STI mean: IF, or VIF by CR4.VME or PVI (20.3 and 20.4); #GP(0) if neither."""
    s = cpu.s
    if (s.cr0 & Cr0.PE) == 0:
        return u64(Eflags.IF)
    iopl = s.eflags >> 12 & 3
    if iopl >= s.cpl:  # in virtual-8086 mode CPL is 3
        return u64(Eflags.IF)
    virtual = select(is_virtual_8086(cpu), u64(Cr4.VME), u64(Cr4.PVI))
    if (s.cpl != 3) | ((s.cr4 & virtual) == 0):
        raise GuestFault(cpu, Vector.GP, 0)
    return u64(Eflags.VIF)


@instruction("CLI", "FA")
def cli(cpu: Cpu) -> None:
    cpu.s.eflags = cpu.s.eflags & ~interrupt_flag(cpu)


@instruction("STI", "FB", ends=True)
def sti(cpu: Cpu) -> None:
    s = cpu.s
    flag = interrupt_flag(cpu)
    if (flag == Eflags.VIF) & ((s.eflags & Eflags.VIP) != 0):
        raise GuestFault(cpu, Vector.GP, 0)
    if (s.eflags & flag & Eflags.IF) == 0:
        s.interrupt_shadow = select(flag == Eflags.IF, u64(SHADOW), s.interrupt_shadow)
    s.eflags = s.eflags | flag


@instruction("HLT", "F4", ends=True, cold=True)
def hlt(cpu: Cpu) -> None:
    require_cpl0(cpu)
    cpu.halt()


# -- SMAP --------------------------------------------------------------------------------------------------------------
@instruction("CLAC", "NP 0F 01 CA", feature="smap")
def clac(cpu: Cpu) -> None:
    _set_ac(cpu, 0)


@instruction("STAC", "NP 0F 01 CB", feature="smap")
def stac(cpu: Cpu) -> None:
    _set_ac(cpu, int(Eflags.AC))


@staged
def _set_ac(cpu: Cpu, value: int) -> None:
    """EFLAGS.AC by CLAC and STAC; #UD outside CPL 0."""
    if cpu.s.cpl != 0:
        raise GuestFault(cpu, Vector.UD)
    cpu.s.eflags = (cpu.s.eflags & ~int(Eflags.AC)) | value
    cpu.privilege_changed()


# -- translations and caches -------------------------------------------------------------------------------------------
@instruction("INVLPG", "0F 01 /7 M", ends=True, cold=True)
def invlpg(cpu: Cpu, place: Operand) -> None:
    require_cpl0(cpu)
    segment, offset = place.segment.zext(64), place.offset
    if cpu.long:
        based = (segment == Seg.FS) | (segment == Seg.GS)
        linear = offset + select(based, cpu.s.seg_base[segment & 7], u64(0))
        if is_canonical(cpu, linear):
            cpu.flush_tlb_page(linear)
    else:
        cpu.flush_tlb_page((offset + cpu.s.seg_base[segment & 7]) & 0xFFFFFFFF)


@native
def invalidate_pcid(cpu: Cpu, kind: U64, pcid: U64, address: U64) -> None:
    """INVPCID. Translations carry no PCID, so that each kind drops more than it must."""
    s = cpu.s
    require_cpl0(cpu)
    if kind > 3:
        raise GuestFault(cpu, Vector.GP, 0)
    if (pcid >> 12) != 0:
        raise GuestFault(cpu, Vector.GP, 0)
    if (kind < 2) & ((s.cr4 & Cr4.PCIDE) == 0) & (pcid != 0):
        raise GuestFault(cpu, Vector.GP, 0)
    if kind == 0:
        if ~is_canonical_base(cpu, address):
            raise GuestFault(cpu, Vector.GP, 0)
        cpu.flush_tlb_page(address)
    elif kind == 2:
        cpu.flush_tlb()
    else:
        cpu.flush_tlb_nonglobal()


@instruction("INVPCID", "66 0F 38 82 /r f64 Gy Mdq", feature="invpcid", ends=True, cold=True)
def invpcid(cpu: Cpu, kind: Operand, descriptor: Operand) -> None:
    require_cpl0(cpu)
    value = descriptor.read()
    invalidate_pcid(cpu, kind.read().zext(64), value.lane(0), value.lane(1))


@instruction("INVD", "0F 08", cold=True)
def invd(cpu: Cpu) -> None:
    require_cpl0(cpu)  # there are no caches


@instruction("WBINVD", "0F 09", cold=True)
def wbinvd(cpu: Cpu) -> None:
    require_cpl0(cpu)


# -- what processors have and this one has not -------------------------------------------------------------------------
@instruction("RDPMC", "0F 33", cold=True)
def rdpmc(cpu: Cpu) -> None:
    raise GuestFault(cpu, Vector.GP, 0)  # no counters


# -- protection keys, processor ID -------------------------------------------------------------------------------------
@staged
def _require_pke(cpu: Cpu) -> None:
    if (cpu.s.cr4 & Cr4.PKE) == 0:
        raise GuestFault(cpu, Vector.UD)
    if cpu.reg(Gpr.RCX, 32) != 0:
        raise GuestFault(cpu, Vector.GP, 0)


@instruction("RDPKRU", "NP 0F 01 EE", feature="pku", cold=True)
def rdpkru(cpu: Cpu) -> None:
    _require_pke(cpu)
    put_edx_eax(cpu, cpu.s.pkru.zext(64))


@instruction("WRPKRU", "NP 0F 01 EF", feature="pku", ends=True, cold=True)
def wrpkru(cpu: Cpu) -> None:
    _require_pke(cpu)
    value = concat(cpu.reg(Gpr.RDX, 32), cpu.reg(Gpr.RAX, 32))
    if (value >> 32) != 0:
        raise GuestFault(cpu, Vector.GP, 0)
    set_pkru(cpu, value.trunc(32))


@instruction("RDPID", "F3 0F C7 /7 f64 Ry", feature="rdpid", cold=True)
def rdpid(cpu: Cpu, dst: Operand) -> None:
    dst.write((cpu.s.tsc_aux & 0xFFFFFFFF).trunc(dst.width))
