"""Guest memory as the soft engine reaches it: the TLB, the slow path of every access, devices, watched code.

A handler looks an address up in the TLB of the current privilege inline. What it does not find there comes here:

    fill           makes the next inline access hit, or says that this access must go out of line
    load, store    the out-of-line accesses: page crossings, devices, read-only memory, pages with decoded code
    device_*       an access that no memory answers leaves to the machine and is executed again with its answer

The tag of an invalid TLB entry is an address that belongs to another entry, so that no address matches it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xuni.engine.soft.debugger import note_access
from xuni.engine.soft.outside import device_read, device_write
from xuni.engine.soft.physical import (
    exchange_pair,
    exchange_physical,
    frame_at,
    host_of,
    lock_code,
    note_write,
    slot_of,
    store_physical,
    unlock_code,
)
from xuni.engine.soft.records import (
    FILL_LOG,
    JUMP_BITS,
    JUMP_ENTRIES,
    OFFSET,
    PAGE,
    TLB_BITS,
    TLB_ENTRIES,
    JumpEntry,
    Mode,
    Privilege,
    SlotRecord,
    TlbEntry,
)
from xuni.isa.bits import U1, U64, U128, Bits, const, select, u1, u64
from xuni.isa.stage import likely, native, staged, unlikely
from xuni.isa.x86.debug import ENABLES, note_data
from xuni.isa.x86.exceptions import GuestFault, Vector
from xuni.isa.x86.paging import Access, Rights, walk
from xuni.isa.x86.state import Cr0, Cr4, Efer, Eflags, State

if TYPE_CHECKING:
    from xuni.engine.soft.cpu import SoftCpu

TLB_BYTES = TLB_ENTRIES * TlbEntry.SIZE
JUMP_BYTES = JUMP_ENTRIES * JumpEntry.SIZE


# -- the TLB -----------------------------------------------------------------------------------------------------------
@staged
def tlb_at(linear: Bits) -> Bits:
    """Byte offset of the entry for an address in a TLB.

    The low bits of the page number are XORed with those above them: an operating system sees the same memory at several
    addresses that differ in high bits only (its image and its map of all memory), and would have them share an entry.
    """
    return (linear >> 7 ^ linear >> (7 + TLB_BITS)) & ((TLB_ENTRIES - 1) << 5)


@native
def forget_writable(cpu: SoftCpu, host_page: U64) -> None:
    """A page has its first decoded code: writes to it must come here from now on, whatever the TLBs say."""
    arena = cpu.arena
    number = u64(0)
    while number < arena.cpu_count:
        state = cpu.at(arena.cpus).load(number << 3, 64)
        base = cpu.at(state).load(State.offset_of("tlb_base"), 64)
        entry = base
        end = entry + TLB_BYTES * len(Privilege)
        while entry < end:
            e = cpu.struct(TlbEntry, entry)
            if unlikely(e.host == host_page):
                e.write = ((((entry - base) >> 5) + 1) & (TLB_ENTRIES - 1)) << 12
            entry = entry + TlbEntry.SIZE
        number = number + 1


@native
def flush_tlb(cpu: SoftCpu) -> None:
    """Forget all translations of all privileges, and the jumps that relied on them."""
    clean = cpu.arena.clean_tlb
    base = cpu.s.tlb_base
    for privilege in range(len(Privilege) - 1):
        cpu.copy_bytes(base + privilege * TLB_BYTES, clean, u64(TLB_BYTES))
    cpu.s.fill_count = 0
    cpu.fill_bytes(cpu.s.place.address(State.offset_of("large_pages")), const(0, 8), u64(8 * 80))
    flush_jumps(cpu)


@native
def flush_tlb_nonglobal(cpu: SoftCpu) -> None:
    """Forget translations but those of global pages (MOV to CR3)."""
    s = cpu.s
    n = s.fill_count
    if n > FILL_LOG:
        flush_tlb(cpu)
        return
    at = s.fill_log
    end = at + (n << 3)
    while at < end:
        entry = cpu.at(at).load(0, 64)
        number = (entry - s.tlb_base) >> 5
        if cpu.at(s.tlb_global).load(number, 8) == 0:
            other = ((number + 1) & (TLB_ENTRIES - 1)) << 12
            e = cpu.struct(TlbEntry, entry)
            e.read = other
            e.write = other
            e.execute = other
        at = at + 8
    s.fill_count = 0
    if s.jump_nonglobal != 0:
        flush_jumps(cpu)
    else:
        new_generation(cpu, 2)


@staged
def new_generation(cpu: SoftCpu, which: int) -> None:
    """Make the entries of one privilege's jump cache (0, 1: supervisor, 2: user) match nothing.

    The generation is XORed into bits 62:48 of the tags. Jumps check that their target is canonical, so that no target
    matches an entry of another generation.
    """
    s = cpu.s
    generation = s.jump_generations[which] + (1 << 48)
    if unlikely(generation[63]):
        cpu.fill_bytes(s.jump_cache_base + which * JUMP_BYTES, const(0xFF, 8), u64(JUMP_BYTES))
        generation = u64(1 << 48)
    s.jump_generations[which] = generation
    if s.jump_cache == s.jump_cache_base + which * JUMP_BYTES:
        s.jump_generation = generation


@staged
def jump_slot(rip: Bits) -> Bits:
    """Byte offset in the jump cache: 64 entries for each of 64 pages, so that one page can be forgotten."""
    page = (rip >> 2) & (((1 << (JUMP_BITS - 6)) - 1) << 10)
    return page | ((rip ^ rip >> 6) & 63) << 4


@native
def flush_jumps(cpu: SoftCpu) -> None:
    """Forget where jumps lead."""
    for which in range(3):
        new_generation(cpu, which)
    cpu.s.jump_nonglobal = 0


@native
def note_large(cpu: SoftCpu, linear: U64, size: U64) -> None:
    """The TLBs hold a piece of a page bigger than 4K (`size` is log2): to forget it is to forget everything."""
    s = cpu.s
    if size == 30:
        region = linear >> 30
        s.huge_pages[region >> 6 & 15] = s.huge_pages[region >> 6 & 15] | u64(1) << (region & 63)
    else:
        region = linear >> 21
        bits = select(size == 22, u64(3) << (region & 62), u64(1) << (region & 63))
        s.large_pages[region >> 6 & 63] = s.large_pages[region >> 6 & 63] | bits


@native
def flush_tlb_page(cpu: SoftCpu, linear: U64) -> None:
    """Forget one page in all privileges, and jumps into it or straddling into it."""
    s = cpu.s
    large = s.large_pages[linear >> 27 & 63].bit(linear >> 21 & 63)
    large = large | s.huge_pages[linear >> 36 & 15].bit(linear >> 30 & 63)
    if unlikely(large):
        flush_tlb(cpu)
        return
    index = tlb_at(linear) >> 5
    other = ((index + 1) & (TLB_ENTRIES - 1)) << 12
    jumps = (linear >> 12) & ((1 << (JUMP_BITS - 6)) - 1)
    before = (jumps - 1) & ((1 << (JUMP_BITS - 6)) - 1)
    for privilege in range(len(Privilege) - 1):
        e = cpu.struct(TlbEntry, cpu.s.tlb_base + (privilege * TLB_BYTES + (index << 5)))
        e.read = other
        e.write = other
        e.execute = other
        base = cpu.s.jump_cache_base + privilege * JUMP_BYTES
        cpu.fill_bytes(base + (jumps << 10), const(0xFF, 8), u64(1024))
        cpu.fill_bytes(base + (before << 10), const(0xFF, 8), u64(1024))
    if (cpu.s.mode & Mode.SIZE) != 2:  # the jump cache is indexed by RIP, which need not be linear there
        flush_jumps(cpu)


@staged
def current_access(cpu: SoftCpu) -> Bits:
    """The USER bit of an access at the current privilege."""
    return select(cpu.s.cpl == 3, u64(Access.USER), u64(0))


@native
def check_canonical(cpu: SoftCpu, address: U64) -> None:
    """In 64-bit mode: #SS(0) or #GP(0) if bits 63:47 (63:56 with LA57) differ. Compatibility mode wraps at 4 GiB
    before.
    """
    if (cpu.s.efer & Efer.LMA) != 0:
        shift = select((cpu.s.cr4 & Cr4.LA57) != 0, u64(7), u64(16))
        if unlikely((address << shift).sar(shift) != address):
            if cpu.stack_access():
                raise GuestFault(cpu, Vector.SS, 0)
            raise GuestFault(cpu, Vector.GP, 0)


@staged
def may_be_direct(cpu: SoftCpu) -> Bits:
    """Whether accesses may go past `watch_data` and `check_alignment`."""
    s = cpu.s
    aligned = s.tlb == s.tlb_base + int(Privilege.USER_ALIGNED) * TLB_BYTES
    return ((s.dr[7] & 0xFF) == 0) & (s.watch_count == 0) & ~aligned


@native
def fill(cpu: SoftCpu, linear: U64, size: U64, access: U64) -> U1:
    """Make an inline access at `linear` hit from now on. 1: this access must go out of line. May raise #PF, #GP,
    #SS.
    """
    if (linear & OFFSET) + size > PAGE:
        return u1(1)
    if ~may_be_direct(cpu):
        return u1(1)
    check_canonical(cpu, linear)
    physical, rights = walk(cpu, linear, access | current_access(cpu))
    return enter_tlb(cpu, linear, physical, rights, access)


@native
def enter_tlb(cpu: SoftCpu, linear: U64, physical: U64, rights: U64, access: U64) -> U1:
    """Put a translation into the TLB of the current privilege; 1 if `access` still cannot be direct."""
    slot = slot_of(cpu, physical)
    if unlikely((slot == 0) | (cpu.s.tlb == cpu.s.tlb_base + int(Privilege.USER_ALIGNED) * TLB_BYTES)):
        return u1(1)
    record = cpu.struct(SlotRecord, slot)
    page = linear & ~OFFSET
    host = record.host + ((physical & ~OFFSET) - record.start)
    index = tlb_at(linear) >> 5
    other = ((index + 1) & (TLB_ENTRIES - 1)) << 12
    e = cpu.struct(TlbEntry, cpu.s.tlb + (index << 5))
    watched = frame_at(cpu, slot, physical).map != 0
    writable = ((rights & Rights.WRITE) != 0) & ~watched & (record.writable != 0)
    e.read = select((rights & Rights.READ) != 0, page, other)
    e.write = select(writable, page, other)
    e.execute = select((rights & Rights.EXECUTE) != 0, page, other)
    e.host = host
    s = cpu.s
    if writable & (cpu.arena.cpu_count > 1):
        # Another processor that decodes its first code of this page right now sees this entry, or we see its mark.
        cpu.fence()
        if unlikely(frame_at(cpu, slot, physical).map != 0):
            writable = u1(0)
            e.write = other
    if (rights >> 8 & 0xFF) > 12:
        note_large(cpu, linear, rights >> 8 & 0xFF)
    is_global = rights >> 3 & 1
    cpu.at(s.tlb_global).store((s.tlb + (index << 5) - s.tlb_base) >> 5, is_global.trunc(8))
    if is_global == 0:
        n = s.fill_count
        if n < FILL_LOG:
            cpu.at(s.fill_log).store(n << 3, s.tlb + (index << 5))
        s.fill_count = n + 1
    return ((access & Access.WRITE) != 0) & ~writable


# -- accesses out of line ----------------------------------------------------------------------------------------------
@staged
def translate(cpu: SoftCpu, linear: Bits, access: Bits | int) -> Bits:
    """The physical address; #PF, #GP, #SS."""
    physical, _ = walk(cpu, linear, current_access(cpu) | access)
    return physical


@staged
def check_alignment(cpu: SoftCpu, linear: Bits, size: int) -> None:
    """#AC(0) for a misaligned user access when CR0.AM and EFLAGS.AC ask for it."""
    if size > 1:
        s = cpu.s
        if unlikely(((s.eflags & Eflags.AC) != 0) & ((s.cr0 & Cr0.AM) != 0) & (s.cpl == 3)):
            if (linear & (min(size, 8) - 1)) != 0:
                raise GuestFault(cpu, Vector.AC, 0)


@native
def remember(cpu: SoftCpu, linear: U64, physical: U64, rights: U64, access: U64) -> None:
    """Put a page into the TLB that its access looks in: the supervisor's for the processor's own accesses."""
    s = cpu.s
    if ((s.dr[7] & 0xFF) == 0) & (s.watch_count == 0):
        current = s.tlb
        if (access & Access.IMPLICIT) != 0:
            s.tlb = s.tlb_base
        enter_tlb(cpu, linear, physical, rights, access)
        s.tlb = current


@staged
def _load(cpu: SoftCpu, linear: Bits, size: int, access: Bits) -> Bits:
    if unlikely((linear & OFFSET) + size > PAGE):
        first, _ = walk(cpu, linear, access)
        rest = (linear + (size - 1)) & ~OFFSET
        check_canonical(cpu, rest)
        second, _ = walk(cpu, rest, access)
        split = rest - linear
        value = u64(0)
        i = u64(0)
        while i < size:
            at = select(i < split, first + i, second + (i - split))
            value = value | load_byte(cpu, at) << (i << 3)
            i = i + 1
        return value.trunc(8 * size)
    physical, rights = walk(cpu, linear, access)
    host = host_of(cpu, physical)
    remember(cpu, linear, physical, rights, access)
    if unlikely(host == 0):
        return device_read(cpu, physical, u64(size)).trunc(8 * size)
    return cpu.at(host).load(0, 8 * size)


@native
def load_byte(cpu: SoftCpu, physical: U64) -> U64:
    """One byte of memory or of a device."""
    host = host_of(cpu, physical)
    if host == 0:
        return device_read(cpu, physical, u64(1)) & 0xFF
    return cpu.at(host).load(0, 8).zext(64)


@native
def store_byte(cpu: SoftCpu, physical: U64, value: U64) -> None:
    """One byte to memory or a device."""
    slot = slot_of(cpu, physical)
    if slot == 0:
        device_write(cpu, physical, value & 0xFF, u64(1))
    else:
        store_physical(cpu, physical, value, 1)


@staged
def direct(cpu: SoftCpu, tlb: Bits, linear: Bits, size: int, write: bool) -> Bits:
    """Host address of an access that a TLB allows without further checks, or 0."""
    e = cpu.struct(TlbEntry, tlb + tlb_at(linear))
    inside = linear - (e.write if write else e.read)
    return select(inside <= PAGE - size, e.host + inside, u64(0))


@native
def load_virtual(cpu: SoftCpu, linear: U64, size: int) -> U64:
    """`size` bytes (1 to 8) at a linear address, as the current privilege."""
    known = direct(cpu, cpu.s.tlb, linear, size, False)
    if likely(known != 0):
        return cpu.at(known).load(0, 8 * size).zext(64)
    check_canonical(cpu, linear)
    check_alignment(cpu, linear, size)
    watch_data(cpu, linear, u64(size), u64(0))
    return _load(cpu, linear, size, current_access(cpu)).zext(64)


@native
def load_for_update(cpu: SoftCpu, linear: U64, size: int) -> U64:
    """As `load_virtual`, but it will be written back: faults are those of a write."""
    known = direct(cpu, cpu.s.tlb, linear, size, True)
    if likely(known != 0):
        return cpu.at(known).load(0, 8 * size).zext(64)
    check_canonical(cpu, linear)
    check_alignment(cpu, linear, size)
    watch_data(cpu, linear, u64(size), u64(1))
    return _load(cpu, linear, size, current_access(cpu) | Access.WRITE).zext(64)


@native
def load_system(cpu: SoftCpu, linear: U64, size: int) -> U64:
    """The processor's own read of a descriptor table or TSS: a supervisor access whatever the CPL."""
    known = direct(cpu, cpu.s.tlb_base, linear, size, False)
    if likely(known != 0):
        return cpu.at(known).load(0, 8 * size).zext(64)
    check_canonical(cpu, linear)
    return _load(cpu, linear, size, u64(Access.IMPLICIT)).zext(64)


@staged
def _store(cpu: SoftCpu, linear: Bits, value: Bits, size: int, access: Bits) -> None:
    if unlikely((linear & OFFSET) + size > PAGE):
        first, _ = walk(cpu, linear, access)
        rest = (linear + (size - 1)) & ~OFFSET
        check_canonical(cpu, rest)
        second, _ = walk(cpu, rest, access)
        split = rest - linear
        i = u64(0)
        while i < size:
            store_byte(cpu, select(i < split, first + i, second + (i - split)), value >> (i << 3))
            i = i + 1
        return
    physical, rights = walk(cpu, linear, access)
    slot = slot_of(cpu, physical)
    remember(cpu, linear, physical, rights, access)
    if unlikely(slot == 0):
        device_write(cpu, physical, value, u64(size))
        return
    store_physical(cpu, physical, value, size)


@native
def store_virtual(cpu: SoftCpu, linear: U64, value: U64, size: int) -> None:
    """Write `size` bytes (1 to 8) at a linear address, as the current privilege."""
    known = direct(cpu, cpu.s.tlb, linear, size, True)
    if likely(known != 0):
        cpu.at(known).store(0, value.trunc(8 * size))
        return
    check_canonical(cpu, linear)
    check_alignment(cpu, linear, size)
    watch_data(cpu, linear, u64(size), u64(1))
    _store(cpu, linear, value, size, current_access(cpu) | Access.WRITE)


@native
def store_system(cpu: SoftCpu, linear: U64, value: U64, size: int) -> None:
    """The processor's own write to a descriptor table, TSS or an inner stack."""
    known = direct(cpu, cpu.s.tlb_base, linear, size, True)
    if likely(known != 0):
        cpu.at(known).store(0, value.trunc(8 * size))
        return
    check_canonical(cpu, linear)
    _store(cpu, linear, value, size, u64(Access.IMPLICIT | Access.WRITE))


@native
def probe_write(cpu: SoftCpu, linear: U64, size: U64) -> None:
    """Fault now if a write of `size` bytes would, before the first byte is written."""
    check_canonical(cpu, linear)
    walk(cpu, linear, current_access(cpu) | Access.WRITE)
    if unlikely((linear & OFFSET) + size > PAGE):
        rest = (linear + (size - 1)) & ~OFFSET
        check_canonical(cpu, rest)
        walk(cpu, rest, current_access(cpu) | Access.WRITE)


@native
def exchange_virtual(cpu: SoftCpu, linear: U64, expected: U64, value: U64, size: int) -> U64:
    """Locked update: write `value` if memory still holds `expected`; what it held."""
    watch_data(cpu, linear, u64(size), u64(1))
    if (linear & OFFSET) + size <= PAGE:
        physical = translate(cpu, linear, Access.WRITE)
        slot = slot_of(cpu, physical)
        if slot != 0:
            record = cpu.struct(SlotRecord, slot)
            if record.writable != 0:
                return exchange_physical(cpu, slot, physical, expected, value, size)
    _store(cpu, linear, value, size, current_access(cpu) | Access.WRITE)
    return expected


@native
def exchange_pair_virtual(cpu: SoftCpu, linear: U64, expected: U128, value: U128) -> U128:
    """The same for 16 bytes, which are aligned."""
    watch_data(cpu, linear, u64(16), u64(1))
    physical = translate(cpu, linear, Access.WRITE)
    slot = slot_of(cpu, physical)
    if slot != 0:
        record = cpu.struct(SlotRecord, slot)
        if record.writable != 0:
            return exchange_pair(cpu, slot, physical, expected, value)
    _store(cpu, linear, value.trunc(64), 8, current_access(cpu) | Access.WRITE)
    _store(cpu, linear + 8, (value >> 64).trunc(64), 8, current_access(cpu) | Access.WRITE)
    return expected


@native
def window(cpu: SoftCpu, linear: U64, write: U64) -> tuple[U64, U64]:
    """Host address of `linear`, and how many bytes from there on are plain memory of the page; 0: not directly."""
    s = cpu.s
    check_canonical(cpu, linear)
    access = current_access(cpu) | select(write != 0, u64(Access.WRITE), u64(0))
    e = cpu.struct(TlbEntry, s.tlb + tlb_at(linear))
    room = u64(PAGE) - (linear & OFFSET)
    page = linear & ~OFFSET
    if select(write != 0, e.write, e.read) == page:
        return e.host + (linear & OFFSET), room
    if s.tlb == s.tlb_base + int(Privilege.USER_ALIGNED) * TLB_BYTES:
        return u64(0), u64(0)  # #AC of the first element comes before #PF of the second operand
    physical, rights = walk(cpu, linear, access)
    if ~may_be_direct(cpu):
        return u64(0), u64(0)
    if enter_tlb(cpu, linear, physical, rights, access):
        return u64(0), u64(0)
    return e.host + (linear & OFFSET), room


# -- data breakpoints --------------------------------------------------------------------------------------------------
@native
def watch_data(cpu: SoftCpu, linear: U64, size: U64, write: U64) -> None:
    """Note in `pending_debug` the data breakpoints that an access hits (SDM vol. 3, 18.2)."""
    if unlikely((cpu.s.dr[7] & ENABLES) != 0):
        note_data(cpu, linear, size, write != 0)
    if unlikely(cpu.s.watch_count != 0):
        note_access(cpu, linear, size, write)


# -- the mode ---------------------------------------------------------------------------------------------------------
@native
def mode_flags(cpu: SoftCpu) -> U64:
    """`Mode` for the present state: code size and which FPU instructions are available. Not the STEP bit."""
    s = cpu.s
    attr = s.seg_attr[1]
    size = u64(0)
    if ((s.efer & Efer.LMA) != 0) & ((attr & (1 << 13)) != 0):
        size = u64(2)
    elif (attr & (1 << 14)) != 0:
        size = u64(1)
    em_ts = (s.cr0 & (Cr0.EM | Cr0.TS)) != 0
    mode = size | select(em_ts, u64(Mode.NO_X87 | Mode.NO_MMX | Mode.NO_SSE), u64(0))
    if (s.cr4 & Cr4.OSFXSR) == 0:
        mode = mode | Mode.NO_SSE
    if ((s.cr0 & Cr0.TS) != 0) & ((s.cr0 & Cr0.MP) != 0):
        mode = mode | Mode.NO_WAIT
    return mode


@native
def choose_privilege(cpu: SoftCpu) -> None:
    """Select the TLB and jump cache of the current privilege, and the decoder's mode."""
    s = cpu.s
    privilege = u64(int(Privilege.SUPERVISOR))
    if s.cpl == 3:
        privilege = u64(int(Privilege.USER))
        if unlikely(((s.eflags & Eflags.AC) != 0) & ((s.cr0 & Cr0.AM) != 0)):
            privilege = u64(int(Privilege.USER_ALIGNED))
    elif (s.eflags & Eflags.AC) != 0:
        privilege = u64(int(Privilege.SUPERVISOR_AC))
    s.tlb = s.tlb_base + privilege * TLB_BYTES
    jumps = select(privilege == 3, u64(2), privilege)
    s.jump_cache = s.jump_cache_base + jumps * JUMP_BYTES
    s.jump_generation = s.jump_generations[jumps]
    mode = mode_flags(cpu)
    if unlikely(mode != s.mode):
        s.mode = mode
        flush_jumps(cpu)




@native
def mode_changed(cpu: SoftCpu) -> None:
    """After CS, CPL, EFLAGS, CR0, CR4, EFER or DR7 changed."""
    if unlikely((cpu.s.dr[7] & 0xFF) != 0):
        flush_tlb(cpu)  # no access may be direct while data breakpoints are armed
    choose_privilege(cpu)


@native
def host_write(cpu: SoftCpu) -> None:
    """The host wrote guest memory (address and length in `scratch`): forget what was decoded from there."""
    at, end = cpu.s.scratch[8], cpu.s.scratch[8] + cpu.s.scratch[9]
    while at < end:
        stop = ((at + PAGE) & ~OFFSET).umin(end)
        slot = slot_of(cpu, at)
        if slot != 0:
            lock_code(cpu)
            note_write(cpu, slot, at, stop - at)
            unlock_code(cpu)
        at = stop
