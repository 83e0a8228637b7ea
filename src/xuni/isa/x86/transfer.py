"""Far transfers: JMP, CALL and RET between segments, through call gates, task gates and TSSs; SDM vol. 3, 5.8 and 6.12.

Everything is checked and every push made before a register changes.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, Protocol

from xuni.isa.bits import U64, Bits, mask, select, u64
from xuni.isa.stage import native, staged
from xuni.isa.x86.cpu import Cpu
from xuni.isa.x86.exceptions import GuestFault, Vector
from xuni.isa.x86.frames import (
    arrive,
    check_code_target,
    eflags_image,
    push_current,
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
    descriptor_address,
    dpl_of,
    fetch_descriptor,
    is_64bit,
    is_ia32e,
    is_protected,
    limit_of,
    mark_accessed,
    peek,
    selector_fault,
    selector_gp,
    set_real,
    set_segment,
    stack_descriptor,
    stack_mask,
)
from xuni.isa.x86.state import Attr, Seg
from xuni.isa.x86.task import Switch, switch_task

RSP0: Final = 4  # in a 64-bit TSS


class System(IntEnum):
    """Types of the system descriptors that a far transfer may name."""

    TSS16, CALL_GATE16, TASK_GATE, TSS32, CALL_GATE = 1, 4, 5, 9, 12


# -- code segments -----------------------------------------------------------------------------------------------------
@native
def check_code(cpu: Cpu, selector: U64, attr: U64, rpl: U64) -> None:
    """#GP or #NP unless a descriptor is code that a direct JMP or CALL with this RPL may enter at the present CPL."""
    cpl, dpl = cpu.s.cpl, dpl_of(attr)
    refused = select((attr & CONFORMING) != 0, dpl > cpl, (rpl > cpl) | (dpl != cpl))
    not_code = (attr & (Attr.S | EXECUTABLE)) != Attr.S | EXECUTABLE
    both = is_ia32e(cpu) & ((attr & (Attr.L | Attr.DB)) == int(Attr.L | Attr.DB))
    if not_code | refused | both:
        selector_gp(cpu, selector)
    if (attr & Attr.P) == 0:
        selector_fault(cpu, u64(Vector.NP), selector, u64(0))


@native
def load_cs(cpu: Cpu, selector: U64, address: U64, descriptor: U64, level: U64) -> None:
    """Load CS from a descriptor that was checked; `level` becomes the CPL."""
    attr = mark_accessed(cpu, address, descriptor)
    set_segment(cpu, Seg.CS, (selector & 0xFFFC) | level, base_of(descriptor), limit_of(descriptor), attr)
    cpu.s.cpl = level


@native
def system_target(cpu: Cpu, selector: U64, attr: U64) -> None:
    """#GP or #NP unless a gate or TSS may be named by a far JMP or CALL: type, privilege, presence."""
    kind = attr & 0x1F
    allowed = select(is_ia32e(cpu), u64(1 << System.CALL_GATE),
                     u64(1 << System.TSS16 | 1 << System.CALL_GATE16 | 1 << System.TASK_GATE | 1 << System.TSS32
                         | 1 << System.CALL_GATE))  # fmt: skip
    dpl = dpl_of(attr)
    if (allowed.bit(kind) == 0) | (dpl < cpu.s.cpl) | (dpl < (selector & 3)):
        selector_gp(cpu, selector)
    if (attr & Attr.P) == 0:
        selector_fault(cpu, u64(Vector.NP), selector, u64(0))


@native
def gate_target(cpu: Cpu, selector: U64, gate: U64, jump: U64) -> tuple[U64, U64, U64, U64]:
    """Where a call gate leads: (selector, offset, address and value of the code segment's descriptor)."""
    wide = (gate & 1 << 43) != 0
    offset = (gate & 0xFFFF) | select(wide, gate >> 32 & 0xFFFF0000, u64(0))
    if is_ia32e(cpu):
        high_at, inside = descriptor_address(cpu, selector + 8)
        if ~inside:
            selector_gp(cpu, selector)
        high = cpu.load_linear(high_at, 64)
        if (high >> 40 & 0x1F) != 0:
            selector_gp(cpu, selector)
        offset = offset | high << 32
    code = gate >> 16 & 0xFFFF
    if (code & 0xFFFC) == 0:
        raise GuestFault(cpu, Vector.GP, 0)
    address, descriptor = fetch_descriptor(cpu, code, u64(Vector.GP), u64(0))
    attr = attributes(descriptor)
    cpl, dpl = cpu.s.cpl, dpl_of(attr)
    # A jump cannot change the privilege level; a call can raise it.
    refused = (dpl > cpl) | ((jump != 0) & ((attr & CONFORMING) == 0) & (dpl != cpl))
    not_code = (attr & (Attr.S | EXECUTABLE)) != Attr.S | EXECUTABLE
    wrong_size = is_ia32e(cpu) & ((attr & (Attr.L | Attr.DB)) != int(Attr.L))
    if not_code | refused | wrong_size:
        selector_gp(cpu, code)
    if (attr & Attr.P) == 0:
        selector_fault(cpu, u64(Vector.NP), code, u64(0))
    return code, offset, address, descriptor


# -- JMP ---------------------------------------------------------------------------------------------------------------
@staged
def _real_target(cpu: Cpu, offset: Bits) -> None:
    """#GP(0) beyond the limit of CS, in real and virtual-8086 mode."""
    if offset > cpu.s.seg_limit[Seg.CS].zext(64):
        raise GuestFault(cpu, Vector.GP, 0)


@native
def far_jump(cpu: Cpu, selector: U64, offset: U64, next_rip: U64) -> None:
    """JMP to another segment, or through a gate or TSS."""
    if ~is_protected(cpu):
        _real_target(cpu, offset)
        set_real(cpu, Seg.CS, selector)
        arrive(cpu, offset)
        return
    if (selector & 0xFFFC) == 0:
        raise GuestFault(cpu, Vector.GP, 0)
    address, descriptor = fetch_descriptor(cpu, selector, u64(Vector.GP), u64(0))
    attr = attributes(descriptor)
    if (attr & Attr.S) != 0:
        check_code(cpu, selector, attr, selector & 3)
    else:
        system_target(cpu, selector, attr)
        kind = attr & 0xF
        if (kind & 7) == System.CALL_GATE16:
            selector, offset, address, descriptor = gate_target(cpu, selector, descriptor, u64(1))
            attr = attributes(descriptor)
        else:
            tss = select(kind == System.TASK_GATE, descriptor >> 16 & 0xFFFF, selector)
            switch_task(cpu, tss, u64(Switch.JUMP), next_rip, eflags_image(cpu), u64(0))
            return
    check_code_target(cpu, attr, limit_of(descriptor), offset, u64(0))
    load_cs(cpu, selector, address, descriptor, cpu.s.cpl)
    arrive(cpu, offset)


# -- CALL --------------------------------------------------------------------------------------------------------------
@native
def far_call(cpu: Cpu, selector: U64, offset: U64, next_rip: U64, size: int) -> None:
    """CALL to another segment with a return address of `size` bytes, or through a gate or TSS."""
    s = cpu.s
    old_cs = s.seg_selector[Seg.CS].zext(64)
    if ~is_protected(cpu):
        rsp = push_same(cpu, cpu.rsp, old_cs, u64(0), size)
        rsp = push_same(cpu, rsp, next_rip, u64(0), size)
        _real_target(cpu, offset)
        set_rsp(cpu, rsp)
        set_real(cpu, Seg.CS, selector)
        arrive(cpu, offset)
        return
    if (selector & 0xFFFC) == 0:
        raise GuestFault(cpu, Vector.GP, 0)
    address, descriptor = fetch_descriptor(cpu, selector, u64(Vector.GP), u64(0))
    attr = attributes(descriptor)
    if (attr & Attr.S) != 0:
        check_code(cpu, selector, attr, selector & 3)
        rsp = push_current(cpu, cpu.rsp, old_cs, u64(0), size)
        rsp = push_current(cpu, rsp, next_rip, u64(0), size)
        check_code_target(cpu, attr, limit_of(descriptor), offset, u64(0))
        set_rsp(cpu, rsp)
        load_cs(cpu, selector, address, descriptor, s.cpl)
        arrive(cpu, offset)
        return
    system_target(cpu, selector, attr)
    kind = attr & 0xF
    if (kind & 7) != System.CALL_GATE16:
        tss = select(kind == System.TASK_GATE, descriptor >> 16 & 0xFFFF, selector)
        switch_task(cpu, tss, u64(Switch.CALL), next_rip, eflags_image(cpu), u64(0))
        return
    code, target, address, entry = gate_target(cpu, selector, descriptor, u64(0))
    if is_ia32e(cpu):
        _call_gate_long(cpu, code, target, address, entry, next_rip)
    elif kind == System.CALL_GATE:
        _call_gate(cpu, code, target, address, entry, next_rip, descriptor >> 32 & 0x1F, 4)
    else:
        _call_gate(cpu, code, target, address, entry, next_rip, descriptor >> 32 & 0x1F, 2)


@native
def _call_gate(cpu: Cpu, code: U64, target: U64, address: U64, descriptor: U64, next_rip: U64, count: U64,
               size: int) -> None:  # fmt: skip
    """Through a 16- or 32-bit call gate; a more privileged target gets `count` parameters on its own stack (5.8.5)."""
    s = cpu.s
    old_cs, old_ss, old_rsp = s.seg_selector[Seg.CS].zext(64), s.seg_selector[Seg.SS].zext(64), cpu.rsp
    attr = attributes(descriptor)
    level = dpl_of(attr)
    limit = limit_of(descriptor)
    if ((attr & CONFORMING) == 0) & (level < s.cpl):
        rsp, ss = tss_stack(cpu, level, u64(0))
        base, ss_limit, ss_attr = stack_descriptor(cpu, ss, level, u64(Vector.TS), u64(0))
        wrong = ss & 0xFFFC
        rsp = push_onto(cpu, base, ss_limit, ss_attr, rsp, old_ss, wrong, size, True)
        rsp = push_onto(cpu, base, ss_limit, ss_attr, rsp, old_rsp, wrong, size, True)
        left = count
        while left != 0:
            left = left - 1
            value = peek(cpu, left * size, 8 * size).zext(64)
            rsp = push_onto(cpu, base, ss_limit, ss_attr, rsp, value, wrong, size, True)
        rsp = push_onto(cpu, base, ss_limit, ss_attr, rsp, old_cs, wrong, size, True)
        rsp = push_onto(cpu, base, ss_limit, ss_attr, rsp, next_rip, wrong, size, True)
        check_code_target(cpu, attr, limit, target, u64(0))
        set_segment(cpu, Seg.SS, ss, base, ss_limit, ss_attr)
        set_rsp(cpu, rsp)
        load_cs(cpu, code, address, descriptor, level)
    else:
        rsp = push_same(cpu, old_rsp, old_cs, u64(0), size)
        rsp = push_same(cpu, rsp, next_rip, u64(0), size)
        check_code_target(cpu, attr, limit, target, u64(0))
        set_rsp(cpu, rsp)
        load_cs(cpu, code, address, descriptor, s.cpl)
    arrive(cpu, target)


@native
def _call_gate_long(cpu: Cpu, code: U64, target: U64, address: U64, descriptor: U64, next_rip: U64) -> None:
    """Through a 64-bit call gate: no parameters, SS becomes null (5.8.5.1)."""
    s = cpu.s
    old_cs, old_ss, old_rsp = s.seg_selector[Seg.CS].zext(64), s.seg_selector[Seg.SS].zext(64), cpu.rsp
    attr = attributes(descriptor)
    level = dpl_of(attr)
    check_code_target(cpu, attr, u64(0), target, u64(0))
    if ((attr & CONFORMING) == 0) & (level < s.cpl):
        rsp = tss_rsp(cpu, (level << 3) + RSP0, u64(0))
        for value in (old_ss, old_rsp, old_cs, next_rip):
            rsp = push_long(cpu, rsp, value, u64(0), True)
        set_segment(cpu, Seg.SS, level, u64(0), u64(0), level << 5 | UNUSABLE)
        set_rsp(cpu, rsp)
        load_cs(cpu, code, address, descriptor, level)
    else:
        rsp = push_long(cpu, old_rsp, old_cs, u64(0), False)
        rsp = push_long(cpu, rsp, next_rip, u64(0), False)
        set_rsp(cpu, rsp)
        load_cs(cpu, code, address, descriptor, s.cpl)
    arrive(cpu, target)


# -- returning ---------------------------------------------------------------------------------------------------------
@native
def return_code(cpu: Cpu, selector: U64) -> tuple[U64, U64]:
    """(address, descriptor) of the code segment that RET or IRET returns to: #GP or #NP with the selector."""
    if (selector & 0xFFFC) == 0:
        raise GuestFault(cpu, Vector.GP, 0)
    address, descriptor = fetch_descriptor(cpu, selector, u64(Vector.GP), u64(0))
    attr = attributes(descriptor)
    level, dpl = selector & 3, dpl_of(attr)
    refused = select((attr & CONFORMING) != 0, dpl > level, dpl != level)
    not_code = (attr & (Attr.S | EXECUTABLE)) != Attr.S | EXECUTABLE
    both = is_ia32e(cpu) & ((attr & (Attr.L | Attr.DB)) == int(Attr.L | Attr.DB))
    if (level < cpu.s.cpl) | not_code | refused | both:
        selector_gp(cpu, selector)
    if (attr & Attr.P) == 0:
        selector_fault(cpu, u64(Vector.NP), selector, u64(0))
    return address, descriptor


@native
def return_stack(cpu: Cpu, selector: U64, code_attr: U64, level: U64) -> tuple[U64, U64, U64]:
    """(base, limit, attributes) of the stack segment that a return to another stack loads."""
    null = (selector & 0xFFFC) == 0
    long = is_ia32e(cpu) & ((code_attr & Attr.L) != 0)
    if null & long & (level != 3) & ((selector & 3) == level):
        return u64(0), u64(0), level << 5 | UNUSABLE
    return stack_descriptor(cpu, selector, level, u64(Vector.GP), u64(0))


@native
def drop_inner_segments(cpu: Cpu) -> None:
    """After a return to less privilege: data segments that it may not use become null (5.8.6)."""
    s = cpu.s
    for segment in (Seg.ES, Seg.DS, Seg.FS, Seg.GS):
        attr = s.seg_attr[segment].zext(64)
        conforming = (attr & (EXECUTABLE | CONFORMING)) == EXECUTABLE | CONFORMING
        if ((attr & UNUSABLE) == 0) & (dpl_of(attr) < s.cpl) & ~conforming:
            s.seg_selector[segment] = 0
            s.seg_attr[segment] = UNUSABLE  # the base stays: in 64-bit mode FS and GS go on using it


@staged
def set_returned_rsp(cpu: Cpu, rsp: Bits, ss_attr: Bits) -> None:
    """RSP as popped. Onto a 16-bit stack only its low 16 bits are loaded."""
    narrow = (cpu.rsp & ~u64(0xFFFF)) | (rsp & 0xFFFF)
    legacy = select((ss_attr & Attr.DB) != 0, rsp & 0xFFFFFFFF, narrow)
    set_rsp(cpu, select(is_64bit(cpu), rsp, legacy))


@native
def far_return(cpu: Cpu, release: U64, size: int) -> None:
    """RET far: pop RIP and CS of `size` bytes, then `release` bytes of parameters; outward, also RSP and SS."""
    s = cpu.s
    rip = peek(cpu, 0, 8 * size).zext(64)
    cs = peek(cpu, size, 8 * size).zext(64) & 0xFFFF
    old_mask = stack_mask(cpu)
    rsp = cpu.rsp
    after = (rsp & ~old_mask) | ((rsp + (release + 2 * size)) & old_mask)
    if ~is_protected(cpu):
        _real_target(cpu, rip)
        set_rsp(cpu, after)
        set_real(cpu, Seg.CS, cs)
        arrive(cpu, rip)
        return
    address, descriptor = return_code(cpu, cs)
    attr = attributes(descriptor)
    level = cs & 3
    if level == s.cpl:
        check_code_target(cpu, attr, limit_of(descriptor), rip, u64(0))
        load_cs(cpu, cs, address, descriptor, level)
        set_rsp(cpu, after)
    else:
        new_rsp = peek(cpu, release + 2 * size, 8 * size).zext(64)
        ss = peek(cpu, release + 3 * size, 8 * size).zext(64) & 0xFFFF
        base, limit, ss_attr = return_stack(cpu, ss, attr, level)
        check_code_target(cpu, attr, limit_of(descriptor), rip, u64(0))
        load_cs(cpu, cs, address, descriptor, level)
        set_segment(cpu, Seg.SS, ss, base, limit, ss_attr)
        set_returned_rsp(cpu, new_rsp + release, ss_attr)
        drop_inner_segments(cpu)
    arrive(cpu, rip)


# -- the instructions --------------------------------------------------------------------------------------------------
class FarOperand(Operand, Protocol):
    """`Ap`: a far pointer in the instruction. `read` gives the offset."""

    @property
    def selector(self) -> Bits:
        """16 bits."""
        ...


@instruction("JMPF", "EA Ap i64", ends=True, cold=True)
def jmp_far(cpu: Cpu, target: FarOperand) -> None:
    far_jump(cpu, target.selector.zext(64), target.read().zext(64), cpu.next_rip)


@instruction("JMPF", "FF /5 Mp", ends=True, cold=True)
def jmp_far_indirect(cpu: Cpu, target: Operand) -> None:
    selector, offset = far_pointer(cpu, target)
    far_jump(cpu, selector, offset, cpu.next_rip)


@instruction("CALLF", "9A Ap i64", ends=True, cold=True)
def call_far(cpu: Cpu, target: FarOperand) -> None:
    far_call(cpu, target.selector.zext(64), target.read().zext(64), cpu.next_rip, cpu.osize // 8)


@instruction("CALLF", "FF /3 Mp", ends=True, cold=True)
def call_far_indirect(cpu: Cpu, target: Operand) -> None:
    selector, offset = far_pointer(cpu, target)
    far_call(cpu, selector, offset, cpu.next_rip, cpu.osize // 8)


@instruction("RETF", "CB", ends=True, cold=True)
def retf(cpu: Cpu) -> None:
    far_return(cpu, u64(0), cpu.osize // 8)


@instruction("RETF", "CA Iw", ends=True, cold=True)
def retf_release(cpu: Cpu, release: Operand) -> None:
    far_return(cpu, release.read().zext(64), cpu.osize // 8)


@staged
def far_pointer(cpu: Cpu, pointer: Operand) -> tuple[Bits, Bits]:
    """(selector, offset) of a far pointer in memory."""
    at = pointer.offset
    offset = cpu.load(pointer.segment, at, cpu.osize).zext(64)
    selector = cpu.load(pointer.segment, (at + cpu.osize // 8) & mask(cpu.asize), 16).zext(64)
    return selector, offset
