"""The CPU's state at the first instruction: descriptors, reset, real mode."""

from __future__ import annotations

from xuni.isa.x86 import cpustate
from xuni.isa.x86.cpustate import Segment


def test_descriptors() -> None:
    assert cpustate.code32(8).descriptor() == 0x00CF_9B00_0000_FFFF
    assert cpustate.code64(8).descriptor() == 0x00AF_9B00_0000_FFFF
    assert cpustate.data32(8).descriptor() == 0x00CF_9300_0000_FFFF
    tss = Segment(0x20, 0x1234_5678, 0x67, type=0xB, s=0)
    assert tss.descriptor() == 0x1200_8B34_5678_0067
    assert cpustate.code64(8).attributes == 0xA09B
    user = Segment(0x33, 0, 0xF_FFFF, type=0x3, dpl=3, avl=1, db=1)
    assert user.descriptor() == 0x005F_F300_0000_FFFF


def test_reset() -> None:
    state = cpustate.at_reset(0x806EA)
    assert (state.cs.selector, state.cs.base, state.cs.limit, state.rip) == (0xF000, 0xFFFF_0000, 0xFFFF, 0xFFF0)
    assert (state.cr0, state.rflags, state.rdx, state.efer) == (0x6000_0010, 2, 0x806EA, 0)
    assert (state.gdtr.limit, state.idtr.limit, state.ldtr.type, state.tr.type) == (0xFFFF, 0xFFFF, 2, 0xB)
    assert state.ss.limit == 0xFFFF


def test_real_mode() -> None:
    state = cpustate.real_mode(0x9A00, 0x10)
    assert (state.cs.selector, state.cs.base, state.rip, state.cr0) == (0x9A00, 0x9_A000, 0x10, 0x10)
