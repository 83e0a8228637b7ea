"""The loop between a virtual CPU and the board: exits, replies, interrupts, sleep, and every way to stop."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Event

import pytest

from xuni.devices.test_ports import DebugConsoleConfig, DebugExitConfig
from xuni.exits import (
    Data,
    EngineFailure,
    Halt,
    Inject,
    InterruptWindow,
    MmioRead,
    MmioWrite,
    MsrRead,
    MsrWrite,
    PortIn,
    PortOut,
    Refuse,
    Resume,
    Shutdown,
    Sliced,
    TprRead,
    TprWrite,
)
from xuni.machine.machine import BEAT
from xuni.machine.pc import PcConfig
from xuni.machine.stopped import (
    DebugExit,
    EngineFailed,
    ExitStatus,
    Halted,
    Interrupted,
    PowerOff,
    Reset,
    Timeout,
    TripleFault,
)

LAPIC = 0xFEE0_0000


def power_off():
    """Bochs' port, so that a test need not know about ACPI."""
    for letter in b"Shutdown":
        yield PortOut(0x8900, 1, letter)


@dataclass
class Notebook:
    """A device that remembers."""

    accesses: list[tuple[object, ...]] = field(default_factory=list)

    def read(self, offset: int, size: int) -> int:
        self.accesses.append(("read", offset, size))
        return 0x1234_5678_9ABC

    def write(self, offset: int, size: int, value: int) -> None:
        self.accesses.append(("write", offset, size, value))


def test_accesses_reach_devices_and_their_answers_come_back(pc):
    replies = []

    def script(cpu):
        replies.append((yield PortOut(0x4000, 2, 0xBEEF)))
        replies.append((yield PortIn(0x4001, 4)))
        replies.append((yield PortIn(0x5000, 2)))
        replies.append((yield MmioWrite(0xD000_0010, 8, 1 << 40)))
        replies.append((yield MmioRead(0xD000_0004, 1)))
        replies.append((yield MmioRead(0xDEAD_0000, 4)))
        yield from power_off()

    machine, ports, mmio = pc(script), Notebook(), Notebook()
    machine.attach_port(ports, 0x4000, 8)
    machine.attach_mmio(mmio, 0xD000_0000, 0x1000)
    assert machine.run() == PowerOff()
    assert ports.accesses == [("write", 0, 2, 0xBEEF), ("read", 1, 4)]
    assert mmio.accesses == [("write", 0x10, 8, 1 << 40), ("read", 4, 1)]
    assert replies == [Resume(), Data(0x5678_9ABC), Data(0xFFFF), Resume(), Data(0xBC), Data(0xFFFF_FFFF)]


def test_a_device_must_not_cover_memory_or_another_device(pc):
    machine = pc(lambda cpu: power_off())
    with pytest.raises(ValueError, match="overlaps memory at 0x0-0xfffff"):
        machine.attach_mmio(Notebook(), 0xFF000, 0x2000)
    with pytest.raises(ValueError, match="port 0x40 already belongs to Pit8254"):
        machine.attach_port(Notebook(), 0x3F, 2)


def test_the_local_apic_is_reached_by_page_msr_and_cr8_and_refuses_with_gp(pc):
    replies = []

    def script(cpu):
        replies.append((yield MmioRead(LAPIC + 0x30, 4)))
        replies.append((yield TprWrite(5)))
        replies.append((yield MmioRead(LAPIC + 0x80, 4)))
        replies.append((yield TprRead()))
        replies.append((yield MsrRead(0x802)))
        replies.append((yield MsrWrite(0x1B, LAPIC | 0xD00)))
        replies.append((yield MsrRead(0x808)))
        replies.append((yield MmioRead(LAPIC + 0x30, 4)))
        replies.append((yield MsrWrite(0x802, 1)))
        yield from power_off()

    assert pc(script).run() == PowerOff()
    assert replies == [
        Data(0x50014), Resume(), Data(0x50), Data(5), Refuse(), Resume(), Data(0x50), Data(0xFFFF_FFFF), Refuse()
    ]  # fmt: skip


def test_a_timer_interrupt_wakes_a_halted_guest_and_is_injected(pc):
    seen = []

    def script(cpu):
        yield MmioWrite(LAPIC + 0xF0, 4, 0x1FF)
        yield MmioWrite(LAPIC + 0x3E0, 4, 0b1011)
        yield MmioWrite(LAPIC + 0x320, 4, 0x40)
        yield MmioWrite(LAPIC + 0x380, 4, 1_000_000)
        seen.append(cpu.deadline)
        yield Halt()
        seen.extend([cpu.clock, cpu.pin])
        seen.append((yield InterruptWindow()))
        seen.append(cpu.pin)
        yield MmioWrite(LAPIC + 0xB0, 4, 0)
        yield from power_off()

    assert pc(script).run() == PowerOff()
    assert seen == [1_000_000, 1_000_000, True, Inject(0x40), False]


def test_timers_run_at_a_slice_and_between_other_exits(pc):
    pins = []

    def script(cpu):
        yield MmioWrite(LAPIC + 0xF0, 4, 0x1FF)
        yield MmioWrite(LAPIC + 0x3E0, 4, 0b1011)
        for kind in (Sliced(), PortIn(0x80, 1)):
            yield MmioWrite(LAPIC + 0x320, 4, 0x40)
            yield MmioWrite(LAPIC + 0x380, 4, 5000)
            cpu.clock += 4999
            yield kind
            pins.append(cpu.pin)
            cpu.clock += 1
            yield kind
            pins.append(cpu.pin)
            yield InterruptWindow()
            yield MmioWrite(LAPIC + 0xB0, 4, 0)
        yield from power_off()

    assert pc(script).run() == PowerOff()
    assert pins == [False, True, False, True]


def test_an_interrupt_window_without_an_interrupt_resumes(pc):
    replies = []

    def script(cpu):
        replies.append((yield InterruptWindow()))
        yield from power_off()

    pc(script).run()
    assert replies == [Resume()]


def test_legacy_firmware_state_ticks_through_the_legacy_controller(pc):
    vectors = []

    def script(cpu):
        for _ in range(3):
            yield Halt()
            vectors.append((yield InterruptWindow()))
            yield PortOut(0x20, 1, 0x20)
        yield from power_off()

    machine = pc(script)
    machine.legacy_firmware_state()
    assert machine.run() == PowerOff()
    assert vectors == [Inject(8)] * 3
    assert machine.vcpus[0].now() == pytest.approx(3 * 65536 / 1_193_182 * 1e9, abs=3)


@pytest.mark.parametrize(
    ("exits", "reason", "status"),
    [
        ([PortOut(0xF4, 4, 77)], DebugExit(77), 155),
        ([PortOut(0xF4, 1, 0)], DebugExit(0), 1),
        ([PortOut(0x604, 2, 0x2000)], PowerOff(), 0),
        ([PortOut(0xCF9, 1, 6)], Reset(), 0),
        ([PortOut(0x64, 1, 0xFE)], Reset(), 0),
        ([PortOut(0x92, 1, 1)], Reset(), 0),
        ([Shutdown("#DF at 0x10")], TripleFault("#DF at 0x10"), 125),
        ([EngineFailure("no more")], EngineFailed("no more"), 122),
    ],
)
def test_every_way_in_which_a_guest_ends(pc, exits, reason, status):
    def script(cpu):
        yield from exits
        pytest.fail("the machine went on")

    machine = pc(script, config=PcConfig(debug_exit=DebugExitConfig()))
    stopped = machine.run()
    assert stopped == reason
    assert stopped.exit_status == status
    assert str(stopped)


def test_no_exit_status_of_ours_can_be_a_debug_exit_status_of_zero_and_names_are_unique():
    values = [status.value for status in ExitStatus]
    assert len(set(values)) == len(values)


def test_a_timeout_stops_a_guest_that_runs_and_one_that_sleeps_and_both_can_go_on(pc):
    def script(cpu):
        while cpu.clock < 2_000_000_000:
            cpu.clock = min(cpu.deadline, 2_000_000_000)
            yield Sliced()
        yield MmioWrite(LAPIC + 0xF0, 4, 0x1FF)
        yield Halt()
        yield from power_off()

    machine = pc(script)
    machine.expects_input = True
    assert machine.run(timeout=1.5) == Timeout(1.5)
    assert machine.vcpus[0].now() == 1_500_000_000
    assert machine.run(timeout=3) == Timeout(3)
    assert machine.vcpus[0].now() == 4_500_000_000
    assert Timeout(3).exit_status == 124


def test_a_stopped_run_keeps_the_answer_to_its_last_exit(pc):
    replies = []

    def script(cpu):
        replies.append((yield PortIn(0x4000, 1)))
        yield from power_off()

    machine = pc(script)

    class Stopper(Notebook):
        def read(self, offset: int, size: int) -> int:
            machine.interrupt()
            return 0x42

    machine.attach_port(Stopper(), 0x4000, 1)
    assert machine.run() == Interrupted()
    assert replies == []
    assert machine.run() == PowerOff()
    assert replies == [Data(0x42)]


def test_the_first_reason_to_stop_wins(pc):
    machine = pc(lambda cpu: iter(()))
    machine.stop(PowerOff())
    machine.interrupt()
    assert machine.stopped == PowerOff()


def test_halting_with_interrupts_disabled_stops_with_a_reason(pc):
    def script(cpu):
        yield PortOut(0x43, 1, 0x34)
        yield PortOut(0x40, 1, 0)
        yield PortOut(0x40, 1, 0)
        while True:
            yield Halt()

    machine = pc(script)
    machine.expects_input = True
    machine.pic.initialize(8, 0x70, masks=(0xFE, 0xFF))
    machine.local_apics[0].write(0xF0, 4, 0x1FF)
    machine.local_apics[0].write(0x350, 4, 0x700)
    stopped = machine.run()
    assert isinstance(stopped, Halted)
    assert "interrupts are disabled" in str(stopped)
    assert stopped.exit_status == 123


def test_halting_with_nothing_to_wait_for_stops_with_a_reason(pc):
    def script(cpu):
        yield Halt()

    stopped = pc(script).run()
    assert isinstance(stopped, Halted)
    assert "no timer is set, and no input can arrive" in str(stopped)


def test_a_request_that_came_just_before_the_halt_is_taken(pc):
    def script(cpu):
        yield MmioWrite(LAPIC + 0xF0, 4, 0x1FF)
        yield MmioWrite(LAPIC + 0x300, 4, 0x40000 | 0x55)
        for _ in range(2):
            yield Halt()
            vector = yield InterruptWindow()
            assert vector == Inject(0x55)
            yield MmioWrite(LAPIC + 0xB0, 4, 0)
            yield MmioWrite(LAPIC + 0x300, 4, 0x40000 | 0x55)
        yield from power_off()

    assert pc(script).run() == PowerOff()


def test_output_goes_out_by_lines_when_idle_and_at_the_end(pc):
    out = []

    def script(cpu):
        for byte in b"one\ntwo":
            yield PortOut(0x3F8, 1, byte)
        out.append("halt")
        yield MmioWrite(LAPIC + 0xF0, 4, 0x1FF)
        yield MmioWrite(LAPIC + 0x320, 4, 0x40)
        yield MmioWrite(LAPIC + 0x380, 4, 5000)
        yield Halt()
        yield PortOut(0x3F8, 1, ord("3"))
        cpu.clock += BEAT
        yield Sliced()
        out.append("slice")
        yield PortOut(0xE9, 1, ord("4"))
        yield from power_off()

    config = PcConfig(debug_console=DebugConsoleConfig())
    assert pc(script, config=config, outputs=(out.append,)).run() == PowerOff()
    assert out == [b"one\n", "halt", b"two", b"3", "slice", b"4"]


def test_input_waits_until_the_guest_listens(pc):
    received = bytearray()

    def script(cpu):
        yield PortOut(0x3FA, 1, 0x07)  # a driver empties the receiver ...
        yield PortOut(0x3F9, 1, 0x01)  # ... before it listens
        cpu.clock += BEAT
        yield Sliced()
        while len(received) < 40:
            status = yield PortIn(0x3FD, 1)
            assert status.value & 1
            byte = yield PortIn(0x3F8, 1)
            received.append(byte.value)
        yield from power_off()

    machine = pc(script)
    with machine.bus.lock:
        machine.consoles[0].feed(bytes(range(40)))
    assert machine.uarts[0].state.rx.maxlen is None and not machine.uarts[0].state.rx
    assert machine.run() == PowerOff()
    assert received == bytes(range(40))


def test_a_reset_reboots_where_a_loader_knows_how(pc):
    boots = []

    def script(cpu):
        yield PortOut(0x21, 1, 0x5A)
        yield PortOut(0xCF9, 1, 6)
        boots.append((yield PortIn(0x21, 1)))
        yield from power_off()

    machine = pc(script)

    machine.reboot = lambda: boots.append("reboot")
    assert machine.run() == PowerOff()
    assert boots == ["reboot", Data(0)]
    assert machine.vcpus[0].log == ["init"]


def test_other_processors_wait_for_their_start_and_answer_with_interrupts(pc):
    awake = Event()

    def first(cpu):
        yield MmioWrite(LAPIC + 0xF0, 4, 0x1FF)
        yield MmioWrite(LAPIC + 0x300, 4, 0xC4500)  # INIT to all others
        yield MmioWrite(LAPIC + 0x300, 4, 0xC4609)  # start-up at 0x9000
        yield Halt()
        assert (yield InterruptWindow()) == Inject(0x77)
        yield from power_off()

    def second(cpu):
        assert cpu.started == 9
        awake.set()
        yield MmioWrite(LAPIC + 0xF0, 4, 0x1FF)
        ids = yield MmioRead(LAPIC + 0x20, 4)
        assert ids == Data(1 << 24)
        yield MmioWrite(LAPIC + 0x310, 4, 0)
        yield MmioWrite(LAPIC + 0x300, 4, 0x77)
        while True:
            yield Halt()

    machine = pc(first, second)
    assert machine.run() == PowerOff()
    assert awake.is_set()
    assert machine.vcpus[1].log == ["init", ("startup", 9)]


def test_a_failure_of_ours_in_another_processor_comes_out_of_run(pc):
    def first(cpu):
        yield MmioWrite(LAPIC + 0x300, 4, 0xC4609)
        yield Halt()

    def second(cpu):
        yield PortIn(0x4000, 1)

    class Broken(Notebook):
        def read(self, offset: int, size: int) -> int:
            raise ZeroDivisionError

    machine = pc(first, second)
    machine.attach_port(Broken(), 0x4000, 1)
    with pytest.raises(ZeroDivisionError):
        machine.run()
