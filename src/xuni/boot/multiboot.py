"""Multiboot 1: a header in the first 8 KiB of the image, a record for the kernel, modules with command lines.

Spec: GNU, Multiboot Specification 0.6.96, section 3. The image is an ELF file or carries the addresses in its header
(bit 16, the "a.out kludge"). What boots so: Xen, kvm-unit-tests, most hobby kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path
from struct import Struct
from typing import Final

from xuni.boot import e820, elf
from xuni.boot.image import BootError, Image, Source, read_image
from xuni.boot.layout import EBDA, HIGH_MEMORY
from xuni.boot.placement import FOUR_GIB, Placement
from xuni.isa.x86.cpustate import CpuState, protected_flat
from xuni.memory.guest import PAGE_SIZE

HEADER_MAGIC: Final = 0x1BAD_B002
LOADER_MAGIC: Final = 0x2BAD_B002
"""In EAX at the entry."""
SEARCH: Final = 8192
"""The header lies in these first bytes of the image, 4-byte aligned."""
LOADER_NAME: Final = b"xuni\0"
MAX_MODULES: Final = 256
MAX_TEXT: Final = 64 << 10


class Wants(IntFlag):
    """The header's flags; an unknown one among bits 0-15 means that we must refuse."""

    PAGE_ALIGNED_MODULES, MEMORY_INFO, VIDEO_MODE, ADDRESSES = 1 << 0, 1 << 1, 1 << 2, 1 << 16


REQUIRED: Final = 0xFFFF
UNDERSTOOD: Final = Wants.PAGE_ALIGNED_MODULES | Wants.MEMORY_INFO | Wants.VIDEO_MODE
"""A kernel that wants a video mode learns from the record that there is none, which the specification allows."""


class Has(IntFlag):
    """The record's flags: which of its fields are valid."""

    MEMORY, COMMAND_LINE, MODULES, MEMORY_MAP, LOADER_NAME = 1 << 0, 1 << 2, 1 << 3, 1 << 6, 1 << 9


INFO: Final = Struct("<7I16xII12xI48x")
"""flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr, -, mmap_length, mmap_addr, -,
boot_loader_name, -."""
MODULE: Final = Struct("<IIII")
"""mod_start, mod_end, string, reserved."""
MEMORY_MAP_ENTRY: Final = Struct("<IQQI")
"""size of what follows, base, length, type."""


@dataclass(frozen=True, slots=True)
class Module:
    """A file that a multiboot kernel gets beside itself, and the words behind its name in the module's string."""

    source: Source
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Header:
    """The multiboot header; the addresses count only with `Wants.ADDRESSES`."""

    offset: int
    """In the file."""
    flags: int
    header_addr: int
    load_addr: int
    load_end_addr: int
    bss_end_addr: int
    entry_addr: int


def find_header(data: bytes) -> Header | None:
    """Look for a header whose three words add up to zero."""
    end = min(len(data), SEARCH)
    at = data.find(HEADER_MAGIC.to_bytes(4, "little"), 0, end)
    while at >= 0 and at + 12 <= end:
        flags = int.from_bytes(data[at + 4 : at + 8], "little")
        checksum = int.from_bytes(data[at + 8 : at + 12], "little")
        if at % 4 == 0 and (HEADER_MAGIC + flags + checksum) & 0xFFFF_FFFF == 0:
            words = data[at + 12 : at + 32].ljust(20, b"\0")
            return Header(at, flags, *(int.from_bytes(words[n : n + 4], "little") for n in range(0, 20, 4)))
        at = data.find(HEADER_MAGIC.to_bytes(4, "little"), at + 1, end)
    return None


def load(placement: Placement, image: Image, *, command_line: str = "", modules: Sequence[Module] = ()) -> CpuState:
    """Put the kernel, its modules and the multiboot record into guest memory. Raises BootError."""
    header = find_header(image.data)
    if header is None:
        raise image.error("no multiboot header in its first 8 KiB; take a multiboot kernel or another image format")
    if unknown := header.flags & REQUIRED & ~UNDERSTOOD:
        raise image.error(f"its multiboot header requires features {unknown:#x}, which are unknown here")
    if header.flags & Wants.ADDRESSES:
        entry, end = _load_addresses(placement, image, header)
    else:
        entry, end = _load_elf(placement, image)
    text = f"{_name(image.name)} {command_line}".rstrip()
    flags = Has.MEMORY | Has.COMMAND_LINE | Has.MODULES | Has.MEMORY_MAP | Has.LOADER_NAME
    table = _load_modules(placement, modules, end)
    memory_map = b"".join(
        MEMORY_MAP_ENTRY.pack(MEMORY_MAP_ENTRY.size - 4, area.start, area.size, area.kind)
        for area in e820.memory_map(placement.memory)
    )
    upper_end = next((high for low, high in placement.memory.ram if low <= HIGH_MEMORY < high), HIGH_MEMORY)
    info = INFO.pack(
        flags,
        EBDA >> 10,
        (min(upper_end, FOUR_GIB) - HIGH_MEMORY) >> 10,
        0,
        placement.put(_text(text, image.name), "the command line"),
        len(modules),
        placement.put(table, "the module list") if table else 0,
        len(memory_map),
        placement.put(memory_map, "the memory map"),
        placement.put(LOADER_NAME, "the boot loader's name"),
    )
    record = placement.put(info, "the multiboot record")
    return protected_flat(entry, rax=LOADER_MAGIC, rbx=record)


def _load_elf(placement: Placement, image: Image) -> tuple[int, int]:
    """Load the segments; return the entry point and the first address behind the kernel."""
    kernel = elf.parse(image)
    elf.load_segments(placement, kernel)
    entry = kernel.physical_entry()
    if entry >= FOUR_GIB:
        raise image.error(f"its entry point {entry:#x} lies above 4 GiB, and multiboot starts with 32 bits")
    return entry, kernel.end


def _load_addresses(placement: Placement, image: Image, header: Header) -> tuple[int, int]:
    """Load by the addresses in the header (section 3.1.3); return entry point and end."""
    if len(image) < header.offset + 32:
        raise image.error("truncated: its multiboot header promises addresses and ends before them; fetch it again")
    before = header.header_addr - header.load_addr
    start = header.offset - before
    if before < 0 or start < 0:
        raise image.error(
            f"its multiboot header says load_addr {header.load_addr:#x}, header_addr {header.header_addr:#x}, and "
            f"lies at {header.offset:#x} of the file: these do not agree; it is damaged"
        )
    size = header.load_end_addr - header.load_addr if header.load_end_addr else len(image) - start
    data = image.bytes_at(start, size, "the part that load_end_addr asks for") if size > 0 else b""
    if not data:
        raise image.error("its multiboot header leaves nothing to load (load_end_addr); it is damaged")
    end = max(header.load_addr + size, header.bss_end_addr)
    if not header.load_addr <= header.entry_addr < header.load_addr + size:
        raise image.error(f"its entry point {header.entry_addr:#x} lies outside what is loaded; it is damaged")
    placement.claim(header.load_addr, end - header.load_addr, f"the kernel {image.name}")
    placement.memory.write(header.load_addr, data)
    placement.memory.fill(header.load_addr + size, end - header.load_addr - size)
    return header.entry_addr, end


def _load_modules(placement: Placement, modules: Sequence[Module], kernel_end: int) -> bytes:
    """Put the modules behind the kernel, page-aligned, in order; return the table of them."""
    if len(modules) > MAX_MODULES:
        raise BootError(f"{len(modules)} modules, and at most {MAX_MODULES} are loaded")
    table = b""
    for number, module in enumerate(modules):
        image = read_image(module.source, f"module {number}")
        above = max(kernel_end, HIGH_MEMORY)
        address = placement.place(len(image), f"module {image.name}", align=PAGE_SIZE, above=above, below=FOUR_GIB)
        placement.memory.write(address, image.data)
        text = _text(f"{_name(image.name)} {module.arguments}".rstrip(), image.name)
        table += MODULE.pack(address, address + len(image), placement.put(text, "a module's string"), 0)
        kernel_end = address + len(image)
    return table


def _name(name: str) -> str:
    """The file's own name as the first word of a string; a space would end the word."""
    return Path(name).name.replace(" ", "_")


def _text(text: str, name: str) -> bytes:
    encoded = text.encode("utf-8", "surrogateescape")
    if b"\0" in encoded or len(encoded) > MAX_TEXT:
        raise BootError(f"{name}: its command line has a NUL character in it, or more than {MAX_TEXT >> 10} KiB")
    return encoded + b"\0"
