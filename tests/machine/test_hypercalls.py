from __future__ import annotations

import pytest

from xuni.devices.apic.state import Reg
from xuni.exits import Data, Hypercall, Shutdown
from xuni.machine.hypercalls import INVALID, NO_SUCH_CALL, Call

from .conftest import MakePc, Script, ScriptedCpu

NMI = 4 << 8


@pytest.mark.parametrize(("call", "arguments", "size", "answer", "vectors"), [
    (Call.SEND_IPI, (0b111, 0, 0, 0x44), 8, 3, {0: 0x44, 1: 0x44, 2: 0x44}),
    (Call.SEND_IPI, (0b101, 0, 1, 0x44), 8, 1, {1: 0x44}),  # the bitmap begins at APIC id 1; there is no 3
    (Call.SEND_IPI, (0xFFFFFFFF, 0, 0xFFFFFFFF, 0), 8, 0, {}),
    (Call.SEND_IPI, (0, 1, 0, 0x44), 4, 0, {}),  # the second word's first bit is id 32
    (Call.SEND_IPI, (2**64 - 1, 2**64 - 1, 2**64 - 2**32, 0x44), 8, 3, {0: 0x44, 1: 0x44, 2: 0x44}),  # an id has 32 bits
    (Call.SEND_IPI, (1, 0, 0, 1 << 11 | 0x44), 8, INVALID, {}),  # logical
    (Call.SEND_IPI, (1, 0, 0, 3 << 18 | 0x44), 8, INVALID, {}),  # a shorthand
    (Call.SEND_IPI, (1, 0, 0, 5 << 8), 8, INVALID, {}),  # INIT
    (Call.VAPIC_POLL_IRQ, (0, 0, 0, 0), 8, 0, {}),
    (99, (0, 0, 0, 0), 8, NO_SUCH_CALL, {}),
])
def test_calls(pc: MakePc, call: int, arguments: tuple[int, ...], size: int, answer: int, vectors: dict[int, int]) -> None:
    def caller(cpu: ScriptedCpu) -> Script:
        assert (yield Hypercall(call, arguments, size)) == Data(answer)
        yield Shutdown("done")

    def idle(cpu: ScriptedCpu) -> Script:
        raise AssertionError("it waits for a start-up IPI")
        yield Shutdown("never")

    machine = pc(caller, idle, idle)
    for apic in machine.local_apics:
        apic.write(Reg.SVR << 4, 4, 0x1FF)
    machine.run(10)
    assert {apic.id: apic.state.irr.bit_length() - 1 for apic in machine.local_apics if apic.state.irr} == vectors


def test_an_nmi_for_another_processor(pc: MakePc) -> None:
    def caller(cpu: ScriptedCpu) -> Script:
        assert (yield Hypercall(Call.SEND_IPI, (2, 0, 0, NMI), 8)) == Data(1)
        yield Shutdown("done")

    def idle(cpu: ScriptedCpu) -> Script:
        yield Shutdown("woken")

    machine = pc(caller, idle)
    machine.run(10)
    second = machine.vcpus[1]
    assert isinstance(second, ScriptedCpu) and "nmi" in second.log
