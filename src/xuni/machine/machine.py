"""A machine: processors, memory and a bus, and what starts, stops and resets them. Boards fill it (`pc.py`)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from threading import Condition, Thread
from typing import TYPE_CHECKING, Final, Protocol

from xuni.bus import Bus
from xuni.bus.ports import WideDevice
from xuni.bus.timers import NEVER
from xuni.exits import Hypercall, Vcpu
from xuni.machine.hypercalls import NO_SUCH_CALL
from xuni.machine.processor import Processor
from xuni.machine.run import run
from xuni.machine.stopped import STANDSTILL, Halted, Interrupted, Paused, Reset, Stopped, Suspended, Timeout, TripleFault

if TYPE_CHECKING:
    from xuni.memory.guest import GuestMemory

BEAT: Final = 50_000_000
"""At least this often (ns) a running processor comes back, for signals to be seen and output to be flushed."""
SECOND: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class CpuConfig:
    """What an engine is told about the virtual CPU to make."""

    index: int = 0
    """Also its initial APIC id; 0 is the boot processor, the others wait for a start-up IPI."""
    count: int = 1
    """How many there are."""


class Engine(Protocol):
    """Makes virtual CPUs over a memory."""

    def __call__(self, memory: GuestMemory, config: CpuConfig, /) -> Vcpu:
        """A virtual CPU in its reset state."""
        ...


class Resettable(Protocol):
    """A chip with a reset pin."""

    def reset(self) -> None:
        """Return to the power-on state."""
        ...


class Machine:
    """Processors around a bus. A board attaches chips, a boot loader fills memory and registers, `run` starts it."""

    def __init__(self, memory: GuestMemory, engine: Engine, cpus: int = 1) -> None:
        self.memory = memory
        self.vcpus = [engine(memory, CpuConfig(index, cpus)) for index in range(cpus)]
        self.bus = Bus(self.now)
        self.processors = [Processor(index, vcpu, self.bus.lock) for index, vcpu in enumerate(self.vcpus)]
        self.stopped: Stopped | None = None
        self.expects_input = False
        """A backend may feed input at any time, so that a halted guest without timers is not lost."""
        self.resettable: list[Resettable] = []
        self.flush: list[Callable[[], None]] = []
        """Called when the guest idles, at every beat, and when the machine stops: chips' buffered output goes out."""
        self.hypercall: Callable[[Hypercall], int] = lambda asked: NO_SUCH_CALL
        """What a guest's kernel asks its hypervisor; the board answers."""
        self.reboot: Callable[[], None] | None = None
        """What a guest's reset, or a processor's shutdown, does after the chips' reset: load the guest again. None: either
        stops the machine.
        """
        self.restarts_crashed = True
        """Whether that is so for a processor's shutdown; a debugger's user would rather look."""
        self.reload: Callable[[], None] | None = None
        """Loads the guest again: what a reset from outside does where `reboot` is None."""
        self.resume: Callable[[], None] | None = None
        """What wakes a guest from suspension, when the event came: chips get power again, firmware hands over. None: a
        suspension ends the machine.
        """
        self.asleep = False
        """Suspended: processors have no power, chips wait for an event."""
        self.woken = False
        """The event came."""
        self.on_restart: list[Callable[[], None]] = []
        """Called after each reset that did not stop the machine, when the guest is loaded again and nothing runs yet."""
        self.wait_for: Callable[[Condition, float | None], object] = Condition.wait
        """How a halted processor sleeps, for clocks that are not the host's: a condition, and seconds or None."""
        self._timeout = self.bus.timers.timer(self._time_out)
        self._timeout_seconds = 0.0
        self._next_beat = 0
        self._failure: BaseException | None = None
        self.bus.timers.on_deadline = self._set_deadline

    def now(self) -> int:
        """The guest clock, ns: the first virtual CPU's, whichever that is by now."""
        return self.vcpus[0].now()

    # -- for board and library users ---------------------------------------------------------------------------------

    def attach_port(self, device: WideDevice, base: int, count: int) -> None:
        """Put a device on `count` I/O ports from `base`. Raises ValueError if one of them is taken."""
        self.bus.ports.attach_wide(base, count, device)

    def attach_mmio(self, device: WideDevice, base: int, size: int) -> None:
        """Put a device at guest-physical `base`, which must not be memory. Raises ValueError on an overlap."""
        for slot in self.memory.slots:
            if base < slot.end and slot.start < base + size:
                raise ValueError(
                    f"{type(device).__name__}: range {base:#x}-{base + size - 1:#x} overlaps memory"
                    f" at {slot.start:#x}-{slot.end - 1:#x}"
                )
        self.bus.mmio.attach(base, size, device)

    # -- running -----------------------------------------------------------------------------------------------------

    def run(self, timeout: float | None = None) -> Stopped:
        """Run until the guest or `stop` ends it; `timeout` is in seconds of the guest clock.

        After `Timeout`, `Interrupted`, `Paused` or `DebugStop` another `run` continues. A `stop` that came while
        nothing ran ends it at once.
        """
        if timeout is not None:
            with self.bus.lock:
                self._timeout_seconds = timeout
                self._timeout.set(self.bus.timers.now() + int(timeout * SECOND))
        while True:
            match self._slumber() if self.asleep else self._run_processors():
                case None: pass
                case Suspended() if self.resume is not None: self.asleep = True
                case Reset() if self.reboot is not None: self.restart()
                case TripleFault() if self.reboot is not None and self.restarts_crashed: self.restart()
                case stopped: break
        with self.bus.lock:
            self._timeout.cancel()
        return stopped

    def stop(self, reason: Stopped) -> None:
        """End `run` soon. May be called from any thread or a signal.

        The first reason wins, but that a standstill was wanted does not hide that the machine ended on the way there.
        """
        with self.bus.lock:
            if self.stopped is None or isinstance(self.stopped, STANDSTILL) and not isinstance(reason, STANDSTILL):
                self.stopped = reason
            for processor in self.processors:
                processor.vcpu.kick()
                processor.notify()

    def interrupt(self) -> None:
        """End `run` because the user wants it."""
        self.stop(Interrupted())

    def reset(self, but: Collection[Resettable] = ()) -> None:
        """Pull the reset line of every chip and processor; memory keeps its contents, and so do chips of `but`."""
        with self.bus.lock:
            self.asleep = self.woken = False
            for chip in self.resettable:
                if chip not in but:
                    chip.reset()
            for processor in self.processors:
                processor.apic.reset()
                processor.reset()

    def restart(self) -> None:
        """Reset and load the guest again, where `reboot` or `reload` know how. While nothing runs."""
        load = self.reboot or self.reload
        assert load is not None
        self.reset()
        load()
        for notify in self.on_restart:
            notify()

    def settle(self) -> None:
        """Let every processor finish the instruction that it is in the middle of. While nothing runs."""
        self.stop(Paused())
        for processor in self.processors:
            run(processor, self)
        with self.bus.lock:
            self.stopped = None

    def wake(self) -> None:
        """A chip's event that ends a suspension."""
        self.woken = True
        self.processors[0].notify()

    def press_power_button(self) -> None:
        """Tell the guest that its user wants it off. A board without such a button does nothing."""

    def set_clock(self, nanoseconds: int) -> None:
        """Let the guest clock go on from this time. While nothing runs."""
        for vcpu in self.vcpus:
            vcpu.set_now(nanoseconds)

    def request_reset(self) -> None:
        """A chip's reset output: stops the processors; `run` then reboots or returns `Reset`."""
        self.stop(Reset())

    # -- for the loop ------------------------------------------------------------------------------------------------

    def idle(self) -> None:
        """The guest waits: let buffered output out."""
        for flush in self.flush:
            flush()

    def beat(self) -> None:
        """The deadline passed: if it was the beat's, let buffered output out and set the next."""
        now = self.bus.timers.now()
        if now >= self._next_beat:
            self.idle()
            self._next_beat = now + BEAT
            self._set_deadline(self.bus.timers.deadline)

    def wait(self, processor: Processor) -> None:
        """Sleep until the next timer or a notification."""
        deadline = self.bus.timers.deadline
        seconds = None
        if processor.index == 0 and deadline != NEVER:  # the others leave the timers to the first
            seconds = max(deadline - self.bus.timers.now(), 0) / SECOND
        self.wait_for(processor.wake, seconds)

    def _set_deadline(self, deadline: int) -> None:
        first = self.processors[0]
        first.vcpu.set_deadline(min(deadline, self._next_beat))
        first.notify()

    def _time_out(self) -> None:
        self.stop(Timeout(self._timeout_seconds))

    def _run_processors(self) -> Stopped:
        """The boot processor in this thread, each other one in a thread of its own."""
        self._next_beat = self.bus.timers.now() + BEAT
        self._set_deadline(self.bus.timers.deadline)
        threads = [
            Thread(target=self._run_in_thread, args=(processor,), name=f"cpu{processor.index}", daemon=True)
            for processor in self.processors[1:]
        ]
        for thread in threads:
            thread.start()
        try:
            run(self.processors[0], self)
        finally:
            if self.stopped is None:  # an exception of ours is on its way up
                self.stop(Interrupted())
            for thread in threads:
                thread.join()
            self.idle()
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
        with self.bus.lock:  # taken, so that a stop from now on is for the next run
            stopped, self.stopped = self.stopped, None
        assert stopped is not None
        return stopped

    def _slumber(self) -> Stopped | None:
        """Let timers run until a chip wakes the guest (None), or the machine is stopped."""
        first, timers = self.processors[0], self.bus.timers
        self.idle()
        with self.bus.lock:
            first.sleeping = True
            while self.stopped is None and not self.woken:
                if timers.deadline <= timers.now():
                    timers.run_due()
                elif timers.deadline == NEVER and not self.expects_input:
                    self.stop(Halted("it is suspended, and no timer is set that could wake it"))
                else:
                    self.wait(first)
            first.sleeping = False
            stopped, self.stopped = self.stopped, None
            if stopped is None:
                assert self.resume is not None
                self.resume()
        return stopped

    def _run_in_thread(self, processor: Processor) -> None:
        try:
            run(processor, self)
        except BaseException as failure:
            self._failure = failure
            self.stop(Interrupted())
