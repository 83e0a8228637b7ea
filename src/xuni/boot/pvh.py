"""The PVH entry: an ELF kernel names a 32-bit entry point in a note and gets an hvm_start_info record.

Spec: Xen, docs/misc/pvh.pandoc, public/elfnote.h and public/arch-x86/hvm/start_info.h. Linux has the note in vmlinux
when built with CONFIG_PVH.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from xuni.boot import e820
from xuni.boot.elf import Elf, load_segments
from xuni.boot.layout import HIGH_MEMORY
from xuni.boot.linux_params import BOOT_CS, BOOT_DS, LinuxBoot, encode_command_line, put_gdt, read_initrd
from xuni.boot.placement import FOUR_GIB, Placement
from xuni.isa.x86.cpustate import CpuState, protected_flat

NOTE_OWNER: Final = b"Xen"
PHYS32_ENTRY: Final = 18
"""XEN_ELFNOTE_PHYS32_ENTRY."""

START_INFO: Final = Struct("<IIIIQQQQII")
"""magic, version, flags, nr_modules, modlist, cmdline, rsdp, memmap, memmap_entries, reserved."""
START_MAGIC: Final = 0x336E_C578
VERSION: Final = 1
MODULE: Final = Struct("<QQQQ")
"""paddr, size, cmdline, reserved."""
MEMMAP_ENTRY: Final = Struct("<QQII")
"""addr, size, type (as in E820), reserved."""
INITRD_END: Final = 0x8000_0000
"""Where Linux wants an initrd to end, as its bzImage header says (initrd_addr_max); the specification has no bound."""
MAX_COMMAND_LINE: Final = 2047
"""Linux's COMMAND_LINE_SIZE without the NUL; the specification has no bound."""


def entry_point(elf: Elf) -> int | None:
    """The physical address in the note, or None if there is no such note. Raises BootError for a bad one."""
    for owner, kind, description in elf.notes():
        if owner == NOTE_OWNER and kind == PHYS32_ENTRY:
            if len(description) not in (4, 8):
                raise elf.image.error(f"its PVH note holds {len(description)} bytes, not an address; it is damaged")
            entry = int.from_bytes(description, "little")
            if not any(segment.paddr <= entry < segment.end for segment in elf.segments) or entry >= FOUR_GIB:
                raise elf.image.error(f"its PVH entry point {entry:#x} lies in no segment below 4 GiB; it is damaged")
            return entry
    return None


def load(placement: Placement, elf: Elf, boot: LinuxBoot) -> CpuState:
    """Put the kernel and its start info into guest memory; return the state of the boot CPU. Raises BootError."""
    entry = entry_point(elf)
    if entry is None:
        raise elf.image.error("no PVH entry: the ELF note XEN_ELFNOTE_PHYS32_ENTRY is missing; build with CONFIG_PVH=y")
    load_segments(placement, elf)
    memory = placement.memory
    modules = b""
    if data := read_initrd(boot.initrd):
        address = placement.place(len(data), "the initrd", above=HIGH_MEMORY, below=INITRD_END, top=True)
        memory.write(address, data)
        modules = MODULE.pack(address, len(data), 0, 0)
    text = encode_command_line(boot.command_line, MAX_COMMAND_LINE, elf.image.name)
    entries = e820.memory_map(memory)
    table = b"".join(MEMMAP_ENTRY.pack(area.start, area.size, area.kind, 0) for area in entries)
    start_info = START_INFO.pack(
        START_MAGIC,
        VERSION,
        0,
        len(modules) // MODULE.size,
        placement.put(modules, "the module list") if modules else 0,
        placement.put(text, "the command line"),
        boot.rsdp,
        placement.put(table, "the memory map"),
        len(entries),
        0,
    )
    ebx = placement.put(start_info, "hvm_start_info")
    gdtr = put_gdt(placement, long_mode=False)
    return protected_flat(entry, gdtr=gdtr, code=BOOT_CS, data=BOOT_DS, rbx=ebx)
