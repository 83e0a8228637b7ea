"""The loop: let the guest run until it needs us, serve it, answer, repeat."""

from __future__ import annotations

from threading import get_native_id
from typing import TYPE_CHECKING, Final, assert_never

from xuni.bus.timers import NEVER
from xuni.exits import (
    Data,
    Debugged,
    EngineFailure,
    Exit,
    Halt,
    Hypercall,
    Inject,
    InterruptWindow,
    MmioRead,
    MmioWrite,
    MsrRead,
    MsrWrite,
    PortIn,
    PortOut,
    Refuse,
    ServesPorts,
    Shutdown,
    Sliced,
    TprRead,
    TprWrite,
)
from xuni.machine.direct import DirectPorts
from xuni.machine.processor import RESUME, Processor
from xuni.machine.stopped import STANDSTILL, DebugStop, EngineFailed, Halted, Stopped, TripleFault
from xuni.trace import Probe

if TYPE_CHECKING:
    from xuni.machine.machine import Machine

vcpu_exit = Probe("vcpu_exit", "cpu", "exit")
vcpu_reply = Probe("vcpu_reply", "cpu", "reply")

PAGE_OFFSET, PAGE_BASE = 0xFFF, ~0xFFF
BETWEEN: Final = (Sliced, Halt, Debugged)
"""The exits after which a processor stands between two instructions."""


def run(processor: Processor, machine: Machine) -> Stopped:
    """Run one processor until the machine stops; `processor.reply` then holds what it must be told to go on.

    The bus lock is held while an exit is served, never while the guest runs. Where the machine shall stand still, an
    instruction that waits for a device is finished first.
    """
    vcpu, apic, bus = processor.vcpu, processor.apic, machine.bus
    ports, mmio, timers, lock, now = bus.ports, bus.mmio, bus.timers, bus.lock, bus.timers.now
    processor.thread_id = get_native_id()
    event: Exit | None = None
    if isinstance(vcpu, ServesPorts):
        vcpu.serve_ports(DirectPorts(processor, machine, vcpu_exit, vcpu_reply))
    while True:
        if processor.ordered or apic.state.waiting_for_sipi:
            with lock:
                processor.obey()
                if apic.state.waiting_for_sipi:
                    sleep(processor, machine)
                    processor.obey()
        if processor.held:
            with lock:
                stand_still(processor, machine)
        if machine.stopped is not None:
            at_rest = isinstance(event, BETWEEN) or processor.held or apic.state.waiting_for_sipi
            if at_rest or not isinstance(machine.stopped, STANDSTILL):
                return machine.stopped
            vcpu.kick()  # finish what is begun, and no more
        event = vcpu.run(processor.reply)
        if vcpu_exit.on:
            vcpu_exit(processor.index, event)
        with lock:
            processor.reply = RESUME
            match event:
                case PortOut(port, size, data):
                    ports.write(port, size, data)
                case PortIn(port, size):
                    processor.reply = Data(ports.read(port, size))
                case MsrWrite(index, data):
                    if not apic.write_msr(index, data):
                        processor.reply = Refuse()
                case InterruptWindow():
                    vector = apic.acknowledge()
                    if vector is not None:
                        processor.reply = Inject(vector)
                case MmioWrite(address, size, data):
                    chip = apic if address & PAGE_BASE == apic.page else None
                    chip.write(address & PAGE_OFFSET, size, data) if chip else mmio.write(address, size, data)
                case MmioRead(address, size):
                    chip = apic if address & PAGE_BASE == apic.page else None
                    value = chip.read(address & PAGE_OFFSET, size) if chip else mmio.read(address, size)
                    processor.reply = Data(value)
                case MsrRead(index):
                    found = apic.read_msr(index)
                    processor.reply = Refuse() if found is None else Data(found)
                case TprRead():
                    processor.reply = Data(apic.tpr_class)
                case TprWrite(data):
                    apic.tpr_class = data
                case Hypercall():
                    processor.reply = Data(machine.hypercall(event))
                case Halt():
                    if processor.masked:
                        processor.mask(False)  # a step into a halt lasts until the interrupt
                    halt(processor, machine)
                    continue
                case Sliced():
                    machine.beat()
                case Debugged(cause, address):
                    processor.debugged = event
                    machine.stop(DebugStop(processor.index, cause, address))
                case Shutdown(reason):
                    machine.stop(TripleFault(reason))
                case EngineFailure(reason):
                    machine.stop(EngineFailed(reason))
                case unexpected:
                    assert_never(unexpected)
            if vcpu_reply.on and processor.reply is not RESUME:
                vcpu_reply(processor.index, processor.reply)
            processor.halted_with_interrupt = False
            if now() >= timers.deadline:
                timers.run_due()


def stand_still(processor: Processor, machine: Machine) -> None:
    """Execute nothing until the machine stops; the first processor runs the timers all the same."""
    timers = machine.bus.timers
    processor.sleeping = True
    while machine.stopped is None:
        if timers.deadline <= timers.now():
            timers.run_due()
        else:
            machine.wait(processor)
    processor.sleeping = False


def halt(processor: Processor, machine: Machine) -> None:
    """HLT: sleep until there is a reason to go on.

    A processor that halts again and again with INTR up has its interrupts disabled: only a signal can wake it then.
    """
    if processor.interrupt and not processor.halted_with_interrupt:
        processor.halted_with_interrupt = True
        return  # the request came between the last instruction and this: the virtual CPU will take it now
    if not processor.interrupt:
        processor.halted_with_interrupt = False
    sleep(processor, machine)
    processor.halted_with_interrupt = processor.interrupt


def sleep(processor: Processor, machine: Machine) -> None:
    """Wait for INTR (unless it is up and of no use), NMI, INIT or a start-up IPI, and run the timers meanwhile."""
    timers = machine.bus.timers
    masked = processor.halted_with_interrupt
    machine.idle()
    processor.sleeping = True
    while machine.stopped is None:
        if timers.deadline <= timers.now():
            timers.run_due()
            continue
        if processor.signalled or processor.interrupt and not masked:
            processor.signalled = False
            break
        if len(machine.processors) == 1:
            if masked:
                machine.stop(Halted("interrupts are disabled, and no other processor can send it a signal"))
                break
            if timers.deadline == NEVER and not machine.expects_input:
                machine.stop(Halted("no timer is set, and no input can arrive"))
                break
        machine.wait(processor)
    processor.sleeping = False
