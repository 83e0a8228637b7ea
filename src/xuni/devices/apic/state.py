"""Local APIC: register numbers, field masks, and the record that a snapshot carries.

Spec: Intel SDM vol. 3A, chapter "Advanced Programmable Interrupt Controller (APIC)".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final


class Reg(IntEnum):
    """Register numbers: MMIO offset >> 4, and x2APIC MSR - 0x800."""

    ID = 0x02
    VERSION = 0x03
    TPR = 0x08
    APR = 0x09
    PPR = 0x0A
    EOI = 0x0B
    REMOTE_READ = 0x0C
    LDR = 0x0D
    DFR = 0x0E
    SVR = 0x0F
    ISR = 0x10
    TMR = 0x18
    IRR = 0x20
    ESR = 0x28
    CMCI = 0x2F
    ICR = 0x30
    ICR_HIGH = 0x31
    LVT_TIMER = 0x32
    LVT_THERMAL = 0x33
    LVT_PERFORMANCE = 0x34
    LVT_LINT0 = 0x35
    LVT_LINT1 = 0x36
    LVT_ERROR = 0x37
    INITIAL_COUNT = 0x38
    CURRENT_COUNT = 0x39
    DIVIDE = 0x3E
    SELF_IPI = 0x3F


MSR_APIC_BASE: Final = 0x1B
MSR_TSC_DEADLINE: Final = 0x6E0
MSR_X2APIC: Final = 0x800
MSR_X2APIC_END: Final = 0x900

DEFAULT_BASE: Final = 0xFEE0_0000
PAGE: Final = 0x1000


# Bits are plain numbers and not members of enums: every timer tick and inter-processor interrupt passes here.
BASE_BSP, BASE_X2APIC, BASE_ENABLE = 1 << 8, 1 << 10, 1 << 11  # IA32_APIC_BASE beside the address
ESR_SEND_ILLEGAL_VECTOR, ESR_RECEIVE_ILLEGAL_VECTOR, ESR_ILLEGAL_REGISTER = 1 << 5, 1 << 6, 1 << 7
LVT_PENDING, LVT_ACTIVE_LOW, LVT_REMOTE_IRR, LVT_LEVEL, LVT_MASKED = (1 << bit for bit in range(12, 17))
ONE_SHOT, PERIODIC, TSC_DEADLINE = 0, 1, 2  # timer mode, bits 18:17 of its LVT entry; 3 is reserved
SVR_ENABLE: Final = 0x100
ICR_PENDING: Final = 1 << 12
ALL: Final = 0xFFFF_FFFF

LVT_WRITABLE: Final[dict[int, int]] = {
    Reg.LVT_TIMER: 0x7_00FF,
    Reg.LVT_THERMAL: 0x1_07FF,
    Reg.LVT_PERFORMANCE: 0x1_07FF,
    Reg.LVT_LINT0: 0x1_A7FF,
    Reg.LVT_LINT1: 0x1_A7FF,
    Reg.LVT_ERROR: 0x1_00FF,
}
"""Bits of each entry that software writes; delivery status and remote IRR are read-only."""

X2APIC_WRITABLE: Final[dict[int, int]] = {
    Reg.TPR: 0xFF,
    Reg.EOI: 0,
    Reg.SVR: 0x03FF,
    Reg.ESR: 0,
    Reg.ICR: 0xFFFF_FFFF_000C_DFFF,
    **{reg: mask | LVT_PENDING | LVT_REMOTE_IRR for reg, mask in LVT_WRITABLE.items()},
    Reg.INITIAL_COUNT: ALL,
    Reg.DIVIDE: 0b1011,
    Reg.SELF_IPI: 0xFF,
}
"""Registers that WRMSR reaches, with the bits that are not reserved; any other bit or register is #GP(0)."""

X2APIC_READABLE: Final[frozenset[int]] = frozenset(
    {Reg.ID, Reg.VERSION, Reg.TPR, Reg.PPR, Reg.LDR, Reg.SVR, Reg.ESR, Reg.ICR, Reg.INITIAL_COUNT, Reg.CURRENT_COUNT}
    | {Reg.DIVIDE}
    | set(LVT_WRITABLE)
    | {block + i for block in (Reg.ISR, Reg.TMR, Reg.IRR) for i in range(8)}
)


@dataclass(frozen=True, slots=True)
class LocalApicConfig:
    """Every processor's local APIC."""

    bus_hz: int = 1_000_000_000
    """Input clock of the timer in hertz, before its divider."""
    x2apic: bool = True
    """IA32_APIC_BASE.EXTD can be set (CPUID.1:ECX[21])."""
    tsc_deadline: bool = True
    """The timer has its third mode (CPUID.1:ECX[24])."""
    physical_address_bits: int = 40
    """Width of the base address (CPUID.80000008H:EAX[7:0]); bits above are reserved."""


@dataclass(slots=True)
class LocalApicState:
    """Registers. The 256-bit ones are one integer each, bit n for vector n; PPR and the INTR pin follow from them."""

    base: int = DEFAULT_BASE | BASE_ENABLE
    xapic_id: int | None = None
    """What the guest wrote to the id register in xAPIC mode; None: nothing, it shows the initial id."""
    tpr: int = 0
    irr: int = 0
    isr: int = 0
    tmr: int = 0
    ldr: int = 0
    dfr: int = ALL
    svr: int = 0xFF
    errors: int = 0
    """Errors since the last write to ESR; `esr` is what that write showed."""
    esr: int = 0
    icr: int = 0
    lvt: dict[int, int] = field(default_factory=lambda: dict.fromkeys(LVT_WRITABLE, LVT_MASKED))
    lint: list[bool] = field(default_factory=lambda: [False, False])
    """Levels of the LINT0 (legacy controller) and LINT1 (NMI) inputs."""
    divide: int = 0
    initial_count: int = 0
    timer_start: int = 0
    """Guest ns at which the initial count was written, or the current period began."""
    ran_out: bool = False
    """The timer's count reached 0 in one-shot mode, and the mode became another since: it stands still."""
    tsc_deadline: int = 0
    waiting_for_sipi: bool = False
