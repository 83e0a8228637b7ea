"""Control from outside: who may run, pause, step, reset and end a machine while it runs in a thread of its own.

One thread calls `Controller.run` and stays in it until the machine ends; any number of others ask for the rest. They
meet under one lock. The machine's thread alone starts processors; when it finds that someone wants the machine to stand
still, it *parks*: every processor stands between two instructions, and registers and memory may be read and written.
The guest clock stands still as well.

States and events have QEMU's names, so that a QMP server has nothing to translate (docs/interop/qmp-spec, run-state).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from threading import Condition
from typing import TYPE_CHECKING, Final

from xuni.exits import DebugCause, DebugControl, Debugged, Watchpoint
from xuni.machine.stopped import (
    DebugExit,
    DebugStop,
    EngineFailed,
    Halted,
    Interrupted,
    Paused,
    PowerOff,
    Quit,
    Reset,
    Stopped,
    Timeout,
    TripleFault,
)

if TYPE_CHECKING:
    from xuni.machine.machine import Machine
    from xuni.machine.processor import Processor

SECOND: Final = 1_000_000_000
NO_CONTROL: Final = DebugControl()
MAX_WATCHPOINTS: Final = 4


class RunState(Enum):
    """What the machine does, in QMP's words."""

    PRELAUNCH = "prelaunch"
    """It has not begun, and waits to be told to."""
    RUNNING = "running"
    PAUSED = "paused"
    DEBUG = "debug"
    """A breakpoint, a watchpoint or a step of a debugger ended."""
    INTERNAL_ERROR = "internal-error"
    """The engine could not go on."""
    GUEST_PANICKED = "guest-panicked"
    """The processor shut down, or halted for good."""
    SHUTDOWN = "shutdown"
    """It has ended."""


NEED_RESET: Final = (RunState.INTERNAL_ERROR, RunState.GUEST_PANICKED, RunState.SHUTDOWN)
"""States from which only a reset or the end leads on."""


class EventName(Enum):
    """QMP's events."""

    STOP = "STOP"
    RESUME = "RESUME"
    RESET = "RESET"
    SHUTDOWN = "SHUTDOWN"
    POWERDOWN = "POWERDOWN"
    GUEST_PANICKED = "GUEST_PANICKED"


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened to the machine; `nanoseconds` of the host's wall clock since 1970."""

    name: EventName
    data: Mapping[str, object] = field(default_factory=dict)
    nanoseconds: int = field(default_factory=time.time_ns)


class Refused(Exception):
    """The machine's state does not allow what was asked; the text says why, in QEMU's words where it has them."""


class Controller:
    """Runs a machine under control. All methods but `run` may be called from any other thread.

    `listeners` are called with every event, in order, in whichever thread causes it and under the lock: they must not
    block and must not call back.
    """

    def __init__(self, machine: Machine, *, paused: bool = False, linger: bool = False) -> None:
        """`paused`: wait for `resume` before the first instruction. `linger`: after a power-off, wait for `quit` or a
        reset.
        """
        self.machine = machine
        self._linger = linger
        self.listeners: list[Callable[[Event], None]] = []
        self.breakpoints: frozenset[int] = frozenset()
        self.watchpoints: tuple[Watchpoint, ...] = ()
        self.mask_steps = True
        """Keep external interrupts from a processor that is stepped, so that a step does not end in their handler."""
        self._debugger_attached = False
        self.state = RunState.PRELAUNCH if paused else RunState.RUNNING
        self.ended: Stopped | None = None
        """Why the machine crashed or ended, if it did."""
        self._changed = Condition()
        self._hold: RunState | None = RunState.PRELAUNCH if paused else None
        """The state in which it shall stand still."""
        self._looking = 0
        """How many want it to stand still for a moment, unnoticed."""
        self._stops = 0
        """How often it came to stand still, looks not counted."""
        self._parked = False
        self._over = False
        self._end: Stopped | None = None
        self._reset = False
        self._reset_from_outside = False
        self._announced_end = False
        self._reports: dict[int, Debugged] = {}
        """What debuggers have not been told yet, by processor."""
        self._stepping: Collection[int] = ()
        self._held: Collection[int] = ()
        self._controls: dict[int, DebugControl] = {}
        machine.on_restart.append(self._restarted)

    # -- the machine's thread ----------------------------------------------------------------------------------------

    def run(self, timeout: float | None = None) -> Stopped:
        """Run the machine to its end. `timeout` is in seconds of the guest clock, which stands still while it does."""
        left = timeout
        try:
            while True:
                with self._changed:
                    stopped = self._park()
                if stopped is not None:
                    return stopped
                begun = self.machine.bus.timers.now()
                stopped = self.machine.run(left)
                if left is not None:
                    left = max(left - (self.machine.bus.timers.now() - begun) / SECOND, 0)
                    if isinstance(stopped, Timeout):
                        stopped = Timeout(timeout or 0)
                with self._changed:
                    self._take(stopped)
        finally:
            with self._changed:
                self._over = self._parked = True
                self.state = RunState.SHUTDOWN
                self._changed.notify_all()

    def _park(self) -> Stopped | None:
        """Wait until the machine may run, or return why it ends."""
        frozen = self.machine.bus.timers.now()
        self._parked = True
        waited = False
        while True:
            if self._end is not None:
                self.state = RunState.SHUTDOWN
                self._announce_end(self._end)
                return self._end
            if self._reset:
                self._restart()
                continue
            if self._hold is not None:
                self._enter(self._hold)
            elif not self._looking:
                break
            waited = True
            self._changed.notify_all()
            self._changed.wait()
        self._parked = False
        self._prepare()
        if waited:
            self.machine.set_clock(frozen)
        return None

    def _prepare(self) -> None:
        for processor in self.machine.processors:
            processor.held = processor.index in self._held
            processor.debugged = None
            stepped = processor.index in self._stepping
            if stepped and self.mask_steps:
                processor.mask(True)
            self._control(processor, stepped)

    def _control(self, processor: Processor, stepped: bool) -> None:
        control = DebugControl(stepped, self.breakpoints, self.watchpoints)
        if control != self._controls.get(processor.index, NO_CONTROL):
            processor.vcpu.debug(control)
            self._controls[processor.index] = control

    def _take(self, stopped: Stopped) -> None:
        """Why `Machine.run` returned."""
        for processor in self.machine.processors:
            processor.held = False
            if processor.masked:
                processor.mask(False)
            if processor.debugged is not None:
                self._reports[processor.index] = processor.debugged
        match stopped:
            case Paused() | DebugStop():
                if self._reports:
                    self._hold = RunState.DEBUG
                # Else someone wants it to stand still, and has said so; or wanted, and went away.
            case TripleFault() | Halted() | EngineFailed() if self.debugger_attached and self._end is None:
                self.ended = stopped
                self.machine.settle()
                failed = isinstance(stopped, EngineFailed)
                self._hold = RunState.INTERNAL_ERROR if failed else RunState.GUEST_PANICKED
                if not failed:
                    self._say(EventName.GUEST_PANICKED, action="pause")
            case PowerOff() if self._linger and self._end is None:
                self._announce_end(stopped)
                self._announced_end = False  # the end of this process is another
                self._hold = RunState.SHUTDOWN
            case _ if self._end is None:
                self._end = stopped

    def _enter(self, state: RunState) -> None:
        if self.state is RunState.RUNNING:
            self.state = state
            self._stops += 1
            self._say(EventName.STOP)

    def _restart(self) -> None:
        self._reset = False
        self._changed.notify_all()
        if self.machine.reboot is None and self.machine.reload is None:
            self._end = Reset()
            return
        self._reports.clear()
        self.ended = None
        if self.state is not RunState.RUNNING:
            self.state = self._hold = RunState.PRELAUNCH
        self.machine.restart()

    def _restarted(self) -> None:
        """In the machine's thread, with the lock held or not: the guest is loaded again."""
        with self._changed:
            outside, self._reset_from_outside = self._reset_from_outside, False
            reason = "host-qmp-system-reset" if outside else "guest-reset"
            self._say(EventName.RESET, guest=not outside, reason=reason)
            if not self._parked and (self._hold is not None or self._looking):
                self.machine.stop(Paused())  # asked for while the reset was the reason to stop

    def _announce_end(self, end: Stopped, reason: str = "") -> None:
        if self._announced_end:
            return
        self._announced_end = True
        self.ended = end
        guest = isinstance(end, PowerOff | Reset | DebugExit | TripleFault | Halted)
        match end:
            case TripleFault() | Halted():
                self._say(EventName.GUEST_PANICKED, action="poweroff")
                reason = "guest-panic"
            case Reset() if self._reset_from_outside: guest, reason = False, "host-qmp-system-reset"
            case Reset(): reason = "guest-reset"
            case PowerOff() | DebugExit(): reason = "guest-shutdown"
            case EngineFailed(): reason = "host-error"
            case _: reason = reason or "host-signal"
        self._say(EventName.SHUTDOWN, guest=guest, reason=reason)

    def _say(self, name: EventName, **data: object) -> None:
        event = Event(name, data)
        for listener in self.listeners:
            listener(event)

    @property
    def debugger_attached(self) -> bool:
        """A guest that crashes stands still instead of ending or starting anew, so that someone can look."""
        return self._debugger_attached

    @debugger_attached.setter
    def debugger_attached(self, attached: bool) -> None:
        self._debugger_attached = attached
        self.machine.restarts_crashed = not attached

    # -- everybody else ----------------------------------------------------------------------------------------------

    def interrupt(self) -> None:
        """End the machine because the user of this process wants it."""
        self._finish(Interrupted(), "host-signal")

    def quit(self, reason: str = "host-qmp-quit") -> None:
        """End the machine. `reason` is one of QMP's ShutdownCause."""
        self._finish(Quit(), reason)

    def pause(self) -> None:
        """Let every processor stand still between two instructions; returns when they do. No-op where they do."""
        with self._changed:
            if self.state is not RunState.RUNNING:
                return
            if self._hold is None:
                self._hold = RunState.PAUSED
            self._nudge()
            stops = self._stops  # not the state: someone else may have it go on before we see that it stood still
            self._changed.wait_for(lambda: self._over or self._stops != stops)

    def resume(self, step: Collection[int] = (), hold: Collection[int] = ()) -> None:
        """Go on. Processors in `step` execute one instruction, those in `hold` none; the first report stops all.

        No-op if it runs. Raises Refused if it crashed or ended, or if an engine cannot have that many breakpoints.
        """
        with self._changed:
            if self.state in NEED_RESET:
                raise Refused("Resetting the Virtual Machine is required")
            if self.state is RunState.RUNNING:
                return
            try:
                for processor in self.machine.processors:
                    self._control(processor, processor.index in step)
            except ValueError as error:
                raise Refused(str(error)) from error
            self._stepping, self._held = frozenset(step), frozenset(hold)
            self._drop_stale_reports()
            self.state = RunState.RUNNING
            self._hold = RunState.DEBUG if self._reports else None
            self._say(EventName.RESUME)
            self._changed.notify_all()

    def let_end(self) -> None:
        """End a machine that crashed and was kept for a debugger. No-op for others."""
        with self._changed:
            crashed = self.state in (RunState.INTERNAL_ERROR, RunState.GUEST_PANICKED)
            if crashed and self._end is None:
                self._end = self.ended
                self._changed.notify_all()

    def reset(self) -> None:
        """Pull the reset line and load the guest again; it ends the machine where nobody knows how to load it.

        A machine that stands still goes on standing.
        """
        with self._changed:
            if self._over:
                return
            self._reset = self._reset_from_outside = True
            self._nudge()
            self._changed.wait_for(lambda: self._over or not self._reset)

    def press_power_button(self) -> None:
        """Tell the guest that its user wants it off."""
        with self._changed:
            self._say(EventName.POWERDOWN)
        self.machine.press_power_button()

    def nmi(self) -> None:
        """A non-maskable interrupt to every processor, by its LINT1 pin."""
        with self.machine.bus.lock:
            for processor in self.machine.processors:
                processor.apic.set_lint(1, True)
                processor.apic.set_lint(1, False)

    @contextmanager
    def still(self) -> Iterator[None]:
        """For as long as the block lasts, every processor stands between two instructions, and no event tells of it."""
        with self._changed:
            self._looking += 1
            if not self._parked:
                self._nudge()
            self._changed.wait_for(lambda: self._parked)
        try:
            yield
        finally:
            with self._changed:
                self._looking -= 1
                self._changed.notify_all()

    def set_debug(self, breakpoints: frozenset[int], watchpoints: tuple[Watchpoint, ...]) -> None:
        """Replace breakpoints (linear addresses) and watchpoints, from the next `resume` on.

        Not at once: a debugger takes all of them away at a stop and brings them back before it goes on, and an engine
        may have to decode code anew for each. Raises ValueError for more than four watchpoints.
        """
        if len(watchpoints) > MAX_WATCHPOINTS:
            raise ValueError(f"a processor has {MAX_WATCHPOINTS} watchpoints")
        with self.still():
            self.breakpoints, self.watchpoints = breakpoints, watchpoints

    def take_report(self) -> tuple[int, Debugged] | None:
        """The next stop that a debugger has to be told of: processor and cause. Breakpoints come before steps."""
        with self._changed:
            if not self._reports:
                return None
            cpu = min(self._reports, key=lambda cpu: (self._reports[cpu].cause is DebugCause.STEP, cpu))
            return cpu, self._reports.pop(cpu)

    def _drop_stale_reports(self) -> None:
        """What is not true any more, or is not worth a stop of its own."""
        self._reports = {
            cpu: report
            for cpu, report in self._reports.items()
            if report.cause is DebugCause.BREAKPOINT and report.address in self.breakpoints
            or report.cause is DebugCause.WATCHPOINT
        }  # fmt: skip

    def _finish(self, end: Stopped, reason: str) -> None:
        with self._changed:
            if self._end is None and not self._over:
                self._end = end
                self.state = RunState.SHUTDOWN
                self._announce_end(end, reason)
                self._changed.notify_all()
        self.machine.stop(end)

    def _nudge(self) -> None:
        """Have the machine's thread look at what is wanted."""
        self._changed.notify_all()
        if not self._parked:
            self.machine.stop(Paused())
