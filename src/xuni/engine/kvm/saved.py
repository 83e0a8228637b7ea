"""The state of a KVM virtual CPU as the plain record that every engine takes and gives (`xuni.isa.x86.cpustate`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from xuni.host.kvm import structures as s
from xuni.isa.x86.cpustate import CR4_PAE, EFER_LMA, CpuState, Cr0, Segment, TableRegister, VcpuState

if TYPE_CHECKING:
    from xuni.engine.kvm.vcpu import KvmVcpu

GENERAL: Final = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
SEGMENTS: Final = {"es": "es", "cs": "cs", "ss": "ss", "ds": "ds", "fs": "fs", "gs": "gs", "ldtr": "ldt", "tr": "tr"}

TSC: Final = 0x10
# SYSENTER's, PAT, STAR LSTAR CSTAR SFMASK KERNEL_GS_BASE, MTRR_DEF_TYPE, fixed and variable MTRRs.
ALWAYS: Final = (
    0x174, 0x175, 0x176, 0x277, *range(0xC0000081, 0xC0000085), 0xC0000102, 0x2FF,
    0x250, 0x258, 0x259, *range(0x268, 0x270), *range(0x200, 0x210),
)  # fmt: skip
MISC_ENABLE: Final = 0x1A0
OF_FEATURE: Final = {"tsc_adjust": 0x3B, "rdtscp": 0xC0000103}
APIC_BASE: Final = 0x1B

LEGACY, XSTATE_BV, YMM = 512, 512, 576  # offsets in an XSAVE area, SDM vol. 1, 13.4
X87_SSE, AVX, PKRU = 3, 1 << 2, 1 << 9
EMPTY: Final = b"\x7f\x03" + bytes(22) + b"\x80\x1f\0\0" + bytes(LEGACY - 28)
"""FXSAVE image after reset: FCW 37Fh, MXCSR 1F80h."""
RFLAGS_FIXED: Final = 2


def msr_indexes(features: frozenset[str]) -> list[int]:
    """The MSRs that a record carries, but for the TSC."""
    return [*ALWAYS, *(index for feature, index in OF_FEATURE.items() if feature in features)]


def _segment(part: s.Segment) -> Segment:
    return Segment(int(part.selector), int(part.base), int(part.limit), type=int(part.type), s=int(part.s),
                   dpl=int(part.dpl), p=0 if part.unusable else int(part.present), avl=int(part.avl), l=int(part.l),
                   db=int(part.db), g=int(part.g))  # fmt: skip


def _put_segment(part: s.Segment, segment: Segment) -> None:
    part.selector, part.base, part.limit = segment.selector, segment.base, segment.limit
    part.type, part.s, part.dpl, part.present = segment.type, segment.s, segment.dpl, segment.p
    part.avl, part.l, part.db, part.g = segment.avl, segment.l, segment.db, segment.g
    part.unusable = not segment.p


def registers(vcpu: KvmVcpu) -> tuple[CpuState, tuple[int, int, int, int] | None]:
    """General, control, segment and table registers, and PAE's page-directory-pointer registers."""
    regs = vcpu.kvm.regs()
    sregs: Any = vcpu.kvm.sregs2() if vcpu.machine.has_sregs2 else vcpu.kvm.sregs()
    parts: dict[str, Any] = {name: _segment(getattr(sregs, field)) for name, field in SEGMENTS.items()}
    parts |= {name: int(getattr(regs, name)) for name in GENERAL}
    state = CpuState(
        rip=int(regs.rip), rflags=int(regs.rflags), cr0=int(sregs.cr0), cr2=int(sregs.cr2), cr3=int(sregs.cr3),
        cr4=int(sregs.cr4), efer=int(sregs.efer), gdtr=TableRegister(int(sregs.gdt.base), int(sregs.gdt.limit)),
        idtr=TableRegister(int(sregs.idt.base), int(sregs.idt.limit)), **parts,
    )  # fmt: skip
    pdptes = None
    if state.cr0 & Cr0.PG and state.cr4 & CR4_PAE and not state.efer & EFER_LMA and vcpu.machine.has_sregs2:
        pdptes = (int(sregs.pdptrs[0]), int(sregs.pdptrs[1]), int(sregs.pdptrs[2]), int(sregs.pdptrs[3]))
    return state, pdptes


def put_registers(vcpu: KvmVcpu, state: CpuState, pdptes: tuple[int, int, int, int] | None = None) -> None:
    """Set them. Where PAE paging is on and `pdptes` is None, KVM reads them from memory."""
    regs = s.Regs(rip=state.rip, rflags=state.rflags | RFLAGS_FIXED)
    for name in GENERAL:
        setattr(regs, name, getattr(state, name))
    with_pdptes = pdptes is not None and vcpu.machine.has_sregs2
    sregs: Any = s.Sregs2() if with_pdptes else s.Sregs()
    for name, field in SEGMENTS.items():
        _put_segment(getattr(sregs, field), getattr(state, name))
    sregs.gdt.base, sregs.gdt.limit = state.gdtr.base, state.gdtr.limit
    sregs.idt.base, sregs.idt.limit = state.idtr.base, state.idtr.limit
    sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4, sregs.efer = state.cr0, state.cr2, state.cr3, state.cr4, state.efer
    sregs.cr8, sregs.apic_base = vcpu.tpr, vcpu.apic_base
    if with_pdptes:
        sregs.flags = s.Sregs2.PDPTRS_VALID
        for n, entry in enumerate(pdptes or ()):
            sregs.pdptrs[n] = entry
        vcpu.kvm.set_sregs2(sregs)
    else:
        vcpu.kvm.set_sregs(sregs)
    vcpu.kvm.set_regs(regs)


def save(vcpu: KvmVcpu) -> VcpuState:
    """Everything but the local APIC. The virtual CPU stands between two instructions.

    A fault that KVM has found and not delivered yet is left out: the instruction raises it again.
    """
    kvm, machine = vcpu.kvm, vcpu.machine
    state, pdptes = registers(vcpu)
    debug, events, area = kvm.debugregs(), kvm.events(), kvm.xsave()
    present = int.from_bytes(area[XSTATE_BV : XSTATE_BV + 8], "little")
    ymm = area[YMM : YMM + 256] if present & AVX and "avx" in vcpu.features else b""
    pkru = 0
    if present & PKRU and "pku" in vcpu.features:
        pkru = int.from_bytes(area[machine.pkru_offset : machine.pkru_offset + 4], "little")
    interrupt = int(events.interrupt.nr) if events.interrupt.injected and not events.interrupt.soft else None
    return VcpuState(
        state, pdptes=pdptes,
        debug=(int(debug.db[0]), int(debug.db[1]), int(debug.db[2]), int(debug.db[3])),
        dr6=int(debug.dr6), dr7=int(debug.dr7), xcr0=kvm.xcr0() if "xsave" in vcpu.features else 1,
        fxsave=area[:464] + bytes(48), ymm_high=ymm if any(ymm) else b"", pkru=pkru,
        msrs=kvm.msrs([*vcpu.msr_indexes, TSC]),
        interrupt_shadow=int(events.interrupt.shadow),
        nmi_pending=bool(events.nmi.pending or events.nmi.injected or vcpu.nmi_requested),
        nmi_blocked=bool(events.nmi.masked and not events.nmi.injected),
        halted=vcpu.halted, pending_interrupt=interrupt,
    )  # fmt: skip


def load(vcpu: KvmVcpu, state: VcpuState) -> None:
    """Go on from `state`. ValueError names what this virtual CPU does not have."""
    kvm = vcpu.kvm
    if state.fxsave and len(state.fxsave) != LEGACY:
        raise ValueError(f"fxsave: {len(state.fxsave)} bytes; an FXSAVE image has {LEGACY}")
    if any(state.ymm_high) and "avx" not in vcpu.features:
        raise ValueError("ymm_high: this processor has no AVX")
    kept = {*vcpu.msr_indexes, TSC}
    unknown = sorted(set(state.msrs) - kept - {MISC_ENABLE})
    if any(state.msrs[index] for index in unknown):
        raise ValueError(f"msrs: this processor does not keep {', '.join(f'{index:#x}' for index in unknown)}")
    try:
        put_registers(vcpu, state.registers, state.pdptes)
    except OSError as error:
        r = state.registers
        raise ValueError(f"registers: KVM here refuses CR0 {r.cr0:#x}, CR4 {r.cr4:#x} or EFER {r.efer:#x}: a feature that "
                         "it does not have is in use") from error  # fmt: skip
    debug = s.Debugregs(dr6=state.dr6, dr7=state.dr7)
    for n, address in enumerate(state.debug):
        debug.db[n] = address
    kvm.set_debugregs(debug)
    if "xsave" in vcpu.features:
        kvm.set_xcr0(state.xcr0)
    kvm.set_xsave(_area(vcpu, state))
    put_msrs(vcpu, {index: value for index, value in state.msrs.items() if index in kept})
    events = s.VcpuEvents(flags=s.VcpuEvents.VALID_NMI_PENDING | s.VcpuEvents.VALID_SHADOW)
    events.interrupt.shadow = state.interrupt_shadow
    events.nmi.pending, events.nmi.masked = state.nmi_pending, state.nmi_blocked
    if state.pending_interrupt is not None:
        events.interrupt.injected, events.interrupt.nr = 1, state.pending_interrupt
    kvm.set_events(events)


def reset(vcpu: KvmVcpu, state: CpuState) -> None:
    """After INIT: registers, debug registers; nothing is pending or blocked."""
    put_registers(vcpu, state)
    vcpu.kvm.set_debugregs(s.Debugregs(dr6=0xFFFF0FF0, dr7=0x400))
    vcpu.kvm.set_events(s.VcpuEvents(flags=s.VcpuEvents.VALID_NMI_PENDING | s.VcpuEvents.VALID_SHADOW))
    vcpu.kvm.set_msrs({APIC_BASE: vcpu.apic_base})


def put_msrs(vcpu: KvmVcpu, values: dict[int, int]) -> None:
    """Set them. ValueError names the first that KVM refuses."""
    done = vcpu.kvm.set_msrs(values) if values else 0
    if done < len(values):
        index = list(values)[done]
        raise ValueError(f"msrs: KVM refuses {values[index]:#x} for {index:#x}")


def _area(vcpu: KvmVcpu, state: VcpuState) -> bytes:
    area = bytearray((state.fxsave or EMPTY).ljust(4096, b"\0"))
    present = X87_SSE
    if any(state.ymm_high):
        area[YMM : YMM + 256] = state.ymm_high
        present |= AVX
    if "pku" in vcpu.features:
        area[vcpu.machine.pkru_offset : vcpu.machine.pkru_offset + 4] = state.pkru.to_bytes(4, "little")
        present |= PKRU
    area[XSTATE_BV : XSTATE_BV + 8] = present.to_bytes(8, "little")
    return bytes(area)
