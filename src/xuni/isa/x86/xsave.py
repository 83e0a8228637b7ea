"""FXSAVE and FXRSTOR, the XSAVE family, XGETBV and XSETBV, SDM vol. 1, chapter 13, and vol. 2."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from xuni.isa.bits import U64, Bits, const, select, u64
from xuni.isa.stage import native, staged
from xuni.isa.x86 import sse_fp
from xuni.isa.x86 import xsave_area as image
from xuni.isa.x86.exceptions import GuestFault, Vector
from xuni.isa.x86.instruction import Operand, instruction
from xuni.isa.x86.paging import set_pkru
from xuni.isa.x86.state import Cr0, Cr4, Gpr
from xuni.isa.x86.xsave_area import EXTENDED, HEADER, LEGACY_SIZE, MXCSR, PKRU, SSE, X87, Area, Direct, Through

if TYPE_CHECKING:
    from xuni.isa.x86.cpu import Cpu

COMPACTED = 1 << 63  # in XCOMP_BV
PKRU_OFFSET = 2688  # in the standard format
ALWAYS, IN_USE, COMPACT, SUPERVISOR = range(4)  # XSAVE, XSAVEOPT, XSAVEC, XSAVES


# -- common ------------------------------------------------------------------------------------------------------------
@staged
def open_image(cpu: Cpu, memory: Operand, size: int, alignment: int, write: bool,
               action: Callable[[Area], None]) -> None:  # fmt: skip
    """Run `action` on the image, having made sure that no access to its first `size` bytes faults half-way."""
    segment, offset = memory.segment, memory.offset
    if ~image.is_aligned(cpu, segment, offset, alignment):
        raise GuestFault(cpu, Vector.GP, 0)
    pointer, room = cpu.window(segment, offset, write)
    if room >= size:
        action(Direct(cpu.at(pointer)))
    else:
        touch(cpu, segment, offset, size, write)
        action(Through(cpu, segment, offset))


def touch(cpu: Cpu, segment: Bits, offset: Bits, size: int, write: bool) -> None:
    """Fault now if an access to any of `size` bytes would."""
    if write:
        cpu.probe_write(segment, offset, size)
    else:
        cpu.load(segment, offset, 8)
        cpu.load(segment, ((offset + (size - 1)) & ~0xFFF).umax(offset), 8)


@staged
def check_mxcsr(cpu: Cpu, value: Bits) -> None:
    if (value & ~sse_fp.MXCSR_MASK) != 0:
        raise GuestFault(cpu, Vector.GP, 0)


# -- FXSAVE ------------------------------------------------------------------------------------------------------------
@instruction("FXSAVE", "NP 0F AE /0 M", feature="fxsr", fpu="x87", cold=True)
def fxsave(cpu: Cpu, dst: Operand) -> None:
    open_image(cpu, dst, LEGACY_SIZE, 16, True, lambda area: _fxsave(cpu, area))


def _fxsave(cpu: Cpu, area: Area) -> None:
    image.save_x87(cpu, area)
    image.save_mxcsr(cpu, area)
    image.save_sse(cpu, area)


@instruction("FXRSTOR", "NP 0F AE /1 M", feature="fxsr", fpu="x87", cold=True)
def fxrstor(cpu: Cpu, src: Operand) -> None:
    open_image(cpu, src, LEGACY_SIZE, 16, False, lambda area: _fxrstor(cpu, area))


def _fxrstor(cpu: Cpu, area: Area) -> None:
    mxcsr = area.load(MXCSR, 32)
    check_mxcsr(cpu, mxcsr)
    image.restore_x87(cpu, area)
    image.restore_sse(cpu, area)
    sse_fp.load_mxcsr(cpu, mxcsr)


# -- XSAVE -------------------------------------------------------------------------------------------------------------
@staged
def check_enabled(cpu: Cpu, supervisor: bool) -> None:
    if (cpu.s.cr4 & Cr4.OSXSAVE) == 0:
        raise GuestFault(cpu, Vector.UD)
    if (cpu.s.cr0 & Cr0.TS) != 0:
        raise GuestFault(cpu, Vector.NM)
    if supervisor:
        if cpu.s.cpl != 0:
            raise GuestFault(cpu, Vector.GP, 0)


def requested(cpu: Cpu) -> Bits:
    """RFBM: EDX:EAX and XCR0 (IA32_XSS has no components here)."""
    low, high = cpu.reg(Gpr.RAX, 32), cpu.reg(Gpr.RDX, 32)
    return (low.zext(64) | high.zext(64) << 32) & cpu.s.xcr0


@staged
def touch_extended(cpu: Cpu, components: Bits, compact: bool, segment: Bits, offset: Bits, write: bool) -> None:
    """Touch the extended region: PKRU is its only component."""
    if components[PKRU]:
        at = EXTENDED if compact else PKRU_OFFSET
        touch(cpu, segment, offset + at, 8, write)


def _save(name: str, encoding: str, kind: int, feature: str) -> None:
    @instruction(name, encoding, feature=feature, cold=True)
    def run(cpu: Cpu, dst: Operand) -> None:
        check_enabled(cpu, kind == SUPERVISOR)
        segment, offset = dst.segment, dst.offset
        rfbm = requested(cpu)
        compact = kind >= COMPACT
        if ~image.is_aligned(cpu, segment, offset, 64):
            raise GuestFault(cpu, Vector.GP, 0)
        touch_extended(cpu, rfbm, compact, segment, offset, True)
        open_image(cpu, dst, EXTENDED, 64, True, lambda area: save(cpu, area, rfbm, kind))
        if save_pkru(rfbm, image.in_use(cpu), kind):
            at = EXTENDED if compact else PKRU_OFFSET
            cpu.store(segment, offset + at, cpu.s.pkru.zext(64))


def save_pkru(rfbm: Bits, used: Bits, kind: int) -> Bits:
    return rfbm[PKRU] if kind == ALWAYS else rfbm[PKRU] & used[PKRU]


@staged
def save(cpu: Cpu, area: Area, rfbm: Bits, kind: int) -> None:
    """The legacy region and the header."""
    used = image.in_use(cpu)
    if kind >= COMPACT:  # here MXCSR belongs to the SSE state
        changed = sse_fp.fetch_mxcsr(cpu) != sse_fp.MXCSR_RESET
        used = used | changed.zext(64) << SSE
    written = rfbm if kind == ALWAYS else rfbm & used
    if written[X87]:
        image.save_x87(cpu, area)
    if written[SSE]:
        image.save_sse(cpu, area)
    if kind >= COMPACT:
        if written[SSE]:
            image.save_mxcsr(cpu, area)
        area.store(HEADER, written)
        area.store(HEADER + 8, rfbm | COMPACTED)
        for n in range(2, 8):
            area.store(HEADER + 8 * n, u64(0))
    else:
        if (rfbm & 6) != 0:
            image.save_mxcsr(cpu, area)
        area.store(HEADER, area.load(HEADER, 64) & ~rfbm | rfbm & used)


_save("XSAVE", "NP 0F AE /4 M", ALWAYS, "xsave")
_save("XSAVEOPT", "NP 0F AE /6 M", IN_USE, "xsaveopt")
_save("XSAVEC", "NP 0F C7 /4 M", COMPACT, "xsavec")
_save("XSAVES", "NP 0F C7 /5 M", SUPERVISOR, "xsaves")


def _restore(name: str, encoding: str, supervisor: bool, feature: str) -> None:
    @instruction(name, encoding, feature=feature, cold=True)
    def run(cpu: Cpu, src: Operand) -> None:
        check_enabled(cpu, supervisor)
        rfbm = requested(cpu)
        segment, offset = src.segment, src.offset
        if ~image.is_aligned(cpu, segment, offset, 64):
            raise GuestFault(cpu, Vector.GP, 0)
        present = cpu.load(segment, offset + HEADER, 64)
        compaction = cpu.load(segment, offset + (HEADER + 8), 64)
        rest = u64(0)
        for n in range(2, 8):
            rest = rest | cpu.load(segment, offset + (HEADER + 8 * n), 64)
        rest_low = cpu.load(segment, offset + (HEADER + 16), 64)
        compact = compaction[63]
        check_header(cpu, present, compaction, select(compact, rest, rest_low), supervisor)
        pkru = cpu.s.pkru
        if rfbm[PKRU]:
            pkru = const(0, 32)
            if present[PKRU]:
                at = select(compact, u64(EXTENDED), u64(PKRU_OFFSET))
                pkru = cpu.load(segment, offset + at, 32)
        open_image(cpu, src, LEGACY_SIZE, 64, False, lambda area: restore(cpu, area, rfbm, present, compact))
        set_pkru(cpu, pkru)


@staged
def check_header(cpu: Cpu, present: Bits, compaction: Bits, rest: Bits, supervisor: bool) -> None:
    """#GP(0) for what SDM vol. 1, 13.8.1 and 13.12 forbid."""
    bad = (rest != 0) | ((present & ~cpu.s.xcr0) != 0)
    if compaction[63]:
        bad = bad | ((compaction & ~cpu.s.xcr0 & ~u64(COMPACTED)) != 0) | ((present & ~compaction) != 0)
        bad = bad | ~cpu.has_feature("xsavec")
    else:
        bad = bad | (compaction != 0)
        if supervisor:
            raise GuestFault(cpu, Vector.GP, 0)
    if bad:
        raise GuestFault(cpu, Vector.GP, 0)


@staged
def restore(cpu: Cpu, area: Area, rfbm: Bits, present: Bits, compact: Bits) -> None:
    mxcsr = sse_fp.fetch_mxcsr(cpu)
    if (rfbm & 6) != 0:
        loaded = area.load(MXCSR, 32)
        # In the compacted format MXCSR belongs to the SSE state, and is initialized with it.
        absent = compact & ~present[SSE]
        mxcsr = select(compact & ~rfbm[SSE], mxcsr, select(absent, const(sse_fp.MXCSR_RESET, 32), loaded))
    check_mxcsr(cpu, mxcsr)
    if rfbm[X87]:
        if present[X87]:
            image.restore_x87(cpu, area)
        else:
            image.initialize_x87(cpu)
    if rfbm[SSE]:
        if present[SSE]:
            image.restore_sse(cpu, area)
        else:
            image.initialize_sse(cpu)
    sse_fp.load_mxcsr(cpu, mxcsr)


_restore("XRSTOR", "NP 0F AE /5 M", False, "xsave")
_restore("XRSTORS", "NP 0F C7 /3 M", True, "xsaves")


# -- XCR0 --------------------------------------------------------------------------------------------------------------
@instruction("XGETBV", "NP 0F 01 D0", feature="xsave", cold=True)
def xgetbv(cpu: Cpu) -> None:
    if (cpu.s.cr4 & Cr4.OSXSAVE) == 0:
        raise GuestFault(cpu, Vector.UD)
    index = cpu.reg(Gpr.RCX, 32)
    value = cpu.s.xcr0
    if index == 1:
        if ~cpu.has_feature("xgetbv1"):
            raise GuestFault(cpu, Vector.GP, 0)
        value = value & (image.in_use(cpu) | (sse_fp.fetch_mxcsr(cpu) != sse_fp.MXCSR_RESET).zext(64) << SSE)
    elif index != 0:
        raise GuestFault(cpu, Vector.GP, 0)
    cpu.set_reg(Gpr.RAX, value.trunc(32))
    cpu.set_reg(Gpr.RDX, value.field(32, 32))


@native
def supported_components(cpu: Cpu) -> U64:
    """The bits that XCR0 may have."""
    return u64(3) | cpu.has_feature("avx").zext(64) << 2 | cpu.has_feature("pku").zext(64) << PKRU


@instruction("XSETBV", "NP 0F 01 D1", feature="xsave", cold=True, ends=True)
def xsetbv(cpu: Cpu) -> None:
    if (cpu.s.cr4 & Cr4.OSXSAVE) == 0:
        raise GuestFault(cpu, Vector.UD)
    value = cpu.reg(Gpr.RAX, 32).zext(64) | cpu.reg(Gpr.RDX, 32).zext(64) << 32
    bad = (cpu.s.cpl != 0) | (cpu.reg(Gpr.RCX, 32) != 0) | ((value & ~supported_components(cpu)) != 0) | ~value[X87]
    bad = bad | (value[2] & ~value[SSE])
    if bad:
        raise GuestFault(cpu, Vector.GP, 0)
    cpu.s.xcr0 = value
