"""Recognising kernels, raw code, files that cannot be read, memory that is too small, and random damage."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xuni.boot import BoardFacts, BootConfig, BootError, Format, load
from xuni.memory.guest import GuestMemory

MIB = 1 << 20


@pytest.mark.parametrize(
    ("format", "address", "rip", "base"),
    [
        (Format.REAL, 0x7C00, 0x7C00, 0),
        (Format.REAL, 0x1_2348, 0x8, 0x1_2340),
        (Format.PROTECTED, 0x20_0000, 0x20_0000, 0),
        (Format.LONG, 0x20_0000, 0x20_0000, 0),
    ],
)
def test_raw_code(memory: GuestMemory, format: Format, address: int, rip: int, base: int) -> None:
    state = load(memory, BootConfig(b"\x90\xf4", format=format, address=address))
    assert (state.rip, state.cs.base) == (rip, base)
    assert memory.read(address, 2) == b"\x90\xf4"
    assert state.cs.l == (format is Format.LONG)
    assert state.cs.db == (format is Format.PROTECTED)
    assert state.cr0 & 1 == (format is not Format.REAL)
    assert 0x2000 <= state.rsp <= 0x9FC00


def test_raw_code_runs_in_one_mib() -> None:
    with GuestMemory(MIB) as memory:
        assert load(memory, BootConfig(b"\xf4", format=Format.LONG)).rip == 0x8000


def test_real_mode_ends_at_one_mib(memory: GuestMemory) -> None:
    with pytest.raises(BootError, match="beyond the 1 MiB of real mode"):
        load(memory, BootConfig(b"\xf4" * 16, format=Format.REAL, address=0xF_FFF8))


def test_firmware_leaves_vectors_and_bios_data(memory: GuestMemory) -> None:
    load(memory, BootConfig(b"\xf4", format=Format.REAL))
    for vector in (0, 3, 0x10, 0xFF):
        offset, segment = memory.read_u16(4 * vector), memory.read_u16(4 * vector + 2)
        assert memory.read_u8(16 * segment + offset) == 0xCF, "an IRET"
    timer = 16 * memory.read_u16(0x22) + memory.read_u16(0x20)
    assert memory.read(timer, 2) == b"\x1e\x50"
    assert memory.read_u16(0x400) == 0x3F8
    assert (memory.read_u16(0x40E) << 4, memory.read_u16(0x413)) == (0x9FC00, 639)


@pytest.mark.parametrize("data", [b"#!/bin/sh\necho hi\n", b"MZ" + bytes(600), b"x", b"\x7fEL"])
def test_foreign_files(memory: GuestMemory, data: bytes) -> None:
    with pytest.raises(BootError, match=r"not a kernel that boots here.*name a kernel"):
        load(memory, BootConfig(data))


def test_shared_gzip_of_nothing_useful(memory: GuestMemory) -> None:
    with pytest.raises(BootError, match="gzip data is damaged"):
        load(memory, BootConfig(b"\x1f\x8b\x08" + b"\xff" * 40))


def test_unreadable_files(memory: GuestMemory, tmp_path: Path) -> None:
    with pytest.raises(BootError, match="absent: cannot read the kernel: No such file or directory; check the path"):
        load(memory, BootConfig(tmp_path / "absent"))
    with pytest.raises(BootError, match="a directory cannot be the kernel; name a file"):
        load(memory, BootConfig(tmp_path))
    with pytest.raises(BootError, match="a device cannot be the kernel"):
        load(memory, BootConfig(Path("/dev/zero")))
    with pytest.raises(BootError, match="cannot read the kernel: embedded null byte"):
        load(memory, BootConfig(Path("a\0b")))
    (tmp_path / "empty").touch()
    with pytest.raises(BootError, match="the kernel is empty"):
        load(memory, BootConfig(tmp_path / "empty"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_file_without_permission(memory: GuestMemory, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "secret").chmod(0)
    with pytest.raises(BootError, match="Permission denied"):
        load(memory, BootConfig(tmp_path / "secret"))


def test_unreadable_initrd(images: Any, memory: GuestMemory, tmp_path: Path) -> None:
    with pytest.raises(BootError, match="cannot read the initrd: No such file"):
        load(memory, BootConfig(bytes(images.bzimage()), initrd=(tmp_path / "initrd.img",)))


def test_too_little_memory(images: Any) -> None:
    with GuestMemory(64 << 10) as memory, pytest.raises(BootError, match="64 KiB of memory, and a PC needs 1 MiB"):
        load(memory, BootConfig(bytes(images.bzimage())))
    with GuestMemory(2 * MIB) as memory, pytest.raises(BootError, match=r"no room for the kernel.*give it more memory"):
        load(memory, BootConfig(bytes(images.bzimage())))


def test_loading_twice_gives_the_same(images: Any, memory: GuestMemory) -> None:
    """A machine that is reset loads its kernel again, over what the guest left."""
    config = BootConfig(bytes(images.bzimage()), append="again", initrd=(b"x" * 100,))
    first = load(memory, config)
    before = memory.read(0, memory.size)
    memory.fill(0x1000, 0x9_0000, 0xAA)
    assert load(memory, config) == first
    for start in (first.rsi, first.gdtr.base, first.cr3, 0x100_0000):
        assert memory.read(start, 32) == before[start : start + 32]


# -- random damage: either it loads within the guest's memory, or there is a BootError -------------------------------

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
CHANGES = st.lists(st.tuples(st.integers(0, 0x280), st.integers(0, 255)), min_size=1, max_size=12)


def damage(image: bytes, changes: list[tuple[int, int]], start: int = 0) -> bytes:
    damaged = bytearray(image)
    for offset, value in changes:
        damaged[(start + offset) % len(damaged)] = value
    return bytes(damaged)


def attempt(memory: GuestMemory, image: bytes, format: Format = Format.AUTO, *, unpack: bool = False) -> None:
    try:
        state = load(memory, BootConfig(image, format=format, initrd=(b"initrd",), append="a b", unpack=unpack))
    except BootError as error:
        assert "0x" in str(error) or str(error).startswith(("<", "no room")), error
    else:
        assert memory.contains(state.cs.base + state.rip)


@FUZZ
@given(changes=CHANGES)
def test_damaged_bzimage(images: Any, memory: GuestMemory, changes: list[tuple[int, int]]) -> None:
    """The setup header is what the loader trusts: change it."""
    inside = [(0x1F1 + offset % 0x7F, value) for offset, value in changes]
    image = damage(bytes(images.bzimage()), inside)
    attempt(memory, image, Format.BZIMAGE)
    attempt(memory, image, Format.BZIMAGE, unpack=True)


@FUZZ
@given(changes=CHANGES, bits=st.sampled_from([32, 64]), format=st.sampled_from([Format.ELF, Format.PVH, Format.AUTO]))
def test_damaged_elf(
    images: Any, memory: GuestMemory, changes: list[tuple[int, int]], bits: int, format: Format
) -> None:
    segments = [
        images.segment(0x20_0000, b"\xf4" * 64, memsz=0x3000),
        images.segment(0x30_0000, b"data" * 8),
        images.segment(0, images.pvh_note(0x20_0000), type=4),
    ]
    image = bytes(images.elf(segments, 0x20_0000, bits))
    attempt(memory, damage(image, [(4 + offset % 230, value) for offset, value in changes]), format)


@FUZZ
@given(changes=CHANGES, flags=st.sampled_from([0, 3, 1 << 16]))
def test_damaged_multiboot(images: Any, memory: GuestMemory, changes: list[tuple[int, int]], flags: int) -> None:
    addresses = (0x20_0000, 0x20_0000, 0x20_0040, 0x20_1000, 0x20_0020)
    header = images.multiboot_header(flags, *addresses)
    image = bytes(images.elf([images.segment(0x20_0000, header + b"\xf4" * 64)], 0x20_0020, 32))
    if flags & 1 << 16:
        image = header + b"\xf4" * 64
    # The magic number, flags and checksum stay, so that the rest is looked at.
    at = image.index(header[:12])
    keep = [(o, v) for o, v in changes if not at <= o % len(image) < at + 12]
    attempt(memory, damage(image, keep), Format.MULTIBOOT)


@FUZZ
@given(
    data=st.binary(min_size=1, max_size=2048),
    prefix=st.sampled_from([b"", b"\x7fELF\x02\x01\x01", b"\x1f\x8b\x08"]),
)
def test_random_bytes(memory: GuestMemory, data: bytes, prefix: bytes) -> None:
    for format in (Format.AUTO, Format.BZIMAGE, Format.MULTIBOOT, Format.PVH, Format.ELF):
        attempt(memory, prefix + data, format)


def test_board_of_one_cpu_is_the_default(memory: GuestMemory) -> None:
    load(memory, BootConfig(b"\xf4", format=Format.REAL))
    one = memory.read(0xE_0000, 0x1000)
    load(memory, BootConfig(b"\xf4", format=Format.REAL), BoardFacts(cpus=2))
    assert memory.read(0xE_0000, 0x1000) != one
