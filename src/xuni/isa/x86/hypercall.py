"""VMCALL, for processors that have the feature `hypercall`: a guest asks its hypervisor for something.

There is nothing to ask for: each call answers as hypervisors answer one that they do not know, and changes RAX alone.
Without the feature VMCALL is #UD, as outside VMX operation (SDM vol. 3, VMCALL).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xuni.isa.bits import select, u64
from xuni.isa.x86.instruction import instruction
from xuni.isa.x86.segment import is_64bit
from xuni.isa.x86.state import Gpr

if TYPE_CHECKING:
    from xuni.isa.x86.cpu import Cpu

NO_SUCH_CALL: Final = -1000
NOT_PERMITTED: Final = -1
"""Answers, from Linux's include/uapi/linux/kvm_para.h: KVM_ENOSYS, and KVM_EPERM outside CPL 0."""


@instruction("VMCALL", "NP 0F 01 C1", feature="hypercall", cold=True)
def vmcall(cpu: Cpu) -> None:
    answer = select(cpu.s.cpl != 0, u64(NOT_PERMITTED), u64(NO_SUCH_CALL))
    cpu.s.gpr[Gpr.RAX] = select(is_64bit(cpu), answer, answer & 0xFFFFFFFF)
