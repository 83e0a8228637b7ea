"""Task switches: what is saved, loaded and refused, and in whose context a late fault lies."""

from __future__ import annotations

import itertools

import pytest

from xuni.isa.bits import u64
from xuni.isa.x86.exceptions import GuestFault, Vector
from xuni.isa.x86.interrupt import Source, deliver
from xuni.isa.x86.iret import interrupt_return
from xuni.isa.x86.state import Attr, Cr0, Eflags, Gpr, Seg
from xuni.isa.x86.task import Switch, switch_task
from xuni.isa.x86.transfer import far_call, far_jump

from .tables import (
    CODE0,
    CODE3,
    DATA0,
    DATA3,
    GATE,
    LDT,
    LDT_SELECTOR,
    TSS,
    TSS2,
    TSS_SELECTOR,
    Tables,
    descriptor,
    fault_of,
    gate,
)

NEW = 0x9000
NT, VM = int(Eflags.NT), int(Eflags.VM)
NEXT = 0x1007


def prepare(kind: int = 0x89, limit: int = 0x67, dpl: int = 0, **fields: int) -> Tables:
    """A second task at `NEW`, flat and at level 0 unless `fields` say otherwise."""
    t = Tables.protected()
    t.put(TSS2, descriptor(NEW, limit, kind | dpl << 5))
    wide = kind & 8
    values = {"ip": 0x2222, "flags": 2 | 0x200, "es": DATA0, "cs": CODE0, "ss": DATA0, "ds": DATA0, "ldt": 0, "trap": 0}
    values |= fields
    size = 4 if wide else 2
    ram = t.cpu.ram
    ram.write(NEW + (32 if wide else 14), values["ip"], size)
    ram.write(NEW + (36 if wide else 16), values["flags"], size)
    for n in range(8):
        ram.write(NEW + (40 if wide else 18) + n * size, 0x6000 + n, size)
    for n, name in enumerate(("es", "cs", "ss", "ds")):
        ram.write(NEW + (72 if wide else 34) + n * size, values[name], 2)
    ram.write(NEW + (96 if wide else 42), values["ldt"], 2)
    if wide:
        ram.write(NEW + 100, values["trap"], 2)
    for n in range(8):
        t.cpu.s.gpr[n] = 0x11110000 + n
    t.cpu.s.gpr[Gpr.RSP] = 0x7000
    return t


def busy(t: Tables, selector: int) -> bool:
    return bool(t.entry(selector) >> 41 & 1)


@pytest.mark.parametrize("kind", [0x89, 0x81])
@pytest.mark.parametrize("how", list(Switch), ids=lambda h: h.name)
def test_what_a_switch_does(kind: int, how: Switch) -> None:
    t = prepare(kind | (2 if how == Switch.IRET else 0))
    s, ram = t.cpu.s, t.cpu.ram
    s.dr[7] = 0x555
    switch_task(t.cpu, u64(TSS2), u64(how), u64(NEXT), u64(2 | NT), u64(0))
    assert t.where == (CODE0, 0x2222, 0)
    assert [int(s.gpr[n]) for n in range(8)] == [0x6000 + n for n in range(8)]
    nests = how in (Switch.CALL, Switch.INTERRUPT)
    assert int(s.eflags) == 2 | 0x200 | (NT if nests else 0)
    assert ram.read(TSS + 32, 4) == NEXT
    assert ram.read(TSS + 36, 4) == (2 if how == Switch.IRET else 2 | NT)
    assert [ram.read(TSS + 40 + 4 * n, 4) for n in (0, 1, 7)] == [0x11110000, 0x11110001, 0x11110007]
    assert [ram.read(TSS + 72 + 4 * n, 2) for n in range(6)] == [DATA0, CODE0, DATA0, DATA0, DATA0, DATA0]
    assert ram.read(NEW, 2) == (TSS_SELECTOR if nests else 0), "the link"
    assert busy(t, TSS2), "the new task is busy"
    assert busy(t, TSS_SELECTOR) == nests, "the old one only if it waits"
    assert (int(s.seg_selector[Seg.TR]), int(s.seg_base[Seg.TR])) == (TSS2, NEW)
    assert int(s.cr0) & Cr0.TS and int(s.dr[7]) == 0x555 & ~0x155
    assert ("commit",) in t.cpu.log


@pytest.mark.parametrize(("kind", "limit", "how", "expected"), [
    (0x8B, 0x67, Switch.CALL, (Vector.GP, TSS2)), (0x89, 0x67, Switch.IRET, (Vector.TS, TSS2)),
    (0x09, 0x67, Switch.CALL, (Vector.NP, TSS2)), (0x89, 0x66, Switch.JUMP, (Vector.TS, TSS2)),
    (0x81, 0x2A, Switch.JUMP, (Vector.TS, TSS2)), (0x82, 0x67, Switch.JUMP, (Vector.GP, TSS2)),
])  # fmt: skip
def test_refused_in_the_old_task(kind: int, limit: int, how: Switch, expected: tuple[int, int]) -> None:
    t = prepare(kind, limit)
    assert fault_of(t.cpu, lambda: switch_task(t.cpu, u64(TSS2), u64(how), u64(NEXT), u64(2), u64(0))) == expected
    assert ("commit",) not in t.cpu.log


def test_selector_of_the_ldt_is_refused() -> None:
    t = prepare()
    assert fault_of(t.cpu, lambda: switch_task(t.cpu, u64(TSS2 | 4), u64(0), u64(0), u64(2), u64(0))) == (
        Vector.GP, TSS2 | 4,
    )  # fmt: skip


@pytest.mark.parametrize(("fields", "expected"), [
    ({"ldt": 0x77 & ~7 | 4}, (Vector.TS, 0x74)), ({"ldt": DATA0}, (Vector.TS, DATA0)),
    ({"cs": 0}, (Vector.TS, 0)), ({"cs": DATA0}, (Vector.TS, DATA0)), ({"cs": CODE3}, (Vector.TS, CODE3)),
    ({"ss": 0}, (Vector.TS, 0)), ({"ss": DATA3}, (Vector.TS, DATA3)), ({"ss": 0x7F8}, (Vector.TS, 0x7F8)),
    ({"ds": 0x7F8}, (Vector.TS, 0x7F8)), ({"es": TSS2}, (Vector.TS, TSS2)),
    ({"cs": CODE3 | 3, "ss": DATA3 | 3}, (Vector.TS, DATA0)),  # DS of level 0 in a task of level 3
])  # fmt: skip
def test_refused_in_the_new_task(fields: dict[str, int], expected: tuple[int, int]) -> None:
    t = prepare(**fields)
    with pytest.raises(GuestFault):
        switch_task(t.cpu, u64(TSS2), u64(Switch.JUMP), u64(NEXT), u64(2), u64(0))
    s = t.cpu.s
    assert (int(s.fault_vector), int(s.fault_error)) == expected
    assert int(s.seg_selector[Seg.TR]) == TSS2 and int(s.rip) == 0x2222
    assert ("commit",) in t.cpu.log


def test_ext_marks_faults_of_events() -> None:
    t = prepare(ss=0)
    with pytest.raises(GuestFault):
        switch_task(t.cpu, u64(TSS2), u64(Switch.INTERRUPT), u64(NEXT), u64(2), u64(1))
    assert (int(t.cpu.s.fault_vector), int(t.cpu.s.fault_error)) == (Vector.TS, 1)


def test_ldt_and_trap_flag() -> None:
    t = prepare(ldt=LDT_SELECTOR, trap=1)
    t.put(LDT_SELECTOR, descriptor(LDT, 0xFF, 0x82))
    switch_task(t.cpu, u64(TSS2), u64(Switch.JUMP), u64(NEXT), u64(2), u64(0))
    s = t.cpu.s
    assert (int(s.seg_selector[Seg.LDTR]), int(s.seg_base[Seg.LDTR])) == (LDT_SELECTOR, LDT)
    assert int(s.pending_debug) == 1 << 15


def test_to_a_virtual_8086_task() -> None:
    t = prepare(flags=2 | VM, cs=0x1234, ss=0x2000, ds=0x3000, es=0)
    switch_task(t.cpu, u64(TSS2), u64(Switch.JUMP), u64(NEXT), u64(2), u64(0))
    s = t.cpu.s
    assert t.where == (0x1234, 0x2222, 3)
    assert int(s.seg_base[Seg.CS]) == 0x12340 and int(s.seg_attr[Seg.DS]) == 0xF3


def test_jump_call_and_gates_reach_it() -> None:
    for gated, call in itertools.product((False, True), repeat=2):
        t = prepare()
        t.put(GATE, gate(TSS2, 0, 5))
        selector = u64(GATE if gated else TSS2)
        if call:
            far_call(t.cpu, selector, u64(0), u64(NEXT), 4)
        else:
            far_jump(t.cpu, selector, u64(0), u64(NEXT))
        assert t.where == (CODE0, 0x2222, 0)
        assert bool(int(t.cpu.s.eflags) & NT) == call


def test_privilege_of_a_tss() -> None:
    t = prepare(dpl=0)
    s = t.cpu.s
    s.cpl, s.seg_selector[Seg.CS] = 3, CODE3 | 3
    assert fault_of(t.cpu, lambda: far_jump(t.cpu, u64(TSS2 | 3), u64(0), u64(NEXT))) == (Vector.GP, TSS2)


@pytest.mark.parametrize(("kind", "size"), [(0x89, 4), (0x81, 2)])
def test_exception_through_a_task_gate_and_back(kind: int, size: int) -> None:
    t = prepare(kind)
    t.vector(13, gate(TSS2, 0, 5))
    deliver(t.cpu, u64(13), u64(Source.EXCEPTION), u64(0x50), u64(1))
    assert t.where == (CODE0, 0x2222, 0)
    assert int(t.cpu.s.gpr[Gpr.RSP]) == 0x6004 - size
    assert t.stack(1, size) == [0x50]
    interrupt_return(t.cpu, u64(NEXT), 4)
    assert t.where == (CODE0, 0x1000, 0)
    assert int(t.cpu.s.seg_selector[Seg.TR]) == TSS_SELECTOR
    assert not busy(t, TSS2) and busy(t, TSS_SELECTOR)
    assert int(t.cpu.s.seg_attr[Seg.SS]) & Attr.P
