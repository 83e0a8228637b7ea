"""A processor's registers as text, in the layout of QEMU's `info registers`, which many scripts read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from xuni.debug.registers import EMPTY_FXSAVE
from xuni.isa.x86.cpustate import CpuState, Segment, TableRegister, VcpuState
from xuni.isa.x86.state import Cr0, Efer, Eflags
from xuni.isa.x86.xsave_area import MXCSR, REGISTERS, XMM

ROWS64: Final = (("rax", "rbx", "rcx", "rdx"), ("rsi", "rdi", "rbp", "rsp"), ("r8", "r9", "r10", "r11"),
                 ("r12", "r13", "r14", "r15"))  # fmt: skip
ROWS32: Final = ROWS64[:2]
LETTERS: Final = ((Eflags.DF, "D"), (Eflags.OF, "O"), (Eflags.SF, "S"), (Eflags.ZF, "Z"), (Eflags.AF, "A"),
                  (Eflags.PF, "P"), (Eflags.CF, "C"))  # fmt: skip
SYSTEM32: Final = {1: "TSS16-avl", 2: "LDT", 3: "TSS16-busy", 4: "CallGate16", 5: "TaskGate", 6: "IntGate16",
                   7: "TrapGate16", 9: "TSS32-avl", 11: "TSS32-busy", 12: "CallGate32", 14: "IntGate32",
                   15: "TrapGate32"}  # fmt: skip
SYSTEM64: Final = {0: "<hiword>", 2: "LDT", 9: "TSS64-avl", 11: "TSS64-busy", 12: "CallGate64", 14: "IntGate64",
                   15: "TrapGate64"}  # fmt: skip


def lines(cpu: int, state: VcpuState) -> Iterator[str]:
    """A line at a time, without line ends."""
    r = state.registers
    long = bool(r.efer & Efer.LMA)
    code64 = long and bool(r.cs.l)
    yield ""
    yield f"CPU#{cpu}"
    flags = "".join(letter if r.rflags & bit else "-" for bit, letter in LETTERS)
    state_of = (f"[{flags}] CPL={_privilege(r)} II={int(state.interrupt_shadow != 0)} A20=1 SMM=0 "
                f"HLT={int(state.halted)}")  # fmt: skip
    if code64:
        for row in ROWS64:
            yield " ".join(f"{name.upper():<3}={getattr(r, name):016x}" for name in row)
        yield f"RIP={r.rip:016x} RFL={r.rflags:08x} {state_of}"
    else:
        for row in ROWS32:
            yield " ".join(f"E{name[1:].upper()}={getattr(r, name) & 0xFFFF_FFFF:08x}" for name in row)
        yield f"EIP={r.rip & 0xFFFF_FFFF:08x} EFL={r.rflags:08x} {state_of}"
    width = 16 if code64 else 8
    for name in ("es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr"):
        yield _segment("LDT" if name == "ldtr" else name.upper(), getattr(r, name), r, long, width)
    for name, table in (("GDT", r.gdtr), ("IDT", r.idtr)):
        yield _table(name, table, width)
    wide = 16 if long else 8
    yield f"CR0={r.cr0:08x} CR2={r.cr2:0{wide}x} CR3={r.cr3:0{wide}x} CR4={r.cr4:08x}"
    yield " ".join(f"DR{n}={value:016x}" for n, value in enumerate(state.debug)) + " "
    yield f"DR6={state.dr6:016x} DR7={state.dr7:016x}"
    yield f"EFER={r.efer:016x}"
    yield from _floating_point(state.fxsave or EMPTY_FXSAVE, 16 if code64 else 8)


def _privilege(r: CpuState) -> int:
    if not r.cr0 & Cr0.PE:
        return 0
    return 3 if r.rflags & Eflags.VM else r.ss.dpl


def _segment(name: str, segment: Segment, r: CpuState, long: bool, width: int) -> str:
    attributes = segment.descriptor() >> 32 & 0x00FF_FF00
    text = f"{name:<3}={segment.selector:04x} {segment.base:0{width}x} {segment.limit & 0xFFFF_FFFF:08x} {attributes:08x}"
    if not r.cr0 & Cr0.PE or not segment.p:
        return text
    text += f" DPL={segment.dpl} "
    if not segment.s:
        return text + (SYSTEM64 if long else SYSTEM32).get(segment.type, "Reserved")
    if segment.type & 8:
        kind = "CS64" if segment.l else "CS32" if segment.db else "CS16"
        letters = ("C" if segment.type & 4 else "-") + ("R" if segment.type & 2 else "-")
    else:
        kind = "DS  " if segment.db or long else "DS16"
        letters = ("E" if segment.type & 4 else "-") + ("W" if segment.type & 2 else "-")
    return f"{text}{kind} [{letters}{'A' if segment.type & 1 else '-'}]"


def _table(name: str, table: TableRegister, width: int) -> str:
    return f"{name}=     {table.base:0{width}x} {table.limit:08x}"


def _floating_point(image: bytes, vectors: int) -> Iterator[str]:
    def number(at: int, size: int) -> int:
        return int.from_bytes(image[at : at + size], "little")

    status = number(2, 2)
    top = status >> 11 & 7
    yield (f"FCW={number(0, 2):04x} FSW={status & ~0x3800:04x} [ST={top}] FTW={image[4]:02x} "
           f"MXCSR={number(MXCSR, 4):08x}")  # fmt: skip
    physical = [REGISTERS + 16 * (n - top & 7) for n in range(8)]
    yield from _pairs(f"FPR{n}={number(at, 8):016x} {number(at + 8, 2):04x}" for n, at in enumerate(physical))
    yield from _pairs(
        f"XMM{n:02d}={number(XMM + 16 * n + 8, 8):016x} {number(XMM + 16 * n, 8):016x}" for n in range(vectors)
    )


def _pairs(items: Iterator[str]) -> Iterator[str]:
    for item in items:
        yield f"{item} {next(items)}"
