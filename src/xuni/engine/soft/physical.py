"""Guest-physical memory as the soft engine reaches it, and what must happen when decoded code in it is overwritten."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xuni.engine.soft.records import OFFSET, PAGE, Arena, Frame, Op, SlotRecord, Trace
from xuni.isa.bits import U1, U64, U128, Bits, const, select, u1, u64
from xuni.isa.stage import native, staged, unlikely

if TYPE_CHECKING:
    from xuni.engine.soft.cpu import SoftCpu


# -- guest-physical addresses ------------------------------------------------------------------------------------------
@native
def slot_of(cpu: SoftCpu, physical: U64) -> U64:
    """Pointer to the record of the memory slot that backs an address, or 0."""
    slot = cpu.s.slots
    end = slot + cpu.s.slot_count * SlotRecord.SIZE
    while slot < end:
        record = cpu.struct(SlotRecord, slot)
        if physical - record.start < record.size:
            return slot
        slot = slot + SlotRecord.SIZE
    return u64(0)


@native
def host_of(cpu: SoftCpu, physical: U64) -> U64:
    """Host address of a guest-physical address, or 0."""
    slot = slot_of(cpu, physical)
    if slot == 0:
        return u64(0)
    record = cpu.struct(SlotRecord, slot)
    return record.host + (physical - record.start)


@staged
def frame_at(cpu: SoftCpu, slot: Bits, physical: Bits) -> Frame:
    """What is known of the page of an address that `slot` backs."""
    record = cpu.struct(SlotRecord, slot)
    number = record.frame + ((physical - record.start) >> 12)
    return cpu.struct(Frame, cpu.arena.frames + number * Frame.SIZE)


@native
def load_physical(cpu: SoftCpu, physical: U64, size: int) -> U64:
    """`size` bytes of naturally aligned guest-physical memory; all ones where there is none."""
    host = host_of(cpu, physical)
    if host == 0:
        return const(-1, 8 * size).zext(64)
    return cpu.at(host).load(0, 8 * size).zext(64)


@native
def store_physical(cpu: SoftCpu, physical: U64, value: U64, size: int) -> None:
    """Write guest-physical memory within one page, and forget what was decoded from it."""
    slot = slot_of(cpu, physical)
    if slot == 0:
        return
    record = cpu.struct(SlotRecord, slot)
    if record.writable != 0:
        place = cpu.at(record.host + (physical - record.start))
        if unlikely(frame_at(cpu, slot, physical).map != 0):
            lock_code(cpu)  # nobody decodes the old bytes between the two
            note_write(cpu, slot, physical, u64(size))
            place.store(0, value.trunc(8 * size))
            unlock_code(cpu)
        else:
            place.store(0, value.trunc(8 * size))


@staged
def _exchange(cpu: SoftCpu, slot: Bits, physical: Bits, expected: Bits, value: Bits) -> Bits:
    record = cpu.struct(SlotRecord, slot)
    place = cpu.at(record.host + (physical - record.start))
    watched = frame_at(cpu, slot, physical).map != 0
    if unlikely(watched):
        lock_code(cpu)
        note_write(cpu, slot, physical, u64(value.width // 8))
    seen = place.exchange(0, expected, value)
    if unlikely(watched):
        unlock_code(cpu)
    return seen


@native
def exchange_physical(cpu: SoftCpu, slot: U64, physical: U64, expected: U64, value: U64, size: int) -> U64:
    """Write naturally aligned, writable memory of `slot` if it holds `expected`, atomically; what it held."""
    return _exchange(cpu, slot, physical, expected.trunc(8 * size), value.trunc(8 * size)).zext(64)


@native
def exchange_pair(cpu: SoftCpu, slot: U64, physical: U64, expected: U128, value: U128) -> U128:
    """The same for 16 bytes."""
    return _exchange(cpu, slot, physical, expected, value)


@native
def mark_entry(cpu: SoftCpu, physical: U64, entry: U64, flags: U64, size: int) -> U1:
    """Set flags of a naturally aligned paging-structure entry, unless it no longer holds `entry`; whether it did."""
    slot = slot_of(cpu, physical)
    if slot == 0:
        return u1(1)
    record = cpu.struct(SlotRecord, slot)
    if record.writable == 0:
        return u1(1)
    place = cpu.at(record.host + (physical - record.start))
    old = entry.trunc(8 * size)
    return place.exchange(0, old, old | flags.trunc(8 * size)) == old


# -- what processors share ---------------------------------------------------------------------------------------------
SPINS = 32  # attempts before the host may run somebody else
PAUSES = 64


@native
def lock_code(cpu: SoftCpu) -> None:
    """Take the lock of the arena. Its holder never unwinds and never leaves compiled code."""
    place, at = cpu.arena.place, Arena.offset_of("lock")
    spins = u64(0)
    while place.exchange(at, u64(0), u64(1)) != 0:
        spins = spins + 1
        if (spins & (SPINS - 1)) == 0:
            cpu.yield_host()


@native
def paused(cpu: SoftCpu) -> None:
    """PAUSE: after some of them, the host may run the thread that this one waits for."""
    s = cpu.s
    s.pauses = s.pauses + 1
    if ((s.pauses & (PAUSES - 1)) == 0) & (cpu.arena.cpu_count > 1):
        cpu.yield_host()


@native
def unlock_code(cpu: SoftCpu) -> None:
    """Release the lock of the arena."""
    cpu.arena.place.exchange(Arena.offset_of("lock"), u64(1), u64(0))


PATIENCE = 40  # writes beside the decoded code of a page before that code is given up


# -- decoded code and writes to it -------------------------------------------------------------------------------------
@native
def note_write(cpu: SoftCpu, slot: U64, physical: U64, size: U64) -> None:
    """A write to `size` bytes within one page: kill the traces that overlap it. The arena is locked."""
    frame = frame_at(cpu, slot, physical)
    if unlikely(frame.map != 0):
        first = (physical & OFFSET) >> 6
        last = ((physical + size - 1) & OFFSET) >> 6
        pieces = (u64(-1) << first) & (u64(-1) >> (u64(63) - last))
        at = frame.place.address()
        if (frame.map & pieces) != 0:
            kill_traces(cpu, at, physical & OFFSET, (physical & OFFSET) + size)
        else:
            # Code that was here may be long gone, and the page a stack now: after some such writes, forget it all.
            number = at >> 4 & 63
            seen = cpu.s.watched[number]
            count = select(seen >> 8 == at, (seen & 0xFF) + 1, u64(1))
            if count > PATIENCE:
                kill_traces(cpu, at, u64(0), u64(PAGE))
                count = u64(0)
            cpu.s.watched[number] = at << 8 | count


@native
def kill_traces(cpu: SoftCpu, frame_pointer: U64, start: U64, end: U64) -> None:
    """Take the traces of a page that overlap [start, end) out of service, and rebuild the page's map.

    Every Op of a dead trace gets the `stale` handler, so that even a trace that runs right now, here or on another
    processor, looks up its next instruction anew.
    """
    frame = cpu.struct(Frame, frame_pointer)
    stale = cpu.handler_address("stale")
    arena = cpu.arena
    number = ((frame_pointer - arena.frames) >> 4).trunc(32)
    trace = frame.head
    pieces = u64(0)
    kept = u64(0)
    while trace != 0:
        t = cpu.struct(Trace, trace)
        is_second = (t.straddles != 0) & (t.frame2 == number)
        low = select(is_second, u64(0), t.start.zext(64))
        high = select(is_second, t.end.zext(64) & OFFSET, t.end.zext(64))
        high = select((t.straddles != 0) & ~is_second, u64(PAGE), high)
        following = select(is_second, t.page_next2, t.page_next)
        if (t.dead != 0) | ((low < end) & (start < high)):
            if t.dead == 0:
                t.dead = 1
                op = trace + Trace.SIZE
                last = op + (t.count.zext(64) - 1) * Op.SIZE  # the closing Op leads elsewhere: it stays
                while op < last:
                    cpu.struct(Op, op).handler = stale
                    op = op + Op.SIZE
        else:
            pieces = pieces | (u64(-1) << (low >> 6)) & (u64(-1) >> (u64(63) - ((high - 1) >> 6)))
            if is_second:
                t.page_next2 = kept
            else:
                t.page_next = kept
            kept = trace
        trace = following
    frame.head = kept
    frame.map = pieces
