"""Accesses that cross from one page into another.

The host has one page of data only. But a segment's base may move the target's window so that a page ends inside an
operand, while all offsets, and so the outcome, stay the same: in 64-bit mode with an FS prefix before the instruction,
elsewhere with the bases of DS, ES and SS.
"""
# mypy: disable-error-code="unreachable, arg-type, assignment, call-overload"
# iced-x86's stubs call its constants enumerations; they are ints, and are used as such here.

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from random import Random

from iced_x86 import Code, Decoder, FlowControl, InstructionInfoFactory, MemorySizeExt, OpKind, Register, RegisterExt

from xuni.isa.x86.state import Seg, State

from .case import DATA, PAGE, WINDOW_SIZE, Case, Mode, Outcome
from .engine import DATA_FRAME, TABLE, Path, SoftTarget
from .generate import GPR_OF

ALIGNED = re.compile(r" (Wx|Mx|Mdq)\b|FXSAVE|FXRSTOR|XSAVE|XRSTOR")
"""In the name of a declared encoding: its operand must be aligned."""
SECOND_FRAME = 0x1_4000
FS_PREFIX = b"\x64"
SEG_BASE = State.offset_of("seg_base") // 8
SEGMENT_PREFIXES = frozenset((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65))


@dataclass(frozen=True, slots=True)
class Crossing:
    """A case, and by how many bytes its window must move so that a page ends inside the operand."""

    case: Case
    shift: int

    @property
    def code(self) -> bytes:
        return (FS_PREFIX if self.case.mode is Mode.LONG else b"") + self.case.code


def crossings(cases: Iterable[Case], random: Random) -> Iterator[Crossing]:
    """The cases whose memory operand can cross into another page; an aligned operand cannot."""
    information = InstructionInfoFactory()
    for case in cases:
        instruction = Decoder(case.mode.value, case.code, ip=case.mode.rip).decode()
        if OpKind.MEMORY not in [instruction.op_kind(index) for index in range(instruction.op_count)]:
            continue
        size = MemorySizeExt.size(instruction.memory_size)
        if size < 2 or instruction.is_ip_rel_memory_operand or instruction.flow_control != FlowControl.NEXT:
            continue
        if instruction.is_stack_instruction or ALIGNED.search(case.name) or instruction.code == Code.CMPXCHG16B_M128:
            continue
        if set(case.code) & SEGMENT_PREFIXES or len(case.code) > 14:
            continue
        for access in information.info(instruction).used_memory():
            address = case.mode.data_base + access.displacement + _value(case, access.base)
            address += _value(case, access.index) * access.scale
            yield Crossing(case, -(address + random.randrange(1, size)) % PAGE)


def _value(case: Case, register: int) -> int:
    if register == Register.NONE:
        return 0
    return case.gpr[GPR_OF[register]] & ((1 << 8 * RegisterExt.info(register).size) - 1)


class CrossingTarget(SoftTarget):
    """Runs crossings: two pages hold the window, and their frames are not neighbours."""

    def __init__(self, path: Path = Path.WARM) -> None:
        super().__init__(path)
        self.memory.write_u64(TABLE + 8 * ((DATA >> 12 & 511) + 1), SECOND_FRAME | 7)
        self._shift = 0

    def run_crossing(self, crossing: Crossing) -> Outcome:
        """The outcome as the case itself has it."""
        case, self._shift = crossing.case, crossing.shift
        outcome = self.run_code(case, crossing.code)
        added = len(crossing.code) - len(case.code)
        return replace(outcome, rip=outcome.rip - added) if outcome.vector is None else outcome

    def _prepare(self, case: Case) -> None:
        segments = (Seg.FS,) if case.mode is Mode.LONG else (Seg.DS, Seg.ES, Seg.SS)
        for segment in segments:
            self._words[SEG_BASE + segment] = case.mode.data_base + self._shift

    def _pieces(self) -> list[tuple[int, int, int]]:
        """(start in the window, end, guest-physical address of the start)."""
        start = PAGE - WINDOW_SIZE + self._shift
        split = min(max(PAGE - start, 0), WINDOW_SIZE)
        second = SECOND_FRAME + max(start - PAGE, 0)
        return [(0, split, DATA_FRAME + start), (split, WINDOW_SIZE, second)]

    def _put_window(self, data: bytes) -> None:
        for start, end, place in self._pieces():
            self._guest[place : place + end - start] = data[start:end]

    def _window(self) -> bytes:
        return b"".join(bytes(self._guest[place : place + end - start]) for start, end, place in self._pieces())
