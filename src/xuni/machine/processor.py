"""One processor of a machine: a virtual CPU, its local APIC, and the sleep of a halted one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import Condition, RLock, get_native_id

from xuni.devices.apic.local import LocalApic
from xuni.exits import Debugged, OwnTsc, Reply, Resume, Vcpu

RESUME = Resume()


class Processor:
    """What the local APIC drives: passes its signals to the virtual CPU and wakes it if it sleeps.

    `apic` is set by the board right after construction; the two know each other.
    """

    apic: LocalApic

    def __init__(self, index: int, vcpu: Vcpu, lock: RLock) -> None:
        self.index = index
        self.vcpu = vcpu
        self.reply: Reply = RESUME
        """The answer to the last exit; kept here so that a stopped machine can go on."""
        self.interrupt = False
        """Level of the INTR pin."""
        self.signalled = False
        """An NMI, INIT or start-up IPI arrived since the last halt."""
        self.halted_with_interrupt = False
        """It halted although INTR was up, and has done nothing else since."""
        self.held = False
        """A debugger holds it: it executes nothing while the others run."""
        self.masked = False
        """A debugger steps it: external interrupts wait until the step is done."""
        self.debugged: Debugged | None = None
        """The debugger's stop that ended its last run."""
        self.thread_id = get_native_id()
        """The host's number of the thread that runs it, or ran it last."""
        self.wake = Condition(lock)
        self.sleeping = False
        """Its loop waits for `wake`, or looks for the last time whether it must. Set before it looks, so that who changes
        something first and reads this then cannot come between.
        """
        self._orders: list[Callable[[], None]] = []

    def set_interrupt(self, level: bool) -> None:
        """Drive INTR."""
        self.interrupt = level
        self.vcpu.set_interrupt(level and not self.masked)
        if level:
            self.notify()

    def mask(self, masked: bool) -> None:
        """Keep INTR from the virtual CPU, or let it through again."""
        self.masked = masked
        self.vcpu.set_interrupt(self.interrupt and not masked)

    def nmi(self) -> None:
        """Pulse NMI."""
        self.vcpu.nmi()
        self._signal()

    def init(self) -> None:
        """Pulse INIT#."""
        self._orders.append(self.vcpu.init)
        self.vcpu.kick()  # to have its loop see the order
        self._signal()

    def startup(self, vector: int) -> None:
        """Start-up IPI."""
        self._orders.append(partial(self.vcpu.startup, vector))
        self._signal()

    @property
    def ordered(self) -> bool:
        """Whether INIT or a start-up IPI waits to be obeyed."""
        return bool(self._orders)

    def obey(self) -> None:
        """Do what INIT and start-up IPIs ordered, in the thread that runs the virtual CPU: nobody else may touch it."""
        while self._orders:
            self._orders.pop(0)()
            self.reply = RESUME
            self.halted_with_interrupt = False

    def reset(self) -> None:
        """As INIT for a processor that does not run."""
        self._orders.clear()
        self.vcpu.init()
        self.reply = RESUME
        self.signalled = self.halted_with_interrupt = False

    def tsc_time(self, tsc: int) -> int:
        """The guest clock at which the time-stamp counter reaches `tsc`: the same number, unless it has a rate of its own."""
        return self.vcpu.tsc_time(tsc) if isinstance(self.vcpu, OwnTsc) else tsc

    def notify(self) -> None:
        """Have a sleeping loop look again."""
        if self.sleeping:
            with self.wake:
                self.wake.notify()

    def _signal(self) -> None:
        self.signalled = True
        self.notify()
