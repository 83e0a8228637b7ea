"""Every request of the interface against the kernel's KVM, with guests of a few instructions."""

from __future__ import annotations

import errno
import os

import pytest

from tests.host.kvm.conftest import CODE, SIZE, Box, make, start
from xuni.host.kvm import Kvm, KvmUnavailable, MemoryFlag, SyncClass, Vm, reasons, statistics
from xuni.host.kvm import structures as s
from xuni.host.kvm.capabilities import Cap

HLT = "f4"


def needs(kvm: Kvm, cap: Cap) -> int:
    value = kvm.check(cap)
    if not value:
        pytest.skip(f"this KVM lacks KVM_CAP_{cap.name}")
    return value


# -- the device --------------------------------------------------------------------------------------------------------
def test_what_the_device_says(kvm: Kvm) -> None:
    assert kvm.run_size >= 2 * 4096
    leaves = {entry.function for entry in kvm.supported_cpuid()}
    assert {0, 1, 0x8000_0000} <= leaves
    assert 0x10 in kvm.msr_indexes() and 0xC000_0082 in kvm.msr_indexes()
    for index in kvm.feature_msr_indexes()[:1]:
        assert kvm.feature_msr(index) >= 0
    assert isinstance(kvm.emulated_cpuid(), list)
    assert kvm.mce_capabilities() >= 0
    assert dict(kvm.capabilities())[Cap.USER_MEMORY] == 1


@pytest.mark.parametrize(
    ("make_file", "words"),
    [(None, "is not here: load kvm_intel or kvm_amd"), ("plain", "is not KVM"), ("directory", "Is a directory")],
)
def test_no_kvm_is_one_line_with_a_way_out(tmp_path, make_file, words) -> None:
    path = tmp_path / "kvm"
    if make_file == "plain":
        path.touch()
    elif make_file == "directory":
        path.mkdir()
    with pytest.raises(KvmUnavailable, match=words) as caught:
        Kvm(str(path))
    assert "use the soft engine" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("number", "words"), [(errno.EACCES, "no permission; join the group kvm"), (errno.EBUSY, "is busy")])
def test_errors_of_opening(monkeypatch, number, words) -> None:
    def refuse(*args: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(KvmUnavailable, match=words):
        Kvm()


def test_an_error_names_its_request(box: Box) -> None:
    with pytest.raises(OSError, match="KVM_SET_USER_MEMORY_REGION: Invalid argument"):
        box.vm.set_memory(1, 1, 4096, box.address)


# -- exits -------------------------------------------------------------------------------------------------------------
def test_out_and_in(box: Box) -> None:
    box.load("e6 42 ed f4")  # out 0x42, al; in eax (ax), dx; hlt
    regs = box.vcpu.regs()
    regs.rax, regs.rdx = 0x5A, 0x1234
    box.vcpu.set_regs(regs)
    out = box.run()
    assert isinstance(out, reasons.Io) and (out.out, out.port, out.size, out.count) == (True, 0x42, 1, 1)
    assert box.vcpu.bytes[out.data_offset] == 0x5A
    inward = box.run()
    assert isinstance(inward, reasons.Io) and (inward.out, inward.port, inward.size) == (False, 0x1234, 2)
    box.vcpu.bytes[inward.data_offset : inward.data_offset + 2] = b"\xcd\xab"
    assert box.run() == reasons.Hlt()
    assert box.vcpu.regs().rax == 0xABCD


def test_memory_that_is_not_there_is_mmio(box: Box) -> None:
    box.load("b8 00 f0 8e d8 b8 34 12 a3 00 10" + "f4")  # ds = 0xf000; mov [0x1000], ax
    box.vm.set_memory(0, 0, 0, box.address)
    box.vm.set_memory(0, 0, 0xF0000, box.address)  # the rest of the MiB is no memory now
    found = box.run()
    assert found == reasons.Mmio(0xF1000, b"\x34\x12", True)


def test_read_only_memory_is_read_and_writes_exit(kvm: Kvm) -> None:
    needs(kvm, Cap.READONLY_MEM)
    box = make(kvm)
    box.vm.set_memory(1, 0x100000, 0x1000, box.address + 0x8000, MemoryFlag.READONLY)
    box.memory[0x8000:0x8002] = b"\x77\x66"
    # ds = 0xffff; mov ax, [0x10]; mov [0x10], bx: linear 0x100000
    box.load("b8 ff ff 8e d8 a1 10 00 89 1e 10 00 f4")
    found = box.run()
    assert isinstance(found, reasons.Mmio) and found.is_write and found.phys_addr == 0x100000
    assert box.vcpu.regs().rax & 0xFFFF == 0x6677
    assert box.run() == reasons.Hlt()
    assert box.memory[0x8000] == 0x77


def test_immediate_exit_finishes_an_instruction_and_no_more(box: Box) -> None:
    box.load("e6 42 90 f4")
    box.run()
    box.vcpu.run_page.immediate_exit = 1
    assert not box.vcpu.run()
    assert box.vcpu.regs().rip == CODE + 2
    box.vcpu.run_page.immediate_exit = 0
    assert box.run() == reasons.Hlt()


def test_msrs_that_are_filtered_exit(kvm: Kvm) -> None:
    needs(kvm, Cap.X86_MSR_FILTER)
    box = make(kvm)
    box.vm.enable(Cap.X86_USER_SPACE_MSR, s.RunMsr.FILTER)
    box.vm.filter_msrs([range(0x174, 0x176)])
    box.load("66 b9 74 01 00 00 0f 30 0f 32 f4")  # ecx = 0x174; wrmsr; rdmsr; hlt
    regs = box.vcpu.regs()
    regs.rax, regs.rdx = 0x55, 0
    box.vcpu.set_regs(regs)
    assert box.run() == reasons.Wrmsr(0x174, 0x55, s.RunMsr.FILTER)
    assert box.run() == reasons.Rdmsr(0x174, s.RunMsr.FILTER)
    box.vcpu.run_page.why.msr.data = 0x1_0000_0007
    assert box.run() == reasons.Hlt()
    assert (box.vcpu.regs().rax, box.vcpu.regs().rdx) == (7, 1)


# -- registers ---------------------------------------------------------------------------------------------------------
def test_registers_in_all_their_forms(box: Box) -> None:
    vcpu = box.vcpu
    vcpu.set_cpuid(box.kvm.supported_cpuid())
    regs = vcpu.regs()
    regs.r15 = 0xFEDC_BA98_7654_3210
    vcpu.set_regs(regs)
    assert bytes(vcpu.regs()) == bytes(regs)
    sregs = vcpu.sregs()
    sregs.gdt.base, sregs.idt.limit = 0x1234, 0x567
    vcpu.set_sregs(sregs)
    assert (vcpu.sregs().gdt.base, vcpu.sregs().idt.limit) == (0x1234, 0x567)
    if box.kvm.check(Cap.SREGS2):
        again = vcpu.sregs2()
        assert again.gdt.base == 0x1234
        again.gdt.base = 0x4321
        vcpu.set_sregs2(again)
        assert vcpu.sregs().gdt.base == 0x4321
    fpu = vcpu.fpu()
    fpu.fcw, fpu.xmm[3][7] = 0x27F, 0xAB
    vcpu.set_fpu(fpu)
    assert (vcpu.fpu().fcw, vcpu.fpu().xmm[3][7]) == (0x27F, 0xAB)
    area = bytearray(vcpu.xsave())
    area[0:2], area[160], area[512] = b"\x7f\x02", 0xCD, 3  # FCW, XMM0, XSTATE_BV
    vcpu.set_xsave(bytes(area))
    assert (vcpu.fpu().fcw, vcpu.fpu().xmm[0][0]) == (0x27F, 0xCD)
    assert vcpu.xsave()[160] == 0xCD
    if size := box.vm.check(Cap.XSAVE2):
        assert vcpu.xsave2(size)[160] == 0xCD
    assert vcpu.xcr0() & 1
    vcpu.set_xcr0(1)
    assert vcpu.xcr0() == 1
    debug = vcpu.debugregs()
    debug.db[2] = 0x1000
    vcpu.set_debugregs(debug)
    assert vcpu.debugregs().db[2] == 0x1000
    assert vcpu.set_msrs({0x174: 0x10, 0x175: 0x2000}) == 2
    assert vcpu.msrs([0x174, 0x175]) == {0x174: 0x10, 0x175: 0x2000}
    assert vcpu.set_msrs({0x174: 1, 0xDEAD_BEEF: 1, 0x175: 1}) == 1
    assert {entry.function for entry in vcpu.cpuid()} >= {0, 1}
    events = vcpu.events()
    events.interrupt.shadow, events.flags = 1, s.VcpuEvents.VALID_SHADOW
    vcpu.set_events(events)
    assert vcpu.events().interrupt.shadow == 1
    assert vcpu.mp_state() == s.MpState.RUNNABLE
    vcpu.set_mp_state(s.MpState.RUNNABLE)
    assert vcpu.tsc_khz() > 0
    vcpu.set_tsc_khz(vcpu.tsc_khz())
    if vcpu.has_attribute(0, 0):
        vcpu.set_tsc_offset(vcpu.tsc_offset())
    place = vcpu.translate(0x5678)
    assert (place.valid, place.physical_address) == (1, 0x5678)


def test_nested_state_if_there_is_any(kvm: Kvm, box: Box) -> None:
    needs(kvm, Cap.NESTED_STATE)
    state = box.vcpu.nested_state()
    assert len(state) >= 128
    box.vcpu.set_nested_state(state)


def test_synchronized_registers(kvm: Kvm, box: Box) -> None:
    classes = needs(kvm, Cap.SYNC_REGS)
    assert classes & SyncClass.REGS
    box.vcpu.synchronize(SyncClass.REGS | SyncClass.SREGS)
    box.load("b8 cd ab f4")
    assert box.run() == reasons.Hlt()
    synced = box.vcpu.run_page.s.regs
    assert synced.regs.rax & 0xFFFF == 0xABCD and synced.regs.rip == CODE + 4 and synced.sregs.cs.base == 0


# -- events ------------------------------------------------------------------------------------------------------------
def test_an_interrupt_without_a_controller(box: Box) -> None:
    box.memory[4 * 0x40 : 4 * 0x40 + 4] = (0x2000).to_bytes(4, "little")
    box.memory[0x2000:0x2003] = bytes.fromhex("e6 99 f4")
    box.load("fb 90 90 90 90 90 eb fe")  # sti; nops; a jump to itself
    box.vcpu.run_page.request_interrupt_window = 1
    assert box.run() == reasons.IrqWindowOpen()
    box.vcpu.run_page.request_interrupt_window = 0
    box.vcpu.interrupt(0x40)
    out = box.run()
    assert isinstance(out, reasons.Io) and out.port == 0x99


def test_an_nmi(box: Box) -> None:
    box.memory[8:12] = (0x2000).to_bytes(4, "little")
    box.memory[0x2000:0x2003] = bytes.fromhex("e6 99 f4")
    box.load("eb fe")
    box.vcpu.nmi()
    out = box.run()
    assert isinstance(out, reasons.Io) and out.port == 0x99


def test_single_steps(box: Box) -> None:
    box.load("90 90 f4")
    box.vcpu.debug(s.GuestDebug.ENABLE | s.GuestDebug.SINGLESTEP)
    first, second = box.run(), box.run()
    assert isinstance(first, reasons.Debug) and isinstance(second, reasons.Debug)
    assert (first.pc, second.pc) == (CODE + 1, CODE + 2)
    box.vcpu.debug(0)
    assert box.run() == reasons.Hlt()


def test_breakpoints_of_the_processor(box: Box) -> None:
    box.load("90 90 90 f4")
    box.vcpu.debug(s.GuestDebug.ENABLE | s.GuestDebug.USE_HW_BP, (CODE + 2, 0, 0, 0, 0, 0, 0, 0x402))
    found = box.run()
    assert isinstance(found, reasons.Debug) and found.pc == CODE + 2


# -- memory logs -------------------------------------------------------------------------------------------------------
def test_the_dirty_log(box: Box) -> None:
    box.vm.set_memory(0, 0, SIZE, box.address, MemoryFlag.LOG_DIRTY_PAGES)
    box.load("a2 00 50 f4")  # mov [0x5000], al
    box.vm.dirty_pages(0, SIZE // 4096)
    assert box.run() == reasons.Hlt()
    bitmap = int.from_bytes(box.vm.dirty_pages(0, SIZE // 4096), "little")
    assert bitmap >> 5 & 1 and not bitmap >> 6 & 1
    assert not int.from_bytes(box.vm.dirty_pages(0, SIZE // 4096), "little") >> 5 & 1


def test_a_dirty_log_that_is_cleared_by_hand(kvm: Kvm) -> None:
    needs(kvm, Cap.MANUAL_DIRTY_LOG_PROTECT2)
    box = make(kvm, lambda vm: vm.enable(Cap.MANUAL_DIRTY_LOG_PROTECT2, 1))
    box.vm.set_memory(0, 0, SIZE, box.address, MemoryFlag.LOG_DIRTY_PAGES)
    pages = SIZE // 4096
    box.vm.clear_dirty(0, 0, pages, b"\xff" * (pages // 8))
    box.load("a2 00 50 f4")
    assert box.run() == reasons.Hlt()
    found = box.vm.dirty_pages(0, pages)
    assert int.from_bytes(found, "little") >> 5 & 1
    assert box.vm.dirty_pages(0, pages) == found
    box.vm.clear_dirty(0, 0, pages, found)
    assert not int.from_bytes(box.vm.dirty_pages(0, pages), "little") >> 5 & 1


def test_the_dirty_ring(kvm: Kvm) -> None:
    size = 65536
    needs(kvm, Cap.DIRTY_LOG_RING)
    box = make(kvm, lambda vm: vm.enable(Cap.DIRTY_LOG_RING, size))
    box.vcpu.open_dirty_ring(size)
    box.vm.set_memory(0, 0, SIZE, box.address, MemoryFlag.LOG_DIRTY_PAGES)
    box.load("a2 00 50 f4")
    assert box.run() == reasons.Hlt()
    assert (0, 5) in box.vcpu.dirty_ring()
    assert box.vm.reset_dirty_rings() >= 1
    assert box.vcpu.dirty_ring() == []


# -- devices that end exits early ----------------------------------------------------------------------------------------
def test_ioeventfd(box: Box) -> None:
    event = os.eventfd(0, os.EFD_NONBLOCK)
    box.vm.set_ioeventfd(0x510, 1, event, port=True, match=7)
    box.load("ba 10 05 b0 07 ee b0 08 ee f4")
    out = box.run()  # the second write does not match
    assert isinstance(out, reasons.Io) and box.vcpu.bytes[out.data_offset] == 8
    assert os.eventfd_read(event) == 1
    box.vm.set_ioeventfd(0x510, 1, event, port=True, match=7, remove=True)
    start(box.vcpu)
    assert isinstance(box.run(), reasons.Io)
    os.close(event)


def test_coalesced_writes_wait_in_order(kvm: Kvm, box: Box) -> None:
    needs(kvm, Cap.COALESCED_PIO)
    box.vm.coalesce(0x510, 2, port=True)
    box.load("ba 10 05 b0 07 ee 42 b0 08 ee f4")
    assert box.run() == reasons.Hlt()
    assert [(at, data[:1], port) for at, data, port in box.vcpu.coalesced()] == [(0x510, b"\7", True), (0x511, b"\10", True)]
    assert box.vcpu.coalesced() == []
    box.vm.uncoalesce(0x510, 2, port=True)
    start(box.vcpu)
    assert isinstance(box.run(), reasons.Io)


# -- interrupt hardware in the kernel ------------------------------------------------------------------------------------
def test_interrupt_controllers_and_timer(kvm: Kvm) -> None:
    needs(kvm, Cap.IRQCHIP)
    box = make(kvm, lambda vm: vm.create_irqchip())
    vm, vcpu = box.vm, box.vcpu
    vm.create_pit()
    vm.set_pit_reinjection(False)
    pit = vm.pit()
    pit.channels[2].count = 0x1234
    vm.set_pit(pit)
    assert vm.pit().channels[2].count == 0x1234
    master = vm.irqchip(s.Irqchip.PIC_MASTER)
    master.chip.pic.irq_base, master.chip.pic.imr = 0x40, 0
    vm.set_irqchip(master)
    assert vm.irqchip(s.Irqchip.PIC_MASTER).chip.pic.irq_base == 0x40
    assert vm.irqchip(s.Irqchip.IOAPIC).chip.ioapic.base_address == 0xFEC0_0000
    registers = bytearray(vcpu.lapic())
    registers[0xF1] |= 1  # SVR: enabled
    registers[0x350:0x354] = (0x700).to_bytes(4, "little")  # LINT0: ExtINT
    vcpu.set_lapic(bytes(registers))
    assert vcpu.lapic()[0x350:0x354] == (0x700).to_bytes(4, "little")
    box.memory[4 * 0x41 : 4 * 0x41 + 4] = (0x2000).to_bytes(4, "little")
    box.memory[0x2000:0x2003] = bytes.fromhex("e6 99 f4")
    box.load("fb f4 f4")  # sti; hlt: KVM waits for the interrupt itself
    vm.set_irq(1, True)
    out = box.run()
    assert isinstance(out, reasons.Io) and out.port == 0x99
    vm.set_irq(1, False)
    assert vm.set_irq_status(3, True) in (0, 1, -1)


def test_messages_routes_and_irqfds(kvm: Kvm) -> None:
    needs(kvm, Cap.SPLIT_IRQCHIP)
    box = make(kvm, lambda vm: vm.enable(Cap.SPLIT_IRQCHIP, 24))
    vm, vcpu = box.vm, box.vcpu
    registers = bytearray(vcpu.lapic())
    registers[0xF1] |= 1
    vcpu.set_lapic(bytes(registers))
    for vector in (0x50, 0x51):
        box.memory[4 * vector : 4 * vector + 4] = (0x2000 + 16 * (vector & 1)).to_bytes(4, "little")
    box.memory[0x2000:0x2003], box.memory[0x2010:0x2013] = bytes.fromhex("e6 98 f4"), bytes.fromhex("e6 99 f4")
    box.load("fb f4 f4")
    assert vm.signal_msi(0xFEE0_0000, 0x50)
    out = box.run()
    assert isinstance(out, reasons.Io) and out.port == 0x98
    route = s.IrqRoutingEntry(gsi=5, type=s.IrqRoutingEntry.MSI)
    route.u.msi.address_lo, route.u.msi.data = 0xFEE0_0000, 0x51
    vm.set_routes([route])
    event = os.eventfd(0)
    vm.set_irqfd(event, 5)
    start(vcpu)
    os.eventfd_write(event, 1)
    out = box.run()
    assert isinstance(out, reasons.Io) and out.port == 0x99
    vm.set_irqfd(event, 5, remove=True)
    os.close(event)


# -- clock, statistics ---------------------------------------------------------------------------------------------------
def test_the_paravirtual_clock(box: Box) -> None:
    box.vm.set_clock(10**12)
    assert 10**12 <= box.vm.clock().clock < 2 * 10**12


def test_statistics(kvm: Kvm, box: Box) -> None:
    needs(kvm, Cap.BINARY_STATS_FD)
    box.load("e6 42 f4")
    box.run()
    with box.vcpu.statistics() as file:
        found = statistics.read(file)
    assert found["exits"].values[0] >= 1
    with box.vm.statistics() as file:
        assert "remote_tlb_flush" in statistics.read(file)


def test_closing_twice_is_harmless(box: Box) -> None:
    box.vcpu.close()
    box.vcpu.close()
    box.vm.close()


# -- the rest --------------------------------------------------------------------------------------------------------------
def test_requests_of_the_machine_that_set_it_up(kvm: Kvm) -> None:
    def prepare(vm: Vm) -> None:
        vm.set_identity_map_address(0xFFFB_C000)
        vm.set_boot_cpu(0)
        vm.set_mmu_pages(512)

    assert make(kvm, prepare).run is not None
    with kvm.create_vm() as vm, pytest.raises(OSError, match="KVM_CREATE_DEVICE"):
        vm.create_device(0xFFFF)


def test_machine_checks(kvm: Kvm, box: Box) -> None:
    capabilities = kvm.mce_capabilities() & ~0xFF | 1
    box.vcpu.setup_mce(capabilities)
    assert box.vcpu.msrs([0x179]) == {0x179: capabilities}
    box.vcpu.machine_check(s.Mce(status=1 << 63 | 1 << 60, bank=0))
    assert box.vcpu.msrs([0x401])[0x401] == 1 << 63 | 1 << 60


def test_task_priority_reports_need_a_local_apic_in_the_kernel(kvm: Kvm) -> None:
    box = make(kvm, lambda vm: vm.enable(Cap.SPLIT_IRQCHIP, 24) if kvm.check(Cap.SPLIT_IRQCHIP) else vm.create_irqchip())
    box.vcpu.report_tpr_access(True)
    box.vcpu.set_vapic_address(0x5000)
    box.vcpu.interrupt(0x20)  # from a legacy controller, which is outside the kernel
    with pytest.raises(OSError, match="KVM_KVMCLOCK_CTRL"):
        box.vcpu.clock_paused()  # the guest has no such clock


def test_system_management_interrupts_where_there_are_any(kvm: Kvm, box: Box) -> None:
    if kvm.check(117):  # KVM_CAP_X86_SMM
        box.vcpu.smi()
    else:
        with pytest.raises(OSError, match="KVM_SMI"):
            box.vcpu.smi()
