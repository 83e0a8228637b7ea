"""From a kernel file to a guest that can take its first instruction: recognise the format, place, describe.

To add one: a module with `load(placement, image, ...) -> CpuState`, a member of `Format`, a line in `recognise` and
one in `load`, a test in tests/boot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from xuni.boot import acpi, bzimage, decompress, elf, firmware, multiboot, plain, pvh
from xuni.boot.image import BootError, Image, Source, read_image
from xuni.boot.layout import HIGH_MEMORY, BoardFacts
from xuni.boot.linux_params import LinuxBoot
from xuni.boot.multiboot import Module
from xuni.boot.placement import Placement
from xuni.isa.x86.cpustate import CpuState
from xuni.memory.guest import GuestMemory


class Format(Enum):
    """The kinds of kernel image; the value is what messages call them."""

    AUTO = "recognised by its contents"
    BZIMAGE = "Linux bzImage"
    MULTIBOOT = "multiboot 1"
    PVH = "ELF with a PVH note"
    ELF = "ELF started at its entry point"
    REAL = "raw 16-bit code"
    PROTECTED = "raw 32-bit code"
    LONG = "raw 64-bit code"


@dataclass(frozen=True, slots=True)
class BootConfig:
    """What to boot. A source is a path, or the bytes themselves."""

    kernel: Source
    initrd: Sequence[Source | Module] = ()
    """Linux: initial RAM disks, unpacked one after the other. Multiboot: modules, with arguments as `Module`s."""
    append: str = ""
    """The kernel's command line; multiboot puts the file's name before it."""
    format: Format = Format.AUTO
    unpack: bool = False
    """bzImage: unpack the kernel here instead of in the guest, and enter it directly (no KASLR)."""
    address: int = 0x8000
    """Raw code: its guest-physical address, and the first instruction's."""
    rng_seed: bytes = b""
    """Entropy for a Linux guest's random numbers; empty: none, and boots are repeatable."""


def recognise(image: Image) -> Format:
    """Tell the format by the image's contents. Raises BootError for one that we cannot boot.

    Multiboot comes before PVH, as elsewhere: Xen has both, and modules need multiboot.
    """
    if bzimage.is_bzimage(image.data):
        return Format.BZIMAGE
    if multiboot.find_header(image.data):
        return Format.MULTIBOOT
    if elf.is_elf(image.data):
        return Format.ELF if pvh.entry_point(elf.parse(image)) is None else Format.PVH
    begins = image.data[:4].hex(" ")
    raise image.error(
        f"not a kernel that boots here: no bzImage, multiboot image or ELF file (it begins with {begins}); "
        "name a kernel's vmlinuz, vmlinux or multiboot file"
    )


def read_kernel(source: Source) -> Image:
    """Read a kernel; a gzip file stands for its contents. Raises BootError."""
    image = read_image(source, "kernel")
    if decompress.is_gzip(image.data):
        return Image(image.name, decompress.payload(image.data, image.name))
    return image


def load(memory: GuestMemory, config: BootConfig, board: BoardFacts | None = None) -> CpuState:
    """Put everything into guest memory that must stand there before the first instruction.

    `memory` is as `GuestMemory` makes it, or was used by a guest before. Returns the state that the boot CPU starts
    with. Raises BootError, whose message is for the user.
    """
    board = board or BoardFacts()
    if memory.size < HIGH_MEMORY:
        raise BootError(f"the guest has {memory.size >> 10} KiB of memory, and a PC needs 1 MiB at least; give it more")
    image = read_kernel(config.kernel)
    kind = recognise(image) if config.format is Format.AUTO else config.format
    placement = Placement(memory)
    firmware.install(memory, board)
    rsdp = acpi.build(memory, board) if board.acpi_tables else 0
    modules = [item if isinstance(item, Module) else Module(item) for item in config.initrd]
    boot = LinuxBoot(config.append, [module.source for module in modules], rsdp, config.rng_seed)
    match kind:
        case Format.BZIMAGE if config.unpack:
            return bzimage.load_unpacked(placement, image, boot)
        case Format.BZIMAGE:
            return bzimage.load(placement, image, boot)
        case Format.MULTIBOOT:
            return multiboot.load(placement, image, command_line=config.append, modules=modules)
        case Format.PVH:
            return pvh.load(placement, elf.parse(image), boot)
        case Format.ELF:
            return plain.load_elf(placement, elf.parse(image), boot)
        case Format.REAL:
            return plain.load_flat(placement, image, config.address, plain.Mode.REAL)
        case Format.PROTECTED:
            return plain.load_flat(placement, image, config.address, plain.Mode.PROTECTED)
        case Format.LONG:
            return plain.load_flat(placement, image, config.address, plain.Mode.LONG)
        case Format.AUTO:
            raise AssertionError("recognise() names a format")
