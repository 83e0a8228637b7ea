"""A stopped machine goes on under another engine: new virtual CPUs take over registers, pins and clock; the chips and the
memory stay what they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from xuni.machine.machine import CpuConfig
from xuni.machine.processor import RESUME

if TYPE_CHECKING:
    from xuni.exits import Vcpu
    from xuni.machine.machine import Engine, Machine


@runtime_checkable
class Closable(Protocol):
    """A virtual CPU that holds more than Python's memory."""

    def close(self) -> None:
        """Let it go."""
        ...


def hand_over(machine: Machine, engine: Engine) -> None:
    """Let virtual CPUs of `engine` go on where those of `machine` stand. While nothing runs.

    The engine must give its virtual CPUs the features that the guest has seen so far. It is asked for them with this
    machine's memory, as when a machine is made; one that has made virtual CPUs over this memory before may not be asked
    again. Raises ValueError, and leaves the machine as it was, if a new virtual CPU cannot take the state of its
    predecessor.

    The time-stamp counter goes on from its value, at the new engine's rate if that differs.
    """
    machine.settle()
    count = len(machine.vcpus)
    made: list[Vcpu] = []
    try:
        for index, old in enumerate(machine.vcpus):
            vcpu = engine(machine.memory, CpuConfig(index, count))
            made.append(vcpu)
            state = old.save()
            vcpu.set_now(old.now())
            vcpu.load(state)
    except BaseException:
        _close(made)
        raise
    former = list(machine.vcpus)
    machine.vcpus[:] = made
    machine.set_clock(machine.now())  # one clock for all
    with machine.bus.lock:
        for processor, vcpu in zip(machine.processors, made, strict=True):
            processor.vcpu = vcpu
            processor.reply = RESUME
            processor.halted_with_interrupt = False
            processor.set_interrupt(processor.interrupt)
            processor.apic.timer.schedule()  # a deadline on the time-stamp counter comes at another time now
    _close(former)


def _close(vcpus: list[Vcpu]) -> None:
    for vcpu in vcpus:
        if isinstance(vcpu, Closable):
            vcpu.close()
