"""Multiboot 1: the record in EBX, modules, the address fields of the header, and headers that lie."""

from __future__ import annotations

import gzip
from pathlib import Path
from struct import unpack
from typing import Any

import pytest

from xuni.boot import BootConfig, BootError, Format, Module, load
from xuni.memory.guest import GuestMemory

MIB = 1 << 20


def elf_image(images: Any, flags: int = 0) -> bytes:
    return bytes(images.elf([images.segment(4 * MIB, images.multiboot_header(flags) + b"\xf4" * 8)], 4 * MIB + 12, 32))


def string(memory: GuestMemory, address: int) -> bytes:
    return memory.read(address, 256).split(b"\0")[0]


def test_record(images: Any, memory: GuestMemory, tmp_path: Path) -> None:
    kernel = tmp_path / "umip.flat"
    kernel.write_bytes(elf_image(images, flags=3))
    state = load(memory, BootConfig(kernel, append="-v all"))
    assert (state.rax, state.rip) == (0x2BAD_B002, 4 * MIB + 12)
    assert (state.cs.selector, state.ds.selector, state.cr0 & 0x8000_0001, state.rflags & 0x200) == (8, 0x10, 1, 0)
    record = unpack("<22I", memory.read(state.rbx, 88))
    assert record[0] == 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9
    assert record[1:3] == (639, 63 * 1024)
    assert string(memory, record[4]) == b"umip.flat -v all"
    assert record[5:7] == (0, 0)
    length, at = record[11:13]
    areas = [unpack("<IQQI", memory.read(at + n, 24)) for n in range(0, length, 24)]
    assert areas == [(20, 0, 0x9FC00, 1), (20, 0x9FC00, 0x60400, 2), (20, MIB, 63 * MIB, 1)]
    assert string(memory, record[16]) == b"xuni"


def test_modules_have_strings_and_lie_behind_the_kernel(images: Any, memory: GuestMemory, tmp_path: Path) -> None:
    dom0 = tmp_path / "vm linuz"
    dom0.write_bytes(b"D" * 5000)
    state = load(memory, BootConfig(elf_image(images), initrd=(Module(dom0, "console=hvc0 ro"), b"NR_CPUS=1\n")))
    count, table = unpack("<2I", memory.read(state.rbx + 20, 8))
    assert count == 2
    (start, end, text, _), (start2, end2, text2, _) = (unpack("<4I", memory.read(table + n, 16)) for n in (0, 16))
    assert start % 4096 == start2 % 4096 == 0
    assert 4 * MIB < start < end <= start2 < end2
    assert memory.read(start, end - start) == b"D" * 5000
    assert memory.read(start2, end2 - start2) == b"NR_CPUS=1\n"
    assert string(memory, text) == b"vm_linuz console=hvc0 ro"
    assert b" " not in string(memory, text2).split(b" ", 1)[0]


def test_gzip_is_transparent(images: Any, memory: GuestMemory, tmp_path: Path) -> None:
    kernel = tmp_path / "xen.gz"
    kernel.write_bytes(gzip.compress(elf_image(images)))
    assert load(memory, BootConfig(kernel)).rip == 4 * MIB + 12


def test_multiboot_comes_before_pvh(images: Any, memory: GuestMemory) -> None:
    code = images.segment(4 * MIB, images.multiboot_header() + b"\xf4" * 8)
    note = images.segment(0, images.pvh_note(4 * MIB + 13, 4), type=4)
    image = bytes(images.elf([code, note], 4 * MIB + 12, 32))
    assert load(memory, BootConfig(image)).rax == 0x2BAD_B002
    assert load(memory, BootConfig(image, format=Format.PVH)).rip == 4 * MIB + 13


def address_image(images: Any, **change: int) -> bytes:
    """64 bytes of something else, the header, code; loaded at 2 MiB without the first 32 bytes."""
    fields = {"header": 2 * MIB + 32, "load": 2 * MIB, "load_end": 0, "bss_end": 0, "entry": 2 * MIB + 64} | change
    return b"#" * 32 + b"L" * 32 + bytes(images.multiboot_header(1 << 16, *fields.values())) + b"\xf4" * 32


def test_address_fields(images: Any, memory: GuestMemory) -> None:
    memory.write(2 * MIB + 96, b"\xff" * 200)
    state = load(memory, BootConfig(address_image(images, bss_end=2 * MIB + 200)))
    assert state.rip == 2 * MIB + 64
    assert memory.read(2 * MIB, 32) == b"L" * 32
    assert memory.read(state.rip, 32) == b"\xf4" * 32
    assert memory.read(2 * MIB + 96, 108) == bytes(104) + b"\xff" * 4


def test_load_end_cuts_the_image(images: Any, memory: GuestMemory) -> None:
    load(memory, BootConfig(address_image(images, load_end=2 * MIB + 70)))
    assert memory.read(2 * MIB + 64, 8) == b"\xf4" * 6 + b"\0\0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"header": 2 * MIB - 4}, "these do not agree"),
        ({"header": 2 * MIB + 96}, "these do not agree"),
        ({"load_end": 2 * MIB - 1}, "nothing to load"),
        ({"load_end": 2 * MIB + 4096}, "truncated: the part that load_end_addr asks for"),
        ({"entry": 2 * MIB - 1}, "entry point 0x1fffff lies outside"),
        ({"bss_end": 0xFFFF_FFFF}, "has no RAM there"),
    ],
)
def test_lying_address_fields(images: Any, memory: GuestMemory, change: dict[str, int], message: str) -> None:
    with pytest.raises(BootError, match=message):
        load(memory, BootConfig(address_image(images, **change)))


def test_header_cut_off(images: Any, memory: GuestMemory) -> None:
    with pytest.raises(BootError, match="promises addresses and ends before them"):
        load(memory, BootConfig(images.multiboot_header(1 << 16) + b"\0" * 8))


def test_unknown_requirements_are_refused(images: Any, memory: GuestMemory) -> None:
    with pytest.raises(BootError, match="requires features 0x8,"):
        load(memory, BootConfig(elf_image(images, flags=0xB)))


def test_wrong_checksum_and_misplaced_headers_do_not_count(images: Any, memory: GuestMemory) -> None:
    header = images.multiboot_header()
    for start in (b"\0" + header, header[:8] + b"\0\0\0\0", bytes(8192) + header):
        with pytest.raises(BootError, match="no multiboot header in its first 8 KiB"):
            load(memory, BootConfig(start + bytes(64), format=Format.MULTIBOOT))


def test_no_room_for_a_module(images: Any, memory: GuestMemory) -> None:
    with pytest.raises(BootError, match="no room for module"):
        load(memory, BootConfig(elf_image(images), initrd=(bytes(61 * MIB),)))
