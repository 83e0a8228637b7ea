"""A virtual CPU: the page that it shares with the kernel, and its registers in all their forms."""

from __future__ import annotations

import ctypes
import errno
import mmap
from collections.abc import Iterable, Mapping, Sequence
from ctypes import c_uint64
from enum import IntFlag

from xuni.host.kvm import ioctls
from xuni.host.kvm import structures as s
from xuni.host.kvm.ioctls import Descriptor

PAGE = 4096
PIO_PAGE, COALESCED_PAGE, DIRTY_RING_PAGE = 1, 2, 64  # offsets in the mapping, <asm/kvm.h>
COALESCED_COUNT = (PAGE - 8) // ctypes.sizeof(s.CoalescedMmio)
TSC_CTRL, TSC_OFFSET = 0, 0  # device attribute, <asm/kvm.h>


class SyncClass(IntFlag):
    """KVM_SYNC_X86_*: registers that KVM copies to and from the run page."""

    REGS, SREGS, EVENTS = 1, 2, 4


class Vcpu(Descriptor):
    """A virtual CPU. One thread at a time may issue its requests; while KVM_RUN runs, others wait for it."""

    def __init__(self, fd: int, run_size: int) -> None:
        super().__init__(fd)
        self.map = mmap.mmap(fd, run_size)
        # SAFETY: the views below keep `map` from being closed while they live, and all of them belong to this object.
        self.run_page = s.Run.from_buffer(self.map)
        self.bytes = memoryview(self.map)
        self._dirty_ring: mmap.mmap | None = None
        self._xsave_size = ctypes.sizeof(s.Xsave)

    def run(self) -> bool:
        """KVM_RUN: let the guest execute until it exits; `run_page` says why. False if a signal ended it."""
        try:
            self.call(ioctls.RUN)
        except OSError as error:
            if error.errno in (errno.EINTR, errno.EAGAIN):
                return False
            raise
        return True

    # -- general and system registers ----------------------------------------------------------------------------------
    def regs(self) -> s.Regs:
        """KVM_GET_REGS."""
        regs = s.Regs()
        self.call(ioctls.GET_REGS, regs)
        return regs

    def set_regs(self, regs: s.Regs) -> None:
        """KVM_SET_REGS."""
        self.call(ioctls.SET_REGS, regs)

    def sregs(self) -> s.Sregs:
        """KVM_GET_SREGS."""
        sregs = s.Sregs()
        self.call(ioctls.GET_SREGS, sregs)
        return sregs

    def set_sregs(self, sregs: s.Sregs) -> None:
        """KVM_SET_SREGS."""
        self.call(ioctls.SET_SREGS, sregs)

    def sregs2(self) -> s.Sregs2:
        """KVM_GET_SREGS2: with PAE's page-directory-pointer registers, without pending interrupts."""
        sregs = s.Sregs2()
        self.call(ioctls.GET_SREGS2, sregs)
        return sregs

    def set_sregs2(self, sregs: s.Sregs2) -> None:
        """KVM_SET_SREGS2."""
        self.call(ioctls.SET_SREGS2, sregs)

    def debugregs(self) -> s.Debugregs:
        """KVM_GET_DEBUGREGS."""
        registers = s.Debugregs()
        self.call(ioctls.GET_DEBUGREGS, registers)
        return registers

    def set_debugregs(self, registers: s.Debugregs) -> None:
        """KVM_SET_DEBUGREGS."""
        self.call(ioctls.SET_DEBUGREGS, registers)

    def synchronize(self, classes: SyncClass) -> None:
        """Have KVM_RUN leave these registers in `run_page.s.regs`."""
        self.run_page.kvm_valid_regs = int(classes)

    # -- floating point, vectors ---------------------------------------------------------------------------------------
    def fpu(self) -> s.Fpu:
        """KVM_GET_FPU: x87 and SSE."""
        fpu = s.Fpu()
        self.call(ioctls.GET_FPU, fpu)
        return fpu

    def set_fpu(self, fpu: s.Fpu) -> None:
        """KVM_SET_FPU."""
        self.call(ioctls.SET_FPU, fpu)

    def xsave(self) -> bytes:
        """KVM_GET_XSAVE: an XSAVE area in the standard format, as the host's CPUID leaf 0DH lays it out."""
        area = s.Xsave()
        self.call(ioctls.GET_XSAVE, area)
        return bytes(area.region)

    def xsave2(self, size: int) -> bytes:
        """KVM_GET_XSAVE2: the same of `size` bytes, what the machine states for KVM_CAP_XSAVE2."""
        area = s.with_entries(s.Xsave, s.u8, size - 4096)()
        self.call(ioctls.GET_XSAVE2, area)
        return ctypes.string_at(ctypes.addressof(area), size)

    def set_xsave(self, area: bytes) -> None:
        """KVM_SET_XSAVE; the area is of the size that `xsave` or `xsave2` gives."""
        room = s.with_entries(s.Xsave, s.u8, max(len(area) - 4096, 0))()
        ctypes.memmove(ctypes.addressof(room), area, len(area))
        self.call(ioctls.SET_XSAVE, room)

    def xcr0(self) -> int:
        """KVM_GET_XCRS."""
        xcrs = s.Xcrs()
        self.call(ioctls.GET_XCRS, xcrs)
        return next((int(x.value) for x in xcrs.xcrs[: xcrs.nr_xcrs] if x.xcr == 0), 1)

    def set_xcr0(self, value: int) -> None:
        """KVM_SET_XCRS."""
        xcrs = s.Xcrs(nr_xcrs=1)
        xcrs.xcrs[0] = s.Xcr(0, 0, value)
        self.call(ioctls.SET_XCRS, xcrs)

    # -- MSRs, CPUID ---------------------------------------------------------------------------------------------------
    def msrs(self, indexes: Sequence[int]) -> dict[int, int]:
        """KVM_GET_MSRS: those of `indexes` that can be read, up to the first that cannot."""
        request = s.of_entries(s.Msrs, s.MsrEntry, [s.MsrEntry(index) for index in indexes], nmsrs=len(indexes))
        count = self.call(ioctls.GET_MSRS, request)
        return {int(entry.index): int(entry.data) for entry in request.entries[:count]}

    def set_msrs(self, values: Mapping[int, int]) -> int:
        """KVM_SET_MSRS, in order, up to the first that is refused; how many were set."""
        entries = [s.MsrEntry(index, 0, value) for index, value in values.items()]
        return self.call(ioctls.SET_MSRS, s.of_entries(s.Msrs, s.MsrEntry, entries, nmsrs=len(entries)))

    def set_cpuid(self, entries: Iterable[s.CpuidEntry2]) -> None:
        """KVM_SET_CPUID2. Before the first KVM_RUN."""
        self.call(ioctls.SET_CPUID2, s.cpuid_entries(entries))

    def cpuid(self) -> list[s.CpuidEntry2]:
        """KVM_GET_CPUID2: what was set, with what KVM changes as the guest runs."""
        room = s.with_entries(s.Cpuid2, s.CpuidEntry2, 256)(nent=256)
        self.call(ioctls.GET_CPUID2, room)
        return [s.CpuidEntry2.from_buffer_copy(room.entries[n]) for n in range(room.nent)]

    # -- time ----------------------------------------------------------------------------------------------------------
    def tsc_khz(self) -> int:
        """KVM_GET_TSC_KHZ: ticks of the guest's time-stamp counter in a millisecond."""
        return self.call(ioctls.GET_TSC_KHZ)

    def set_tsc_khz(self, khz: int) -> None:
        """KVM_SET_TSC_KHZ. Needs KVM_CAP_TSC_CONTROL unless it is the host's rate."""
        self.call(ioctls.SET_TSC_KHZ, khz)

    def tsc_offset(self) -> int:
        """The attribute KVM_VCPU_TSC_OFFSET: guest's minus host's time-stamp counter, modulo 2^64."""
        return self.get_attribute(TSC_CTRL, TSC_OFFSET)

    def set_tsc_offset(self, offset: int) -> None:
        """Set it."""
        self.set_attribute(TSC_CTRL, TSC_OFFSET, offset & (1 << 64) - 1)

    def clock_paused(self) -> None:
        """KVM_KVMCLOCK_CTRL: tell the guest's watchdogs that it was stopped."""
        self.call(ioctls.KVMCLOCK_CTRL)

    # -- events --------------------------------------------------------------------------------------------------------
    def interrupt(self, vector: int) -> None:
        """KVM_INTERRUPT: an external interrupt, where no controller is in the kernel. One may wait at a time."""
        self.call(ioctls.INTERRUPT, s.Interrupt(vector))

    def nmi(self) -> None:
        """KVM_NMI."""
        self.call(ioctls.NMI)

    def smi(self) -> None:
        """KVM_SMI."""
        self.call(ioctls.SMI)

    def events(self) -> s.VcpuEvents:
        """KVM_GET_VCPU_EVENTS: exceptions and interrupts under way, and what blocks them."""
        events = s.VcpuEvents()
        self.call(ioctls.GET_VCPU_EVENTS, events)
        return events

    def set_events(self, events: s.VcpuEvents) -> None:
        """KVM_SET_VCPU_EVENTS."""
        self.call(ioctls.SET_VCPU_EVENTS, events)

    def mp_state(self) -> int:
        """KVM_GET_MP_STATE: a number of `MpState`."""
        state = s.MpState()
        self.call(ioctls.GET_MP_STATE, state)
        return int(state.mp_state)

    def set_mp_state(self, state: int) -> None:
        """KVM_SET_MP_STATE."""
        self.call(ioctls.SET_MP_STATE, s.MpState(state))

    def lapic(self) -> bytes:
        """KVM_GET_LAPIC: the registers of the local APIC in the kernel, 16 bytes each."""
        state = s.LapicState()
        self.call(ioctls.GET_LAPIC, state)
        return bytes(state.regs)

    def set_lapic(self, registers: bytes) -> None:
        """KVM_SET_LAPIC."""
        self.call(ioctls.SET_LAPIC, s.LapicState.from_buffer_copy(registers))

    def report_tpr_access(self, on: bool) -> None:
        """KVM_TPR_ACCESS_REPORTING."""
        self.call(ioctls.TPR_ACCESS_REPORTING, s.TprAccessCtl(on))

    def set_vapic_address(self, address: int) -> None:
        """KVM_SET_VAPIC_ADDR: a page that guest and KVM share the task priority in."""
        self.call(ioctls.SET_VAPIC_ADDR, s.VapicAddr(address))

    def setup_mce(self, capabilities: int) -> None:
        """KVM_X86_SETUP_MCE: IA32_MCG_CAP."""
        self.call(ioctls.SETUP_MCE, c_uint64(capabilities))

    def machine_check(self, event: s.Mce) -> None:
        """KVM_X86_SET_MCE: report a machine check."""
        self.call(ioctls.SET_MCE, event)

    # -- debugging, statistics, nested virtualization --------------------------------------------------------------------
    def debug(self, control: int, registers: Sequence[int] = ()) -> None:
        """KVM_SET_GUEST_DEBUG: `GuestDebug` flags, and debug registers 0-7 for hardware breakpoints."""
        request = s.GuestDebug(control)
        for n, value in enumerate(registers):
            request.debugreg[n] = value
        self.call(ioctls.SET_GUEST_DEBUG, request)

    def translate(self, linear: int) -> s.Translation:
        """KVM_TRANSLATE: where a linear address leads now. KVM fills in only whether it is valid, and where."""
        request = s.Translation(linear)
        self.call(ioctls.TRANSLATE, request)
        return request

    def set_signal_mask(self, blocked: Iterable[int]) -> None:
        """KVM_SET_SIGNAL_MASK: the signals that are blocked during KVM_RUN, instead of the thread's own mask."""
        mask = sum(1 << number - 1 for number in blocked)
        self.call(ioctls.SET_SIGNAL_MASK, s.SignalMask(8, (s.u8 * 8)(*mask.to_bytes(8, "little"))))

    def nested_state(self, room: int = 128 + 2 * PAGE) -> bytes:
        """KVM_GET_NESTED_STATE."""
        state = s.with_entries(s.NestedState, s.u8, room - ctypes.sizeof(s.NestedState))(size=room)
        self.call(ioctls.GET_NESTED_STATE, state)
        return ctypes.string_at(ctypes.addressof(state), state.size)

    def set_nested_state(self, state: bytes) -> None:
        """KVM_SET_NESTED_STATE: what `nested_state` gave."""
        kind = s.with_entries(s.NestedState, s.u8, len(state) - ctypes.sizeof(s.NestedState))
        self.call(ioctls.SET_NESTED_STATE, kind.from_buffer_copy(state))

    def statistics(self) -> Descriptor:
        """KVM_GET_STATS_FD; `xuni.host.kvm.statistics` reads it."""
        return Descriptor(self.call(ioctls.GET_STATS_FD))

    # -- rings ---------------------------------------------------------------------------------------------------------
    def coalesced(self) -> list[tuple[int, bytes, bool]]:
        """Take the coalesced writes out of their ring: (address or port, data, whether it is a port), oldest first.

        The ring belongs to the whole machine; whoever takes from it keeps others from doing so at the same time.
        """
        base = COALESCED_PAGE * PAGE
        ends = (s.u32 * 2).from_buffer(self.map, base)
        first, last = ends
        taken = []
        while first != last:
            entry = s.CoalescedMmio.from_buffer_copy(self.map, base + 8 + first * ctypes.sizeof(s.CoalescedMmio))
            taken.append((int(entry.phys_addr), bytes(entry.data[: min(entry.len, 8)]), bool(entry.pio)))
            first = (first + 1) % COALESCED_COUNT
        ends[0] = first
        return taken

    def open_dirty_ring(self, size: int) -> None:
        """Map the dirty ring, of `size` bytes as enabled on the machine."""
        self._dirty_ring = mmap.mmap(self.fd, size, offset=DIRTY_RING_PAGE * PAGE)
        self._dirty_next = 0

    def dirty_ring(self) -> list[tuple[int, int]]:
        """Collect its entries, (slot, page in the slot), and mark them for `Vm.reset_dirty_rings`."""
        assert self._dirty_ring is not None, "open_dirty_ring comes first"
        count = len(self._dirty_ring) // ctypes.sizeof(s.DirtyGfn)
        entries = (s.DirtyGfn * count).from_buffer(self._dirty_ring)
        found = []
        while (entry := entries[self._dirty_next % count]).flags & 1:  # KVM_DIRTY_GFN_F_DIRTY
            found.append((int(entry.slot), int(entry.offset)))
            entry.flags = 2  # KVM_DIRTY_GFN_F_RESET
            self._dirty_next += 1
        return found

    def close(self) -> None:
        """Unmap and close; no-op when repeated."""
        if self.fd >= 0:
            del self.run_page
            self.bytes.release()
            try:
                self.map.close()
            except BufferError:
                pass  # a view of the page is alive; the mapping goes with it
        super().close()
