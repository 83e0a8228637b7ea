"""Placement in guest memory, and the E820 map."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xuni.boot import e820
from xuni.boot.e820 import Entry, Kind
from xuni.boot.image import BootError
from xuni.boot.placement import Placement
from xuni.memory.guest import GuestMemory

MIB = 1 << 20


def test_lowest_and_highest_place(memory: GuestMemory) -> None:
    placement = Placement(memory)
    assert placement.place(100, "a") == 0x1000
    assert placement.place(100, "b") == 0x2000
    assert placement.place(100, "c", align=1) == 0x1064
    assert placement.place(4096, "d", top=True) == 64 * MIB - 4096
    assert placement.place(4096, "e", top=True, below=2 * MIB) == 2 * MIB - 4096
    assert placement.place(2 * MIB, "f", align=2 * MIB, above=MIB) == 2 * MIB


def test_claims_do_not_overlap(memory: GuestMemory) -> None:
    placement = Placement(memory)
    placement.claim(2 * MIB, MIB, "first")
    placement.claim(3 * MIB, MIB, "neighbour")
    with pytest.raises(BootError, match="second goes to guest-physical 0x2fffff-0x300000, which overlaps first"):
        placement.claim(3 * MIB - 1, 1, "second")
    with pytest.raises(BootError, match=r"no RAM there .it has 64 MiB.; give it more memory"):
        placement.claim(64 * MIB - 1, 2, "beyond")
    with pytest.raises(BootError, match="no RAM there"):
        placement.claim(-4096, 4096, "before")


def test_no_place_left(memory: GuestMemory) -> None:
    placement = Placement(memory)
    with pytest.raises(BootError, match=r"no room for it: it needs 65536 KiB .* the guest has 64 MiB"):
        placement.place(64 * MIB, "it")


REQUESTS = st.lists(
    st.tuples(st.integers(1, 400_000), st.sampled_from([1, 16, 4096, 65536]), st.booleans(), st.integers(0, 3 * MIB)),
    max_size=30,
)


@settings(max_examples=100, deadline=None)
@given(requests=REQUESTS)
def test_whatever_is_placed_is_apart_and_in_ram(requests: list[tuple[int, int, bool, int]]) -> None:
    with GuestMemory(4 * MIB) as memory:
        placement = Placement(memory)
        for size, align, top, above in requests:
            try:
                start = placement.place(size, "x", align=align, top=top, above=above)
            except BootError:
                continue
            assert start % align == 0
            assert start >= above
            assert memory.contains(start, size)
        ordered = sorted((claim.start, claim.end) for claim in placement.claims)
        assert all(end <= start for (_, end), (start, _) in pairwise(ordered))


def test_memory_map_of_holes_and_rom(memory: GuestMemory) -> None:
    memory.add_rom(32 * MIB, bytes(4096))
    memory.add_hole(48 * MIB, MIB)
    memory.add_rom(0xFFFF_0000, bytes(65536))
    assert e820.memory_map(memory) == (
        Entry(0, 0x9FC00, Kind.RAM),
        Entry(0x9FC00, 0x60400, Kind.RESERVED),
        Entry(MIB, 31 * MIB, Kind.RAM),
        Entry(32 * MIB, 4096, Kind.RESERVED),
        Entry(32 * MIB + 4096, 16 * MIB - 4096, Kind.RAM),
        Entry(49 * MIB, 15 * MIB, Kind.RAM),
        Entry(0xFFFF_0000, 65536, Kind.RESERVED),
    )
    assert Entry(MIB, 2, Kind.NVS).pack() == bytes.fromhex("0000100000000000 0200000000000000 04000000")
