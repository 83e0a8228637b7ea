"""Model-specific registers: which exist, what they hold, what may be written. SDM vol. 4.

A register that no feature of this processor brings is #GP(0), as is a reserved bit or an address that is not canonical.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from xuni.isa.bits import U32, U64, Bits, concat, select, u1, u64
from xuni.isa.stage import native, staged
from xuni.isa.x86.cpu import Cpu
from xuni.isa.x86.exceptions import GuestFault, Vector
from xuni.isa.x86.instruction import instruction
from xuni.isa.x86.segment import is_canonical_base, require_cpl0
from xuni.isa.x86.state import Cr0, Cr4, Efer, Gpr, Seg


class Msr(IntEnum):
    TSC = 0x10
    PLATFORM_ID = 0x17
    APIC_BASE = 0x1B
    FEATURE_CONTROL = 0x3A
    TSC_ADJUST = 0x3B
    BIOS_UPDT_TRIG = 0x79
    BIOS_SIGN_ID = 0x8B
    PLATFORM_INFO = 0xCE
    MTRRCAP = 0xFE
    ARCH_CAPABILITIES = 0x10A
    SYSENTER_CS = 0x174
    SYSENTER_ESP = 0x175
    SYSENTER_EIP = 0x176
    MCG_CAP = 0x179
    MCG_STATUS = 0x17A
    PERF_STATUS = 0x198
    MISC_ENABLE = 0x1A0
    DEBUGCTL = 0x1D9
    MTRR_PHYSBASE0 = 0x200
    MTRR_FIX64K_00000 = 0x250
    MTRR_FIX16K_80000 = 0x258
    MTRR_FIX16K_A0000 = 0x259
    MTRR_FIX4K_C0000 = 0x268
    PAT = 0x277
    MTRR_DEF_TYPE = 0x2FF
    TSC_DEADLINE = 0x6E0
    PKRS = 0x6E1
    X2APIC = 0x800
    XSS = 0xDA0
    EFER = 0xC0000080
    STAR = 0xC0000081
    LSTAR = 0xC0000082
    CSTAR = 0xC0000083
    SFMASK = 0xC0000084
    FS_BASE = 0xC0000100
    GS_BASE = 0xC0000101
    KERNEL_GS_BASE = 0xC0000102
    TSC_AUX = 0xC0000103
    K7_PERF_CTL0 = 0xC0010000


MTRR_VARIABLE: Final = 8  # pairs
MTRR_CAP: Final = MTRR_VARIABLE | 1 << 8 | 1 << 10  # fixed ranges, write-combining
MTRR_DEF_TYPE_KNOWN: Final = 0xCFF
MEMORY_TYPES: Final = 1 << 0 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 6  # UC WC WT WP WB
PAT_TYPES: Final = MEMORY_TYPES | 1 << 7  # and UC-
PAT_RESET: Final = 0x0007040600070406

# RDCL_NO, SKIP_L1DFL_VMENTRY, SSB_NO, MDS_NO, IF_PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, BHI_NO,
# PBRSB_NO, GDS_NO, RFDS_NO, ITS_NO: an interpreter does not speculate, so that the guest needs no mitigations.
NOT_AFFECTED: Final = sum(1 << n for n in (0, 3, 4, 5, 6, 8, 13, 14, 15, 20, 24, 26, 27, 62))
PLATFORM_RATIO: Final = 10 << 8  # maximum non-turbo ratio: 10 x 100 MHz
PERF_RATIO: Final = 10 << 8
MICROCODE: Final = 1 << 32  # the update signature is in the upper half
MISC_ENABLE_RESET: Final = 1 << 0 | 1 << 11 | 1 << 12  # fast strings; no BTS, no PEBS
MISC_ENABLE_FIXED: Final = 1 << 11 | 1 << 12 | 1 << 7  # read-only
FEATURE_CONTROL_LOCKED: Final = 1
EFER_FEATURES: Final = {"syscall": int(Efer.SCE), "lm": int(Efer.LME), "nx": int(Efer.NXE)}


def _gp(cpu: Cpu) -> GuestFault:
    return GuestFault(cpu, Vector.GP, 0)


@staged
def _require(cpu: Cpu, feature: str) -> None:
    """#GP(0) without a feature."""
    if ~cpu.has_feature(feature):
        raise _gp(cpu)


@staged
def tsc(cpu: Cpu) -> Bits:
    """The time-stamp counter: 1 GHz."""
    return cpu.clock() + cpu.s.tsc_offset


@staged
def _require_apic(cpu: Cpu, index: Bits, x2apic: Bits) -> None:
    """#GP(0) for registers of the APIC, and for `x2apic` mode, on a processor without them."""
    deadline = index == Msr.TSC_DEADLINE
    if (x2apic & ~cpu.has_feature("x2apic")) | (deadline & ~cpu.has_feature("tsc_deadline_timer")):
        raise _gp(cpu)


# -- MTRRs -------------------------------------------------------------------------------------------------------------
@staged
def _is_variable_mtrr(index: Bits) -> Bits:
    return (index >= Msr.MTRR_PHYSBASE0) & (index < Msr.MTRR_PHYSBASE0 + 2 * MTRR_VARIABLE)


@native
def fixed_mtrr(cpu: Cpu, index: U32) -> U64:
    """The place of a fixed-range MTRR in the state: 64K, two of 16K, eight of 4K; 11 for none."""
    if index == Msr.MTRR_FIX64K_00000:
        return u64(0)
    if (index == Msr.MTRR_FIX16K_80000) | (index == Msr.MTRR_FIX16K_A0000):
        return (index - (Msr.MTRR_FIX16K_80000 - 1)).zext(64)
    if (index >= Msr.MTRR_FIX4K_C0000) & (index < Msr.MTRR_FIX4K_C0000 + 8):
        return (index - (Msr.MTRR_FIX4K_C0000 - 3)).zext(64)
    return u64(11)


@native
def all_types_known(cpu: Cpu, value: U64, types: U64) -> U64:
    """Whether each of the eight bytes is a memory type in the set `types`."""
    fine = u1(1)
    for n in range(8):
        kind = value >> (8 * n) & 0xFF
        fine = fine & types.bit(kind)
    return fine.zext(64)


@native
def write_mtrr(cpu: Cpu, index: U32, value: U64) -> None:
    """A write to a fixed or variable MTRR, or to the default type (11.11.2)."""
    s = cpu.s
    types = u64(MEMORY_TYPES)
    if index == Msr.MTRR_DEF_TYPE:
        if ((value & ~u64(MTRR_DEF_TYPE_KNOWN)) != 0) | ~types.bit(value & 0xFF):
            raise _gp(cpu)
        s.mtrr_def_type = value
    elif _is_variable_mtrr(index):
        is_mask = index[0]
        reserved = ~s.physical_mask | select(is_mask, u64(0x7FF), u64(0xF00))
        if ((value & reserved) != 0) | (~is_mask & ~types.bit(value & 0xFF)):
            raise _gp(cpu)
        s.mtrr_variable[index.zext(64) & 15] = value
    else:
        if all_types_known(cpu, value, types) == 0:
            raise _gp(cpu)
        s.mtrr_fixed[fixed_mtrr(cpu, index)] = value


@staged
def _is_mtrr(cpu: Cpu, index: Bits) -> Bits:
    return _is_variable_mtrr(index) | (fixed_mtrr(cpu, index) != 11) | (index == Msr.MTRR_DEF_TYPE)


# -- EFER --------------------------------------------------------------------------------------------------------------
@native
def write_efer(cpu: Cpu, value: U64) -> None:
    """IA32_EFER: LMA is read-only, LME cannot change while paging is on."""
    s = cpu.s
    old = s.efer
    known = u64(Efer.LMA)
    for name, bit in EFER_FEATURES.items():
        known = known | select(cpu.has_feature(name), u64(bit), u64(0))
    changed = old ^ value
    if ((value & ~known) != 0) | (((changed & Efer.LME) != 0) & ((s.cr0 & Cr0.PG) != 0)):
        raise _gp(cpu)
    s.efer = (value & ~u64(Efer.LMA)) | (old & Efer.LMA)
    if (changed & Efer.NXE) != 0:
        cpu.flush_tlb()
    cpu.mode_changed()


# -- the two tables ----------------------------------------------------------------------------------------------------
@native
def read_msr(cpu: Cpu, index: U32) -> U64:
    """RDMSR after its privilege check; #GP(0) for a register that does not exist."""
    s = cpu.s
    if index >= 0xC0000000:
        return _read_extended(cpu, index)
    if (index == Msr.APIC_BASE) | (index == Msr.TSC_DEADLINE) | (index >> 8 == Msr.X2APIC >> 8):
        _require_apic(cpu, index, index >= Msr.X2APIC)
        return cpu.chip_msr_read(index)
    if _is_mtrr(cpu, index):
        return _read_mtrr(cpu, index)
    if index == Msr.TSC:
        return tsc(cpu)
    if index == Msr.TSC_ADJUST:
        _require(cpu, "tsc_adjust")
        return s.tsc_adjust
    if index == Msr.SYSENTER_CS:
        return s.sysenter_cs
    if index == Msr.SYSENTER_ESP:
        return s.sysenter_esp
    if index == Msr.SYSENTER_EIP:
        return s.sysenter_eip
    if index == Msr.PAT:
        return s.pat
    return _read_rare(cpu, index)


@native
def _read_mtrr(cpu: Cpu, index: U32) -> U64:
    s = cpu.s
    if index == Msr.MTRR_DEF_TYPE:
        return s.mtrr_def_type
    if _is_variable_mtrr(index):
        return s.mtrr_variable[index.zext(64) & 15]
    return s.mtrr_fixed[fixed_mtrr(cpu, index)]


@staged
def _is_k7_counter(cpu: Cpu, index: Bits) -> Bits:
    """PERF_CTL0-3 and PERF_CTR0-3, which every AMD processor has: here they count nothing."""
    return (index >> 3 == Msr.K7_PERF_CTL0 >> 3) & cpu.has_feature("amd")


@native
def _read_extended(cpu: Cpu, index: U32) -> U64:
    s = cpu.s
    if index == Msr.EFER:
        return s.efer
    if index == Msr.TSC_AUX:
        if ~(cpu.has_feature("rdtscp") | cpu.has_feature("rdpid")):
            raise _gp(cpu)
        return s.tsc_aux
    if _is_k7_counter(cpu, index):
        return u64(0)
    _require(cpu, "lm")
    if index == Msr.STAR:
        return s.star
    if index == Msr.LSTAR:
        return s.lstar
    if index == Msr.CSTAR:
        return s.cstar
    if index == Msr.SFMASK:
        return s.sfmask
    if index == Msr.FS_BASE:
        return s.seg_base[Seg.FS]
    if index == Msr.GS_BASE:
        return s.seg_base[Seg.GS]
    if index == Msr.KERNEL_GS_BASE:
        return s.kernel_gs_base
    raise _gp(cpu)


@native
def _read_rare(cpu: Cpu, index: U32) -> U64:
    s = cpu.s
    if (index == Msr.PLATFORM_ID) | (index == Msr.MCG_CAP):
        return u64(0)
    if index == Msr.FEATURE_CONTROL:
        return u64(FEATURE_CONTROL_LOCKED)
    if index == Msr.BIOS_SIGN_ID:
        return s.bios_sign
    if index == Msr.PLATFORM_INFO:
        return u64(PLATFORM_RATIO)
    if index == Msr.PERF_STATUS:
        return u64(PERF_RATIO)
    if index == Msr.MTRRCAP:
        return u64(MTRR_CAP)
    if index == Msr.ARCH_CAPABILITIES:
        _require(cpu, "arch_capabilities")
        return u64(NOT_AFFECTED)
    if index == Msr.MCG_STATUS:
        return s.mcg_status
    if index == Msr.MISC_ENABLE:
        return s.misc_enable
    if index == Msr.DEBUGCTL:
        return s.debug_control
    if index == Msr.XSS:
        _require(cpu, "xsaves")
        return u64(0)
    if index == Msr.PKRS:
        _require(cpu, "pks")
        return s.pkrs.zext(64)
    raise _gp(cpu)


@staged
def _canonical(cpu: Cpu, value: Bits) -> None:
    """#GP(0) for an address that is not canonical."""
    if ~is_canonical_base(cpu, value):
        raise _gp(cpu)


@native
def write_msr(cpu: Cpu, index: U32, value: U64) -> None:
    """WRMSR after its privilege check; #GP(0) for a register or a value that does not exist."""
    s = cpu.s
    if index >= 0xC0000000:
        _write_extended(cpu, index, value)
    elif (index == Msr.APIC_BASE) | (index == Msr.TSC_DEADLINE) | (index >> 8 == Msr.X2APIC >> 8):
        _require_apic(cpu, index, (index >= Msr.X2APIC) | ((index == Msr.APIC_BASE) & value[10]))
        cpu.chip_msr_write(index, value)
        if index == Msr.APIC_BASE:
            s.apic_base = value
    elif _is_mtrr(cpu, index):
        write_mtrr(cpu, index, value)
    elif index == Msr.TSC:
        change = value - tsc(cpu)
        s.tsc_offset = s.tsc_offset + change
        s.tsc_adjust = s.tsc_adjust + change
    elif index == Msr.TSC_ADJUST:
        _require(cpu, "tsc_adjust")
        s.tsc_offset = s.tsc_offset + (value - s.tsc_adjust)
        s.tsc_adjust = value
    elif index == Msr.SYSENTER_CS:
        s.sysenter_cs = value & 0xFFFFFFFF
    elif index == Msr.SYSENTER_ESP:
        _canonical(cpu, value)
        s.sysenter_esp = value
    elif index == Msr.SYSENTER_EIP:
        _canonical(cpu, value)
        s.sysenter_eip = value
    elif index == Msr.PAT:
        if all_types_known(cpu, value, u64(PAT_TYPES)) == 0:
            raise _gp(cpu)
        s.pat = value
    else:
        _write_rare(cpu, index, value)


@native
def _write_extended(cpu: Cpu, index: U32, value: U64) -> None:
    s = cpu.s
    if index == Msr.EFER:
        write_efer(cpu, value)
        return
    if index == Msr.TSC_AUX:
        if ~(cpu.has_feature("rdtscp") | cpu.has_feature("rdpid")) | ((value >> 32) != 0):
            raise _gp(cpu)
        s.tsc_aux = value
        return
    if _is_k7_counter(cpu, index):
        return
    _require(cpu, "lm")
    if index == Msr.STAR:
        s.star = value
        return
    if index == Msr.SFMASK:
        s.sfmask = value & 0xFFFFFFFF
        return
    _canonical(cpu, value)
    if index == Msr.LSTAR:
        s.lstar = value
    elif index == Msr.CSTAR:
        s.cstar = value
    elif index == Msr.FS_BASE:
        s.seg_base[Seg.FS] = value
    elif index == Msr.GS_BASE:
        s.seg_base[Seg.GS] = value
    elif index == Msr.KERNEL_GS_BASE:
        s.kernel_gs_base = value
    else:
        raise _gp(cpu)


@native
def _write_rare(cpu: Cpu, index: U32, value: U64) -> None:
    s = cpu.s
    if (index == Msr.BIOS_UPDT_TRIG) | (index == Msr.BIOS_SIGN_ID):
        return  # no update is ever loaded: the signature stays
    if index == Msr.MCG_STATUS:
        if (value & ~u64(7)) != 0:
            raise _gp(cpu)
        s.mcg_status = value
    elif index == Msr.MISC_ENABLE:
        s.misc_enable = (value & ~u64(MISC_ENABLE_FIXED)) | (s.misc_enable & MISC_ENABLE_FIXED)
    elif index == Msr.DEBUGCTL:
        if value != 0:
            raise _gp(cpu)
    elif index == Msr.XSS:
        _require(cpu, "xsaves")
        if value != 0:
            raise _gp(cpu)
    elif index == Msr.PKRS:
        _require(cpu, "pks")
        if (value >> 32) != 0:
            raise _gp(cpu)
        s.pkrs = value.trunc(32)
        cpu.flush_tlb()
    else:
        raise _gp(cpu)


# -- the instructions --------------------------------------------------------------------------------------------------
@staged
def put_edx_eax(cpu: Cpu, value: Bits) -> None:
    """A 64-bit value to EDX:EAX, the upper halves of the registers cleared."""
    cpu.s.gpr[Gpr.RAX] = value & 0xFFFFFFFF
    cpu.s.gpr[Gpr.RDX] = value >> 32


@instruction("RDMSR", "0F 32", feature="msr", cold=True)
def rdmsr(cpu: Cpu) -> None:
    require_cpl0(cpu)
    put_edx_eax(cpu, read_msr(cpu, cpu.reg(Gpr.RCX, 32)))


@instruction("WRMSR", "0F 30", feature="msr", ends=True, cold=True)
def wrmsr(cpu: Cpu) -> None:
    require_cpl0(cpu)
    write_msr(cpu, cpu.reg(Gpr.RCX, 32), concat(cpu.reg(Gpr.RDX, 32), cpu.reg(Gpr.RAX, 32)))


@staged
def _require_tsd(cpu: Cpu) -> None:
    """#GP(0) where CR4.TSD reserves the time-stamp counter for CPL 0."""
    if ((cpu.s.cr4 & Cr4.TSD) != 0) & (cpu.s.cpl != 0):
        raise _gp(cpu)


@instruction("RDTSC", "0F 31", feature="tsc")
def rdtsc(cpu: Cpu) -> None:
    _require_tsd(cpu)
    put_edx_eax(cpu, tsc(cpu))


@instruction("RDTSCP", "0F 01 F9", feature="rdtscp")
def rdtscp(cpu: Cpu) -> None:
    _require_tsd(cpu)
    put_edx_eax(cpu, tsc(cpu))
    cpu.s.gpr[Gpr.RCX] = cpu.s.tsc_aux & 0xFFFFFFFF
