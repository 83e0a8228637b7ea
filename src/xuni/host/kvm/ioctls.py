"""The requests that KVM takes, one a line, as <linux/kvm.h> defines them; and a descriptor that issues them.

To add one: its structure in structures.py, its line here, its method in system.py, vm.py or vcpu.py, and a test.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import Structure, c_uint64
from dataclasses import dataclass
from typing import Any, Final, Self

from xuni.host.kvm import structures as s

DEVICE: Final = "/dev/kvm"
NONE, WRITE, READ, BOTH = 0, 1, 2, 3  # direction, from the caller's side: <asm-generic/ioctl.h>
KVMIO: Final = 0xAE


@dataclass(frozen=True, slots=True)
class Ioctl:
    """A request: direction | size of its structure | 'KVM' | number."""

    name: str
    number: int
    payload: Any = None
    direction: int = NONE

    @property
    def request(self) -> int:
        """The value that ioctl(2) takes; of a structure with entries behind it, the header's size counts."""
        size = 0
        if self.payload:
            size = self.payload.SIZE_IN_REQUEST if hasattr(self.payload, "SIZE_IN_REQUEST") else ctypes.sizeof(self.payload)
        return self.direction << 30 | size << 16 | KVMIO << 8 | self.number


# On /dev/kvm.
GET_API_VERSION = Ioctl("KVM_GET_API_VERSION", 0x00)
CREATE_VM = Ioctl("KVM_CREATE_VM", 0x01)
GET_MSR_INDEX_LIST = Ioctl("KVM_GET_MSR_INDEX_LIST", 0x02, s.MsrList, BOTH)
CHECK_EXTENSION = Ioctl("KVM_CHECK_EXTENSION", 0x03)
GET_VCPU_MMAP_SIZE = Ioctl("KVM_GET_VCPU_MMAP_SIZE", 0x04)
GET_SUPPORTED_CPUID = Ioctl("KVM_GET_SUPPORTED_CPUID", 0x05, s.Cpuid2, BOTH)
GET_EMULATED_CPUID = Ioctl("KVM_GET_EMULATED_CPUID", 0x09, s.Cpuid2, BOTH)
GET_MSR_FEATURE_INDEX_LIST = Ioctl("KVM_GET_MSR_FEATURE_INDEX_LIST", 0x0A, s.MsrList, BOTH)
GET_MCE_CAP_SUPPORTED = Ioctl("KVM_X86_GET_MCE_CAP_SUPPORTED", 0x9D, c_uint64, READ)
# On a virtual machine.
CREATE_VCPU = Ioctl("KVM_CREATE_VCPU", 0x41)
GET_DIRTY_LOG = Ioctl("KVM_GET_DIRTY_LOG", 0x42, s.DirtyLog, WRITE)
SET_NR_MMU_PAGES = Ioctl("KVM_SET_NR_MMU_PAGES", 0x44)
SET_USER_MEMORY_REGION = Ioctl("KVM_SET_USER_MEMORY_REGION", 0x46, s.UserspaceMemoryRegion, WRITE)
SET_TSS_ADDR = Ioctl("KVM_SET_TSS_ADDR", 0x47)
SET_IDENTITY_MAP_ADDR = Ioctl("KVM_SET_IDENTITY_MAP_ADDR", 0x48, c_uint64, WRITE)
CREATE_IRQCHIP = Ioctl("KVM_CREATE_IRQCHIP", 0x60)
IRQ_LINE = Ioctl("KVM_IRQ_LINE", 0x61, s.IrqLevel, WRITE)
GET_IRQCHIP = Ioctl("KVM_GET_IRQCHIP", 0x62, s.Irqchip, BOTH)
SET_IRQCHIP = Ioctl("KVM_SET_IRQCHIP", 0x63, s.Irqchip, READ)
IRQ_LINE_STATUS = Ioctl("KVM_IRQ_LINE_STATUS", 0x67, s.IrqLevel, BOTH)
REGISTER_COALESCED_MMIO = Ioctl("KVM_REGISTER_COALESCED_MMIO", 0x67, s.CoalescedMmioZone, WRITE)
UNREGISTER_COALESCED_MMIO = Ioctl("KVM_UNREGISTER_COALESCED_MMIO", 0x68, s.CoalescedMmioZone, WRITE)
SET_GSI_ROUTING = Ioctl("KVM_SET_GSI_ROUTING", 0x6A, s.IrqRouting, WRITE)
REINJECT_CONTROL = Ioctl("KVM_REINJECT_CONTROL", 0x71, s.ReinjectControl)
IRQFD = Ioctl("KVM_IRQFD", 0x76, s.Irqfd, WRITE)
CREATE_PIT2 = Ioctl("KVM_CREATE_PIT2", 0x77, s.PitConfig, WRITE)
SET_BOOT_CPU_ID = Ioctl("KVM_SET_BOOT_CPU_ID", 0x78)
IOEVENTFD = Ioctl("KVM_IOEVENTFD", 0x79, s.Ioeventfd, WRITE)
SET_CLOCK = Ioctl("KVM_SET_CLOCK", 0x7B, s.ClockData, WRITE)
GET_CLOCK = Ioctl("KVM_GET_CLOCK", 0x7C, s.ClockData, READ)
GET_PIT2 = Ioctl("KVM_GET_PIT2", 0x9F, s.PitState2, READ)
SET_PIT2 = Ioctl("KVM_SET_PIT2", 0xA0, s.PitState2, WRITE)
SIGNAL_MSI = Ioctl("KVM_SIGNAL_MSI", 0xA5, s.Msi, WRITE)
CLEAR_DIRTY_LOG = Ioctl("KVM_CLEAR_DIRTY_LOG", 0xC0, s.ClearDirtyLog, BOTH)
SET_MSR_FILTER = Ioctl("KVM_X86_SET_MSR_FILTER", 0xC6, s.MsrFilter, WRITE)
RESET_DIRTY_RINGS = Ioctl("KVM_RESET_DIRTY_RINGS", 0xC7)
CREATE_DEVICE = Ioctl("KVM_CREATE_DEVICE", 0xE0, s.CreateDevice, BOTH)
# On a virtual CPU.
RUN = Ioctl("KVM_RUN", 0x80)
GET_REGS = Ioctl("KVM_GET_REGS", 0x81, s.Regs, READ)
SET_REGS = Ioctl("KVM_SET_REGS", 0x82, s.Regs, WRITE)
GET_SREGS = Ioctl("KVM_GET_SREGS", 0x83, s.Sregs, READ)
SET_SREGS = Ioctl("KVM_SET_SREGS", 0x84, s.Sregs, WRITE)
TRANSLATE = Ioctl("KVM_TRANSLATE", 0x85, s.Translation, BOTH)
INTERRUPT = Ioctl("KVM_INTERRUPT", 0x86, s.Interrupt, WRITE)
GET_MSRS = Ioctl("KVM_GET_MSRS", 0x88, s.Msrs, BOTH)
SET_MSRS = Ioctl("KVM_SET_MSRS", 0x89, s.Msrs, WRITE)
SET_SIGNAL_MASK = Ioctl("KVM_SET_SIGNAL_MASK", 0x8B, s.SignalMask, WRITE)
GET_FPU = Ioctl("KVM_GET_FPU", 0x8C, s.Fpu, READ)
SET_FPU = Ioctl("KVM_SET_FPU", 0x8D, s.Fpu, WRITE)
GET_LAPIC = Ioctl("KVM_GET_LAPIC", 0x8E, s.LapicState, READ)
SET_LAPIC = Ioctl("KVM_SET_LAPIC", 0x8F, s.LapicState, WRITE)
SET_CPUID2 = Ioctl("KVM_SET_CPUID2", 0x90, s.Cpuid2, WRITE)
GET_CPUID2 = Ioctl("KVM_GET_CPUID2", 0x91, s.Cpuid2, BOTH)
TPR_ACCESS_REPORTING = Ioctl("KVM_TPR_ACCESS_REPORTING", 0x92, s.TprAccessCtl, BOTH)
SET_VAPIC_ADDR = Ioctl("KVM_SET_VAPIC_ADDR", 0x93, s.VapicAddr, WRITE)
GET_MP_STATE = Ioctl("KVM_GET_MP_STATE", 0x98, s.MpState, READ)
SET_MP_STATE = Ioctl("KVM_SET_MP_STATE", 0x99, s.MpState, WRITE)
NMI = Ioctl("KVM_NMI", 0x9A)
SET_GUEST_DEBUG = Ioctl("KVM_SET_GUEST_DEBUG", 0x9B, s.GuestDebug, WRITE)
SETUP_MCE = Ioctl("KVM_X86_SETUP_MCE", 0x9C, c_uint64, WRITE)
SET_MCE = Ioctl("KVM_X86_SET_MCE", 0x9E, s.Mce, WRITE)
GET_VCPU_EVENTS = Ioctl("KVM_GET_VCPU_EVENTS", 0x9F, s.VcpuEvents, READ)
SET_VCPU_EVENTS = Ioctl("KVM_SET_VCPU_EVENTS", 0xA0, s.VcpuEvents, WRITE)
GET_DEBUGREGS = Ioctl("KVM_GET_DEBUGREGS", 0xA1, s.Debugregs, READ)
SET_DEBUGREGS = Ioctl("KVM_SET_DEBUGREGS", 0xA2, s.Debugregs, WRITE)
SET_TSC_KHZ = Ioctl("KVM_SET_TSC_KHZ", 0xA2)
GET_TSC_KHZ = Ioctl("KVM_GET_TSC_KHZ", 0xA3)
GET_XSAVE = Ioctl("KVM_GET_XSAVE", 0xA4, s.Xsave, READ)
SET_XSAVE = Ioctl("KVM_SET_XSAVE", 0xA5, s.Xsave, WRITE)
GET_XCRS = Ioctl("KVM_GET_XCRS", 0xA6, s.Xcrs, READ)
SET_XCRS = Ioctl("KVM_SET_XCRS", 0xA7, s.Xcrs, WRITE)
KVMCLOCK_CTRL = Ioctl("KVM_KVMCLOCK_CTRL", 0xAD)
SMI = Ioctl("KVM_SMI", 0xB7)
GET_NESTED_STATE = Ioctl("KVM_GET_NESTED_STATE", 0xBE, s.NestedState, BOTH)
SET_NESTED_STATE = Ioctl("KVM_SET_NESTED_STATE", 0xBF, s.NestedState, WRITE)
GET_SREGS2 = Ioctl("KVM_GET_SREGS2", 0xCC, s.Sregs2, READ)
SET_SREGS2 = Ioctl("KVM_SET_SREGS2", 0xCD, s.Sregs2, WRITE)
GET_XSAVE2 = Ioctl("KVM_GET_XSAVE2", 0xCF, s.Xsave, READ)
# On several of these.
ENABLE_CAP = Ioctl("KVM_ENABLE_CAP", 0xA3, s.EnableCap, WRITE)
GET_STATS_FD = Ioctl("KVM_GET_STATS_FD", 0xCE)
SET_DEVICE_ATTR = Ioctl("KVM_SET_DEVICE_ATTR", 0xE1, s.DeviceAttr, WRITE)
GET_DEVICE_ATTR = Ioctl("KVM_GET_DEVICE_ATTR", 0xE2, s.DeviceAttr, WRITE)
HAS_DEVICE_ATTR = Ioctl("KVM_HAS_DEVICE_ATTR", 0xE3, s.DeviceAttr, WRITE)

_libc = ctypes.CDLL(None, use_errno=True)
_ioctl = _libc.ioctl
_ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong)


class Descriptor:
    """An open file that knows how to issue ioctls and to close itself."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def call(self, call: Ioctl, argument: Structure | c_uint64 | int = 0) -> int:
        """Issue a request. A structure is passed by its address, and what the kernel writes is in it afterwards.

        Raises OSError whose message begins with the request's name.
        """
        if isinstance(argument, int):
            assert call.payload is None, f"{call.name} takes a {call.payload}"
            value = argument
        else:
            assert call.payload and isinstance(argument, call.payload), f"{call.name}: {type(argument)}"
            # SAFETY: `argument` lives until the call returns; the kernel writes no more than the structure's size, and
            # behind a header that counts entries no more than that count.
            value = ctypes.addressof(argument)
        result: int = _ioctl(self.fd, call.request, value)
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{call.name}: {os.strerror(number)}")
        return result

    def check(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION: 0 if the host lacks it; what another value means depends on the capability."""
        return self.call(CHECK_EXTENSION, capability)

    def enable(self, capability: int, *args: int) -> None:
        """KVM_ENABLE_CAP."""
        request = s.EnableCap(cap=int(capability))
        for n, value in enumerate(args):
            request.args[n] = value
        self.call(ENABLE_CAP, request)

    def set_attribute(self, group: int, attribute: int, value: int) -> None:
        """KVM_SET_DEVICE_ATTR of 64 bits."""
        place = c_uint64(value)
        self.call(SET_DEVICE_ATTR, s.DeviceAttr(0, group, attribute, ctypes.addressof(place)))

    def get_attribute(self, group: int, attribute: int) -> int:
        """KVM_GET_DEVICE_ATTR of 64 bits."""
        place = c_uint64()
        self.call(GET_DEVICE_ATTR, s.DeviceAttr(0, group, attribute, ctypes.addressof(place)))
        return place.value

    def has_attribute(self, group: int, attribute: int) -> bool:
        """KVM_HAS_DEVICE_ATTR."""
        try:
            self.call(HAS_DEVICE_ATTR, s.DeviceAttr(0, group, attribute))
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close the file; no-op when repeated."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "fd", -1) >= 0:
            os.close(self.fd)
            self.fd = -1
