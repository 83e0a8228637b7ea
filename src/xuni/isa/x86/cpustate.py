"""The architectural state of a CPU as a plain record that every engine takes and gives.

`CpuState` is what a boot loader decides; everything else has its value after reset or INIT (SDM vol. 3A, table 10-1).
`VcpuState` is all there is: a processor stopped on one engine goes on from it on another. Addresses, bases and limits
are in bytes; limits are expanded, with G already applied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntFlag
from typing import Final


class Cr0(IntFlag):
    """SDM vol. 3A, section 2.5."""

    PE, MP, EM, TS, ET, NE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5
    WP, AM, NW, CD, PG = 1 << 16, 1 << 18, 1 << 29, 1 << 30, 1 << 31


CR4_PAE: Final = 1 << 5
EFER_LME: Final = 1 << 8
EFER_LMA: Final = 1 << 10
RFLAGS_FIXED: Final = 1 << 1
"""Bit 1 of RFLAGS reads as one always."""

FLAT_LIMIT: Final = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment register with its hidden part, named as in the descriptor (SDM vol. 3A, section 3.4.5)."""

    selector: int
    base: int
    limit: int
    type: int
    """Bits 40-43. Code and data: 1 accessed, 2 readable or writable, 4 conforming or expand-down, 8 code."""
    s: int = 1
    """1: code or data, 0: system."""
    dpl: int = 0
    p: int = 1
    """0: the register holds the null selector and cannot be used."""
    avl: int = 0
    l: int = 0
    db: int = 0
    g: int = 0

    @property
    def attributes(self) -> int:
        """The flags as bits 40-47 and 52-55 of a descriptor, moved down to bits 0-7 and 12-15 (VMX access rights)."""
        low = self.type | self.s << 4 | self.dpl << 5 | self.p << 7
        return low | self.avl << 12 | self.l << 13 | self.db << 14 | self.g << 15

    def descriptor(self) -> int:
        """The 8 bytes that a descriptor table holds for this segment."""
        limit = self.limit >> 12 if self.g else self.limit
        return (
            limit & 0xFFFF
            | (self.base & 0xFF_FFFF) << 16
            | (self.attributes & 0xFF) << 40
            | (limit >> 16 & 0xF) << 48
            | (self.attributes >> 12) << 52
            | (self.base >> 24 & 0xFF) << 56
        )


@dataclass(frozen=True, slots=True)
class TableRegister:
    """GDTR or IDTR."""

    base: int = 0
    limit: int = 0xFFFF


def code32(selector: int) -> Segment:
    """Flat 4 GiB 32-bit code, execute and read, accessed, ring 0."""
    return Segment(selector, 0, FLAT_LIMIT, type=0xB, db=1, g=1)


def code64(selector: int) -> Segment:
    """64-bit code, ring 0."""
    return Segment(selector, 0, FLAT_LIMIT, type=0xB, l=1, g=1)


def data32(selector: int) -> Segment:
    """Flat 4 GiB data, read and write, accessed, ring 0."""
    return Segment(selector, 0, FLAT_LIMIT, type=0x3, db=1, g=1)


def code16(selector: int, base: int) -> Segment:
    """64 KiB of real-mode code at `base`."""
    return Segment(selector, base, 0xFFFF, type=0xB)


def data16(selector: int) -> Segment:
    """64 KiB of real-mode data at 16 times the selector."""
    return Segment(selector, selector << 4, 0xFFFF, type=0x3)


DATA_AT_RESET: Final = data16(0)
TASK_AT_RESET: Final = Segment(0, 0, 0xFFFF, type=0xB, s=0)
"""The busy TSS that TR holds after reset: no task switch can go there, but it is valid in every mode."""
LDT_AT_RESET: Final = Segment(0, 0, 0xFFFF, type=0x2, s=0)
TABLE_AT_RESET: Final = TableRegister()
NO_TABLE: Final = TableRegister(0, 0)


@dataclass(frozen=True, slots=True)
class CpuState:
    """General, control, segment and table registers before the first instruction."""

    rip: int
    cs: Segment
    ss: Segment = DATA_AT_RESET
    ds: Segment = DATA_AT_RESET
    es: Segment = DATA_AT_RESET
    fs: Segment = DATA_AT_RESET
    gs: Segment = DATA_AT_RESET
    rax: int = 0
    rbx: int = 0
    rcx: int = 0
    rdx: int = 0
    rsi: int = 0
    rdi: int = 0
    rsp: int = 0
    rbp: int = 0
    r8: int = 0
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0
    rflags: int = RFLAGS_FIXED
    cr0: int = int(Cr0.CD | Cr0.NW | Cr0.ET)
    cr2: int = 0
    cr3: int = 0
    cr4: int = 0
    efer: int = 0
    gdtr: TableRegister = TABLE_AT_RESET
    idtr: TableRegister = TABLE_AT_RESET
    tr: Segment = TASK_AT_RESET
    ldtr: Segment = LDT_AT_RESET


@dataclass(frozen=True, slots=True)
class VcpuState:
    """A processor between two instructions, complete but for its local APIC, which is a chip of the board."""

    registers: CpuState
    pdptes: tuple[int, int, int, int] | None = None
    """The page-directory-pointer entries that PAE paging holds in registers; None outside it."""
    debug: tuple[int, int, int, int] = (0, 0, 0, 0)
    """DR0-DR3."""
    dr6: int = 0xFFFF0FF0
    dr7: int = 0x400
    xcr0: int = 1
    fxsave: bytes = b""
    """x87 and SSE as FXSAVE64 writes them, 512 bytes (SDM vol. 1, section 10.5.1). Empty: the state after reset."""
    ymm_high: bytes = b""
    """Bits 255:128 of YMM0-YMM15, 256 bytes. Empty: zeros."""
    pkru: int = 0
    msrs: Mapping[int, int] = field(default_factory=dict)
    """Model-specific registers by index, those that the engine owns (no local APIC's; EFER is in `registers`). The TSC,
    index 10h, is its value at the moment of saving.
    """
    interrupt_shadow: int = 0
    """0: none, 1: after MOV SS or POP SS, 2: after STI (as KVM_X86_SHADOW_INT_*)."""
    nmi_pending: bool = False
    nmi_blocked: bool = False
    """Until IRET: an NMI's handler runs."""
    halted: bool = False
    """In HLT, waiting for an interrupt."""
    pending_interrupt: int | None = None
    """An external interrupt's vector that was acknowledged at its controller and is not delivered yet."""


def at_reset(processor_signature: int = 0x600) -> CpuState:
    """The first instruction after RESET: F000:FFF0 with the base just below 4 GiB (SDM vol. 3A, section 10.1.4).

    `processor_signature` is what CPUID leaf 1 gives in EAX.
    """
    return CpuState(rip=0xFFF0, cs=code16(0xF000, 0xFFFF_0000), rdx=processor_signature)


def real_mode(segment: int, offset: int) -> CpuState:
    """Real mode at `segment`:`offset`, caches on; the data segments are 0 and SP is 0."""
    return CpuState(rip=offset, cs=code16(segment, segment << 4), cr0=int(Cr0.ET))


def protected_flat(
    entry: int,
    *,
    gdtr: TableRegister = NO_TABLE,
    code: int = 0x8,
    data: int = 0x10,
    rax: int = 0,
    rbx: int = 0,
    rsi: int = 0,
    rsp: int = 0,
) -> CpuState:
    """32-bit protected mode, paging off, flat segments with the given selectors, interrupts off.

    What multiboot (section 3.2), PVH (docs/misc/pvh.pandoc) and Linux's 32-bit boot protocol ask for.
    """
    flat = data32(data)
    return CpuState(
        rip=entry,
        cs=code32(code),
        ss=flat, ds=flat, es=flat, fs=flat, gs=flat,
        cr0=int(Cr0.PE | Cr0.ET),
        gdtr=gdtr,
        idtr=NO_TABLE,
        rax=rax, rbx=rbx, rsi=rsi, rsp=rsp,
    )  # fmt: skip


def long_flat(
    entry: int, cr3: int, *, gdtr: TableRegister, code: int = 0x10, data: int = 0x18, rsi: int = 0, rsp: int = 0
) -> CpuState:
    """64-bit mode with paging through `cr3`, interrupts off (Documentation/arch/x86/boot.rst, 64-bit boot protocol)."""
    flat = data32(data)
    return CpuState(
        rip=entry,
        cs=code64(code),
        ss=flat, ds=flat, es=flat, fs=flat, gs=flat,
        cr0=int(Cr0.PE | Cr0.ET | Cr0.NE | Cr0.PG),
        cr3=cr3,
        cr4=CR4_PAE,
        efer=EFER_LME | EFER_LMA,
        gdtr=gdtr,
        idtr=NO_TABLE,
        rsi=rsi, rsp=rsp,
    )  # fmt: skip
