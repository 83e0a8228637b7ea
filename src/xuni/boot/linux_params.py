"""Linux's boot_params ("zero page"), the page tables and the GDT that its 64-bit boot protocol starts with.

Spec: Linux, Documentation/arch/x86/boot.rst and zero-page.rst. Shared by bzImage and by plain 64-bit ELF kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag
from struct import Struct
from typing import Final

from xuni.boot import e820
from xuni.boot.image import BootError, Source, read_image
from xuni.boot.layout import EBDA, HIGH_MEMORY
from xuni.boot.placement import FOUR_GIB, Placement
from xuni.isa.x86.cpustate import TableRegister, code32, code64, data32
from xuni.memory.guest import PAGE_SIZE

BOOT_PARAMS_SIZE: Final = 4096
SETUP_HEADER: Final = 0x1F1
SETUP_HEADER_END: Final = 0x290
"""Where the next field of boot_params begins: the header may never grow beyond."""
E820_TABLE: Final = 0x2D0
E820_MAX: Final = 128

BOOT_CS: Final = 0x10
BOOT_DS: Final = 0x18

PAGE_TABLE: Final = Struct("<512Q")

MAX_IDENTITY_GIB: Final = 64

LOADER_UNDEFINED: Final = 0xFF
"""type_of_loader for a boot loader without a number of its own."""

SETUP_DATA: Final = Struct("<QII")
"""struct setup_data: next, type, length."""
SETUP_RNG_SEED: Final = 9


class LoadFlags(IntFlag):
    """loadflags, offset 0x211."""

    LOADED_HIGH, KASLR, QUIET, KEEP_SEGMENTS, CAN_USE_HEAP = 1 << 0, 1 << 1, 1 << 5, 1 << 6, 1 << 7


class Field:
    """Offsets in boot_params of what a loader writes, with the size in bytes behind each."""

    ACPI_RSDP_ADDR = (0x070, 8)
    EXT_RAMDISK_IMAGE = (0x0C0, 4)
    EXT_RAMDISK_SIZE = (0x0C4, 4)
    EXT_CMD_LINE_PTR = (0x0C8, 4)
    E820_ENTRIES = (0x1E8, 1)
    BOOT_FLAG = (0x1FE, 2)
    HEADER = (0x202, 4)
    VERSION = (0x206, 2)
    TYPE_OF_LOADER = (0x210, 1)
    LOADFLAGS = (0x211, 1)
    CODE32_START = (0x214, 4)
    RAMDISK_IMAGE = (0x218, 4)
    RAMDISK_SIZE = (0x21C, 4)
    CMD_LINE_PTR = (0x228, 4)
    KERNEL_ALIGNMENT = (0x230, 4)
    SETUP_DATA = (0x250, 8)


class BootParams:
    """The zero page under construction. `header` is the image's setup header, from offset 0x1F1 on."""

    def __init__(self, header: bytes = b"") -> None:
        assert len(header) <= SETUP_HEADER_END - SETUP_HEADER
        self.page = bytearray(BOOT_PARAMS_SIZE)
        self.page[SETUP_HEADER : SETUP_HEADER + len(header)] = header

    def set(self, field: tuple[int, int], value: int) -> None:
        """Store an unsigned field."""
        offset, size = field
        self.page[offset : offset + size] = value.to_bytes(size, "little")

    def get(self, field: tuple[int, int]) -> int:
        """Load an unsigned field."""
        offset, size = field
        return int.from_bytes(self.page[offset : offset + size], "little")

    def set_e820(self, entries: Sequence[e820.Entry]) -> None:
        """Store the memory map."""
        if len(entries) > E820_MAX:
            raise BootError(f"the board has {len(entries)} memory ranges, and boot_params holds {E820_MAX}")
        table = b"".join(entry.pack() for entry in entries)
        self.page[E820_TABLE : E820_TABLE + len(table)] = table
        self.set(Field.E820_ENTRIES, len(entries))

    def set_initrd(self, address: int, size: int) -> None:
        """Store where the initial RAM disk is; the upper halves have fields of their own."""
        self.set(Field.RAMDISK_IMAGE, address & 0xFFFF_FFFF)
        self.set(Field.RAMDISK_SIZE, size & 0xFFFF_FFFF)
        self.set(Field.EXT_RAMDISK_IMAGE, address >> 32)
        self.set(Field.EXT_RAMDISK_SIZE, size >> 32)


def encode_command_line(text: str, limit: int, name: str) -> bytes:
    """Return `text` with its terminating NUL. `limit` is in bytes without the NUL."""
    encoded = text.encode("utf-8", "surrogateescape")
    if b"\0" in encoded:
        raise BootError(f"{name}: the command line has a NUL character in it; leave it out")
    if len(encoded) > limit:
        raise BootError(
            f"{name}: the command line has {len(encoded)} bytes, and this kernel takes at most {limit}; shorten it"
        )
    return encoded + b"\0"


def read_initrd(sources: Sequence[Source]) -> bytes:
    """Read initial RAM disks and join them: the kernel unpacks several archives one after the other.

    Each begins at a multiple of 4 bytes, as the kernel's reader of cpio archives wants it.
    """
    joined = bytearray()
    for source in sources:
        joined += bytes(-len(joined) % 4)
        joined += read_image(source, "initrd").data
    return bytes(joined)


def place_initrd(placement: Placement, data: bytes, highest: int, *, above_4g: bool) -> int:
    """Put the initrd as high as it may lie, page-aligned, and return its address.

    `highest` is the last address it may use (initrd_addr_max); with `above_4g` the kernel takes it anywhere else too.
    """
    try:
        address = placement.place(
            len(data), "the initrd", above=HIGH_MEMORY, below=min(highest + 1, FOUR_GIB), top=True
        )
    except BootError:
        if not above_4g:
            raise
        address = placement.place(len(data), "the initrd", above=HIGH_MEMORY, top=True)
    placement.memory.write(address, data)
    return address


def put_setup_data(placement: Placement, kind: int, data: bytes, following: int = 0) -> int:
    """Write one node of the setup_data chain, before the node at `following`; return its address."""
    return placement.put(SETUP_DATA.pack(following, kind, len(data)) + data, "setup_data")


def put_gdt(placement: Placement, *, long_mode: bool) -> TableRegister:
    """Write the GDT of the boot protocol: __BOOT_CS is 0x10, __BOOT_DS is 0x18."""
    code = code64(BOOT_CS) if long_mode else code32(BOOT_CS)
    entries = (0, 0, code.descriptor(), data32(BOOT_DS).descriptor())
    table = b"".join(entry.to_bytes(8, "little") for entry in entries)
    return TableRegister(placement.put(table, "the GDT", align=16), len(table) - 1)


def put_identity_map(placement: Placement, end: int) -> int:
    """Write page tables that map [0, `end`) onto itself with 2 MiB pages, at least 4 GiB; return the value for CR3.

    Raises BootError for more than fits into tables below 640 KiB.
    """
    present_writable, large = 0x3, 0x80
    gigabytes = max(4, -(-end // (1 << 30)))
    if gigabytes > MAX_IDENTITY_GIB:
        raise BootError(f"the image reaches up to {end:#x}, and it must lie below {MAX_IDENTITY_GIB} GiB to be started")
    tables = placement.place((2 + gigabytes) * PAGE_SIZE, "the page tables", below=EBDA)
    pointers, directories = tables + PAGE_SIZE, tables + 2 * PAGE_SIZE
    placement.memory.fill(tables, 2 * PAGE_SIZE)
    placement.memory.write_u64(tables, pointers | present_writable)
    for gigabyte in range(gigabytes):
        directory = directories + gigabyte * PAGE_SIZE
        placement.memory.write_u64(pointers + 8 * gigabyte, directory | present_writable)
        entries = ((gigabyte << 30 | n << 21 | large | present_writable) for n in range(512))
        placement.memory.write(directory, PAGE_TABLE.pack(*entries))
    return tables


@dataclass(frozen=True, slots=True)
class LinuxBoot:
    """What every Linux kernel is told, whatever its image format."""

    command_line: str = ""
    initrd: Sequence[Source] = ()
    rsdp: int = 0
    """Guest-physical address of the ACPI tables' root; 0: none."""
    rng_seed: bytes = b""
    """Entropy for the guest's random numbers; empty: none."""


@dataclass(frozen=True, slots=True)
class KernelLimits:
    """What the kernel's header says of the things around it."""

    name: str
    version: int
    """Of the boot protocol: major in the upper byte, minor in the lower."""
    cmdline_size: int
    initrd_addr_max: int
    initrd_above_4g: bool


def put_boot_params(
    placement: Placement, boot: LinuxBoot, limits: KernelLimits, header: bytes, kernel_address: int
) -> int:
    """Write command line, initrd, setup_data and boot_params; return the address of the last. Raises BootError.

    `header` is the setup header from offset 0x1F1 on; the kernel itself must be placed already.
    """
    params = BootParams(header)
    params.set(Field.TYPE_OF_LOADER, LOADER_UNDEFINED)
    params.set(Field.CODE32_START, kernel_address & 0xFFFF_FFFF)
    params.set(Field.ACPI_RSDP_ADDR, boot.rsdp)
    params.set_e820(e820.memory_map(placement.memory))
    text = encode_command_line(boot.command_line, limits.cmdline_size, limits.name)
    params.set(Field.CMD_LINE_PTR, placement.put(text, "the command line"))
    if data := read_initrd(boot.initrd):
        address = place_initrd(placement, data, limits.initrd_addr_max, above_4g=limits.initrd_above_4g)
        params.set_initrd(address, len(data))
    if boot.rng_seed and limits.version >= 0x0209:
        params.set(Field.SETUP_DATA, put_setup_data(placement, SETUP_RNG_SEED, boot.rng_seed))
    return placement.put(bytes(params.page), "boot_params", align=PAGE_SIZE)


def synthetic_header() -> bytes:
    """A setup header for a kernel image that has none (vmlinux): what the kernel itself looks at."""
    params = BootParams()
    params.set(Field.BOOT_FLAG, 0xAA55)
    params.set(Field.HEADER, int.from_bytes(b"HdrS", "little"))
    params.set(Field.VERSION, 0x020F)
    params.set(Field.LOADFLAGS, LoadFlags.LOADED_HIGH)
    params.set(Field.KERNEL_ALIGNMENT, 0x100_0000)
    return bytes(params.page[SETUP_HEADER:SETUP_HEADER_END])
