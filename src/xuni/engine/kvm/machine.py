"""What the virtual CPUs of one machine share in KVM: the memory slots, the MSRs that end in exits, the clock."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from xuni.engine.kvm import cpuid
from xuni.engine.kvm.saved import TSC
from xuni.host.kvm import Kvm, KvmUnavailable, MemoryFlag
from xuni.host.kvm.capabilities import Cap
from xuni.host.kvm.structures import RunMsr
from xuni.host.kvm.vcpu import TSC_CTRL, TSC_OFFSET

if TYPE_CHECKING:
    from xuni.engine.kvm.vcpu import KvmVcpu
    from xuni.memory.guest import GuestMemory, Slot

REQUIRED: Final = (Cap.USER_MEMORY, Cap.MP_STATE, Cap.VCPU_EVENTS, Cap.DEBUGREGS, Cap.XSAVE, Cap.XCRS, Cap.IMMEDIATE_EXIT,
                   Cap.GET_TSC_KHZ, Cap.X86_USER_SPACE_MSR, Cap.X86_MSR_FILTER, Cap.READONLY_MEM)  # fmt: skip
OURS: Final = (range(0x1B, 0x1C), range(0x6E0, 0x6E1))
"""MSRs of the board's local APIC: IA32_APIC_BASE and IA32_TSC_DEADLINE. KVM refuses those of x2APIC by itself."""
TSS: Final = 0xFFFB_D000
"""Where KVM on Intel keeps four pages of its own, below the place of the firmware."""
TSC_KHZ: Final = 1_000_000
"""A tick a nanosecond, where KVM can scale the counter; elsewhere it ticks at the host's rate."""


def require(kvm: Kvm) -> None:
    """Raises KvmUnavailable if KVM lacks what every machine here takes."""
    if lacking := [cap.name for cap in REQUIRED if not kvm.check(cap)]:
        raise KvmUnavailable(f"/dev/kvm lacks {' '.join(lacking)}; a newer kernel has it, or use the soft engine")


@dataclass(frozen=True, slots=True)
class MemorySlot:
    """A slot as KVM knows it."""

    number: int
    start: int
    size: int
    host: int
    flags: MemoryFlag


class KvmMachine:
    """One virtual machine in KVM, over one guest memory. Raises KvmUnavailable if KVM lacks what it takes."""

    def __init__(self, memory: GuestMemory, cpus: int, clock_base: int | None = None, path: str | None = None) -> None:
        self.kvm = Kvm(path) if path else Kvm()
        require(self.kvm)
        most = self.kvm.check(Cap.MAX_VCPUS)
        if cpus > most:
            raise KvmUnavailable(f"{cpus} processors: KVM here runs {most} at most; ask for fewer, or use the soft engine")
        self.memory = memory
        self.clock_base = time.monotonic_ns() if clock_base is None else clock_base
        self.vm = self.kvm.create_vm()
        self.supported = self.kvm.supported_cpuid()
        self.has_sregs2 = bool(self.kvm.check(Cap.SREGS2))
        self.can_scale_tsc = bool(self.kvm.check(Cap.TSC_CONTROL))
        self.pkru_offset = next((int(e.ebx) for e in self.supported if (e.function, e.index) == (0xD, 9)), 0)
        self.vm.set_tss_address(TSS)
        self.vm.enable(Cap.X86_USER_SPACE_MSR, RunMsr.INVAL | RunMsr.UNKNOWN | RunMsr.FILTER)
        self.vm.filter_msrs(OURS)
        if self.kvm.check(Cap.EXIT_ON_EMULATION_FAILURE):  # else user-mode code gets #UD where KVM gives up
            self.vm.enable(Cap.EXIT_ON_EMULATION_FAILURE, 1)
        self._tsc_offset: int | None = None
        self.vcpus: set[KvmVcpu] = set()
        self.closed = False
        self._slots: dict[int, MemorySlot] = {}
        self._numbers = 0
        self._free: list[int] = []
        self._update_slots()
        memory.on_remap.append(self._update_slots)

    def join(self, vcpu: KvmVcpu) -> None:
        """One more virtual CPU. All time-stamp counters tell the same time, from 0 when the machine was made."""
        self.vcpus.add(vcpu)
        if self._tsc_offset is None:
            vcpu.kvm.set_msrs({TSC: self.now() * vcpu.tsc_khz // 1_000_000})
            if vcpu.kvm.has_attribute(TSC_CTRL, TSC_OFFSET):
                self._tsc_offset = vcpu.kvm.tsc_offset()
        else:
            vcpu.kvm.set_tsc_offset(self._tsc_offset)

    def physical_bits(self, wanted: int) -> int:
        """MAXPHYADDR of a guest: what is wanted, as far as the host has it."""
        return min(wanted, cpuid.physical_bits(self.supported))

    def now(self) -> int:
        """The guest clock, ns."""
        return time.monotonic_ns() - self.clock_base

    def set_now(self, nanoseconds: int) -> None:
        """Set the guest clock, and the time-stamp counters by as much. While no virtual CPU runs."""
        step = nanoseconds - self.now()
        self.clock_base -= step
        for vcpu in self.vcpus:
            if vcpu.kvm.has_attribute(TSC_CTRL, TSC_OFFSET):
                vcpu.kvm.set_tsc_offset(vcpu.kvm.tsc_offset() + step * vcpu.tsc_khz // 1_000_000)

    def _update_slots(self) -> None:
        """Have KVM's slots follow the memory's; those that stay are not touched."""
        wanted = {slot.start: slot for slot in self.memory.slots}
        for start, known in list(self._slots.items()):
            if not _same(known, wanted.get(start)):
                self.vm.set_memory(known.number, known.start, 0, known.host)
                self._free.append(known.number)
                del self._slots[start]
        for start, slot in wanted.items():
            if start not in self._slots:
                self._add(slot)
        if not wanted:
            self.close()

    def _add(self, slot: Slot) -> None:
        if not self._free:
            self._free.append(self._numbers)
            self._numbers += 1
        number = self._free.pop()
        flags = MemoryFlag(0) if slot.writable else MemoryFlag.READONLY
        # SAFETY: the memory keeps `host_address` mapped until it is closed, which removes every slot through `on_remap`
        # after the machine has stopped.
        self.vm.set_memory(number, slot.start, slot.size, slot.host_address, flags)
        self._slots[slot.start] = MemorySlot(number, slot.start, slot.size, slot.host_address, flags)

    def release(self, vcpu: KvmVcpu) -> None:
        """One of the virtual CPUs is closed; with the last one the machine goes."""
        self.vcpus.discard(vcpu)
        if not self.vcpus:
            self.close()

    def close(self) -> None:
        """Let KVM's objects go."""
        self.closed = True
        if self._update_slots in self.memory.on_remap:
            self.memory.on_remap.remove(self._update_slots)
        self.vm.close()
        self.kvm.close()


def _same(known: MemorySlot, slot: Slot | None) -> bool:
    if slot is None:
        return False
    writable = not known.flags & MemoryFlag.READONLY
    return (known.size, known.host, writable) == (slot.size, slot.host_address, slot.writable)
