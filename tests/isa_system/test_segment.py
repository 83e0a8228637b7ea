"""Logical addresses and loads of segment registers."""

from __future__ import annotations

import itertools
from functools import partial

import pytest

from xuni.isa.bits import u1, u8, u64
from xuni.isa.x86.exceptions import Vector
from xuni.isa.x86.segment import load_segment, segment_address
from xuni.isa.x86.selector import load_ldtr, load_tr, pop_segment, visible_descriptor
from xuni.isa.x86.state import Attr, Gpr, Seg

from .machine import PlainCpu
from .tables import (
    ATTR_CODE,
    ATTR_DATA,
    CONFORMING0,
    DATA0,
    DATA3,
    LDT,
    LDT_SELECTOR,
    SPARE,
    TSS2,
    Tables,
    descriptor,
    fault_of,
)


def address(cpu: PlainCpu, seg: Seg, offset: int, size: int, write: bool = False) -> int:
    return int(segment_address(cpu, u8(seg), u64(offset), u64(size), u1(write)))


# -- addresses ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seg", [Seg.DS, Seg.SS])
def test_limits_by_brute_force(seg: Seg) -> None:
    """Every kind of data segment: the bytes that may be touched are those that a sentence of the manual names."""
    t = Tables.protected()
    s = t.cpu.s
    for expand_down, big, limit in itertools.product((0, 4), (0, int(Attr.DB)), (0, 5, 0xFFFE, 0xFFFF, 0x10000)):
        s.seg_attr[seg] = int(Attr.S | Attr.P) | 2 | expand_down | big
        s.seg_limit[seg], s.seg_base[seg] = limit, 0x1000
        top = 0xFFFFFFFF if big else 0xFFFF
        for offset, size in itertools.product(
            (0, 1, 4, 5, 6, 7, 0xFFFB, 0xFFFE, 0xFFFF, 0x10000, 0x10001, 0xFFFFFFFF), (1, 2, 4, 8)
        ):
            touched = range(offset, offset + size)
            legal = all((limit < n <= top) if expand_down else n <= limit for n in touched)
            found = fault_of(t.cpu, partial(address, t.cpu, seg, offset, size, True))
            expected = None if legal else (Vector.SS if seg == Seg.SS else Vector.GP, 0)
            assert found == expected, (expand_down, big, hex(limit), hex(offset), size)
            if legal:
                assert address(t.cpu, seg, offset, size) == (0x1000 + offset) & 0xFFFFFFFF


@pytest.mark.parametrize(("attr", "readable", "writable"), [
    (ATTR_DATA & ~2, True, False), (ATTR_DATA, True, True), (ATTR_CODE & ~2, False, False), (ATTR_CODE, True, False),
    (Attr.UNUSABLE, False, False), (ATTR_DATA & ~Attr.P, False, False),
])  # fmt: skip
def test_types(attr: int, readable: bool, writable: bool) -> None:
    t = Tables.protected()
    t.cpu.s.seg_attr[Seg.ES] = int(attr)
    assert (fault_of(t.cpu, lambda: address(t.cpu, Seg.ES, 0, 1)) is None) == readable
    assert (fault_of(t.cpu, lambda: address(t.cpu, Seg.ES, 0, 1, True)) is None) == writable


def test_real_mode_ignores_types_but_not_limits() -> None:
    cpu = PlainCpu()
    cpu.s.seg_base[Seg.CS] = 0x12340
    assert address(cpu, Seg.CS, 0x10, 2, True) == 0x12350
    assert fault_of(cpu, lambda: address(cpu, Seg.CS, 0xFFFF, 2)) == (Vector.GP, 0)
    assert fault_of(cpu, lambda: address(cpu, Seg.SS, 0xFFFF, 2)) == (Vector.SS, 0)


def test_64_bit_mode() -> None:
    t = Tables.long()
    s = t.cpu.s
    s.seg_base[Seg.DS], s.seg_limit[Seg.DS], s.seg_attr[Seg.DS] = 0x5000, 0, int(Attr.UNUSABLE)
    s.seg_base[Seg.FS] = 0xFFFF_8000_0000_0000
    assert address(t.cpu, Seg.DS, 0x7FFF_FFFF_FFF8, 8, True) == 0x7FFF_FFFF_FFF8
    assert address(t.cpu, Seg.FS, 0x10, 8) == 0xFFFF_8000_0000_0010
    assert fault_of(t.cpu, lambda: address(t.cpu, Seg.DS, 0x7FFF_FFFF_FFF9, 8)) == (Vector.GP, 0)
    assert fault_of(t.cpu, lambda: address(t.cpu, Seg.SS, 0x8000_0000_0000, 1)) == (Vector.SS, 0)


# -- loads -------------------------------------------------------------------------------------------------------------
def load(t: Tables, seg: Seg, selector: int) -> tuple[int, int] | None:
    return fault_of(t.cpu, lambda: load_segment(t.cpu, u8(seg), u64(selector)))


@pytest.mark.parametrize("cpl", [0, 3])
@pytest.mark.parametrize("seg", [Seg.DS, Seg.SS])
def test_privilege_and_type_by_brute_force(cpl: int, seg: Seg) -> None:
    for kind, dpl, rpl, present in itertools.product(range(32), range(4), range(4), (True, False)):
        t = Tables.protected(cpl)
        t.put(SPARE, descriptor(0x123456, 0xABCDE, kind | dpl << 5 | present << 7 | Attr.G))
        selector = SPARE | rpl
        is_segment, is_code = kind & 16, kind & 8
        if seg == Seg.SS:
            fits = bool(is_segment and not is_code and kind & 2 and dpl == cpl == rpl)
            missing = Vector.SS
        else:
            conforming = is_code and kind & 4
            fits = bool(is_segment and (not is_code or kind & 2) and (conforming or max(cpl, rpl) <= dpl))
            missing = Vector.NP
        expected = None if fits and present else (missing if fits else Vector.GP, SPARE)
        assert load(t, seg, selector) == expected, (kind, dpl, rpl, present)
        if expected is None:
            s = t.cpu.s
            assert int(s.seg_base[seg]) == 0x123456
            assert int(s.seg_limit[seg]) == 0xABCDEFFF
            assert int(s.seg_selector[seg]) == selector
            assert int(s.seg_attr[seg]) & 1 and t.entry(SPARE) >> 40 & 1


def test_null_selectors() -> None:
    t = Tables.protected(3)
    assert load(t, Seg.ES, 3) is None
    assert int(t.cpu.s.seg_attr[Seg.ES]) & Attr.UNUSABLE
    assert load(t, Seg.SS, 0) == (Vector.GP, 0)
    t = Tables.long()
    assert load(t, Seg.SS, 0) is None, "64-bit mode below CPL 3 has no use for SS"
    assert load(t, Seg.SS, 3) == (Vector.GP, 0)
    assert load(Tables.long(3), Seg.SS, 3) == (Vector.GP, 0)


def test_table_limits_and_the_ldt() -> None:
    t = Tables.protected()
    assert load(t, Seg.DS, 0x100) == (Vector.GP, 0x100)
    assert load(t, Seg.DS, 4) == (Vector.GP, 4), "no LDT"
    t.put(LDT_SELECTOR, descriptor(LDT, 7, 0x82))
    load_ldtr(t.cpu, u64(LDT_SELECTOR))
    t.cpu.ram.write(LDT, descriptor(0x777, 1, int(ATTR_DATA)), 8)
    assert load(t, Seg.DS, 4) is None
    assert int(t.cpu.s.seg_base[Seg.DS]) == 0x777
    assert load(t, Seg.DS, 0xC) == (Vector.GP, 0xC)


def test_real_mode_keeps_the_limit() -> None:
    cpu = PlainCpu()
    cpu.s.seg_limit[Seg.DS] = 0xFFFFFFFF
    load_segment(cpu, u8(Seg.DS), u64(0xB800))
    assert (int(cpu.s.seg_base[Seg.DS]), int(cpu.s.seg_limit[Seg.DS])) == (0xB8000, 0xFFFFFFFF)


def test_pop_of_a_bad_selector_leaves_the_stack() -> None:
    t = Tables.protected()
    t.push(4, 0x123)
    assert fault_of(t.cpu, lambda: pop_segment(t.cpu, u64(Seg.DS), 4)) == (Vector.GP, 0x120)
    t.push(4, DATA0)
    before = int(t.cpu.s.gpr[Gpr.RSP])
    pop_segment(t.cpu, u64(Seg.SS), 4)
    assert int(t.cpu.s.gpr[Gpr.RSP]) == before + 4
    assert int(t.cpu.s.interrupt_shadow) != 0


# -- LTR, LLDT, LAR ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("kind", "expected"), [
    (0x89, None), (0x81, None), (0x8B, (Vector.GP, TSS2)), (0x82, (Vector.GP, TSS2)), (0x09, (Vector.NP, TSS2)),
    (0x92, (Vector.GP, TSS2)),
])  # fmt: skip
def test_ltr(kind: int, expected: tuple[int, int] | None) -> None:
    t = Tables.protected()
    t.put(TSS2, descriptor(0x9000, 0x67, kind))
    assert fault_of(t.cpu, lambda: load_tr(t.cpu, u64(TSS2))) == expected
    if expected is None:
        assert t.entry(TSS2) >> 40 & 0xFF == kind | 2, "busy"
        assert int(t.cpu.s.seg_base[Seg.TR]) == 0x9000


def test_ltr_in_long_mode() -> None:
    t = Tables.long()
    t.put(TSS2, descriptor(0x9000, 0x67, 0x89))
    t.put(TSS2 + 8, 0xFFFF8000)
    load_tr(t.cpu, u64(TSS2))
    assert int(t.cpu.s.seg_base[Seg.TR]) == 0xFFFF8000_00009000
    t.put(TSS2, descriptor(0x9000, 0x67, 0x89))
    t.put(TSS2 + 8, 0x8000)
    assert fault_of(t.cpu, lambda: load_tr(t.cpu, u64(TSS2))) == (Vector.GP, TSS2), "base not canonical"
    t.put(TSS2, descriptor(0x9000, 0x67, 0x81))
    assert fault_of(t.cpu, lambda: load_tr(t.cpu, u64(TSS2))) == (Vector.GP, TSS2), "16-bit TSS"


def test_what_a_program_may_know() -> None:
    t = Tables.protected(3)

    def visible(selector: int) -> bool:
        return int(visible_descriptor(t.cpu, u64(selector), u64(1 << 2))[0]) != 0

    assert not visible(0) and not visible(DATA0) and not visible(0x1000)
    assert visible(DATA3) and visible(CONFORMING0)
    t.put(LDT_SELECTOR, descriptor(LDT, 7, 0xE2))
    assert visible(LDT_SELECTOR), "DPL 3"
    t.put(LDT_SELECTOR, descriptor(LDT, 7, 0xE9))
    assert not visible(LDT_SELECTOR), "a type that does not count"

