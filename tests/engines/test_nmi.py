"""NMIs that come faster than the processor looks: one is being served while another is latched, and no more."""

from __future__ import annotations

import pytest

from tests.engines.assembler import BASE, assemble
from xuni.engine.soft.plain import PlainVcpu
from xuni.engine.soft.vcpu import BaseVcpu, SoftVcpu
from xuni.exits import Halt, PortOut, Resume
from xuni.isa.x86.cpustate import real_mode
from xuni.memory.guest import GuestMemory

# The handler counts in BX; inside it, a write to port 80h lets the host send more.
GUEST = """
.code16
    mov sp, 0x7000
    out 0x81, al
    hlt
.global handler
handler:
    inc bx
    out 0x80, al
    iret
"""
IN_HANDLER, BEFORE = PortOut(0x80, 1, 0), PortOut(0x81, 1, 0)


@pytest.mark.parametrize("make", [SoftVcpu, PlainVcpu])
@pytest.mark.parametrize(("before", "inside", "served"), [(1, 0, 1), (2, 0, 2), (5, 0, 2), (1, 1, 2), (1, 5, 2), (2, 5, 2)])
def test_how_many_are_served(make: type[BaseVcpu], before: int, inside: int, served: int) -> None:
    code = assemble([GUEST])[0]
    with GuestMemory(1 << 20) as memory:
        memory.write(BASE, code.data)
        memory.write_u32(8, code.labels["handler"])  # vector 2
        vcpu = make(memory)
        vcpu.start(real_mode(0, BASE))
        assert vcpu.run(Resume()) == BEFORE
        for _ in range(before):
            vcpu.nmi()
        first = True
        while (event := vcpu.run(Resume())) == IN_HANDLER:
            for _ in range(inside if first else 0):
                vcpu.nmi()
            first = False
        assert isinstance(event, Halt)
        assert vcpu.save().registers.rbx == served
