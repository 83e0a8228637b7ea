"""Page tables as the monitor lists them, in each paging mode, and tables that are meant to harm."""

from __future__ import annotations

from dataclasses import replace
from struct import pack_into

import pytest

from xuni.debug import pages
from xuni.debug.pages import Page, Walk, range_lines, tlb_lines
from xuni.isa.x86.cpustate import TableRegister, long_flat, protected_flat
from xuni.isa.x86.state import Cr4
from xuni.isa.x86.translation import translate
from xuni.memory.guest import GuestMemory

P, W, U, LARGE, NX, G = 1, 2, 4, 0x80, 1 << 63, 0x100


@pytest.fixture
def memory():
    with GuestMemory(1 << 20) as memory:
        yield memory


def table(memory: GuestMemory, address: int, entries: dict[int, int], size: int = 8) -> None:
    data = bytearray(4096)
    for index, entry in entries.items():
        pack_into("<Q" if size == 8 else "<I", data, index * size, entry)
    memory.write(address, data)


def long_mode(cr3: int, la57: bool = False):
    state = long_flat(0, cr3, gdtr=TableRegister())
    return replace(state, cr4=state.cr4 | (int(Cr4.LA57) if la57 else 0))


def check(memory: GuestMemory, registers) -> list[Page]:
    found = list(Walk(memory, registers).pages())
    r = registers
    for page in found:
        for offset in (0, page.size - 1):
            assert translate(memory.read, r.cr0, r.cr3, r.cr4, r.efer, page.linear + offset) == page.physical + offset
    return found


def test_four_levels_both_halves_and_every_size(memory):
    table(memory, 0x1000, {0: 0x2000 | P | W | U, 511: 0x2000 | P | W})
    table(memory, 0x2000, {0: 0x3000 | P | W | U, 5: 1 << 30 | P | LARGE | G})
    table(memory, 0x3000, {1: 0x4000 | P | U, 2: 0x60_0000 | P | W | U | LARGE | NX})
    table(memory, 0x4000, {3: 0x9000 | P | W | U, 4: 0xA000 | P | U})
    registers = long_mode(0x1000)
    found = check(memory, registers)
    assert len(found) == 8
    assert [(page.linear, page.size) for page in found[:4]] == [
        (0x203000, 4096), (0x204000, 4096), (0x400000, 2 << 20), (5 << 30, 1 << 30)]
    assert found[4].linear == 0xFFFF_FF80_0020_3000
    assert list(tlb_lines(Walk(memory, registers)))[:4] == [
        "0000000000203000: 0000000000009000 -------U-", "0000000000204000: 000000000000a000 -------U-",
        "0000000000400000: 0000000000600000 X-P----UW", "0000000140000000: 0000000040000000 -GP------",
    ]  # fmt: skip
    assert list(range_lines(Walk(memory, registers)))[:3] == [
        "0000000000203000-0000000000205000 0000000000002000 ur-", "0000000000400000-0000000000600000 0000000000200000 urw",
        "0000000140000000-0000000180000000 0000000040000000 -r-",
    ]  # fmt: skip


def test_five_levels(memory):
    table(memory, 0x1000, {256: 0x2000 | P | W})
    table(memory, 0x2000, {0: 0x3000 | P | W})
    table(memory, 0x3000, {0: 0 | P | LARGE})
    assert check(memory, long_mode(0x1000, la57=True)) == [Page(0xFF00_0000_0000_0000, 0, 1 << 30, P | LARGE)]


def test_two_levels_with_large_pages_and_pae(memory):
    flat = protected_flat(0)
    registers = replace(flat, cr0=flat.cr0 | 1 << 31, cr3=0x1000, cr4=int(Cr4.PSE))
    table(memory, 0x1000, {0: 0x2000 | P | W | U, 1: 0x40_0000 | 1 << 13 | P | LARGE}, size=4)
    table(memory, 0x2000, {7: 0x9000 | P | W}, size=4)
    assert check(memory, registers) == [
        Page(0x7000, 0x9000, 4096, P | W), Page(0x40_0000, 1 << 32 | 0x40_0000, 4 << 20, P | LARGE)]  # fmt: skip
    pae = replace(registers, cr4=int(Cr4.PAE), cr3=0x1020)
    table(memory, 0x1000, {4: 0x2000 | P, 7: 0x2000 | P})
    table(memory, 0x2000, {0: 0x3000 | P | W | U, 1: 0x20_0000 | P | W | LARGE})
    table(memory, 0x3000, {1: 0x9000 | P | U})
    found = check(memory, pae)
    assert [page.linear for page in found] == [0x1000, 0x20_0000, 0xC000_1000, 0xC020_0000]
    assert found[0].flags & (U | W) == U


def test_tables_that_contain_themselves_and_tables_nowhere_end(memory, monkeypatch):
    monkeypatch.setattr(pages, "MOST_TABLES", 100)
    table(memory, 0x1000, dict.fromkeys(range(512), 4096 | P | W | U))
    walk = Walk(memory, long_mode(0x1000))
    count = sum(1 for _ in walk.pages())
    assert walk.cut and count <= pages.MOST_TABLES * 512
    assert list(Walk(memory, long_mode(0xFFFF_F000)).pages()) == []
    table(memory, 0x1000, {0: 0x000F_FFFF_FFFF_F000 | P})
    assert list(Walk(memory, long_mode(0x1000)).pages()) == []
