"""Images without a boot protocol of their own: Linux's vmlinux, static ELF programs, raw code at an address."""

from __future__ import annotations

from enum import Enum
from typing import Final

from xuni.boot.elf import Class, Elf, load_segments
from xuni.boot.image import Image
from xuni.boot.layout import EBDA
from xuni.boot.linux_params import (
    BOOT_CS,
    BOOT_DS,
    KernelLimits,
    LinuxBoot,
    put_boot_params,
    put_gdt,
    put_identity_map,
    synthetic_header,
)
from xuni.boot.placement import Placement
from xuni.isa.x86.cpustate import CpuState, Cr0, code16, data16, long_flat, protected_flat
from xuni.memory.guest import PAGE_SIZE

STACK_SIZE: Final = PAGE_SIZE
REAL_MODE_END: Final = 0x10_0000


class Mode(Enum):
    """The CPU mode in which raw code begins."""

    REAL = 16
    PROTECTED = 32
    LONG = 64


def load_elf(placement: Placement, elf: Elf, boot: LinuxBoot) -> CpuState:
    """Start an ELF file at its entry point: 64-bit files in long mode, 32-bit ones in flat protected mode.

    A 64-bit file is told what a Linux kernel wants to know (RSI points to boot_params), which others may ignore; the
    stack pointer points behind a page of stack. Raises BootError.
    """
    load_segments(placement, elf)
    entry = elf.physical_entry()
    if elf.elf_class is Class.ELF32:
        return _protected(placement, entry)
    limits = KernelLimits(elf.image.name, 0x020F, 2047, 0x7FFF_FFFF, initrd_above_4g=True)
    zero_page = put_boot_params(placement, boot, limits, synthetic_header(), entry)
    return _long(placement, entry, elf.end, zero_page)


def load_flat(placement: Placement, image: Image, address: int, mode: Mode) -> CpuState:
    """Put raw code at `address` and start at its first byte in `mode`. Raises BootError.

    The stack pointer points behind a page of stack. In real mode the segment registers are 0 where the address allows.
    """
    if mode is Mode.REAL and address + len(image) > REAL_MODE_END:
        raise image.error(f"{len(image)} bytes at {address:#x} reach beyond the 1 MiB of real mode; load it lower")
    placement.claim(address, len(image), f"the code {image.name}")
    placement.memory.write(address, image.data)
    match mode:
        case Mode.REAL:
            stack = placement.place(STACK_SIZE, "the stack", below=0x1_0000) + STACK_SIZE
            segment, offset = (0, address) if address < 0x1_0000 else (address >> 4, address & 0xF)
            data = data16(0)
            return CpuState(
                rip=offset, cs=code16(segment, segment << 4), ss=data, ds=data, es=data, rsp=stack, cr0=int(Cr0.ET)
            )
        case Mode.PROTECTED:
            return _protected(placement, address)
        case Mode.LONG:
            return _long(placement, address, address + len(image), 0)


def _stack(placement: Placement) -> int:
    return placement.place(STACK_SIZE, "the stack", below=EBDA) + STACK_SIZE


def _protected(placement: Placement, entry: int) -> CpuState:
    gdtr = put_gdt(placement, long_mode=False)
    return protected_flat(entry, gdtr=gdtr, code=BOOT_CS, data=BOOT_DS, rsp=_stack(placement))


def _long(placement: Placement, entry: int, end: int, rsi: int) -> CpuState:
    cr3 = put_identity_map(placement, end)
    gdtr = put_gdt(placement, long_mode=True)
    return long_flat(entry, cr3, gdtr=gdtr, code=BOOT_CS, data=BOOT_DS, rsi=rsi, rsp=_stack(placement))
