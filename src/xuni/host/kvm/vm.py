"""A virtual machine: its memory, its interrupt hardware in the kernel if it has any, and the making of virtual CPUs."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from ctypes import c_uint64
from enum import IntFlag

from xuni.host.kvm import ioctls
from xuni.host.kvm import structures as s
from xuni.host.kvm.ioctls import Descriptor
from xuni.host.kvm.vcpu import Vcpu

PAGE = 4096


class MemoryFlag(IntFlag):
    """KVM_MEM_*."""

    LOG_DIRTY_PAGES = 1
    READONLY = 2


class Vm(Descriptor):
    """A virtual machine. Closing it leaves the kernel's part alive until its virtual CPUs are closed too."""

    def __init__(self, fd: int, run_size: int) -> None:
        super().__init__(fd)
        self._run_size = run_size

    def create_vcpu(self, number: int) -> Vcpu:
        """KVM_CREATE_VCPU. `number` is also the APIC id of a local APIC in the kernel."""
        return Vcpu(self.call(ioctls.CREATE_VCPU, number), self._run_size)

    # -- memory --------------------------------------------------------------------------------------------------------
    def set_memory(self, slot: int, guest: int, size: int, host: int, flags: int = 0) -> None:
        """KVM_SET_USER_MEMORY_REGION: show `size` bytes at the host address `host` to the guest; 0 removes the slot.

        `flags`: `MemoryFlag`.
        """
        # SAFETY: KVM keeps the address until the slot goes; the caller keeps the memory mapped as long.
        self.call(ioctls.SET_USER_MEMORY_REGION, s.UserspaceMemoryRegion(slot, flags, guest, size, host))

    def dirty_pages(self, slot: int, pages: int) -> bytes:
        """KVM_GET_DIRTY_LOG: one bit for each page of the slot that was written to since the last call."""
        bitmap = ctypes.create_string_buffer(-(-pages // 64) * 8)
        # SAFETY: the kernel writes one bit a page of the slot, rounded up to 64; the caller knows the slot's size.
        self.call(ioctls.GET_DIRTY_LOG, s.DirtyLog(slot, 0, ctypes.addressof(bitmap)))
        return bitmap.raw

    def clear_dirty(self, slot: int, first: int, pages: int, bitmap: bytes) -> None:
        """KVM_CLEAR_DIRTY_LOG: protect these pages again. `first` is a multiple of 64, and so is `pages` unless it
        reaches the slot's end.
        """
        room = ctypes.create_string_buffer(bitmap, -(-pages // 64) * 8)
        self.call(ioctls.CLEAR_DIRTY_LOG, s.ClearDirtyLog(slot, pages, first, ctypes.addressof(room)))

    def reset_dirty_rings(self) -> int:
        """KVM_RESET_DIRTY_RINGS: take back the collected entries of all virtual CPUs' rings; how many there were."""
        return self.call(ioctls.RESET_DIRTY_RINGS)

    def set_mmu_pages(self, count: int) -> None:
        """KVM_SET_NR_MMU_PAGES: at most so many pages for shadow page tables."""
        self.call(ioctls.SET_NR_MMU_PAGES, count)

    def set_tss_address(self, address: int) -> None:
        """KVM_SET_TSS_ADDR: three pages below 4 GiB that KVM on Intel uses for itself in real mode."""
        self.call(ioctls.SET_TSS_ADDR, address)

    def set_identity_map_address(self, address: int) -> None:
        """KVM_SET_IDENTITY_MAP_ADDR: one more such page. Before the first virtual CPU."""
        self.call(ioctls.SET_IDENTITY_MAP_ADDR, c_uint64(address))

    # -- devices that end exits early ----------------------------------------------------------------------------------
    def set_ioeventfd(self, address: int, length: int, fd: int, *, port: bool = False, match: int | None = None,
                      remove: bool = False) -> None:  # fmt: skip
        """KVM_IOEVENTFD: a write of `length` bytes (0: of any) there signals `fd` instead of ending KVM_RUN."""
        flags = s.Ioeventfd.PIO * port | s.Ioeventfd.DATAMATCH * (match is not None) | s.Ioeventfd.DEASSIGN * remove
        self.call(ioctls.IOEVENTFD, s.Ioeventfd(match or 0, address, length, fd, flags))

    def coalesce(self, address: int, size: int, *, port: bool = False) -> None:
        """KVM_REGISTER_COALESCED_MMIO: writes there wait in the ring of each virtual CPU."""
        self.call(ioctls.REGISTER_COALESCED_MMIO, s.CoalescedMmioZone(address, size, port))

    def uncoalesce(self, address: int, size: int, *, port: bool = False) -> None:
        """KVM_UNREGISTER_COALESCED_MMIO."""
        self.call(ioctls.UNREGISTER_COALESCED_MMIO, s.CoalescedMmioZone(address, size, port))

    # -- interrupt hardware in the kernel ------------------------------------------------------------------------------
    def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP: PIC, IOAPIC and local APICs in the kernel. Before the first virtual CPU."""
        self.call(ioctls.CREATE_IRQCHIP)

    def create_pit(self, flags: int = 0) -> None:
        """KVM_CREATE_PIT2. Needs the interrupt controllers in the kernel."""
        self.call(ioctls.CREATE_PIT2, s.PitConfig(flags))

    def pit(self) -> s.PitState2:
        """KVM_GET_PIT2."""
        state = s.PitState2()
        self.call(ioctls.GET_PIT2, state)
        return state

    def set_pit(self, state: s.PitState2) -> None:
        """KVM_SET_PIT2."""
        self.call(ioctls.SET_PIT2, state)

    def set_pit_reinjection(self, on: bool) -> None:
        """KVM_REINJECT_CONTROL: whether ticks that the guest missed are delivered later."""
        self.call(ioctls.REINJECT_CONTROL, s.ReinjectControl(on))

    def irqchip(self, chip: int) -> s.Irqchip:
        """KVM_GET_IRQCHIP: `Irqchip.PIC_MASTER`, `PIC_SLAVE` or `IOAPIC`."""
        state = s.Irqchip(chip)
        self.call(ioctls.GET_IRQCHIP, state)
        return state

    def set_irqchip(self, state: s.Irqchip) -> None:
        """KVM_SET_IRQCHIP."""
        self.call(ioctls.SET_IRQCHIP, state)

    def set_irq(self, gsi: int, level: bool) -> None:
        """KVM_IRQ_LINE: drive an input of the interrupt controllers."""
        self.call(ioctls.IRQ_LINE, s.IrqLevel(gsi, level))

    def set_irq_status(self, gsi: int, level: bool) -> int:
        """KVM_IRQ_LINE_STATUS: the same; how many processors got it, 0 if it was coalesced, -1 if masked."""
        request = s.IrqLevel(gsi, level)
        self.call(ioctls.IRQ_LINE_STATUS, request)
        return ctypes.c_int32(request.irq).value

    def set_routes(self, routes: Iterable[s.IrqRoutingEntry]) -> None:
        """KVM_SET_GSI_ROUTING: replace what each global interrupt number stands for."""
        routes = list(routes)
        self.call(ioctls.SET_GSI_ROUTING, s.of_entries(s.IrqRouting, s.IrqRoutingEntry, routes, nr=len(routes)))

    def set_irqfd(self, fd: int, gsi: int, *, resample: int | None = None, remove: bool = False) -> None:
        """KVM_IRQFD: a signal on the eventfd raises the interrupt; with `resample`, level-triggered, and the guest's EOI
        signals that one.
        """
        flags = s.Irqfd.RESAMPLE * (resample is not None) | s.Irqfd.DEASSIGN * remove
        self.call(ioctls.IRQFD, s.Irqfd(fd, gsi, flags, resample or 0))

    def signal_msi(self, address: int, data: int) -> bool:
        """KVM_SIGNAL_MSI: send a message-signalled interrupt; False if it is masked or nobody took it."""
        return self.call(ioctls.SIGNAL_MSI, s.Msi(address & 0xFFFF_FFFF, address >> 32, data)) > 0

    def set_boot_cpu(self, number: int) -> None:
        """KVM_SET_BOOT_CPU_ID. Before the first virtual CPU."""
        self.call(ioctls.SET_BOOT_CPU_ID, number)

    # -- MSRs, time, statistics ----------------------------------------------------------------------------------------
    def filter_msrs(self, denied: Iterable[range], reads: bool = True, writes: bool = True) -> None:
        """KVM_X86_SET_MSR_FILTER: guests' accesses to these MSRs fail, or end KVM_RUN if that was enabled. At most 16
        ranges; local APIC registers (800h-8FFh) cannot be filtered.
        """
        request = s.MsrFilter(s.MsrFilter.DEFAULT_ALLOW)
        bitmaps = []
        flags = s.MsrFilterRange.READ * reads | s.MsrFilterRange.WRITE * writes
        for n, indexes in enumerate(denied):
            bitmap = ctypes.create_string_buffer(-(-len(indexes) // 64) * 8)  # a bit that is 0 denies
            bitmaps.append(bitmap)
            request.ranges[n] = s.MsrFilterRange(flags, len(indexes), indexes.start, ctypes.addressof(bitmap))
        self.call(ioctls.SET_MSR_FILTER, request)

    def clock(self) -> s.ClockData:
        """KVM_GET_CLOCK: the paravirtual clock."""
        data = s.ClockData()
        self.call(ioctls.GET_CLOCK, data)
        return data

    def set_clock(self, nanoseconds: int) -> None:
        """KVM_SET_CLOCK."""
        self.call(ioctls.SET_CLOCK, s.ClockData(clock=nanoseconds))

    def create_device(self, kind: int, flags: int = 0) -> Descriptor:
        """KVM_CREATE_DEVICE."""
        request = s.CreateDevice(kind, 0, flags)
        self.call(ioctls.CREATE_DEVICE, request)
        return Descriptor(int(request.fd))

    def statistics(self) -> Descriptor:
        """KVM_GET_STATS_FD; `xuni.host.kvm.statistics` reads it."""
        return Descriptor(self.call(ioctls.GET_STATS_FD))
