"""One processor of a machine: a virtual CPU, its local APIC, and the sleep of a halted one."""

from __future__ import annotations

from threading import Condition, RLock

from xuni.devices.apic.local import LocalApic
from xuni.exits import Debugged, Reply, Resume, Vcpu

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
        self.thread_id = 0
        """The host's number of the thread that runs it, or ran it last."""
        self.wake = Condition(lock)

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
        self.vcpu.init()
        self.vcpu.kick()  # to have its loop see that it waits for a start-up IPI now
        self._signal()

    def startup(self, vector: int) -> None:
        """Start-up IPI."""
        self.vcpu.startup(vector)
        self._signal()

    def notify(self) -> None:
        """Have a sleeping loop look again."""
        with self.wake:
            self.wake.notify()

    def _signal(self) -> None:
        self.signalled = True
        self.notify()
