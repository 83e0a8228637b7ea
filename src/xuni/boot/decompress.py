"""Kernels are stored compressed: find out how, and unpack them, with a bound on the result.

Linux builds call for gzip, bzip2, lzma, xz, lzo, lz4 or zstd (init/Kconfig); lzo is missing here. All but gzip have the
unpacked size, four bytes little-endian, appended behind the stream (scripts/Makefile.lib, size_append).
"""

from __future__ import annotations

import bz2
import importlib
import lzma
import zlib
from collections.abc import Callable
from typing import Final, Protocol

from xuni.boot.image import BootError

MAX_UNPACKED: Final = 512 << 20
"""Far more than any kernel has, and little enough for a host to hold."""

GZIP_MAGIC: Final = b"\x1f\x8b"
LZO_MAGIC: Final = b"\x89LZO"
LZ4_LEGACY_MAGIC: Final = bytes.fromhex("02214c18")
LZ4_BLOCK: Final = 8 << 20
"""Unpacked size of all blocks but the last (lz4, doc/lz4_Frame_format.md, "Legacy frame")."""


class _Decompressor(Protocol):
    """What `bz2`, `lzma` and `zstd` objects have in common."""

    @property
    def eof(self) -> bool: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def _bounded(decompressor: _Decompressor, data: bytes, limit: int) -> bytes:
    """Unpack one stream; what follows it is ignored. Raises EOFError if it is cut off."""
    out = decompressor.decompress(data, limit + 1)
    if len(out) > limit:
        raise OverflowError
    if not decompressor.eof:
        raise EOFError("the stream is cut off")
    return out


def _gzip(data: bytes, limit: int) -> bytes:
    stream = zlib.decompressobj(wbits=31)
    out = stream.decompress(data, limit + 1)
    if len(out) > limit:
        raise OverflowError
    if not stream.eof:
        raise EOFError("the stream is cut off")
    return out


def _bzip2(data: bytes, limit: int) -> bytes:
    return _bounded(bz2.BZ2Decompressor(), data, limit)


def _xz(data: bytes, limit: int) -> bytes:
    return _bounded(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_UNPACKED), data, limit)


def _lzma(data: bytes, limit: int) -> bytes:
    return _bounded(lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=MAX_UNPACKED), data, limit)


def _zstd(data: bytes, limit: int) -> bytes:
    for module in ("compression.zstd", "backports.zstd"):
        try:
            zstd = importlib.import_module(module)
        except ImportError:
            continue
        try:
            return _bounded(zstd.ZstdDecompressor(), data, limit)
        except zstd.ZstdError as error:
            raise ValueError(str(error)) from error
    raise ModuleNotFoundError("Python before 3.14 needs the package backports.zstd for it")


def _lz4(data: bytes, limit: int) -> bytes:
    """A legacy frame: magic, then blocks of `size, data` until the input or a block's sense ends."""
    try:
        native = importlib.import_module("lz4.block")
        unpack: Callable[[bytes], bytes] = lambda block: bytes(native.decompress(block, LZ4_BLOCK))  # noqa: E731
        errors: tuple[type[Exception], ...] = (native.LZ4BlockError,)
    except ImportError:
        unpack, errors = lz4_block, ()
    out = bytearray()
    at = len(LZ4_LEGACY_MAGIC)
    while at + 4 <= len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        if at + 4 + size > len(data) or not size:
            break  # the appended unpacked size, not a block
        try:
            out += unpack(data[at + 4 : at + 4 + size])
        except errors as error:
            raise ValueError(str(error)) from error
        if len(out) > limit:
            raise OverflowError
        at += 4 + size
    return bytes(out)


def lz4_block(data: bytes) -> bytes:
    """Unpack one lz4 block of at most `LZ4_BLOCK` bytes; slow, for hosts without the lz4 package.

    Raises ValueError. Spec: lz4, doc/lz4_Block_format.md.
    """
    out = bytearray()
    at = 0

    def length(nibble: int) -> int:
        nonlocal at
        total = nibble
        if nibble == 15:
            while True:
                if at >= len(data):
                    raise ValueError("the block is cut off")
                more = data[at]
                at += 1
                total += more
                if more != 255:
                    break
        return total

    while at < len(data):
        token = data[at]
        at += 1
        literals = length(token >> 4)
        if at + literals > len(data):
            raise ValueError("the block is cut off")
        out += data[at : at + literals]
        at += literals
        if at == len(data):
            return bytes(out)
        offset = int.from_bytes(data[at : at + 2], "little")
        at += 2
        count = length(token & 15) + 4
        if not 0 < offset <= len(out) or len(out) + count > LZ4_BLOCK:
            raise ValueError("a match lies outside the block")
        start = len(out) - offset
        if offset >= count:
            out += out[start : start + count]
        else:  # the match overlaps what it makes: it repeats
            piece = bytes(out[start:])
            out += (piece * (count // offset + 1))[:count]
    raise ValueError("the block is cut off")


FORMATS: Final[tuple[tuple[str, bytes, Callable[[bytes, int], bytes]], ...]] = (
    ("gzip", GZIP_MAGIC, _gzip),
    ("bzip2", b"BZh", _bzip2),
    ("xz", b"\xfd7zXZ\0", _xz),
    ("lz4", LZ4_LEGACY_MAGIC, _lz4),
    ("zstd", bytes.fromhex("28b52ffd"), _zstd),
    ("lzma", bytes.fromhex("5d0000"), _lzma),
)


def payload(data: bytes, name: str, limit: int = MAX_UNPACKED) -> bytes:
    """Unpack `data`, or return it as it is when it is an ELF file already. `name` is for messages.

    Raises BootError for an unknown or damaged stream and for more than `limit` bytes.
    """
    if data[:4] == b"\x7fELF":
        return data
    found = next((entry for entry in FORMATS if data.startswith(entry[1])), None)
    if found is None:
        raise BootError(
            f"{name}: compressed in an unknown way (it begins with {data[:4].hex(' ')}); "
            f"{', '.join(kind for kind, _, _ in FORMATS)} are known: boot the image without unpacking it here"
        )
    kind, _, unpack = found
    try:
        return unpack(data, limit)
    except OverflowError:
        raise BootError(f"{name}: its {kind} data unpacks to more than {limit >> 20} MiB; no kernel does") from None
    except ModuleNotFoundError as error:
        raise BootError(f"{name}: compressed with {kind}: {error}") from error
    except (ValueError, EOFError, OSError, MemoryError, lzma.LZMAError, zlib.error) as error:
        raise BootError(f"{name}: its {kind} data is damaged: {error}; fetch it again") from error


def is_payload(data: bytes) -> bool:
    """Whether this begins as a Linux kernel does in any of the ways to store it, lzo and uncompressed too."""
    return data.startswith((b"\x7fELF", LZO_MAGIC, *(magic for _, magic, _ in FORMATS)))


def is_gzip(data: bytes) -> bool:
    """Whether this begins as a gzip file does."""
    return data[:3] == GZIP_MAGIC + b"\x08"
