"""Where KVM gives up on an instruction, our own semantics execute it: that one, on the soft engine, over the same memory.

The device accesses of the instruction come out as the same exits as KVM's. `count` says how often it was needed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from xuni.engine.kvm import saved
from xuni.engine.kvm.probes import kvm_fallback
from xuni.exits import DebugControl, Debugged, EngineFailure, Exit, Halt, Reply, Resume, Shutdown, Sliced

if TYPE_CHECKING:
    from xuni.engine.kvm.vcpu import KvmVcpu
    from xuni.engine.soft.vcpu import BaseVcpu
    from xuni.isa.x86.cpustate import VcpuState
    from xuni.memory.guest import GuestMemory

KINDS: Final = 64  # different instructions that are counted by their first bytes
RESUME: Final = Resume()


class Fallback:
    """Belongs to one virtual CPU; the soft engine is loaded when it is needed first."""

    def __init__(self, vcpu: KvmVcpu) -> None:
        self._vcpu = vcpu
        self._soft: BaseVcpu | None = None
        self._before: VcpuState | None = None
        self._reply: Reply = RESUME
        self.active = False
        """An instruction is under way."""
        self.count = 0
        self.instructions: Counter[str] = Counter()
        """How often, by the instruction's first four bytes."""

    def begin(self, instruction: bytes) -> Exit:
        """Execute the instruction that is next."""
        vcpu = self._vcpu
        soft = self._soft = self._soft or soft_engine(vcpu, vcpu.memory)
        state = self._before = saved.save(vcpu)
        self.count += 1
        key = (instruction or vcpu.instruction_bytes())[:4].hex(" ")
        if key in self.instructions or len(self.instructions) < KINDS:
            self.instructions[key] += 1
        if kvm_fallback.on:
            kvm_fallback(vcpu.config.apic_id, state.registers.rip, key, self.count)
        soft.load(replace(state, halted=False, nmi_pending=False, ymm_high=b""))
        for address, length in vcpu.instruction_places():  # KVM may have written there behind its back
            for written in vcpu.memory.on_write:
                written(address, length)
        self._reply = RESUME
        self.active = True
        return self.go_on()

    def take(self, reply: Reply) -> None:
        """The answer to a device access of the instruction."""
        self._reply = reply

    def go_on(self) -> Exit:
        """Until the instruction is complete, or asks for something."""
        soft, vcpu = self._soft, self._vcpu
        assert soft is not None
        event = soft.run(self._reply)
        self._reply = RESUME
        match event:
            case Debugged():
                self._finish()
                return Sliced()
            case Halt():
                self._finish()
                vcpu.halted = True
                return event
            case Shutdown() | EngineFailure():
                self.active = False
                return event
            case Sliced():
                return event
        vcpu.expect(self.take)
        return event

    def abandon(self) -> None:
        """The processor was reset."""
        self.active = False

    def close(self) -> None:
        """Let the soft engine go."""
        if self._soft:
            self._soft.close()
            self._soft = None

    def _finish(self) -> None:
        soft, before = self._soft, self._before
        assert soft is not None and before is not None
        self.active = False
        after = soft.save()
        changed = {index: value for index, value in after.msrs.items()
                   if index in before.msrs and index != saved.TSC and value != before.msrs[index]}  # fmt: skip
        saved.load(self._vcpu, replace(after, msrs=changed, nmi_pending=before.nmi_pending, halted=False,
                                         ymm_high=before.ymm_high))  # fmt: skip


def soft_engine(vcpu: KvmVcpu, memory: GuestMemory) -> BaseVcpu:
    """A soft virtual CPU like `vcpu`, over `memory`, that goes step by step.

    Compiled if the compiled engine is on this disk, else in plain Python: one instruction is not worth compiling all.
    """
    from xuni.engine.soft import build
    from xuni.engine.soft.vcpu import SoftConfig
    from xuni.isa.x86.models import IMPLEMENTED

    features = vcpu.features & IMPLEMENTED | {"base", "hypercall"}
    config = SoftConfig(features, vcpu.config.apic_id, vcpu.config.cpus, vcpu.physical_bits, vcpu.identity,
                        vcpu.config.topology)  # fmt: skip
    base = vcpu.machine.clock_base
    soft: BaseVcpu
    if (build.cache_directory() / f"{build.key()}.engine").exists():
        from xuni.engine.soft.vcpu import SoftVcpu

        soft = SoftVcpu(memory, config, clock_base=base)
    else:
        from xuni.engine.soft.plain import PlainVcpu

        soft = PlainVcpu(memory, config, clock_base=base)
    soft.debug(DebugControl(step=True))
    return soft
