"""One instruction's test: the state before it, the state after it, who can run it, and how two outcomes compare.

Everything here is plain data. `oracle.HostCpu` runs cases on the host's processor, a `Target` runs them on what is
being tested, `differences` tells where the two disagree.

The guest memory that a target must offer (linear addresses; everything else is not present):

    CODE    one page, readable and executable: the instruction, then UD2 bytes
    DATA    one page, readable and writable: zeros, its last WINDOW_SIZE bytes are `Case.memory`
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, IntFlag
from typing import Protocol

PAGE = 4096
CODE = 0x1000_8000
DATA = 0x1001_0000
WINDOW_SIZE = 1024
WINDOW = DATA + PAGE - WINDOW_SIZE
"""Linear address of `Case.memory`; the page after the window is not present, so that an access may straddle a fault."""
FS_BASE = 0x0FFF_0000
GS_BASE = 0x1000_F800
CODE_SIZE = 16

GPR_NAMES = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))


class Flag(IntFlag):
    """RFLAGS, SDM vol. 1, section 3.4.3."""

    CF, FIXED, PF, AF, ZF, SF, TF, IF = 1, 1 << 1, 1 << 2, 1 << 4, 1 << 6, 1 << 7, 1 << 8, 1 << 9
    DF, OF, NT, RF, AC, ID = 1 << 10, 1 << 11, 1 << 14, 1 << 16, 1 << 18, 1 << 21


SETTABLE = Flag.CF | Flag.PF | Flag.AF | Flag.ZF | Flag.SF | Flag.DF | Flag.OF
"""The flags that a case may choose; AC also, where a test of alignment asks for it."""
UNCOMPARED = Flag.TF | Flag.IF | Flag.RF
"""TF and RF belong to single stepping, IF to the host."""


class Mode(Enum):
    """The code segment a case runs in, always at CPL 3 with paging on."""

    LONG = 64
    PROTECTED_32 = 32
    """CS, DS, ES, SS are flat 4 GiB segments."""
    PROTECTED_16 = 16
    """CS is CODE, DS, ES and SS are DATA; each one page long by its limit, all with B/D = 0."""

    @property
    def code_base(self) -> int:
        return CODE if self is Mode.PROTECTED_16 else 0

    @property
    def data_base(self) -> int:
        return DATA if self is Mode.PROTECTED_16 else 0

    @property
    def rip(self) -> int:
        """The instruction pointer at which a case starts."""
        return CODE - self.code_base

    @property
    def window(self) -> int:
        """Offset of the window in the data segments."""
        return WINDOW - self.data_base

    @property
    def registers(self) -> int:
        """How many general registers the mode has."""
        return 16 if self is Mode.LONG else 8

    @property
    def register_mask(self) -> int:
        return (1 << 64) - 1 if self is Mode.LONG else (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Case:
    """The state before one instruction.

    `gpr` is in encoding order (rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 …); `fxsave` is a 512-byte FXSAVE64 image;
    `undefined` are the flags that the instruction leaves undefined; `name` says which encoding made the case.
    `unstored` are bits of the memory after the instruction that do not count: (offset, mask of that byte).
    `cr2_mask`: what of CR2 counts; in an operand of many bytes a processor may touch any of them first.
    `approximate`: results may differ in the last places (RCPPS, FSIN; SDM vol. 2 gives their error bounds).
    """

    code: bytes
    gpr: tuple[int, ...]
    rflags: int
    fxsave: bytes
    memory: bytes
    mode: Mode = Mode.LONG
    undefined: int = 0
    name: str = ""
    unstored: tuple[tuple[int, int], ...] = ()
    approximate: bool = False
    cr2_mask: int = (1 << 64) - 1

    def __post_init__(self) -> None:
        assert 0 < len(self.code) <= CODE_SIZE - 1 and len(self.gpr) == 16
        assert len(self.fxsave) == 512 and len(self.memory) == WINDOW_SIZE


@dataclass(frozen=True, slots=True)
class Outcome:
    """The state after one instruction. `vector` is None when it completed, else the exception's vector.

    `error_code` counts only for vectors that push one, `cr2` only for #PF. `undefined` is for a target that knows
    which flags it left undefined; the host reports none.
    """

    gpr: tuple[int, ...]
    rip: int
    rflags: int
    fxsave: bytes
    memory: bytes
    vector: int | None = None
    error_code: int = 0
    cr2: int = 0
    undefined: int = 0


class Target(Protocol):
    """What can be compared with the host's processor."""

    name: str

    def run(self, cases: Sequence[Case]) -> list[Outcome]:
        """Execute one instruction of each case (all iterations of a repeated one) and give the states after."""


PAGE_FAULT, SIMD_EXCEPTION = 14, 19
UE, PE = 1 << 4, 1 << 5
"""Underflow and inexact result in MXCSR; their mask bits are 7 places higher."""
PUSHES_ERROR_CODE = frozenset((8, 10, 11, 12, 13, PAGE_FAULT, 17))

# FXSAVE image, SDM vol. 1, table 10-2, without the last-instruction fields (vendors differ) and reserved bytes.
FXSAVE_PARTS = (
    ("fcw", 0, 2),
    ("fsw", 2, 4),
    ("ftw", 4, 5),
    ("mxcsr", 24, 28),
    *((f"st{n}", 32 + 16 * n, 42 + 16 * n) for n in range(8)),
    *((f"xmm{n}", 160 + 16 * n, 176 + 16 * n) for n in range(16)),
)


def differences(case: Case, expected: Outcome, actual: Outcome) -> list[str]:
    """Each line names a part of the state and its two values; no line: the outcomes agree."""
    found: list[str] = []

    def note(part: str, want: object, got: object) -> None:
        if want != got:
            show = [f"{value:#x}" if isinstance(value, int) else str(value) for value in (want, got)]
            found.append(f"{part}: expected {show[0]}, got {show[1]}")

    note("vector", expected.vector, actual.vector)
    if expected.vector == actual.vector and expected.vector is not None:
        if expected.vector in PUSHES_ERROR_CODE:
            note("error code", expected.error_code, actual.error_code)
        if expected.vector == PAGE_FAULT:
            note("cr2", expected.cr2 & case.cr2_mask, actual.cr2 & case.cr2_mask)
    width = case.mode.register_mask
    note("rip", expected.rip & width, actual.rip & width)
    for name, want, got in zip(GPR_NAMES[: case.mode.registers], expected.gpr, actual.gpr, strict=False):
        note(name, want & width, got & width)
    compared = ~(UNCOMPARED | case.undefined | actual.undefined) & 0xFFFF_FFFF
    if (expected.rflags ^ actual.rflags) & compared:
        flags = Flag((expected.rflags ^ actual.rflags) & compared)
        found.append(f"rflags: expected {expected.rflags:#x}, got {actual.rflags:#x}: {flags!r}")
    # After an unmasked underflow, whether the result is inexact is judged with an unbounded exponent.
    underflow = expected.vector == SIMD_EXCEPTION and expected.fxsave[24] & UE and not expected.fxsave[25] & UE >> 1
    if expected.fxsave != actual.fxsave:
        for name, start, end in FXSAVE_PARTS[: 12 + case.mode.registers]:
            want, got = (_number(outcome.fxsave[start:end]) for outcome in (expected, actual))
            if name == "mxcsr" and underflow:
                want, got = want & ~PE, got & ~PE
            if want != got and not (case.approximate and near(name, want, got)):
                note(name, want, got)
    if expected.memory != actual.memory:
        ignored = dict(case.unstored)
        pairs = enumerate(zip(expected.memory, actual.memory, strict=True))
        wrong = [at for at, (want, got) in pairs if (want ^ got) & ~ignored.get(at, 0)]
        if wrong:
            start, end = wrong[0], min(wrong[-1] + 1, wrong[0] + 32)
            note(f"memory[{start}:{end}]", expected.memory[start:end].hex(), actual.memory[start:end].hex())
    return found


C1 = 0x200
RELATIVE_ERROR = 1.5 * 2.0**-11
"""Of RCPPS and RSQRTPS: a processor is within 1.5 · 2^-12 of the truth, so two are within twice that of each other."""


def near(part: str, want: int, got: int) -> bool:
    """Whether two approximate results are both acceptable: x87 by 2 units in the last place, SSE singles by ratio."""
    if part == "fsw":
        return not (want ^ got) & ~C1
    if part.startswith("st"):
        return abs(want - got) <= 2
    if part.startswith("xmm"):
        lanes = [struct.unpack("<4f", value.to_bytes(16, "little")) for value in (want, got)]
        pairs = zip(*lanes, strict=True)
        return all(a == b or abs(a - b) <= RELATIVE_ERROR * abs(a) or (a != a and b != b) for a, b in pairs)
    return False


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")
