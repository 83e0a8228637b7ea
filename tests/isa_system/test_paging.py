"""Page walks against an oracle that is written the other way round: a list of levels, and rules as sentences."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

import pytest

from xuni.isa.bits import Bits, u32, u64
from xuni.isa.x86.exceptions import GuestFault, Vector
from xuni.isa.x86.paging import Access, set_pkru, walk
from xuni.isa.x86.state import Cr0, Cr4, Efer, Eflags

from .machine import Memory, PlainCpu

PHYSICAL_BITS = 40
P, W, U, A, D, PS, G = (1 << n for n in (0, 1, 2, 5, 6, 7, 8))
NX = 1 << 63


@dataclass
class Format:
    """A paging format as data: index position and width of each level, and the levels that may map a page."""

    name: str
    entry: int  # bytes
    levels: tuple[tuple[int, int], ...]  # (lowest address bit, index bits), top first
    leaves: tuple[int, ...]  # lowest address bits of the levels at which PS may map a page
    long: bool = False


FORMATS = [
    Format("32-bit", 4, ((22, 10), (12, 10)), (22,)),
    Format("PAE", 8, ((21, 9), (12, 9)), (21,)),
    Format("4-level", 8, ((39, 9), (30, 9), (21, 9), (12, 9)), (30, 21), long=True),
    Format("5-level", 8, ((48, 9), (39, 9), (30, 9), (21, 9), (12, 9)), (30, 21), long=True),
]


@dataclass
class Expected:
    error: int | None
    physical: int = 0
    rights: int = 0


def reserved_bits(form: Format, low: int, entry: int, nxe: bool, pse: bool) -> int:
    address = sum(1 << n for n in range(PHYSICAL_BITS, 52))
    if form.name == "32-bit":
        return 1 << 21 if pse and low == 22 and entry & PS else 0  # 40 address bits: all of bits 20:13 are address
    bits = address if form.long else sum(1 << n for n in range(PHYSICAL_BITS, 63))
    if not nxe:
        bits |= NX
    if low > 30 and form.long:
        bits |= PS
    if entry & PS and low in form.leaves:
        bits |= sum(1 << n for n in range(13, low))
    return bits


def oracle(form: Format, cpu: PlainCpu, linear: int, access: int, ram: Memory) -> Expected:
    """What the manual says, level by level, over a copy of the memory."""
    s = cpu.s
    write, user, fetch = bool(access & 1), bool(access & 2), bool(access & 4)
    implicit = bool(access & 8)
    cr4, wp = int(s.cr4), bool(int(s.cr0) & Cr0.WP)
    nxe = bool(int(s.efer) & Efer.NXE)
    nx_works = form.entry == 8 and nxe
    code = write * 2 + user * 4
    if fetch and (nx_works or cr4 & Cr4.SMEP):
        code += 16
    table = int(s.cr3) & ~0xFFF
    if form.name == "PAE":
        pointer = int(s.pdpte[linear >> 30 & 3])
        if not pointer & P:
            return Expected(code)
        table = pointer & ~0xFFF
    entries = []
    for low, width in form.levels:
        entry = ram.read(table + (linear >> low & (1 << width) - 1) * form.entry, form.entry)
        if not entry & P:
            return Expected(code)
        if entry & reserved_bits(form, low, entry, nxe, bool(cr4 & Cr4.PSE)):
            return Expected(code + 9)
        entries.append(entry)
        if low in form.leaves and entry & PS and (form.entry == 8 or cr4 & Cr4.PSE):
            break
        table = entry & ((1 << 52) - 1) & ~0xFFF
    leaf = entries[-1]
    base = leaf & ((1 << 52) - 1) & ~((1 << low) - 1)
    if form.name == "32-bit" and low == 22:
        base |= (leaf >> 13 & 0xFF) << 32

    user_page = all(e & U for e in entries)
    writable = all(e & W for e in entries)
    executable = not (nx_works and any(e & NX for e in entries))
    keys = 0
    if form.long:
        key = leaf >> 59 & 15
        if user_page and cr4 & Cr4.PKE:
            keys = int(s.pkru) >> 2 * key & 3
        if not user_page and cr4 & Cr4.PKS:
            keys = int(s.pkrs) >> 2 * key & 3

    def may(write: bool, fetch: bool) -> tuple[bool, bool]:
        """(allowed, refused by a protection key)."""
        if user and not user_page:
            allowed = False
        elif fetch:
            allowed = executable and (user or not (user_page and cr4 & Cr4.SMEP))
        else:
            allowed = writable or not write or (not user and not wp)
            smap = cr4 & Cr4.SMAP and (implicit or not int(s.eflags) & Eflags.AC)
            if not user and user_page and smap:
                allowed = False
        by_key = not fetch and bool(keys & 1 or (write and keys & 2 and (user or wp)))
        return allowed and not by_key, by_key

    allowed, by_key = may(write, fetch)
    if not allowed:
        return Expected(code + 1 + (32 if by_key else 0))
    rights = may(False, False)[0] * 1 + (may(True, False)[0] and bool(write or leaf & D)) * 2 + may(False, True)[0] * 4
    rights += 8 * bool(leaf & G and cr4 & Cr4.PGE) + (low << 8)
    return Expected(None, base | linear & (1 << low) - 1, rights)


def set_up(form: Format, random_: random.Random, cpu: PlainCpu) -> int:
    """Tables for one linear address with entries that are mostly good, and controls at random."""
    s, pick = cpu.s, random_.random
    linear = random_.getrandbits(57 if form.long else 32)
    table = 0x1000
    s.cr3 = table
    if form.name == "PAE":
        for n in range(4):
            s.pdpte[n] = table | (P if pick() < 0.95 else 0)
    for n, (low, width) in enumerate(form.levels):
        entry = table + 0x1000
        for bit in (P, W, U):
            entry |= bit if pick() < 0.85 else 0
        for bit in (A, D, G):
            entry |= bit if pick() < 0.5 else 0
        if low in form.leaves and pick() < 0.4:
            entry = PS | entry & 0xFFF | random_.getrandbits(PHYSICAL_BITS if form.entry == 8 else 32) >> low << low
            if form.entry == 4:
                entry |= random_.getrandbits(8) << 13
        if form.entry == 8:
            entry |= NX if pick() < 0.2 else 0
            if form.long:
                entry |= random_.getrandbits(11) << 52
        if pick() < 0.05:
            entry ^= 1 << random_.randrange(8 * form.entry)
        at = table + (linear >> low & (1 << width) - 1) * form.entry
        cpu.ram.write(at, entry, form.entry)
        table = 0x1000 * (n + 2)
    s.pkru, s.pkrs = random_.getrandbits(32), random_.getrandbits(32)
    s.cr0 = int(Cr0.PE | Cr0.PG) | (int(Cr0.WP) if pick() < 0.5 else 0)
    cr4 = 0
    for bit in (Cr4.PSE, Cr4.PGE, Cr4.SMEP, Cr4.SMAP):
        cr4 |= int(bit) if pick() < 0.5 else 0
    if form.entry == 8:
        cr4 |= Cr4.PAE
    if form.long:
        for bit in (Cr4.PKE, Cr4.PKS):
            cr4 |= int(bit) if pick() < 0.3 else 0
        cr4 |= Cr4.LA57 if form.name == "5-level" else 0
    s.cr4 = cr4
    s.efer = (int(Efer.LMA | Efer.LME) if form.long else 0) | (int(Efer.NXE) if pick() < 0.6 else 0)
    s.eflags = 2 | (int(Eflags.AC) if pick() < 0.5 else 0)
    return linear


@pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.name)
def test_walk_against_the_oracle(form: Format) -> None:
    random_ = random.Random(form.name)
    outcomes = set()
    for _ in range(250):
        cpu = PlainCpu(Memory(0x8000))
        linear = set_up(form, random_, cpu)
        for access in (0, 1, 2, 3, 4, 6, 8, 9):
            before = bytes(cpu.ram.data)
            expected = oracle(form, cpu, linear, access, cpu.ram)
            what = f"{form.name} {linear:#x} access {access} cr4 {int(cpu.s.cr4):#x} efer {int(cpu.s.efer):#x}"
            try:
                physical, rights = walk(cpu, u64(linear), u64(access))
            except GuestFault:
                assert int(cpu.s.fault_vector) == Vector.PF
                assert int(cpu.s.fault_error) == expected.error, what
                assert int(cpu.s.fault_address) == linear
                assert bytes(cpu.ram.data) == before, "a walk that faults changes nothing"
                outcomes.add(expected.error)
                continue
            assert (int(physical), int(rights)) == (expected.physical, expected.rights), what
            assert expected.error is None, what
            check_flags(form, cpu, linear, access, before)
            outcomes.add(-1 - int(rights >> 8))
    assert len(outcomes) > 10, "the cases are varied"


def check_flags(form: Format, cpu: PlainCpu, linear: int, access: int, before: bytes) -> None:
    """Accessed in every entry used, dirty in the last one for a write, and nothing else."""
    changes = [n for n in range(len(before)) if before[n] != cpu.ram.data[n]]
    table = int(cpu.s.cr3) if form.name != "PAE" else int(cpu.s.pdpte[linear >> 30 & 3]) & ~0xFFF
    places = []
    for low, width in form.levels:
        at = table + (linear >> low & (1 << width) - 1) * form.entry
        entry = cpu.ram.read(at, form.entry)
        assert entry & A
        places.append(at)
        if low in form.leaves and entry & PS and (form.entry == 8 or int(cpu.s.cr4) & Cr4.PSE):
            break
        table = entry & ((1 << 52) - 1) & ~0xFFF
    assert set(changes) <= set(places)
    for at in changes:
        assert cpu.ram.data[at] ^ before[at] in ((A, D, A | D) if at == places[-1] and access & 1 else (A,))
    if access & 1:
        assert entry & D


def test_no_paging_cuts_to_32_bits() -> None:
    cpu = PlainCpu(Memory(0x1000))
    physical, rights = walk(cpu, u64(0x1_2345_6789), u64(Access.WRITE))
    assert (int(physical), int(rights) & 7) == (0x2345_6789, 7)


def test_a_gigabyte_page_needs_the_feature() -> None:
    cpu = PlainCpu(Memory(0x4000))
    cpu.ram.write(0x1000, 0x2000 | P | W | U, 8)
    cpu.ram.write(0x2000, P | W | U | PS, 8)
    cpu.s.cr3, cpu.s.cr0, cpu.s.cr4 = 0x1000, int(Cr0.PG | Cr0.PE), int(Cr4.PAE)
    cpu.s.efer = int(Efer.LMA | Efer.LME)
    assert int(walk(cpu, u64(0x1234), u64(0))[1]) >> 8 == 30
    cpu.features.discard("pdpe1gb")
    with pytest.raises(GuestFault):
        walk(cpu, u64(0x1234), u64(0))
    assert int(cpu.s.fault_error) == 9


def test_permission_matrix() -> None:
    """All 4096 combinations of page and control bits of a 4K page in 4-level paging, for every kind of access."""
    linear = 0x40_3000
    cpu = PlainCpu(Memory(0x8000))
    s = cpu.s
    s.cr3 = 0x1000
    s.efer = int(Efer.LMA | Efer.LME | Efer.NXE)
    form = FORMATS[2]
    for n, (low, width) in enumerate(form.levels):
        cpu.ram.write(0x1000 * (n + 1) + (linear >> low & (1 << width) - 1) * 8, 0x1000 * (n + 2) | P | W | U | A, 8)
    leaf = 0x4000 + (linear >> 12 & 511) * 8
    for w, u, nx, wp, smep, smap, ac in itertools.product((0, 1), repeat=7):
        s.cr0 = int(Cr0.PE | Cr0.PG) | wp * int(Cr0.WP)
        s.cr4 = int(Cr4.PAE) | smep * int(Cr4.SMEP) | smap * int(Cr4.SMAP)
        s.eflags = 2 | ac * int(Eflags.AC)
        for access in (0, 1, 2, 3, 4, 6, 8, 9):
            cpu.ram.write(leaf, 0x5000 | P | A | D | w * W | u * U | nx * NX, 8)
            expected = oracle(form, cpu, linear, access, cpu.ram)
            try:
                walk(cpu, u64(linear), u64(access))
                error = None
            except GuestFault:
                error = int(s.fault_error)
            assert error == expected.error, (w, u, nx, wp, smep, smap, ac, access)


def test_a_new_pkru_flushes_what_it_concerns() -> None:
    cpu = PlainCpu(Memory(0x8000))
    s = cpu.s
    s.cr3, s.cr0, s.cr4 = 0x1000, int(Cr0.PG | Cr0.PE), int(Cr4.PAE | Cr4.PKE)
    s.efer = int(Efer.LMA | Efer.LME)
    for n in range(1, 4):
        cpu.ram.write(0x1000 * n, 0x1000 * (n + 1) | P | W | U, 8)
    cpu.ram.write(0x4000, 0x5000 | P | W | U | 3 << 59, 8)
    set_pkru(cpu, u32(0x55555554))
    assert not cpu.log, "no page has such a key"
    set_pkru(cpu, u32(0))
    walk(cpu, u64(0), u64(Access.USER))
    set_pkru(cpu, u32(0x30))
    assert not cpu.log, "key 2, but the page has key 3"
    set_pkru(cpu, u32(0xB0))
    assert cpu.log == [("flush",)]
    set_pkru(cpu, u32(0xB1))
    assert len(cpu.log) == 2, "key 0 is everywhere"


class ChangedMeanwhile(PlainCpu):
    """Another processor remaps the page between the walk's read of its entry and the mark."""

    def mark_entry(self, address: Bits, entry: Bits, flags: Bits) -> Bits:
        if int(address) == 0x3000 + 8 * 5 and self.ram.read(0x3028, 8) == (0x7000 | P | W):
            self.ram.write(0x3028, 0x9000 | P, 8)
        return super().mark_entry(address, entry, flags)


def test_an_entry_that_changed_during_the_walk_is_read_again() -> None:
    ram = Memory()
    cpu = ChangedMeanwhile(ram)
    s = cpu.s
    s.cr0, s.cr4, s.cr3 = int(Cr0.PE | Cr0.PG), int(Cr4.PAE), 0
    s.pdpte[0] = 0x2000 | P
    ram.write(0x2000, 0x3000 | P | W, 8)
    ram.write(0x3028, 0x7000 | P | W, 8)
    physical, _ = walk(cpu, u64(0x5123), u64(0))
    assert int(physical) == 0x9123
    assert ram.read(0x3028, 8) == 0x9000 | P | A, "no flag of the old entry may end up in the new one"
