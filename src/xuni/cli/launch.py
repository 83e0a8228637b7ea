"""Makes the machine that a plan asks for, runs it, and says how it ended."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Final

from xuni import trace
from xuni.backends.console import Descriptor, Sink, Tail, nowhere
from xuni.boot import BoardFacts, BootConfig, BootError, Format, load
from xuni.cli.attend import Attendant, Input, Stuck
from xuni.cli.failure import EngineError, Refusal
from xuni.cli.plan import End, Plan
from xuni.cli.units import CpuChoice
from xuni.devices.apic.state import LocalApicConfig
from xuni.devices.test_ports import DebugExitConfig, TestDeviceConfig
from xuni.devices.uart import COM_PORTS
from xuni.guest import session
from xuni.host.progress import Progress
from xuni.isa.x86.features import choose
from xuni.machine.machine import CpuConfig, Engine
from xuni.machine.pc import Pc, PcConfig
from xuni.machine.stopped import DebugExit, PowerOff, Reset, Stopped
from xuni.memory.guest import GuestMemory

if TYPE_CHECKING:
    from xuni.engine.soft.vcpu import SoftVcpu

STDOUT: Final = 1
STDERR: Final = 2
CONSOLE, DATA, ERRORS, CONTROL = range(4)  # the serial ports, as `xuni.guest.session` numbers them
TAIL_LINES: Final = 40
SEED_SIZE: Final = 32
BROKEN_PIPE: Final = 128 + signal.SIGPIPE
PHYSICAL_BITS: Final = 40
NO_STATUS: Final = 121
"""The guest ended by itself before the command in it did."""


@dataclass(slots=True)
class Ends:
    """The host's ends of the serial lines, and what came in over them."""

    console: Sink
    tail: Tail | None
    on_input: Callable[[], None] = lambda: None
    stdout: Descriptor = field(default_factory=lambda: Descriptor(STDOUT))
    stderr: Descriptor = field(default_factory=lambda: Descriptor(STDERR))
    status: int | None = None
    _control: session.Control = field(default_factory=session.Control)

    def outputs(self) -> tuple[Sink, ...]:
        return self.console, self.stdout, self.stderr, self._receive

    def _receive(self, data: bytes) -> None:
        for event in self._control.receive(data):
            match event:
                case session.Input():
                    self.on_input()
                case session.Exit(status):
                    self.status = status


def launch(plan: Plan, *, memory: int, cpus: int, timeout: float | None, cpu: CpuChoice | None = None) -> int:
    """Boot and run until the guest ends, or the user ends it. Returns the exit status."""
    with _ends(plan) as ends:
        try:
            guest_memory = GuestMemory(memory)
        except (ValueError, OSError) as error:
            raise Refusal(f"--memory: {memory >> 20} MiB of guest memory cannot be had: {error}") from error
        with guest_memory:
            machine = _machine(plan, guest_memory, cpus, cpu or CpuChoice(), ends)
            console = machine.consoles[DATA if plan.input is Input.FRAMES else CONSOLE]

            def feed(data: bytes) -> None:
                with machine.bus.lock:
                    console.feed(data)

            attendant = Attendant(machine, plan.input, feed, backlog=lambda: len(console.queue))
            machine.expects_input = plan.input is not Input.NONE
            ends.on_input = attendant.want_input
            ends.stdout.on_failure = attendant.stop
            try:
                stopped = attendant.run(timeout)
            except Stuck:
                print("xuni: the machine does not stop; leaving it", file=sys.stderr, flush=True)
                os._exit(128 + (attendant.signal or signal.SIGINT))
            return _conclude(stopped, attendant, ends, plan)


@contextmanager
def tracing(patterns: Sequence[str]) -> Iterator[None]:
    """Events of the probes that match go to standard error, with seconds since now."""
    start = time.monotonic_ns()

    def show(event: trace.Event) -> None:
        print(f"{(event.nanoseconds - start) / 1e9:12.6f} {event}", file=sys.stderr)

    try:
        with trace.listen(patterns, show):
            yield
    except trace.NoSuchProbe as error:
        raise Refusal(f"--trace: {error}") from error


def _machine(plan: Plan, memory: GuestMemory, cpus: int, cpu: CpuChoice, ends: Ends) -> Pc:
    own = plan.session is None
    try:
        features = choose(cpu.plus, cpu.minus)
    except ValueError as error:
        raise Refusal(f"--cpu: {error}") from error
    bits = PHYSICAL_BITS if cpu.physical_bits is None else cpu.physical_bits
    if not 36 <= bits <= 52:
        raise Refusal(f"--cpu: phys-bits={bits}: a physical address has 36 to 52 bits")
    config = PcConfig(
        cpus=cpus,
        serial=COM_PORTS,
        local_apic=LocalApicConfig(
            x2apic="x2apic" in features, tsc_deadline="tsc_deadline_timer" in features, physical_address_bits=bits
        ),
        debug_exit=DebugExitConfig() if own else None,
        test_device=TestDeviceConfig() if plan.format is Format.MULTIBOOT else None,
    )
    boot = BootConfig(plan.kernel, plan.initrd, plan.append, plan.format, rng_seed=os.urandom(SEED_SIZE))
    cpus_made: list[SoftVcpu] = []
    try:
        # Before the engine, which may have to be compiled: a file that does not boot should be refused at once.
        state = load(memory, boot, BoardFacts(cpus=cpus, serial=COM_PORTS))
        machine = Pc(memory, _engine(cpus_made, features, bits), config, ends.outputs())
        if plan.format is Format.MULTIBOOT:
            machine.legacy_firmware_state()  # such kernels may go back to real mode, and find it as a boot loader did
    except (BootError, ValueError) as error:
        raise Refusal(str(error)) from error
    cpus_made[0].start(state)
    return machine


def _engine(made: list[SoftVcpu], features: frozenset[str], physical_bits: int) -> Engine:
    """Makes virtual CPUs of xuni's own engine, and keeps them in `made` as what they are. Compiles it if need be."""
    from xuni.engine.soft.build import BuildError
    from xuni.engine.soft.vcpu import SoftConfig, SoftVcpu, code

    try:
        with _workers_end_with_us(), Progress("compiling xuni's engine, once") as progress:
            compiled = code(lambda done, total: progress(done / total))
    except BuildError as error:
        raise EngineError(str(error)) from error
    base = time.monotonic_ns()

    def make(memory: GuestMemory, config: CpuConfig) -> SoftVcpu:
        kind = SoftConfig(features, apic_id=config.index, cpus=config.count, physical_bits=physical_bits)
        made.append(SoftVcpu(memory, kind, clock_base=base, compiled=compiled))
        return made[-1]

    return make


@contextmanager
def _workers_end_with_us() -> Iterator[None]:
    """Processes that compile for us end when we are told to end, and quietly.

    We end at once then, without unwinding: a pool whose workers are gone may wait for them forever, and there is
    nothing to put back yet, neither a terminal nor a file.
    """
    us = os.getpid()

    def on_signal(number: int, at: FrameType | None) -> None:
        if os.getpid() == us:
            from multiprocessing import active_children  # here: a start that compiles nothing has not imported it

            for worker in active_children():
                worker.kill()
            os.write(STDERR, b"\nxuni: interrupted\n")
        os._exit(128 + number)  # in a worker too: it was forked with this handler

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _ends(plan: Plan) -> Iterator[Ends]:
    tail = None
    console: Sink
    match plan.console:
        case End.STDOUT:
            ends = Ends(nowhere, None)
            ends.console = ends.stdout
            yield ends
            return
        case End.STDERR:
            console = Descriptor(STDERR)
        case End.HIDDEN:
            console = tail = Tail()
        case End.NOWHERE:
            console = nowhere
        case End.FILE:
            assert plan.file is not None
            try:
                file = open(plan.file, "wb", buffering=0)
            except OSError as error:
                raise Refusal(f"--serial file:{plan.file}: {error.strerror}; name a file to write to") from error
            with file:
                sink = Descriptor(file.fileno())
                yield Ends(sink, None)
                if sink.failure:
                    print(f"xuni: {plan.file}: {sink.failure.strerror}; the rest was lost", file=sys.stderr)
            return
    yield Ends(console, tail)


def _conclude(stopped: Stopped, attendant: Attendant, ends: Ends, plan: Plan) -> int:
    """Say on stderr what is not plain, and choose the exit status."""
    if attendant.left:
        return 0
    if attendant.signal:
        return 128 + attendant.signal
    if ends.stdout.failure:
        return BROKEN_PIPE
    if ends.status is not None:
        return ends.status
    match stopped:
        case PowerOff() | DebugExit(): return stopped.exit_status
        case Reset() if plan.session is None: return stopped.exit_status
    for line in ends.tail.lines(TAIL_LINES) if ends.tail else ():
        print(f"guest: {line}", file=sys.stderr)
    print(f"xuni: {stopped}", file=sys.stderr)
    return NO_STATUS if isinstance(stopped, Reset) else stopped.exit_status
