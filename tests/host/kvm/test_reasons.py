"""What the run page says, as types."""

from __future__ import annotations

import pytest

from xuni.host.kvm import reasons
from xuni.host.kvm.reasons import ExitReason, reason
from xuni.host.kvm.structures import Run


def page(number: int, **fields: object) -> Run:
    run = Run(exit_reason=number)
    for path, value in fields.items():
        *parents, name = path.split("__")
        place = run.why
        for parent in parents:
            place = getattr(place, parent)
        setattr(place, name, value)
    return run


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (page(ExitReason.IO, io__direction=1, io__size=2, io__port=0x3F8, io__count=3, io__data_offset=4096),
         reasons.Io(True, 2, 0x3F8, 3, 4096)),
        (page(ExitReason.MMIO, mmio__phys_addr=0xFEE00080, mmio__len=4, mmio__is_write=1),
         reasons.Mmio(0xFEE00080, bytes(4), True)),
        (page(ExitReason.X86_WRMSR, msr__index=0x1B, msr__data=5, msr__reason=4), reasons.Wrmsr(0x1B, 5, 4)),
        (page(ExitReason.X86_RDMSR, msr__index=0x1B, msr__reason=4), reasons.Rdmsr(0x1B, 4)),
        (page(ExitReason.INTERNAL_ERROR, internal__suberror=3, internal__ndata=2), reasons.InternalError(3, (0, 0))),
        (page(ExitReason.DEBUG, debug__exception=1, debug__pc=0x1000, debug__dr6=0x4000),
         reasons.Debug(1, 0x1000, 0x4000, 0)),
        (page(ExitReason.FAIL_ENTRY, fail_entry__hardware_entry_failure_reason=0x80000021),
         reasons.FailEntry(0x80000021, 0)),
        (page(ExitReason.HLT), reasons.Hlt()),
        (page(ExitReason.SHUTDOWN), reasons.Shutdown()),
        (page(ExitReason.MEMORY_FAULT, memory_fault__gpa=0x5000, memory_fault__size=0x1000),
         reasons.MemoryFault(0, 0x5000, 0x1000)),
        (page(27), reasons.Other(27)),
        (page(13), reasons.Other(13)),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_reasons(run: Run, expected: reasons.Reason) -> None:
    assert reason(run) == expected


def test_an_instruction_that_kvm_gave_up_on() -> None:
    run = page(ExitReason.INTERNAL_ERROR, emulation_failure__suberror=1, emulation_failure__ndata=3,
               emulation_failure__flags=1, emulation_failure__insn_size=3)  # fmt: skip
    run.why.emulation_failure.insn_bytes[:3] = b"\x0f\x01\xc1"
    assert reason(run) == reasons.EmulationFailure(b"\x0f\x01\xc1")
    run.why.emulation_failure.insn_size = 200  # more than an instruction has
    assert len(reason(run).instruction) == 15  # type: ignore[union-attr]
    run.why.emulation_failure.flags = 0
    assert reason(run) == reasons.EmulationFailure(b"")


@pytest.mark.parametrize("number", [ExitReason.INTERNAL_ERROR, ExitReason.SYSTEM_EVENT])
def test_counts_are_bounded(number: ExitReason) -> None:
    run = page(number)
    run.why.internal.suberror = 2
    run.why.internal.ndata = 1 << 31
    assert len(reason(run).data) == 16  # type: ignore[union-attr]
