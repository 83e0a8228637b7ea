"""The decoder: guest bytes become a trace of Ops. Compiled like everything else; the tables come from the encodings.

A trace is straight-line code of one page in one `Mode`, from its entry to an unconditional transfer, an instruction
that may change the mode, the end of the page, or `TRACE_LIMIT` instructions; conditional branches go on inside it when
not taken. A closing Op leads on where no instruction does. An instruction that straddles two pages is a trace of its
own.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from xuni.engine.soft.debugger import may_break
from xuni.engine.soft.memory import check_canonical, current_access, enter_tlb, forget_writable, jump_slot, tlb_at
from xuni.engine.soft.physical import lock_code, slot_of, unlock_code
from xuni.engine.soft.records import (
    FETCH_BYTES,
    HASH_BITS,
    OFFSET,
    OP_SIZE,
    PAGE,
    TRACE_LIMIT,
    Aux,
    Effect,
    Form,
    Frame,
    Imm,
    JumpEntry,
    Leaf,
    LeafFlag,
    Mode,
    ModRm,
    Node,
    Op,
    OsizeRule,
    RegKind,
    SlotRecord,
    TlbEntry,
    Trace,
)
from xuni.isa.bits import U1, U64, Bits, const, select, u1, u64
from xuni.isa.stage import likely, native, staged, unlikely
from xuni.isa.x86.exceptions import Again, GuestFault, Leave, Vector
from xuni.isa.x86.paging import Access, walk
from xuni.isa.x86.state import Efer, ExitKind, Seg, Slot

if TYPE_CHECKING:
    from xuni.engine.soft.cpu import SoftCpu

STRADDLES = 1  # in place of a Trace's address
CONDITIONS = 5  # variants of handlers that read flags: see records.PRODUCERS
NO_SEGMENT = 0xFF


class PrefixClass(IntEnum):
    NONE, OPERAND, ADDRESS, LOCK, REPNE, REP, SEGMENT = range(7)  # SEGMENT + Seg
    REX = 12


@staged
def register_byte(kind: Bits, number: Bits, rex: Bits) -> Bits:
    """A register number as the byte that an Op carries (`RegKind`)."""
    legacy_high = (kind == RegKind.BYTE) & (rex == 0) & (number >= 4) & (number < 8)
    general = select(legacy_high, ((number - 4) << 3) + 1, number << 3)
    vector = select(kind == RegKind.MMX, (number & 7) << 4, number << 4)
    return select(kind == RegKind.RAW, number, select(kind <= RegKind.BYTE, general, vector))


@native
def decode(cpu: SoftCpu, code: U64, op_pointer: U64, offset: U64, mode: U64, producer: U64) -> tuple[U64, U64, U64]:
    """Decode the instruction at host address `code`, `offset` in its page, into an Op.

    `producer` is the index in PRODUCERS of what set the flags. Returns (length, leaf pointer, handler number); a length
    above 15 means that the instruction is too long (#GP).
    """
    bytes_ = cpu.at(code)
    arena = cpu.arena
    op = cpu.struct(Op, op_pointer)
    size = mode & Mode.SIZE
    long = size == 2
    rex, at = u64(0), u64(0)
    operand_prefix, address_prefix, lock = u1(0), u1(0), u1(0)
    rep, segment = u64(0), u64(NO_SEGMENT)
    byte = bytes_.load(0, 8).zext(64)
    kind = cpu.at(arena.prefixes).load(byte, 8).zext(64)
    while (kind != 0) & ((kind != PrefixClass.REX) | long) & (at < 15):
        if kind == PrefixClass.REX:
            rex = byte
        else:
            rex = u64(0)
            if kind == PrefixClass.OPERAND:
                operand_prefix = u1(1)
            elif kind == PrefixClass.ADDRESS:
                address_prefix = u1(1)
            elif kind == PrefixClass.LOCK:
                lock = u1(1)
            elif kind == PrefixClass.REPNE:
                rep = u64(2)
            elif kind == PrefixClass.REP:
                rep = u64(1)
            elif ~long | (kind >= PrefixClass.SEGMENT + int(Seg.FS)):
                segment = kind - PrefixClass.SEGMENT
        at = at + 1
        byte = bytes_.load(at, 8).zext(64)
        kind = cpu.at(arena.prefixes).load(byte, 8).zext(64)
    at = at + 1
    table = u64(0)
    vvvv, vexl = u64(0), u64(0)
    prefix = select(rep != 0, select(rep == 1, u64(2), u64(3)), operand_prefix.zext(64))
    if byte == 0x0F:
        table = u64(1)
        byte = bytes_.load(at, 8).zext(64)
        at = at + 1
        if (byte == 0x38) | (byte == 0x3A):
            table = select(byte == 0x38, u64(2), u64(3))
            byte = bytes_.load(at, 8).zext(64)
            at = at + 1
    elif (byte & 0xFE) == 0xC4:
        second = bytes_.load(at, 8).zext(64)
        if long | ((second & 0xC0) == 0xC0):
            # VEX: inverted R X B, map, W, inverted vvvv, L, pp. A legacy prefix before it is #UD: map 7 has nothing.
            bad = lock | (rep != 0) | operand_prefix | (rex != 0)
            third = bytes_.load(at + 1, 8).zext(64)
            three = byte == 0xC4
            last = select(three, third, second)
            inverted = ~second >> 5 & 7
            rex = u64(0x40) | select(three, inverted | third >> 4 & 8, inverted & 4)
            table = select(three, (second & 0x1F) + 3, u64(4))
            table = select(bad | (table < 4) | (table > 6), u64(7), table)
            at = at + select(three, u64(2), u64(1))
            vvvv = ~(last >> 3) & 15
            vexl = last >> 2 & 1
            pp = last & 3
            prefix = pp
            if ~long:
                rex = rex & 0x48
                vvvv = vvvv & 7
            byte = bytes_.load(at, 8).zext(64)
            at = at + 1
    rexw = rex >> 3 & 1
    key = table << 8 | byte
    modrm = u64(0)
    has_modrm = cpu.at(arena.modrm).load(key, 8)
    if has_modrm != 0:
        modrm = bytes_.load(at, 8).zext(64)
        modrm = select(has_modrm == ModRm.REGISTERS, modrm | 0xC0, modrm)
        at = at + 1
    mod, reg, rm = modrm >> 6, modrm >> 3 & 7, modrm & 7
    # -- which encoding ------------------------------------------------------------------------------------------------
    nodes = cpu.at(arena.nodes)
    node = nodes.load(key << 2, 32).zext(64)
    steps = u64(0)
    while ((node >> 24) != Node.LEAF) & (steps < 8):
        which = node >> 24
        step = rexw
        if which == Node.PREFIX:
            step = prefix
        elif which == Node.REG:
            step = reg
        elif which == Node.MOD:
            step = (mod != 3).zext(64)
        elif which == Node.RM:
            step = rm
        elif which == Node.LONG:
            step = long.zext(64)
        elif which == Node.VEXL:
            step = vexl
        node = nodes.load(((node & 0xFFFFFF) + step) << 2, 32).zext(64)
        steps = steps + 1
    # 90 is XCHG rAX, rAX, which is NOP: only with REX.B does it name another register.
    number = node & 0xFFFFFF
    pause = u1(0)
    if (key == 0x90) & ((rex & 1) == 0):
        number = u64(1)
        pause = rep == 1
    leaf = arena.leaves + number * Leaf.SIZE
    in_memory = (mod != 3) & (has_modrm != 0)
    lockable = (cpu.struct(Leaf, leaf).flags & LeafFlag.LOCK) != 0
    if lock & ~(lockable & in_memory):
        leaf = arena.leaves
    d = cpu.struct(Leaf, leaf)
    flags = d.flags.zext(64)
    # -- sizes ---------------------------------------------------------------------------------------------------------
    default = select(size == 0, u64(0), u64(1))
    osize = select(long, select(rexw != 0, u64(2), select(operand_prefix, u64(0), u64(1))),
                   select(operand_prefix, u64(1) - default, default))
    rule = d.osize
    if rule == OsizeRule.NO66:
        osize = select(long, select(rexw != 0, u64(2), u64(1)), u64(1))
    elif long & (rule != OsizeRule.DEFAULT):
        osize = select((rule == OsizeRule.D64) & operand_prefix & (rexw == 0), u64(0), u64(2))
    asize = select(long, select(address_prefix, u64(1), u64(2)), select(address_prefix, u64(1) - default, default))
    # -- operands ------------------------------------------------------------------------------------------------------
    form = u64(0)
    aux = asize
    seg = u64(8 * int(Slot.ZERO))
    x = u64(8 * int(Slot.ZERO))
    scale, disp = u64(0), u64(0)
    rip_relative = u1(0)
    wide_reg = reg | (rex << 1 & 8)
    r = register_byte(d.reg_kind, wide_reg.trunc(8), rex.trunc(8)).zext(64)
    if (flags & LeafFlag.OPCODE_REGISTER) != 0:
        rm = byte & 7
    b = register_byte(d.rm_kind, (rm | (rex << 3 & 8)).trunc(8), rex.trunc(8)).zext(64)
    stack = u1(0)
    if in_memory:
        if asize == 0:
            b = u64(8 * int(Slot.ZERO))
            if (mod == 0) & (rm == 6):
                disp = bytes_.load(at, 16).sext(64)
                at = at + 2
            else:
                base = select(rm < 2, u64(3), select((rm == 2) | (rm == 3) | (rm == 6), u64(5),
                              select(rm == 4, u64(6), select(rm == 5, u64(7), u64(3)))))
                b = base << 3
                x = select(rm < 4, (rm & 1) + 6, u64(int(Slot.ZERO))) << 3
                stack = base == 5
                if mod == 1:
                    disp = bytes_.load(at, 8).sext(64)
                    at = at + 1
                elif mod == 2:
                    disp = bytes_.load(at, 16).sext(64)
                    at = at + 2
        else:
            base = rm | (rex << 3 & 8)
            no_base = u1(0)
            if rm == 4:
                sib = bytes_.load(at, 8).zext(64)
                at = at + 1
                index = (sib >> 3 & 7) | (rex << 2 & 8)
                if index != 4:
                    x = index << 3
                    scale = sib >> 6
                base = (sib & 7) | (rex << 3 & 8)
                no_base = ((sib & 7) == 5) & (mod == 0)
            elif (rm == 5) & (mod == 0):
                no_base = u1(1)
                rip_relative = long
            b = select(no_base, u64(int(Slot.ZERO)), base) << 3
            stack = ((base == 4) | (base == 5)) & ~no_base
            if mod == 1:
                disp = bytes_.load(at, 8).sext(64)
                at = at + 1
            elif (mod == 2) | no_base:
                disp = bytes_.load(at, 32).sext(64)
                at = at + 4
    default_seg = select(stack, u64(int(Seg.SS)), u64(int(Seg.DS)))
    chosen = select(segment == NO_SEGMENT, default_seg, segment)
    if (flags & LeafFlag.NO_SEGMENT) == 0:
        if ~long | (chosen >= int(Seg.FS)):
            seg = (chosen + int(Slot.SEGMENT_BASE)) << 3
        if chosen == int(Seg.SS):
            aux = aux | Aux.STACK
    # -- immediate -----------------------------------------------------------------------------------------------------
    imm = u64(0)
    what = d.imm
    relative = u1(0)
    if what != Imm.NONE:
        if what == Imm.BYTE:
            imm = bytes_.load(at, 8).zext(64)
            at = at + 1
        elif (what == Imm.SBYTE) | (what == Imm.REL8):
            imm = bytes_.load(at, 8).sext(64)
            at = at + 1
        elif what == Imm.WORD:
            imm = bytes_.load(at, 16).zext(64)
            at = at + 2
        elif what == Imm.WORD_BYTE:
            imm = bytes_.load(at, 16).zext(64) | bytes_.load(at + 2, 8).zext(64) << 16
            at = at + 3
        elif what == Imm.FAR:
            if osize == 0:
                imm = bytes_.load(at, 16).zext(64) | bytes_.load(at + 2, 16).zext(64) << 32
                at = at + 4
            else:
                imm = bytes_.load(at, 32).zext(64) | bytes_.load(at + 4, 16).zext(64) << 32
                at = at + 6
        elif what == Imm.MOFFS:
            if asize == 2:
                imm = bytes_.load(at, 64)
                at = at + 8
            elif asize == 1:
                imm = bytes_.load(at, 32).zext(64)
                at = at + 4
            else:
                imm = bytes_.load(at, 16).zext(64)
                at = at + 2
        elif (what == Imm.V) & (osize == 2):
            imm = bytes_.load(at, 64)
            at = at + 8
        elif osize == 0:
            imm = bytes_.load(at, 16).sext(64)
            at = at + 2
        else:
            imm = bytes_.load(at, 32).sext(64)
            at = at + 4
        relative = (what == Imm.REL8) | (what == Imm.RELZ)
    # -- the form of the memory operand, and the handler ---------------------------------------------------------------
    if in_memory:
        form = u64(int(Form.GENERAL))
        if rip_relative:
            moved = disp + offset + at
            if moved.trunc(32).sext(64) == moved:
                disp = moved
                b = u64(8 * int(Slot.RIP_BASE))
                rip_relative = u1(0)
            else:
                b = u64(8 * int(Slot.RIP_BASE))
                aux = aux | Aux.RIP_RELATIVE
        if long & (asize == 2) & ~rip_relative:
            plain = (x == 8 * int(Slot.ZERO)) & (seg == 8 * int(Slot.ZERO))
            form = select(plain, u64(int(Form.BASE)), u64(int(Form.INDEXED)))
    if (flags & LeafFlag.FORM_IS_ASIZE) != 0:
        form = asize
    if relative:
        imm = imm + offset + at
        form = select(imm < PAGE, u64(0), u64(1))
    variant = lock.zext(64)
    if d.rep != 0:
        variant = select((d.rep == 1) & (rep != 0), u64(1), rep)
    handler = ((long.zext(64) * 3 + variant) * 3 + osize) * 4 + form
    if (flags & LeafFlag.CONDITION) != 0:
        handler = handler * CONDITIONS + producer
    handler = cpu.at(arena.handler_indexes).load((d.base.zext(64) + handler) << 2, 32).zext(64)
    # -- FPU availability ----------------------------------------------------------------------------------------------
    if d.fpu != 0:
        if ((mode >> 2) >> d.fpu & 1) != 0:
            handler = d.fpu.zext(64)  # the first handlers of the table: see handlers.TRAPS
    op.handler = cpu.at(arena.handlers).load(handler << 3, 64)
    if pause:
        op.handler = cpu.handler_address("pause")
    op.imm = imm
    op.disp = disp.trunc(32)
    op.r = r.trunc(8)
    op.b = b.trunc(8)
    op.x = x.trunc(8)
    op.seg = seg.trunc(8)
    if (flags & LeafFlag.BRANCH) != 0:
        op.place.store(Op.offset_of("disp"), u64(0))
    op.scale = scale.trunc(8)
    op.length = at.trunc(8)
    op.offset = offset.trunc(16)
    op.aux = aux.trunc(8)
    op.v = (vvvv << 3).trunc(8)
    return at, leaf, handler


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
def second_page(cpu: SoftCpu, linear: U64) -> U64:
    """Host address of the page behind that of `linear`, as a fetch finds it now."""
    following = next_page(cpu, linear)
    e = cpu.struct(TlbEntry, cpu.s.tlb + tlb_at(following))
    if likely(e.execute == following):
        return e.host
    check_canonical(cpu, following)
    host, _ = fetch_page(cpu, following)
    return host


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
    t.host2 = second
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
def make_trace(cpu: SoftCpu, host_page: U64, offset: U64, mode: U64, frame_pointer: U64) -> U64:
    """As `build_trace`, unless another processor was faster."""
    lock_code(cpu)
    host = host_page + offset
    link = bucket_of(cpu, host, mode)
    trace = cpu.at(link).load(0, 64)
    while trace != 0:
        t = cpu.struct(Trace, trace)
        if (t.host == host) & (t.mode == mode.trunc(32)) & (t.dead == 0):
            break
        if t.dead != 0:  # code that changes again and again must not make this chain long
            cpu.at(link).store(0, t.hash_next)
        else:
            link = trace + Trace.offset_of("hash_next")
        trace = t.hash_next
    if trace == 0:
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


