"""Instructions on segment registers, selectors and descriptor tables, SDM vol. 2 and vol. 3, 2.4 and 5.10."""

from __future__ import annotations

from typing import Final

from xuni.isa.bits import U64, Bits, mask, select, u64
from xuni.isa.stage import native, staged
from xuni.isa.x86.control import require_umip
from xuni.isa.x86.cpu import Cpu
from xuni.isa.x86.exceptions import GuestFault, Vector
from xuni.isa.x86.instruction import Operand, instruction
from xuni.isa.x86.segment import (
    CONFORMING,
    EXECUTABLE,
    STACK_SHADOW,
    WRITABLE,
    attributes,
    base_of,
    descriptor_address,
    dpl_of,
    fetch_descriptor,
    is_canonical_base,
    is_ia32e,
    limit_of,
    load_segment,
    move_rsp,
    peek,
    require_cpl0,
    require_protected,
    selector_fault,
    selector_gp,
    set_null,
    set_segment,
    stack_mask,
    store_logical,
)
from xuni.isa.x86.state import Attr, Cr4, Seg

# System descriptor types that LAR and LSL accept, as sets of bits (SDM vol. 2, tables 3-53 and 3-62).
_LAR: Final = sum(1 << t for t in (1, 2, 3, 4, 5, 9, 11, 12))
_LAR_IA32E: Final = sum(1 << t for t in (2, 9, 11, 12))
_LSL: Final = sum(1 << t for t in (1, 2, 3, 9, 11))
_LSL_IA32E: Final = sum(1 << t for t in (2, 9, 11))
LDT: Final = 2  # type of an LDT descriptor
TSS_BUSY: Final = 2  # bit of a TSS descriptor's type


# -- MOV, PUSH, POP, LDS ... -------------------------------------------------------------------------------------------
@native
def load_segment_register(cpu: Cpu, segment: U64, selector: U64) -> None:
    """What every instruction that loads ES, SS, DS, FS or GS does last."""
    load_segment(cpu, segment.trunc(8), selector)
    if segment == Seg.SS:
        cpu.s.interrupt_shadow = STACK_SHADOW
        cpu.mode_changed()  # the width of the stack pointer


@instruction("MOV", "8C /r Rv Sw", "8C /r Mw Sw", cold=True)
def mov_from_segment(cpu: Cpu, dst: Operand, src: Operand) -> None:
    segment = src.index
    if segment > Seg.GS:
        raise GuestFault(cpu, Vector.UD)
    dst.write(cpu.s.seg_selector[segment & 7].zext(dst.width))


@instruction("MOV", "8E /r Sw Ew", ends=True, cold=True)
def mov_to_segment(cpu: Cpu, dst: Operand, src: Operand) -> None:
    segment = dst.index.zext(64)
    if (segment > Seg.GS) | (segment == Seg.CS):
        raise GuestFault(cpu, Vector.UD)
    load_segment_register(cpu, segment, src.read().zext(64))


@native
def push_segment(cpu: Cpu, segment: U64, size: int) -> None:
    """PUSH of a selector: with a 32-bit operand only 16 bits are written, as processors do since the Core."""
    value = cpu.s.seg_selector[segment & 7]
    width = 32 if size == 8 else 16
    top = (cpu.rsp - size) & stack_mask(cpu)
    store_logical(cpu, Seg.SS, top, value.zext(64) if size == 8 else value.zext(width))
    move_rsp(cpu, -size, stack_mask(cpu))


@native
def pop_segment(cpu: Cpu, segment: U64, size: int) -> None:
    """POP of a selector: nothing changes if the selector is refused."""
    value = peek(cpu, 0, 16).zext(64)
    old_mask = stack_mask(cpu)
    load_segment_register(cpu, segment, value)
    move_rsp(cpu, size, old_mask)


def _define_push(name: str, segment: Seg, encoding: str) -> None:
    @instruction(f"PUSH {name}", encoding, cold=True)
    def push(cpu: Cpu) -> None:
        push_segment(cpu, u64(segment), cpu.osize // 8)


def _define_pop(name: str, segment: Seg, encoding: str) -> None:
    @instruction(f"POP {name}", encoding, ends=True, cold=True)
    def pop(cpu: Cpu) -> None:
        pop_segment(cpu, u64(segment), cpu.osize // 8)


for _segment, _push, _pop in (
    (Seg.ES, "06 i64", "07 i64"), (Seg.CS, "0E i64", ""), (Seg.SS, "16 i64", "17 i64"), (Seg.DS, "1E i64", "1F i64"),
    (Seg.FS, "0F A0 d64", "0F A1 d64"), (Seg.GS, "0F A8 d64", "0F A9 d64"),
):  # fmt: skip
    _define_push(_segment.name, _segment, _push)
    if _pop:
        _define_pop(_segment.name, _segment, _pop)


def _define_far_load(segment: Seg, encoding: str) -> None:
    @instruction(f"L{segment.name}", encoding, ends=True, cold=True)
    def load_far_pointer(cpu: Cpu, dst: Operand, pointer: Operand) -> None:
        at = pointer.offset
        offset = cpu.load(pointer.segment, at, dst.width)
        selector = cpu.load(pointer.segment, (at + dst.width // 8) & mask(cpu.asize), 16)
        load_segment_register(cpu, u64(segment), selector.zext(64))
        dst.write(offset)


for _segment, _encoding in (
    (Seg.ES, "C4 /r Gv Mp i64"), (Seg.DS, "C5 /r Gv Mp i64"), (Seg.SS, "0F B2 /r Gv Mp"), (Seg.FS, "0F B4 /r Gv Mp"),
    (Seg.GS, "0F B5 /r Gv Mp"),
):  # fmt: skip
    _define_far_load(_segment, _encoding)


# -- asking about a selector -------------------------------------------------------------------------------------------
@native
def visible_descriptor(cpu: Cpu, selector: U64, system: U64) -> tuple[U64, U64]:
    """(1 and the descriptor) if a selector names one that the program may know of, else (0, 0); 5.10.

    `system`: the set of system descriptor types that count. Code and data always do.
    """
    if (selector & 0xFFFC) == 0:
        return u64(0), u64(0)
    address, inside = descriptor_address(cpu, selector)
    if ~inside:
        return u64(0), u64(0)
    descriptor = cpu.load_linear(address, 64)
    attr = attributes(descriptor)
    dpl = dpl_of(attr)
    private = (cpu.s.cpl > dpl) | ((selector & 3) > dpl)
    code_or_data = (attr & Attr.S) != 0
    conforming = code_or_data & ((attr & (EXECUTABLE | CONFORMING)) == EXECUTABLE | CONFORMING)
    known = code_or_data | system.bit(attr & 0xF)
    if ~known | (private & ~conforming):
        return u64(0), u64(0)
    return u64(1), descriptor


@instruction("LAR", "0F 02 /r Gv Ew", cold=True)
def lar(cpu: Cpu, dst: Operand, src: Operand) -> None:
    require_protected(cpu)
    types = select(is_ia32e(cpu), u64(_LAR_IA32E), u64(_LAR))
    found, descriptor = visible_descriptor(cpu, src.read().zext(64), types)
    if found != 0:
        dst.write((descriptor >> 32 & 0xF0FF00).trunc(dst.width))
    cpu.flags.change(zf=found[0])


@instruction("LSL", "0F 03 /r Gv Ew", cold=True)
def lsl(cpu: Cpu, dst: Operand, src: Operand) -> None:
    require_protected(cpu)
    types = select(is_ia32e(cpu), u64(_LSL_IA32E), u64(_LSL))
    found, descriptor = visible_descriptor(cpu, src.read().zext(64), types)
    if found != 0:
        dst.write(limit_of(descriptor).trunc(dst.width))
    cpu.flags.change(zf=found[0])


@instruction("VERR", "0F 00 /4 Ew", cold=True)
def verr(cpu: Cpu, src: Operand) -> None:
    require_protected(cpu)
    found, descriptor = visible_descriptor(cpu, src.read().zext(64), u64(0))
    readable = (attributes(descriptor) & (EXECUTABLE | WRITABLE)) != EXECUTABLE
    cpu.flags.change(zf=found[0] & readable)


@instruction("VERW", "0F 00 /5 Ew", cold=True)
def verw(cpu: Cpu, src: Operand) -> None:
    require_protected(cpu)
    found, descriptor = visible_descriptor(cpu, src.read().zext(64), u64(0))
    writable = (attributes(descriptor) & (EXECUTABLE | WRITABLE)) == WRITABLE
    cpu.flags.change(zf=found[0] & writable)


@instruction("ARPL", "63 /r Ew Gw i64", cold=True)
def arpl(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """Memory is written only where the RPL changes, and need not be writable else."""
    require_protected(cpu)
    old = cpu.load(dst.segment, dst.offset, 16) if dst.is_memory else dst.read()
    rpl = src.read() & 3
    lower = (old & 3) < rpl
    if lower:
        dst.write((old & 0xFFFC) | rpl)
    cpu.flags.change(zf=lower)


# -- descriptor tables and the task register ---------------------------------------------------------------------------
@staged
def _store_table(cpu: Cpu, dst: Operand, limit: Bits, base: Bits) -> None:
    """SGDT, SIDT: the limit, then a base of 32 or 64 bits."""
    require_umip(cpu)
    cpu.store(dst.segment, dst.offset, limit.trunc(16))
    cpu.store(dst.segment, (dst.offset + 2) & mask(cpu.asize), base.trunc(64 if cpu.long else 32))


@staged
def _read_table(cpu: Cpu, src: Operand) -> tuple[Bits, Bits]:
    """(limit, base) for LGDT and LIDT; 24 bits of base with a 16-bit operand. #GP(0) if the base is not canonical."""
    require_cpl0(cpu)
    limit = cpu.load(src.segment, src.offset, 16).zext(32)
    base = cpu.load(src.segment, (src.offset + 2) & mask(cpu.asize), 64 if cpu.long else 32).zext(64)
    if cpu.long:
        if ~is_canonical_base(cpu, base):
            raise GuestFault(cpu, Vector.GP, 0)
    elif cpu.osize == 16:
        base = base & 0xFFFFFF
    return limit, base


@instruction("SGDT", "0F 01 /0 Ms", cold=True)
def sgdt(cpu: Cpu, dst: Operand) -> None:
    _store_table(cpu, dst, cpu.s.gdtr_limit, cpu.s.gdtr_base)


@instruction("SIDT", "0F 01 /1 Ms", cold=True)
def sidt(cpu: Cpu, dst: Operand) -> None:
    _store_table(cpu, dst, cpu.s.idtr_limit, cpu.s.idtr_base)


@instruction("LGDT", "0F 01 /2 Ms", cold=True)
def lgdt(cpu: Cpu, src: Operand) -> None:
    limit, base = _read_table(cpu, src)
    cpu.s.gdtr_limit = limit
    cpu.s.gdtr_base = base


@instruction("LIDT", "0F 01 /3 Ms", cold=True)
def lidt(cpu: Cpu, src: Operand) -> None:
    limit, base = _read_table(cpu, src)
    cpu.s.idtr_limit = limit
    cpu.s.idtr_base = base


@instruction("SLDT", "0F 00 /0 Rv", "0F 00 /0 Mw", cold=True)
def sldt(cpu: Cpu, dst: Operand) -> None:
    require_protected(cpu)
    require_umip(cpu)
    dst.write(cpu.s.seg_selector[Seg.LDTR].zext(dst.width))


@instruction("STR", "0F 00 /1 Rv", "0F 00 /1 Mw", cold=True)
def store_task_register(cpu: Cpu, dst: Operand) -> None:
    require_protected(cpu)
    require_umip(cpu)
    dst.write(cpu.s.seg_selector[Seg.TR].zext(dst.width))


@native
def system_descriptor(cpu: Cpu, selector: U64, kinds: U64) -> tuple[U64, U64, U64]:
    """(address, descriptor, base) for LLDT and LTR: a present system descriptor of the GDT whose type is in `kinds`.

    In IA-32e mode it has 16 bytes and a base of 64 bits.
    """
    if (selector & 4) != 0:
        selector_gp(cpu, selector)
    address, descriptor = fetch_descriptor(cpu, selector, u64(Vector.GP), u64(0))
    attr = attributes(descriptor)
    base = base_of(descriptor)
    if is_ia32e(cpu):
        _, inside = descriptor_address(cpu, selector + 8)
        if ~inside:
            selector_gp(cpu, selector)
        upper = cpu.load_linear(address + 8, 64)
        base = base | upper << 32
        if ((upper >> 40 & 0x1F) != 0) | ~is_canonical_base(cpu, base):
            selector_gp(cpu, selector)
    if ((attr & Attr.S) != 0) | (kinds.bit(attr & 0xF) == 0):
        selector_gp(cpu, selector)
    if (attr & Attr.P) == 0:
        selector_fault(cpu, u64(Vector.NP), selector, u64(0))
    return address, descriptor, base


@native
def load_ldtr(cpu: Cpu, selector: U64) -> None:
    """LLDT after its privilege check."""
    if (selector & 0xFFFC) == 0:
        set_null(cpu, Seg.LDTR, selector)
        return
    _, descriptor, base = system_descriptor(cpu, selector, u64(1 << LDT))
    set_segment(cpu, Seg.LDTR, selector, base, limit_of(descriptor), attributes(descriptor))


@native
def load_tr(cpu: Cpu, selector: U64) -> None:
    """LTR after its privilege check: the TSS becomes busy, no task is switched."""
    if (selector & 0xFFFC) == 0:
        raise GuestFault(cpu, Vector.GP, 0)
    kinds = select(is_ia32e(cpu), u64(1 << 9), u64(1 << 9 | 1 << 1))
    address, descriptor, base = system_descriptor(cpu, selector, kinds)
    cpu.store_linear(address + 5, (descriptor >> 40).trunc(8) | TSS_BUSY)
    set_segment(cpu, Seg.TR, selector, base, limit_of(descriptor), attributes(descriptor) | TSS_BUSY)


@instruction("LLDT", "0F 00 /2 Ew", cold=True)
def lldt(cpu: Cpu, src: Operand) -> None:
    require_protected(cpu)
    require_cpl0(cpu)
    load_ldtr(cpu, src.read().zext(64))


@instruction("LTR", "0F 00 /3 Ew", cold=True)
def ltr(cpu: Cpu, src: Operand) -> None:
    require_protected(cpu)
    require_cpl0(cpu)
    load_tr(cpu, src.read().zext(64))


# -- FS and GS bases ---------------------------------------------------------------------------------------------------
@instruction("SWAPGS", "0F 01 F8 o64")
def swapgs(cpu: Cpu) -> None:
    require_cpl0(cpu)
    s = cpu.s
    old = s.seg_base[Seg.GS]
    s.seg_base[Seg.GS] = s.kernel_gs_base
    s.kernel_gs_base = old


@staged
def _require_fsgsbase(cpu: Cpu) -> None:
    if (cpu.s.cr4 & Cr4.FSGSBASE) == 0:
        raise GuestFault(cpu, Vector.UD)


def _define_base(segment: Seg, read: str, write: str) -> None:
    @instruction(f"RD{segment.name}BASE", read, feature="fsgsbase", cold=True)
    def read_base(cpu: Cpu, dst: Operand) -> None:
        _require_fsgsbase(cpu)
        dst.write(cpu.s.seg_base[segment].trunc(dst.width))

    @instruction(f"WR{segment.name}BASE", write, feature="fsgsbase", cold=True)
    def write_base(cpu: Cpu, src: Operand) -> None:
        _require_fsgsbase(cpu)
        value = src.read().zext(64)
        if ~is_canonical_base(cpu, value):
            raise GuestFault(cpu, Vector.GP, 0)
        cpu.s.seg_base[segment] = value


_define_base(Seg.FS, "F3 0F AE /0 Ry o64", "F3 0F AE /2 Ry o64")
_define_base(Seg.GS, "F3 0F AE /1 Ry o64", "F3 0F AE /3 Ry o64")
