"""A processor's state taken out and put into another one of the same engine."""

from __future__ import annotations

import os

from xuni.engine.soft.vcpu import SoftVcpu
from xuni.isa.x86.msr import Msr
from xuni.memory.guest import GuestMemory


def test_everything_that_is_saved_is_loaded() -> None:
    memory = GuestMemory(1 << 20)
    one, other = SoftVcpu(memory), SoftVcpu(memory)
    s = one.state
    noise = lambda: int.from_bytes(os.urandom(8), "little")  # noqa: E731
    for n in range(16):
        s.gpr[n] = noise()
    one.put_bytes("xmm", 0, os.urandom(256))
    s.fpu_status, s.fpu_tag = 5 << 11, 0xFF0F
    one.put_bytes("st", 32, os.urandom(10))
    s.star, s.pkrs, s.mtrr_fixed[3], s.mtrr_variable[5], s.cr2, s.dr[2] = noise(), 0x55, noise(), noise(), noise(), noise()
    one.rflags = 0x8D7
    s.nmi_blocked, s.interrupt_shadow, s.inject = 1, 2, 0x31
    s.tsc_offset = 1 << 40
    state = one.save()
    other.load(state)
    again = other.save()
    assert again.msrs[Msr.TSC] - state.msrs[Msr.TSC] < 10**10
    assert {**again.msrs, 0x10: 0} == {**state.msrs, 0x10: 0}
    for name in ("registers", "debug", "dr6", "dr7", "fxsave", "interrupt_shadow", "nmi_blocked", "pending_interrupt"):
        assert getattr(again, name) == getattr(state, name), name
    assert state.pending_interrupt == 0x30 and state.interrupt_shadow == 1
