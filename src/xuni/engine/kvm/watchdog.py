"""Sees when KVM_RUN makes no progress: some hosts' KVM executes certain instructions over and over.

At every interruption of KVM_RUN it looks at the registers. If they stay the same for a while it looks many times more,
at short and irregular distances, since a guest that polls a variable is only seen at the same place by chance. What still
has not moved is executed by our own semantics, that one instruction; that does no harm if the suspicion was wrong. If not
even this changes anything, and it is no jump to itself, the engine has failed.
"""

from __future__ import annotations

import random
import re
import time
from typing import TYPE_CHECKING, Final

from xuni.engine.kvm.probes import kvm_stuck
from xuni.exits import EngineFailure, Exit

if TYPE_CHECKING:
    from xuni.engine.kvm.vcpu import KvmVcpu

PATIENCE: Final = 150_000_000  # ns without a change of registers
LOOKS: Final = 50
SHORTEST, LONGEST = 20_000, 200_000  # ns between them
TRIES: Final = 3
PLACES: Final = 64  # that are remembered, to wait there no more
WAITS: Final = re.compile(
    rb"[\x26\x2e\x36\x3e\x40-\x4f\x64-\x67\xf2\xf3]*"
    rb"([\xe9\xea\xeb\xff\x70-\x7f\xe0-\xe3\xc2\xc3\xca-\xcf]|\x0f[\x80-\x8f]|\x90|\xf4)", re.DOTALL
)  # fmt: skip
"""Prefixes and an opcode that may lead to itself, PAUSE and HLT."""


class Watchdog:
    """Belongs to one virtual CPU."""

    def __init__(self, vcpu: KvmVcpu) -> None:
        self._vcpu = vcpu
        self._seen = b""
        self._since = 0
        self._places: set[int] = set()  # where KVM was stuck before
        self._vain = 0

    def look(self) -> Exit | None:
        """KVM_RUN was interrupted: an exit if that is due to anything but a signal."""
        vcpu = self._vcpu
        regs, now = vcpu.kvm.regs(), time.monotonic_ns()
        seen = bytes(regs)
        known = int(regs.rip) in self._places
        if vcpu.halted or vcpu.debugger.active or seen != self._seen and not known:
            self._seen, self._since = seen, now
            return None
        if now - self._since < PATIENCE and not known:
            return None
        self._seen, self._since = seen, now
        instruction = vcpu.instruction_bytes()
        if WAITS.match(instruction):
            return None
        for _ in range(LOOKS):
            with vcpu.alarm_after(random.randint(SHORTEST, LONGEST)):
                if vcpu.kvm.run():
                    return vcpu.decode()
            if bytes(vcpu.kvm.regs()) != seen:
                return None
        return self._rescue(int(regs.rip), instruction)

    def _rescue(self, rip: int, instruction: bytes) -> Exit:
        vcpu = self._vcpu
        if kvm_stuck.on:
            kvm_stuck(vcpu.config.apic_id, rip, instruction.hex(" "))
        if len(self._places) < PLACES:
            self._places.add(rip)
        event = vcpu.fallback.begin(instruction)
        moved = vcpu.fallback.active or bytes(vcpu.kvm.regs()) != self._seen
        self._vain = 0 if moved else self._vain + 1
        if self._vain >= TRIES:
            return EngineFailure(f"KVM_RUN makes no progress at RIP {rip:#x}, instruction bytes {instruction.hex(' ')}")
        return event
