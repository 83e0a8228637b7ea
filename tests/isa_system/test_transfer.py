"""Far jumps, calls, returns, IRET, and the fast system calls."""

from __future__ import annotations

import itertools

import pytest

from xuni.isa.bits import u64
from xuni.isa.x86.exceptions import Vector
from xuni.isa.x86.iret import interrupt_return
from xuni.isa.x86.state import Attr, Cr4, Efer, Eflags, Gpr, Seg
from xuni.isa.x86.syscall import system_call, system_enter, system_exit, system_return
from xuni.isa.x86.transfer import far_call, far_jump, far_return

from .machine import PlainCpu
from .tables import (
    CODE0,
    CODE1,
    CODE3,
    CODE64,
    CODE64_3,
    CONFORMING0,
    DATA0,
    DATA1,
    DATA3,
    GATE,
    SPARE,
    STACK3,
    Tables,
    descriptor,
    fault_of,
    gate,
)

NEXT = 0x1007
IF, VM, NT, IOPL = int(Eflags.IF), int(Eflags.VM), int(Eflags.NT), int(Eflags.IOPL)


# -- JMP ---------------------------------------------------------------------------------------------------------------
def jump(t: Tables, selector: int, offset: int = 0x500) -> tuple[int, int] | None:
    return fault_of(t.cpu, lambda: far_jump(t.cpu, u64(selector), u64(offset), u64(NEXT)))


def test_jump_in_real_mode() -> None:
    cpu = PlainCpu()
    far_jump(cpu, u64(0xF000), u64(0xFFF0), u64(NEXT))
    assert (int(cpu.s.seg_base[Seg.CS]), int(cpu.s.rip)) == (0xF0000, 0xFFF0)
    assert fault_of(cpu, lambda: far_jump(cpu, u64(0), u64(0x10000), u64(NEXT))) == (Vector.GP, 0)


@pytest.mark.parametrize("cpl", [0, 3])
def test_direct_code_by_brute_force(cpl: int) -> None:
    for kind, dpl, rpl, present in itertools.product(range(8, 16), range(4), range(4), (True, False)):
        t = Tables.protected(cpl)
        t.put(SPARE, descriptor(0, 0xFFFFF, kind | 16 | dpl << 5 | present << 7 | Attr.G))
        conforming = kind & 4
        allowed = dpl <= cpl if conforming else (dpl == cpl and rpl <= cpl)
        expected = None if allowed and present else (Vector.NP if allowed else Vector.GP, SPARE)
        assert jump(t, SPARE | rpl) == expected, (kind, dpl, rpl, present)
        if expected is None:
            assert t.where == (SPARE | cpl, 0x500, cpl)


def test_jump_refuses() -> None:
    t = Tables.protected()
    assert jump(t, 0) == (Vector.GP, 0)
    assert jump(t, 0x1000) == (Vector.GP, 0x1000)
    assert jump(t, DATA0) == (Vector.GP, DATA0)
    t.put(SPARE, descriptor(0, 0xFFF, int(Attr.S | Attr.P) | 0xA))
    assert jump(t, SPARE, 0x1000) == (Vector.GP, 0)
    t = Tables.long()
    t.put(SPARE, descriptor(0, 0xFFFFF, int(Attr.S | Attr.P | Attr.L | Attr.DB) | 0xA))
    assert jump(t, SPARE) == (Vector.GP, SPARE), "L and D together"
    assert jump(t, CODE64, 0x8000_0000_0000) == (Vector.GP, 0)


def test_from_64_bit_to_compatibility_mode_and_back() -> None:
    t = Tables.long()
    assert jump(t, CODE0) is None
    assert not t.cpu.long
    assert jump(t, CODE64) is None
    assert t.cpu.long


def test_jump_through_a_call_gate() -> None:
    t = Tables.protected(3)
    t.put(GATE, gate(CODE0, 0x700, 12, dpl=3))
    assert jump(t, GATE | 3) == (Vector.GP, CODE0), "a jump cannot raise privilege"
    t.put(GATE, gate(CONFORMING0, 0x700, 12, dpl=3))
    assert jump(t, GATE | 3) is None
    assert t.where == (CONFORMING0 | 3, 0x700, 3)
    t.put(GATE, gate(CONFORMING0, 0x700, 12, dpl=2))
    assert jump(t, GATE | 3) == (Vector.GP, GATE)
    t.put(GATE, gate(CONFORMING0, 0x700, 12, dpl=3, present=False))
    assert jump(t, GATE | 3) == (Vector.NP, GATE)


# -- CALL and RET ------------------------------------------------------------------------------------------------------
def call(t: Tables, selector: int, offset: int = 0x500, size: int = 4) -> tuple[int, int] | None:
    return fault_of(t.cpu, lambda: far_call(t.cpu, u64(selector), u64(offset), u64(NEXT), size))


@pytest.mark.parametrize("size", [2, 4])
def test_call_and_return_at_the_same_level(size: int) -> None:
    t = Tables.protected()
    top = int(t.cpu.s.gpr[Gpr.RSP])
    assert call(t, CODE0, 0x500, size) is None
    assert t.stack(2, size) == [NEXT, CODE0]
    far_return(t.cpu, u64(0), size)
    assert t.where == (CODE0, NEXT, 0)
    assert int(t.cpu.s.gpr[Gpr.RSP]) == top


def test_call_gate_to_an_inner_level_and_back() -> None:
    t = Tables.protected(3)
    t.put(GATE, gate(CODE0, 0x700, 12, dpl=3, extra=2))
    t.push(4, 0x2222, 0x1111)
    assert call(t, GATE | 3) is None
    assert t.where == (CODE0, 0x700, 0)
    assert t.stack(6, 4) == [NEXT, CODE3 | 3, 0x1111, 0x2222, STACK3 - 8, DATA3 | 3]
    far_return(t.cpu, u64(8), 4)
    assert t.where == (CODE3 | 3, NEXT, 3)
    s = t.cpu.s
    assert (int(s.gpr[Gpr.RSP]), int(s.seg_selector[Seg.SS])) == (STACK3, DATA3 | 3)


def test_16_bit_call_gate_takes_a_16_bit_frame() -> None:
    t = Tables.protected(3)
    t.put(GATE, gate(CODE0, 0x1_0700, 4, dpl=3, extra=1))
    t.push(2, 0x3333)
    assert call(t, GATE | 3) is None
    assert t.where == (CODE0, 0x700, 0)
    assert t.stack(5, 2) == [NEXT, CODE3 | 3, 0x3333, (STACK3 - 2) & 0xFFFF, DATA3 | 3]


def test_64_bit_call_gate() -> None:
    t = Tables.long(3)
    t.put(GATE, gate(CODE64, 0x700, 12, dpl=3))
    t.put(GATE + 8, 0xFFFF_8000)
    assert call(t, GATE | 3, size=8) is None
    assert t.where == (CODE64, 0xFFFF_8000_0000_0700, 0)
    assert t.stack(4, 8) == [NEXT, CODE64_3 | 3, STACK3, DATA3 | 3]
    assert int(t.cpu.s.seg_selector[Seg.SS]) == 0
    far_return(t.cpu, u64(0), 8)
    assert t.where == (CODE64_3 | 3, NEXT, 3)
    assert int(t.cpu.s.gpr[Gpr.RSP]) == STACK3
    t = Tables.long(3)
    t.put(GATE, gate(CODE0, 0x700, 12, dpl=3))
    assert call(t, GATE | 3, size=8) == (Vector.GP, CODE0), "must lead to 64-bit code"


def test_return_outward_drops_inner_segments() -> None:
    t = Tables.protected()
    s = t.cpu.s
    s.seg_attr[Seg.ES] = 0xF3
    s.seg_attr[Seg.GS] = 0x9F  # conforming code may stay
    t.push(4, DATA3 | 3, STACK3, CODE3 | 3, 0x400)
    far_return(t.cpu, u64(0), 4)
    assert t.where == (CODE3 | 3, 0x400, 3)
    assert int(s.seg_selector[Seg.DS]) == 0 and int(s.seg_attr[Seg.DS]) & Attr.UNUSABLE
    assert int(s.seg_selector[Seg.ES]) == DATA0 and int(s.seg_attr[Seg.GS]) == 0x9F


@pytest.mark.parametrize(("frame", "expected"), [
    ((DATA3 | 3, STACK3, 0, 0x400), (Vector.GP, 0)),
    ((DATA3 | 3, STACK3, DATA0, 0x400), (Vector.GP, DATA0)),
    ((DATA0, STACK3, CODE3 | 3, 0x400), (Vector.GP, DATA0)),
    ((0, STACK3, CODE3 | 3, 0x400), (Vector.GP, 0)),
    ((DATA3 | 3, STACK3, CODE3, 0x400), (Vector.GP, CODE3)),
])  # fmt: skip
def test_return_refuses(frame: tuple[int, ...], expected: tuple[int, int]) -> None:
    t = Tables.protected()
    t.push(4, *frame)
    assert fault_of(t.cpu, lambda: far_return(t.cpu, u64(0), 4)) == expected


def test_return_cannot_go_inward() -> None:
    t = Tables.protected(3)
    t.push(4, CODE0, 0x400)
    assert fault_of(t.cpu, lambda: far_return(t.cpu, u64(0), 4)) == (Vector.GP, CODE0)


# -- IRET --------------------------------------------------------------------------------------------------------------
def iret(t: Tables, size: int) -> tuple[int, int] | None:
    return fault_of(t.cpu, lambda: interrupt_return(t.cpu, u64(NEXT), size))


def test_iret_in_real_mode() -> None:
    cpu = PlainCpu()
    cpu.s.gpr[Gpr.RSP], cpu.s.nmi_blocked = 0x100, 1
    for n, value in enumerate((0x777, 0x1000, 0xFFFF)):
        cpu.ram.write(0x100 + 2 * n, value, 2)
    interrupt_return(cpu, u64(NEXT), 2)
    s = cpu.s
    assert (int(s.rip), int(s.seg_base[Seg.CS]), int(s.gpr[Gpr.RSP])) == (0x777, 0x10000, 0x106)
    assert int(s.eflags) | int(cpu.flags.value) == 0x7FD7
    assert int(s.nmi_blocked) == 0


@pytest.mark.parametrize("cpl", [0, 1, 3])
@pytest.mark.parametrize("iopl", [0, 1, 3])
@pytest.mark.parametrize("size", [2, 4])
def test_flags_that_iret_may_change(cpl: int, iopl: int, size: int) -> None:
    t = Tables.protected(3 if cpl else 0)
    s = t.cpu.s
    if cpl == 1:
        s.cpl, s.seg_selector[Seg.CS], s.seg_selector[Seg.SS] = 1, CODE1 | 1, DATA1 | 1
    for image in (0, 0xFFFFFFFF & ~VM & ~(3 << 12), 0xFFFFFFFF & ~VM):
        for old in (0x2, 0x3F7FD7 & ~VM & ~NT & ~IOPL):
            s.eflags = (old | iopl << 12) & ~0x8D5
            t.cpu.flags.set_all(u64(old))
            t.push(size, image & (0xFFFF if size == 2 else -1), int(s.seg_selector[Seg.CS]), 0x400)
            before = int(s.eflags) | int(t.cpu.flags.value)
            interrupt_return(t.cpu, u64(NEXT), size)
            after = int(s.eflags) | int(t.cpu.flags.value)
            for bit in range(22):
                flag = 1 << bit
                may = flag & (0x4DD5 | (0x250000 if size == 4 else 0))
                if flag == IF:
                    may = cpl <= iopl
                if flag & IOPL or (flag & 0x180000 and size == 4):
                    may = cpl == 0
                expected = image if may else before
                assert after & flag == (2 if flag == 2 else expected & flag), (cpl, iopl, size, hex(image), bit)


def test_iret_to_virtual_8086() -> None:
    t = Tables.protected()
    t.push(4, 0x400, 0x300, 0x200, 0x100, 0x700, 0x1234, VM | IF | 3 << 12 | 2, 0x2000, 0x55)
    assert iret(t, 4) is None
    s = t.cpu.s
    assert t.where == (0x2000, 0x55, 3)
    assert [int(s.seg_selector[n]) for n in (2, 0, 3, 4, 5)] == [0x700, 0x100, 0x200, 0x300, 0x400]
    assert int(s.gpr[Gpr.RSP]) == 0x1234 and int(s.seg_base[Seg.CS]) == 0x20000
    assert int(s.eflags) == VM | IF | 3 << 12 | 2


@pytest.mark.parametrize(("iopl", "vme", "size", "expected"), [
    (3, False, 2, None), (3, False, 4, None), (0, False, 2, (Vector.GP, 0)), (0, True, 4, (Vector.GP, 0)),
    (0, True, 2, None),
])  # fmt: skip
def test_iret_in_virtual_8086(iopl: int, vme: bool, size: int, expected: tuple[int, int] | None) -> None:
    t = Tables.virtual_8086()
    s = t.cpu.s
    s.eflags = int(s.eflags) | iopl << 12
    s.cr4 = int(Cr4.VME) if vme else 0
    t.push(size, IF | 2, 0x150, 0x20)
    assert iret(t, size) == expected
    if expected is None:
        assert t.where == (0x150, 0x20, 3)
        assert int(s.eflags) & (IF if iopl == 3 else Eflags.VIF)
        assert int(s.eflags) & VM and int(s.eflags) >> 12 & 3 == iopl


def test_vip_makes_iret_fault() -> None:
    t = Tables.virtual_8086()
    t.cpu.s.eflags = int(t.cpu.s.eflags) | Eflags.VIP
    t.cpu.s.cr4 = int(Cr4.VME)
    t.push(2, IF | 2, 0x150, 0x20)
    assert iret(t, 2) == (Vector.GP, 0)


def test_iret_in_64_bit_mode_always_takes_the_stack() -> None:
    t = Tables.long()
    t.push(8, 0, 0x6008, 2 | IF, CODE64, 0x400)
    assert iret(t, 8) is None
    assert t.where == (CODE64, 0x400, 0)
    assert int(t.cpu.s.gpr[Gpr.RSP]) == 0x6008 and int(t.cpu.s.eflags) & IF


def test_iret_to_user_keeps_bases_of_null_segments() -> None:
    t = Tables.long()
    s = t.cpu.s
    s.seg_attr[Seg.FS], s.seg_base[Seg.FS] = int(Attr.UNUSABLE), 0x7777
    t.push(8, DATA3 | 3, STACK3, 2 | IF, CODE64_3 | 3, 0x400)
    assert iret(t, 8) is None
    assert t.where == (CODE64_3 | 3, 0x400, 3)
    assert (int(s.gpr[Gpr.RSP]), int(s.seg_base[Seg.FS])) == (STACK3, 0x7777)


def test_long_iret_refuses() -> None:
    t = Tables.long()
    t.push(8, 3, STACK3, 2, CODE64_3 | 3, 0x400)
    assert iret(t, 8) == (Vector.GP, 0), "null SS at level 3"
    t.push(8, DATA3 | 3, STACK3, 2, CODE64_3 | 3, 1 << 47)
    assert iret(t, 8) == (Vector.GP, 0), "RIP not canonical"
    t.cpu.s.eflags = 2 | NT
    assert iret(t, 8) == (Vector.GP, 0), "no task switches in IA-32e mode"


def test_iret_to_compatibility_mode() -> None:
    t = Tables.long()
    t.push(8, DATA3 | 3, STACK3, 2, CODE3 | 3, 0x400)
    assert iret(t, 8) is None
    assert t.where == (CODE3 | 3, 0x400, 3) and not t.cpu.long


# -- SYSCALL and SYSENTER ----------------------------------------------------------------------------------------------
def test_syscall_and_sysret() -> None:
    t = Tables.long(3)
    s = t.cpu.s
    assert fault_of(t.cpu, lambda: system_call(t.cpu, u64(NEXT))) == (Vector.UD, 0)
    s.efer = int(s.efer) | Efer.SCE
    s.star, s.lstar, s.sfmask = 0x0023_0010 << 32, 0xFFFF8000_00001000, IF | 0x100
    s.eflags = 2 | IF | int(Eflags.RF)
    system_call(t.cpu, u64(NEXT))
    assert t.where == (0x10, 0xFFFF8000_00001000, 0)
    assert (int(s.gpr[Gpr.RCX]), int(s.gpr[Gpr.R11]), int(s.eflags)) == (NEXT, 2 | IF, 2)
    assert int(s.seg_selector[Seg.SS]) == 0x18 and t.cpu.long
    system_return(t.cpu, 64)
    assert t.where == (0x33, NEXT, 3) and t.cpu.long
    assert (int(s.seg_selector[Seg.SS]), int(s.eflags)) == (0x2B, 2 | IF)
    assert fault_of(t.cpu, lambda: system_return(t.cpu, 64)) == (Vector.GP, 0), "not at level 3"


def test_sysret_to_compatibility_mode_and_bad_rip() -> None:
    t = Tables.long()
    s = t.cpu.s
    s.efer = int(s.efer) | Efer.SCE
    s.star = 0x0023_0010 << 32
    s.gpr[Gpr.RCX] = 1 << 47
    assert fault_of(t.cpu, lambda: system_return(t.cpu, 64)) == (Vector.GP, 0)
    s.gpr[Gpr.RCX], s.gpr[Gpr.R11] = 0x1_0000_0400, 0xFFFFFFFF
    system_return(t.cpu, 32)
    assert t.where == (0x23, 0x400, 3) and not t.cpu.long
    assert not int(s.eflags) & (VM | int(Eflags.RF))


def test_sysenter_and_sysexit() -> None:
    t = Tables.protected(3)
    s = t.cpu.s
    assert fault_of(t.cpu, lambda: system_enter(t.cpu)) == (Vector.GP, 0), "no CS"
    s.sysenter_cs, s.sysenter_esp, s.sysenter_eip = 0x0B, 0x1_0000_6000, 0x1_0000_0800
    s.eflags = 2 | IF
    system_enter(t.cpu)
    assert t.where == (0x08, 0x800, 0)
    assert (int(s.gpr[Gpr.RSP]), int(s.seg_selector[Seg.SS]), int(s.eflags)) == (0x6000, 0x10, 2)
    s.gpr[Gpr.RCX], s.gpr[Gpr.RDX] = STACK3, 0x400
    system_exit(t.cpu, 32)
    assert t.where == (0x1B, 0x400, 3)
    assert (int(s.gpr[Gpr.RSP]), int(s.seg_selector[Seg.SS])) == (STACK3, 0x23)
    t = Tables.long()
    t.cpu.s.sysenter_cs = 8
    t.cpu.s.gpr[Gpr.RDX] = 1 << 47
    assert fault_of(t.cpu, lambda: system_exit(t.cpu, 64)) == (Vector.GP, 0)
    t.cpu.s.gpr[Gpr.RDX] = 0x400
    system_exit(t.cpu, 64)
    assert t.where == (8 + 32 | 3, 0x400, 3) and t.cpu.long



def test_syscall_outside_64_bit_mode_is_amds() -> None:
    t = Tables.long(3)
    s = t.cpu.s
    s.efer = int(s.efer) | Efer.SCE
    s.seg_attr[Seg.CS] = int(s.seg_attr[Seg.CS]) & ~Attr.L | Attr.DB
    s.star, s.cstar = 0x0023_0010 << 32, 0x7000
    assert fault_of(t.cpu, lambda: system_call(t.cpu, u64(NEXT))) == (Vector.UD, 0)
    t.cpu.features.add("amd")
    system_call(t.cpu, u64(NEXT))
    assert t.where == (0x10, 0x7000, 0) and t.cpu.long
    t = Tables.protected(3)
    t.cpu.features.add("amd")
    t.cpu.s.efer, t.cpu.s.star = int(Efer.SCE), 0x0023_0010 << 32 | 0x5000
    system_call(t.cpu, u64(NEXT))
    assert t.where == (0x10, 0x5000, 0)
    system_return(t.cpu, 32)
    assert t.where == (0x23, NEXT, 3) and int(t.cpu.s.eflags) & IF


def test_sysret_that_sets_tf_traps_at_once() -> None:
    t = Tables.long()
    s = t.cpu.s
    s.efer, s.star = int(s.efer) | Efer.SCE, 0x0023_0010 << 32
    s.gpr[Gpr.RCX], s.gpr[Gpr.R11] = 0x400, 2 | int(Eflags.TF)
    system_return(t.cpu, 64)
    assert int(s.pending_debug) == 1 << 14
