"""Task switches through a TSS: what JMP, CALL, an event and IRET do with one, SDM vol. 3, chapter 7.

    16-bit TSS, bytes:   0 link   14 IP   16 FLAGS    18 AX CX DX BX SP BP SI DI      34 ES CS SS DS         42 LDT
    32-bit TSS:          0 link   32 EIP  36 EFLAGS   40 EAX ... EDI                  72 ES CS SS DS FS GS   96 LDT
                         28 CR3                                                       100 T (bit 0), 102 I/O map base
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final

from xuni.isa.bits import U64, Bits, const, select, u8, u64
from xuni.isa.stage import native, staged
from xuni.isa.x86.control import load_cr3
from xuni.isa.x86.exceptions import GuestFault, Vector
from xuni.isa.x86.frames import TSS32, set_eflags
from xuni.isa.x86.segment import (
    CONFORMING,
    EXECUTABLE,
    UNUSABLE,
    attributes,
    base_of,
    dpl_of,
    fetch_descriptor,
    limit_of,
    load_data_segment,
    mark_accessed,
    selector_fault,
    set_null,
    set_real,
    set_segment,
    stack_descriptor,
)
from xuni.isa.x86.state import Attr, Cr0, Eflags, Seg

if TYPE_CHECKING:
    from xuni.isa.x86.cpu import Cpu


class Switch(IntEnum):
    """What switches tasks: it decides about busy flags, NT and the link (table 7-2)."""

    JUMP, CALL, INTERRUPT, IRET = range(4)


BUSY: Final = 2  # bit of a TSS descriptor's type
LOCAL_ENABLES: Final = 0x155  # DR7.L0-L3 and LE
TASK_TRAP: Final = 1 << 15  # DR6.BT
_IP: Final = {16: 14, 32: 32}
_SEGMENTS: Final = {16: 34, 32: 72}
_LDT: Final = {16: 42, 32: 96}
_SEGMENT_COUNT: Final = {16: 4, 32: 6}


@native
def switch_task(cpu: Cpu, selector: U64, how: U64, rip: U64, flags: U64, ext: U64) -> None:
    """Switch to the task of a TSS selector (`how` is a `Switch`); `rip` and `flags` are saved in the present one's TSS.

    Faults up to the switch are the present task's: #GP (#TS for IRET), #NP, #TS with the selector. Later ones are the
    new task's.
    """
    returning = how == Switch.IRET
    refused = select(returning, u64(Vector.TS), u64(Vector.GP))
    if (selector & 4) != 0:
        selector_fault(cpu, refused, selector, ext)
    address, descriptor = fetch_descriptor(cpu, selector, refused, ext)
    attr = attributes(descriptor)
    if (attr & (Attr.S | 7)) != select(returning, u64(1 | BUSY), u64(1)):
        selector_fault(cpu, refused, selector, ext)
    if (attr & Attr.P) == 0:
        selector_fault(cpu, u64(Vector.NP), selector, ext)
    wide = (attr & TSS32) != 0
    if limit_of(descriptor) < select(wide, u64(0x67), u64(0x2B)):
        selector_fault(cpu, u64(Vector.TS), selector, ext)
    if wide:
        _switch(cpu, selector, address, descriptor, how, rip, flags, ext, 32)
    else:
        _switch(cpu, selector, address, descriptor, how, rip, flags, ext, 16)


@native
def _save(cpu: Cpu, rip: U64, flags: U64, width: int) -> None:
    """Write the registers to the present task's TSS."""
    s = cpu.s
    at, step = s.seg_base[Seg.TR] + _IP[width], width // 8
    cpu.store_linear(at, rip.trunc(width))
    cpu.store_linear(at + step, flags.trunc(width))
    for n in range(8):
        cpu.store_linear(at + (2 + n) * step, cpu.reg(n, width))
    for n in range(_SEGMENT_COUNT[width]):
        cpu.store_linear(s.seg_base[Seg.TR] + (_SEGMENTS[width] + n * step), s.seg_selector[n])


@staged
def _set_busy(cpu: Cpu, address: Bits, busy: bool) -> None:
    """Set or clear the busy flag of the TSS descriptor at a linear address."""
    kind = cpu.load_linear(address + 5, 8)
    cpu.store_linear(address + 5, kind | BUSY if busy else kind & ~BUSY)


@native
def _switch(cpu: Cpu, selector: U64, address: U64, descriptor: U64, how: U64, rip: U64, flags: U64, ext: U64,
            width: int) -> None:  # fmt: skip
    s = cpu.s
    base, step = base_of(descriptor), width // 8
    # All of the new TSS is read before anything is written: these faults belong to the present task.
    at = base + _IP[width]
    new_rip = cpu.load_linear(at, width).zext(64)
    new_flags = cpu.load_linear(at + step, width).zext(64)
    registers = [cpu.load_linear(at + (2 + n) * step, width).zext(64) for n in range(8)]
    selectors = [
        cpu.load_linear(base + (_SEGMENTS[width] + n * step), 16).zext(64) if n < _SEGMENT_COUNT[width] else u64(0)
        for n in range(6)
    ]
    ldt = cpu.load_linear(base + _LDT[width], 16).zext(64)
    cr3 = cpu.load_linear(base + 28, 32).zext(64) if width == 32 else u64(0)
    trap = cpu.load_linear(base + 100, 8)[0] if width == 32 else const(0, 1)

    nests = (how == Switch.CALL) | (how == Switch.INTERRUPT)
    saved = select(how == Switch.IRET, flags & ~int(Eflags.NT), flags)
    if (s.seg_attr[Seg.TR] & TSS32) != 0:
        _save(cpu, rip, saved, 32)
    else:
        _save(cpu, rip, saved, 16)
    if nests:
        cpu.store_linear(base, s.seg_selector[Seg.TR])
    else:
        _set_busy(cpu, s.gdtr_base + (s.seg_selector[Seg.TR] & 0xFFF8).zext(64), False)
    if how != Switch.IRET:
        _set_busy(cpu, address, True)

    # From here on the new task runs.
    set_segment(cpu, Seg.TR, selector, base, limit_of(descriptor), attributes(descriptor) | BUSY)
    s.cr0 = s.cr0 | Cr0.TS
    s.dr[7] = s.dr[7] & ~LOCAL_ENABLES
    for n in range(8):
        s.gpr[n] = registers[n]
    set_eflags(cpu, select(nests, new_flags | Eflags.NT, new_flags))
    for n in range(6):
        set_segment(cpu, n, selectors[n], u64(0), u64(0), u64(UNUSABLE))
    virtual = (new_flags & Eflags.VM) != 0
    s.cpl = select(virtual, u64(3), selectors[Seg.CS] & 3)
    set_null(cpu, Seg.LDTR, ldt)
    s.rip = new_rip
    cpu.commit()
    if width == 32 and (s.cr0 & Cr0.PG) != 0:
        load_cr3(cpu, cr3)
    cpu.mode_changed()
    _load_ldt(cpu, ldt, ext)
    if virtual:
        for n in range(6):
            set_real(cpu, n, selectors[n])
    else:
        _load_code(cpu, selectors[Seg.CS], ext)
        ss_base, ss_limit, ss_attr = stack_descriptor(cpu, selectors[Seg.SS], s.cpl, u64(Vector.TS), ext)
        set_segment(cpu, Seg.SS, selectors[Seg.SS], ss_base, ss_limit, ss_attr)
        for n in (Seg.ES, Seg.DS, Seg.FS, Seg.GS):
            load_data_segment(cpu, u8(n), selectors[n], u64(Vector.TS), ext)
    cpu.mode_changed()
    if trap:
        s.pending_debug = s.pending_debug | TASK_TRAP
    if new_rip > s.seg_limit[Seg.CS].zext(64):
        raise GuestFault(cpu, Vector.GP, ext)


@native
def _load_ldt(cpu: Cpu, selector: U64, ext: U64) -> None:
    """LDTR of the new task: #TS(LDT) if it is not a present LDT of the GDT."""
    if (selector & 0xFFFC) == 0:
        return
    if (selector & 4) != 0:
        selector_fault(cpu, u64(Vector.TS), selector, ext)
    _, descriptor = fetch_descriptor(cpu, selector, u64(Vector.TS), ext)
    attr = attributes(descriptor)
    if (attr & (Attr.P | Attr.S | 0xF)) != Attr.P | 2:
        selector_fault(cpu, u64(Vector.TS), selector, ext)
    set_segment(cpu, Seg.LDTR, selector, base_of(descriptor), limit_of(descriptor), attr)


@native
def _load_code(cpu: Cpu, selector: U64, ext: U64) -> None:
    """CS of the new task, whose RPL is already the CPL."""
    if (selector & 0xFFFC) == 0:
        selector_fault(cpu, u64(Vector.TS), selector, ext)
    address, descriptor = fetch_descriptor(cpu, selector, u64(Vector.TS), ext)
    attr = attributes(descriptor)
    level, dpl = selector & 3, dpl_of(attr)
    private = select((attr & CONFORMING) != 0, dpl > level, dpl != level)
    if ((attr & (Attr.S | EXECUTABLE)) != Attr.S | EXECUTABLE) | private:
        selector_fault(cpu, u64(Vector.TS), selector, ext)
    if (attr & Attr.P) == 0:
        selector_fault(cpu, u64(Vector.NP), selector, ext)
    attr = mark_accessed(cpu, address, descriptor)
    set_segment(cpu, Seg.CS, selector, base_of(descriptor), limit_of(descriptor), attr)
