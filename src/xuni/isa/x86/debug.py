"""Breakpoints of the debug registers, SDM vol. 3, chapter 17.

While one is enabled the engine runs one instruction at a time and asks `code_breakpoint` before each; accesses note what
they hit in `s.pending_debug`, and the trap comes after the instruction.
"""

from __future__ import annotations

from typing import Final

from xuni.isa.bits import U1, U64, select, u64
from xuni.isa.stage import native, staged, unlikely
from xuni.isa.x86.cpu import Cpu
from xuni.isa.x86.exceptions import GuestFault, Vector
from xuni.isa.x86.state import Cr4, Eflags

ENABLES: Final = 0xFF  # DR7: L0 G0 ... L3 G3
EXECUTE, WRITE, PORT, ACCESS = range(4)  # DR7.R/W


@native
def matches(cpu: Cpu, linear: U64, size: U64, kinds: U64) -> U64:
    """The DR6 bits of the enabled breakpoints that an access hits; `kinds` is a set of DR7.R/W values (17.2.5)."""
    s = cpu.s
    control = s.dr[7]
    hit = u64(0)
    for n in range(4):
        enabled = (control >> (2 * n) & 3) != 0
        kind = control >> (16 + 4 * n) & 3
        code = control >> (18 + 4 * n) & 3
        length = select(code == 2, u64(8), code + 1)
        start = s.dr[n] & ~(length - 1)
        match = enabled & kinds.bit(kind) & (start < linear + size) & (linear < start + length)
        hit = hit | match.zext(64) << n
    return hit


@native
def code_breakpoint(cpu: Cpu, linear: U64) -> None:
    """#DB (a fault) if an instruction breakpoint is at this linear address and EFLAGS.RF does not hold it back."""
    s = cpu.s
    if (s.eflags & Eflags.RF) == 0:
        hit = matches(cpu, linear, u64(1), u64(1 << EXECUTE))
        if hit != 0:
            s.dr[6] = (s.dr[6] & ~u64(0xF)) | hit
            raise GuestFault(cpu, Vector.DB)


@native
def note_data(cpu: Cpu, linear: U64, size: U64, write: U1) -> None:
    """Remember the data breakpoints that an access hits."""
    kinds = select(write, u64(1 << WRITE | 1 << ACCESS), u64(1 << ACCESS))
    cpu.s.pending_debug = cpu.s.pending_debug | matches(cpu, linear, size, kinds)


@staged
def note_port(cpu: Cpu, port: U64, size: U64) -> None:
    """Remember the I/O breakpoints that a port access hits (CR4.DE)."""
    s = cpu.s
    if unlikely(((s.dr[7] & ENABLES) != 0) & ((s.cr4 & Cr4.DE) != 0)):
        s.pending_debug = s.pending_debug | matches(cpu, port, size, u64(1 << PORT))
