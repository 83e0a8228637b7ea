from __future__ import annotations

import pytest

from xuni.isa.x86.hypercall import vmcall, vmmcall
from xuni.isa.x86.state import Gpr

from .machine import PlainCpu


@pytest.mark.parametrize("call", [vmcall, vmmcall])
def test_the_hypervisor_answers_the_kernel_alone(call) -> None:
    cpu = PlainCpu()
    cpu.enter_long()
    call(cpu)
    assert cpu.log == [("hypercall", 8)]
    assert int(cpu.s.gpr[Gpr.RAX]) == 2**64 - 22
    cpu.enter_long(cpl=3)
    call(cpu)
    assert cpu.log == [("hypercall", 8)], "nobody was asked"
    assert int(cpu.s.gpr[Gpr.RAX]) == 2**64 - 1


def test_arguments_and_answer_have_32_bits_outside_64_bit_code() -> None:
    cpu = PlainCpu()
    cpu.enter_protected()
    vmcall(cpu)
    assert cpu.log == [("hypercall", 4)]
    assert int(cpu.s.gpr[Gpr.RAX]) == 2**32 - 22
