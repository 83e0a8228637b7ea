"""Traces: which instructions are decoded together, where they are kept, and how they are found again.

A trace is straight-line code of one page in one `Mode`, from its entry to an unconditional transfer, an instruction
that may change the mode, the end of the page, or `TRACE_LIMIT` instructions; conditional branches go on inside it when
not taken. A closing Op leads on where no instruction does. An instruction that straddles two pages is a trace of its
own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xuni.engine.soft.debugger import may_break
from xuni.engine.soft.decode import decode
from xuni.engine.soft.memory import check_canonical, current_access, enter_tlb, forget_writable, jump_slot, tlb_at
from xuni.engine.soft.physical import lock_code, slot_of, unlock_code
from xuni.engine.soft.records import (
    FETCH_BYTES,
    HASH_BITS,
    OFFSET,
    OP_SIZE,
    PAGE,
    TRACE_LIMIT,
    Effect,
    Frame,
    JumpEntry,
    Leaf,
    LeafFlag,
    Mode,
    Op,
    SlotRecord,
    TlbEntry,
    Trace,
)
from xuni.isa.bits import U1, U64, Bits, const, select, u1, u64
from xuni.isa.stage import native, staged, unlikely
from xuni.isa.x86.exceptions import Again, GuestFault, Leave, Vector
from xuni.isa.x86.paging import Access, walk
from xuni.isa.x86.state import Efer, ExitKind, Seg

if TYPE_CHECKING:
    from xuni.engine.soft.cpu import SoftCpu

STRADDLES = 1  # in place of a Trace's address


@staged
def close_trace(cpu: SoftCpu, op_pointer: Bits, index: Bits, offset: Bits) -> None:
    """The Op that leads on to `offset`, which may lie in the next page."""
    op = cpu.struct(Op, op_pointer)
    op.handler = select(offset < PAGE, cpu.handler_address("close_linked"), cpu.handler_address("close_far"))
    op.imm = offset
    op.place.store(Op.offset_of("disp"), u64(0))
    op.length = 0
    op.offset = (offset & OFFSET).trunc(16)
    op.index = index.trunc(16)


@staged
def ask_first(cpu: SoftCpu, op_pointer: Bits, offset: Bits) -> None:
    """The Op before an instruction that may have a breakpoint."""
    op = cpu.struct(Op, op_pointer)
    op.handler = cpu.handler_address("breakpoint")
    op.length = 0
    op.offset = offset.trunc(16)
    op.index = 0


@native
def new_trace(cpu: SoftCpu) -> U64:
    """Room for the longest trace; 0 when the arena is full (the loop then empties it)."""
    arena = cpu.arena
    trace = arena.next
    if unlikely(trace + (Trace.SIZE + (TRACE_LIMIT + 2) * OP_SIZE) > arena.end):
        arena.end = 0
        return u64(0)
    return trace


@native
def build_trace(cpu: SoftCpu, host_page: U64, offset: U64, mode: U64, frame_pointer: U64) -> U64:
    """Decode a trace that starts at `offset` of the page at `host_page`. Returns the Trace; STRADDLES: the first
    instruction reaches into the next page; 0: no room. The arena is locked."""
    trace = new_trace(cpu)
    if unlikely(trace == 0):
        return u64(0)
    arena = cpu.arena
    if cpu.struct(Frame, frame_pointer).map == 0:
        # Before the bytes are read: from here on, whoever writes them comes for the lock.
        watch_page(cpu, frame_pointer, host_page, offset)
    op = trace + Trace.SIZE
    at = offset
    count = u64(0)
    producer = u64(0)
    previous = u64(0)  # handler number of the Op before
    limit = select((mode & Mode.STEP) != 0, u64(1), u64(TRACE_LIMIT))
    going = u1(1)
    ops = u64(0)
    while going:
        asks = may_break(cpu, at)
        if unlikely(asks):
            if count != 0:  # such an instruction begins a trace
                break
            ask_first(cpu, op, at)
            op = op + OP_SIZE
            ops = u64(1)
        code = host_page + at
        if unlikely(at > PAGE - FETCH_BYTES):
            cpu.fill_bytes(arena.scratch_page, const(0, 8), u64(32))
            cpu.copy_bytes(arena.scratch_page, code, u64(PAGE) - at)
            code = arena.scratch_page
        length, leaf, handler = decode(cpu, code, op, at, mode, producer)
        if unlikely(at + length > PAGE):
            if count == 0:
                return u64(STRADDLES)
            going = u1(0)
        else:
            record = cpu.struct(Op, op)
            record.index = count.trunc(16)
            if unlikely(length > 15):
                record.handler = cpu.handler_address("too_long")
            d = cpu.struct(Leaf, leaf)
            flags = d.flags.zext(64)
            if (flags & LeafFlag.JCC) != 0:
                fused = cpu.at(arena.fusions).load(previous << 2, 32).zext(64)
                if (fused != 0) & (count != 0) & (record.imm < PAGE):
                    number = cpu.at(arena.handler_indexes).load((fused + d.condition.zext(64)) << 2, 32).zext(64)
                    if number != 0:
                        cpu.struct(Op, op - OP_SIZE).handler = cpu.at(arena.handlers).load(number << 3, 64)
            effect = cpu.at(arena.effects).load(handler, 8).zext(64)
            if effect != Effect.KEEP:
                producer = select(effect == 1, u64(1), select(effect == 2, u64(2), select(effect == 4, u64(3),
                                  select(effect == 5, u64(4), u64(0)))))
            previous = handler
            at = at + length
            count = count + 1
            ops = ops + 1
            op = op + OP_SIZE
            going = ((flags & LeafFlag.ENDS) == 0) & (length <= 15) & (count < limit) & (at < PAGE)
    close_trace(cpu, op, count, at)
    t = cpu.struct(Trace, trace)
    t.host = host_page + offset
    t.mode = mode.trunc(32)
    t.count = (ops + 1).trunc(16)
    t.start = offset.trunc(16)
    t.end = at.trunc(16)
    t.dead = 0
    t.straddles = 0
    t.page_next2 = 0
    arena.decoded = arena.decoded + count
    arena.next = op + OP_SIZE
    frame = cpu.struct(Frame, frame_pointer)
    frame.map = frame.map | pieces(offset, at)
    t.page_next = frame.head
    frame.head = trace
    return trace


@staged
def pieces(start: Bits, end: Bits) -> Bits:
    """The bits of a page's map for [start, end)."""
    return (u64(-1) << (start >> 6)) & (u64(-1) >> (u64(63) - ((end - 1) >> 6)))


@native
def watch_page(cpu: SoftCpu, frame_pointer: U64, host_page: U64, offset: U64) -> None:
    """A page is about to have its first decoded code, at `offset`: no processor writes it directly any more."""
    frame = cpu.struct(Frame, frame_pointer)
    frame.map = frame.map | pieces(offset, offset + 1)
    cpu.fence()
    forget_writable(cpu, host_page)


@staged
def bucket_of(cpu: SoftCpu, host: Bits, mode: Bits) -> Bits:
    """Pointer to the head of the hash chain for a key."""
    mixed = ((host ^ (mode << 40)) * 0x9E3779B97F4A7C15) >> (64 - HASH_BITS)
    return cpu.arena.buckets + (mixed << 3)


@native
def fetch_page(cpu: SoftCpu, linear: U64) -> tuple[U64, U64]:
    """(host address of the page, pointer to its Frame) for executing at `linear`; #PF, or a failure outside memory."""
    s = cpu.s
    physical, rights = walk(cpu, linear, current_access(cpu) | Access.FETCH)
    slot = slot_of(cpu, physical)
    if unlikely(slot == 0):
        s.exit_kind = int(ExitKind.FAILURE)
        s.exit_address = physical
        raise Leave()
    record = cpu.struct(SlotRecord, slot)
    enter_tlb(cpu, linear, physical, rights, u64(Access.FETCH))
    number = record.frame + ((physical - record.start) >> 12)
    return record.host + ((physical & ~OFFSET) - record.start), cpu.arena.frames + number * Frame.SIZE


@staged
def next_page(cpu: SoftCpu, linear: Bits) -> Bits:
    """The linear page address behind the page of `linear`."""
    following = (linear + PAGE) & ~OFFSET
    return select((cpu.s.efer & Efer.LMA) == 0, following & 0xFFFFFFFF, following)


@native
def straddling_trace(cpu: SoftCpu, linear: U64, host_page: U64, offset: U64, mode: U64, frame_pointer: U64) -> U64:
    """A trace of the one instruction that begins at `offset` and ends in the next page."""
    following = next_page(cpu, linear)
    check_canonical(cpu, following)
    second, frame2 = fetch_page(cpu, following)
    lock_code(cpu)
    trace = new_trace(cpu)
    if unlikely(trace == 0):
        unlock_code(cpu)
        return u64(0)
    arena = cpu.arena
    if cpu.struct(Frame, frame_pointer).map == 0:
        watch_page(cpu, frame_pointer, host_page, offset)
    if cpu.struct(Frame, frame2).map == 0:
        watch_page(cpu, frame2, second, u64(0))
    room = u64(PAGE) - offset
    cpu.copy_bytes(arena.scratch_page, host_page + offset, room)
    cpu.copy_bytes(arena.scratch_page + room, second, u64(16))
    op = trace + Trace.SIZE
    ops = u64(2)
    if unlikely(may_break(cpu, offset)):
        ask_first(cpu, op, offset)
        op = op + OP_SIZE
        ops = u64(3)
    length, _, _ = decode(cpu, arena.scratch_page, op, offset, mode, u64(0))
    record = cpu.struct(Op, op)
    record.index = 0
    if length > 15:
        record.handler = cpu.handler_address("too_long")
    close_trace(cpu, op + OP_SIZE, u64(1), offset + length)
    t = cpu.struct(Trace, trace)
    t.host = host_page + offset
    t.mode = mode.trunc(32)
    t.count = ops.trunc(16)
    t.start = offset.trunc(16)
    t.end = (offset + length).trunc(16)
    t.dead = 0
    t.straddles = 1
    t.frame2 = ((frame2 - arena.frames) >> 4).trunc(32)
    arena.next = op + 2 * OP_SIZE
    frame = cpu.struct(Frame, frame_pointer)
    frame.map = frame.map | pieces(offset, u64(PAGE))
    t.page_next = frame.head
    frame.head = trace
    end = (offset + length) & OFFSET
    other = cpu.struct(Frame, frame2)
    other.map = other.map | pieces(u64(0), select(end == 0, u64(1), end))
    t.page_next2 = other.head
    other.head = trace
    publish(cpu, trace, host_page + offset, mode)
    unlock_code(cpu)
    return trace


@staged
def publish(cpu: SoftCpu, trace: Bits, host: Bits, mode: Bits) -> None:
    """Let `find` find a trace. The arena is locked."""
    bucket = cpu.at(bucket_of(cpu, host, mode))
    cpu.struct(Trace, trace).hash_next = bucket.load(0, 64)
    bucket.store(0, trace)
    cpu.s.block_count = cpu.s.block_count + 1


@native
def find(cpu: SoftCpu, host: U64, mode: U64) -> U64:
    """The Trace for a key, or 0. Needs no lock: traces are complete when they are published, and stay."""
    trace = cpu.at(bucket_of(cpu, host, mode)).load(0, 64)
    while trace != 0:
        t = cpu.struct(Trace, trace)
        if (t.host == host) & (t.mode == mode.trunc(32)) & (t.dead == 0):
            break
        trace = t.hash_next
    return trace


@native
def forget_dead(cpu: SoftCpu, link: U64) -> None:
    """Take dead traces out of a chain: code that changes again and again must not make it long. The arena is locked."""
    trace = cpu.at(link).load(0, 64)
    while trace != 0:
        t = cpu.struct(Trace, trace)
        if t.dead != 0:
            cpu.at(link).store(0, t.hash_next)
        else:
            link = trace + Trace.offset_of("hash_next")
        trace = t.hash_next


@native
def make_trace(cpu: SoftCpu, host_page: U64, offset: U64, mode: U64, frame_pointer: U64) -> U64:
    """As `build_trace`, unless another processor was faster."""
    lock_code(cpu)
    host = host_page + offset
    trace = find(cpu, host, mode)
    if trace == 0:
        forget_dead(cpu, bucket_of(cpu, host, mode))
        trace = build_trace(cpu, host_page, offset, mode, frame_pointer)
        if trace > STRADDLES:
            publish(cpu, trace, host, mode)
    unlock_code(cpu)
    return trace


@native
def put_handler(cpu: SoftCpu, op_pointer: U64, expected: U64, handler: U64, generation: U64) -> U1:
    """Give the first Op of a trace another handler, unless the trace has been killed; whether that was done."""
    lock_code(cpu)
    op = cpu.struct(Op, op_pointer)
    same = (cpu.arena.generation == generation) & (op.handler == expected)
    same = same & (cpu.struct(Trace, op_pointer - Trace.SIZE).dead == 0)
    if same:
        op.handler = handler
    unlock_code(cpu)
    return same


@native
def lookup(cpu: SoftCpu, step: U64) -> U64:
    """The Op for the instruction at `s.rip`, decoding if need be; sets `rip_base` and fills the jump cache.

    `step` is 0 or Mode.STEP. Raises #PF, #GP as a fetch does.
    """
    s = cpu.s
    rip = s.rip
    linear = rip
    mode = s.mode | step
    if (mode & Mode.SIZE) != 2:
        if unlikely(rip > s.seg_limit[int(Seg.CS)].zext(64)):
            raise GuestFault(cpu, Vector.GP, 0)
        linear = (rip + s.seg_base[int(Seg.CS)]) & 0xFFFFFFFF
    elif unlikely(rip.sar(47) + 1 > 1):
        check_canonical(cpu, rip)
    offset = linear & OFFSET
    s.rip_base = rip - offset
    e = cpu.struct(TlbEntry, s.tlb + tlb_at(linear))
    host_page, frame = e.host, u64(0)
    if unlikely(e.execute != (linear & ~OFFSET)):
        host_page, frame = fetch_page(cpu, linear)
    host = host_page + offset
    trace = find(cpu, host, mode)
    if trace == 0:
        if frame == 0:
            host_page, frame = fetch_page(cpu, linear)
        trace = make_trace(cpu, host_page, offset, mode, frame)
        if unlikely(trace == STRADDLES):
            trace = straddling_trace(cpu, linear, host_page, offset, mode, frame)
        if unlikely(trace == 0):
            raise Again()
    op = trace + Trace.SIZE
    if step == 0:
        entry = cpu.struct(JumpEntry, s.jump_cache + jump_slot(rip))
        entry.rip = rip ^ s.jump_generation
        entry.op = op
        if s.cpl != 3:
            number = (s.tlb - s.tlb_base + tlb_at(linear)) >> 5
            if cpu.at(s.tlb_global).load(number, 8) == 0:
                s.jump_nonglobal = 1
    return op


@native
def lookup_link(cpu: SoftCpu, from_op: U64) -> U64:
    """As `lookup`, and link the branch at `from_op`, which stays in its page, to what was found."""
    s = cpu.s
    entry = cpu.struct(JumpEntry, s.jump_cache + jump_slot(s.rip))
    op = u64(0)
    if entry.rip == (s.rip ^ s.jump_generation):
        op = entry.op
        s.rip_base = s.rip - cpu.struct(Op, op).offset.zext(64)
    else:
        op = lookup(cpu, u64(0))
    trace = cpu.struct(Trace, op - Trace.SIZE)
    if trace.straddles == 0:
        cpu.at(from_op).store(Op.offset_of("disp"), op)
    return op


