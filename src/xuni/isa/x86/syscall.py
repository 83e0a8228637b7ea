"""Fast system calls: SYSCALL and SYSRET, SYSENTER and SYSEXIT, SDM vol. 2 and vol. 3, 5.8.7 and 5.8.8.

Intel's rules: SYSCALL and SYSRET exist in 64-bit mode only. With the feature `amd` they exist in protected mode too
(AMD64 Architecture Programmer's Manual, vol. 3). Segments are loaded with fixed values, not from a table.
"""

from __future__ import annotations

from typing import Final

from xuni.isa.bits import U64, Bits, select, u64
from xuni.isa.stage import native, staged
from xuni.isa.x86.cpu import Cpu
from xuni.isa.x86.exceptions import GuestFault, Vector
from xuni.isa.x86.frames import arrive, cancel_trap, eflags_image, set_eflags, set_rsp
from xuni.isa.x86.instruction import instruction
from xuni.isa.x86.segment import is_64bit, is_canonical, is_ia32e, is_protected, require_cpl0, set_segment
from xuni.isa.x86.state import Attr, Cr0, Efer, Eflags, Gpr, Seg

_CODE: Final = int(Attr.G | Attr.P | Attr.S) | 0xB  # flat, readable, accessed
_DATA: Final = int(Attr.G | Attr.DB | Attr.P | Attr.S) | 3
DR6_BS: Final = 1 << 14
_RETURNED: Final = 0x3C7FD7  # RFLAGS that SYSRET takes from R11: not RF and VM


@staged
def _flat(cpu: Cpu, code: Bits, code_size: Bits | int, stack: Bits, level: int) -> None:
    """Flat CS (`code_size`: Attr.L or Attr.DB) and SS for privilege `level`."""
    s = cpu.s
    dpl = level << 5
    attr = (code & 0) | (_CODE | dpl) | code_size
    set_segment(cpu, Seg.CS, code | level, u64(0), u64(0xFFFFFFFF), attr)
    set_segment(cpu, Seg.SS, stack | level, u64(0), u64(0xFFFFFFFF), u64(_DATA | dpl))
    s.cpl = level


@staged
def _require_sce(cpu: Cpu) -> None:
    """#UD where SYSCALL and SYSRET do not exist."""
    elsewhere = cpu.has_feature("amd") & is_protected(cpu)
    if ((cpu.s.efer & Efer.SCE) == 0) | ~(is_64bit(cpu) | elsewhere):
        raise GuestFault(cpu, Vector.UD)


@native
def system_call(cpu: Cpu, next_rip: U64) -> None:
    """SYSCALL: RCX and R11 get RIP and RFLAGS, LSTAR says where to (CSTAR from compatibility mode)."""
    s = cpu.s
    _require_sce(cpu)
    if ~is_ia32e(cpu):
        _call_legacy(cpu, next_rip)
        return
    target = select(is_64bit(cpu), s.lstar, s.cstar)
    flags = eflags_image(cpu) & ~u64(Eflags.RF)
    if (s.sfmask & Eflags.TF) != 0:
        cancel_trap(cpu)
    s.gpr[Gpr.RCX] = next_rip
    s.gpr[Gpr.R11] = flags
    selector = s.star >> 32 & 0xFFFC
    _flat(cpu, selector, int(Attr.L), selector + 8, 0)
    set_eflags(cpu, flags & ~s.sfmask)
    arrive(cpu, target)


@native
def _call_legacy(cpu: Cpu, next_rip: U64) -> None:
    """SYSCALL outside IA-32e mode: to the EIP in STAR, nothing is kept but the return address."""
    s = cpu.s
    s.gpr[Gpr.RCX] = next_rip
    selector = s.star >> 32 & 0xFFFC
    _flat(cpu, selector, int(Attr.DB), selector + 8, 0)
    s.eflags = s.eflags & ~int(Eflags.VM | Eflags.IF | Eflags.RF)
    arrive(cpu, s.star & 0xFFFFFFFF)


@native
def system_return(cpu: Cpu, size: int) -> None:
    """SYSRET to 64-bit (`size` 64) or compatibility mode."""
    s = cpu.s
    _require_sce(cpu)
    require_cpl0(cpu)
    rip = s.gpr[Gpr.RCX]
    selector = s.star >> 48 & 0xFFFF
    if size == 64:
        if ~is_canonical(cpu, rip):
            raise GuestFault(cpu, Vector.GP, 0)
        _flat(cpu, selector + 16, int(Attr.L), selector + 8, 3)
    else:
        rip = rip & 0xFFFFFFFF
        _flat(cpu, selector, int(Attr.DB), selector + 8, 3)
    set_eflags(cpu, select(is_ia32e(cpu), s.gpr[Gpr.R11] & _RETURNED, eflags_image(cpu) | Eflags.IF))
    if (s.eflags & Eflags.TF) != 0:  # looked at when SYSRET ends, as if the system call had just been executed
        s.pending_debug = s.pending_debug | DR6_BS
    arrive(cpu, rip)


@native
def system_enter(cpu: Cpu) -> None:
    """SYSENTER."""
    s = cpu.s
    if ((s.cr0 & Cr0.PE) == 0) | ((s.sysenter_cs & 0xFFFC) == 0):
        raise GuestFault(cpu, Vector.GP, 0)
    ia32e = is_ia32e(cpu)
    if ia32e & cpu.has_feature("amd"):  # AMD APM vol. 3, SYSENTER: not in long mode
        raise GuestFault(cpu, Vector.UD)
    selector = s.sysenter_cs & 0xFFFC
    flags = eflags_image(cpu) & ~u64(int(Eflags.VM | Eflags.IF | Eflags.RF))
    _flat(cpu, selector, select(ia32e, u64(Attr.L), u64(Attr.DB)), selector + 8, 0)
    set_eflags(cpu, flags)
    kept = select(ia32e, ~u64(0), u64(0xFFFFFFFF))
    set_rsp(cpu, s.sysenter_esp & kept)
    arrive(cpu, s.sysenter_eip & kept)


@native
def system_exit(cpu: Cpu, size: int) -> None:
    """SYSEXIT to 64-bit (`size` 64) or 32-bit code."""
    s = cpu.s
    if ((s.cr0 & Cr0.PE) == 0) | ((s.sysenter_cs & 0xFFFC) == 0):
        raise GuestFault(cpu, Vector.GP, 0)
    require_cpl0(cpu)
    rsp, rip = s.gpr[Gpr.RCX], s.gpr[Gpr.RDX]
    selector = s.sysenter_cs & 0xFFFC
    if size == 64:
        if ~is_canonical(cpu, rsp) | ~is_canonical(cpu, rip):
            raise GuestFault(cpu, Vector.GP, 0)
        _flat(cpu, selector + 32, int(Attr.L), selector + 40, 3)
    else:
        rsp, rip = rsp & 0xFFFFFFFF, rip & 0xFFFFFFFF
        _flat(cpu, selector + 16, int(Attr.DB), selector + 24, 3)
    set_rsp(cpu, rsp)
    arrive(cpu, rip)


@instruction("SYSCALL", "0F 05", feature="syscall", ends=True)
def syscall(cpu: Cpu) -> None:
    system_call(cpu, cpu.next_rip)


@instruction("SYSRET", "0F 07", feature="syscall", ends=True)
def sysret(cpu: Cpu) -> None:
    system_return(cpu, 64 if cpu.osize == 64 else 32)


@instruction("SYSENTER", "0F 34", feature="sep", ends=True, cold=True)
def sysenter(cpu: Cpu) -> None:
    system_enter(cpu)


@instruction("SYSEXIT", "0F 35", feature="sep", ends=True, cold=True)
def sysexit(cpu: Cpu) -> None:
    system_exit(cpu, 64 if cpu.osize == 64 else 32)
