"""What far transfers and events do with stacks, EFLAGS and RIP: pieces that transfer, interrupt and task share.

The stack of another privilege level is described by base, limit and attributes that are not loaded yet, so that a fault
leaves no trace.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xuni.isa.bits import U64, Bits, select, u64
from xuni.isa.stage import native, staged
from xuni.isa.x86.exceptions import GuestFault, Vector
from xuni.isa.x86.segment import is_64bit, is_canonical, is_ia32e, selector_fault, within_limit
from xuni.isa.x86.state import ARITHMETIC, Attr, Eflags, Gpr, Seg

if TYPE_CHECKING:
    from xuni.isa.x86.cpu import Cpu

EFLAGS_KNOWN: Final = 0x3F7FD7  # every flag there is, and bit 1
NO_TRAP: Final = 1 << 63  # in `State.pending_debug`: the instruction that ends now makes no single-step trap
TSS32: Final = 8  # the bit of a TSS or gate type that tells 32-bit (or 64-bit) from 16-bit


# -- EFLAGS ------------------------------------------------------------------------------------------------------------
@staged
def eflags_image(cpu: Cpu) -> Bits:
    """EFLAGS with all flags, 64 bits wide."""
    return cpu.s.eflags | cpu.flags.value


@staged
def set_eflags(cpu: Cpu, value: Bits) -> None:
    """Load all of EFLAGS; reserved bits are set as they must be."""
    cpu.flags.set_all(value)
    cpu.s.eflags = (value & (EFLAGS_KNOWN & ~ARITHMETIC)) | Eflags.FIXED


@staged
def cancel_trap(cpu: Cpu) -> None:
    """Software interrupts and fast system calls clear TF, and the trap after them with it."""
    s = cpu.s
    if (s.eflags & Eflags.TF) != 0:
        s.pending_debug = s.pending_debug | NO_TRAP


@staged
def arrive(cpu: Cpu, rip: Bits) -> None:
    """The end of every transfer that may have changed mode or privilege: the next instruction is at `rip`."""
    cpu.s.rip = rip
    cpu.commit()
    cpu.mode_changed()


# -- pushing and popping -----------------------------------------------------------------------------------------------
@staged
def sp_mask(attr: Bits) -> Bits:
    """The bits of RSP that address a stack segment outside 64-bit mode."""
    return select((attr & Attr.DB) != 0, u64(0xFFFFFFFF), u64(0xFFFF))


@native
def push_onto(cpu: Cpu, base: U64, limit: U64, attr: U64, rsp: U64, value: U64, error: U64, size: int,
              system: bool) -> U64:  # fmt: skip
    """Push `size` bytes on a stack outside 64-bit mode: RSP after it, or #SS(error)."""
    mask = sp_mask(attr)
    at = (rsp - size) & mask
    if ~within_limit(cpu, attr, limit, at, u64(size)):
        raise GuestFault(cpu, Vector.SS, error)
    cpu.store_linear((base + at) & 0xFFFFFFFF, value.trunc(8 * size), system=system)
    return at | (rsp & ~mask)


@staged
def push_same(cpu: Cpu, rsp: Bits, value: Bits, error: Bits, size: int) -> Bits:
    """Push on the present stack outside 64-bit mode, without changing RSP: RSP after it."""
    s = cpu.s
    limit, attr = s.seg_limit[Seg.SS].zext(64), s.seg_attr[Seg.SS].zext(64)
    return push_onto(cpu, s.seg_base[Seg.SS], limit, attr, rsp, value, error, size, False)


@native
def push_current(cpu: Cpu, rsp: U64, value: U64, error: U64, size: int) -> U64:
    """Push on the present stack in whatever mode the processor is, without changing RSP: RSP after it."""
    if is_64bit(cpu):
        at = rsp - size
        if ~is_canonical(cpu, at) | ~is_canonical(cpu, at + (size - 1)):
            raise GuestFault(cpu, Vector.SS, error)
        cpu.store_linear(at, value.trunc(8 * size), system=False)
        return at
    return push_same(cpu, rsp, value, error, size)


@native
def push_long(cpu: Cpu, rsp: U64, value: U64, error: U64, system: bool) -> U64:
    """Push 8 bytes in 64-bit mode: RSP after it, or #SS(error)."""
    at = rsp - 8
    if ~is_canonical(cpu, at) | ~is_canonical(cpu, at + 7):
        raise GuestFault(cpu, Vector.SS, error)
    cpu.store_linear(at, value, system=system)
    return at


# -- the TSS and the stacks in it --------------------------------------------------------------------------------------
@native
def tss_stack(cpu: Cpu, level: U64, ext: U64) -> tuple[U64, U64]:
    """(ESP, SS) for a privilege level from the current 16- or 32-bit TSS (7.2.1); #TS(TR) beyond its limit."""
    s = cpu.s
    wide = (s.seg_attr[Seg.TR] & TSS32) != 0
    at = select(wide, (level << 3) + 4, (level << 2) + 2)
    last = at + select(wide, u64(5), u64(3))
    if last > s.seg_limit[Seg.TR].zext(64):
        selector_fault(cpu, u64(Vector.TS), s.seg_selector[Seg.TR].zext(64), ext)
    at = s.seg_base[Seg.TR] + at
    if wide:
        return cpu.load_linear(at, 32).zext(64), cpu.load_linear(at + 4, 16).zext(64)
    return cpu.load_linear(at, 16).zext(64), cpu.load_linear(at + 2, 16).zext(64)


@native
def tss_rsp(cpu: Cpu, at: U64, ext: U64) -> U64:
    """A stack pointer from the 64-bit TSS (7.7) at byte `at`; #TS(TR) beyond its limit."""
    s = cpu.s
    if at + 7 > s.seg_limit[Seg.TR].zext(64):
        selector_fault(cpu, u64(Vector.TS), s.seg_selector[Seg.TR].zext(64), ext)
    return cpu.load_linear(s.seg_base[Seg.TR] + at, 64)


@staged
def set_rsp(cpu: Cpu, value: Bits) -> None:
    """RSP, all of it."""
    cpu.s.gpr[Gpr.RSP] = value


# -- code segments -----------------------------------------------------------------------------------------------------
@staged
def check_code_target(cpu: Cpu, attr: Bits, limit: Bits, rip: Bits, error: Bits) -> None:
    """#GP(error) unless `rip` can be executed in a code segment with these attributes."""
    if is_ia32e(cpu) & ((attr & Attr.L) != 0):
        if ~is_canonical(cpu, rip):
            raise GuestFault(cpu, Vector.GP, error)
    elif rip > limit:
        raise GuestFault(cpu, Vector.GP, error)


