"""The host's debugger: breakpoints and watchpoints that the guest cannot see.

A breakpoint is found by the decoder: an instruction at its offset in any page gets an Op before it that asks. So one at a
linear address works before that is mapped, and whatever page is behind it; nothing else becomes slower. A watchpoint
makes every access go out of line, one instruction at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xuni.engine.soft.records import OFFSET, Mode, Watch
from xuni.isa.bits import U1, U64, Bits, select, u1
from xuni.isa.stage import native, staged
from xuni.isa.x86.exceptions import Leave
from xuni.isa.x86.state import ExitKind, Seg

if TYPE_CHECKING:
    from xuni.engine.soft.cpu import SoftCpu


@staged
def may_break(cpu: SoftCpu, offset: Bits) -> Bits:
    """Whether a breakpoint of any processor has this offset in its page, width 1."""
    return cpu.at(cpu.arena.breakpoints).load((offset & OFFSET) >> 6 << 3, 64).bit(offset & 63)


@native
def is_breakpoint(cpu: SoftCpu, linear: U64) -> U1:
    """Whether a breakpoint is at a linear address."""
    s = cpu.s
    at = s.breakpoints
    end = at + (s.breakpoint_count << 3)
    found = u1(0)
    while (at < end) & ~found:
        found = cpu.at(at).load(0, 64) == linear
        at = at + 8
    return found


@native
def ask(cpu: SoftCpu) -> None:
    """Leave to the machine if a breakpoint is at the present instruction, unless it has just been reported."""
    s = cpu.s
    linear = s.rip_base + cpu.op.offset.zext(64)
    linear = select((s.mode & Mode.SIZE) == 2, linear, (linear + s.seg_base[int(Seg.CS)]) & 0xFFFFFFFF)
    if is_breakpoint(cpu, linear):
        reported = s.passed == linear + 1
        s.passed = 0
        if ~reported:
            s.exit_kind = int(ExitKind.BREAKPOINT)
            s.exit_address = linear
            raise Leave()


@native
def note_access(cpu: SoftCpu, linear: U64, size: U64, write: U64) -> None:
    """Remember the first watched access of an instruction."""
    s = cpu.s
    at = s.watches
    end = at + s.watch_count * Watch.SIZE
    while at < end:
        watch = cpu.struct(Watch, at)
        touches = (linear < watch.start + watch.length) & (watch.start < linear + size)
        if touches & ((write != 0) | (watch.reads != 0)) & (s.watch_hit == 0):
            s.watch_hit = watch.start + 1
        at = at + Watch.SIZE
