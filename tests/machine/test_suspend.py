"""Suspension to memory: what keeps its power, what wakes, and where the guest goes on."""

from __future__ import annotations

import pytest

from xuni.boot.layout import FACS
from xuni.devices.apic.state import Reg
from xuni.exits import MmioWrite, PortIn, PortOut, Shutdown
from xuni.isa.x86.cpustate import CpuState, protected_flat, real_mode
from xuni.machine.pc import Pc, PcConfig
from xuni.machine.stopped import Halted, PowerOff, Reset, TripleFault

from .conftest import MakePc, Script, ScriptedCpu

ENABLE, CONTROL, RTC_EVENT, SLEEP = 0x602, 0x604, 1 << 10, 1 << 10 | 1 << 13
SECOND = 1_000_000_000


def cmos(cell: int, value: int) -> Script:
    yield PortOut(0x70, 1, cell)
    yield PortOut(0x71, 1, value)


def sleep_until_the_alarm() -> Script:
    yield from cmos(0x0E, 0x5A)  # a cell that nothing else uses
    for cell in (1, 3, 5):  # the alarm: any second, any minute, any hour
        yield from cmos(cell, 0xC0)
    yield from cmos(0x0B, 0x22)
    yield PortOut(ENABLE, 2, RTC_EVENT)
    yield PortOut(0x21, 1, 0xAA)
    yield MmioWrite(0xFEE00000 | Reg.SVR << 4, 4, 0x1FF)
    yield PortOut(CONTROL, 2, SLEEP)


def wait(cpu: ScriptedCpu) -> Script:
    yield Shutdown("it waits for a start-up IPI")


@pytest.mark.parametrize(("real", "flat", "state"), [
    (0x1000, 0, real_mode(0x100, 0)), (0x9A123, 0x5000, real_mode(0x9A12, 3)), (0, 0x123456, protected_flat(0x123456)),
])
def test_a_guest_goes_on_at_its_waking_vector(pc: MakePc, real: int, flat: int, state: CpuState) -> None:
    def guest(cpu: ScriptedCpu) -> Script:
        yield from sleep_until_the_alarm()
        status = yield PortIn(0x600, 2)
        mask = yield PortIn(0x21, 1)
        yield PortOut(0x70, 1, 0x0E)
        kept = yield PortIn(0x71, 1)
        cpu.log.append((status, mask, kept))
        yield Shutdown("awake")

    machine = pc(guest, wait)
    machine.memory.write_u32(FACS + 12, real)
    machine.memory.write_u64(FACS + 24, flat)
    machine.memory.write(0x5000, b"kept")
    assert machine.run(10) == TripleFault("awake")
    log = machine.vcpus[0].log  # type: ignore[attr-defined]
    status, mask, kept = (reply.value for reply in log[-1])
    assert (status & 0x8400, mask, kept) == (0x8400, 0xFA, 0x5A), "WAK_STS and RTC_STS; the PIC as firmware leaves it; CMOS"
    assert [entry for entry in log if isinstance(entry, CpuState)] == [state]
    assert "init" in log and "init" in machine.vcpus[1].log  # type: ignore[attr-defined]
    assert machine.memory.read(0x5000, 4) == b"kept"
    assert 0 < machine.bus.timers.now() <= SECOND, "the alarm came at the next second"


def test_without_a_waking_vector_the_guest_begins_anew(pc: MakePc) -> None:
    def guest(cpu: ScriptedCpu) -> Script:
        yield from sleep_until_the_alarm()
        yield Shutdown("never")

    assert isinstance(pc(guest).run(10), Reset)


def asleep(cpu: ScriptedCpu) -> Script:
    yield PortOut(CONTROL, 2, SLEEP)
    yield Shutdown("awake")


def test_nothing_that_could_wake_it(pc: MakePc) -> None:
    assert pc(asleep).run() == Halted("it is suspended, and no timer is set that could wake it")


def test_the_power_button_and_a_stop_from_outside(pc: MakePc) -> None:
    def sleeping() -> Pc:
        machine = pc(asleep)
        machine.memory.write_u32(FACS + 12, 0x1000)
        machine.expects_input = True
        return machine

    machine = sleeping()
    machine.bus.timers.timer(machine.press_power_button).set(5)
    assert machine.run(10) == TripleFault("awake")
    machine = sleeping()
    machine.bus.timers.timer(lambda: machine.stop(PowerOff())).set(5)
    assert machine.run(10) == PowerOff()
    assert machine.asleep
    machine.bus.timers.timer(machine.press_power_button).set(machine.bus.timers.now() + 5)
    assert machine.run(10) == TripleFault("awake"), "another run goes on with the sleep"


def test_a_board_without_tables_has_no_vector(pc: MakePc) -> None:
    def guest(cpu: ScriptedCpu) -> Script:
        yield from sleep_until_the_alarm()
        yield Shutdown("never")

    machine = pc(guest, config=PcConfig(acpi_tables=False))
    machine.memory.write_u32(FACS + 12, 0x1000)
    assert isinstance(machine.run(10), Reset)
