"""String instructions: bulk paths against one element at a time, faults between iterations, comparisons."""

from __future__ import annotations

from random import Random

import pytest

from tests.isa.plain import Memory, PlainCpu, Register, run
from xuni.isa.bits import const
from xuni.isa.x86.exceptions import GuestFault
from xuni.isa.x86.state import Eflags, Gpr, Seg

PAGES = 0x1_0000, 0x1_1000
ENCODING = {8: "A4", 16: "A5", 32: "A5", 64: "A5"}


def fresh(width: int, *, rep: str = "rep", asize: int = 64, down: bool = False, seed: int = 1) -> PlainCpu:
    cpu = PlainCpu()
    cpu.osize, cpu.asize, cpu.rep = max(width, 16), asize, rep
    random = Random(seed)
    for page in PAGES:
        cpu.map(page, random.randbytes(4096))
    cpu.s.eflags = int(Eflags.FIXED | (Eflags.DF if down else 0))
    return cpu


def source(cpu: PlainCpu, width: int) -> Memory:
    return Memory(cpu, width, Seg.DS, cpu.reg(Gpr.RSI, cpu.asize).zext(64))


def target(cpu: PlainCpu, width: int) -> Memory:
    return Memory(cpu, width, Seg.ES, cpu.reg(Gpr.RDI, cpu.asize).zext(64))


def set_up(cpu: PlainCpu, rsi: int, rdi: int, rcx: int) -> None:
    cpu.s.gpr[Gpr.RSI], cpu.s.gpr[Gpr.RDI], cpu.s.gpr[Gpr.RCX] = rsi, rdi, rcx


def registers(cpu: PlainCpu) -> tuple[int, int, int]:
    return int(cpu.s.gpr[Gpr.RSI]), int(cpu.s.gpr[Gpr.RDI]), int(cpu.s.gpr[Gpr.RCX])


@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("distance", [-2500, -7, -1, 0, 1, 2, 3, 5, 8, 13, 64, 2500])
@pytest.mark.parametrize("width", [8, 16, 32, 64])
def test_repeated_moves_overlap_as_single_ones_do(width: int, distance: int, down: bool) -> None:
    size, count = width // 8, 37
    rsi = 0x1_0FC0
    moved = fresh(width, down=down)
    set_up(moved, rsi, rsi + distance, count)
    run(moved, "MOVS", target(moved, width), source(moved, width))
    single = fresh(width, down=down)
    for i in range(count):
        at = (-i if down else i) * size
        single.poke(rsi + distance + at, single.peek(rsi + at, size))
    for page in PAGES:
        assert moved.pages[page].raw == single.pages[page].raw
    by = (-count if down else count) * size
    assert registers(moved) == (rsi + by, rsi + distance + by, 0)


@pytest.mark.parametrize("width", [8, 16, 32, 64])
@pytest.mark.parametrize("value", [0, 0x5A5A_5A5A_5A5A_5A5A, 0x0123_4567_89AB_CDEF])
def test_repeated_stores(width: int, value: int) -> None:
    cpu = fresh(width)
    set_up(cpu, 0, 0x1_0FF0 + 3, 9)
    cpu.s.gpr[Gpr.RAX] = value
    expected = (value & (1 << width) - 1).to_bytes(width // 8, "little") * 9
    run(cpu, "STOS", target(cpu, width), Register(cpu, Gpr.RAX, width))
    assert cpu.peek(0x1_0FF3, len(expected)) == expected
    assert registers(cpu) == (0, 0x1_0FF3 + len(expected), 0)


@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("width", [8, 32])
def test_a_fault_finds_the_iterations_before_it_done(width: int, down: bool) -> None:
    size = width // 8
    cpu = fresh(width, down=down)
    edge = 0x1_0000 + 3 * size if down else 0x1_2000 - 4 * size  # the fifth element is not there
    other = 0x1_0800
    set_up(cpu, other, edge, 20)
    step = -size if down else size
    with pytest.raises(GuestFault):
        run(cpu, "MOVS", target(cpu, width), source(cpu, width))
    assert registers(cpu) == (other + 4 * step, edge + 4 * step, 16)
    for i in range(4):
        assert cpu.peek(edge + i * step, size) == cpu.peek(other + i * step, size)


def test_an_element_across_pages_is_moved_whole() -> None:
    cpu = fresh(64)
    set_up(cpu, 0x1_0FFC, 0x1_0100, 3)
    expected = cpu.peek(0x1_0FFC, 24)
    run(cpu, "MOVS", target(cpu, 64), source(cpu, 64))
    assert cpu.peek(0x1_0100, 24) == expected and registers(cpu)[2] == 0


def test_the_limit_of_one_execution() -> None:
    cpu = fresh(8)
    cpu.limit = 10
    set_up(cpu, 0x1_0000, 0x1_0400, 25)
    expected, turns = cpu.peek(0x1_0000, 25), []
    while True:
        cpu.again = False
        run(cpu, "MOVS", target(cpu, 8), source(cpu, 8))
        turns.append(registers(cpu)[2])
        if not cpu.again:
            break
    assert turns == [15, 5, 0] and cpu.peek(0x1_0400, 25) == expected


def test_narrow_address_sizes_wrap_and_count_in_their_register() -> None:
    cpu = fresh(8, asize=16)
    cpu.long = False
    cpu.map(0xF000, bytes([7] * 4096))
    cpu.map(0x0000, bytes([9] * 4096))
    set_up(cpu, 0xABCD_FFFE, 0x1234_0800, 0x5555_0004)
    run(cpu, "MOVS", target(cpu, 8), source(cpu, 8))
    assert cpu.peek(0x800, 4) == b"\x07\x07\x09\x09"
    assert registers(cpu) == (0xABCD_0002, 0x1234_0804, 0x5555_0000)


def test_nothing_happens_with_a_count_of_zero() -> None:
    cpu = fresh(32)
    set_up(cpu, 0, 0, 0)  # nothing is mapped there
    cpu.eflags = int(Eflags.ZF)
    run(cpu, "MOVS", target(cpu, 32), source(cpu, 32))
    for cpu.rep in ("repe", "repne"):
        run(cpu, "CMPS", source(cpu, 32), target(cpu, 32))
        run(cpu, "SCAS", Register(cpu, Gpr.RAX, 32), target(cpu, 32))
    assert registers(cpu) == (0, 0, 0) and cpu.eflags & 0x8D5 == Eflags.ZF


@pytest.mark.parametrize("rep", ["repe", "repne"])
@pytest.mark.parametrize("width", [8, 16, 32, 64])
def test_comparisons_stop_where_they_should(width: int, rep: str) -> None:
    size = width // 8
    cpu = fresh(width, rep=rep)
    base = 0x1_0FE0
    elements = [3, 3, 3, 5, 3, 3, 8, 3] if rep == "repe" else [1, 1, 4, 1, 3, 1, 1, 1]
    stop = next(i for i, e in enumerate(elements) if (e != 3) == (rep == "repe")) + 1
    cpu.poke(base, b"".join(e.to_bytes(size, "little") for e in elements))
    cpu.poke(0x1_0100, (3).to_bytes(size, "little") * 8)
    found = elements[stop - 1]
    expected = (int(Eflags.ZF) if found == 3 else 0) | (int(Eflags.CF) if found > 3 else 0)
    for name in ("SCAS", "CMPS"):
        set_up(cpu, 0x1_0100, base, 8)
        cpu.s.gpr[Gpr.RAX] = 3
        left = Register(cpu, Gpr.RAX, width) if name == "SCAS" else source(cpu, width)
        run(cpu, name, left, target(cpu, width))
        assert registers(cpu)[1:] == (base + stop * size, 8 - stop)
        assert cpu.eflags & (Eflags.ZF | Eflags.CF) == expected


def test_a_comparison_that_faults_keeps_the_flags_from_before() -> None:
    cpu = fresh(8, rep="repe")
    cpu.poke(0x1_1FFE, b"\x01\x01")
    cpu.poke(0x1_0000, b"\x01\x01\x01")
    set_up(cpu, 0x1_0000, 0x1_1FFE, 9)
    cpu.eflags = int(Eflags.CF | Eflags.OF)
    with pytest.raises(GuestFault):
        run(cpu, "CMPS", source(cpu, 8), target(cpu, 8))
    assert registers(cpu) == (0x1_0002, 0x1_2000, 7) and cpu.eflags & 0x8D5 == Eflags.CF | Eflags.OF


@pytest.mark.parametrize("down", [False, True])
def test_without_repetition_the_count_does_not_matter(down: bool) -> None:
    cpu = fresh(32, rep="", down=down)
    set_up(cpu, 0x1_0100, 0x1_0200, 99)
    step = -4 if down else 4
    run(cpu, "MOVS", target(cpu, 32), source(cpu, 32))
    run(cpu, "LODS", Register(cpu, Gpr.RAX, 32), source(cpu, 32))
    assert registers(cpu) == (0x1_0100 + 2 * step, 0x1_0200 + step, 99)
    assert int(cpu.s.gpr[Gpr.RAX]) == int.from_bytes(cpu.peek(0x1_0100 + step, 4), "little")


def test_repeated_loads_end_with_the_last_element() -> None:
    cpu = fresh(16)
    set_up(cpu, 0x1_0100, 0, 5)
    cpu.s.gpr[Gpr.RAX] = const(-1, 64)
    run(cpu, "LODS", Register(cpu, Gpr.RAX, 16), source(cpu, 16))
    last = int.from_bytes(cpu.peek(0x1_0108, 2), "little")
    assert int(cpu.s.gpr[Gpr.RAX]) == 0xFFFF_FFFF_FFFF_0000 | last and registers(cpu)[2] == 0
