"""The structures of <linux/kvm.h> and <asm/kvm.h> for x86, named as there without the prefix `kvm_`.

Arrays that end a structure without a length are left out; `with_entries` makes a structure of a given length.
Sizes and offsets are tested against the kernel's headers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from ctypes import Structure, Union, c_int64, c_uint8, c_uint16, c_uint32, c_uint64
from functools import cache
from typing import Any

u8, u16, u32, u64, s64 = c_uint8, c_uint16, c_uint32, c_uint64, c_int64
Fields = list[tuple[str, Any]]


def _fields(names: str, kind: Any) -> Fields:
    return [(name, kind) for name in names.split()]


@cache
def with_entries(header: type[Structure], entry: Any, count: int) -> type[Structure]:
    """A structure that begins as `header` and ends with `count` of `entry`, in the field `entries`."""
    return type(f"{header.__name__}{count}", (header,), {"_fields_": [("entries", entry * count)]})


def of_entries(header: type[Structure], entry: Any, values: Sequence[Any], **fields: int) -> Any:
    """Such a structure, filled."""
    made = with_entries(header, entry, len(values))(**fields)
    for n, value in enumerate(values):
        made.entries[n] = value
    return made


# -- memory ------------------------------------------------------------------------------------------------------------
class UserspaceMemoryRegion(Structure):
    _fields_ = [("slot", u32), ("flags", u32), ("guest_phys_addr", u64), ("memory_size", u64), ("userspace_addr", u64)]


class DirtyLog(Structure):
    _fields_ = [("slot", u32), ("padding1", u32), ("dirty_bitmap", u64)]


class ClearDirtyLog(Structure):
    _fields_ = [("slot", u32), ("num_pages", u32), ("first_page", u64), ("dirty_bitmap", u64)]


class DirtyGfn(Structure):
    """An entry of the dirty ring."""

    _fields_ = [("flags", u32), ("slot", u32), ("offset", u64)]


class Translation(Structure):
    _fields_ = [("linear_address", u64), ("physical_address", u64), ("valid", u8), ("writeable", u8), ("usermode", u8),
                ("pad", u8 * 5)]  # fmt: skip


# -- registers ---------------------------------------------------------------------------------------------------------
class Regs(Structure):
    _fields_ = _fields("rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags", u64)


class Segment(Structure):
    _fields_ = [("base", u64), ("limit", u32), ("selector", u16), ("type", u8),
                *_fields("present dpl db s l g avl unusable padding", u8)]  # fmt: skip


class DTable(Structure):
    _fields_ = [("base", u64), ("limit", u16), ("padding", u16 * 3)]


_SYSTEM: Fields = [
    *_fields("cs ds es fs gs ss tr ldt", Segment), *_fields("gdt idt", DTable),
    *_fields("cr0 cr2 cr3 cr4 cr8 efer apic_base", u64),
]  # fmt: skip


class Sregs(Structure):
    _fields_ = [*_SYSTEM, ("interrupt_bitmap", u64 * 4)]


class Sregs2(Structure):
    PDPTRS_VALID = 1
    _fields_ = [*_SYSTEM, ("flags", u64), ("pdptrs", u64 * 4)]


class Fpu(Structure):
    _fields_ = [("fpr", u8 * 16 * 8), ("fcw", u16), ("fsw", u16), ("ftwx", u8), ("pad1", u8), ("last_opcode", u16),
                ("last_ip", u64), ("last_dp", u64), ("xmm", u8 * 16 * 16), ("mxcsr", u32), ("pad2", u32)]  # fmt: skip


class Xsave(Structure):
    _fields_ = [("region", u8 * 4096)]


class Xcr(Structure):
    _fields_ = [("xcr", u32), ("reserved", u32), ("value", u64)]


class Xcrs(Structure):
    _fields_ = [("nr_xcrs", u32), ("flags", u32), ("xcrs", Xcr * 16), ("padding", u64 * 16)]


class Debugregs(Structure):
    _fields_ = [("db", u64 * 4), ("dr6", u64), ("dr7", u64), ("flags", u64), ("reserved", u64 * 9)]


class MsrEntry(Structure):
    _fields_ = [("index", u32), ("reserved", u32), ("data", u64)]


class Msrs(Structure):
    _fields_ = [("nmsrs", u32), ("pad", u32)]


class MsrList(Structure):
    _fields_ = [("nmsrs", u32)]


class MsrFilterRange(Structure):
    READ, WRITE = 1, 2
    _fields_ = [("flags", u32), ("nmsrs", u32), ("base", u32), ("bitmap", u64)]


class MsrFilter(Structure):
    DEFAULT_ALLOW, DEFAULT_DENY = 0, 1
    _fields_ = [("flags", u32), ("ranges", MsrFilterRange * 16)]


class OneReg(Structure):
    _fields_ = [("id", u64), ("addr", u64)]


class CpuidEntry2(Structure):
    SIGNIFICANT_INDEX = 1
    _fields_ = [*_fields("function index flags eax ebx ecx edx", u32), ("padding", u32 * 3)]


class Cpuid2(Structure):
    _fields_ = [("nent", u32), ("padding", u32)]


# -- events ------------------------------------------------------------------------------------------------------------
class ExceptionEvent(Structure):
    _fields_ = [*_fields("injected nr has_error_code pending", u8), ("error_code", u32)]


class InterruptEvent(Structure):
    _fields_ = _fields("injected nr soft shadow", u8)


class NmiEvent(Structure):
    _fields_ = _fields("injected pending masked pad", u8)


class SmiEvent(Structure):
    _fields_ = _fields("smm pending smm_inside_nmi latched_init", u8)


class VcpuEvents(Structure):
    VALID_NMI_PENDING, VALID_SIPI_VECTOR, VALID_SHADOW, VALID_SMM, VALID_PAYLOAD, VALID_TRIPLE_FAULT = (1 << n for n in range(6))
    _fields_ = [("exception", ExceptionEvent), ("interrupt", InterruptEvent), ("nmi", NmiEvent), ("sipi_vector", u32),
                ("flags", u32), ("smi", SmiEvent), ("triple_fault", u8), ("reserved", u8 * 26),
                ("exception_has_payload", u8), ("exception_payload", u64)]  # fmt: skip


class SyncRegs(Structure):
    """What KVM copies to and from the run page on request; see `SyncClass`."""

    _fields_ = [("regs", Regs), ("sregs", Sregs), ("events", VcpuEvents)]


class Interrupt(Structure):
    _fields_ = [("irq", u32)]


class MpState(Structure):
    RUNNABLE, UNINITIALIZED, INIT_RECEIVED, HALTED, SIPI_RECEIVED = range(5)
    _fields_ = [("mp_state", u32)]


class Mce(Structure):
    _fields_ = [*_fields("status addr misc mcg_status", u64), ("bank", u8), ("pad1", u8 * 7), ("pad2", u64 * 3)]


class GuestDebug(Structure):
    ENABLE, SINGLESTEP = 1, 2
    USE_SW_BP, USE_HW_BP, INJECT_DB, INJECT_BP, BLOCKIRQ = (1 << n for n in range(16, 21))
    _fields_ = [("control", u32), ("pad", u32), ("debugreg", u64 * 8)]


class DebugExit(Structure):
    """struct kvm_debug_exit_arch."""

    _fields_ = [("exception", u32), ("pad", u32), ("pc", u64), ("dr6", u64), ("dr7", u64)]


class SignalMask(Structure):
    """With a set of signals as the kernel has it: 64 bits, not the C library's 1024."""

    SIZE_IN_REQUEST = 4  # the set is an array without a length there
    _fields_ = [("len", u32), ("sigset", u8 * 8)]


class VapicAddr(Structure):
    _fields_ = [("vapic_addr", u64)]


class TprAccessCtl(Structure):
    _fields_ = [("enabled", u32), ("flags", u32), ("reserved", u32 * 8)]


# -- interrupt controllers ---------------------------------------------------------------------------------------------
class IrqLevel(Structure):
    _fields_ = [("irq", u32), ("level", u32)]


class PicState(Structure):
    _fields_ = _fields("last_irr irr imr isr priority_add irq_base read_reg_select poll special_mask init_state auto_eoi"
                       " rotate_on_auto_eoi special_fully_nested_mode init4 elcr elcr_mask", u8)  # fmt: skip


class IoapicState(Structure):
    _fields_ = [("base_address", u64), *_fields("ioregsel id irr pad", u32), ("redirtbl", u64 * 24)]


class _Chip(Union):
    _fields_ = [("dummy", u8 * 512), ("pic", PicState), ("ioapic", IoapicState)]


class Irqchip(Structure):
    PIC_MASTER, PIC_SLAVE, IOAPIC = range(3)
    _fields_ = [("chip_id", u32), ("pad", u32), ("chip", _Chip)]


class LapicState(Structure):
    _fields_ = [("regs", u8 * 0x400)]


class PitConfig(Structure):
    SPEAKER_DUMMY = 1
    _fields_ = [("flags", u32), ("pad", u32 * 15)]


class PitChannelState(Structure):
    _fields_ = [("count", u32), ("latched_count", u16),
                *_fields("count_latched status_latched status read_state write_state write_latch rw_mode mode bcd gate",
                         u8), ("count_load_time", s64)]  # fmt: skip


class PitState2(Structure):
    _fields_ = [("channels", PitChannelState * 3), ("flags", u32), ("reserved", u32 * 9)]


class ReinjectControl(Structure):
    SIZE_IN_REQUEST = 0  # its address is passed all the same
    _fields_ = [("pit_reinject", u8), ("reserved", u8 * 31)]


class RoutingIrqchip(Structure):
    _fields_ = [("irqchip", u32), ("pin", u32)]


class RoutingMsi(Structure):
    _fields_ = _fields("address_lo address_hi data devid", u32)


class _Route(Union):
    _fields_ = [("irqchip", RoutingIrqchip), ("msi", RoutingMsi), ("pad", u32 * 8)]


class IrqRoutingEntry(Structure):
    IRQCHIP, MSI = 1, 2
    _fields_ = [*_fields("gsi type flags pad", u32), ("u", _Route)]


class IrqRouting(Structure):
    _fields_ = [("nr", u32), ("flags", u32)]


class Msi(Structure):
    _fields_ = [*_fields("address_lo address_hi data flags devid", u32), ("pad", u8 * 12)]


class Irqfd(Structure):
    DEASSIGN, RESAMPLE = 1, 2
    _fields_ = [*_fields("fd gsi flags resamplefd", u32), ("pad", u8 * 16)]


class Ioeventfd(Structure):
    DATAMATCH, PIO, DEASSIGN = 1, 2, 4
    _fields_ = [("datamatch", u64), ("addr", u64), ("len", u32), ("fd", ctypes.c_int32), ("flags", u32), ("pad", u8 * 36)]


class CoalescedMmioZone(Structure):
    _fields_ = [("addr", u64), ("size", u32), ("pio", u32)]


class CoalescedMmio(Structure):
    """An entry of the ring of coalesced writes."""

    _fields_ = [("phys_addr", u64), ("len", u32), ("pio", u32), ("data", u8 * 8)]


# -- the machine -------------------------------------------------------------------------------------------------------
class EnableCap(Structure):
    _fields_ = [("cap", u32), ("flags", u32), ("args", u64 * 4), ("pad", u8 * 64)]


class ClockData(Structure):
    TSC_STABLE, REALTIME, HOST_TSC = 2, 4, 8
    _fields_ = [("clock", u64), ("flags", u32), ("pad0", u32), ("realtime", u64), ("host_tsc", u64), ("pad", u32 * 4)]


class DeviceAttr(Structure):
    _fields_ = [("flags", u32), ("group", u32), ("attr", u64), ("addr", u64)]


class CreateDevice(Structure):
    _fields_ = _fields("type fd flags", u32)


class NestedState(Structure):
    """The header; VMX and SVM data of up to two pages follow."""

    _fields_ = [("flags", u16), ("format", u16), ("size", u32), ("hdr", u8 * 120)]


class StatsHeader(Structure):
    _fields_ = _fields("flags name_size num_desc id_offset desc_offset data_offset", u32)


class StatsDesc(Structure):
    """A name of `name_size` bytes follows."""

    _fields_ = [("flags", u32), ("exponent", ctypes.c_int16), ("size", u16), ("offset", u32), ("bucket_size", u32)]


# -- the run page ------------------------------------------------------------------------------------------------------
class RunIo(Structure):
    IN, OUT = 0, 1
    _fields_ = [("direction", u8), ("size", u8), ("port", u16), ("count", u32), ("data_offset", u64)]


class RunMmio(Structure):
    _fields_ = [("phys_addr", u64), ("data", u8 * 8), ("len", u32), ("is_write", u8)]


class RunMsr(Structure):
    INVAL, UNKNOWN, FILTER = 1, 2, 4
    _fields_ = [("error", u8), ("pad", u8 * 7), ("reason", u32), ("index", u32), ("data", u64)]


class RunInternal(Structure):
    EMULATION, SIMUL_EX, DELIVERY_EV, UNEXPECTED_EXIT_REASON = 1, 2, 3, 4
    _fields_ = [("suberror", u32), ("ndata", u32), ("data", u64 * 16)]


class RunEmulationFailure(Structure):
    INSTRUCTION_BYTES = 1
    _fields_ = [("suberror", u32), ("ndata", u32), ("flags", u64), ("insn_size", u8), ("insn_bytes", u8 * 15)]


class RunHypercall(Structure):
    _fields_ = [("nr", u64), ("args", u64 * 6), ("ret", u64), ("flags", u64)]


class RunFailEntry(Structure):
    _fields_ = [("hardware_entry_failure_reason", u64), ("cpu", u32)]


class RunException(Structure):
    _fields_ = [("exception", u32), ("error_code", u32)]


class RunTprAccess(Structure):
    _fields_ = [("rip", u64), ("is_write", u32), ("pad", u32)]


class RunSystemEvent(Structure):
    _fields_ = [("type", u32), ("ndata", u32), ("data", u64 * 16)]


class RunMemoryFault(Structure):
    _fields_ = [("flags", u64), ("gpa", u64), ("size", u64)]


class _Why(Union):
    _fields_ = [
        ("hardware_exit_reason", u64), ("fail_entry", RunFailEntry), ("ex", RunException), ("io", RunIo),
        ("debug", DebugExit), ("mmio", RunMmio), ("hypercall", RunHypercall), ("tpr_access", RunTprAccess),
        ("internal", RunInternal), ("emulation_failure", RunEmulationFailure), ("system_event", RunSystemEvent),
        ("eoi_vector", u8), ("msr", RunMsr), ("notify_flags", u32), ("memory_fault", RunMemoryFault),
        ("padding", u8 * 256),
    ]  # fmt: skip


class _Synced(Union):
    _fields_ = [("regs", SyncRegs), ("padding", u8 * 2048)]


class Run(Structure):
    """What KVM_RUN is told and tells."""

    _fields_ = [
        ("request_interrupt_window", u8), ("immediate_exit", u8), ("padding1", u8 * 6), ("exit_reason", u32),
        ("ready_for_interrupt_injection", u8), ("if_flag", u8), ("flags", u16), ("cr8", u64), ("apic_base", u64),
        ("why", _Why), ("kvm_valid_regs", u64), ("kvm_dirty_regs", u64), ("s", _Synced),
    ]  # fmt: skip


def cpuid_entries(rows: Iterable[CpuidEntry2]) -> Any:
    """What KVM_SET_CPUID2 takes."""
    rows = list(rows)
    return of_entries(Cpuid2, CpuidEntry2, rows, nent=len(rows))
