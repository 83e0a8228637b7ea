"""Hand-made kernel images: small, complete, and with any field a test wants to be wrong."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from struct import pack

import pytest

from xuni.memory.guest import GuestMemory

MIB = 1 << 20


@dataclass
class BzImage:
    """A bzImage of protocol 2.15 with 64-bit entry; `bytes()` makes the file."""

    setup_sects: int = 2
    version: int = 0x020F
    loadflags: int = 1
    xloadflags: int = 0x3
    kernel_alignment: int = 0x20_0000
    relocatable: int = 1
    cmdline_size: int = 2047
    initrd_addr_max: int = 0x7FFF_FFFF
    pref_address: int = 0x100_0000
    init_size: int = 0x20_0000
    payload: bytes = field(default_factory=lambda: gzip.compress(b"\x7fELF, but not really"))
    payload_offset: int = 0x300
    payload_length: int | None = None
    syssize: int | None = None
    jump: int = 0x6A
    code: bytes = b"\xeb\xfe"

    def __bytes__(self) -> bytes:
        kernel = bytearray(0x200) + bytearray(self.code.ljust(0x100, b"\x90")) + self.payload
        kernel += bytes(-len(kernel) % 16)
        file = bytearray((self.setup_sects + 1) * 512)

        def put(offset: int, code: str, value: int) -> None:
            data = pack("<" + code, value)
            file[offset : offset + len(data)] = data

        put(0x1F1, "B", self.setup_sects)
        put(0x1F4, "I", len(kernel) // 16 if self.syssize is None else self.syssize)
        put(0x1FE, "H", 0xAA55)
        put(0x200, "B", 0xEB)
        put(0x201, "B", self.jump)
        file[0x202:0x206] = b"HdrS"
        put(0x206, "H", self.version)
        put(0x211, "B", self.loadflags)
        put(0x214, "I", 0x10_0000)
        put(0x22C, "I", self.initrd_addr_max)
        put(0x230, "I", self.kernel_alignment)
        put(0x234, "B", self.relocatable)
        put(0x236, "H", self.xloadflags)
        put(0x238, "I", self.cmdline_size)
        put(0x248, "I", self.payload_offset)
        put(0x24C, "I", len(self.payload) if self.payload_length is None else self.payload_length)
        put(0x258, "Q", self.pref_address)
        put(0x260, "I", self.init_size)
        return bytes(file + kernel)


@dataclass
class Segment:
    """A program header and its bytes."""

    paddr: int
    data: bytes = b""
    memsz: int | None = None
    type: int = 1
    vaddr: int | None = None
    filesz: int | None = None
    offset: int | None = None


@dataclass
class ElfFile:
    """An ELF executable; the data of its segments follows the headers, 16-byte aligned, in order."""

    segments: Sequence[Segment]
    entry: int
    bits: int = 64
    machine: int | None = None
    type: int = 2
    phnum: int | None = None

    def __bytes__(self) -> bytes:
        wide = self.bits == 64
        machine = self.machine if self.machine is not None else 62 if wide else 3
        header_size, entry_size = (64, 56) if wide else (52, 32)
        at = header_size + entry_size * len(self.segments)
        table, body = b"", b""
        for s in self.segments:
            padding = -(at + len(body)) % 16
            body += bytes(padding)
            offset = at + len(body) if s.offset is None else s.offset
            filesz = len(s.data) if s.filesz is None else s.filesz
            memsz = filesz if s.memsz is None else s.memsz
            vaddr = s.paddr if s.vaddr is None else s.vaddr
            if wide:
                table += pack("<IIQQQQQQ", s.type, 7, offset, vaddr, s.paddr, filesz, memsz, 4)
            else:
                table += pack("<8I", s.type, offset, vaddr, s.paddr, filesz, memsz, 7, 4)
            body += s.data
        count = len(self.segments) if self.phnum is None else self.phnum
        ident = b"\x7fELF" + bytes([2 if wide else 1, 1, 1]) + bytes(9)
        fields = (self.type, machine, 1, self.entry, header_size, 0, 0, header_size, entry_size, count)
        return ident + pack("<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH", *fields, 0, 0, 0) + table + body


def pvh_note(entry: int, width: int = 8, owner: bytes = b"Xen\0", kind: int = 18) -> bytes:
    """The note that names a PVH entry point, behind another one of the same owner."""
    other = pack("<III4s8s", 4, 8, 1, b"Xen\0", b"version\0")
    return other + pack("<III", len(owner), width, kind) + owner + entry.to_bytes(width, "little")


def multiboot_header(flags: int = 0, *addresses: int) -> bytes:
    """The header; five addresses follow with bit 16 in `flags`."""
    return pack("<III", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFF_FFFF) + pack(
        f"<{len(addresses)}I", *addresses
    )


@dataclass(frozen=True)
class Images:
    """What tests build their images with."""

    bzimage: type[BzImage] = BzImage
    elf: type[ElfFile] = ElfFile
    segment: type[Segment] = Segment
    pvh_note: Callable[..., bytes] = pvh_note
    multiboot_header: Callable[..., bytes] = multiboot_header


@pytest.fixture(scope="session")
def images() -> Images:
    return Images()


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(64 * MIB) as memory:
        yield memory
