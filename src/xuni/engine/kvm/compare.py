"""A differential test of our semantics against KVM's, on whatever runs: each instruction that no device takes part in is
executed twice, by KVM on the guest and by the soft engine on a copy of its memory, and what they made of it is compared.

It is on while someone listens to the probe `kvm_differs`, and costs about a millisecond an instruction.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Final

from xuni.engine.kvm import saved
from xuni.engine.kvm.fallback import soft_engine
from xuni.engine.kvm.probes import kvm_differs
from xuni.exits import Debugged, Exit, Resume, Sliced
from xuni.host.kvm.reasons import ExitReason
from xuni.host.kvm.structures import GuestDebug
from xuni.memory.guest import GuestMemory

if TYPE_CHECKING:
    from xuni.engine.kvm.vcpu import KvmVcpu
    from xuni.engine.soft.vcpu import BaseVcpu
    from xuni.isa.x86.cpustate import CpuState, VcpuState
    from xuni.memory.guest import Slot

RESUME: Final = Resume()
RESUME_FLAG: Final = 1 << 16  # RFLAGS.RF: a matter of how an instruction was begun
COMPARED: Final = ("pdptes", "debug", "xcr0", "pkru", "interrupt_shadow", "nmi_blocked")
X87_POINTERS: Final = slice(6, 24)  # last opcode, instruction and operand: KVM's emulator keeps no account of them


REPEATED: Final = re.compile(rb"[\x26\x2e\x36\x3e\x64-\x67]*[\xf2\xf3][\x26\x2e\x36\x3e\x40-\x4f\x64-\x67]*"
                             rb"[\x6c-\x6f\xa4-\xa7\xaa-\xaf]", re.DOTALL)  # fmt: skip
RETURN: Final = re.compile(rb"[\x48\x66]*[\xcf\x9d]", re.DOTALL)  # IRET, POPF
ITERATIONS: Final = 1 << 20
TRAP_FLAG: Final = 1 << 8
FRAME: Final = 64  # bytes of the largest frame of an exception, and a little more

# Flags that instructions leave undefined, by opcode (SDM vol. 1, appendix A).
_ALL, _ADJUST = 0x8D5, 0x10
_UNDEFINED: Final = (
    (rb"[\xf6\xf7]|\x69|\x6b|\x0f\xaf", _ALL),  # MUL, IMUL, DIV, IDIV; with them TEST, NOT and NEG
    (rb"[\xc0\xc1\xd0-\xd3]|\x0f[\xa4\xa5\xac\xad]", _ADJUST | 0x801),  # shifts and rotations
    (rb"\x0f[\xa3\xab\xb3\xbb\xba]", 0x894),  # BT, BTS, BTR, BTC
    (rb"\x0f[\xbc\xbd]", _ALL & ~0x40),  # BSF, BSR
    (rb"[\x08-\x0d\x20-\x25\x30-\x35\x80-\x83\x84\x85\xa8\xa9]", _ADJUST),  # AND, OR, XOR, TEST
    (rb"[\x27\x2f\x37\x3f\xd4\xd5]", _ALL),  # decimal adjustments
)  # fmt: skip
_PATTERNS: Final = [(re.compile(rb"[\x26\x2e\x36\x3e\x40-\x4f\x64-\x67\xf0\xf2\xf3]*(" + opcode + rb")", re.DOTALL), flags)
                    for opcode, flags in _UNDEFINED]  # fmt: skip


def undefined(instruction: bytes) -> int:
    """The flags of RFLAGS that may be anything after the instruction."""
    return next((flags for pattern, flags in _PATTERNS if pattern.match(instruction)), 0)


class Comparison:
    """Belongs to one virtual CPU. Guests of one processor only: others would write to memory in between."""

    def __init__(self, vcpu: KvmVcpu) -> None:
        self._vcpu = vcpu
        self._memory: GuestMemory | None = None
        self._soft: BaseVcpu | None = None
        self._unfinished = False  # a device was asked, and KVM has not completed the instruction
        self.compared = 0
        self.differences = 0

    @property
    def wanted(self) -> bool:
        """Whether to go step by step."""
        return kvm_differs.on and self._vcpu.config.cpus == 1

    def step(self) -> Exit:
        """One instruction by KVM, and by us if it was complete without an exit."""
        vcpu = self._vcpu
        kvm = vcpu.kvm
        if self._unfinished and vcpu.finish():
            return vcpu.decode()
        self._unfinished = False
        soft, copy = self._prepare()
        before = saved.save(vcpu)
        instruction = vcpu.instruction_bytes()
        kvm.debug(GuestDebug.ENABLE | GuestDebug.SINGLESTEP | GuestDebug.BLOCKIRQ)
        try:
            ended = kvm.run()
        finally:
            kvm.debug(0)
        if not ended:
            return vcpu.interrupted()
        if kvm.run_page.exit_reason != ExitReason.DEBUG:
            self._memory = None  # devices may write to memory now: take a new copy
            self._unfinished = True
            return vcpu.decode()
        after = saved.save(vcpu)
        self.compared += 1
        soft.load(replace(before, ymm_high=b""))
        event = self._execute(soft, instruction, before.registers.rip, after.registers)
        found = [f"ours: {event}"]
        if isinstance(event, Debugged):
            self._take_back_trap_flag(before, after, copy)
            theirs = after
            if REPEATED.match(instruction) and after.registers.rip == before.registers.rip:  # it ends by one more step
                theirs = replace(after, registers=replace(after.registers, rip=soft.save().registers.rip))
            found = self._differences(theirs, soft.save(), copy, undefined(instruction))
        if found:
            self.differences += 1
            kvm_differs(vcpu.config.apic_id, before.registers.rip, instruction.hex(" "), "; ".join(found))
            self._memory = None
        return Sliced()

    def _execute(self, soft: BaseVcpu, instruction: bytes, rip: int, after: CpuState) -> Exit:
        """One instruction; of a repeated one as many iterations as KVM did, which takes several for one step."""
        event = soft.run(RESUME)
        if REPEATED.match(instruction):
            for _ in range(ITERATIONS):
                now = soft.save().registers
                if not isinstance(event, Debugged) or now.rip != rip or (now.rip, now.rcx) == (after.rip, after.rcx):
                    break
                event = soft.run(RESUME)
        elif RETURN.match(instruction) and isinstance(event, Debugged) and soft.save().registers.rip != after.rip:
            event = soft.run(RESUME)  # the flags that it loads end KVM's step, which then takes the next one as well
        return event

    def _take_back_trap_flag(self, before: VcpuState, after: VcpuState, copy: GuestMemory) -> None:
        """KVM steps by RFLAGS.TF, which an exception's frame then holds though the guest did not set it."""
        if before.registers.rflags & TRAP_FLAG:
            return
        vcpu, top = self._vcpu, after.registers.ss.base + after.registers.rsp
        for at in range(top, top + FRAME):
            place = vcpu.translate(at)
            if place is None or not vcpu.memory.contains(place):
                continue
            theirs, ours = vcpu.memory.read_u8(place), copy.read_u8(place)
            if theirs == ours | TRAP_FLAG >> 8 != ours:
                vcpu.memory.write_u8(place, ours)
                return

    def _prepare(self) -> tuple[BaseVcpu, GuestMemory]:
        """The soft engine, over a copy of memory as it is."""
        if self._memory is None or self._soft is None:
            if self._soft:
                self._soft.close()
            self._memory = copy = GuestMemory(self._vcpu.memory.size)
            for theirs, ours in self._pairs(copy):
                ctypes.memmove(ours.host_address, theirs.host_address, theirs.size)
            self._soft = soft_engine(self._vcpu, copy)
        return self._soft, self._memory

    def _pairs(self, copy: GuestMemory) -> list[tuple[Slot, Slot]]:
        """Slots of both memories at the same place; ROM and holes are left out."""
        ours = {slot.start: slot for slot in copy.slots}
        # SAFETY (of the addresses used here): both memories are open, and the sizes are compared.
        return [(slot, ours[slot.start]) for slot in self._vcpu.memory.slots
                if slot.start in ours and slot.size <= ours[slot.start].size]  # fmt: skip

    def _differences(self, theirs: VcpuState, ours: VcpuState, copy: GuestMemory, flags: int = 0) -> list[str]:
        found = []
        for item in fields(theirs.registers):
            a, b = getattr(theirs.registers, item.name), getattr(ours.registers, item.name)
            if item.name == "rflags":
                a, b = a & ~(RESUME_FLAG | flags), b & ~(RESUME_FLAG | flags)
            if a != b:
                found.append(f"{item.name}: KVM {_shown(a)}, ours {_shown(b)}")
        for name in COMPARED:
            a, b = getattr(theirs, name), getattr(ours, name)
            if a != b and not (name == "pdptes" and a is None):
                found.append(f"{name}: KVM {_shown(a)}, ours {_shown(b)}")
        a, b = bytearray(theirs.fxsave[:416]), bytearray(ours.fxsave[:416])
        for image in (a, b):
            image[X87_POINTERS] = bytes(18)
            image[28:32] = bytes(4)  # MXCSR_MASK is the processor's
        if a != b:
            at = next(n for n in range(416) if a[n] != b[n])
            found.append(f"FXSAVE image at {at}: KVM {a[at : at + 8].hex()}, ours {b[at : at + 8].hex()}")
        for slot, other in self._pairs(copy):
            if _memcmp(slot.host_address, other.host_address, slot.size):
                found.append(_first_difference(slot, other))
        return found


def _shown(value: object) -> str:
    return hex(value) if isinstance(value, int) else str(value)


def _first_difference(slot: Slot, other: Slot) -> str:
    for at in range(0, slot.size, 4096):
        a, b = (ctypes.string_at(s.host_address + at, 4096) for s in (slot, other))
        if a != b:
            n = next(n for n in range(4096) if a[n] != b[n])
            return f"memory at {slot.start + at + n:#x}: KVM {a[n : n + 8].hex()}, ours {b[n : n + 8].hex()}"
    return "memory: another processor wrote to it"


_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
