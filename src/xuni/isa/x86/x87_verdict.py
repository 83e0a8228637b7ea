"""What follows an x87 computation: flags into the status word, and whether the result may be written, SDM vol. 1, 8.5.

With all exceptions masked a result is written in place. Otherwise it waits in the scratch area until it is known which
unmasked exceptions were raised: those found before computing (IE, DE, ZE) leave the destination alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from xuni.isa import softfloat
from xuni.isa.bits import U8, U16, Bits, const, select, u16, u64
from xuni.isa.softfloat import Flag
from xuni.isa.stage import likely, native, staged, staging
from xuni.isa.x86 import x87_fp as fp
from xuni.isa.x86 import x87_stack as stack
from xuni.isa.x86.x87_stack import C1, FLAGS, SCRATCH

if TYPE_CHECKING:
    from xuni.isa.x86.cpu import Cpu

BEFORE = int(softfloat.BEFORE)
SCALED = int(Flag.OE | Flag.UE)


@staged
def compute(cpu: Cpu, result: Bits, action: Callable[[Bits], Bits], clears: int = C1,
            scaled: Callable[[Bits, Bits], Bits] | None = None, blocks: int = BEFORE) -> Bits:  # fmt: skip
    """Run `action(where)`, which leaves an 80-bit value there and gives what it raised; whether the result was written.

    `clears` are condition codes that the action sets, `blocks` the exceptions that prevent the write. `scaled(where,
    up)` is for compiled code: it computes the result of an unmasked overflow or underflow (`up`), which a host with
    masked exceptions does not give.
    """
    if likely(stack.is_masked(cpu)):
        raised = action(result)
        cpu.s.fpu_status = cpu.s.fpu_status & ~clears | raised
        return const(1, 1)
    fp.clear_host(cpu)
    waiting = u64(SCRATCH)
    raised = action(waiting)
    fp.clear_host(cpu)
    if staging() is not None:
        raised = raised | select(fp.is_tiny(cpu, waiting), u16(int(Flag.UE)), u16(0)) & ~cpu.s.fpu_control
        if scaled is not None:
            if (raised & ~cpu.s.fpu_control & SCALED) != 0:
                rounded = scaled(waiting, (raised & int(Flag.UE)) != 0)
                raised = raised & ~(int(Flag.PE) | C1) | rounded & (int(Flag.PE) | C1)
    written = settle(cpu, raised, blocks, clears)
    if written:
        cpu.s.place.store(result, cpu.s.place.load(waiting, 64, 2))
    return written


@staged
def judge(cpu: Cpu, raised: Bits, blocks: int = BEFORE, clears: int = C1) -> Bits:
    """The same for what has been computed already and is not written yet; `blocks`: exceptions that prevent it."""
    if likely(stack.is_masked(cpu)):
        cpu.s.fpu_status = cpu.s.fpu_status & ~clears | raised
        return const(1, 1)
    fp.clear_host(cpu)
    return settle(cpu, raised, blocks, clears)


def settle(cpu: Cpu, raised: Bits, blocks: int, clears: int) -> Bits:
    return _settle(cpu, raised, u16(blocks), u16(clears)) == 1


@native
def _settle(cpu: Cpu, raised: U16, blocks: U16, clears: U16) -> U8:
    """Flags and summary of an operation while some exceptions are unmasked; 1 if its result stands."""
    unmasked = ~cpu.s.fpu_control
    before = (raised & unmasked & BEFORE) != 0
    # An exception found before computing leaves no room for those found after.
    flags = select(before, raised & BEFORE, raised & FLAGS)
    stands = (flags & unmasked & blocks) == 0
    codes = select(before, raised & (clears & ~C1), raised & clears)
    cpu.s.fpu_status = stack.with_summary(cpu.s.fpu_status & ~clears | flags | codes, cpu.s.fpu_control)
    return stands.zext(8)
