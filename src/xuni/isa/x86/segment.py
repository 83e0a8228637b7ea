"""Segmentation: descriptors, segment registers, and from logical to linear addresses. SDM vol. 3, chapters 3 and 5.

Selectors travel as 64-bit values; the hidden part of a segment register is base, limit in bytes, and `Attr`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

from xuni.isa.bits import U1, U8, U64, Bits, const, select, u1, u64
from xuni.isa.stage import native, staged, unlikely
from xuni.isa.x86.exceptions import GuestFault, Vector
from xuni.isa.x86.state import Attr, Cr0, Cr4, Efer, Eflags, Seg

if TYPE_CHECKING:
    from xuni.isa.x86.cpu import Cpu

UNUSABLE: Final = int(Attr.UNUSABLE)
REAL_MODE_DATA: Final = 0x93  # present, writable, accessed
VIRTUAL_8086: Final = 0xF3  # the same with DPL 3 (20.1.1)
EXECUTABLE: Final = 8  # type bits of code and data segments
CONFORMING: Final = 4
WRITABLE: Final = 2
STACK_SHADOW: Final = 2  # `interrupt_shadow` after MOV SS or POP SS: debug traps wait too, which STI (1) does not ask


# -- modes -------------------------------------------------------------------------------------------------------------
@staged
def is_virtual_8086(cpu: Cpu) -> Bits:
    """EFLAGS.VM."""
    return (cpu.s.eflags & Eflags.VM) != 0


@staged
def is_protected(cpu: Cpu) -> Bits:
    """Protected mode proper: selectors name descriptors (not real mode, not virtual-8086 mode)."""
    return ((cpu.s.cr0 & Cr0.PE) != 0) & ~is_virtual_8086(cpu)


@staged
def is_ia32e(cpu: Cpu) -> Bits:
    """IA-32e mode: 64-bit or compatibility mode."""
    return (cpu.s.efer & Efer.LMA) != 0


@staged
def is_64bit(cpu: Cpu) -> Bits:
    """64-bit mode."""
    return is_ia32e(cpu) & ((cpu.s.seg_attr[Seg.CS] & Attr.L) != 0)


@staged
def require_cpl0(cpu: Cpu) -> None:
    """#GP(0) at any other privilege level; virtual-8086 mode has CPL 3."""
    if cpu.s.cpl != 0:
        raise GuestFault(cpu, Vector.GP, 0)


@staged
def require_protected(cpu: Cpu) -> None:
    """#UD in real and virtual-8086 mode."""
    if ~is_protected(cpu):
        raise GuestFault(cpu, Vector.UD)


@native
def is_canonical(cpu: Cpu, address: U64) -> U1:
    """Whether bits 63:47 (63:56 with 5-level paging) are all alike."""
    shift = select((cpu.s.cr4 & Cr4.LA57) != 0, u64(7), u64(16))
    return (address << shift).sar(shift) == address


@native
def is_canonical_base(cpu: Cpu, address: U64) -> U1:
    """The same for what base registers and MSRs may hold: by what the processor supports, whatever CR4.LA57 says."""
    shift = select(cpu.has_feature("la57"), u64(7), u64(16))
    return (address << shift).sar(shift) == address


# -- faults that name a selector ---------------------------------------------------------------------------------------
@native
def selector_fault(cpu: Cpu, vector: U64, selector: U64, ext: U64) -> NoReturn:
    """#TS, #NP, #SS or #GP with a selector as its error code; `ext`: an event is being delivered that no INT made."""
    error = (selector & 0xFFFC) | ext
    if vector == Vector.TS:
        raise GuestFault(cpu, Vector.TS, error)
    if vector == Vector.NP:
        raise GuestFault(cpu, Vector.NP, error)
    if vector == Vector.SS:
        raise GuestFault(cpu, Vector.SS, error)
    raise GuestFault(cpu, Vector.GP, error)


@staged
def selector_gp(cpu: Cpu, selector: Bits, ext: Bits | int = 0) -> None:
    """#GP(selector)."""
    selector_fault(cpu, u64(Vector.GP), selector, u64(ext) if isinstance(ext, int) else ext)


# -- descriptors -------------------------------------------------------------------------------------------------------
@staged
def attributes(descriptor: Bits) -> Bits:
    """`Attr` of a descriptor, 64 bits wide."""
    return descriptor >> 40 & 0xF0FF


@staged
def base_of(descriptor: Bits) -> Bits:
    """The 32-bit base of a segment descriptor."""
    return (descriptor >> 16 & 0xFFFFFF) | (descriptor >> 56) << 24


@staged
def limit_of(descriptor: Bits) -> Bits:
    """The limit in bytes, G applied."""
    limit = (descriptor & 0xFFFF) | (descriptor >> 32 & 0xF0000)
    return select((descriptor & 1 << 55) != 0, limit << 12 | 0xFFF, limit)


@staged
def dpl_of(attr: Bits) -> Bits:
    """Descriptor privilege level."""
    return attr >> 5 & 3


@native
def descriptor_address(cpu: Cpu, selector: U64) -> tuple[U64, U1]:
    """Linear address of the descriptor that a selector names, and whether it lies within its table."""
    s = cpu.s
    index = selector & 0xFFF8
    if (selector & 4) != 0:
        inside = (index + 7 <= s.seg_limit[Seg.LDTR].zext(64)) & ((s.seg_attr[Seg.LDTR] & UNUSABLE) == 0)
        return s.seg_base[Seg.LDTR] + index, inside
    return s.gdtr_base + index, index + 7 <= s.gdtr_limit.zext(64)


@native
def fetch_descriptor(cpu: Cpu, selector: U64, vector: U64, ext: U64) -> tuple[U64, U64]:
    """(linear address, descriptor) of a selector that is not null; `vector`(selector) beyond the table's limit."""
    address, inside = descriptor_address(cpu, selector)
    if ~inside:
        selector_fault(cpu, vector, selector, ext)
    return address, cpu.load_linear(address, 64)


@staged
def mark_accessed(cpu: Cpu, address: Bits, descriptor: Bits) -> Bits:
    """Set the accessed bit of a code or data descriptor where it lacks; gives its attributes."""
    if (descriptor & 1 << 40) == 0:
        cpu.store_linear(address + 5, (descriptor >> 40).trunc(8) | 1)
    return attributes(descriptor) | 1


@staged
def set_segment(cpu: Cpu, segment: Bits | int, selector: Bits, base: Bits, limit: Bits, attr: Bits) -> None:
    """Load a segment register with its hidden part; all values are 64 bits wide."""
    s = cpu.s
    s.seg_selector[segment] = selector.trunc(16)
    s.seg_base[segment] = base
    s.seg_limit[segment] = limit.trunc(32)
    s.seg_attr[segment] = attr.trunc(32)


@staged
def set_null(cpu: Cpu, segment: Bits | int, selector: Bits) -> None:
    """Load a null selector: the register cannot be used; the base becomes 0, as Intel processors have it."""
    set_segment(cpu, segment, selector, u64(0), u64(0), u64(UNUSABLE))


@staged
def set_real(cpu: Cpu, segment: Bits | int, selector: Bits) -> None:
    """Load a segment register in real or virtual-8086 mode. Real mode leaves limit and size as they are."""
    s = cpu.s
    if is_virtual_8086(cpu):
        set_segment(cpu, segment, selector, selector << 4, u64(0xFFFF), u64(VIRTUAL_8086))
    else:
        s.seg_selector[segment] = selector.trunc(16)
        s.seg_base[segment] = selector << 4
        s.seg_attr[segment] = (s.seg_attr[segment] & (Attr.DB | Attr.G)) | REAL_MODE_DATA


@native
def stack_descriptor(cpu: Cpu, selector: U64, level: U64, vector: U64, ext: U64) -> tuple[U64, U64, U64]:
    """(base, limit, attributes) of a stack segment for a privilege level: `vector` or #SS with the selector."""
    if (selector & 0xFFFC) == 0:
        selector_fault(cpu, vector, selector, ext)
    address, descriptor = fetch_descriptor(cpu, selector, vector, ext)
    attr = attributes(descriptor)
    wrong_type = (attr & (Attr.S | EXECUTABLE | WRITABLE)) != Attr.S | WRITABLE
    if ((selector & 3) != level) | (dpl_of(attr) != level) | wrong_type:
        selector_fault(cpu, vector, selector, ext)
    if (attr & Attr.P) == 0:
        selector_fault(cpu, u64(Vector.SS), selector, ext)
    attr = mark_accessed(cpu, address, descriptor)
    return base_of(descriptor), limit_of(descriptor), attr


@native
def load_data_segment(cpu: Cpu, segment: U8, selector: U64, vector: U64, ext: U64) -> None:
    """Load ES, DS, FS or GS in protected mode: `vector` or #NP with the selector."""
    if (selector & 0xFFFC) == 0:
        set_null(cpu, segment, selector)
        return
    address, descriptor = fetch_descriptor(cpu, selector, vector, ext)
    attr = attributes(descriptor)
    unreadable = (attr & (EXECUTABLE | WRITABLE)) == EXECUTABLE
    conforming = (attr & (EXECUTABLE | CONFORMING)) == EXECUTABLE | CONFORMING
    dpl = dpl_of(attr)
    private = ~conforming & (((selector & 3) > dpl) | (cpu.s.cpl > dpl))
    if ((attr & Attr.S) == 0) | unreadable | private:
        selector_fault(cpu, vector, selector, ext)
    if (attr & Attr.P) == 0:
        selector_fault(cpu, u64(Vector.NP), selector, ext)
    attr = mark_accessed(cpu, address, descriptor)
    set_segment(cpu, segment, selector, base_of(descriptor), limit_of(descriptor), attr)


@native
def load_segment(cpu: Cpu, segment: U8, selector: U64) -> None:
    """Load ES, SS, DS, FS or GS as MOV and POP do: #GP, #NP or #SS with the selector as error code."""
    cpl = cpu.s.cpl
    if ~is_protected(cpu):
        set_real(cpu, segment, selector)
    elif segment != Seg.SS:
        load_data_segment(cpu, segment, selector, u64(Vector.GP), u64(0))
    elif ((selector & 0xFFFC) == 0) & is_64bit(cpu) & (cpl != 3) & ((selector & 3) == cpl):
        set_segment(cpu, Seg.SS, selector, u64(0), u64(0), cpl << 5 | UNUSABLE)
    else:
        base, limit, attr = stack_descriptor(cpu, selector, cpl, u64(Vector.GP), u64(0))
        set_segment(cpu, Seg.SS, selector, base, limit, attr)


# -- addresses ---------------------------------------------------------------------------------------------------------
@native
def within_limit(cpu: Cpu, attr: U64, limit: U64, offset: U64, size: U64) -> U1:
    """Whether `size` bytes from `offset` lie within a segment, expand-down ones included (5.3)."""
    last = offset + size - 1
    if (attr & (Attr.S | EXECUTABLE | CONFORMING)) == Attr.S | CONFORMING:  # data, expand-down
        top = select((attr & Attr.DB) != 0, u64(0xFFFFFFFF), u64(0xFFFF))
        return (offset > limit) & (last <= top)
    return last <= limit


@staged
def address_fault(cpu: Cpu, segment: Bits) -> None:
    """#SS(0) for a reference to the stack segment, else #GP(0)."""
    if segment == Seg.SS:
        raise GuestFault(cpu, Vector.SS, 0)
    raise GuestFault(cpu, Vector.GP, 0)


@native
def segment_address(cpu: Cpu, segment: U8, offset: U64, size: U64, write: U1) -> U64:
    """The linear address of `size` bytes at a logical address that is about to be read or written.

    64-bit mode: only FS and GS have a base, first and last byte must be canonical. Elsewhere: present, right type,
    within the limit, and 32 bits. #SS(0) for SS, else #GP(0).
    """
    s = cpu.s
    if is_64bit(cpu):
        base = select((segment == Seg.FS) | (segment == Seg.GS), s.seg_base[segment], u64(0))
        linear = base + offset
        if unlikely(~is_canonical(cpu, linear) | ~is_canonical(cpu, linear + size - 1)):
            address_fault(cpu, segment)
        return linear
    attr = s.seg_attr[segment].zext(64)
    if (s.cr0 & Cr0.PE) != 0:
        unusable = (attr & (UNUSABLE | Attr.P)) != Attr.P
        read_only = (attr & (EXECUTABLE | WRITABLE)) != WRITABLE
        execute_only = (attr & (EXECUTABLE | WRITABLE)) == EXECUTABLE
        if unlikely(unusable | select(write, read_only, execute_only)):
            address_fault(cpu, segment)
    if unlikely(~within_limit(cpu, attr, s.seg_limit[segment].zext(64), offset, size)):
        address_fault(cpu, segment)
    return (s.seg_base[segment] + offset) & 0xFFFFFFFF


@staged
def load_logical(cpu: Cpu, segment: int, offset: Bits, width: int) -> Bits:
    """Read at a logical address with the current privilege, in whatever mode the processor is when the code runs."""
    linear = segment_address(cpu, const(segment, 8), offset, u64(width // 8), u1(0))
    return cpu.load_linear(linear, width, system=False)


@staged
def store_logical(cpu: Cpu, segment: int, offset: Bits, value: Bits) -> None:
    """Write at a logical address; see `load_logical`."""
    linear = segment_address(cpu, const(segment, 8), offset, u64(value.width // 8), u1(1))
    cpu.store_linear(linear, value, system=False)


# -- the stack, for instructions that must touch it before anything else changes ---------------------------------------
@staged
def stack_mask(cpu: Cpu) -> Bits:
    """The bits of RSP that address the stack: by SS.B, or all of them in 64-bit mode."""
    big = (cpu.s.seg_attr[Seg.SS] & Attr.DB) != 0
    return select(is_64bit(cpu), ~u64(0), select(big, u64(0xFFFFFFFF), u64(0xFFFF)))


@staged
def peek(cpu: Cpu, above: Bits | int, width: int) -> Bits:
    """What lies `above` bytes over the top of the stack."""
    return load_logical(cpu, Seg.SS, (cpu.rsp + above) & stack_mask(cpu), width)


@staged
def move_rsp(cpu: Cpu, change: Bits | int, mask: Bits) -> None:
    """Add to the bits of RSP that `mask` selects."""
    rsp = cpu.rsp
    cpu.s.gpr[4] = (rsp & ~mask) | ((rsp + change) & mask)
