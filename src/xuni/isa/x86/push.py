"""PUSH, POP and their relatives on general registers and flags, ENTER, LEAVE, SDM vol. 2.

Only ENTER, PUSHA and POPA touch more than one stack slot: they reach all of them before RSP changes.
"""

from __future__ import annotations

from xuni.isa.bits import Bits, mask, select, u64
from xuni.isa.stage import staged
from xuni.isa.x86.cpu import Cpu
from xuni.isa.x86.exceptions import GuestFault, Vector
from xuni.isa.x86.instruction import Operand, instruction
from xuni.isa.x86.state import ARITHMETIC, Attr, Cr4, Eflags, Gpr, Seg


@instruction("PUSH", "50+r Zv d64", "68 Iz d64", "6A Ibs d64", "FF /6 Ev d64")
def push(cpu: Cpu, src: Operand) -> None:
    cpu.push(src.read())


@instruction("POP", "58+r Zv d64")
def pop(cpu: Cpu, dst: Operand) -> None:
    dst.write(cpu.pop(dst.width))


@instruction("POP", "8F /0 Ev d64", cold=True)
def pop_memory(cpu: Cpu, dst: Operand) -> None:
    if dst.is_memory:
        # An address based on rSP uses its value after the increment; a fault of the store must leave the old one.
        old = cpu.rsp
        value = cpu.pop(dst.width)
        new = cpu.rsp
        segment, offset = dst.segment, dst.offset
        cpu.s.gpr[Gpr.RSP] = old
        cpu.store(segment, offset, value)
        cpu.s.gpr[Gpr.RSP] = new
    else:
        dst.write(cpu.pop(dst.width))


# -- stack addresses ---------------------------------------------------------------------------------------------------


def stack_mask(cpu: Cpu) -> Bits:
    """The bits of RSP that address the stack: 64 in 64-bit code, otherwise 32 or 16 by SS.B."""
    if cpu.long:
        return u64(mask(64))
    big = (cpu.s.seg_attr[Seg.SS] & Attr.DB) != 0
    return select(big, u64(0xFFFF_FFFF), 0xFFFF)


def set_stack_register(cpu: Cpu, index: Gpr, value: Bits) -> None:
    """Write RSP or RBP at the stack's address size; bits above a 16-bit stack pointer stay."""
    if cpu.long:
        cpu.s.gpr[index] = value
    else:
        m = stack_mask(cpu)
        cpu.s.gpr[index] = (value & m) | (cpu.s.gpr[index] & ~m & 0xFFFF_FFFF)


# -- all registers -----------------------------------------------------------------------------------------------------


@instruction("PUSHA", "60 i64", cold=True)
def pusha(cpu: Cpu) -> None:
    size, m = cpu.osize // 8, stack_mask(cpu)
    top = cpu.rsp
    for i in range(8):
        cpu.store(Seg.SS, (top - size * (i + 1)) & m, cpu.reg(i, cpu.osize))
    set_stack_register(cpu, Gpr.RSP, top - size * 8)


@instruction("POPA", "61 i64", cold=True)
def popa(cpu: Cpu) -> None:
    size, m = cpu.osize // 8, stack_mask(cpu)
    top = cpu.rsp
    values = [cpu.load(Seg.SS, (top + size * i) & m, cpu.osize) for i in range(8)]
    for i in range(8):
        if 7 - i != Gpr.RSP:
            cpu.set_reg(7 - i, values[i])
    set_stack_register(cpu, Gpr.RSP, top + size * 8)


# -- flags -------------------------------------------------------------------------------------------------------------

# Plain ints: `~` on an IntFlag knows only the named bits.
_USER = int(Eflags.TF | Eflags.DF | Eflags.NT)  # what any program may change, and AC and ID with 32 bits or more
_WIDE = int(Eflags.AC | Eflags.ID)
_IF, _VM, _VIF, _IOPL = int(Eflags.IF), int(Eflags.VM), int(Eflags.VIF), int(Eflags.IOPL)
_HIDDEN = int(Eflags.RF | Eflags.VM)  # read as 0 by PUSHF


@instruction("PUSHF", "9C d64")
def pushf(cpu: Cpu) -> None:
    image = (cpu.s.eflags & ~_HIDDEN) | cpu.flags.value
    if not cpu.long:
        image = _virtual_pushf(cpu, image)
    cpu.push(image.trunc(cpu.osize))


@staged
def _virtual_pushf(cpu: Cpu, image: Bits) -> Bits:
    """Virtual-8086 mode with IOPL below 3: VIF for IF where VME allows it, else #GP(0). SDM vol. 3, 21.3.3."""
    eflags = cpu.s.eflags
    if (eflags & _VM) == 0 or (eflags & _IOPL) == _IOPL:
        return image
    if cpu.osize != 16:
        raise GuestFault(cpu, Vector.GP, 0)
    if (cpu.s.cr4 & Cr4.VME) == 0:
        raise GuestFault(cpu, Vector.GP, 0)
    virtual = select((eflags & _VIF) != 0, u64(_IF), 0)
    return (image & ~_IF) | virtual | _IOPL


@instruction("POPF", "9D d64", ends=True)
def popf(cpu: Cpu) -> None:
    s, old = cpu.s, cpu.s.eflags
    value = cpu.load(Seg.SS, cpu.rsp & stack_mask(cpu), cpu.osize).zext(64)
    may = u64(_USER if cpu.osize == 16 else _USER | _WIDE)
    if not cpu.long and (old & _VM) != 0:
        if (old & _IOPL) == _IOPL:
            may = may | _IF
        else:
            value, may = _virtual_popf(cpu, old, value, may)
    else:
        may = may | select(s.cpl == 0, u64(_IOPL | _IF), 0)
        may = may | select(s.cpl <= ((old >> 12) & 3), u64(_IF), 0)
    new = (old & ~may & ~int(Eflags.RF)) | (value & may)
    set_stack_register(cpu, Gpr.RSP, cpu.rsp + cpu.osize // 8)
    s.eflags = new
    cpu.flags.set_all(value)
    if ((old ^ new) & (Eflags.TF | Eflags.AC)) != 0:
        cpu.mode_changed()


@staged
def _virtual_popf(cpu: Cpu, old: Bits, value: Bits, may: Bits) -> tuple[Bits, Bits]:
    """The image and the changeable flags in virtual-8086 mode with IOPL below 3: IF stands for VIF."""
    if cpu.osize != 16:
        raise GuestFault(cpu, Vector.GP, 0)
    if (cpu.s.cr4 & Cr4.VME) == 0:
        raise GuestFault(cpu, Vector.GP, 0)
    wants = (value & _IF) != 0
    if (wants & ((old & Eflags.VIP) != 0)) | ((value & Eflags.TF) != 0):
        raise GuestFault(cpu, Vector.GP, 0)
    return (value & ~_VIF) | select(wants, u64(_VIF), 0), may | _VIF


assert int(_USER | _WIDE) & ARITHMETIC == 0  # those are always changed, in their own place


# -- frames ------------------------------------------------------------------------------------------------------------


@instruction("ENTER", "C8 Iwb d64", cold=True)
def enter(cpu: Cpu, how: Operand) -> None:
    room, nesting = how.read().trunc(16), how.read().field(16, 8)
    size, m = cpu.osize // 8, stack_mask(cpu)
    level = nesting & 31
    frame = (cpu.rsp - size) & m
    kept = cpu.rsp & ~m  # what a narrow stack pointer leaves alone
    cpu.store(Seg.SS, frame, cpu.reg(Gpr.RBP, cpu.osize))
    top = frame
    if level != 0:
        outer, left = cpu.s.gpr[Gpr.RBP], level
        while left != 1:  # copy the enclosing frames' pointers
            outer, top, left = outer - size, (top - size) & m, left - 1
            cpu.store(Seg.SS, top, cpu.load(Seg.SS, outer & m, cpu.osize))
        top = (top - size) & m
        cpu.store(Seg.SS, top, (kept | frame).trunc(cpu.osize))
    end = (top - room.zext(64)) & m
    cpu.probe_write(Seg.SS, end, size)  # faults as a write at the new top of the stack would
    cpu.set_reg(Gpr.RBP, (kept | frame).trunc(cpu.osize))
    set_stack_register(cpu, Gpr.RSP, end)


@instruction("LEAVE", "C9 d64")
def leave(cpu: Cpu) -> None:
    frame = cpu.s.gpr[Gpr.RBP]
    value = cpu.load(Seg.SS, frame & stack_mask(cpu), cpu.osize)
    set_stack_register(cpu, Gpr.RSP, frame + cpu.osize // 8)
    cpu.set_reg(Gpr.RBP, value)
