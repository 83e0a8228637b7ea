"""The decoder: the guest's bytes become an Op. Compiled like everything else; the tables come from the encodings."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from xuni.engine.soft.records import (
    PAGE,
    Aux,
    Form,
    Imm,
    Leaf,
    LeafFlag,
    Mode,
    ModRm,
    Node,
    Op,
    OsizeRule,
    RegKind,
)
from xuni.isa.bits import U64, Bits, select, u1, u64
from xuni.isa.stage import native, staged
from xuni.isa.x86.state import Seg, Slot

if TYPE_CHECKING:
    from xuni.engine.soft.cpu import SoftCpu

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
