"""Control and debug registers, SDM vol. 3, 2.5 and 17.2: what may be written, and what a write sets in motion."""

from __future__ import annotations

from typing import Final

from xuni.isa.bits import U64, Bits, select, u64
from xuni.isa.stage import native, staged
from xuni.isa.x86.cpu import Cpu
from xuni.isa.x86.exceptions import GuestFault, Vector
from xuni.isa.x86.instruction import Operand, instruction
from xuni.isa.x86.paging import PRESENT
from xuni.isa.x86.segment import is_64bit, is_ia32e, require_cpl0
from xuni.isa.x86.state import Attr, Cr0, Cr4, Efer, Seg

CR0_KNOWN: Final = 0xE005003F
CR0_FLUSH: Final = int(Cr0.PG | Cr0.WP | Cr0.PE)  # a change of these makes translations wrong
CR0_PDPTE: Final = int(Cr0.PG | Cr0.CD | Cr0.NW)  # with PAE paging, a change of these loads the PDPTEs (4.4.1)
CR4_PDPTE: Final = int(Cr4.PGE | Cr4.PSE | Cr4.PAE | Cr4.SMEP)
CR4_FLUSH: Final = int(
    Cr4.PSE | Cr4.PAE | Cr4.PGE | Cr4.PCIDE | Cr4.SMEP | Cr4.SMAP | Cr4.PKE | Cr4.PKS | Cr4.LA57
)  # fmt: skip
CR4_FEATURES: Final = {
    "vme": int(Cr4.VME | Cr4.PVI), "tsc": int(Cr4.TSD), "de": int(Cr4.DE), "pse": int(Cr4.PSE), "pae": int(Cr4.PAE),
    "mce": int(Cr4.MCE), "pge": int(Cr4.PGE), "fxsr": int(Cr4.OSFXSR), "sse": int(Cr4.OSXMMEXCPT),
    "umip": int(Cr4.UMIP), "la57": int(Cr4.LA57), "fsgsbase": int(Cr4.FSGSBASE), "pcid": int(Cr4.PCIDE),
    "xsave": int(Cr4.OSXSAVE), "smep": int(Cr4.SMEP), "smap": int(Cr4.SMAP), "pku": int(Cr4.PKE), "pks": int(Cr4.PKS),
}  # fmt: skip
CR3_NO_FLUSH: Final = 1 << 63
PDPTE_RESERVED: Final = 0x1E6  # bits 2:1 and 8:5
DR6_FIXED: Final = 0xFFFF0FF0
DR6_WRITABLE: Final = 0xE00F
DR6_BD: Final = 1 << 13
DR7_FIXED: Final = 0x400
DR7_WRITABLE: Final = 0xFFFF23FF
DR7_GD: Final = 1 << 13


def _gp(cpu: Cpu) -> GuestFault:
    return GuestFault(cpu, Vector.GP, 0)


# -- CR3 and the PDPTE registers ---------------------------------------------------------------------------------------
@staged
def _pae_paging(cr0: Bits, cr4: Bits, efer: Bits) -> Bits:
    return ((cr0 & Cr0.PG) != 0) & ((cr4 & Cr4.PAE) != 0) & ((efer & Efer.LME) == 0)


@native
def load_pdptes(cpu: Cpu, cr3: U64) -> None:
    """Load the four PDPTE registers of PAE paging; #GP(0) if a present one has a reserved bit (4.4.1)."""
    s = cpu.s
    table = cr3 & 0xFFFFFFE0
    entries = [cpu.load_physical(table + 8 * n, 64) for n in range(4)]
    for entry in entries:
        reserved = (entry & (PDPTE_RESERVED | (~s.physical_mask))) != 0
        if ((entry & PRESENT) != 0) & reserved:
            raise _gp(cpu)
    for n in range(4):
        s.pdpte[n] = entries[n]


@native
def load_cr3(cpu: Cpu, value: U64) -> None:
    """CR3 as MOV and task switches load it: #GP(0) for reserved bits; non-global translations are forgotten."""
    s = cpu.s
    if is_ia32e(cpu):
        pcide = (s.cr4 & Cr4.PCIDE) != 0
        value = select(pcide, value & ~u64(CR3_NO_FLUSH), value)
        if (value & ~s.physical_mask) != 0:
            raise _gp(cpu)
    elif _pae_paging(s.cr0, s.cr4, s.efer):
        load_pdptes(cpu, value)
    s.cr3 = value
    # Translations are not tagged with a PCID, so that even a load that asks to keep them must drop them.
    cpu.flush_tlb_nonglobal()


# -- CR0 and CR4 -------------------------------------------------------------------------------------------------------
@native
def load_cr0(cpu: Cpu, value: U64) -> None:
    """CR0, with the way into and out of IA-32e mode (9.8.5); #GP(0) for what is not allowed."""
    s = cpu.s
    old = s.cr0
    if (value >> 32) != 0:
        raise _gp(cpu)
    value = (value & CR0_KNOWN) | Cr0.ET
    paging = (value & Cr0.PG) != 0
    if (paging & ((value & Cr0.PE) == 0)) | ((value & (Cr0.NW | Cr0.CD)) == int(Cr0.NW)):
        raise _gp(cpu)
    changed = old ^ value
    efer = s.efer
    if (changed & Cr0.PG) != 0:
        long_cs = (s.seg_attr[Seg.CS] & Attr.L) != 0
        if paging:
            if (efer & Efer.LME) != 0:
                if ((s.cr4 & Cr4.PAE) == 0) | long_cs:
                    raise _gp(cpu)
                efer = efer | Efer.LMA
        else:
            if is_64bit(cpu) | ((s.cr4 & Cr4.PCIDE) != 0):
                raise _gp(cpu)
            efer = efer & ~int(Efer.LMA)
    if _pae_paging(value, s.cr4, efer) & ((changed & CR0_PDPTE) != 0):
        load_pdptes(cpu, s.cr3)
    s.efer = efer
    s.cr0 = value
    if (changed & CR0_FLUSH) != 0:
        cpu.flush_tlb()
    cpu.mode_changed()


@native
def cr4_allowed(cpu: Cpu) -> U64:
    """The bits of CR4 that this processor has."""
    allowed = u64(Cr4.PCE)
    for name, bits in CR4_FEATURES.items():
        allowed = allowed | select(cpu.has_feature(name), u64(bits), u64(0))
    return allowed


@native
def load_cr4(cpu: Cpu, value: U64) -> None:
    """CR4; #GP(0) for a bit that the processor lacks, or one that must not change now."""
    s = cpu.s
    changed = s.cr4 ^ value
    if (value & ~cr4_allowed(cpu)) != 0:
        raise _gp(cpu)
    if is_ia32e(cpu):
        if (changed & (Cr4.PAE | Cr4.LA57)) != 0:
            raise _gp(cpu)
    elif (value & Cr4.PCIDE) != 0:
        raise _gp(cpu)
    if ((changed & value & Cr4.PCIDE) != 0) & ((s.cr3 & 0xFFF) != 0):
        raise _gp(cpu)
    if _pae_paging(s.cr0, value, s.efer) & ((changed & CR4_PDPTE) != 0):
        load_pdptes(cpu, s.cr3)
    s.cr4 = value
    if (changed & CR4_FLUSH) != 0:
        cpu.flush_tlb()
    cpu.mode_changed()


# -- MOV to and from control registers ---------------------------------------------------------------------------------
@native
def _read_cr(cpu: Cpu, index: U64) -> U64:
    s = cpu.s
    if index == 0:
        value = s.cr0
    elif index == 2:
        value = s.cr2
    elif index == 3:
        value = s.cr3
    elif index == 4:
        value = s.cr4
    elif index == 8:
        require_cpl0(cpu)
        value = cpu.tpr_read()
    else:
        raise GuestFault(cpu, Vector.UD)
    require_cpl0(cpu)
    return value


@native
def _write_cr(cpu: Cpu, index: U64, value: U64) -> None:
    s = cpu.s
    if (u64(0b1_0001_1101) >> index & 1) == 0:
        raise GuestFault(cpu, Vector.UD)
    require_cpl0(cpu)
    if index == 0:
        load_cr0(cpu, value)
    elif index == 2:
        s.cr2 = value
    elif index == 3:
        load_cr3(cpu, value)
    elif index == 4:
        load_cr4(cpu, value)
    else:
        if (value >> 4) != 0:
            raise _gp(cpu)
        cpu.tpr_write(value)


@instruction("MOV", "0F 20 /r f64 Ry Cy", cold=True)
def mov_from_cr(cpu: Cpu, dst: Operand, src: Operand) -> None:
    dst.write(_read_cr(cpu, src.index.zext(64)).trunc(dst.width))


@instruction("MOV", "0F 22 /r f64 Cy Ry", ends=True, cold=True)
def mov_to_cr(cpu: Cpu, dst: Operand, src: Operand) -> None:
    _write_cr(cpu, dst.index.zext(64), src.read().zext(64))


@instruction("SMSW", "0F 01 /4 Rv", "0F 01 /4 Mw", cold=True)
def smsw(cpu: Cpu, dst: Operand) -> None:
    require_umip(cpu)
    dst.write(cpu.s.cr0.trunc(dst.width))


@instruction("LMSW", "0F 01 /6 Ew", ends=True, cold=True)
def lmsw(cpu: Cpu, src: Operand) -> None:
    require_cpl0(cpu)
    old = cpu.s.cr0
    load_cr0(cpu, (old & ~u64(0xE)) | (src.read().zext(64) & 0xF))  # PE can be set, not cleared


@instruction("CLTS", "0F 06", ends=True, cold=True)
def clts(cpu: Cpu) -> None:
    require_cpl0(cpu)
    cpu.s.cr0 = cpu.s.cr0 & ~int(Cr0.TS)
    cpu.mode_changed()


@staged
def require_umip(cpu: Cpu) -> None:
    """#GP(0) for SGDT, SIDT, SLDT, STR and SMSW outside CPL 0 while CR4.UMIP is set."""
    if (cpu.s.cpl != 0) & ((cpu.s.cr4 & Cr4.UMIP) != 0):
        raise GuestFault(cpu, Vector.GP, 0)


# -- debug registers ---------------------------------------------------------------------------------------------------
@native
def _debug_register(cpu: Cpu, index: U64) -> U64:
    """The register that MOV DR means: 4 and 5 are 6 and 7 unless CR4.DE is set. #UD, #GP(0), #DB (DR7.GD)."""
    s = cpu.s
    alias = (index == 4) | (index == 5)
    if (index > 7) | (alias & ((s.cr4 & Cr4.DE) != 0)):
        raise GuestFault(cpu, Vector.UD)
    require_cpl0(cpu)
    if (s.dr[7] & DR7_GD) != 0:
        s.dr[6] = s.dr[6] | DR6_BD
        s.dr[7] = s.dr[7] & ~DR7_GD
        raise GuestFault(cpu, Vector.DB)
    return select(alias, index + 2, index)


@native
def _write_dr(cpu: Cpu, index: U64, value: U64) -> None:
    s = cpu.s
    n = _debug_register(cpu, index)
    if n >= 6:
        if (value >> 32) != 0:
            raise _gp(cpu)
        value = select(n == 6, (value & DR6_WRITABLE) | DR6_FIXED, (value & DR7_WRITABLE) | DR7_FIXED)
    s.dr[n & 7] = value
    cpu.mode_changed()


@instruction("MOV", "0F 21 /r f64 Ry Dy", cold=True)
def mov_from_dr(cpu: Cpu, dst: Operand, src: Operand) -> None:
    index = _debug_register(cpu, src.index.zext(64))
    dst.write(cpu.s.dr[index & 7].trunc(dst.width))


@instruction("MOV", "0F 23 /r f64 Dy Ry", ends=True, cold=True)
def mov_to_dr(cpu: Cpu, dst: Operand, src: Operand) -> None:
    _write_dr(cpu, dst.index.zext(64), src.read().zext(64))
