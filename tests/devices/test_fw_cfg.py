"""The firmware configuration device: items, files, DMA."""

from __future__ import annotations

from struct import pack, unpack_from

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xuni.devices.fw_cfg import FwCfg, Key
from xuni.memory.guest import GuestAddressError, GuestMemory

SIZE = 1 << 20
ERROR, READ, SKIP, SELECT, WRITE = 1, 2, 4, 8, 16
CONTROL_AT = 0x1000


@pytest.fixture
def memory():
    with GuestMemory(SIZE) as memory:
        yield memory


@pytest.fixture
def cfg(memory) -> FwCfg:
    return FwCfg(memory, GuestAddressError)


def item(cfg: FwCfg, key: int, length: int) -> bytes:
    cfg.write(0, 2, key)
    return bytes(cfg.read(1, 1) for _ in range(length))


def dma(cfg: FwCfg, memory: GuestMemory, control: int, length: int = 0, target: int = 0) -> int:
    """Run one transfer and return the control word after it."""
    memory.write(CONTROL_AT, pack(">IIQ", control, length, target))
    cfg.write(4, 4, 0)
    cfg.write(8, 4, int.from_bytes(pack(">I", CONTROL_AT), "little"))
    return unpack_from(">I", memory.read(CONTROL_AT, 4))[0]


def test_signature_identification_and_numbers(cfg):
    cfg.add_number(Key.NB_CPUS, 3, 2)
    assert item(cfg, Key.SIGNATURE, 4) == b"QEMU"
    assert item(cfg, Key.ID, 4) == b"\x03\0\0\0"
    assert item(cfg, Key.NB_CPUS, 4) == b"\x03\0\0\0"  # zeros behind the end


def test_an_unknown_item_is_empty_and_selecting_begins_again(cfg):
    assert item(cfg, 0x1234, 2) == b"\0\0"
    item(cfg, Key.SIGNATURE, 2)
    assert item(cfg, Key.SIGNATURE, 4) == b"QEMU"


def test_the_directory_lists_files_with_big_endian_sizes_and_keys(cfg):
    assert cfg.add_file("etc/e820", b"x" * 40) == 0x20
    assert cfg.add_file("opt/name", b"abc") == 0x21
    assert cfg.add_file("etc/e820", b"y" * 20) == 0x20
    directory = item(cfg, Key.FILE_DIR, 4 + 2 * 64)
    assert unpack_from(">I", directory) == (2,)
    assert unpack_from(">IHH8s", directory, 4) == (20, 0x20, 0, b"etc/e820")
    assert unpack_from(">IHH9s", directory, 68) == (3, 0x21, 0, b"opt/name\0")
    assert item(cfg, 0x21, 3) == b"abc"


@pytest.mark.parametrize("name", ["", "x" * 56, "café"])
def test_file_names_have_bounds(cfg, name):
    with pytest.raises(ValueError, match="1 to 55 ASCII characters"):
        cfg.add_file(name, b"")


def test_dma_reads_with_select_skip_and_padding(cfg, memory):
    key = cfg.add_file("opt/data", bytes(range(100)))
    assert dma(cfg, memory, key << 16 | SELECT | READ, 50, 0x2000) == 0
    assert memory.read(0x2000, 50) == bytes(range(50))
    assert dma(cfg, memory, SKIP, 30) == 0
    memory.write(0x2000, b"\xff" * 40)
    assert dma(cfg, memory, READ, 40, 0x2000) == 0
    assert memory.read(0x2000, 40) == bytes(range(80, 100)) + bytes(20)


def test_dma_announces_itself(cfg):
    assert cfg.read(4, 4).to_bytes(4, "little") + cfg.read(8, 4).to_bytes(4, "little") == b"QEMU CFG"


def test_dma_failures_set_the_error_bit(cfg, memory):
    assert dma(cfg, memory, Key.SIGNATURE << 16 | SELECT | WRITE, 4, 0x2000) == ERROR
    assert dma(cfg, memory, Key.SIGNATURE << 16 | SELECT | READ, 4, SIZE - 2) == ERROR
    assert dma(cfg, memory, READ, 0xFFFF_FFFF, 0x2000) == ERROR
    assert dma(cfg, memory, READ, 16, (1 << 64) - 8) == ERROR
    assert dma(cfg, memory, READ, 0, 1 << 60) == 0


def test_a_control_structure_outside_memory_is_ignored(cfg):
    cfg.write(4, 4, 0xFFFF_FFFF)
    cfg.write(8, 4, 0xF0FF_FFFF)
    assert item(cfg, Key.SIGNATURE, 4) == b"QEMU"


def test_without_dma_the_device_says_so():
    cfg = FwCfg(None)
    assert item(cfg, Key.ID, 1) == b"\x01" and cfg.read(4, 4) == 0
    cfg.write(8, 4, 0)


def test_other_accesses_and_reset(cfg):
    item(cfg, Key.SIGNATURE, 1)
    assert cfg.read(0, 2) == cfg.read(1, 2) == 0
    cfg.write(0, 1, 5)
    cfg.reset()
    assert cfg.read(1, 1) == ord("Q")


@given(st.lists(st.tuples(st.sampled_from([0, 1, 2, 4, 8]), st.sampled_from([1, 2, 4]), st.integers(0, (1 << 32) - 1))))
def test_any_guest_writes_leave_the_device_standing(writes):
    with GuestMemory(4096) as memory:
        cfg = FwCfg(memory, GuestAddressError)
        for offset, size, value in writes:
            cfg.write(offset, size, value & (1 << 8 * size) - 1)
            cfg.read(offset, size)
