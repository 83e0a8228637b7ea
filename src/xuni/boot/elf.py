"""ELF executables as kernel images: headers, loadable segments, notes. Addresses are physical (p_paddr).

Spec: System V ABI, chapters 4 and 5. The file is untrusted: every offset is checked against it, every address against
the guest's RAM, and segments may not overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Final

from xuni.boot.image import Image
from xuni.boot.placement import Placement

MAGIC: Final = b"\x7fELF"
MAX_PROGRAM_HEADERS: Final = 256
"""Kernels have about five."""
MAX_NOTES: Final = 1024
EM_386, EM_X86_64 = 3, 62
ET_EXEC, ET_DYN = 2, 3
PT_LOAD, PT_NOTE = 1, 4

HEADER_32: Final = Struct("<HHIIIIIHHH")
HEADER_64: Final = Struct("<HHIQQQIHHH")
"""From e_type to e_phnum."""
SEGMENT_32: Final = Struct("<8I")
SEGMENT_64: Final = Struct("<II6Q")
NOTE: Final = Struct("<III")


class Class(IntEnum):
    """EI_CLASS; the value of a member is the width of an address in bits."""

    ELF32, ELF64 = 32, 64


@dataclass(frozen=True, slots=True)
class ProgramHeader:
    """One entry of the program header table. Sizes are in bytes."""

    type: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    align: int

    @property
    def end(self) -> int:
        """Physical address behind the segment."""
        return self.paddr + self.memsz


@dataclass(frozen=True, slots=True)
class Elf:
    """A checked ELF file for x86."""

    image: Image
    elf_class: Class
    entry: int
    """e_entry: whether physical or virtual, the file does not say."""
    headers: tuple[ProgramHeader, ...]

    @property
    def segments(self) -> tuple[ProgramHeader, ...]:
        """What goes to memory, in the order of the file."""
        return tuple(header for header in self.headers if header.type == PT_LOAD and header.memsz)

    @property
    def end(self) -> int:
        """The highest physical address behind any segment."""
        return max(segment.end for segment in self.segments)

    def physical_entry(self) -> int:
        """The entry point as a physical address. Raises BootError if no segment holds it."""
        if any(segment.paddr <= self.entry < segment.end for segment in self.segments):
            return self.entry
        for segment in self.segments:
            if segment.vaddr <= self.entry < segment.vaddr + segment.memsz:
                return self.entry - segment.vaddr + segment.paddr
        raise self.image.error(f"its entry point {self.entry:#x} lies in no loaded segment; link it again")

    def notes(self) -> Iterator[tuple[bytes, int, bytes]]:
        """The notes as (owner, type, description). A damaged note ends its segment."""
        count = 0
        for header in self.headers:
            if header.type != PT_NOTE:
                continue
            data = self.image.bytes_at(header.offset, header.filesz, "a note segment")
            align = 8 if header.align == 8 else 4
            at = 0
            while at + NOTE.size <= len(data) and count < MAX_NOTES:
                name_size, description_size, kind = NOTE.unpack_from(data, at)
                name_at = at + NOTE.size
                description_at = -(-(name_at + name_size) // align) * align
                end = description_at + description_size
                if end > len(data):
                    break
                yield data[name_at : name_at + name_size].rstrip(b"\0"), kind, data[description_at:end]
                at = -(-end // align) * align
                count += 1


def is_elf(data: bytes) -> bool:
    """Whether this has ELF's magic number."""
    return data[:4] == MAGIC


def parse(image: Image) -> Elf:
    """Read and check the headers. Raises BootError for what is not a little-endian x86 executable."""
    if not is_elf(image.data):
        raise image.error("not an ELF file; take an uncompressed kernel (vmlinux) or another image format")
    ident = image.bytes_at(0, 16, "the ELF identification")
    classes = {1: Class.ELF32, 2: Class.ELF64}
    if ident[4] not in classes or ident[5] != 1:
        raise image.error(f"ELF class {ident[4]}, data encoding {ident[5]}: not a little-endian 32 or 64-bit file")
    elf_class = classes[ident[4]]
    layout = HEADER_64 if elf_class is Class.ELF64 else HEADER_32
    fields = layout.unpack(image.bytes_at(16, layout.size, "the ELF header"))
    kind, machine, _version, entry, table, _sections, _flags, _size, entry_size, count = fields
    if machine not in (EM_386, EM_X86_64):
        raise image.error(f"built for machine {machine}, and this is an x86 PC; take a kernel for x86-64 or i386")
    if kind not in (ET_EXEC, ET_DYN):
        raise image.error(f"ELF type {kind} is not an executable; link it first")
    segment_layout = SEGMENT_64 if elf_class is Class.ELF64 else SEGMENT_32
    if count > MAX_PROGRAM_HEADERS:
        raise image.error(f"{count} program headers, and at most {MAX_PROGRAM_HEADERS} are read; the file is damaged")
    if count and entry_size != segment_layout.size:
        raise image.error(f"program headers of {entry_size} bytes, not {segment_layout.size}; the file is damaged")
    headers: list[ProgramHeader] = []
    for number in range(count):
        raw = image.bytes_at(table + number * entry_size, entry_size, f"program header {number}")
        header = _program_header(elf_class, segment_layout.unpack(raw))
        if header.type in (PT_LOAD, PT_NOTE):
            image.bytes_at(header.offset, header.filesz, f"segment {number}")
        if header.type == PT_LOAD and header.filesz > header.memsz:
            raise image.error(
                f"segment {number} has {header.filesz:#x} bytes in the file and room for {header.memsz:#x} in "
                "memory; the file is damaged"
            )
        if header.type == PT_LOAD and header.end > 1 << elf_class:
            raise image.error(
                f"segment {number} at {header.paddr:#x}+{header.memsz:#x} wraps around the address space; "
                "the file is damaged"
            )
        headers.append(header)
    elf = Elf(image, elf_class, entry, tuple(headers))
    if not elf.segments:
        raise image.error("an ELF file without anything to load (no PT_LOAD segment); link it as an executable")
    return elf


def _program_header(elf_class: Class, fields: tuple[int, ...]) -> ProgramHeader:
    if elf_class is Class.ELF64:
        kind, _flags, offset, vaddr, paddr, filesz, memsz, align = fields
    else:
        kind, offset, vaddr, paddr, filesz, memsz, _flags, align = fields
    return ProgramHeader(kind, offset, vaddr, paddr, filesz, memsz, align)


def load_segments(placement: Placement, elf: Elf) -> None:
    """Put all segments at their physical addresses and clear what the file does not fill. Raises BootError."""
    for number, segment in enumerate(elf.segments):
        placement.claim(segment.paddr, segment.memsz, f"segment {number} of {elf.image.name}")
    for segment in elf.segments:
        data = memoryview(elf.image.data)[segment.offset : segment.offset + segment.filesz]
        placement.memory.write(segment.paddr, data)
        if segment.memsz > segment.filesz:
            placement.memory.fill(segment.paddr + segment.filesz, segment.memsz - segment.filesz)
