"""From a kernel file to a guest that can take its first instruction: recognise the format, place, describe.

To add one: a module with `load(placement, image, ...) -> CpuState`, a member of `Format`, a line in `recognise` and
one in `load`, a test in tests/boot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from xuni.boot import acpi, bzimage, firmware
from xuni.boot.image import BootError, Image, Source, read_image
from xuni.boot.layout import HIGH_MEMORY, BoardFacts
from xuni.boot.placement import Placement
from xuni.isa.x86.cpustate import CpuState
from xuni.memory.guest import GuestMemory


class Format(Enum):
    """The kinds of kernel image; the value is what messages call them."""

    AUTO = "recognised by its contents"
    BZIMAGE = "Linux bzImage"


@dataclass(frozen=True, slots=True)
class BootConfig:
    """What to boot. A source is a path, or the bytes themselves."""

    kernel: Source
    initrd: Sequence[Source] = ()
    """Linux: initial RAM disks, unpacked one after the other."""
    append: str = ""
    """The kernel's command line."""
    format: Format = Format.AUTO
    rng_seed: bytes = b""
    """Entropy for a Linux guest's random numbers; empty: none, and boots are repeatable."""


def recognise(image: Image) -> Format:
    """Tell the format by the image's contents. Raises BootError for one that we cannot boot."""
    if bzimage.is_bzimage(image.data):
        return Format.BZIMAGE
    raise image.error("not a kernel that we can boot")


def load(memory: GuestMemory, config: BootConfig, board: BoardFacts | None = None) -> CpuState:
    """Put everything into guest memory that must stand there before the first instruction.

    Returns the state that the boot CPU starts with. Raises BootError, whose message is for the user.
    """
    board = board or BoardFacts()
    if memory.size < 2 * HIGH_MEMORY:
        raise BootError(f"the guest has {memory.size >> 10} KiB of memory, and no kernel boots in less than 2 MiB")
    placement = Placement(memory)
    firmware.install(memory, board)
    rsdp = acpi.build(memory, board)
    image = read_image(config.kernel, "kernel")
    kind = recognise(image) if config.format is Format.AUTO else config.format
    match kind:
        case Format.BZIMAGE:
            return bzimage.load(
                placement,
                image,
                command_line=config.append,
                initrd=config.initrd,
                rsdp=rsdp,
                rng_seed=config.rng_seed,
            )
        case Format.AUTO:
            raise AssertionError("recognise() names a format")
