"""ELF kernels: segments at their physical addresses, entry points, PVH, and files that lie."""

from __future__ import annotations

from struct import unpack
from typing import Any

import pytest

from xuni.boot import BootConfig, BootError, Format, load
from xuni.boot.pvh import START_INFO
from xuni.memory.guest import GuestMemory

MIB = 1 << 20
HIGH_HALF = 0xFFFF_FFFF_8000_0000


def test_elf64_starts_in_long_mode_with_boot_params(images: Any, memory: GuestMemory) -> None:
    segments = [
        images.segment(0x100_0000, b"\xf4" * 100, vaddr=HIGH_HALF + 0x100_0000),
        images.segment(0x120_0000, b"data", memsz=0x2000, vaddr=HIGH_HALF + 0x120_0000),
    ]
    memory.write(0x120_0100, b"left by the guest before")
    state = load(memory, BootConfig(bytes(images.elf(segments, 0x100_0010)), initrd=(b"cpio",), append="hello"))
    assert state.rip == 0x100_0010
    assert state.cs.l == 1
    assert memory.read(0x100_0000, 100) == b"\xf4" * 100
    assert memory.read(0x120_0000, 0x2000) == b"data".ljust(0x2000, b"\0")
    assert memory.read(memory.read_u32(state.rsi + 0x228), 6) == b"hello\0"
    assert memory.read(memory.read_u32(state.rsi + 0x218), 4) == b"cpio"
    assert memory.read(state.rsi + 0x202, 4) == b"HdrS"


def test_virtual_entry_point_is_translated(images: Any, memory: GuestMemory) -> None:
    segment = images.segment(0x100_0000, b"\xf4" * 100, vaddr=HIGH_HALF + 0x100_0000)
    assert load(memory, BootConfig(bytes(images.elf([segment], HIGH_HALF + 0x100_0020)))).rip == 0x100_0020


def test_elf32_starts_in_protected_mode(images: Any, memory: GuestMemory) -> None:
    state = load(memory, BootConfig(bytes(images.elf([images.segment(0x40_0000, b"\xf4")], 0x40_0000, bits=32))))
    assert (state.rip, state.cs.db, state.cs.l, state.cr0 & 1, state.efer) == (0x40_0000, 1, 0, 1, 0)
    assert memory.contains(state.rsp - 4096, 4096)


@pytest.mark.parametrize("width", [4, 8])
def test_pvh(images: Any, memory: GuestMemory, width: int) -> None:
    note = images.pvh_note(0x100_0040, width)
    segments = [images.segment(0x100_0000, b"\xf4" * 100), images.segment(0x110_0000, note, type=4)]
    state = load(
        memory, BootConfig(bytes(images.elf(segments, 0x100_0000)), initrd=(b"I" * 5000,), append="console=hvc0")
    )
    assert state.rip == 0x100_0040
    assert (state.cs.db, state.cs.l, state.cr0, state.cr4, state.efer) == (1, 0, 0x11, 0, 0)
    magic, version, _, modules, modlist, cmdline, rsdp, memmap, entries, _ = START_INFO.unpack(
        memory.read(state.rbx, START_INFO.size)
    )
    assert (magic, version, modules, entries) == (0x336E_C578, 1, 1, 3)
    assert memory.read(cmdline, 13) == b"console=hvc0\0"
    assert memory.read(rsdp, 8) == b"RSD PTR "
    address, size, _, _ = unpack("<4Q", memory.read(modlist, 32))
    assert memory.read(address, size) == b"I" * 5000
    assert unpack("<QQII", memory.read(memmap + 48, 24)) == (MIB, 63 * MIB, 1, 0)


def test_pvh_initrd_stays_below_2_gib(images: Any) -> None:
    segments = [images.segment(0x100_0000, b"\xf4"), images.segment(0, images.pvh_note(0x100_0000), type=4)]
    with GuestMemory(3072 * MIB) as memory:
        state = load(memory, BootConfig(bytes(images.elf(segments, 0)), initrd=(b"I",)))
        modlist = START_INFO.unpack(memory.read(state.rbx, START_INFO.size))[4]
        assert memory.read_u64(modlist) == 2048 * MIB - 4096


def test_pvh_without_an_initrd_has_no_modules(images: Any, memory: GuestMemory) -> None:
    segments = [images.segment(0x100_0000, b"\xf4"), images.segment(0, images.pvh_note(0x100_0000), type=4)]
    state = load(memory, BootConfig(bytes(images.elf(segments, 0))))
    assert START_INFO.unpack(memory.read(state.rbx, START_INFO.size))[3:5] == (0, 0)


def test_a_foreign_note_is_no_pvh_entry(images: Any, memory: GuestMemory) -> None:
    note = images.pvh_note(0x100_0000, owner=b"GNU\0")
    segments = [images.segment(0x100_0000, b"\xf4" * 8), images.segment(0, note, type=4)]
    image = bytes(images.elf(segments, 0x100_0004))
    assert load(memory, BootConfig(image)).cs.l == 1
    with pytest.raises(BootError, match=r"no PVH entry.*CONFIG_PVH"):
        load(memory, BootConfig(image, format=Format.PVH))


def test_pvh_entry_outside(images: Any, memory: GuestMemory) -> None:
    segments = [images.segment(0x100_0000, b"\xf4"), images.segment(0, images.pvh_note(0x200_0000), type=4)]
    with pytest.raises(BootError, match="PVH entry point 0x2000000 lies in no segment"):
        load(memory, BootConfig(bytes(images.elf(segments, 0x100_0000))))


def test_damaged_notes_end_the_search(images: Any, memory: GuestMemory) -> None:
    note = b"\xff" * 11 + b"\x7f" + images.pvh_note(0x100_0000)
    segments = [images.segment(0x100_0000, b"\xf4"), images.segment(0, note, type=4)]
    assert load(memory, BootConfig(bytes(images.elf(segments, 0x100_0000)))).cs.l == 1


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([(0x100_0000, 0x1000), (0x100_0800, 0x1000)], "segment 1 of .* overlaps segment 0"),
        ([(0x3FF_F000, 0x2000)], "segment 0 of .* has no RAM there .it has 64 MiB"),
        ([(0xFEE0_0000, 0x1000)], "has no RAM there"),
        ([(0xFFFF_FFFF_FFFF_F000, 0x2000)], "wraps around the address space"),
        ([(0x100_0000, 1 << 63)], "has no RAM there"),
        ([(0xA_0000, 0x100)], "overlaps the firmware area"),
        ([(0, 0x100)], "overlaps the interrupt vectors"),
        ([(0x100_0000, 4)], "segment 0 has 0x10 bytes in the file and room for 0x4"),
    ],
)
def test_bad_segments(images: Any, memory: GuestMemory, segments: list[tuple[int, int]], message: str) -> None:
    headers = [images.segment(paddr, b"\xf4" * 16, memsz=memsz) for paddr, memsz in segments]
    with pytest.raises(BootError, match=message):
        load(memory, BootConfig(bytes(images.elf(headers, segments[0][0]))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"phnum": 0xFFFF}, "65535 program headers, and at most 256"),
        ({"phnum": 200}, "truncated: program header"),
        ({"phnum": 0}, "without anything to load"),
        ({"machine": 183}, "built for machine 183"),
        ({"type": 1}, "ELF type 1 is not an executable"),
        ({"entry": 0x300_0000}, "entry point 0x3000000 lies in no loaded segment"),
    ],
)
def test_bad_headers(images: Any, memory: GuestMemory, change: dict[str, int], message: str) -> None:
    fields = {"entry": 0x100_0000} | change
    with pytest.raises(BootError, match=message):
        load(memory, BootConfig(bytes(images.elf([images.segment(0x100_0000, b"\xf4" * 16)], **fields))))


def test_segment_behind_the_end_of_the_file(images: Any, memory: GuestMemory) -> None:
    segment = images.segment(0x100_0000, b"\xf4", offset=1 << 40)
    with pytest.raises(BootError, match="truncated: segment 0"):
        load(memory, BootConfig(bytes(images.elf([segment], 0x100_0000))))


def test_big_endian_is_refused(images: Any, memory: GuestMemory) -> None:
    file = bytearray(bytes(images.elf([images.segment(0x100_0000, b"\xf4")], 0x100_0000)))
    file[5] = 2
    with pytest.raises(BootError, match="not a little-endian"):
        load(memory, BootConfig(bytes(file)))
