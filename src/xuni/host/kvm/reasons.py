"""Why KVM_RUN returned, each reason a type; `reason` reads it from the run page.

The fields are the run page's, under its names. What belongs to other architectures comes as `Other`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from xuni.host.kvm.structures import RunEmulationFailure, RunInternal

if TYPE_CHECKING:
    from xuni.host.kvm.structures import Run


class ExitReason(IntEnum):
    """KVM_EXIT_*."""

    UNKNOWN, EXCEPTION, IO, HYPERCALL, DEBUG, HLT, MMIO, IRQ_WINDOW_OPEN, SHUTDOWN, FAIL_ENTRY = range(10)
    INTR, SET_TPR, TPR_ACCESS = 10, 11, 12
    NMI, INTERNAL_ERROR, WATCHDOG = 16, 17, 21
    SYSTEM_EVENT, IOAPIC_EOI, HYPERV = 24, 26, 27
    X86_RDMSR, X86_WRMSR, DIRTY_RING_FULL, AP_RESET_HOLD, X86_BUS_LOCK, XEN = 29, 30, 31, 32, 33, 34
    NOTIFY, MEMORY_FAULT, TDX = 37, 39, 40


@dataclass(frozen=True, slots=True)
class Unknown:
    """The hardware's reason is one that KVM does not know."""

    hardware_exit_reason: int


@dataclass(frozen=True, slots=True)
class GuestException:
    exception: int
    error_code: int


@dataclass(frozen=True, slots=True)
class Io:
    """`count` accesses of `size` bytes to one port; their data lie at `data_offset` of the mapping."""

    out: bool
    size: int
    port: int
    count: int
    data_offset: int


@dataclass(frozen=True, slots=True)
class Mmio:
    phys_addr: int
    data: bytes
    is_write: bool


@dataclass(frozen=True, slots=True)
class Hypercall:
    nr: int
    args: tuple[int, ...]
    flags: int


@dataclass(frozen=True, slots=True)
class Debug:
    exception: int
    pc: int
    dr6: int
    dr7: int


@dataclass(frozen=True, slots=True)
class Hlt:
    pass


@dataclass(frozen=True, slots=True)
class IrqWindowOpen:
    pass


@dataclass(frozen=True, slots=True)
class Shutdown:
    pass


@dataclass(frozen=True, slots=True)
class FailEntry:
    hardware_entry_failure_reason: int
    cpu: int


@dataclass(frozen=True, slots=True)
class Intr:
    """A signal."""


@dataclass(frozen=True, slots=True)
class SetTpr:
    cr8: int


@dataclass(frozen=True, slots=True)
class TprAccess:
    rip: int
    is_write: bool


@dataclass(frozen=True, slots=True)
class Nmi:
    pass


@dataclass(frozen=True, slots=True)
class EmulationFailure:
    """KVM met an instruction that it cannot emulate; `instruction` is empty where it does not say which."""

    instruction: bytes


@dataclass(frozen=True, slots=True)
class InternalError:
    suberror: int
    data: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Watchdog:
    pass


@dataclass(frozen=True, slots=True)
class SystemEvent:
    type: int
    data: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class IoapicEoi:
    vector: int


@dataclass(frozen=True, slots=True)
class Rdmsr:
    index: int
    why: int


@dataclass(frozen=True, slots=True)
class Wrmsr:
    index: int
    data: int
    why: int


@dataclass(frozen=True, slots=True)
class DirtyRingFull:
    pass


@dataclass(frozen=True, slots=True)
class ApResetHold:
    pass


@dataclass(frozen=True, slots=True)
class BusLock:
    pass


@dataclass(frozen=True, slots=True)
class Notify:
    flags: int


@dataclass(frozen=True, slots=True)
class MemoryFault:
    flags: int
    gpa: int
    size: int


@dataclass(frozen=True, slots=True)
class Other:
    """Hyper-V, Xen, confidential guests, and other architectures."""

    number: int


Reason = (
    Unknown | GuestException | Io | Mmio | Hypercall | Debug | Hlt | IrqWindowOpen | Shutdown | FailEntry | Intr | SetTpr
    | TprAccess | Nmi | EmulationFailure | InternalError | Watchdog | SystemEvent | IoapicEoi | Rdmsr | Wrmsr
    | DirtyRingFull | ApResetHold | BusLock | Notify | MemoryFault | Other
)


def _internal(run: Run) -> Reason:
    error = run.why.internal
    if error.suberror != RunInternal.EMULATION:
        return InternalError(int(error.suberror), tuple(error.data[: min(error.ndata, 16)]))
    failure = run.why.emulation_failure
    known = failure.ndata >= 3 and failure.flags & RunEmulationFailure.INSTRUCTION_BYTES
    return EmulationFailure(bytes(failure.insn_bytes[: min(failure.insn_size, 15)]) if known else b"")


_READERS: dict[int, Callable[[Run], Reason]] = {
    ExitReason.UNKNOWN: lambda run: Unknown(int(run.why.hardware_exit_reason)),
    ExitReason.EXCEPTION: lambda run: GuestException(int(run.why.ex.exception), int(run.why.ex.error_code)),
    ExitReason.IO: lambda run: Io(run.why.io.direction == 1, int(run.why.io.size), int(run.why.io.port),
                                  int(run.why.io.count), int(run.why.io.data_offset)),
    ExitReason.HYPERCALL: lambda run: Hypercall(int(run.why.hypercall.nr), tuple(run.why.hypercall.args),
                                                int(run.why.hypercall.flags)),
    ExitReason.DEBUG: lambda run: Debug(int(run.why.debug.exception), int(run.why.debug.pc), int(run.why.debug.dr6),
                                        int(run.why.debug.dr7)),
    ExitReason.HLT: lambda run: Hlt(),
    ExitReason.MMIO: lambda run: Mmio(int(run.why.mmio.phys_addr), bytes(run.why.mmio.data[: min(run.why.mmio.len, 8)]),
                                      bool(run.why.mmio.is_write)),
    ExitReason.IRQ_WINDOW_OPEN: lambda run: IrqWindowOpen(),
    ExitReason.SHUTDOWN: lambda run: Shutdown(),
    ExitReason.FAIL_ENTRY: lambda run: FailEntry(int(run.why.fail_entry.hardware_entry_failure_reason),
                                                 int(run.why.fail_entry.cpu)),
    ExitReason.INTR: lambda run: Intr(),
    ExitReason.SET_TPR: lambda run: SetTpr(int(run.cr8)),
    ExitReason.TPR_ACCESS: lambda run: TprAccess(int(run.why.tpr_access.rip), bool(run.why.tpr_access.is_write)),
    ExitReason.NMI: lambda run: Nmi(),
    ExitReason.INTERNAL_ERROR: _internal,
    ExitReason.WATCHDOG: lambda run: Watchdog(),
    ExitReason.SYSTEM_EVENT: lambda run: SystemEvent(
        int(run.why.system_event.type), tuple(run.why.system_event.data[: min(run.why.system_event.ndata, 16)])),
    ExitReason.IOAPIC_EOI: lambda run: IoapicEoi(int(run.why.eoi_vector)),
    ExitReason.X86_RDMSR: lambda run: Rdmsr(int(run.why.msr.index), int(run.why.msr.reason)),
    ExitReason.X86_WRMSR: lambda run: Wrmsr(int(run.why.msr.index), int(run.why.msr.data), int(run.why.msr.reason)),
    ExitReason.DIRTY_RING_FULL: lambda run: DirtyRingFull(),
    ExitReason.AP_RESET_HOLD: lambda run: ApResetHold(),
    ExitReason.X86_BUS_LOCK: lambda run: BusLock(),
    ExitReason.NOTIFY: lambda run: Notify(int(run.why.notify_flags)),
    ExitReason.MEMORY_FAULT: lambda run: MemoryFault(int(run.why.memory_fault.flags), int(run.why.memory_fault.gpa),
                                                     int(run.why.memory_fault.size)),
}  # fmt: skip


def reason(run: Run) -> Reason:
    """Why the last KVM_RUN returned."""
    number = int(run.exit_reason)
    reader = _READERS.get(number)
    return reader(run) if reader else Other(number)
