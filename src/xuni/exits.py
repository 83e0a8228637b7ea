"""The words between an engine and a machine: why a virtual CPU stopped, and what it is told before it goes on.

An engine offers `Vcpu.run(reply) -> Exit`. Every exit is a frozen record; the machine answers with a reply of the
matching kind. An exit that needs data (`PortIn`, `MmioRead`, `MsrRead`, ...) leaves the instruction unfinished: the
next `run` completes it with the data in the reply. All integers are unsigned; `size` is in bytes (1, 2, 4 or 8).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol, runtime_checkable

from xuni.isa.x86.cpustate import CpuState, VcpuState


@dataclass(frozen=True, slots=True)
class PortIn:
    """The guest reads `size` bytes from an I/O port. Answer: `Data`."""

    port: int
    size: int


@dataclass(frozen=True, slots=True)
class PortOut:
    """The guest writes `data` to an I/O port. Answer: `Resume`."""

    port: int
    size: int
    data: int


@dataclass(frozen=True, slots=True)
class MmioRead:
    """The guest reads a guest-physical address that is not memory. Answer: `Data`."""

    address: int
    size: int


@dataclass(frozen=True, slots=True)
class MmioWrite:
    """The guest writes a guest-physical address that is not (writable) memory. Answer: `Resume`."""

    address: int
    size: int
    data: int


@dataclass(frozen=True, slots=True)
class MsrRead:
    """RDMSR of a register that a chip owns (local APIC). Answer: `Data`, or `Refuse` for #GP(0)."""

    index: int


@dataclass(frozen=True, slots=True)
class MsrWrite:
    """WRMSR to a register that a chip owns. Answer: `Resume`, or `Refuse` for #GP(0)."""

    index: int
    data: int


@dataclass(frozen=True, slots=True)
class TprRead:
    """MOV from CR8: the task priority class (0-15) of the local APIC. Answer: `Data`."""


@dataclass(frozen=True, slots=True)
class TprWrite:
    """MOV to CR8. Answer: `Resume`."""

    data: int


@dataclass(frozen=True, slots=True)
class Hypercall:
    """The guest's kernel asks its hypervisor (VMCALL, VMMCALL) for `call`, with four arguments of `size` bytes: 8 from
    64-bit code, else 4. Answer: `Data`, what RAX gets.
    """

    call: int
    arguments: tuple[int, ...]
    size: int


@dataclass(frozen=True, slots=True)
class InterruptWindow:
    """The interrupt pin is up and the guest can take an interrupt now. Answer: `Inject`, or `Resume` for none."""


@dataclass(frozen=True, slots=True)
class Halt:
    """HLT with interrupts enabled or disabled; the vCPU sleeps until an interrupt, an NMI, or INIT. Answer:
    `Resume`.
    """


@dataclass(frozen=True, slots=True)
class Sliced:
    """The deadline passed, or `kick` was called: the machine should look at its timers and queues. Answer: `Resume`."""


class DebugCause(Enum):
    """Why a debugger's stop came."""

    STEP = "step"
    BREAKPOINT = "breakpoint"
    WATCHPOINT = "watchpoint"


@dataclass(frozen=True, slots=True)
class Debugged:
    """The host's debugger asked for this stop (`Vcpu.debug`). Answer: `Resume`.

    STEP: one instruction, or one delivery of an event, was completed. BREAKPOINT: the instruction at the linear
    `address` is next and has not begun; resuming executes it. WATCHPOINT: the last instruction accessed `address`.
    """

    cause: DebugCause
    address: int


@dataclass(frozen=True, slots=True)
class Shutdown:
    """The processor shut down: a triple fault. `reason` says which exceptions led there, and at which RIP."""

    reason: str


@dataclass(frozen=True, slots=True)
class EngineFailure:
    """The engine itself cannot go on (KVM_EXIT_INTERNAL_ERROR, an engine limit). Never the guest's fault."""

    reason: str


Exit = (
    PortIn | PortOut | MmioRead | MmioWrite | MsrRead | MsrWrite | TprRead | TprWrite | Hypercall
    | InterruptWindow | Halt | Sliced | Debugged | Shutdown | EngineFailure
)


@dataclass(frozen=True, slots=True)
class Resume:
    """Go on; the last exit needs no data."""


@dataclass(frozen=True, slots=True)
class Data:
    """The value that the last exit asked for; bits beyond the asked size are ignored."""

    value: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """The last exit is refused: the guest gets #GP(0)."""


@dataclass(frozen=True, slots=True)
class Inject:
    """Deliver this external interrupt vector (already acknowledged at its controller)."""

    vector: int


Reply = Resume | Data | Refuse | Inject


@dataclass(frozen=True, slots=True)
class Watchpoint:
    """Stop after an instruction that writes (or, unless `writes_only`, reads) any of `length` bytes at the linear
    `address`; `length` is 1, 2, 4 or 8 and `address` a multiple of it.
    """

    address: int
    length: int
    writes_only: bool = True


@dataclass(frozen=True, slots=True)
class DebugControl:
    """What the host's debugger wants to be told of; the guest sees none of it."""

    step: bool = False
    breakpoints: frozenset[int] = frozenset()
    """Linear addresses; engines take thousands."""
    watchpoints: tuple[Watchpoint, ...] = ()
    """At most four."""


class Vcpu(Protocol):
    """One virtual CPU, whatever executes it. `run` may be called from any one thread; the others from any thread."""

    def run(self, reply: Reply) -> Exit:
        """Complete the last exit with `reply`, then execute until the next one."""
        ...

    def set_deadline(self, nanoseconds: int) -> None:
        """`run` returns `Sliced` soon after the guest clock (see `now`) passes this time; 2**63-1 means never."""
        ...

    def set_interrupt(self, level: bool) -> None:
        """Drive the INTR pin: while it is up and the guest accepts interrupts, `run` returns `InterruptWindow`."""
        ...

    def nmi(self) -> None:
        """Latch a non-maskable interrupt."""
        ...

    def init(self) -> None:
        """INIT: reset the architectural state to that after INIT# and wait for `startup` (not on the boot CPU)."""
        ...

    def startup(self, vector: int) -> None:
        """SIPI: leave wait-for-SIPI and begin in real mode at `vector << 12`."""
        ...

    def kick(self) -> None:
        """Make a running `run` return `Sliced` soon. Thread- and signal-safe."""
        ...

    def start(self, at: CpuState) -> None:
        """Begin with the registers that a boot loader prepared; the rest is as after reset."""
        ...

    def save(self) -> VcpuState:
        """Everything that the processor would need to go on elsewhere. Only between two instructions: after `Sliced`,
        `Debugged` or `Halt`, or before the first `run`.
        """
        ...

    def load(self, state: VcpuState) -> None:
        """Go on from a saved state, of this or of another engine. Raises ValueError if it asks for what is not here."""
        ...

    def translate(self, linear: int) -> int | None:
        """The guest-physical address behind a linear one, as a supervisor reads it now, or None. Changes nothing."""
        ...

    def debug(self, control: DebugControl) -> None:
        """Replace what the host's debugger wants to be told of. While `run` is not running; ValueError: too much."""
        ...

    def now(self) -> int:
        """The guest clock in nanoseconds since the machine was made; the TSC ticks once per nanosecond."""
        ...

    def set_now(self, nanoseconds: int) -> None:
        """Set the guest clock, and with it the TSC: time does not pass for a guest that is paused. While `run` is not
        running.
        """
        ...


@runtime_checkable
class OwnTsc(Protocol):
    """A virtual CPU whose time-stamp counter does not tick once per nanosecond of the guest clock."""

    def tsc_time(self, tsc: int) -> int:
        """The guest clock at which the time-stamp counter reaches `tsc`."""
        ...


class PortServer(Protocol):
    """Serves port accesses where they happen."""

    def read(self, port: int, size: int) -> int:
        """IN: the answer to a `PortIn`."""
        ...

    def write(self, port: int, size: int, data: int) -> None:
        """OUT: what a `PortOut` asks for."""
        ...


@runtime_checkable
class ServesPorts(Protocol):
    """A virtual CPU that need not end `run` for a port access, if it is told who serves them."""

    def serve_ports(self, server: PortServer | None) -> None:
        """From now on hand port accesses to `server` instead of ending `run`; None: end it again."""
        ...
