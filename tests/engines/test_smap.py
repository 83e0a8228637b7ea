"""CLAC and STAC take effect at the next instruction, in the middle of a trace as well (SDM vol. 3, section 4.6)."""

from __future__ import annotations

import pytest

from tests.engines.assembler import BASE, assemble
from xuni.engine.soft.plain import PlainVcpu
from xuni.engine.soft.vcpu import BaseVcpu, SoftVcpu
from xuni.exits import Exit, PortOut, Resume, Shutdown
from xuni.isa.x86.cpustate import NO_TABLE, long_flat
from xuni.memory.guest import GuestMemory

TABLES, USER = 0x20000, 0x20_0000
PRESENT_WRITABLE, LARGE, OF_USER = 0x03, 0x80, 0x04

# The second read or write hits the TLB entry that the first one made, if it looks into the wrong TLB: what follows the
# exit began with AC set. There is no IDT: the page fault ends the guest.
GUEST = """
.code64
    mov rax, cr4
    or eax, 0x200000         # SMAP
    mov cr4, rax
    xor eax, eax
    stac
    %s
    out 0x81, al
    clac
    %s
    out 0x80, al
"""
READ, WRITE = (text.format(USER + 0x9000) for text in ("mov eax, dword ptr [{}]", "mov dword ptr [{}], ecx"))


@pytest.mark.parametrize("make", [SoftVcpu, PlainVcpu])
@pytest.mark.parametrize(("first", "second", "error"), [(READ, READ, 1), (WRITE, WRITE, 3), (READ, WRITE, 3)])
def test_clac_shuts_user_pages_at_once(make: type[BaseVcpu], first: str, second: str, error: int) -> None:
    event = run(make, GUEST % (first, second))
    assert isinstance(event, Shutdown) and event.reason.startswith(f"#PF({error:#x}) at {USER + 0x9000:#x}"), event


@pytest.mark.parametrize("make", [SoftVcpu, PlainVcpu])
def test_stac_opens_them(make: type[BaseVcpu]) -> None:
    assert run(make, GUEST % (READ, f"stac\n{WRITE}\n{READ}")) == PortOut(0x80, 1, 0)


def run(make: type[BaseVcpu], text: str) -> Exit:
    with GuestMemory(1 << 20) as memory:
        memory.write(BASE, assemble([text])[0].data)
        rights = PRESENT_WRITABLE | OF_USER
        memory.write_u64(TABLES, TABLES + 0x1000 | rights)
        memory.write_u64(TABLES + 0x1000, TABLES + 0x2000 | rights)
        memory.write_u64(TABLES + 0x2000, PRESENT_WRITABLE | LARGE)
        memory.write_u64(TABLES + 0x2008, rights | LARGE)  # the same memory, as the user's
        vcpu = make(memory)
        vcpu.start(long_flat(BASE, TABLES, gdtr=NO_TABLE))
        assert vcpu.run(Resume()) == PortOut(0x81, 1, 0)
        return vcpu.run(Resume())
