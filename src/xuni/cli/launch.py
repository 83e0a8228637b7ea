"""Makes the machine of a description, runs it, and says how it ended."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Final, TextIO

from xuni import trace
from xuni.backends.console import Descriptor, Sink, Tail, nowhere
from xuni.boot import BootConfig, BootError, Format, load
from xuni.cli import engines, outside
from xuni.cli.attend import Attendant, Input, Stuck
from xuni.cli.description import Description
from xuni.cli.failure import Refusal
from xuni.cli.plan import End, Plan, SerialEnd
from xuni.devices.apic.state import LocalApicConfig
from xuni.guest import session
from xuni.isa.x86.cpustate import CpuState
from xuni.machine.control import Controller
from xuni.machine.pc import Pc
from xuni.machine.stopped import DebugExit, PowerOff, Quit, Reset, Stopped
from xuni.memory.guest import GuestMemory

STDOUT: Final = 1
STDERR: Final = 2
TAIL_LINES: Final = 60
SEED_SIZE: Final = 32
BROKEN_PIPE: Final = 128 + signal.SIGPIPE
NO_STATUS: Final = 121
"""The guest ended by itself before the command in it did."""


@dataclass(slots=True)
class Ends:
    """The host's ends of the serial lines, and what came in over them."""

    outputs: tuple[Sink, ...] = ()
    """What takes the output of each line."""
    tail: Tail | None = None
    on_input: Callable[[], None] = lambda: None
    stdout: Descriptor = field(default_factory=lambda: Descriptor(STDOUT))
    stderr: Descriptor = field(default_factory=lambda: Descriptor(STDERR))
    status: int | None = None
    _control: session.Control = field(default_factory=session.Control)

    def control(self, data: bytes) -> None:
        """What the guest's init says."""
        for event in self._control.receive(data):
            match event:
                case session.Input():
                    self.on_input()
                case session.Exit(status):
                    self.status = status


@dataclass(frozen=True, slots=True)
class Ended:
    """How it ended: what the machine says, what the user did, and what came in over the serial lines."""

    stopped: Stopped
    left: bool
    """The user left by the escape key."""
    signal: int
    """That ended it, or 0."""
    ends: Ends
    plan: Plan


def launch(what: Description, conclude: Callable[[Ended], int] | None = None, patient: bool = True) -> int:
    """Boot and run until the guest ends, or the user ends it. Returns the exit status that `conclude` makes of it.

    `patient`: a first SIGINT only warns. Raises `Refusal` if there can be no such machine; nothing has run then.
    """
    plan = what.plan
    looked_on = any(outside.addresses(what))
    with _ends(plan) as ends:
        try:
            guest_memory = GuestMemory(what.memory)
        except (ValueError, OSError) as error:
            raise Refusal(f"{what.memory >> 20} MiB of guest memory cannot be had: {error}; ask for less") from error
        with guest_memory:
            machine = make(what, guest_memory, ends.outputs)
            controller = Controller(machine, paused=what.paused, linger=what.linger)

            def feed(data: bytes) -> None:
                with machine.bus.lock:
                    machine.consoles[plan.input_line].feed(data)

            def backlog() -> int:
                return len(machine.consoles[plan.input_line].queue)

            attendant = Attendant(controller, plan.input, feed, backlog, patient)
            machine.expects_input = looked_on or plan.input is not Input.NONE
            ends.on_input = attendant.want_input
            ends.stdout.on_failure = attendant.stop
            try:
                with outside.serving(what, controller):
                    stopped = attendant.run(what.timeout)
            except Stuck:
                print("xuni: the machine does not stop; leaving it", file=sys.stderr, flush=True)
                os._exit(128 + (attendant.signal or signal.SIGINT))
            if what.verbose:
                for remark in engines.remarks(machine.vcpus):
                    print(f"xuni: {remark}", file=sys.stderr)
            return (conclude or _conclude)(Ended(stopped, attendant.left, attendant.signal, ends, plan))


def make(what: Description, memory: GuestMemory, outputs: tuple[Sink, ...]) -> Pc:
    """The machine, with the guest in its memory, before its first instruction. `outputs` take the serial lines' bytes."""
    plan, cpu = what.plan, what.cpu
    apic = LocalApicConfig(
        x2apic="x2apic" in cpu.features, tsc_deadline="tsc_deadline_timer" in cpu.features,
        physical_address_bits=cpu.physical_bits,
    )  # fmt: skip
    config = replace(what.board, cpus=what.cpus, local_apic=apic)
    boot = BootConfig(plan.kernel, plan.initrd, plan.append, plan.format, rng_seed=os.urandom(SEED_SIZE))
    try:
        # Before the engine, which may have to be compiled: a file that does not boot should be refused at once.
        state = load(memory, boot, config.facts())
        chosen = engines.choose(what.engine, cpu)
        machine = Pc(memory, chosen.engine, config, outputs, what.wall_clock)
    except (BootError, ValueError) as error:
        raise Refusal(str(error)) from error
    if what.verbose:
        print(f"xuni: engine {chosen.name}: {chosen.reason}", file=sys.stderr)

    def start(state: CpuState) -> None:
        if plan.format is Format.MULTIBOOT:
            machine.legacy_firmware_state()  # such kernels may go back to real mode, and find it as a boot loader did
        machine.vcpus[0].start(state)

    start(state)

    def reload() -> None:
        start(load(memory, boot, config.facts()))

    machine.reboot = reload if what.reboot else None
    machine.reload = reload if what.reset else None
    return machine


@contextmanager
def tracing(patterns: Sequence[str], to: TextIO | None = None) -> Iterator[None]:
    """Events of the probes that match go to standard error, or to a file, with seconds since now."""
    start = time.monotonic_ns()

    def show(event: trace.Event) -> None:
        print(f"{(event.nanoseconds - start) / 1e9:12.6f} {event}", file=to or sys.stderr)

    try:
        with trace.listen(patterns, show):
            yield
    except trace.NoSuchProbe as error:
        raise Refusal(f"--trace: {error}") from error


@contextmanager
def _ends(plan: Plan) -> Iterator[Ends]:
    """Open what the serial lines end in; files are closed again, and what could not be written is said."""
    ends = Ends()
    with ExitStack() as open_files:
        ends.outputs = tuple(_sink(serial, ends, open_files) for serial in plan.serial)
        yield ends


def _sink(serial: SerialEnd, ends: Ends, open_files: ExitStack) -> Sink:
    match serial.end:
        case End.STDOUT: return ends.stdout
        case End.STDERR: return ends.stderr
        case End.NOWHERE: return nowhere
        case End.CONTROL: return ends.control
        case End.HIDDEN:
            ends.tail = Tail()
            return ends.tail
        case End.FILE:
            assert serial.file is not None
            return open_files.enter_context(_file(serial.file, "ab" if serial.append else "wb"))


@contextmanager
def _file(path: Path, mode: str) -> Iterator[Descriptor]:
    try:
        file: IO[bytes] = open(path, mode, buffering=0)
    except OSError as error:
        raise Refusal(f"serial line to {path}: {error.strerror}; name a file to write to") from error
    with file:
        sink = Descriptor(file.fileno())
        yield sink
        if sink.failure:
            print(f"xuni: {path}: {sink.failure.strerror}; the rest was lost", file=sys.stderr)


def _conclude(ended: Ended) -> int:
    """Say on stderr what is not plain, and choose the exit status."""
    stopped, ends, plan = ended.stopped, ended.ends, ended.plan
    if ended.left:
        return 0
    if ended.signal:
        return 128 + ended.signal
    if ends.stdout.failure:
        return BROKEN_PIPE
    if ends.status is not None:
        return ends.status
    match stopped:
        case PowerOff() | DebugExit() | Quit(): return stopped.exit_status
        case Reset() if plan.session is None: return stopped.exit_status
    for line in ends.tail.lines(TAIL_LINES) if ends.tail else ():
        print(f"guest: {line}", file=sys.stderr)
    print(f"xuni: {stopped}", file=sys.stderr)
    return NO_STATUS if isinstance(stopped, Reset) else stopped.exit_status
