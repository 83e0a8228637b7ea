"""Every compression of a kernel build, damaged streams, and streams that would fill the host's memory."""

from __future__ import annotations

import bz2
import gzip
import importlib
import lzma
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xuni.boot.decompress import LZ4_LEGACY_MAGIC, is_payload, lz4_block, payload
from xuni.boot.image import BootError

KERNEL = b"\x7fELF" + b"the same again and again " * 4000
APPENDED = len(KERNEL).to_bytes(4, "little")
"""What the kernel's build puts behind all streams but gzip's."""

# "abcdefgh", then a match of 12 that overlaps itself, then five literals: written by hand from the block format.
LZ4_BLOCK = bytes.fromhex("88") + b"abcdefgh" + bytes.fromhex("0800 50") + b"12345"
LZ4_TEXT = b"abcdefgh" + b"abcdefghabcd" + b"12345"

XZ_FILTERS = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2}]
XZ = lzma.compress(KERNEL, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=XZ_FILTERS)
GZIP, BZIP2, LZ4 = gzip.compress(KERNEL), bz2.compress(KERNEL), LZ4_LEGACY_MAGIC + b"\x10\0\0\0" + LZ4_BLOCK


def zstd_compress(data: bytes) -> bytes:
    for module in ("compression.zstd", "backports.zstd"):
        try:
            return bytes(importlib.import_module(module).compress(data))
        except ImportError:
            continue
    pytest.skip("no zstd for this Python")


@pytest.mark.parametrize(
    "packed",
    [
        GZIP,
        BZIP2 + APPENDED,
        XZ + APPENDED,
        lzma.compress(KERNEL, lzma.FORMAT_ALONE) + APPENDED,
    ],
    ids=["gzip", "bzip2", "xz", "lzma"],
)
def test_standard_streams(packed: bytes) -> None:
    assert is_payload(packed)
    assert payload(packed, "k") == KERNEL


def test_zstd() -> None:
    assert payload(zstd_compress(KERNEL) + APPENDED, "k") == KERNEL


def test_zstd_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    monkeypatch.setitem(sys.modules, "backports.zstd", None)
    with pytest.raises(BootError, match=r"compressed with zstd: .*backports.zstd"):
        payload(bytes.fromhex("28b52ffd") + bytes(20), "k")


@pytest.mark.parametrize("package", ["here", "absent"])
def test_lz4(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    if package == "absent":
        monkeypatch.setitem(sys.modules, "lz4.block", None)
    frame = LZ4_LEGACY_MAGIC + 2 * (len(LZ4_BLOCK).to_bytes(4, "little") + LZ4_BLOCK)
    assert payload(frame + len(2 * LZ4_TEXT).to_bytes(4, "little"), "k") == 2 * LZ4_TEXT


@pytest.mark.parametrize(
    "block", ["", "f0", "f0ff", "50616263", "1061 0200 00", "1061 0000 00", "1061 01", "1f61 0100 ff"]
)
def test_damaged_lz4_blocks(block: str) -> None:
    with pytest.raises(ValueError, match=r"cut off|outside"):
        lz4_block(bytes.fromhex(block))


def test_an_elf_file_needs_no_unpacking() -> None:
    assert payload(KERNEL, "k") is KERNEL


def test_unknown_compression() -> None:
    with pytest.raises(BootError, match=r"k: .* unknown way .it begins with 89 4c 5a 4f.*without unpacking"):
        payload(b"\x89LZO\0\r\n", "k")


@pytest.mark.parametrize("packed", [GZIP, BZIP2, XZ], ids=["gzip", "bzip2", "xz"])
def test_streams_cut_off(packed: bytes) -> None:
    with pytest.raises(BootError, match=r"data is damaged.*fetch it again"):
        payload(packed[:-20], "k")


@pytest.mark.parametrize("packed", [GZIP, BZIP2, XZ], ids=["gzip", "bzip2", "xz"])
def test_more_than_the_limit(packed: bytes) -> None:
    with pytest.raises(BootError, match="unpacks to more than 0 MiB; no kernel does"):
        payload(packed, "k", limit=len(KERNEL) - 1)
    assert payload(packed, "k", limit=len(KERNEL)) == KERNEL


@settings(max_examples=100, deadline=None)
@given(
    packed=st.sampled_from([GZIP, BZIP2, XZ, LZ4]),
    at=st.integers(0, 200),
    value=st.integers(0, 255),
)
def test_random_damage(packed: bytes, at: int, value: int) -> None:
    damaged = bytearray(packed)
    damaged[at % len(damaged)] = value
    try:
        payload(bytes(damaged), "k")
    except BootError as error:
        assert str(error).startswith("k: ")
