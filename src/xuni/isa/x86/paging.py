"""Paging: from linear to physical addresses, SDM vol. 3, chapter 4.

`walk` is what fills a TLB. All formats: none, 32-bit (4K, 4M with PSE-36), PAE (4K, 2M), 4-level and 5-level
(4K, 2M, 1G).
"""

from __future__ import annotations

from enum import IntFlag
from typing import TYPE_CHECKING, Final, NoReturn

from xuni.isa.bits import U1, U32, U64, Bits, select, u1, u64
from xuni.isa.stage import native, staged
from xuni.isa.x86.exceptions import GuestFault, Vector
from xuni.isa.x86.state import Cr0, Cr4, Efer, Eflags

if TYPE_CHECKING:
    from xuni.isa.x86.cpu import Cpu


class Access(IntFlag):
    """What a walk is for. No bit: a read by the supervisor."""

    WRITE = 1
    USER = 2  # a user-mode access (4.6)
    FETCH = 4
    IMPLICIT = 8  # the processor's own access to a descriptor table or TSS: SMAP ignores EFLAGS.AC


class Rights(IntFlag):
    """What the privilege that asked may do with the page; bits 15:8 are log2 of the page size."""

    READ = 1
    WRITE = 2  # and the dirty flag is set already
    EXECUTE = 4
    GLOBAL = 8


class PageError(IntFlag):
    """The error code of #PF, SDM vol. 3, figure 4-12."""

    P = 1
    W = 2
    U = 4
    RSVD = 8
    I = 16
    PK = 32


PRESENT: Final = 1 << 0
WRITABLE: Final = 1 << 1
USER: Final = 1 << 2
ACCESSED: Final = 1 << 5
DIRTY: Final = 1 << 6
PAGE_SIZE: Final = 1 << 7
GLOBAL: Final = 1 << 8
EXECUTE_DISABLE: Final = 1 << 63

CHANGED: Final = 0  # in place of rights: an entry was changed meanwhile, here or elsewhere; the walk starts over

_FRAME: Final = 0x000F_FFFF_FFFF_F000  # bits of an entry that may hold an address
_FRAME_PAE: Final = 0x7FFF_FFFF_FFFF_F000  # outside IA-32e mode bits 62:52 are reserved too
_LARGE: Final = {21: 0x1FE000, 30: 0x3FFFE000}  # reserved bits of a 2M and a 1G entry


@native
def page_fault(cpu: Cpu, linear: U64, access: U64, why: U64) -> NoReturn:
    """#PF at `linear`; `why` has the P, RSVD and PK bits of the error code."""
    s = cpu.s
    error = why | (access & (Access.WRITE | Access.USER)) << 1
    no_execute = ((s.cr4 & Cr4.PAE) != 0) & ((s.efer & Efer.NXE) != 0)
    if ((access & Access.FETCH) != 0) & (no_execute | ((s.cr4 & Cr4.SMEP) != 0)):
        error = error | PageError.I
    s.fault_address = linear
    raise GuestFault(cpu, Vector.PF, error)


@native
def _key_denies(cpu: Cpu, key: U64, user_page: U1, user: U1) -> U64:
    """Which data accesses the page's protection key forbids (4.6.2): bit 0 reads and writes, bit 1 writes."""
    s = cpu.s
    rights = u64(0)
    if user_page:
        if (s.cr4 & Cr4.PKE) != 0:
            rights = s.pkru.zext(64)
            s.keys_met = s.keys_met | u64(1) << (key << 1)
    elif (s.cr4 & Cr4.PKS) != 0:
        rights = s.pkrs.zext(64)
    rights = (rights >> (key << 1)) & 3
    if ~user & ((s.cr0 & Cr0.WP) == 0):
        rights = rights & 1
    return rights


@native
def set_pkru(cpu: Cpu, value: U32) -> None:
    """Load PKRU. A TLB holds rights with the keys applied: it must forget them if a key that pages have changes.

    Which keys walks have met is kept as their lower bit in PKRU: most guests use none but 0, and load PKRU often.
    """
    s = cpu.s
    changed = (s.pkru ^ value).zext(64)
    s.pkru = value
    if ((changed | changed >> 1) & (s.keys_met | 1) & 0x55555555) != 0:
        s.keys_met = 0
        cpu.flush_tlb()


@native
def _permit(cpu: Cpu, linear: U64, access: U64, allow: U64, deny: U64, leaf: U64, denied: U64) -> U64:
    """The rights to a page, for the access that is asked for; #PF if it is among the others.

    `allow` is the AND of all entries (U/S and R/W), `deny` their OR (XD), `denied` what the protection key forbids.
    """
    s = cpu.s
    user = (access & Access.USER) != 0
    user_page = (allow & USER) != 0
    writable_page = (allow & WRITABLE) != 0
    execute = ((deny & EXECUTE_DISABLE) == 0) | ((s.efer & Efer.NXE) == 0)
    if user:
        read = user_page
        write = user_page & writable_page
        execute = execute & user_page
    else:
        explicit = ((access & Access.IMPLICIT) == 0) & ((s.eflags & Eflags.AC) != 0)
        read = ~user_page | ((s.cr4 & Cr4.SMAP) == 0) | explicit
        write = read & (writable_page | ((s.cr0 & Cr0.WP) == 0))
        execute = execute & (~user_page | ((s.cr4 & Cr4.SMEP) == 0))
    keyed_read = read & ((denied & 1) == 0)
    keyed_write = write & (denied == 0)
    wants_write = (access & Access.WRITE) != 0
    if (access & Access.FETCH) != 0:
        if ~execute:
            page_fault(cpu, linear, access, u64(PageError.P))
    else:
        by_key = select(wants_write, denied != 0, denied[0])
        if by_key:
            page_fault(cpu, linear, access, u64(PageError.P | PageError.PK))
        if ~select(wants_write, keyed_write, keyed_read):
            page_fault(cpu, linear, access, u64(PageError.P))
    dirty = ((leaf & DIRTY) != 0) | wants_write
    is_global = ((leaf & GLOBAL) != 0) & ((s.cr4 & Cr4.PGE) != 0)
    return (
        keyed_read.zext(64) | (keyed_write & dirty).zext(64) << 1 | execute.zext(64) << 2 | is_global.zext(64) << 3
    )  # fmt: skip


@staged
def _mark(cpu: Cpu, address: Bits, entry: Bits, flags: int | Bits) -> Bits:
    """Set the accessed (and dirty) flags of an entry that lacks them; 0 if it has changed: by another processor, or by
    this walk, where one entry serves two levels.
    """
    done = u1(1)
    if (~entry & flags) != 0:
        done = cpu.mark_entry(address, entry, (entry & 0) | flags)
    return done


@staged
def _leaf_flags(access: Bits) -> Bits:
    """The flags that an access sets in the entry that maps the page."""
    return select((access & Access.WRITE) != 0, u64(ACCESSED | DIRTY), u64(ACCESSED))


@staged
def _check(cpu: Cpu, linear: Bits, access: Bits, entry: Bits, reserved: Bits) -> None:
    """#PF if the entry is not present or has a reserved bit."""
    if (entry & PRESENT) == 0:
        page_fault(cpu, linear, access, u64(0))
    if (entry & reserved) != 0:
        page_fault(cpu, linear, access, u64(PageError.P | PageError.RSVD))


@staged
def _reserved(cpu: Cpu, frame: int) -> Bits:
    """The bits that no present 64-bit entry may have."""
    s = cpu.s
    return (~s.physical_mask & frame) | select((s.efer & Efer.NXE) != 0, u64(0), u64(EXECUTE_DISABLE))


@native
def _walk_32(cpu: Cpu, linear: U64, access: U64) -> tuple[U64, U64]:
    """32-bit paging (4.3)."""
    s = cpu.s
    upper_at = (s.cr3 & 0xFFFFF000) | (linear >> 20 & 0xFFC)
    upper = cpu.load_physical(upper_at, 32).zext(64)
    is_large = (upper & PAGE_SIZE) != 0 if (s.cr4 & Cr4.PSE) != 0 else u1(0)
    # PSE-36: bits 20:13 are address bits 39:32, those beyond MAXPHYADDR and bit 21 are reserved.
    reserved = ((~s.physical_mask >> 32 & 0xFF) << 13 | 1 << 21) if is_large else u64(0)
    _check(cpu, linear, access, upper, reserved)
    if is_large:
        rights = _permit(cpu, linear, access, upper, u64(0), upper, u64(0))
        marked = _mark(cpu, upper_at, upper.trunc(32), _leaf_flags(access).trunc(32))
        frame = (upper & 0xFFC00000) | (upper >> 13 & 0xFF) << 32
        return frame | (linear & 0x3FFFFF), select(marked, rights | 22 << 8, CHANGED)
    lower_at = (upper & 0xFFFFF000) | (linear >> 10 & 0xFFC)
    lower = cpu.load_physical(lower_at, 32).zext(64)
    _check(cpu, linear, access, lower, u64(0))
    rights = _permit(cpu, linear, access, upper & lower, u64(0), lower, u64(0))
    marked = _mark(cpu, upper_at, upper.trunc(32), ACCESSED)
    marked = marked & _mark(cpu, lower_at, lower.trunc(32), _leaf_flags(access).trunc(32))
    return (lower & 0xFFFFF000) | (linear & 0xFFF), select(marked, rights | 12 << 8, CHANGED)


@native
def _walk_pae(cpu: Cpu, linear: U64, access: U64) -> tuple[U64, U64]:
    """PAE paging (4.4); the PDPTE registers were checked when CR3 was loaded."""
    s = cpu.s
    reserved = _reserved(cpu, _FRAME_PAE)
    pointer = s.pdpte[linear >> 30 & 3]
    if (pointer & PRESENT) == 0:
        page_fault(cpu, linear, access, u64(0))
    upper_at = (pointer & _FRAME) | (linear >> 18 & 0xFF8)
    upper = cpu.load_physical(upper_at, 64)
    is_large = (upper & PAGE_SIZE) != 0
    _check(cpu, linear, access, upper, select(is_large, reserved | _LARGE[21], reserved))
    if is_large:
        rights = _permit(cpu, linear, access, upper, upper, upper, u64(0))
        marked = _mark(cpu, upper_at, upper, _leaf_flags(access))
        return (upper & (_FRAME & ~0x1FFFFF)) | (linear & 0x1FFFFF), select(marked, rights | 21 << 8, CHANGED)
    lower_at = (upper & _FRAME) | (linear >> 9 & 0xFF8)
    lower = cpu.load_physical(lower_at, 64)
    _check(cpu, linear, access, lower, reserved)
    rights = _permit(cpu, linear, access, upper & lower, upper | lower, lower, u64(0))
    marked = _mark(cpu, upper_at, upper, ACCESSED)
    marked = marked & _mark(cpu, lower_at, lower, _leaf_flags(access))
    return (lower & _FRAME) | (linear & 0xFFF), select(marked, rights | 12 << 8, CHANGED)


@native
def _walk_long(cpu: Cpu, linear: U64, access: U64) -> tuple[U64, U64]:
    """4-level and 5-level paging (4.5)."""
    s = cpu.s
    reserved = _reserved(cpu, _FRAME)
    table = s.cr3 & _FRAME
    la57 = (s.cr4 & Cr4.LA57) != 0
    allow, deny = ~u64(0), u64(0)
    at5, entry5 = u64(0), u64(ACCESSED)
    if la57:
        at5 = table | (linear >> 45 & 0xFF8)
        entry5 = cpu.load_physical(at5, 64)
        _check(cpu, linear, access, entry5, reserved | PAGE_SIZE)
        allow, deny, table = entry5, entry5, entry5 & _FRAME
    at4 = table | (linear >> 36 & 0xFF8)
    entry4 = cpu.load_physical(at4, 64)
    _check(cpu, linear, access, entry4, reserved | PAGE_SIZE)
    at3 = (entry4 & _FRAME) | (linear >> 27 & 0xFF8)
    entry3 = cpu.load_physical(at3, 64)
    allow, deny = allow & entry4 & entry3, deny | entry4 | entry3
    large_bits = u64(0)
    if (entry3 & PAGE_SIZE) != 0:
        large_bits = select(cpu.has_feature("pdpe1gb"), u64(_LARGE[30]), u64(PAGE_SIZE))
    _check(cpu, linear, access, entry3, reserved | large_bits)
    # Where a larger page ends the walk, the lower levels stand for the entry that maps it.
    at2, entry2, leaf_at, leaf, size, inside = at3, entry3, at3, entry3, u64(30 << 8), u64(0x3FFFFFFF)
    if (entry3 & PAGE_SIZE) == 0:
        at2 = (entry3 & _FRAME) | (linear >> 18 & 0xFF8)
        entry2 = cpu.load_physical(at2, 64)
        allow, deny = allow & entry2, deny | entry2
        large = (entry2 & PAGE_SIZE) != 0
        _check(cpu, linear, access, entry2, select(large, reserved | _LARGE[21], reserved))
        leaf_at, leaf, size, inside = at2, entry2, u64(21 << 8), u64(0x1FFFFF)
        if ~large:
            leaf_at = (entry2 & _FRAME) | (linear >> 9 & 0xFF8)
            leaf = cpu.load_physical(leaf_at, 64)
            allow, deny = allow & leaf, deny | leaf
            _check(cpu, linear, access, leaf, reserved)
            size, inside = u64(12 << 8), u64(0xFFF)
    denied = u64(0)
    if (s.cr4 & (Cr4.PKE | Cr4.PKS)) != 0:
        denied = _key_denies(cpu, leaf >> 59 & 15, (allow & USER) != 0, (access & Access.USER) != 0)
    rights = _permit(cpu, linear, access, allow, deny, leaf, denied)
    marked = u1(1)
    if la57:
        marked = _mark(cpu, at5, entry5, ACCESSED)
    marked = marked & _mark(cpu, at4, entry4, ACCESSED)
    marked = marked & _mark(cpu, at3, entry3, ACCESSED)
    marked = marked & _mark(cpu, at2, entry2, ACCESSED)
    marked = marked & _mark(cpu, leaf_at, leaf, _leaf_flags(access))
    return (leaf & _FRAME & ~inside) | (linear & inside), select(marked, rights | size, CHANGED)


@native
def walk(cpu: Cpu, linear: U64, access: U64) -> tuple[U64, U64]:
    """Translate a linear address that is canonical: (physical address of the byte, `Rights` and log2 of the page size).

    `access` is made of `Access` bits. #PF with `fault_address` set; on success, and only then, accessed and dirty flags
    are set in the paging structures.
    """
    s = cpu.s
    if (s.cr0 & Cr0.PG) == 0:
        return linear & 0xFFFFFFFF, u64(Rights.READ | Rights.WRITE | Rights.EXECUTE | 12 << 8)
    physical, rights = u64(0), u64(CHANGED)
    while rights == CHANGED:
        if (s.efer & Efer.LMA) != 0:
            physical, rights = _walk_long(cpu, linear, access)
        elif (s.cr4 & Cr4.PAE) != 0:
            physical, rights = _walk_pae(cpu, linear & 0xFFFFFFFF, access)
        else:
            physical, rights = _walk_32(cpu, linear & 0xFFFFFFFF, access)
    return physical, rights
