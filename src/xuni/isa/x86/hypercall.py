"""VMCALL and VMMCALL, for processors that have the feature `hypercall`: a guest asks its hypervisor for something.

Intel's processors have the one and AMD's the other; here both work on either, as under hypervisors that emulate the
one which the processor lacks. Without the feature they are #UD, as outside VMX operation (SDM vol. 3, VMCALL). Which
calls there are is the machine's: `xuni.machine.hypercalls`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xuni.isa.bits import select, u64
from xuni.isa.stage import staged
from xuni.isa.x86.instruction import instruction
from xuni.isa.x86.segment import is_64bit
from xuni.isa.x86.state import Gpr

if TYPE_CHECKING:
    from xuni.isa.x86.cpu import Cpu

HYPERCALL_REGISTERS: Final = (Gpr.RAX, Gpr.RBX, Gpr.RCX, Gpr.RDX, Gpr.RSI)
"""The call and its arguments, as Linux's Documentation/virt/kvm/x86/hypercalls.rst has them."""
NOT_PERMITTED: Final = -1
"""The answer outside CPL 0: KVM_EPERM of Linux's include/uapi/linux/kvm_para.h."""


@staged
def _ask(cpu: Cpu) -> None:
    answer = u64(NOT_PERMITTED)
    if cpu.s.cpl == 0:
        answer = cpu.hypercall(select(is_64bit(cpu), u64(8), u64(4)))
    cpu.s.gpr[Gpr.RAX] = select(is_64bit(cpu), answer, answer & 0xFFFFFFFF)


@instruction("VMCALL", "NP 0F 01 C1", feature="hypercall", ends=True, cold=True)
def vmcall(cpu: Cpu) -> None:
    _ask(cpu)


@instruction("VMMCALL", "NP 0F 01 D9", feature="hypercall", ends=True, cold=True)
def vmmcall(cpu: Cpu) -> None:
    _ask(cpu)
