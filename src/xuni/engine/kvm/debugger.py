"""What the host's debugger wants of a KVM virtual CPU: single steps, breakpoints and watchpoints by KVM_SET_GUEST_DEBUG.

Up to four breakpoints and watchpoints are the processor's own. With more breakpoints than that the guest goes step by
step, and each address is looked at here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xuni.exits import DebugCause, DebugControl, Debugged, Exit, Sliced
from xuni.host.kvm.structures import GuestDebug

if TYPE_CHECKING:
    from xuni.engine.kvm.vcpu import KvmVcpu
    from xuni.host.kvm.reasons import Debug

REGISTERS: Final = 4
LOCAL_EXACT, FIXED = 1 << 8, 1 << 10
LENGTHS: Final = {1: 0, 2: 1, 4: 3, 8: 2}  # DR7.LEN, SDM vol. 3B, 18.2.4
WRITES, ACCESSES = 1, 3


class Debugger:
    """Belongs to one virtual CPU."""

    def __init__(self, vcpu: KvmVcpu) -> None:
        self._vcpu = vcpu
        self._wanted = DebugControl()
        self._at: int | None = None  # the breakpoint that was reported and is next
        self.active = False
        """Whether there is anything to watch for."""
        self.unfinished = False
        """A device was asked, and the instruction is not complete."""

    def control(self, control: DebugControl) -> None:
        """Replace what is wanted. ValueError for a watchpoint that no debug register can hold."""
        if len(control.watchpoints) > REGISTERS:
            raise ValueError(f"{len(control.watchpoints)} watchpoints: a processor has {REGISTERS}")
        for point in control.watchpoints:
            if point.length not in LENGTHS or point.address % point.length:
                raise ValueError(f"watchpoint at {point.address:#x}+{point.length}: 1, 2, 4 or 8 bytes, aligned")
        self._wanted = control
        self.active = control.step or bool(control.breakpoints or control.watchpoints)
        self.unfinished = False
        self._apply(self._step_flags())

    def before(self) -> Exit | None:
        """The guest is about to go on."""
        if self.unfinished:
            self.unfinished = False
            if self._wanted.step or self._by_steps:  # KVM may forget the step of an instruction that a device answered
                if self._vcpu.finish():
                    return self._vcpu.decode()
                return self._arrived(self._vcpu.linear_rip(), 0)
        if self._at is not None:
            # The breakpoint would be met again at once: execute its instruction without it.
            self._apply(GuestDebug.ENABLE | GuestDebug.SINGLESTEP)
        return None

    def stopped(self, reason: Debug) -> Exit:
        """KVM_EXIT_DEBUG."""
        passed, self._at = self._at, None
        if passed is not None:
            self._apply(self._step_flags())
        return self._arrived(reason.pc, reason.dr6)

    def _arrived(self, pc: int, dr6: int) -> Exit:
        wanted = self._wanted
        hit = next((point.address for n, point in enumerate(wanted.watchpoints) if dr6 >> n & 1), None)
        if hit is not None:
            return Debugged(DebugCause.WATCHPOINT, hit)
        if pc in wanted.breakpoints:
            self._at = pc
            return Debugged(DebugCause.BREAKPOINT, pc)
        return Debugged(DebugCause.STEP, pc) if wanted.step else Sliced()

    @property
    def _by_steps(self) -> bool:
        return len(self._wanted.breakpoints) + len(self._wanted.watchpoints) > REGISTERS

    def _step_flags(self) -> int:
        if not self.active:
            return 0
        flags = GuestDebug.ENABLE
        if self._wanted.step or self._by_steps:
            flags |= GuestDebug.SINGLESTEP
        if self._wanted.watchpoints or self._wanted.breakpoints and not self._by_steps:
            flags |= GuestDebug.USE_HW_BP
        return flags

    def _apply(self, flags: int) -> None:
        registers = [0] * 8
        if flags & GuestDebug.USE_HW_BP:
            control = LOCAL_EXACT | FIXED
            points = [(p.address, LENGTHS[p.length], WRITES if p.writes_only else ACCESSES) for p in self._wanted.watchpoints]
            if not self._by_steps:
                points += [(address, 0, 0) for address in sorted(self._wanted.breakpoints)]
            for n, (address, length, kind) in enumerate(points):
                registers[n] = address
                control |= 2 << 2 * n | (length << 2 | kind) << 16 + 4 * n
            registers[7] = control
        self._vcpu.kvm.debug(flags, registers)
