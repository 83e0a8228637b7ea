"""The memory images of FXSAVE and XSAVE: legacy region, header, extended region, SDM vol. 1, 10.5 and 13.4.

    0    FCW FSW FTW(abridged) 0 FOP   FIP/FCS   FDP/FDS   MXCSR MXCSR_MASK
    32   ST0-ST7, 16 bytes each        160  XMM0-XMM15      416  not used
    512  XSTATE_BV XCOMP_BV, 48 bytes that are 0            576  extended region

An `Area` is memory of the guest: host memory where the whole image lies in one plain page, else access by access.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from xuni.isa.bits import Bits, const, lanes_of, select, u16, u64
from xuni.isa.stage import staged
from xuni.isa.struct import Place
from xuni.isa.x86 import sse_fp, x87_fp
from xuni.isa.x86 import x87_stack as stack
from xuni.isa.x86.x87_control import CONTROL_FIXED

if TYPE_CHECKING:
    from xuni.isa.x86.cpu import Cpu

LEGACY_SIZE, HEADER, EXTENDED = 512, 512, 576
MXCSR, REGISTERS, XMM = 24, 32, 160
X87, SSE, PKRU = 0, 1, 9  # components
ZEROS = lanes_of(64, 0, 0)


class Area(Protocol):
    """Guest memory from the start of an image; offsets are in bytes."""

    def load(self, at: int, width: int, lanes: int = 1) -> Bits: ...
    def store(self, at: int, value: Bits) -> None: ...


class Direct:
    """An image whose bytes are host memory."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def load(self, at: int, width: int, lanes: int = 1) -> Bits:
        return self.place.load(at, width, lanes)

    def store(self, at: int, value: Bits) -> None:
        self.place.store(at, value)


class Through:
    """An image behind segmentation and paging."""

    def __init__(self, cpu: Cpu, segment: Bits, offset: Bits) -> None:
        self.cpu, self.segment, self.offset = cpu, segment, offset

    def load(self, at: int, width: int, lanes: int = 1) -> Bits:
        return self.cpu.load(self.segment, self.offset + at, width, lanes)

    def store(self, at: int, value: Bits) -> None:
        self.cpu.store(self.segment, self.offset + at, value)


# -- x87 ---------------------------------------------------------------------------------------------------------------
def save_x87(cpu: Cpu, area: Area) -> None:
    s = cpu.s
    area.store(0, s.fpu_control)
    area.store(2, s.fpu_status)
    area.store(4, abridged_tags(cpu).zext(16))
    area.store(6, s.fpu_opcode)
    if cpu.osize == 64:
        area.store(8, s.fpu_ip)
        area.store(16, s.fpu_dp)
    else:
        area.store(8, s.fpu_ip.trunc(32).zext(64) | s.fpu_cs.zext(64) << 32)
        area.store(16, s.fpu_dp.trunc(32).zext(64) | s.fpu_ds.zext(64) << 32)
    for i in range(8):
        area.store(REGISTERS + 16 * i, stack.read(cpu, i) & lanes_of(64, -1, 0xFFFF))


def abridged_tags(cpu: Cpu) -> Bits:
    """One bit a physical register: whether it is in use, 8 bits."""
    tags = const(0, 8)
    for n in range(8):
        used = (cpu.s.fpu_tag >> 2 * n) & 3 != 3
        tags = tags | used.zext(8) << n
    return tags


def restore_x87(cpu: Cpu, area: Area) -> None:
    s = cpu.s
    control, tags = area.load(0, 16), area.load(4, 8)
    s.fpu_status = area.load(2, 16)
    s.fpu_opcode = area.load(6, 16) & 0x7FF
    word = u16(0)
    for n in range(8):
        word = word | select(tags[n], u16(0), u16(3 << 2 * n))
    s.fpu_tag = word
    ip, dp = area.load(8, 64), area.load(16, 64)
    if cpu.osize == 64:
        s.fpu_ip, s.fpu_dp = ip, dp
        s.fpu_cs = 0
        s.fpu_ds = 0
    else:
        s.fpu_ip, s.fpu_dp = ip & 0xFFFFFFFF, dp & 0xFFFFFFFF
        s.fpu_cs, s.fpu_ds = ip.field(32, 16), dp.field(32, 16)
    for i in range(8):
        value = area.load(REGISTERS + 16 * i, 64, 2) & lanes_of(64, -1, 0xFFFF)
        s.place.store(stack.offset(cpu, i), value)
    finish_x87(cpu, control)


def finish_x87(cpu: Cpu, control: Bits) -> None:
    """The host's x87 unit follows."""
    x87_fp.clear_host(cpu)
    x87_fp.load_control(cpu, control & stack.CONTROL_BITS | CONTROL_FIXED)
    stack.summarize(cpu)


def initialize_x87(cpu: Cpu) -> None:
    s = cpu.s
    s.fpu_status = 0
    s.fpu_tag = 0xFFFF
    s.fpu_opcode = 0
    s.fpu_ip = 0
    s.fpu_dp = 0
    s.fpu_cs = 0
    s.fpu_ds = 0
    for n in range(8):
        s.st[n] = ZEROS
    finish_x87(cpu, u16(stack.CONTROL_RESET))


# -- SSE ---------------------------------------------------------------------------------------------------------------
def xmm_count(cpu: Cpu) -> int:
    return 16 if cpu.long else 8


def save_sse(cpu: Cpu, area: Area) -> None:
    for n in range(xmm_count(cpu)):
        area.store(XMM + 16 * n, cpu.s.xmm[n])


def restore_sse(cpu: Cpu, area: Area) -> None:
    for n in range(xmm_count(cpu)):
        cpu.s.xmm[n] = area.load(XMM + 16 * n, 64, 2)


def initialize_sse(cpu: Cpu) -> None:
    for n in range(xmm_count(cpu)):
        cpu.s.xmm[n] = ZEROS


def save_mxcsr(cpu: Cpu, area: Area) -> None:
    area.store(MXCSR, sse_fp.fetch_mxcsr(cpu))
    area.store(MXCSR + 4, const(sse_fp.MXCSR_MASK, 32))


# -- what is in use ----------------------------------------------------------------------------------------------------
def in_use(cpu: Cpu) -> Bits:
    """XINUSE: the components that are not in their initial state."""
    return used_x87(cpu).zext(64) | used_sse(cpu).zext(64) << SSE | (cpu.s.pkru != 0).zext(64) << PKRU


def used_x87(cpu: Cpu) -> Bits:
    s = cpu.s
    words = (s.fpu_control ^ stack.CONTROL_RESET) | s.fpu_status | ~s.fpu_tag | s.fpu_opcode | s.fpu_cs | s.fpu_ds
    wide = s.fpu_ip | s.fpu_dp | words.zext(64)
    for n in range(8):
        value = s.st[n]
        wide = wide | value.lane(0) | value.lane(1)
    return wide != 0


def used_sse(cpu: Cpu) -> Bits:
    """Registers that the current mode cannot name are not asked for."""
    total = ZEROS
    for n in range(xmm_count(cpu)):
        total = total | cpu.s.xmm[n]
    return (total.lane(0) | total.lane(1)) != u64(0)


# -- where the image lies ----------------------------------------------------------------------------------------------
@staged
def is_aligned(cpu: Cpu, segment: Bits, offset: Bits, alignment: int) -> Bits:
    """Whether the linear address is a multiple of `alignment`."""
    base = cpu.s.seg_base[segment]
    if cpu.long:
        base = select(segment >= 4, base, u64(0))  # FS and GS
    return ((base + offset) & (alignment - 1)) == 0
