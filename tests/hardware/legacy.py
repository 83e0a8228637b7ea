"""The soft engine as a `Target` in protected mode proper: no long mode below it, 32-bit paging, 32-bit gates and TSS."""

from __future__ import annotations

from dataclasses import replace
from struct import Struct

from xuni.isa.x86.cpustate import CpuState, Segment, TableRegister
from xuni.isa.x86.state import Cr4

from .case import CODE, DATA, PAGE, Mode
from .engine import CODE_FRAME, FLAT, GDT, HLT, IDT, KERNEL_CS, STACK_TOP, STUBS, TABLE, TSS, SoftTarget, start_state

KERNEL = 0x8000_0000
DIRECTORY = 0x1000
KERNEL_SS = 16
GATE = Struct("<HHHH")
FRAME = Struct("<5I")


class LegacyTarget(SoftTarget):
    """16-bit and 32-bit cases; nothing forbids execution in a page."""

    name = "soft, legacy"
    modes = (Mode.PROTECTED_32, Mode.PROTECTED_16)
    kernel = KERNEL
    frame = FRAME

    def _write_tables(self) -> None:
        write = self.memory.write
        user = 7  # present, writable, user
        for at, entry in (
            (DIRECTORY + 4 * (CODE >> 22), TABLE | user), (DIRECTORY + 4 * (KERNEL >> 22), 0x83),
            (TABLE + 4 * (CODE >> 12 & 1023), CODE_FRAME | user), (TABLE + 4 * (DATA >> 12 & 1023), self._data_frame | user),
        ):  # fmt: skip
            write(at, entry.to_bytes(4, "little"))
        code = Segment(KERNEL_CS, 0, FLAT, type=0xB, db=1, g=1)
        stack = Segment(KERNEL_SS, 0, FLAT, type=0x3, db=1, g=1)
        write(GDT + KERNEL_CS, code.descriptor().to_bytes(8, "little") + stack.descriptor().to_bytes(8, "little"))
        write(TSS + 4, (KERNEL + STACK_TOP).to_bytes(4, "little") + KERNEL_SS.to_bytes(4, "little"))
        for vector in range(32):
            stub = KERNEL + STUBS + 2 * vector
            write(IDT + 8 * vector, GATE.pack(stub & 0xFFFF, KERNEL_CS, 0xEE00, stub >> 16))
        write(STUBS, HLT * 256)
        write(CODE_FRAME, HLT * PAGE)

    def _start_state(self, mode: Mode) -> CpuState:
        return replace(
            start_state(mode),
            cr3=DIRECTORY,
            cr4=int(Cr4.PSE | Cr4.OSFXSR | Cr4.OSXMMEXCPT),
            efer=0,
            gdtr=TableRegister(KERNEL + GDT, 0xFFF),
            idtr=TableRegister(KERNEL + IDT, 0x7FF),
            tr=Segment(0x40, KERNEL + TSS, 0x67, type=0xB, s=0),
        )
