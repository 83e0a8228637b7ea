"""A guest's descriptor tables, TSS and stacks at fixed places, for the tests of segments, events and transfers."""

from __future__ import annotations

from collections.abc import Callable

from xuni.isa.bits import const
from xuni.isa.x86.exceptions import GuestFault
from xuni.isa.x86.state import Attr, Gpr, Seg

from .machine import PlainCpu

GDT, IDT, TSS, LDT, STACK0, STACK3 = 0x2000, 0x3000, 0x4000, 0x5000, 0x7000, 0x8000
PAGE_TABLES = 0x10000

CODE0, DATA0, CODE3, DATA3, TSS_SELECTOR = 0x08, 0x10, 0x18, 0x20, 0x28
CONFORMING0, CODE16, GATE, SPARE, LDT_SELECTOR, TSS2 = 0x38, 0x40, 0x48, 0x58, 0x60, 0x70
CODE64, CODE64_3 = 0x80, 0x88
CODE1, DATA1 = 0x90, 0x98

ATTR_CODE = Attr.S | Attr.P | Attr.DB | Attr.G | 0xA
ATTR_DATA = Attr.S | Attr.P | Attr.DB | Attr.G | 0x2


def descriptor(base: int, limit: int, attr: int) -> int:
    """A segment descriptor; `limit` is as stored, without G applied."""
    low = limit & 0xFFFF | (base & 0xFFFFFF) << 16
    return low | (attr & 0xF0FF) << 40 | (limit >> 16 & 0xF) << 48 | (base >> 24 & 0xFF) << 56


def gate(selector: int, offset: int, kind: int, dpl: int = 0, present: bool = True, extra: int = 0) -> int:
    """A gate descriptor; `extra` is the parameter count or IST."""
    low = offset & 0xFFFF | selector << 16 | (extra & 0x1F) << 32
    return low | (kind | dpl << 5 | present << 7) << 40 | (offset >> 16 & 0xFFFF) << 48


class Tables:
    """Fills the tables of a `PlainCpu` and runs things on it."""

    def __init__(self, cpu: PlainCpu) -> None:
        self.cpu = cpu
        s = cpu.s
        s.gdtr_base, s.gdtr_limit = GDT, 0xFF
        s.idtr_base, s.idtr_limit = IDT, 0xFFF
        for selector, attr in (
            (CODE0, ATTR_CODE), (DATA0, ATTR_DATA), (CODE3, ATTR_CODE | 0x60), (DATA3, ATTR_DATA | 0x60),
            (CONFORMING0, ATTR_CODE | 4), (CODE64, ATTR_CODE & ~Attr.DB | Attr.L),
            (CODE64_3, ATTR_CODE & ~Attr.DB | Attr.L | 0x60), (CODE1, ATTR_CODE | 0x20), (DATA1, ATTR_DATA | 0x20),
        ):  # fmt: skip
            self.put(selector, descriptor(0, 0xFFFFF, int(attr)))
        self.put(CODE16, descriptor(0, 0xFFFF, int(Attr.S | Attr.P) | 0xA))
        self.put(TSS_SELECTOR, descriptor(TSS, 0x67, 0x8B))
        s.seg_selector[Seg.TR], s.seg_base[Seg.TR] = TSS_SELECTOR, TSS
        s.seg_limit[Seg.TR], s.seg_attr[Seg.TR] = 0x67, 0x8B
        s.seg_attr[Seg.LDTR] = int(Attr.UNUSABLE)
        cpu.ram.write(TSS + 4, STACK0, 4)
        cpu.ram.write(TSS + 8, DATA0, 4)
        s.gpr[Gpr.RSP] = STACK3 if int(s.cpl) == 3 else STACK0
        s.rip = 0x1000

    @classmethod
    def protected(cls, cpl: int = 0) -> Tables:
        """32-bit protected mode, without paging."""
        cpu = PlainCpu()
        cpu.enter_protected(cpl)
        cpu.s.seg_selector[Seg.CS] = CODE3 | 3 if cpl else CODE0
        for seg in (Seg.SS, Seg.DS, Seg.ES, Seg.FS, Seg.GS):
            cpu.s.seg_selector[seg] = DATA3 | 3 if cpl else DATA0
        return cls(cpu)

    @classmethod
    def long(cls, cpl: int = 0) -> Tables:
        """64-bit mode over identity-mapped memory."""
        cpu = PlainCpu()
        cpu.enter_long(cpl)
        cpu.identity_map(PAGE_TABLES)
        cpu.s.seg_selector[Seg.CS] = CODE64_3 | 3 if cpl else CODE64
        cpu.s.seg_selector[Seg.SS] = DATA3 | 3 if cpl else DATA0
        tables = cls(cpu)
        cpu.ram.write(TSS + 4, STACK0, 8)
        return tables

    @classmethod
    def virtual_8086(cls) -> Tables:
        """Virtual-8086 mode with code at 0x100:0 and a stack at 0x800:0."""
        tables = cls.protected()
        cpu = tables.cpu
        s = cpu.s
        s.eflags, s.cpl = 2 | 1 << 17, 3
        for seg, selector in zip(range(6), (0x300, 0x100, 0x780, 0x310, 0x320, 0x330), strict=True):
            s.seg_selector[seg], s.seg_base[seg] = selector, selector << 4
            s.seg_limit[seg], s.seg_attr[seg] = 0xFFFF, 0xF3
        s.gpr[Gpr.RSP], s.rip = 0x800, 0x10
        return tables

    def put(self, selector: int, value: int) -> None:
        """Set an entry of the GDT."""
        self.cpu.ram.write(GDT + (selector & ~7), value, 8)

    def entry(self, selector: int) -> int:
        return self.cpu.ram.read(GDT + (selector & ~7), 8)

    def vector(self, number: int, value: int) -> None:
        """Set an entry of the IDT: 8 bytes, 16 in IA-32e mode."""
        if self.cpu.is_long_mode:
            self.cpu.ram.write(IDT + 16 * number, value, 16)
        else:
            self.cpu.ram.write(IDT + 8 * number, value, 8)

    def stack(self, count: int, size: int) -> list[int]:
        """Values from the top of the stack upward."""
        s = self.cpu.s
        at = int(s.gpr[Gpr.RSP]) & (0xFFFFFFFF if size < 8 else -1)
        if not self.cpu.long:
            at = (at + int(s.seg_base[Seg.SS])) & 0xFFFFFFFF
        return [self.cpu.ram.read(at + size * n, size) for n in range(count)]

    def push(self, size: int, *values: int) -> None:
        """Lay values on the stack, the last one on top."""
        for value in values:
            self.cpu.push(const(value, 8 * size))

    @property
    def where(self) -> tuple[int, int, int]:
        """(CS, RIP, CPL)."""
        s = self.cpu.s
        return int(s.seg_selector[Seg.CS]), int(s.rip), int(s.cpl)


def fault_of(cpu: PlainCpu, action: Callable[[], object]) -> tuple[int, int] | None:
    """(vector, error code) of the fault that `action` raises, or None; it must leave no trace in the registers."""
    s = cpu.s
    where = (int(s.rip), int(s.cpl), int(s.gpr[Gpr.RSP]), int(s.seg_selector[Seg.CS]), int(s.seg_selector[Seg.SS]))
    try:
        action()
    except GuestFault:
        assert where == (
            int(s.rip), int(s.cpl), int(s.gpr[Gpr.RSP]), int(s.seg_selector[Seg.CS]), int(s.seg_selector[Seg.SS])
        ), "a fault leaves no trace"  # fmt: skip
        return int(s.fault_vector), int(s.fault_error)
    return None

