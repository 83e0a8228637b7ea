"""Debug exceptions, SDM vol. 3, chapter 17: breakpoints that DR7 enables, DR6, and traps after an instruction.

The engine runs one instruction at a time while `needs_step` says so. Before each it asks `code_breakpoint`; data
accesses and task switches note their DR6 bits in `s.pending_debug`; after it `trap_due` says which trap to deliver.
"""

from __future__ import annotations

from typing import Final

from xuni.isa.bits import U1, U64, select, u1, u64
from xuni.isa.stage import native
from xuni.isa.x86.control import DR6_FIXED
from xuni.isa.x86.cpu import Cpu
from xuni.isa.x86.exceptions import GuestFault, Vector
from xuni.isa.x86.state import Eflags

DR6_BS: Final = 1 << 14
ENABLES: Final = 0xFF  # DR7: L0 G0 ... L3 G3
EXECUTE, WRITE, PORT, ACCESS = range(4)  # DR7.R/W
CR4_DE: Final = 1 << 3


@native
def needs_step(cpu: Cpu) -> U1:
    """Whether instructions must run one at a time: single-step, or an enabled breakpoint."""
    s = cpu.s
    return ((s.eflags & Eflags.TF) != 0) | ((s.dr[7] & ENABLES) != 0) | (s.pending_debug != 0)


@native
def matches(cpu: Cpu, linear: U64, size: U64, kinds: U64) -> U64:
    """The DR6 bits of the breakpoints that an access hits; `kinds` is a set of DR7.R/W values (17.2.4, 17.2.5).

    DR6 also reports breakpoints that match but are not enabled; only an enabled one makes an exception.
    """
    s = cpu.s
    control = s.dr[7]
    hit, enabled = u64(0), u1(0)
    for n in range(4):
        kind = control >> (16 + 4 * n) & 3
        code = control >> (18 + 4 * n) & 3
        length = select(code == 2, u64(8), code + 1)
        start = s.dr[n] & ~(length - 1)
        match = kinds.bit(kind) & (start < linear + size) & (linear < start + length)
        hit = hit | match.zext(64) << n
        enabled = enabled | (match & ((control >> (2 * n) & 3) != 0))
    return select(enabled, hit, u64(0))


@native
def code_breakpoint(cpu: Cpu, linear: U64) -> None:
    """#DB (a fault) if an instruction breakpoint is at this linear address and EFLAGS.RF does not hold it back."""
    s = cpu.s
    if (s.eflags & Eflags.RF) == 0:
        hit = matches(cpu, linear, u64(1), u64(1 << EXECUTE))
        if hit != 0:
            s.dr[6] = (s.dr[6] & ~u64(0xF)) | hit | DR6_FIXED
            raise GuestFault(cpu, Vector.DB)


@native
def note_data(cpu: Cpu, linear: U64, size: U64, write: U1) -> None:
    """Remember the data breakpoints that an access hits; the trap comes after the instruction."""
    kinds = select(write, u64(1 << WRITE | 1 << ACCESS), u64(1 << ACCESS))
    cpu.s.pending_debug = cpu.s.pending_debug | matches(cpu, linear, size, kinds)


@native
def note_port(cpu: Cpu, port: U64, size: U64) -> None:
    """Remember the I/O breakpoints that a port access hits (CR4.DE)."""
    if (cpu.s.cr4 & CR4_DE) != 0:
        cpu.s.pending_debug = cpu.s.pending_debug | matches(cpu, port, size, u64(1 << PORT))


@native
def trap_due(cpu: Cpu, stepping: U1) -> U1:
    """Whether a #DB trap is due after an instruction; DR6 is then composed.

    `stepping`: TF was set when the instruction began. Not called while MOV SS or POP SS hold traps back: what is
    pending waits.
    """
    s = cpu.s
    due = s.pending_debug | select(stepping, u64(DR6_BS), u64(0))
    if due == 0:
        return u1(0)
    s.pending_debug = 0
    s.dr[6] = (s.dr[6] & ~u64(0xF)) | due | DR6_FIXED
    return u1(1)
