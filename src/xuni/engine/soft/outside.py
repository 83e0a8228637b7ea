"""What only the machine can answer: device accesses, and the processor's end.

Such an access leaves with the instruction unfinished; when the machine comes back, that one is executed again, and takes
the answers of the accesses already made from a log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from xuni.isa.bits import U1, U64, Bits, u1, u64
from xuni.isa.stage import native, staged
from xuni.isa.x86.exceptions import GuestFault, Leave, Vector
from xuni.isa.x86.state import REPLAY, ExitKind

if TYPE_CHECKING:
    from xuni.engine.soft.cpu import SoftCpu



@native
def answered(cpu: SoftCpu) -> U1:
    """Whether this device access of the instruction has been made already; its answer is then in `exit_data`."""
    s = cpu.s
    n = s.replay_next
    if n < s.replay_count:
        s.exit_data = s.replay_data[n & (REPLAY - 1)]
        s.replay_next = n + 1
        return u1(1)
    return u1(0)


@staged
def ask(cpu: SoftCpu, kind: ExitKind, address: Bits, data: Bits, size: Bits) -> Bits:
    """The answer of the machine to a device access: leaves, unless the answer is there."""
    s = cpu.s
    if answered(cpu):
        return s.exit_data
    s.exit_kind = int(kind)
    s.exit_address = address
    s.exit_data = data
    s.exit_size = size
    raise Leave()


@native
def device_read(cpu: SoftCpu, physical: U64, size: U64) -> U64:
    """Read `size` bytes where no memory is."""
    return ask(cpu, ExitKind.MMIO_READ, physical, u64(0), size)


@native
def device_write(cpu: SoftCpu, physical: U64, value: U64, size: U64) -> None:
    """Write `size` bytes where no memory is. Read-only memory ignores writes elsewhere."""
    ask(cpu, ExitKind.MMIO_WRITE, physical, value, size)


@native
def ask_machine(cpu: SoftCpu, address: U64, data: U64, size: U64, kind: ExitKind) -> U64:
    """Any other question to the machine; raises #GP(0) if it refuses."""
    answer = ask(cpu, kind, address, data, size)
    if kind in (ExitKind.MSR_READ, ExitKind.MSR_WRITE):
        if cpu.s.exit_size == 0xFFFF:
            raise GuestFault(cpu, Vector.GP, 0)
    return answer


@native
def shutdown(cpu: SoftCpu) -> NoReturn:
    """A triple fault: back to the machine for good."""
    cpu.s.exit_kind = int(ExitKind.SHUTDOWN)
    raise Leave()
