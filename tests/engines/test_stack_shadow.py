"""An instruction breakpoint behind MOV SS: Intel's processors do not see it (SDM vol. 3, section 18.3.1.1), AMD's do."""

from __future__ import annotations

import pytest

from tests.engines.assembler import BASE, assemble
from xuni.engine.soft.plain import PlainVcpu
from xuni.engine.soft.vcpu import BaseVcpu, SoftConfig, SoftVcpu
from xuni.exits import PortOut, Resume
from xuni.isa.x86.cpustate import real_mode
from xuni.isa.x86.features import choose
from xuni.memory.guest import GuestMemory

GUEST = """
.code16
    mov sp, 0x7000
    mov eax, offset behind
    mov dr0, eax
    mov eax, 0x402           # G0: execution, in all tasks
    mov dr7, eax
    mov ax, ss
    mov ss, ax
.global behind
behind:
    nop
    mov al, bl
    out 0x80, al
.global handler
handler:
    inc bl
    xor eax, eax             # FLAGS has no room for RF: the breakpoint goes
    mov dr7, eax
    iret
"""


@pytest.mark.parametrize("make", [SoftVcpu, PlainVcpu])
@pytest.mark.parametrize(("more", "seen"), [((), 0), (("amd",), 1)])
def test_a_breakpoint_behind_mov_ss(make: type[BaseVcpu], more: tuple[str, ...], seen: int) -> None:
    code = assemble([GUEST])[0]
    with GuestMemory(1 << 20) as memory:
        memory.write(BASE, code.data)
        memory.write_u32(4, code.labels["handler"])  # vector 1
        vcpu = make(memory, SoftConfig(choose(plus=more)))
        vcpu.start(real_mode(0, BASE))
        assert vcpu.run(Resume()) == PortOut(0x80, 1, seen)
