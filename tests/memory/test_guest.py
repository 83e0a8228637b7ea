"""Guest-physical memory: layout, bounds, slots, views, notifications."""

from __future__ import annotations

import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xuni.memory.guest import HIGH_RAM_BASE, LOW_RAM_LIMIT, PAGE_SIZE, GuestAddressError, GuestMemory

MIB = 1 << 20


def test_small_ram_is_one_slot_at_zero() -> None:
    with GuestMemory(16 * MIB) as memory:
        (slot,) = memory.slots
        assert (slot.start, slot.size, slot.end, slot.writable) == (0, 16 * MIB, 16 * MIB, True)
        assert memory.ram == ((0, 16 * MIB),)


def test_ram_beyond_three_gib_goes_on_at_four() -> None:
    with GuestMemory(LOW_RAM_LIMIT + 5 * MIB) as memory:
        assert memory.ram == ((0, LOW_RAM_LIMIT), (HIGH_RAM_BASE, HIGH_RAM_BASE + 5 * MIB))
        memory.write(HIGH_RAM_BASE + 5 * MIB - 4, b"last")
        assert memory.read(HIGH_RAM_BASE + 5 * MIB - 4, 4) == b"last"
        with pytest.raises(GuestAddressError, match="no memory at 0xc0000000"):
            memory.read(LOW_RAM_LIMIT - 2, 4)


@pytest.mark.parametrize("size", [0, -4096, 100, 1 << 51 | 4096])
def test_odd_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="RAM size"):
        GuestMemory(size)


def test_host_address_points_at_the_same_bytes() -> None:
    with GuestMemory(MIB) as memory:
        memory.write(0x1234, b"seen by the engine")
        assert ctypes.string_at(memory.slots[0].host_address + 0x1234, 18) == b"seen by the engine"
        ctypes.memmove(memory.slots[0].host_address + 0x2000, b"native", 6)
        assert memory.read(0x2000, 6) == b"native"


@pytest.mark.parametrize(("address", "length"), [(MIB, 1), (MIB - 1, 2), (-1, 1), (1 << 60, 8), (0, -1), (0, MIB + 1)])
def test_reads_outside_are_refused(address: int, length: int) -> None:
    with GuestMemory(MIB) as memory, pytest.raises(GuestAddressError, match="guest-physical"):
        memory.read(address, length)


def test_a_refused_write_stores_nothing() -> None:
    with GuestMemory(MIB) as memory:
        with pytest.raises(GuestAddressError):
            memory.write(MIB - 2, b"abcd")
        assert memory.read(MIB - 2, 2) == b"\0\0"


def test_integers_are_little_endian_and_truncated() -> None:
    with GuestMemory(MIB) as memory:
        memory.write_u64(8, 0x1_8877_6655_4433_2211)
        assert memory.read(8, 8) == bytes.fromhex("1122334455667788")
        assert memory.read_u8(8) == 0x11
        assert memory.read_u16(8) == 0x2211
        assert memory.read_u32(8) == 0x44332211
        assert memory.read_u64(8) == 0x8877665544332211
        memory.write_u8(0, -1)
        memory.write_u16(2, 0x12345)
        memory.write_u32(4, 1 << 32 | 7)
        assert memory.read(0, 8) == bytes.fromhex("ff00 4523 07000000")


def test_rom_shadows_ram_and_refuses_writes() -> None:
    with GuestMemory(2 * MIB) as memory:
        memory.write(0xF0000 - 2, b"<<")
        memory.add_rom(0xF0000, b"firmware")
        assert [(s.start, s.end, s.writable) for s in memory.slots] == [
            (0, 0xF0000, True),
            (0xF0000, 0xF1000, False),
            (0xF1000, 2 * MIB, True),
        ]
        assert memory.read(0xF0000 - 2, 11) == b"<<firmware\0"
        with pytest.raises(GuestAddressError, match="read-only"):
            memory.write(0xF0000 - 1, b"xx")
        with pytest.raises(GuestAddressError, match="read-only"):
            memory.fill(0xF0000, 4)
        with pytest.raises(GuestAddressError, match="read-only"), memory.view(0xF0000, 4, writable=True):
            pass
        assert memory.read(0xF0000 - 1, 1) == b"<"
        assert ctypes.string_at(memory.slots[1].host_address, 8) == b"firmware"
        memory.write(0xF1000, b"behind")
        assert ctypes.string_at(memory.slots[0].host_address + 0xF1000, 6) == b"behind"
        assert memory.ram == ((0, 0xF0000), (0xF1000, 2 * MIB))


def test_hole_and_extra_ram() -> None:
    with GuestMemory(2 * MIB) as memory:
        memory.add_hole(0xA0000, 0x20000)
        assert not memory.contains(0xA0000)
        assert not memory.contains(0x9FFFF, 2)
        assert memory.contains(0xC0000, 0x1000)
        memory.add_ram(0xFF000000, 0x10000)
        memory.write(0xFF00FFFF, b"!")
        with pytest.raises(GuestAddressError, match="overlaps"):
            memory.add_ram(0xFF00F000, 0x2000)
        with pytest.raises(GuestAddressError, match="page size"):
            memory.add_ram(0xFE000001, 0x1000)
        with pytest.raises(GuestAddressError, match="52 bits"):
            memory.add_ram(1 << 52, 0x1000)


def test_accesses_cross_slots() -> None:
    with GuestMemory(MIB) as memory:
        memory.add_ram(MIB, 0x2000)
        memory.write(MIB - 3, b"across")
        assert memory.read(MIB - 3, 6) == b"across"
        assert memory.read_u32(MIB - 2) == int.from_bytes(b"cros", "little")
        memory.fill(MIB - 2, 4, 0x5A)
        assert memory.read(MIB - 3, 6) == b"aZZZZs"
        with pytest.raises(GuestAddressError, match="one memory slot"), memory.view(MIB - 1, 2):
            pass


def test_writes_are_reported() -> None:
    with GuestMemory(MIB) as memory:
        seen: list[tuple[int, int]] = []
        memory.on_write.append(lambda address, length: seen.append((address, length)))
        memory.write(16, b"abc")
        memory.write_u32(32, 1)
        memory.fill(64, 5)
        with memory.view(128, 4):
            pass
        with memory.view(128, 4, writable=True) as view:
            view[:] = b"wxyz"
        with pytest.raises(GuestAddressError):
            memory.write(MIB, b"x")
        assert seen == [(16, 3), (32, 4), (64, 5), (128, 4)]
        assert memory.read(128, 4) == b"wxyz"


def test_changes_of_the_map_are_reported() -> None:
    memory = GuestMemory(MIB)
    changes: list[int] = []
    memory.on_remap.append(lambda: changes.append(len(memory.slots)))
    memory.add_rom(0xF0000, b"x")
    memory.add_hole(0xA0000, 0x1000)
    memory.close()
    assert changes == [3, 4, 0]


def test_a_view_cannot_outlive_the_memory() -> None:
    memory = GuestMemory(MIB)
    with memory.view(0, 16) as view:
        with pytest.raises(BufferError, match="still in use"):
            memory.close()
        assert bytes(view) == bytes(16)
        with pytest.raises(TypeError):
            view[0] = 1
    with pytest.raises(ValueError, match="released"):
        bytes(view)
    memory.close()
    memory.close()
    with pytest.raises(GuestAddressError):
        memory.read(0, 1)


def test_a_slice_kept_from_a_view_keeps_the_memory() -> None:
    memory = GuestMemory(MIB)
    with memory.view(0, 16) as view:
        kept = view[4:8]
    with pytest.raises(BufferError):
        memory.close()
    kept.release()
    memory.close()


PIECE = st.tuples(st.integers(0, 4 * PAGE_SIZE - 1), st.binary(min_size=1, max_size=2 * PAGE_SIZE))


@given(pieces=st.lists(PIECE, max_size=8))
def test_random_writes_agree_with_a_bytearray(pieces: list[tuple[int, bytes]]) -> None:
    model = bytearray(4 * PAGE_SIZE)
    with GuestMemory(PAGE_SIZE) as memory:
        for page in range(1, 4):
            memory.add_ram(page * PAGE_SIZE, PAGE_SIZE)
        for address, data in pieces:
            if address + len(data) > len(model):
                with pytest.raises(GuestAddressError):
                    memory.write(address, data)
            else:
                memory.write(address, data)
                model[address : address + len(data)] = data
        assert memory.read(0, len(model)) == model
