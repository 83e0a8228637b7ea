"""Linux bzImage: where kernel, initrd, command line and boot_params go, and what a lying header leads to."""

from __future__ import annotations

import gzip
from typing import Any

import pytest

from xuni.boot import BootConfig, BootError, Format, load
from xuni.boot.linux_params import E820_TABLE
from xuni.memory.guest import HIGH_RAM_BASE, LOW_RAM_LIMIT, GuestMemory

MIB = 1 << 20


def test_64_bit_entry(images: Any, memory: GuestMemory) -> None:
    file = bytes(images.bzimage(code=b"\xf4"))
    state = load(memory, BootConfig(file, initrd=(b"070701",), append="console=ttyS0 quiet"))
    assert state.rip == 0x100_0200
    assert memory.read_u8(state.rip) == 0xF4
    assert (state.cs.selector, state.cs.l, state.cs.db) == (0x10, 1, 0)
    assert state.ds.selector == state.es.selector == state.ss.selector == 0x18
    assert state.efer == 0x500
    assert state.cr0 & 0x8000_0001 == 0x8000_0001
    assert state.cr4 == 0x20
    page = state.rsi
    assert memory.read_u16(page + 0x1FE) == 0xAA55
    assert memory.read(page + 0x202, 4) == b"HdrS"
    assert memory.read_u8(page + 0x210) == 0xFF  # type_of_loader
    assert memory.read_u32(page + 0x214) == 0x100_0000  # code32_start
    command_line = memory.read_u32(page + 0x228)
    assert memory.read(command_line, 20) == b"console=ttyS0 quiet\0"
    initrd, size = memory.read_u32(page + 0x218), memory.read_u32(page + 0x21C)
    assert (initrd, size) == (64 * MIB - 4096, 6)
    assert memory.read(initrd, 6) == b"070701"
    assert memory.read(memory.read_u64(page + 0x70), 8) == b"RSD PTR "
    assert memory.read_u8(page + 0x1EF) == 0  # sentinel: boot_params was built by one who knows


def test_gdt_holds_what_the_selectors_say(images: Any, memory: GuestMemory) -> None:
    state = load(memory, BootConfig(bytes(images.bzimage())))
    assert state.gdtr.limit == 31
    assert memory.read_u64(state.gdtr.base + 0x10) == 0x00AF_9B00_0000_FFFF == state.cs.descriptor()
    assert memory.read_u64(state.gdtr.base + 0x18) == 0x00CF_9300_0000_FFFF == state.ds.descriptor()


def test_first_four_gib_are_mapped_to_themselves(images: Any, memory: GuestMemory) -> None:
    state = load(memory, BootConfig(bytes(images.bzimage())))

    def walk(address: int) -> int:
        entry = memory.read_u64(state.cr3 + 8 * (address >> 39 & 0x1FF))
        assert entry & 0x3 == 0x3
        entry = memory.read_u64((entry & ~0xFFF) + 8 * (address >> 30 & 0x1FF))
        assert entry & 0x83 == 0x03
        entry = memory.read_u64((entry & ~0xFFF) + 8 * (address >> 21 & 0x1FF))
        assert entry & 0x83 == 0x83
        return entry & ~0x1F_FFFF | address & 0x1F_FFFF

    for address in (0, state.rip, state.rsi, 0x3FFF_FFFF, 0x4000_0000, 0xFEE0_0000, 0xFFFF_FFFF):
        assert walk(address) == address


def test_memory_map(images: Any) -> None:
    with GuestMemory(LOW_RAM_LIMIT + 256 * MIB) as memory:
        page = load(memory, BootConfig(bytes(images.bzimage()))).rsi
        count = memory.read_u8(page + 0x1E8)
        entries = [
            (memory.read_u64(at), memory.read_u64(at + 8), memory.read_u32(at + 16))
            for at in range(page + E820_TABLE, page + E820_TABLE + 20 * count, 20)
        ]
    assert entries == [
        (0, 0x9FC00, 1),
        (0x9FC00, 0x60400, 2),
        (MIB, LOW_RAM_LIMIT - MIB, 1),
        (HIGH_RAM_BASE, 256 * MIB, 1),
    ]


def test_32_bit_entry_of_a_kernel_without_a_64_bit_one(images: Any, memory: GuestMemory) -> None:
    state = load(memory, BootConfig(bytes(images.bzimage(xloadflags=0))))
    assert state.rip == 0x100_0000
    assert (state.cs.selector, state.cs.l, state.cs.db, state.efer, state.cr0) == (0x10, 0, 1, 0, 0x11)
    assert memory.read_u64(state.gdtr.base + 0x10) == 0x00CF_9B00_0000_FFFF
    assert memory.read(state.rsi + 0x202, 4) == b"HdrS"
    assert (state.rbx, state.rbp, state.rdi) == (0, 0, 0)


def test_relocatable_kernel_goes_where_there_is_room(images: Any) -> None:
    with GuestMemory(12 * MIB) as memory:
        state = load(memory, BootConfig(bytes(images.bzimage())))
        assert state.rip == 0x20_0200
        assert memory.read_u32(state.rsi + 0x214) == 0x20_0000


def test_fixed_kernel_needs_its_place(images: Any) -> None:
    with GuestMemory(12 * MIB) as memory, pytest.raises(BootError, match=r"0x1000000-0x1200000.*has no RAM.*12 MiB"):
        load(memory, BootConfig(bytes(images.bzimage(relocatable=0))))


def test_init_size_is_respected(images: Any) -> None:
    image = bytes(images.bzimage(init_size=40 * MIB))
    with GuestMemory(48 * MIB) as memory:
        page = load(memory, BootConfig(image, initrd=(bytes(4 * MIB),))).rsi
        assert memory.read_u32(page + 0x218) == 44 * MIB
    with GuestMemory(48 * MIB) as memory, pytest.raises(BootError, match=r"no room for the initrd.*7168 KiB"):
        load(memory, BootConfig(image, initrd=(bytes(7 * MIB),)))


def test_initrd_stays_below_initrd_addr_max(images: Any, memory: GuestMemory) -> None:
    page = load(memory, BootConfig(bytes(images.bzimage(initrd_addr_max=32 * MIB - 1)), initrd=(b"x" * 5000,))).rsi
    assert memory.read_u32(page + 0x218) == 32 * MIB - 8192


def test_initrd_goes_above_4_gib_if_the_kernel_takes_it_there(images: Any) -> None:
    small = {"initrd_addr_max": 18 * MIB, "init_size": 2 * MIB}
    initrd = bytes(20 * MIB)
    with GuestMemory(LOW_RAM_LIMIT + 64 * MIB) as memory:
        page = load(memory, BootConfig(bytes(images.bzimage(**small)), initrd=(initrd,))).rsi
        assert memory.read_u32(page + 0xC0) == 1
        assert memory.read_u32(page + 0x218) == 44 * MIB
    with (
        GuestMemory(LOW_RAM_LIMIT + 64 * MIB) as memory,
        pytest.raises(BootError, match=r"no room for the initrd.*between 0x100000 and 0x1200001"),
    ):
        load(memory, BootConfig(bytes(images.bzimage(**small, xloadflags=1)), initrd=(initrd,)))


def test_initrds_are_joined_at_four_bytes(images: Any, memory: GuestMemory) -> None:
    page = load(memory, BootConfig(bytes(images.bzimage()), initrd=(b"first", b"second"))).rsi
    assert memory.read(memory.read_u32(page + 0x218), memory.read_u32(page + 0x21C)) == b"first\0\0\0second"


def test_rng_seed_is_in_the_setup_data_chain(images: Any, memory: GuestMemory) -> None:
    page = load(memory, BootConfig(bytes(images.bzimage()), rng_seed=b"s" * 32)).rsi
    node = memory.read_u64(page + 0x250)
    assert memory.read(node, 48) == bytes(8) + (9).to_bytes(4, "little") + (32).to_bytes(4, "little") + b"s" * 32


def test_nothing_overlaps(images: Any, memory: GuestMemory) -> None:
    """Each thing is still whole after all were written."""
    kernel = b"K" * 0x100
    state = load(
        memory,
        BootConfig(bytes(images.bzimage(code=kernel)), initrd=(b"I" * 9999,), append="A" * 2000, rng_seed=b"R" * 32),
    )
    page = state.rsi
    assert memory.read(state.rip, 0x100) == kernel
    assert memory.read(memory.read_u32(page + 0x218), 9999) == b"I" * 9999
    assert memory.read(memory.read_u32(page + 0x228), 2001) == b"A" * 2000 + b"\0"
    assert memory.read(memory.read_u64(page + 0x250) + 16, 32) == b"R" * 32


def test_kernel_unpacked_here(images: Any, memory: GuestMemory) -> None:
    vmlinux = bytes(images.elf([images.segment(0x100_0000, b"\xf4" * 64, vaddr=0xFFFF_FFFF_8100_0000)], 0x100_0000))
    image = bytes(images.bzimage(payload=gzip.compress(vmlinux)))
    state = load(memory, BootConfig(image, append="x", unpack=True))
    assert state.rip == 0x100_0000
    assert memory.read_u8(state.rip) == 0xF4
    assert memory.read(state.rsi + 0x202, 4) == b"HdrS"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"setup_sects": 2, "syssize": 1 << 20}, "truncated: syssize asks for 0x1000000 bytes"),
        ({"version": 0x0201}, "boot protocol 2.01 is older than 2.02"),
        ({"loadflags": 0}, "zImage"),
        ({"kernel_alignment": 0x30_0000}, "kernel_alignment = 0x300000 is not a power of two"),
        ({"kernel_alignment": 0}, "kernel_alignment = 0x0 is not a power of two"),
        ({"kernel_alignment": 1 << 31}, "kernel_alignment = 0x80000000"),
        ({"init_size": 0xFFFF_FFFF}, "no room for the kernel"),
        ({"relocatable": 0, "pref_address": 1 << 63}, "has no RAM there"),
        ({"relocatable": 0, "pref_address": 0x9_0000}, "overlaps the firmware area"),
        ({"payload_length": 1 << 30}, "the payload at 0x300.0x40000000 reaches beyond"),
        ({"payload_offset": 0x301}, "no compressed kernel where"),
        ({"jump": 0xFF}, "setup header claims to end at 0x301"),
        ({"jump": 0}, "setup header claims to end at 0x202"),
    ],
)
def test_lying_headers(images: Any, memory: GuestMemory, change: dict[str, int], message: str) -> None:
    with pytest.raises(BootError, match=message):
        load(memory, BootConfig(bytes(images.bzimage(**change))))


def test_setup_sects_that_point_elsewhere(images: Any, memory: GuestMemory) -> None:
    file = bytearray(bytes(images.bzimage()))
    file[0x1F1] = 1
    with pytest.raises(BootError, match="no compressed kernel where setup_sects = 1"):
        load(memory, BootConfig(bytes(file)))
    file[0x1F1] = 200
    with pytest.raises(BootError, match="truncated: setup_sects = 200"):
        load(memory, BootConfig(bytes(file)))


@pytest.mark.parametrize("length", [0x206, 0x211, 0x260, 0x5FF, 0x7FF])
def test_truncated_anywhere(images: Any, memory: GuestMemory, length: int) -> None:
    with pytest.raises(BootError, match="truncated"):
        load(memory, BootConfig(bytes(images.bzimage())[:length]))


def test_foreign_file_named_as_bzimage(memory: GuestMemory) -> None:
    with pytest.raises(BootError, match="not a Linux bzImage"):
        load(memory, BootConfig(b"MZ" + bytes(4096), format=Format.BZIMAGE))


def test_command_line_too_long(images: Any, memory: GuestMemory) -> None:
    with pytest.raises(BootError, match="has 256 bytes, and this kernel takes at most 255"):
        load(memory, BootConfig(bytes(images.bzimage(cmdline_size=255)), append="x" * 256))
    with pytest.raises(BootError, match="NUL"):
        load(memory, BootConfig(bytes(images.bzimage()), append="a\0b"))
