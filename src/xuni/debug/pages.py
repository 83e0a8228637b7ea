"""What a processor's page tables map: every present page, in ascending order (SDM vol. 3A, chapter 4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from struct import unpack
from typing import TYPE_CHECKING, Final

from xuni.isa.x86.paging import PAGE_SIZE, PRESENT
from xuni.isa.x86.state import Cr0, Cr4, Efer
from xuni.memory.guest import GuestAddressError

if TYPE_CHECKING:
    from xuni.isa.x86.cpustate import CpuState
    from xuni.memory.guest import GuestMemory

WRITABLE, USER, WRITE_THROUGH, NO_CACHE, ACCESSED, DIRTY, GLOBAL = (1 << bit for bit in (1, 2, 3, 4, 5, 6, 8))
NO_EXECUTE: Final = 1 << 63
FRAME: Final = 0x000F_FFFF_FFFF_F000
MOST_TABLES: Final = 1 << 12
"""A guest can make tables that take days to read; this many are looked at."""


@dataclass(frozen=True, slots=True)
class Page:
    """A mapping. `flags` are those of its last entry; WRITABLE and USER only if every level grants them."""

    linear: int
    physical: int
    size: int
    flags: int


@dataclass(slots=True)
class Walk:
    """One walk over all tables. `cut` says that there were too many of them."""

    memory: GuestMemory
    registers: CpuState
    cut: bool = False
    _tables: int = 0

    def pages(self) -> Iterator[Page]:
        """Nothing if paging is off."""
        r = self.registers
        if not r.cr0 & Cr0.PG:
            return
        if r.efer & Efer.LMA:
            top = 48 if r.cr4 & Cr4.LA57 else 39
            yield from self._table(r.cr3 & FRAME, 0, top, 9, 8, (30, 21), WRITABLE | USER)
        elif r.cr4 & Cr4.PAE:
            yield from self._table(r.cr3 & 0xFFFF_FFE0, 0, 30, 2, 8, (21,), WRITABLE | USER)
        else:
            yield from self._table(r.cr3 & 0xFFFF_F000, 0, 22, 10, 4, (22,) if r.cr4 & Cr4.PSE else (), WRITABLE | USER)

    def _table(
        self, table: int, linear: int, shift: int, bits: int, size: int, large: tuple[int, ...], granted: int
    ) -> Iterator[Page]:
        self._tables += 1
        if self._tables > MOST_TABLES:
            self.cut = True
            return
        try:
            data = self.memory.read(table, size << bits)
        except GuestAddressError:
            return
        directory_of_pae = bits == 2  # its entries have no permissions
        for index, entry in enumerate(unpack(f"<{1 << bits}{'Q' if size == 8 else 'I'}", data)):
            if not entry & PRESENT:
                continue
            at = linear | index << shift
            if at >> 47 == 1 and shift == 39 or at >> 56 == 1 and shift == 48:  # the upper half
                at |= -1 << (shift + 9) & (1 << 64) - 1
            allowed = granted & (entry | (WRITABLE | USER if directory_of_pae else 0))
            if shift == 12 or shift in large and entry & PAGE_SIZE:
                frame = entry & FRAME
                if size == 4 and shift == 22:  # PSE-36
                    frame = entry & 0xFFC0_0000 | (entry >> 13 & 0xFF) << 32
                flags = entry & ~(FRAME | WRITABLE | USER) | allowed
                yield Page(at, frame & -(1 << shift), 1 << shift, flags)
            else:
                below = shift - (10 if size == 4 else 9)
                yield from self._table(entry & FRAME, at, below, 10 if size == 4 else 9, size, large, allowed)


def tlb_lines(walk: Walk) -> Iterator[str]:
    """A line a page, as QEMU's `info tlb`: linear and physical address and X G P D A C T U W."""
    for page in walk.pages():
        letters = (
            (NO_EXECUTE, "X"), (GLOBAL, "G"), (PAGE_SIZE if page.size > 4096 else 0, "P"), (DIRTY, "D"),
            (ACCESSED, "A"), (NO_CACHE, "C"), (WRITE_THROUGH, "T"), (USER, "U"), (WRITABLE, "W"),
        )  # fmt: skip
        yield f"{page.linear:016x}: {page.physical:016x} " + "".join(c if page.flags & bit else "-" for bit, c in letters)


def range_lines(walk: Walk) -> Iterator[str]:
    """A line for each run of pages with the same rights, as QEMU's `info mem`: start, end, size, u r w."""
    start = end = flags = 0
    for page in walk.pages():
        rights = page.flags & (USER | WRITABLE)
        if end != page.linear or rights != flags or start == end:
            if end > start:
                yield _range(start, end, flags)
            start, flags = page.linear, rights
        end = page.linear + page.size
    if end > start:
        yield _range(start, end, flags)


def _range(start: int, end: int, flags: int) -> str:
    rights = f"{'u' if flags & USER else '-'}r{'w' if flags & WRITABLE else '-'}"
    return f"{start:016x}-{end & (1 << 64) - 1:016x} {end - start:016x} {rights}"
