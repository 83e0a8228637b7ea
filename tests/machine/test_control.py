"""Control from outside: states, events, standing still, steps, resets and ends, with processors that follow scripts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from xuni.exits import (
    Data,
    DebugCause,
    DebugControl,
    Debugged,
    EngineFailure,
    Halt,
    MmioWrite,
    PortIn,
    PortOut,
    Shutdown,
    Sliced,
    Watchpoint,
)
from xuni.machine.control import Controller, EventName, Refused, RunState
from xuni.machine.pc import Pc
from xuni.machine.stopped import Interrupted, Paused, PowerOff, Quit, Reset, Stopped, Timeout, TripleFault

POWER_OFF = PortOut(0x604, 2, 0x2000)
RESET = PortOut(0xCF9, 1, 6)
LAPIC = 0xFEE0_0000
PATIENCE = 20


class Run:
    """A controller, its machine's thread, and what was heard of them."""

    def __init__(self, machine: Pc, paused: bool = False) -> None:
        self.machine = machine
        self.control = Controller(machine, paused=paused)
        self.events: list[tuple[EventName, dict[str, object]]] = []
        self.control.listeners.append(lambda event: self.events.append((event.name, dict(event.data))))
        self.result: Stopped | BaseException | None = None
        self._timeout: float | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self.result = self.control.run(self._timeout)
        except BaseException as error:
            self.result = error

    def start(self, timeout: float | None = None) -> None:
        self._timeout = timeout
        self.thread.start()

    def end(self) -> Stopped | BaseException | None:
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        return self.result

    @property
    def names(self) -> list[str]:
        return [name.value for name, _ in self.events]


@contextmanager
def controlled(machine: Pc, paused: bool = False, timeout: float | None = None) -> Iterator[Run]:
    run = Run(machine, paused)
    run.start(timeout)
    try:
        yield run
    finally:
        run.control.quit()
        run.end()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.001)


def spin(cpu):
    while True:
        time.sleep(0.0005)
        yield Sliced()


def test_it_waits_for_the_start_pauses_goes_on_and_quits(pc):
    with controlled(pc(spin), paused=True) as run:
        control = run.control
        assert control.state is RunState.PRELAUNCH
        control.resume()
        assert control.state is RunState.RUNNING
        control.resume()
        control.pause()
        assert control.state is RunState.PAUSED
        control.pause()
        control.resume()
        control.quit()
        assert run.end() == Quit()
    assert run.events == [
        (EventName.RESUME, {}), (EventName.STOP, {}), (EventName.RESUME, {}),
        (EventName.SHUTDOWN, {"guest": False, "reason": "host-qmp-quit"}),
    ]  # fmt: skip
    assert control.state is RunState.SHUTDOWN
    with pytest.raises(Refused, match="Resetting the Virtual Machine is required"):
        control.resume()
    control.pause()
    control.reset()
    with control.still():
        pass


def test_pausing_finishes_an_access_and_the_guest_clock_stands_still(pc):
    seen: list[object] = []

    def script(cpu):
        seen.append((yield PortIn(0x4000, 1)))
        while not paused.is_set():
            yield Sliced()
        yield POWER_OFF

    paused = threading.Event()

    class Pauser:
        def read(self, offset: int, size: int) -> int:
            threading.Thread(target=run.control.pause, daemon=True).start()
            machine.stop(Paused())  # as the pause does as soon as it gets the lock
            return 0x42

        def write(self, offset: int, size: int, value: int) -> None: ...

    machine = pc(script)
    machine.attach_port(Pauser(), 0x4000, 1)
    run = Run(machine)
    machine.vcpus[0].clock = 5000
    run.start()
    until(lambda: run.control.state is RunState.PAUSED)
    machine.vcpus[0].clock = 9000
    paused.set()
    run.control.resume()
    assert run.end() == PowerOff()
    assert seen == [Data(0x42)]
    assert ("clock", 5000) in machine.vcpus[0].log


def test_a_look_is_not_an_event_and_changes_no_state(pc):
    with controlled(pc(spin)) as run:
        for _ in range(20):
            with run.control.still():
                assert run.control.state is RunState.RUNNING
        run.control.pause()
        with run.control.still(), run.control.still():
            assert run.control.state is RunState.PAUSED
    assert run.names == ["STOP", "SHUTDOWN"]


def test_many_who_pause_and_resume_at_once_leave_a_machine_that_works(pc):
    with controlled(pc(spin, spin)) as run:

        def disturb() -> None:
            for _ in range(25):
                run.control.pause()
                with run.control.still():
                    pass
                run.control.resume()

        threads = [threading.Thread(target=disturb, daemon=True) for _ in range(4)]
        for thread in threads: thread.start()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        run.control.pause()
        assert run.control.state is RunState.PAUSED
    names = run.names
    assert names[-1] == "SHUTDOWN"
    assert all(name == ("RESUME" if at % 2 else "STOP") for at, name in enumerate(names[:-1]))


@pytest.mark.parametrize(
    ("exits", "stopped", "events"),
    [
        ([POWER_OFF], PowerOff(), [("SHUTDOWN", True, "guest-shutdown")]),
        ([RESET], Reset(), [("SHUTDOWN", True, "guest-reset")]),
        ([Shutdown("#DF")], TripleFault("#DF"),
         [("GUEST_PANICKED", "poweroff"), ("SHUTDOWN", True, "guest-panic")]),
    ],
)  # fmt: skip
def test_the_guest_ends_itself(pc, exits, stopped, events):
    def script(cpu):
        yield from exits

    run = Run(pc(script))
    run.start()
    assert run.end() == stopped
    assert [(name.value, *data.values()) for name, data in run.events] == events
    assert run.control.ended == stopped


def test_a_machine_that_ends_while_it_is_told_to_pause_ends(pc):
    def script(cpu):
        until(lambda: cpu.kicked)
        cpu.kicked = False  # the access was begun before the kick was seen
        yield POWER_OFF

    run = Run(pc(script))
    run.start()
    run.control.pause()
    assert run.control.state is RunState.SHUTDOWN
    assert run.end() == PowerOff()


def test_a_signal_ends_a_paused_machine(pc):
    with controlled(pc(spin)) as run:
        run.control.pause()
        run.control.interrupt()
        assert run.end() == Interrupted()
    assert run.events[-1] == (EventName.SHUTDOWN, {"guest": False, "reason": "host-signal"})


def test_a_failure_of_ours_frees_everyone_who_waits(pc):
    def script(cpu):
        until(lambda: cpu.kicked)
        raise ZeroDivisionError
        yield Sliced()

    run = Run(pc(script))
    run.start()
    run.control.pause()
    assert isinstance(run.end(), ZeroDivisionError)
    assert run.control.state is RunState.SHUTDOWN


def test_a_reset_from_outside_and_one_of_the_guest_load_it_again(pc):
    boots: list[int] = []

    def script(cpu):
        yield Sliced()
        yield RESET
        while len(boots) < 3:
            time.sleep(0.001)
            yield Sliced()
        yield POWER_OFF

    machine = pc(script)
    machine.reboot = lambda: boots.append(len(boots))
    with controlled(machine, paused=True) as run:
        run.control.reset()
        assert boots == [0] and run.control.state is RunState.PRELAUNCH
        run.control.resume()
        until(lambda: len(boots) == 2)
        run.control.reset()
        assert run.end() == PowerOff()
    data = [data for name, data in run.events if name is EventName.RESET]
    assert data == [
        {"guest": False, "reason": "host-qmp-system-reset"}, {"guest": True, "reason": "guest-reset"},
        {"guest": False, "reason": "host-qmp-system-reset"},
    ]  # fmt: skip


def test_a_reset_from_outside_ends_a_machine_that_does_not_reboot(pc):
    with controlled(pc(spin)) as run:
        run.control.reset()
        assert run.end() == Reset()
    assert run.events == [(EventName.SHUTDOWN, {"guest": False, "reason": "host-qmp-system-reset"})]


def test_a_reset_from_outside_may_load_the_guest_again_where_its_own_would_end_it(pc):
    machine = pc(spin)
    machine.reload = lambda: machine.vcpus[0].log.append("loaded")
    with controlled(machine) as run:
        run.control.reset()
        assert run.control.state is RunState.RUNNING
        assert "loaded" in machine.vcpus[0].log
        assert run.names == ["RESET"]


def test_the_power_button_reaches_acpi_and_an_nmi_its_pin(pc):
    machine = pc(spin)
    with controlled(machine) as run:
        run.control.press_power_button()
        assert machine.acpi.state.status & 0x100
        assert run.names == ["POWERDOWN"]
        machine.local_apics[0].write(0xF0, 4, 0x1FF)
        machine.local_apics[0].write(0x360, 4, 0x400)
        run.control.nmi()
        assert "nmi" in machine.vcpus[0].log


def test_a_timeout_counts_only_the_time_that_the_guest_has(pc):
    def script(cpu):
        while True:
            cpu.clock += 500_000_000
            time.sleep(0.001)
            yield Sliced()

    with controlled(pc(script), timeout=60) as run:
        for _ in range(5):
            run.control.pause()
            run.machine.vcpus[0].clock += 50_000_000_000
            run.machine.vcpus[0].set_now = lambda now: setattr(run.machine.vcpus[0], "clock", now)
            run.control.resume()
        assert run.end() == Timeout(60)
    assert 60e9 <= run.machine.vcpus[0].clock < 63e9


def test_breakpoints_steps_and_held_processors(pc):
    go = threading.Event()

    def first(cpu):
        yield MmioWrite(LAPIC + 0xF0, 4, 0x1FF)
        yield MmioWrite(LAPIC + 0x300, 4, 0xC4609)
        yield Debugged(DebugCause.BREAKPOINT, 0x1000)
        ran.append("first")
        yield Debugged(DebugCause.STEP, 0x1001)
        ran.append("first")
        yield from spin(cpu)

    def second(cpu):
        while True:
            ran.append("second")
            time.sleep(0.001)
            yield Sliced()

    ran: list[str] = []
    machine = pc(first, second)
    with controlled(machine, paused=True) as run:
        control = run.control
        control.set_debug(frozenset({0x1000}), (Watchpoint(0x2000, 4),))
        with pytest.raises(ValueError, match="4 watchpoints"):
            control.set_debug(frozenset(), (Watchpoint(0, 1),) * 5)
        assert control.breakpoints == {0x1000}
        control.resume()
        until(lambda: control.state is RunState.DEBUG)
        assert control.take_report() == (0, Debugged(DebugCause.BREAKPOINT, 0x1000))
        assert control.take_report() is None
        expected = DebugControl(False, frozenset({0x1000}), (Watchpoint(0x2000, 4),))
        for vcpu in machine.vcpus:
            controls = [control for control in vcpu.log if isinstance(control, DebugControl)]
            assert controls[0] == controls[-1] == expected

        ran.clear()
        machine.processors[0].set_interrupt(True)
        control.resume(step=[0], hold=[1])
        until(lambda: control.state is RunState.DEBUG)
        assert ran == ["first"]
        assert control.take_report() == (0, Debugged(DebugCause.STEP, 0x1001))
        steps = [entry.step for entry in machine.vcpus[0].log if isinstance(entry, DebugControl)]
        assert steps[-1] is True and machine.vcpus[0].pin
        control.resume()
        until(lambda: "second" in ran)
        go.set()
    assert run.names == ["RESUME", "STOP", "RESUME", "STOP", "RESUME", "SHUTDOWN"]


def test_a_step_keeps_interrupts_away_unless_the_processor_halts(pc):
    pins: list[bool] = []

    def script(cpu):
        pins.append(cpu.pin)
        yield Debugged(DebugCause.STEP, 1)
        pins.append(cpu.pin)
        yield Halt()
        pins.append(cpu.pin)
        yield Debugged(DebugCause.STEP, 2)

    machine = pc(script)
    machine.processors[0].set_interrupt(True)
    with controlled(machine, paused=True) as run:
        for count in (1, 2):
            run.control.resume(step=[0])
            until(lambda: run.control.state is RunState.DEBUG)
            assert run.control.take_report() == (0, Debugged(DebugCause.STEP, count))
    assert pins == [False, False, True]


def test_two_breakpoints_at_once_are_reported_one_after_the_other(pc):
    both = threading.Barrier(2)

    def first(cpu):
        yield MmioWrite(LAPIC + 0xF0, 4, 0x1FF)
        yield MmioWrite(LAPIC + 0x300, 4, 0xC4609)
        both.wait(PATIENCE)
        yield Debugged(DebugCause.BREAKPOINT, 0x1000)
        yield from spin(cpu)

    def second(cpu):
        both.wait(PATIENCE)
        yield Debugged(DebugCause.BREAKPOINT, 0x1000)
        yield from spin(cpu)

    with controlled(pc(first, second), paused=True) as run:
        control = run.control
        control.set_debug(frozenset({0x1000}), ())
        reported = set()
        for _ in range(2):
            control.resume()
            until(lambda: control.state is RunState.DEBUG)
            report = control.take_report()
            assert report is not None
            reported.add(report[0])
        assert reported == {0, 1}
        control.resume()
        assert control.state is RunState.RUNNING


@pytest.mark.parametrize(
    ("exit", "state"),
    [(Shutdown("#DF"), RunState.GUEST_PANICKED), (EngineFailure("no"), RunState.INTERNAL_ERROR)],
)
def test_a_crash_stands_still_for_a_debugger_until_it_lets_go(pc, exit, state):
    def script(cpu):
        yield exit
        yield from spin(cpu)

    machine = pc(script)
    machine.reboot = lambda: pytest.fail("it was loaded again")
    with controlled(machine, paused=True) as run:
        control = run.control
        control.debugger_attached = True
        control.resume()
        until(lambda: control.state is state)
        with pytest.raises(Refused):
            control.resume()
        with control.still():
            pass
        control.let_end()
        assert run.end() == control.ended
    assert run.names[:2] == (["RESUME", "GUEST_PANICKED"] if state is RunState.GUEST_PANICKED else ["RESUME", "STOP"])
    assert run.names[-1] == "SHUTDOWN"


def test_a_reset_brings_a_crashed_machine_back(pc):
    def script(cpu):
        yield EngineFailure("no")
        yield from spin(cpu)

    machine = pc(script)
    machine.reboot = lambda: None
    with controlled(machine, paused=True) as run:
        run.control.debugger_attached = True
        run.control.resume()
        until(lambda: run.control.state is RunState.INTERNAL_ERROR)
        run.control.reset()
        assert run.control.state is RunState.PRELAUNCH and run.control.ended is None
        run.control.resume()
        assert run.control.state is RunState.RUNNING


def test_a_machine_that_lingers_stays_after_its_power_off_until_it_is_told_to_end(pc):
    def script(cpu):
        yield POWER_OFF
        yield POWER_OFF

    run = Run(pc(script))
    run.control = Controller(run.machine, linger=True)
    run.control.listeners.append(lambda event: run.events.append((event.name, dict(event.data))))
    run.start()
    until(lambda: run.control.state is RunState.SHUTDOWN)
    with run.control.still():
        pass
    run.control.let_end()
    assert run.thread.is_alive()
    run.control.quit()
    assert run.end() == Quit()
    assert run.names == ["SHUTDOWN", "STOP", "SHUTDOWN"]
