"""/dev/kvm itself: what it supports, and the making of virtual machines."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from ctypes import c_uint64

from xuni.host.kvm import ioctls, structures
from xuni.host.kvm.ioctls import DEVICE, Descriptor, Ioctl
from xuni.host.kvm.structures import Cpuid2, CpuidEntry2, MsrList, Msrs, with_entries
from xuni.host.kvm.vm import Vm

API_VERSION = 12
MAX_CPUID = 512
"""More entries than any kernel gives (KVM_MAX_CPUID_ENTRIES is 256)."""
MAX_MSRS = 4096


class KvmUnavailable(Exception):
    """There is no KVM to be had here; the message says why and what to do."""


class Kvm(Descriptor):
    """The open device. Raises KvmUnavailable with a line for the user if it cannot be opened or is of no use."""

    def __init__(self, path: str = DEVICE) -> None:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise KvmUnavailable(_why(path, error)) from error
        super().__init__(fd)
        try:
            version = self.call(ioctls.GET_API_VERSION)
        except OSError as error:
            raise KvmUnavailable(f"{path} is not KVM ({error.strerror}); use the soft engine") from error
        if version != API_VERSION:
            raise KvmUnavailable(f"{path} speaks version {version} of KVM's interface, xuni {API_VERSION}; use the soft engine")

    def create_vm(self, kind: int = 0) -> Vm:
        """KVM_CREATE_VM. Raises KvmUnavailable if the processor's virtualization is in use by another hypervisor."""
        try:
            return Vm(self.call(ioctls.CREATE_VM, kind), self.run_size)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise KvmUnavailable(f"{DEVICE} is busy: another hypervisor uses the processor's virtualization; "
                                     "end it, or use the soft engine") from error  # fmt: skip
            raise

    @property
    def run_size(self) -> int:
        """KVM_GET_VCPU_MMAP_SIZE: bytes of a virtual CPU that are mapped."""
        return self.call(ioctls.GET_VCPU_MMAP_SIZE)

    def supported_cpuid(self) -> list[CpuidEntry2]:
        """KVM_GET_SUPPORTED_CPUID: what host and KVM together can give a guest."""
        return self._cpuid(ioctls.GET_SUPPORTED_CPUID)

    def emulated_cpuid(self) -> list[CpuidEntry2]:
        """KVM_GET_EMULATED_CPUID: what KVM can give a guest by emulation, slowly."""
        return self._cpuid(ioctls.GET_EMULATED_CPUID)

    def msr_indexes(self) -> list[int]:
        """KVM_GET_MSR_INDEX_LIST: the MSRs that make up a guest's state."""
        return self._indexes(ioctls.GET_MSR_INDEX_LIST)

    def feature_msr_indexes(self) -> list[int]:
        """KVM_GET_MSR_FEATURE_INDEX_LIST: the MSRs that say what this KVM can do."""
        return self._indexes(ioctls.GET_MSR_FEATURE_INDEX_LIST)

    def feature_msr(self, index: int) -> int:
        """KVM_GET_MSRS on the device: the value of one that `feature_msr_indexes` lists."""
        entry = structures.of_entries(Msrs, structures.MsrEntry, [structures.MsrEntry(index)], nmsrs=1)
        if self.call(ioctls.GET_MSRS, entry) != 1:
            raise OSError(errno.EINVAL, f"KVM_GET_MSRS: no feature MSR {index:#x}")
        return int(entry.entries[0].data)

    def mce_capabilities(self) -> int:
        """KVM_X86_GET_MCE_CAP_SUPPORTED: IA32_MCG_CAP at most."""
        value = c_uint64()
        self.call(ioctls.GET_MCE_CAP_SUPPORTED, value)
        return value.value

    def capabilities(self) -> Iterator[tuple[int, int]]:
        """Number and value of every capability that the device states; some are stated by a virtual machine only."""
        from xuni.host.kvm.capabilities import CAPABILITIES

        for capability in CAPABILITIES:
            yield capability.number, self.check(capability.number)

    def _cpuid(self, call: Ioctl) -> list[CpuidEntry2]:
        room = with_entries(Cpuid2, CpuidEntry2, MAX_CPUID)(nent=MAX_CPUID)
        self.call(call, room)
        return [CpuidEntry2.from_buffer_copy(room.entries[n]) for n in range(room.nent)]

    def _indexes(self, call: Ioctl) -> list[int]:
        room = with_entries(MsrList, structures.u32, MAX_MSRS)(nmsrs=MAX_MSRS)
        self.call(call, room)
        return list(room.entries[: room.nmsrs])


def _why(path: str, error: OSError) -> str:
    match error.errno:
        case errno.ENOENT | errno.ENODEV | errno.ENXIO:
            return (f"{path} is not here: load kvm_intel or kvm_amd, and turn virtualization on in the firmware; "
                    "or use the soft engine")  # fmt: skip
        case errno.EACCES | errno.EPERM:
            return f"{path}: no permission; join the group kvm (usermod -aG kvm $USER, then log in again), or use the soft engine"
        case errno.EBUSY:
            return f"{path} is busy: end the other hypervisor, or use the soft engine"
    return f"{path}: {error.strerror}; use the soft engine"
