"""Sizes, offsets and request numbers against the kernel's own headers, through a C compiler."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from xuni.host.kvm import capabilities, ioctls, reasons
from xuni.host.kvm import structures as s

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
HEADER = Path("/usr/include/linux/kvm.h")
needs_headers = pytest.mark.skipif(
    COMPILER is None or not HEADER.exists(), reason="needs a C compiler and <linux/kvm.h> (Debian: gcc linux-libc-dev)"
)

NAMES = {
    s.UserspaceMemoryRegion: "kvm_userspace_memory_region", s.DirtyLog: "kvm_dirty_log",
    s.ClearDirtyLog: "kvm_clear_dirty_log", s.DirtyGfn: "kvm_dirty_gfn", s.Translation: "kvm_translation",
    s.Regs: "kvm_regs", s.Segment: "kvm_segment", s.DTable: "kvm_dtable", s.Sregs: "kvm_sregs", s.Sregs2: "kvm_sregs2",
    s.Fpu: "kvm_fpu", s.Xsave: "kvm_xsave", s.Xcr: "kvm_xcr", s.Xcrs: "kvm_xcrs", s.Debugregs: "kvm_debugregs",
    s.MsrEntry: "kvm_msr_entry", s.Msrs: "kvm_msrs", s.MsrList: "kvm_msr_list",
    s.MsrFilterRange: "kvm_msr_filter_range", s.MsrFilter: "kvm_msr_filter", s.OneReg: "kvm_one_reg",
    s.CpuidEntry2: "kvm_cpuid_entry2", s.Cpuid2: "kvm_cpuid2", s.VcpuEvents: "kvm_vcpu_events",
    s.SyncRegs: "kvm_sync_regs", s.Interrupt: "kvm_interrupt", s.MpState: "kvm_mp_state", s.Mce: "kvm_x86_mce",
    s.DebugExit: "kvm_debug_exit_arch", s.VapicAddr: "kvm_vapic_addr", s.TprAccessCtl: "kvm_tpr_access_ctl",
    s.IrqLevel: "kvm_irq_level", s.PicState: "kvm_pic_state", s.IoapicState: "kvm_ioapic_state",
    s.Irqchip: "kvm_irqchip", s.LapicState: "kvm_lapic_state", s.PitConfig: "kvm_pit_config",
    s.PitChannelState: "kvm_pit_channel_state", s.PitState2: "kvm_pit_state2",
    s.ReinjectControl: "kvm_reinject_control", s.RoutingIrqchip: "kvm_irq_routing_irqchip",
    s.RoutingMsi: "kvm_irq_routing_msi", s.IrqRoutingEntry: "kvm_irq_routing_entry", s.IrqRouting: "kvm_irq_routing",
    s.Msi: "kvm_msi", s.Irqfd: "kvm_irqfd", s.Ioeventfd: "kvm_ioeventfd",
    s.CoalescedMmioZone: "kvm_coalesced_mmio_zone", s.CoalescedMmio: "kvm_coalesced_mmio",
    s.EnableCap: "kvm_enable_cap", s.ClockData: "kvm_clock_data", s.DeviceAttr: "kvm_device_attr",
    s.CreateDevice: "kvm_create_device", s.NestedState: "kvm_nested_state", s.StatsHeader: "kvm_stats_header",
    s.StatsDesc: "kvm_stats_desc", s.Run: "kvm_run",
}  # fmt: skip
OTHERWISE_NAMED = {("GuestDebug", "debugreg"): "arch.debugreg"}
RUN_MEMBERS = {  # of the union in struct kvm_run, which has no name there
    "io": s.RunIo, "mmio": s.RunMmio, "msr": s.RunMsr, "internal": s.RunInternal, "fail_entry": s.RunFailEntry,
    "emulation_failure": s.RunEmulationFailure, "ex": s.RunException, "tpr_access": s.RunTprAccess,
    "system_event": s.RunSystemEvent,
}  # fmt: skip
SKIPPED = {("Run", "why"), ("Run", "s"), ("CoalescedMmioZone", "pio"), ("IrqLevel", "irq"), ("Xsave", "region"),
           ("NestedState", "hdr"), ("IoapicState", "redirtbl"), ("Irqchip", "chip"), ("IrqRoutingEntry", "u"),
           ("StatsDesc", "size")}  # fmt: skip


def _compile(directory: Path, lines: list[str]) -> dict[str, int]:
    """The values of C expressions, given as `name = expression`."""
    prints = "\n".join(f'printf("{name} %llu\\n", (unsigned long long)({value}));'
                       for name, value in (line.split(" = ", 1) for line in lines))  # fmt: skip
    source = directory / "values.c"
    source.write_text("#include <stdio.h>\n#include <stddef.h>\n#include <linux/kvm.h>\n"
                      f"int main(void) {{ {prints} return 0; }}\n")  # fmt: skip
    assert COMPILER
    subprocess.run([COMPILER, "-w", "-o", directory / "values", source], check=True, timeout=60)
    out = subprocess.run([directory / "values"], check=True, capture_output=True, text=True, timeout=10).stdout
    return {name: int(value) for name, value in (line.split() for line in out.splitlines())}


@needs_headers
def test_structures_are_the_kernels(tmp_path: Path) -> None:
    lines, ours = [], {}
    for kind, name in NAMES.items():
        if kind not in (s.StatsDesc,):
            lines.append(f"{kind.__name__} = sizeof(struct {name})")
            ours[kind.__name__] = ctypes.sizeof(kind)
        for field in kind._fields_:
            if (kind.__name__, field[0]) in SKIPPED:
                continue
            key = f"{kind.__name__}.{field[0]}"
            lines.append(f"{key} = offsetof(struct {name}, {field[0]})")
            ours[key] = getattr(kind, field[0]).offset
    for member, kind in RUN_MEMBERS.items():
        for field in kind._fields_:
            key = f"run.{member}.{field[0]}"
            lines.append(f"{key} = offsetof(struct kvm_run, {member}.{field[0]})")
            ours[key] = s.Run.why.offset + getattr(kind, field[0]).offset
    lines += ["guest_debug = sizeof(struct kvm_guest_debug)", "registers = offsetof(struct kvm_run, s.regs)",
              "stats = sizeof(struct kvm_stats_desc)"]  # fmt: skip
    ours |= {"guest_debug": ctypes.sizeof(s.GuestDebug), "registers": s.Run.s.offset, "stats": ctypes.sizeof(s.StatsDesc)}
    assert ours == _compile(tmp_path, lines)


@needs_headers
def test_requests_are_the_kernels(tmp_path: Path) -> None:
    ours = {call.name: call.request for call in vars(ioctls).values() if isinstance(call, ioctls.Ioctl)}
    assert len(ours) > 80
    assert ours == _compile(tmp_path, [f"{name} = {name}" for name in ours])


@needs_headers
def test_exit_reasons_are_the_kernels(tmp_path: Path) -> None:
    text = HEADER.read_text()
    named = {reason for reason in reasons.ExitReason if f"KVM_EXIT_{reason.name} " in text}
    assert len(named) > 20
    ours = {reason.name: int(reason) for reason in named}
    assert ours == _compile(tmp_path, [f"{name} = KVM_EXIT_{name}" for name in ours])


@pytest.mark.skipif(not HEADER.exists(), reason="needs <linux/kvm.h> (Debian: linux-libc-dev)")
def test_every_capability_of_the_header_has_a_row() -> None:
    there = {int(number): name for name, number in re.findall(r"#define KVM_CAP_(\w+)\s+(\d+)", HEADER.read_text())}
    ours = {row.number: row.name for row in capabilities.CAPABILITIES}
    assert {number: ours.get(number) for number in there} == there
    assert all(ours[cap] == cap.name for cap in capabilities.Cap)
