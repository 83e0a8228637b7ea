"""Event delivery in every mode, and the double-fault table."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from xuni.isa.bits import u64
from xuni.isa.x86.exceptions import GuestFault, Vector
from xuni.isa.x86.interrupt import Source, deliver, deliver_at, handle_fault, software_interrupt
from xuni.isa.x86.state import Attr, Cr4, Eflags, Gpr, Seg

from .machine import PlainCpu, Shutdown
from .tables import (
    CODE0,
    CODE3,
    CODE16,
    CODE64,
    CONFORMING0,
    DATA0,
    DATA3,
    STACK0,
    STACK3,
    TSS,
    TSS_SELECTOR,
    Tables,
    fault_of,
    gate,
)

HANDLER = 0x1234
IF, TF, NT, RF, VM = int(Eflags.IF), int(Eflags.TF), int(Eflags.NT), int(Eflags.RF), int(Eflags.VM)


def event(t: Tables, vector: int, source: Source = Source.EXTERNAL, error: int | None = None) -> Callable[[], None]:
    return lambda: deliver(t.cpu, u64(vector), u64(source), u64(error or 0), u64(int(error is not None)))


# -- real mode ---------------------------------------------------------------------------------------------------------
def test_real_mode() -> None:
    cpu = PlainCpu()
    s = cpu.s
    cpu.ram.write(0x21 * 4, 0x0123_4567, 4)
    s.idtr_limit = 0x3FF
    s.seg_selector[Seg.CS], s.seg_base[Seg.CS] = 0x1000, 0x10000
    s.gpr[Gpr.RSP], s.rip, s.eflags = 0x1_0002, 0x9999, 2 | IF | TF
    deliver(cpu, u64(0x21), u64(Source.SOFTWARE), u64(0), u64(0))
    assert (int(s.seg_selector[Seg.CS]), int(s.seg_base[Seg.CS]), int(s.rip)) == (0x0123, 0x1230, 0x4567)
    assert int(s.gpr[Gpr.RSP]) == 0x1_FFFC, "16-bit SP wraps and leaves the upper half alone"
    assert (cpu.ram.read(0, 2), cpu.ram.read(0xFFFE, 2), cpu.ram.read(0xFFFC, 2)) == (2 | IF | TF, 0x1000, 0x9999)
    assert int(s.eflags) == 2


def test_real_mode_vector_past_the_table() -> None:
    cpu = PlainCpu()
    cpu.s.idtr_limit = 0x7F
    assert fault_of(cpu, lambda: deliver(cpu, u64(0x20), u64(Source.SOFTWARE), u64(0), u64(0))) == (Vector.GP, 0x102)


# -- protected mode ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("kind", "clears_if"), [(14, True), (15, False)])
def test_same_level(kind: int, clears_if: bool) -> None:
    t = Tables.protected()
    t.vector(14, gate(CODE0, HANDLER, kind))
    t.cpu.s.eflags = 2 | IF | TF | NT
    event(t, 14, Source.EXCEPTION, 6)()
    assert t.where == (CODE0, HANDLER, 0)
    assert t.stack(4, 4) == [6, 0x1000, CODE0, 2 | IF | TF | NT | RF]
    assert int(t.cpu.s.eflags) == (2 if clears_if else 2 | IF)


def test_16_bit_gate() -> None:
    t = Tables.protected()
    t.vector(9, gate(CODE0, 0xABCD_1234, 6))
    event(t, 9)()
    assert t.where == (CODE0, 0x1234, 0)
    assert t.stack(3, 2) == [0x1000, CODE0, 2]


def test_inner_level() -> None:
    t = Tables.protected(3)
    t.vector(13, gate(CODE0, HANDLER, 14))
    event(t, 13, Source.EXCEPTION, 0x50)()
    assert t.where == (CODE0, HANDLER, 0)
    assert t.stack(6, 4) == [0x50, 0x1000, CODE3 | 3, 2 | RF, STACK3, DATA3 | 3]
    s = t.cpu.s
    assert (int(s.seg_selector[Seg.SS]), int(s.gpr[Gpr.RSP])) == (DATA0, STACK0 - 24)
    assert t.entry(CODE0) >> 40 & 1 and t.entry(DATA0) >> 40 & 1, "descriptors are marked accessed"


def test_conforming_handler_keeps_the_level() -> None:
    t = Tables.protected(3)
    t.vector(32, gate(CONFORMING0, HANDLER, 14))
    event(t, 32)()
    assert t.where == (CONFORMING0 | 3, HANDLER, 3)


GATES = [
    ("beyond the limit", None, 0xFFF >> 3, None),
    ("wrong type", gate(CODE0, 0, 12), 0x20, (Vector.GP, 0x103)),
    ("not present", gate(CODE0, 0, 14, present=False), 0x20, (Vector.NP, 0x103)),
    ("null selector", gate(0, 0, 14), 0x20, (Vector.GP, 1)),
    ("selector beyond the GDT", gate(0x1000, 0, 14), 0x20, (Vector.GP, 0x1001)),
    ("data segment", gate(DATA0, 0, 14), 0x20, (Vector.GP, DATA0 | 1)),
    ("less privileged handler", gate(CODE3, 0, 14), 0x20, (Vector.GP, CODE3 | 1)),
    ("beyond the code's limit", gate(CODE16, 0x10000, 14), 0x20, (Vector.GP, 1)),
]


@pytest.mark.parametrize(("value", "vector", "expected"), [g[1:] for g in GATES], ids=[g[0] for g in GATES])
def test_gates_that_refuse(value: int | None, vector: int, expected: tuple[int, int] | None) -> None:
    t = Tables.protected()
    if value is None:
        t.cpu.s.idtr_limit = 0xFF
        assert fault_of(t.cpu, event(t, 0x20)) == (Vector.GP, 0x103)
    else:
        t.vector(vector, value)
        assert fault_of(t.cpu, event(t, vector)) == expected


def test_software_needs_dpl_and_has_no_ext() -> None:
    t = Tables.protected(3)
    t.vector(0x80, gate(CODE0, HANDLER, 15))
    assert fault_of(t.cpu, lambda: software_interrupt(t.cpu, u64(0x80), u64(0x1002))) == (Vector.GP, 0x402)
    assert fault_of(t.cpu, event(t, 0x80)) is None, "hardware needs no DPL"
    t = Tables.protected(3)
    t.vector(0x80, gate(CODE0, HANDLER, 15, dpl=3))
    software_interrupt(t.cpu, u64(0x80), u64(0x1002))
    assert t.where == (CODE0, HANDLER, 0)
    assert t.stack(3, 4) == [0x1002, CODE3 | 3, 2]


def test_stack_of_the_tss_is_checked() -> None:
    t = Tables.protected(3)
    t.vector(32, gate(CODE0, HANDLER, 14))
    t.cpu.ram.write(TSS + 8, DATA3 | 3, 4)
    assert fault_of(t.cpu, event(t, 32)) == (Vector.TS, DATA3 & ~3 | 1)
    t.cpu.ram.write(TSS + 8, 0, 4)
    assert fault_of(t.cpu, event(t, 32)) == (Vector.TS, 1)
    t.cpu.ram.write(TSS + 8, DATA0, 4)
    t.put(DATA0, t.entry(DATA0) & ~(1 << 47))
    assert fault_of(t.cpu, event(t, 32)) == (Vector.SS, DATA0 | 1)
    t.cpu.s.seg_limit[Seg.TR] = 8
    assert fault_of(t.cpu, event(t, 32)) == (Vector.TS, TSS_SELECTOR | 1)


def test_stack_without_room() -> None:
    t = Tables.protected()
    t.vector(32, gate(CODE0, HANDLER, 14))
    t.cpu.s.seg_limit[Seg.SS] = 0xFFF
    assert fault_of(t.cpu, event(t, 32)) == (Vector.SS, 1)


# -- virtual-8086 mode -------------------------------------------------------------------------------------------------
def test_from_virtual_8086() -> None:
    t = Tables.virtual_8086()
    t.vector(13, gate(CODE0, HANDLER, 14))
    event(t, 13, Source.EXCEPTION, 0)()
    assert t.where == (CODE0, HANDLER, 0)
    assert t.stack(10, 4) == [0, 0x10, 0x100, 2 | VM | RF, 0x800, 0x780, 0x300, 0x310, 0x320, 0x330]
    s = t.cpu.s
    assert all(int(s.seg_selector[n]) == 0 and int(s.seg_attr[n]) & Attr.UNUSABLE for n in (0, 3, 4, 5))
    assert not int(s.eflags) & VM


def test_virtual_8086_handler_must_be_level_0() -> None:
    t = Tables.virtual_8086()
    t.vector(13, gate(CONFORMING0, HANDLER, 14))
    assert fault_of(t.cpu, event(t, 13, Source.EXCEPTION, 0)) == (Vector.GP, CONFORMING0 | 1)


@pytest.mark.parametrize("iopl", [0, 3])
@pytest.mark.parametrize("vme", [False, True])
@pytest.mark.parametrize("redirect", [False, True])
def test_int_in_virtual_8086(iopl: int, vme: bool, redirect: bool) -> None:
    """Table 20-2."""
    t = Tables.virtual_8086()
    s = t.cpu.s
    s.eflags = int(s.eflags) | iopl << 12 | int(Eflags.VIF) | IF
    s.cr4 = int(Cr4.VME) if vme else 0
    t.vector(0x21, gate(CODE0, HANDLER, 15, dpl=3))
    t.cpu.ram.write(0x21 * 4, 0x0200_0030, 4)
    s.seg_limit[Seg.TR] = 0x200
    t.cpu.ram.write(TSS + 0x66, 0x90, 2)
    t.cpu.ram.write(TSS + 0x90 - 32 + (0x21 >> 3), 0 if redirect else 1 << (0x21 & 7), 1)
    found = fault_of(t.cpu, lambda: software_interrupt(t.cpu, u64(0x21), u64(0x12)))
    if vme and redirect:
        assert found is None and t.where == (0x200, 0x30, 3)
        flags = t.stack(3, 2)[2]
        if iopl == 3:
            assert flags & IF and not int(s.eflags) & IF and int(s.eflags) & Eflags.VIF
        else:
            assert flags & IF and flags >> 12 & 3 == 3, "the image has VIF for IF, and IOPL 3"
            assert int(s.eflags) & IF and not int(s.eflags) & Eflags.VIF
    elif iopl == 3:
        assert found is None and t.where == (CODE0, HANDLER, 0)
    else:
        assert found == (Vector.GP, 0)


# -- IA-32e mode -------------------------------------------------------------------------------------------------------
def test_long_same_level_aligns_the_stack() -> None:
    t = Tables.long()
    t.cpu.s.gpr[Gpr.RSP] = STACK0 - 3
    t.vector(14, gate(CODE64, HANDLER, 14) | 0xFFFF8000 << 64)
    event(t, 14, Source.EXCEPTION, 2)()
    assert t.where == (CODE64, 0xFFFF8000_00001234, 0)
    assert t.stack(6, 8) == [2, 0x1000, CODE64, 2 | RF, STACK0 - 3, DATA0]
    assert int(t.cpu.s.gpr[Gpr.RSP]) == STACK0 - 16 - 48
    assert int(t.cpu.s.seg_selector[Seg.SS]) == DATA0


def test_long_inner_level() -> None:
    t = Tables.long(3)
    t.vector(32, gate(CODE64, HANDLER, 14))
    t.cpu.s.seg_base[Seg.FS] = 0x1234
    event(t, 32)()
    assert t.where == (CODE64, HANDLER, 0)
    s = t.cpu.s
    assert (int(s.seg_selector[Seg.SS]), int(s.seg_attr[Seg.SS]) & Attr.UNUSABLE) == (0, Attr.UNUSABLE)
    assert int(s.seg_base[Seg.FS]) == 0x1234
    assert t.stack(5, 8) == [0x1000, t.cpu.ram.read(int(s.gpr[Gpr.RSP]) + 8, 8), 2, STACK3, DATA3 | 3]


def test_ist() -> None:
    t = Tables.long()
    t.cpu.ram.write(TSS + 0x24 + 8 * 2, 0x6008, 8)  # IST3
    t.vector(8, gate(CODE64, HANDLER, 14, extra=3))
    event(t, 8, Source.EXCEPTION, 0)()
    assert int(t.cpu.s.gpr[Gpr.RSP]) == 0x6000 - 48
    t.cpu.s.seg_limit[Seg.TR] = 0x24 + 8 * 2
    assert fault_of(t.cpu, event(t, 8, Source.EXCEPTION, 0)) == (Vector.TS, TSS_SELECTOR | 1)


@pytest.mark.parametrize(("value", "expected"), [
    (gate(CODE0, HANDLER, 14), (Vector.GP, CODE0 | 1)),  # not 64-bit code
    (gate(CODE64, HANDLER, 6), (Vector.GP, 0x103)),  # 16-bit gate
    (gate(CODE64, HANDLER, 5), (Vector.GP, 0x103)),  # task gate
    (gate(CODE64, HANDLER, 14) | 0x8000 << 64, (Vector.GP, 1)),  # not canonical
    (gate(CODE64, HANDLER, 14, present=False), (Vector.NP, 0x103)),
])  # fmt: skip
def test_long_gates_that_refuse(value: int, expected: tuple[int, int]) -> None:
    t = Tables.long()
    t.vector(0x20, value)
    assert fault_of(t.cpu, event(t, 0x20)) == expected


def test_non_canonical_stack() -> None:
    t = Tables.long()
    t.vector(0x20, gate(CODE64, HANDLER, 14))
    t.cpu.s.gpr[Gpr.RSP] = 0x8000_0000_0000_0000
    assert fault_of(t.cpu, event(t, 0x20)) == (Vector.SS, 1)


def test_nmi_blocks_nmis() -> None:
    t = Tables.long()
    t.vector(2, gate(CODE64, HANDLER, 14))
    event(t, 2)()
    assert int(t.cpu.s.nmi_blocked) == 1


# -- faults during delivery --------------------------------------------------------------------------------------------
BENIGN, CONTRIBUTORY, PAGE, DOUBLE = "benign", "contributory", "page fault", "double fault"
CLASS = {
    Vector.DE: CONTRIBUTORY, Vector.DB: BENIGN, Vector.NMI: BENIGN, Vector.BP: BENIGN, Vector.OF: BENIGN,
    Vector.BR: BENIGN, Vector.UD: BENIGN, Vector.NM: BENIGN, Vector.DF: DOUBLE, Vector.TS: CONTRIBUTORY,
    Vector.NP: CONTRIBUTORY, Vector.SS: CONTRIBUTORY, Vector.GP: CONTRIBUTORY, Vector.PF: PAGE, Vector.MF: BENIGN,
    Vector.AC: BENIGN, Vector.MC: BENIGN, Vector.XM: BENIGN,
}  # fmt: skip
SECOND = (Vector.DE, Vector.UD, Vector.TS, Vector.NP, Vector.SS, Vector.GP, Vector.PF, Vector.AC)


@pytest.mark.parametrize("first", list(CLASS), ids=lambda v: v.name)
@pytest.mark.parametrize("second", SECOND, ids=lambda v: v.name)
def test_double_fault_table(first: Vector, second: Vector) -> None:
    """Table 6-5."""
    t = Tables.long()
    for vector in range(32):
        t.vector(vector, gate(CODE64, 0x100 * vector, 14))
    s = t.cpu.s
    s.delivering = first + 1
    s.fault_vector, s.fault_error, s.fault_has_error, s.fault_address = int(second), 0x18, 1, 0xABC000
    a, b = CLASS[first], CLASS[second]
    if a == DOUBLE and b != BENIGN:
        with pytest.raises(Shutdown):
            handle_fault(t.cpu)
        return
    handle_fault(t.cpu)
    doubled = (a, b) in ((CONTRIBUTORY, CONTRIBUTORY), (PAGE, CONTRIBUTORY), (PAGE, PAGE))
    assert int(s.rip) == 0x100 * (8 if doubled else second)
    assert t.stack(1, 8) == [0 if doubled else 0x18]
    assert int(s.cr2) == (0xABC000 if second == Vector.PF else 0)
    assert int(s.delivering) == 0


def test_triple_fault_by_an_empty_idt() -> None:
    t = Tables.long()
    t.cpu.s.idtr_limit = 0

    def fault() -> None:
        raise GuestFault(t.cpu, Vector.UD)

    action: Callable[[], None] = fault
    seen = []
    with pytest.raises(Shutdown):
        for _ in range(10):
            try:
                action()
            except GuestFault:
                seen.append(int(t.cpu.s.fault_vector))
            action = lambda: handle_fault(t.cpu)  # noqa: E731
    assert seen == [Vector.UD, Vector.GP, Vector.GP, Vector.GP], "#UD; #GP for it; #GP for that one: #DF; #GP for #DF"


def test_fault_of_a_software_interrupt_is_not_a_second_one() -> None:
    t = Tables.long()
    t.cpu.s.idtr_limit = 0x20 * 16 - 1
    for vector in range(32):
        t.vector(vector, gate(CODE64, 0x100 * vector, 14))
    with pytest.raises(GuestFault):
        software_interrupt(t.cpu, u64(0x80), u64(0x1002))
    handle_fault(t.cpu)
    assert int(t.cpu.s.rip) == 0x100 * Vector.GP
    assert t.stack(2, 8) == [0x402, 0x1000]


def test_deliver_at_returns_where_it_is_told() -> None:
    t = Tables.long()
    t.vector(3, gate(CODE64, HANDLER, 14))
    deliver_at(t.cpu, u64(3), u64(Source.SOFTWARE_EXCEPTION), u64(0), u64(0), u64(0x4444))
    assert t.stack(1, 8) == [0x4444]
