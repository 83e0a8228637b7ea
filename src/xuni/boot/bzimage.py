"""Linux bzImage: the real-mode header is read here, and the kernel starts at its 64-bit (or 32-bit) entry point.

Spec: Linux, Documentation/arch/x86/boot.rst. The file is `boot sector and setup | protected-mode kernel`::

    0x000 ........ (setup_sects + 1) * 512 ........ + syssize * 16
          setup code, header at 0x1F1       compressed kernel with its own unpacker     (then perhaps a signature)

Only the second part goes to guest memory, and the header's copy into boot_params. The setup code would ask a BIOS
for what we already know.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import Final

from xuni.boot import decompress, elf
from xuni.boot.image import Image
from xuni.boot.layout import HIGH_MEMORY
from xuni.boot.linux_params import (
    BOOT_CS,
    BOOT_DS,
    SETUP_HEADER,
    SETUP_HEADER_END,
    KernelLimits,
    LinuxBoot,
    LoadFlags,
    put_boot_params,
    put_gdt,
    put_identity_map,
)
from xuni.boot.placement import FOUR_GIB, Placement
from xuni.isa.x86.cpustate import CpuState, long_flat, protected_flat

SECTOR: Final = 512
BOOT_FLAG: Final = 0xAA55
MAGIC: Final = b"HdrS"
ENTRY_64: Final = 0x200
"""The 64-bit entry point, from the start of the loaded kernel."""
MAX_ALIGNMENT: Final = 1 << 30
OLD_INITRD_ADDR_MAX: Final = 0x37FF_FFFF
OLD_CMDLINE_SIZE: Final = 255


class XLoadFlags(IntFlag):
    """xloadflags, offset 0x236, protocol 2.12."""

    KERNEL_64, CAN_BE_LOADED_ABOVE_4G = 1 << 0, 1 << 1


@dataclass(frozen=True, slots=True)
class SetupHeader:
    """The header's fields that matter to a loader, checked. Sizes and addresses are in bytes."""

    raw: bytes
    """From offset 0x1F1 to the end that the header itself gives."""
    version: int
    """Major in the upper byte, minor in the lower."""
    kernel_offset: int
    """Where the protected-mode kernel begins in the file."""
    kernel_size: int
    load_flags: int
    xload_flags: int
    initrd_addr_max: int
    cmdline_size: int
    kernel_alignment: int
    relocatable: bool
    pref_address: int
    init_size: int
    """Memory that the kernel needs from its load address on, before it looks at the memory map."""
    payload_offset: int
    """Of the compressed vmlinux, from the start of the protected-mode kernel; 0 if the header does not say."""
    payload_length: int


def is_bzimage(data: bytes) -> bool:
    """Whether this looks like any Linux kernel with a setup header."""
    return data[0x202:0x206] == MAGIC


def parse_header(image: Image) -> SetupHeader:
    """Read and check the setup header. Raises BootError for anything that no kernel build makes."""
    if image.unsigned(0x1FE, 2, "the boot sector") != BOOT_FLAG or not is_bzimage(image.data):
        raise image.error("not a Linux bzImage: no 55 AA at 0x1fe or no 'HdrS' at 0x202; take a kernel's vmlinuz")
    version = image.unsigned(0x206, 2, "the setup header")
    if version < 0x0202:
        raise image.error(
            f"boot protocol {version >> 8}.{version & 0xFF:02} is older than 2.02; take a Linux kernel from 2.4 on"
        )
    header_end = 0x202 + image.unsigned(0x201, 1, "the setup header")
    if not 0x22C <= header_end <= SETUP_HEADER_END:
        raise image.error(f"the setup header claims to end at {header_end:#x}, not within 0x22c-0x290; it is damaged")
    raw = image.bytes_at(SETUP_HEADER, header_end - SETUP_HEADER, "the setup header")

    def field(offset: int, size: int, since: int, otherwise: int) -> int:
        """A field that exists since a protocol version, if the header is really that long."""
        if version < since or offset + size > header_end:
            return otherwise
        return image.unsigned(offset, size, "the setup header")

    setup_sects = image.unsigned(0x1F1, 1, "setup_sects") or 4  # 0 means 4, boot.rst
    kernel_offset = (setup_sects + 1) * SECTOR
    rest = len(image) - kernel_offset
    if rest <= ENTRY_64:
        raise image.error(
            f"truncated: setup_sects = {setup_sects} puts the kernel at {kernel_offset:#x}, and the file has "
            f"{len(image):#x} bytes; fetch it again"
        )
    size = field(0x1F4, 4 if version >= 0x0204 else 2, 0, 0) * 16
    if version >= 0x0204 and size - 15 > rest:
        raise image.error(
            f"truncated: syssize asks for {size:#x} bytes of kernel, and {rest:#x} follow the setup code; "
            "fetch it again"
        )
    header = SetupHeader(
        raw=raw,
        version=version,
        kernel_offset=kernel_offset,
        # Without a usable syssize everything behind the setup code is kernel.
        kernel_size=min(size, rest) if version >= 0x0204 and size > ENTRY_64 else rest,
        load_flags=field(0x211, 1, 0x0200, 0),
        xload_flags=field(0x236, 2, 0x020C, 0),
        initrd_addr_max=field(0x22C, 4, 0x0203, OLD_INITRD_ADDR_MAX),
        cmdline_size=field(0x238, 4, 0x0206, OLD_CMDLINE_SIZE),
        kernel_alignment=field(0x230, 4, 0x0205, 0),
        relocatable=bool(field(0x234, 1, 0x0205, 0)),
        pref_address=field(0x258, 8, 0x020A, HIGH_MEMORY),
        init_size=field(0x260, 4, 0x020A, 0),
        payload_offset=field(0x248, 4, 0x0208, 0),
        payload_length=field(0x24C, 4, 0x0208, 0),
    )
    if not header.load_flags & LoadFlags.LOADED_HIGH:
        raise image.error("a zImage, which loads at 64 KiB; build the kernel as bzImage")
    alignment = header.kernel_alignment
    if header.relocatable and (alignment & (alignment - 1) or not 1 <= alignment <= MAX_ALIGNMENT):
        raise image.error(f"kernel_alignment = {alignment:#x} is not a power of two up to 1 GiB; the header is damaged")
    if header.payload_offset + header.payload_length > rest:
        raise image.error(
            f"the payload at {header.payload_offset:#x}+{header.payload_length:#x} reaches beyond the kernel's "
            f"{rest:#x} bytes; the file is damaged or truncated"
        )
    begins = image.data[kernel_offset + header.payload_offset :][:8]
    if header.payload_length and not decompress.is_payload(begins):
        raise image.error(
            f"no compressed kernel where setup_sects = {setup_sects} and payload_offset = {header.payload_offset:#x} "
            f"say (there is {begins[:4].hex(' ')}); the header is damaged"
        )
    return header


def place_kernel(placement: Placement, image: Image, header: SetupHeader) -> int:
    """Choose the load address, write the kernel there, and return it."""
    # Before protocol 2.10 the header does not say how much room unpacking takes: be generous.
    needed = max(header.kernel_size, header.init_size) if header.init_size else 4 * header.kernel_size
    what = f"the kernel {image.name}"
    address = header.pref_address
    if header.relocatable and not (
        address % header.kernel_alignment == 0
        and HIGH_MEMORY <= address < FOUR_GIB - needed
        and any(low <= address and address + needed <= high for low, high in placement.memory.ram)
    ):
        align = max(header.kernel_alignment, 16)
        address = placement.place(needed, what, align=align, above=HIGH_MEMORY, below=FOUR_GIB)
    else:
        placement.claim(address, needed, what)
    start = header.kernel_offset
    placement.memory.write(address, memoryview(image.data)[start : start + header.kernel_size])
    return address


def load(placement: Placement, image: Image, boot: LinuxBoot) -> CpuState:
    """Put the kernel, its initrd and its boot_params into guest memory; return the state of the boot CPU.

    Raises BootError.
    """
    header = parse_header(image)
    kernel = place_kernel(placement, image, header)
    zero_page = put_boot_params(placement, boot, limits(image, header), header.raw, kernel)
    if header.xload_flags & XLoadFlags.KERNEL_64:
        cr3 = put_identity_map(placement, kernel + header.init_size)
        gdtr = put_gdt(placement, long_mode=True)
        return long_flat(kernel + ENTRY_64, cr3, gdtr=gdtr, code=BOOT_CS, data=BOOT_DS, rsi=zero_page)
    # The 32-bit protocol: ESI holds boot_params; EBP, EDI and EBX are zero.
    gdtr = put_gdt(placement, long_mode=False)
    return protected_flat(kernel, gdtr=gdtr, code=BOOT_CS, data=BOOT_DS, rsi=zero_page)


def load_unpacked(placement: Placement, image: Image, boot: LinuxBoot) -> CpuState:
    """Like `load`, but unpack the kernel here, with the host's speed, and enter it directly.

    The guest does not execute its unpacker then, and the kernel lies where it was linked to, without KASLR.
    """
    header = parse_header(image)
    kernel = elf.parse(vmlinux(image))
    elf.load_segments(placement, kernel)
    entry = kernel.physical_entry()
    zero_page = put_boot_params(placement, boot, limits(image, header), header.raw, entry)
    cr3 = put_identity_map(placement, kernel.end)
    gdtr = put_gdt(placement, long_mode=True)
    return long_flat(entry, cr3, gdtr=gdtr, code=BOOT_CS, data=BOOT_DS, rsi=zero_page)


def limits(image: Image, header: SetupHeader) -> KernelLimits:
    """What the header says of command line and initrd."""
    return KernelLimits(
        image.name,
        header.version,
        header.cmdline_size,
        header.initrd_addr_max,
        bool(header.xload_flags & XLoadFlags.CAN_BE_LOADED_ABOVE_4G),
    )


def vmlinux(image: Image) -> Image:
    """Unpack the ELF kernel that a bzImage carries. Raises BootError."""
    header = parse_header(image)
    if not header.payload_length:
        raise image.error(
            f"boot protocol {header.version >> 8}.{header.version & 0xFF:02} does not say where the compressed "
            "kernel is; boot the bzImage as it is"
        )
    offset = header.kernel_offset + header.payload_offset
    packed = image.bytes_at(offset, header.payload_length, "the payload")
    return Image(f"{image.name} (unpacked)", decompress.payload(packed, image.name))
