"""The state of a soft virtual CPU as a plain record, and back: how a processor moves from one engine to another."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from xuni.isa.x86.cpustate import CpuState, Segment, TableRegister, VcpuState
from xuni.isa.x86.msr import Msr
from xuni.isa.x86.state import Attr, Cr0, Cr4, Efer
from xuni.isa.x86.xsave_area import EXTENDED, LEGACY_SIZE, MXCSR, REGISTERS, XMM

if TYPE_CHECKING:
    from xuni.engine.soft.vcpu import BaseVcpu

GENERAL: Final = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
SEGMENTS: Final = ("es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr")

# Registers that are one word of the state each.
MSRS: Final = {
    Msr.SYSENTER_CS: "sysenter_cs", Msr.SYSENTER_ESP: "sysenter_esp", Msr.SYSENTER_EIP: "sysenter_eip",
    Msr.PAT: "pat", Msr.MISC_ENABLE: "misc_enable", Msr.MTRR_DEF_TYPE: "mtrr_def_type", Msr.MCG_STATUS: "mcg_status",
    Msr.STAR: "star", Msr.LSTAR: "lstar", Msr.CSTAR: "cstar", Msr.SFMASK: "sfmask",
    Msr.KERNEL_GS_BASE: "kernel_gs_base", Msr.TSC_AUX: "tsc_aux", Msr.TSC_ADJUST: "tsc_adjust", Msr.PKRS: "pkrs",
}  # fmt: skip
FIXED_MTRRS: Final = (
    int(Msr.MTRR_FIX64K_00000), int(Msr.MTRR_FIX16K_80000), int(Msr.MTRR_FIX16K_A0000),
    *(int(Msr.MTRR_FIX4K_C0000) + n for n in range(8)),
)  # fmt: skip
FEATURE_OF: Final = {Msr.TSC_ADJUST: "tsc_adjust", Msr.PKRS: "pks", Msr.TSC_AUX: "rdtscp"}
_HEAD: Final = Struct("<HHBxHQQII")  # FCW FSW FTW FOP FIP FDP MXCSR MXCSR_MASK, SDM vol. 1, table 10-2
MXCSR_MASK: Final = 0xFFFF
SHADOW_STI, SHADOW_STACK = 2, 1  # VcpuState.interrupt_shadow
assert EXTENDED == LEGACY_SIZE + 64 and _HEAD.size == REGISTERS and MXCSR == 24


def segment(selector: int, base: int, limit: int, attributes: int) -> Segment:
    """A segment from its access rights in the VMX format."""
    usable = not attributes & Attr.UNUSABLE
    return Segment(
        selector, base, limit, type=attributes & 15, s=attributes >> 4 & 1, dpl=attributes >> 5 & 3,
        p=attributes >> 7 & 1 if usable else 0, avl=attributes >> 12 & 1, l=attributes >> 13 & 1,
        db=attributes >> 14 & 1, g=attributes >> 15 & 1,
    )  # fmt: skip


def registers(vcpu: BaseVcpu) -> CpuState:
    """General, control, segment and table registers."""
    s = vcpu.state
    parts: dict[str, Any] = {
        name: segment(int(s.seg_selector[n]), int(s.seg_base[n]), int(s.seg_limit[n]), int(s.seg_attr[n]))
        for n, name in enumerate(SEGMENTS)
    }
    parts |= {name: int(s.gpr[n]) for n, name in enumerate(GENERAL)}
    return CpuState(
        rip=int(s.rip), rflags=vcpu.rflags, cr0=int(s.cr0), cr2=int(s.cr2), cr3=int(s.cr3), cr4=int(s.cr4),
        efer=int(s.efer), gdtr=TableRegister(int(s.gdtr_base), int(s.gdtr_limit)),
        idtr=TableRegister(int(s.idtr_base), int(s.idtr_limit)), **parts,
    )  # fmt: skip


def save(vcpu: BaseVcpu) -> VcpuState:
    """Everything but the local APIC. The virtual CPU stands between two instructions."""
    s = vcpu.state
    assert int(s.replay_count) == 0, "an instruction is unfinished"
    pae = int(s.cr0) & Cr0.PG and int(s.cr4) & Cr4.PAE and not int(s.efer) & Efer.LMA
    has = vcpu.config.features
    msrs = {int(index): int(getattr(s, name)) for index, name in MSRS.items() if FEATURE_OF.get(index, "base") in has}
    msrs |= {int(index): int(s.mtrr_fixed[n]) for n, index in enumerate(FIXED_MTRRS)}
    msrs |= {int(Msr.MTRR_PHYSBASE0) + n: int(s.mtrr_variable[n]) for n in range(16)}
    msrs[int(Msr.TSC)] = vcpu.now() + int(s.tsc_offset) & (1 << 64) - 1
    inject = int(s.inject)
    return VcpuState(
        registers(vcpu),
        pdptes=(int(s.pdpte[0]), int(s.pdpte[1]), int(s.pdpte[2]), int(s.pdpte[3])) if pae else None,
        debug=(int(s.dr[0]), int(s.dr[1]), int(s.dr[2]), int(s.dr[3])), dr6=int(s.dr[6]), dr7=int(s.dr[7]),
        xcr0=int(s.xcr0), fxsave=_fxsave(vcpu), pkru=int(s.pkru), msrs=msrs,
        interrupt_shadow={0: 0, 1: SHADOW_STI, 2: SHADOW_STACK}[int(s.interrupt_shadow)],
        nmi_pending=int(s.nmi_sent) != int(s.nmi_taken), nmi_blocked=bool(int(s.nmi_blocked)), halted=bool(int(s.halted)),
        pending_interrupt=inject - 1 if inject else None,
    )  # fmt: skip


def _fxsave(vcpu: BaseVcpu) -> bytes:
    s = vcpu.state
    tags = sum((int(s.fpu_tag) >> 2 * n & 3 != 3) << n for n in range(8))
    head = _HEAD.pack(int(s.fpu_control), int(s.fpu_status), tags, int(s.fpu_opcode), int(s.fpu_ip), int(s.fpu_dp),
                      int(s.mxcsr), MXCSR_MASK)  # fmt: skip
    top = int(s.fpu_status) >> 11 & 7
    stack = b"".join(vcpu.bytes_of("st", 16 * (top + n & 7), 10) + bytes(6) for n in range(8))
    return (head + stack + vcpu.bytes_of("xmm", 0, 256)).ljust(LEGACY_SIZE, b"\0")


def load(vcpu: BaseVcpu, state: VcpuState) -> None:
    """Go on from `state`. ValueError names what this processor does not have."""
    s = vcpu.state
    if state.fxsave and len(state.fxsave) != LEGACY_SIZE:
        raise ValueError(f"fxsave: {len(state.fxsave)} bytes; an FXSAVE image has {LEGACY_SIZE}")
    if any(state.ymm_high):
        raise ValueError("ymm_high: this processor has no AVX")
    unknown = sorted(set(state.msrs) - set(MSRS) - set(FIXED_MTRRS) - set(range(0x200, 0x210)) - {Msr.TSC})
    if unknown:
        raise ValueError(f"msrs: this processor does not keep {', '.join(f'{index:#x}' for index in unknown)}")
    vcpu.start(state.registers)
    s.cr2 = state.registers.cr2
    if state.pdptes:
        for n, entry in enumerate(state.pdptes):
            s.pdpte[n] = entry
    for n, address in enumerate(state.debug):
        s.dr[n] = address
    s.dr[6], s.dr[7] = state.dr6, state.dr7
    s.xcr0, s.pkru = state.xcr0, state.pkru
    _load_fxsave(vcpu, state.fxsave)
    for index, value in state.msrs.items():
        if index in MSRS:
            setattr(s, MSRS[Msr(index)], value)
        elif index in FIXED_MTRRS:
            s.mtrr_fixed[FIXED_MTRRS.index(index)] = value
        elif index == Msr.TSC:
            s.tsc_offset = value - vcpu.now() & (1 << 64) - 1
        else:
            s.mtrr_variable[index - Msr.MTRR_PHYSBASE0] = value
    s.interrupt_shadow = {0: 0, SHADOW_STI: 1, SHADOW_STACK: 2}[state.interrupt_shadow]
    s.nmi_sent, s.nmi_taken = int(state.nmi_pending), 0
    s.nmi_blocked, s.halted = int(state.nmi_blocked), int(state.halted)
    s.inject = 0 if state.pending_interrupt is None else state.pending_interrupt + 1
    s.passed = 0
    s.pending_debug = s.replay_count = s.delivering = s.exit_kind = 0
    vcpu.forget()


def _load_fxsave(vcpu: BaseVcpu, image: bytes) -> None:
    s = vcpu.state
    image = image or _HEAD.pack(0x37F, 0, 0, 0, 0, 0, 0x1F80, MXCSR_MASK).ljust(LEGACY_SIZE, b"\0")
    control, status, tags, opcode, ip, dp, mxcsr, _ = _HEAD.unpack_from(image)
    s.fpu_control, s.fpu_status, s.fpu_opcode, s.fpu_ip, s.fpu_dp = control, status, opcode, ip, dp
    s.fpu_cs = s.fpu_ds = 0
    s.fpu_tag = sum(0 if tags >> n & 1 else 3 << 2 * n for n in range(8))
    s.mxcsr = mxcsr & MXCSR_MASK
    for n in range(8):
        vcpu.put_bytes("st", 16 * ((status >> 11) + n & 7), image[REGISTERS + 16 * n :][:10] + bytes(6))
    vcpu.put_bytes("xmm", 0, image[XMM:][:256])
