"""Makes a machine's virtual CPUs under KVM: what `xuni.machine.machine.Engine` asks for."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from xuni.engine.kvm.machine import KvmMachine, require
from xuni.engine.kvm.vcpu import KvmConfig, KvmVcpu
from xuni.host.kvm import Kvm, KvmUnavailable
from xuni.host.kvm.ioctls import DEVICE
from xuni.isa.x86.cpuid import OURS, Identity, Topology

if TYPE_CHECKING:
    from xuni.memory.guest import GuestMemory


class Position(Protocol):
    """Which processor of how many; `xuni.machine.machine.CpuConfig`."""

    @property
    def index(self) -> int:
        """Also its APIC id."""
        ...

    @property
    def count(self) -> int:
        """How many there are."""
        ...


@dataclass(slots=True)
class KvmEngine:
    """Calling it makes a virtual CPU; those over the same memory belong to one machine.

    Raises KvmUnavailable when it is called first, if there is no KVM that could run them.
    """

    features: frozenset[str]
    physical_bits: int = 40
    identity: Identity = OURS
    topology: Topology | None = None
    clock_base: int = field(default_factory=time.monotonic_ns)
    device: str | None = None
    """Another path than /dev/kvm."""
    machines: dict[int, KvmMachine] = field(default_factory=dict)

    def __call__(self, memory: GuestMemory, position: Position, /) -> KvmVcpu:
        machine = self.machines.get(id(memory))
        if machine is None or machine.closed or machine.memory is not memory:
            machine = self.machines[id(memory)] = KvmMachine(memory, position.count, self.clock_base, self.device)
        config = KvmConfig(self.features, position.index, position.count, self.physical_bits, self.identity,
                           self.topology)  # fmt: skip
        return KvmVcpu(machine, config)


def lacking(device: str | None = None) -> str:
    """Why KVM on this host cannot run guests, with a way out; empty if it can."""
    try:
        with Kvm(device or DEVICE) as kvm:
            require(kvm)
    except KvmUnavailable as error:
        return str(error)
    return ""
