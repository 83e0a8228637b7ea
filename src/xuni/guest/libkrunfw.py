"""The kernel inside libkrunfw, as an ELF file that any PVH loader takes.

libkrunfw is a shared library whose data is a Linux kernel in memory form: what `objcopy -O binary` makes of vmlinux.
Its notes are still inside; from them and the addresses that the library tells, we make the ELF file that it once was.
PVH: Xen's public/elfnote.h and hvm/start_info.h; the note is XEN_ELFNOTE_PHYS32_ENTRY.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from struct import Struct

EHDR = Struct("<16sHHIQQQIHHHHHH")
PHDR = Struct("<IIQQQQQQ")
NOTE = Struct("<III4s")  # name size, description size, type, name
PHYS32_ENTRY = 18
PT_LOAD, PT_NOTE, RWX, R = 1, 4, 7, 4
BSS = 16 << 20  # bytes after the image that the kernel clears for itself; how many exactly, the image does not say
ASK = """import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
library.krunfw_get_kernel.restype = ctypes.c_void_p
load, entry, size = ctypes.c_uint64(), ctypes.c_uint64(), ctypes.c_size_t()
address = library.krunfw_get_kernel(ctypes.byref(load), ctypes.byref(entry), ctypes.byref(size))
sys.stdout.buffer.write(b"%d %d\\n" % (load.value, entry.value) + ctypes.string_at(address, size.value))
"""


def elf(library: Path) -> bytes:
    """Raises `ValueError` for a library that holds no such kernel."""
    # The library tells its addresses through a function only; a process of its own calls it.
    done = subprocess.run([sys.executable, "-I", "-c", ASK, str(library)], capture_output=True, check=False)
    first, _, image = done.stdout.partition(b"\n")
    if done.returncode or not image:
        raise ValueError(f"{library.name} does not hand out a kernel: {done.stderr.decode(errors='replace')[-200:]}")
    load, entry = map(int, first.split())
    return wrap(image, load, entry)


def wrap(image: bytes, load: int, entry: int) -> bytes:
    """An ELF64 file with `image` at physical address `load`, its 64-bit `entry`, and its PVH note."""
    offset = 0x1000
    note = _note(image)
    if note is None:
        raise ValueError("the kernel has no PVH entry note")
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    header = EHDR.pack(ident, 2, 62, 1, entry, EHDR.size, 0, 0, EHDR.size, PHDR.size, 2, 0, 0, 0)
    at, size = note
    segments = (
        PHDR.pack(PT_LOAD, RWX, offset, load, load, len(image), len(image) + BSS, offset)
        + PHDR.pack(PT_NOTE, R, offset + at, load + at, load + at, size, size, 4)
    )
    return (header + segments).ljust(offset, b"\0") + image


def _note(image: bytes) -> tuple[int, int] | None:
    """Offset and size of the PHYS32_ENTRY note."""
    for width in (8, 4):  # of the address in it
        at = image.find(NOTE.pack(4, width, PHYS32_ENTRY, b"Xen\0"))
        if at >= 0 and at % 4 == 0:
            return at, NOTE.size + width
    return None
