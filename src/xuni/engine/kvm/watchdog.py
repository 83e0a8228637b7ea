"""Sees when KVM_RUN makes no progress: some hosts' KVM executes certain instructions over and over.

At every interruption of KVM_RUN it looks at the registers. If they have not changed for a while the guest may still be
well (a jump to itself), so the next instruction is tried as a single step: a step that does not end, or ends where it
began though it is no jump, is a hang. That instruction is then executed by our own semantics; if it comes back again and
again the engine has failed.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Final

from xuni.exits import EngineFailure, Exit
from xuni.host.kvm.structures import GuestDebug
from xuni.trace import Probe

if TYPE_CHECKING:
    from xuni.engine.kvm.vcpu import KvmVcpu

kvm_stuck = Probe("kvm_stuck", "cpu", "rip", "instruction")

PATIENCE: Final = 150_000_000  # ns without a change of registers
STEP_TIME: Final = 100_000_000  # ns for one instruction
JUMP: Final = re.compile(rb"[\x26\x2e\x36\x3e\x64-\x67\x40-\x4f\xf2\xf3]*([\xe9\xea\xeb\xff\x70-\x7f\xe0-\xe3\xc2\xc3\xca-\xcf]|\x0f[\x80-\x8f])")
"""Prefixes and an opcode that may lead to itself."""
RESCUES: Final = 64  # of the same instruction, one after the other


class Watchdog:
    """Belongs to one virtual CPU."""

    def __init__(self, vcpu: KvmVcpu) -> None:
        self._vcpu = vcpu
        self._seen = b""
        self._since = 0
        self._rescued = 0
        self._rip = 0

    def look(self) -> Exit | None:
        """KVM_RUN was interrupted: an exit if the guest hangs in it."""
        vcpu = self._vcpu
        seen, now = bytes(vcpu.kvm.regs()), time.monotonic_ns()
        if seen != self._seen or vcpu.halted:
            self._seen, self._since = seen, now
            return None
        if now - self._since < PATIENCE or vcpu.debugger.active:
            return None
        self._since = now
        return self._try_one_step()

    def _try_one_step(self) -> Exit | None:
        vcpu = self._vcpu
        vcpu.kvm.debug(GuestDebug.ENABLE | GuestDebug.SINGLESTEP)
        try:
            with vcpu.alarm_after(STEP_TIME):
                began = time.monotonic_ns()
                ended = vcpu.kvm.run()
        finally:
            vcpu.kvm.debug(0)
        event = vcpu.after_step() if ended else None
        if event is not None:
            return event
        instruction = vcpu.instruction_bytes()
        if bytes(vcpu.kvm.regs()) != self._seen or JUMP.match(instruction):
            return None
        if not ended and time.monotonic_ns() - began < STEP_TIME:
            return None  # someone else interrupted it
        rip = int(vcpu.kvm.regs().rip)
        if kvm_stuck.on:
            kvm_stuck(vcpu.config.apic_id, rip, instruction)
        self._rescued = self._rescued + 1 if rip == self._rip else 0
        self._rip = rip
        if self._rescued >= RESCUES:
            return EngineFailure(f"KVM_RUN makes no progress at RIP {rip:#x}, instruction bytes {instruction.hex(' ')}")
        return vcpu.fallback.begin(instruction)
