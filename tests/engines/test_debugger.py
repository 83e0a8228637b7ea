"""Breakpoints, steps and watchpoints of the host's debugger, which the guest does not notice."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engines.assembler import BASE, Code, assemble
from xuni.engine.soft.plain import PlainVcpu
from xuni.engine.soft.vcpu import BREAKPOINTS, BaseVcpu, SoftVcpu
from xuni.exits import DebugCause, DebugControl, Debugged, Exit, Halt, Resume, Sliced, Watchpoint
from xuni.isa.x86.cpustate import protected_flat
from xuni.isa.x86.state import Gpr
from xuni.memory.guest import GuestMemory

COUNTER, TABLE = 0x20000, 0x20010
GUEST = f"""
.code32
    mov ecx, 5
again:
    call routine
after:
    loop again
    mov eax, dword ptr [{COUNTER}]
    mov ebx, dword ptr [{TABLE}]
    hlt
.fill 4093 - (. - start_of_text), 1, 0x90
.global start_of_text
routine:
    add dword ptr [{COUNTER}], 3
    mov byte ptr [{TABLE} + 2], cl
    ret
""".replace("\n.code32", "\n.code32\nstart_of_text:", 1)  # `routine` straddles two pages


@pytest.fixture(scope="module")
def code() -> Code:
    return assemble([GUEST])[0]


@pytest.fixture(params=[SoftVcpu, PlainVcpu])
def vcpu(request: pytest.FixtureRequest, code: Code) -> Iterator[BaseVcpu]:
    memory = GuestMemory(1 << 20)
    memory.write(BASE, code.data)
    made: BaseVcpu = request.param(memory)
    made.start(protected_flat(BASE, rsp=0x30000))
    yield made
    made.close()
    memory.close()


def stops(vcpu: BaseVcpu) -> list[Exit]:
    """All exits up to the halt."""
    found: list[Exit] = []
    while not found or not isinstance(found[-1], Halt):
        found.append(vcpu.run(Resume()))
        assert len(found) < 200
    return [found for found in found if not isinstance(found, Sliced)][:-1]


def test_a_breakpoint_stops_each_time_before_its_instruction(vcpu: BaseVcpu, code: Code) -> None:
    routine = code.labels["routine"]
    assert routine & 0xFFF == 0xFFD
    vcpu.debug(DebugControl(breakpoints=frozenset({routine})))
    for n in range(5):
        assert vcpu.run(Resume()) == Debugged(DebugCause.BREAKPOINT, routine)
        assert vcpu.save().registers.rip == routine
        assert vcpu.memory.read_u32(COUNTER) == 3 * n
    assert isinstance(vcpu.run(Resume()), Halt)
    assert vcpu.save().registers.rax == 15


def test_breakpoints_set_and_removed_in_code_that_has_run(vcpu: BaseVcpu, code: Code) -> None:
    after = code.labels["after"]
    vcpu.debug(DebugControl(breakpoints=frozenset({code.labels["again"]})))
    vcpu.run(Resume())
    vcpu.run(Resume())
    vcpu.debug(DebugControl(breakpoints=frozenset({after})))
    assert vcpu.run(Resume()) == Debugged(DebugCause.BREAKPOINT, after)
    vcpu.debug(DebugControl())
    assert isinstance(vcpu.run(Resume()), Halt)
    assert vcpu.save().registers.rax == 15


def test_a_breakpoint_elsewhere_at_the_same_offset_is_none(vcpu: BaseVcpu, code: Code) -> None:
    vcpu.debug(DebugControl(breakpoints=frozenset({code.labels["after"] + 0x2000, code.labels["again"] + 1})))
    assert stops(vcpu) == []
    assert vcpu.save().registers.rax == 15


def test_steps_are_one_instruction_each(vcpu: BaseVcpu, code: Code) -> None:
    vcpu.debug(DebugControl(step=True))
    rips = []
    for _ in range(6):
        stop = vcpu.run(Resume())
        assert isinstance(stop, Debugged) and stop.cause is DebugCause.STEP
        rips.append(vcpu.save().registers.rip)
    routine = code.labels["routine"]
    assert rips[:3] == [code.labels["again"], routine, routine + 7]
    assert rips[-2:] == [code.labels["after"], code.labels["again"]]


def test_a_watchpoint_stops_after_the_write(vcpu: BaseVcpu, code: Code) -> None:
    vcpu.debug(DebugControl(watchpoints=(Watchpoint(TABLE, 4),)))
    for n in range(5):
        assert vcpu.run(Resume()) == Debugged(DebugCause.WATCHPOINT, TABLE)
        assert vcpu.memory.read_u32(COUNTER) == 3 * (n + 1)
        assert vcpu.memory.read_u8(TABLE + 2) == 5 - n
    assert isinstance(vcpu.run(Resume()), Halt)  # the read at the end is not watched


def test_a_watchpoint_on_reads_too(vcpu: BaseVcpu, code: Code) -> None:
    vcpu.debug(DebugControl(watchpoints=(Watchpoint(TABLE, 2, writes_only=False), Watchpoint(COUNTER + 3, 1))))
    found = stops(vcpu)
    assert found == [Debugged(DebugCause.WATCHPOINT, COUNTER + 3)] * 5 + [Debugged(DebugCause.WATCHPOINT, TABLE)]
    assert int(vcpu.state.gpr[Gpr.RAX]) == 15


def test_too_much_is_refused(vcpu: BaseVcpu) -> None:
    with pytest.raises(ValueError, match="at most 4096 breakpoints and 4 watchpoints"):
        vcpu.debug(DebugControl(breakpoints=frozenset(range(BREAKPOINTS + 1))))
    with pytest.raises(ValueError, match="4 watchpoints"):
        vcpu.debug(DebugControl(watchpoints=(Watchpoint(0, 1),) * 5))
