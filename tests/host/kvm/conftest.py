"""A machine in KVM with one page of code, where there is a KVM; guests end by an alarm at the latest."""

from __future__ import annotations

import ctypes
import mmap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from xuni.host.alarm import Alarm
from xuni.host.kvm import Kvm, KvmUnavailable, Vcpu, Vm
from xuni.host.kvm.reasons import Reason, reason

CODE = 0x1000
SIZE = 1 << 20
LIMIT = 5_000_000_000
"""ns that one guest may run."""


@dataclass
class Box:
    """KVM, a machine of one MiB, its memory, and its first virtual CPU in real mode at CODE."""

    kvm: Kvm
    vm: Vm
    memory: mmap.mmap
    address: int
    vcpu: Vcpu

    def load(self, code: str) -> None:
        """Code as hexadecimal digits, and RIP at its beginning."""
        text = bytes.fromhex(code)
        self.memory[CODE : CODE + len(text)] = text
        start(self.vcpu)

    def run(self) -> Reason:
        """Up to the next exit."""
        alarm = Alarm()
        self.vcpu.set_signal_mask(alarm.blocked)
        alarm.set(time.monotonic_ns() + LIMIT)
        try:
            assert self.vcpu.run(), "the guest did not exit"
        finally:
            alarm.close()
        return reason(self.vcpu.run_page)


def start(vcpu: Vcpu) -> None:
    sregs = vcpu.sregs()
    sregs.cs.base = sregs.cs.selector = 0
    vcpu.set_sregs(sregs)
    regs = vcpu.regs()
    regs.rip, regs.rflags, regs.rsp = CODE, 2, 0x8000
    vcpu.set_regs(regs)


@pytest.fixture
def kvm() -> Iterator[Kvm]:
    try:
        device = Kvm()
    except KvmUnavailable as error:
        pytest.skip(str(error))
    with device:
        yield device


def make(kvm: Kvm, prepare: Callable[[Vm], object] = lambda vm: None) -> Box:
    """Another one; `prepare` is called before it has memory and virtual CPUs."""
    vm = kvm.create_vm()
    memory = mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    vm.set_tss_address(0xFFFB_D000)
    prepare(vm)
    vm.set_memory(0, 0, SIZE, address)
    vcpu = vm.create_vcpu(0)
    return Box(kvm, vm, memory, address, vcpu)


@pytest.fixture
def box(kvm: Kvm) -> Iterator[Box]:
    made = make(kvm)
    yield made
    made.vcpu.close()
    made.vm.close()
