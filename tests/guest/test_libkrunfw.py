from __future__ import annotations

import io
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from xuni.guest import libkrunfw

NOTE = libkrunfw.NOTE.pack(4, 8, libkrunfw.PHYS32_ENTRY, b"Xen\0") + (0x100_0000).to_bytes(8, "little")


def test_the_image_becomes_an_elf_file_with_its_entries() -> None:
    image = bytes(64) + NOTE + b"end"
    elf = ELFFile(io.BytesIO(libkrunfw.wrap(image, 0x100_0000, 0x100_0123)))
    assert elf.header.e_entry == 0x100_0123
    load, note = elf.iter_segments()
    assert (load.header.p_paddr, load.data()) == (0x100_0000, image)
    assert load.header.p_memsz > load.header.p_filesz
    assert note.data() == NOTE


def test_a_kernel_without_a_pvh_entry_is_refused() -> None:
    with pytest.raises(ValueError, match="no PVH entry note"):
        libkrunfw.wrap(bytes(100), 0x100_0000, 0x100_0000)


def test_a_library_without_a_kernel_is_refused(tmp_path: Path) -> None:
    library = tmp_path / "libkrunfw.so"
    library.write_bytes(b"\x7fELF and nothing more")
    with pytest.raises(ValueError, match=r"libkrunfw\.so does not hand out a kernel"):
        libkrunfw.elf(library)
