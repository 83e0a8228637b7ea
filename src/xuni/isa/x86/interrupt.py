"""Events: interrupts and exceptions from their vector to the first instruction of the handler. SDM vol. 3, chapter 6.

`deliver` is the way of every event; `handle_fault` turns a `GuestFault` into an event and knows double and triple
faults. A fault during delivery is another `GuestFault`, which leaves the processor as it was before.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final

from xuni.isa.bits import U64, Bits, select, u64
from xuni.isa.stage import native, staged
from xuni.isa.x86.exceptions import GuestFault, Vector
from xuni.isa.x86.frames import (
    arrive,
    cancel_trap,
    eflags_image,
    push_long,
    push_onto,
    push_same,
    set_rsp,
    tss_rsp,
    tss_stack,
)
from xuni.isa.x86.instruction import Operand, instruction
from xuni.isa.x86.segment import (
    CONFORMING,
    EXECUTABLE,
    UNUSABLE,
    attributes,
    base_of,
    dpl_of,
    fetch_descriptor,
    is_canonical,
    is_ia32e,
    is_virtual_8086,
    limit_of,
    mark_accessed,
    selector_fault,
    selector_gp,
    set_null,
    set_real,
    set_segment,
    stack_descriptor,
)
from xuni.isa.x86.state import Attr, Cr0, Cr4, Eflags, Seg
from xuni.isa.x86.task import Switch, switch_task

if TYPE_CHECKING:
    from xuni.isa.x86.cpu import Cpu


class Source(IntEnum):
    """Where an event comes from: it decides the gate's DPL check, the EXT bit and RF."""

    EXCEPTION = 0  # a fault, or a trap that no instruction asked for (#DB)
    EXTERNAL = 1  # INTR, NMI
    SOFTWARE = 2  # INT n
    SOFTWARE_EXCEPTION = 3  # INT3, INTO
    ICEBP = 4  # INT1: as SOFTWARE_EXCEPTION, but no gate can refuse it


class Gate(IntEnum):
    """Types of system descriptors that an IDT may hold."""

    TASK = 5
    INTERRUPT16 = 6
    TRAP16 = 7
    INTERRUPT32 = 14
    TRAP32 = 15


CONTRIBUTORY: Final = sum(1 << v for v in (Vector.DE, Vector.TS, Vector.NP, Vector.SS, Vector.GP, Vector.CP))
IST: Final = 0x24  # offset of IST1 in a 64-bit TSS
RSP0: Final = 4


# -- what is common to all modes ---------------------------------------------------------------------------------------
@staged
def _is_software(source: Bits) -> Bits:
    """INT n, INT3, INTO: the gate's DPL is checked, and faults of the delivery have EXT clear."""
    return (source == Source.SOFTWARE) | (source == Source.SOFTWARE_EXCEPTION)


@staged
def _pushed_flags(cpu: Cpu, vector: Bits, source: Bits) -> Bits:
    """The EFLAGS image on the stack: RF is set for faults, but not for debug exceptions (17.3.1.1)."""
    image = eflags_image(cpu)
    fault = (source == Source.EXCEPTION) & (vector != Vector.DB)
    return select(fault, image | Eflags.RF, image)


@staged
def _enter_handler(cpu: Cpu, masks: Bits) -> None:
    """EFLAGS as the handler finds them; `masks`: the gate also clears IF."""
    s = cpu.s
    kept = s.eflags & ~int(Eflags.TF | Eflags.NT | Eflags.RF | Eflags.VM)
    s.eflags = select(masks, kept & ~int(Eflags.IF), kept)
    s.interrupt_shadow = 0


@native
def _gate_fault(cpu: Cpu, vector: U64, number: U64, ext: U64) -> None:
    """#GP or #NP that names a gate of the IDT."""
    error = number << 3 | 2 | ext
    if vector == Vector.NP:
        raise GuestFault(cpu, Vector.NP, error)
    raise GuestFault(cpu, Vector.GP, error)


# -- real mode, and virtual-8086 mode with VME -------------------------------------------------------------------------
@native
def _through_ivt(cpu: Cpu, vector: U64, table: U64, flags: U64, rip: U64) -> None:
    """Push FLAGS, CS and IP, and continue where the interrupt vector table at linear address `table` says (20.1.4)."""
    s = cpu.s
    entry = cpu.load_linear(table + (vector << 2), 32).zext(64)
    rsp = push_same(cpu, cpu.rsp, flags, u64(0), 2)
    rsp = push_same(cpu, rsp, s.seg_selector[Seg.CS].zext(64), u64(0), 2)
    rsp = push_same(cpu, rsp, rip, u64(0), 2)
    target = entry & 0xFFFF
    if target > s.seg_limit[Seg.CS].zext(64):
        raise GuestFault(cpu, Vector.GP, 0)
    set_rsp(cpu, rsp)
    set_real(cpu, Seg.CS, entry >> 16)
    s.interrupt_shadow = 0
    arrive(cpu, target)


@native
def _deliver_real(cpu: Cpu, vector: U64, source: U64, rip: U64) -> None:
    s = cpu.s
    if (vector << 2) + 3 > s.idtr_limit.zext(64):
        _gate_fault(cpu, u64(Vector.GP), vector, u64(0))
    flags = _pushed_flags(cpu, vector, source)
    _through_ivt(cpu, vector, s.idtr_base, flags, rip)
    s.eflags = s.eflags & ~int(Eflags.IF | Eflags.TF | Eflags.AC | Eflags.RF)
    cpu.mode_changed()


# -- protected mode ----------------------------------------------------------------------------------------------------
@native
def _handler_segment(cpu: Cpu, selector: U64, ext: U64) -> tuple[U64, U64]:
    """(linear address, descriptor) of the handler's code segment, checked but for what depends on the mode."""
    if (selector & 0xFFFC) == 0:
        raise GuestFault(cpu, Vector.GP, ext)
    address, descriptor = fetch_descriptor(cpu, selector, u64(Vector.GP), ext)
    attr = attributes(descriptor)
    if ((attr & (Attr.S | EXECUTABLE)) != Attr.S | EXECUTABLE) | (dpl_of(attr) > cpu.s.cpl):
        selector_gp(cpu, selector, ext)
    if (attr & Attr.P) == 0:
        selector_fault(cpu, u64(Vector.NP), selector, ext)
    return address, descriptor


@native
def _deliver_protected(cpu: Cpu, vector: U64, source: U64, error: U64, has_error: U64, rip: U64) -> None:
    s = cpu.s
    ext = (~_is_software(source)).zext(64)
    if (vector << 3) + 7 > s.idtr_limit.zext(64):
        _gate_fault(cpu, u64(Vector.GP), vector, ext)
    gate = cpu.load_linear(s.idtr_base + (vector << 3), 64)
    kind = gate >> 40 & 0x1F
    known = (kind == Gate.TASK) | ((kind & 0x16) == 6)
    if ~known | (_is_software(source) & (dpl_of(gate >> 40) < s.cpl)):
        _gate_fault(cpu, u64(Vector.GP), vector, ext)
    if (gate & 1 << 47) == 0:
        _gate_fault(cpu, u64(Vector.NP), vector, ext)
    selector = gate >> 16 & 0xFFFF
    if kind == Gate.TASK:
        switch_task(cpu, selector, u64(Switch.INTERRUPT), rip, _pushed_flags(cpu, vector, source), ext)
        if has_error != 0:
            _push_error(cpu, error)
        return
    offset = (gate & 0xFFFF) | (gate >> 32 & 0xFFFF0000)
    flags = _pushed_flags(cpu, vector, source)
    if (kind & 8) != 0:
        _enter_protected(cpu, selector, offset, flags, error, has_error, rip, ext, 4)
    else:
        _enter_protected(cpu, selector, offset & 0xFFFF, flags, error, has_error, rip, ext, 2)
    _enter_handler(cpu, (kind & 1) == 0)
    arrive(cpu, s.rip)


@native
def _push_error(cpu: Cpu, error: U64) -> None:
    """Push an error code in the task that a task gate has switched to (7.3)."""
    s = cpu.s
    if (s.seg_attr[Seg.TR] & 8) != 0:
        rsp = push_same(cpu, cpu.rsp, error, u64(1), 4)
        set_rsp(cpu, rsp)
    else:
        rsp = push_same(cpu, cpu.rsp, error, u64(1), 2)
        set_rsp(cpu, rsp)


@native
def _enter_protected(cpu: Cpu, selector: U64, offset: U64, flags: U64, error: U64, has_error: U64, rip: U64, ext: U64,
                     size: int) -> None:  # fmt: skip
    """Build the handler's frame of values of `size` bytes, switching stacks if it is more privileged (6.12.1)."""
    s = cpu.s
    address, descriptor = _handler_segment(cpu, selector, ext)
    attr = attributes(descriptor)
    level = dpl_of(attr)
    inner = ((attr & CONFORMING) == 0) & (level < s.cpl)
    virtual = is_virtual_8086(cpu)
    if virtual & (~inner | (level != 0)):
        selector_gp(cpu, selector, ext)
    old_cs = s.seg_selector[Seg.CS].zext(64)
    old_ss = s.seg_selector[Seg.SS].zext(64)
    if inner:
        rsp, ss = tss_stack(cpu, level, ext)
        base, limit, ss_attr = stack_descriptor(cpu, ss, level, u64(Vector.TS), ext)
        wrong = (ss & 0xFFFC) | ext
        if virtual:
            for segment in (Seg.GS, Seg.FS, Seg.DS, Seg.ES):
                value = s.seg_selector[segment].zext(64)
                rsp = push_onto(cpu, base, limit, ss_attr, rsp, value, wrong, size, True)
        for value in (old_ss, cpu.rsp, flags, old_cs, rip):
            rsp = push_onto(cpu, base, limit, ss_attr, rsp, value, wrong, size, True)
        if has_error != 0:
            rsp = push_onto(cpu, base, limit, ss_attr, rsp, error, wrong, size, True)
        if offset > limit_of(descriptor):
            raise GuestFault(cpu, Vector.GP, ext)
        attr = mark_accessed(cpu, address, descriptor)
        s.cpl = level
        set_segment(cpu, Seg.SS, ss, base, limit, ss_attr)
        if virtual:
            for segment in (Seg.GS, Seg.FS, Seg.DS, Seg.ES):
                set_null(cpu, segment, u64(0))
        set_rsp(cpu, rsp)
    else:
        rsp = cpu.rsp
        for value in (flags, old_cs, rip):
            rsp = push_same(cpu, rsp, value, ext, size)
        if has_error != 0:
            rsp = push_same(cpu, rsp, error, ext, size)
        if offset > limit_of(descriptor):
            raise GuestFault(cpu, Vector.GP, ext)
        attr = mark_accessed(cpu, address, descriptor)
        set_rsp(cpu, rsp)
    set_segment(cpu, Seg.CS, (selector & 0xFFFC) | s.cpl, base_of(descriptor), limit_of(descriptor), attr)
    s.rip = offset


# -- IA-32e mode -------------------------------------------------------------------------------------------------------
@native
def _deliver_long(cpu: Cpu, vector: U64, source: U64, error: U64, has_error: U64, rip: U64) -> None:
    """Through a 64-bit gate (6.14): the frame always has SS and RSP, and its top is aligned to 16 bytes."""
    s = cpu.s
    ext = (~_is_software(source)).zext(64)
    if (vector << 4) + 15 > s.idtr_limit.zext(64):
        _gate_fault(cpu, u64(Vector.GP), vector, ext)
    gate = cpu.load_linear(s.idtr_base + (vector << 4), 64)
    if ((gate >> 40 & 0x1E) != Gate.INTERRUPT32) | (_is_software(source) & (dpl_of(gate >> 40) < s.cpl)):
        _gate_fault(cpu, u64(Vector.GP), vector, ext)
    if (gate & 1 << 47) == 0:
        _gate_fault(cpu, u64(Vector.NP), vector, ext)
    upper = cpu.load_linear(s.idtr_base + (vector << 4) + 8, 64)
    offset = (gate & 0xFFFF) | (gate >> 32 & 0xFFFF0000) | upper << 32
    selector = gate >> 16 & 0xFFFF
    address, descriptor = _handler_segment(cpu, selector, ext)
    attr = attributes(descriptor)
    if (attr & (Attr.L | Attr.DB)) != Attr.L:
        selector_gp(cpu, selector, ext)
    if ~is_canonical(cpu, offset):
        raise GuestFault(cpu, Vector.GP, ext)
    level = select((attr & CONFORMING) != 0, s.cpl, dpl_of(attr))
    ist = gate >> 32 & 7
    rsp = cpu.rsp
    if ist != 0:
        rsp = tss_rsp(cpu, (ist << 3) + (IST - 8), ext)
    elif level < s.cpl:
        rsp = tss_rsp(cpu, (level << 3) + RSP0, ext)
    flags = _pushed_flags(cpu, vector, source)
    if level < s.cpl:
        rsp = _push_long_frame(cpu, rsp & ~u64(15), flags, error, has_error, rip, ext, True)
        attr = mark_accessed(cpu, address, descriptor)
        s.cpl = level
        set_segment(cpu, Seg.SS, level, u64(0), u64(0), level << 5 | UNUSABLE)
    else:
        rsp = _push_long_frame(cpu, rsp & ~u64(15), flags, error, has_error, rip, ext, False)
        attr = mark_accessed(cpu, address, descriptor)
    set_segment(cpu, Seg.CS, (selector & 0xFFFC) | level, base_of(descriptor), limit_of(descriptor), attr)
    set_rsp(cpu, rsp)
    _enter_handler(cpu, (gate & 1 << 40) == 0)
    arrive(cpu, offset)


@native
def _push_long_frame(cpu: Cpu, rsp: U64, flags: U64, error: U64, has_error: U64, rip: U64, ext: U64,
                     system: bool) -> U64:  # fmt: skip
    """SS, RSP, RFLAGS, CS, RIP and the error code; RSP after them."""
    s = cpu.s
    selectors = s.seg_selector
    for value in (selectors[Seg.SS].zext(64), cpu.rsp, flags, selectors[Seg.CS].zext(64), rip):
        rsp = push_long(cpu, rsp, value, ext, system)
    if has_error != 0:
        rsp = push_long(cpu, rsp, error, ext, system)
    return rsp


# -- delivery ----------------------------------------------------------------------------------------------------------
@native
def deliver_at(cpu: Cpu, vector: U64, source: U64, error: U64, has_error: U64, rip: U64) -> None:
    """Deliver an event that returns to `rip`."""
    s = cpu.s
    s.delivering = select(source == Source.EXCEPTION, vector + 1, u64(0))
    if source >= Source.SOFTWARE:
        cancel_trap(cpu)
    if (s.cr0 & Cr0.PE) == 0:
        _deliver_real(cpu, vector, source, rip)
    elif is_ia32e(cpu):
        _deliver_long(cpu, vector, source, error, has_error, rip)
    else:
        _deliver_protected(cpu, vector, source, error, has_error, rip)
    if (vector == Vector.NMI) & (source == Source.EXTERNAL):
        s.nmi_blocked = 1
    s.delivering = 0


@native
def deliver(cpu: Cpu, vector: U64, source: U64, error: U64, has_error: U64) -> None:
    """Deliver an event (`source` is a `Source`) that returns to `s.rip` (the faulting instruction, or the next one)."""
    deliver_at(cpu, vector, source, error, has_error, cpu.s.rip)


@staged
def _is_contributory(vector: Bits) -> Bits:
    """The middle class of table 6-4."""
    return u64(CONTRIBUTORY).bit(vector)


@native
def handle_fault(cpu: Cpu) -> None:
    """Deliver the fault that a `GuestFault` left in the state, at `s.rip`.

    If it arose while another exception was being delivered, tables 6-4 and 6-5 decide: one after the other, #DF, or
    shutdown.
    """
    s = cpu.s
    vector, error, has_error = s.fault_vector, s.fault_error, s.fault_has_error
    if vector == Vector.PF:
        s.cr2 = s.fault_address
    if s.delivering != 0:
        first = s.delivering - 1
        serious = _is_contributory(vector) | (vector == Vector.PF)
        if (first == Vector.DF) & serious:
            cpu.shutdown()
        doubled = (_is_contributory(first) & _is_contributory(vector)) | ((first == Vector.PF) & serious)
        if doubled:
            vector, error, has_error = u64(Vector.DF), u64(0), u64(1)
    deliver_at(cpu, vector, u64(Source.EXCEPTION), error, has_error, s.rip)


# -- software interrupts -----------------------------------------------------------------------------------------------
@native
def redirected(cpu: Cpu, vector: U64) -> U64:
    """Whether the redirection bitmap of the TSS sends INT n of virtual-8086 mode to the 8086 handler (20.3.3)."""
    s = cpu.s
    base, limit = s.seg_base[Seg.TR], s.seg_limit[Seg.TR].zext(64)
    if limit < 0x67:
        raise GuestFault(cpu, Vector.GP, 0)
    at = cpu.load_linear(base + 0x66, 16).zext(64) - 32 + (vector >> 3)
    if at > limit:
        raise GuestFault(cpu, Vector.GP, 0)
    byte = cpu.load_linear(base + at, 8).zext(64)
    return byte >> (vector & 7) & 1 ^ 1


@native
def software_interrupt(cpu: Cpu, vector: U64, rip: U64) -> None:
    """INT n. In virtual-8086 mode IOPL and CR4.VME decide who handles it (table 20-2)."""
    s = cpu.s
    if is_virtual_8086(cpu):
        iopl3 = (s.eflags & Eflags.IOPL) == Eflags.IOPL
        if (s.cr4 & Cr4.VME) != 0:
            if redirected(cpu, vector) != 0:
                cancel_trap(cpu)
                _interrupt_8086(cpu, vector, rip, iopl3.zext(64))
                return
        if ~iopl3:
            raise GuestFault(cpu, Vector.GP, 0)
    deliver_at(cpu, vector, u64(Source.SOFTWARE), u64(0), u64(0), rip)


@native
def _interrupt_8086(cpu: Cpu, vector: U64, rip: U64, iopl3: U64) -> None:
    """INT n through the table at linear address 0; with IOPL < 3 the program has VIF for IF."""
    s = cpu.s
    image = eflags_image(cpu)
    virtual_if = (s.eflags & Eflags.VIF) >> 10  # VIF is bit 19, IF bit 9
    virtual = (image & ~int(Eflags.IF)) | virtual_if | Eflags.IOPL
    _through_ivt(cpu, vector, u64(0), select(iopl3 != 0, image, virtual), rip)
    cleared = select(iopl3 != 0, u64(Eflags.IF), u64(Eflags.VIF)) | (Eflags.TF | Eflags.NT | Eflags.RF)
    s.eflags = s.eflags & ~cleared
    cpu.mode_changed()


@native
def take_pending_breakpoints(cpu: Cpu) -> None:
    """Data breakpoints that MOV SS held back are reported by the #DB of an INT1 that follows it."""
    s = cpu.s
    hit = s.pending_debug & 0xF
    if hit != 0:
        s.dr[6] = (s.dr[6] & ~u64(0xF)) | hit
        s.pending_debug = s.pending_debug & ~u64(0xF)


@instruction("INT", "CD Ib", ends=True, cold=True)
def int_n(cpu: Cpu, vector: Operand) -> None:
    software_interrupt(cpu, vector.read().zext(64), cpu.next_rip)


@instruction("INT3", "CC", ends=True, cold=True)
def int3(cpu: Cpu) -> None:
    deliver_at(cpu, u64(Vector.BP), u64(Source.SOFTWARE_EXCEPTION), u64(0), u64(0), cpu.next_rip)


@instruction("INTO", "CE i64", ends=True, cold=True)
def into(cpu: Cpu) -> None:
    if cpu.flags.of:
        deliver_at(cpu, u64(Vector.OF), u64(Source.SOFTWARE_EXCEPTION), u64(0), u64(0), cpu.next_rip)


@instruction("INT1", "F1", ends=True, cold=True)
def int1(cpu: Cpu) -> None:
    take_pending_breakpoints(cpu)
    deliver_at(cpu, u64(Vector.DB), u64(Source.ICEBP), u64(0), u64(0), cpu.next_rip)
