"""The KVM engine's virtual CPU: one KVM_RUN after another, and what the run page says as exits.

Interrupt controllers and timers are the board's chips, outside the kernel: KVM exits for their MSRs and their pages, and
takes interrupts through KVM_INTERRUPT. What other threads want (INTR, NMI, INIT, a deadline) is noted, and the alarm
calls this thread back; only this thread issues requests, since KVM would have the others wait for the guest.

`run` is the hot path: a port access costs a few memory accesses here beside the system call and the device's own work.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_native_id
from time import monotonic_ns
from typing import TYPE_CHECKING, Final

from xuni.engine.kvm import cpuid, saved
from xuni.engine.kvm.compare import Comparison
from xuni.engine.kvm.debugger import Debugger
from xuni.engine.kvm.fallback import Fallback
from xuni.engine.kvm.machine import TSC_KHZ
from xuni.engine.kvm.watchdog import Watchdog
from xuni.exits import (
    Data,
    DebugControl,
    EngineFailure,
    Exit,
    Halt,
    Inject,
    InterruptWindow,
    MmioRead,
    MmioWrite,
    MsrRead,
    MsrWrite,
    PortIn,
    PortOut,
    PortServer,
    Refuse,
    Reply,
    Shutdown,
    Sliced,
    TprRead,
    TprWrite,
)
from xuni.host.alarm import NEVER, Alarm
from xuni.host.kvm import reasons
from xuni.host.kvm.entry import FAILED, Entry, port_access
from xuni.host.kvm.reasons import ExitReason
from xuni.isa.x86.cpuid import OURS, Identity, Topology
from xuni.isa.x86.cpustate import CpuState, VcpuState, at_reset, real_mode
from xuni.isa.x86.translation import translate
from xuni.memory.guest import GuestAddressError

if TYPE_CHECKING:
    from xuni.engine.kvm.machine import KvmMachine
    from xuni.memory.guest import GuestMemory

# Places in the run page, in units of the view that is used: u8, u32, u64.
WINDOW, IMMEDIATE_EXIT, READY = 0, 1, 12
INTERRUPT_FLAG: Final = 0x200  # of RFLAGS
REASON, IO_KIND, IO_COUNT = 2, 8, 9
CR8, IO_DATA = 2, 5
MMIO_ADDRESS, MMIO_DATA, MMIO_LENGTH, MMIO_WRITES = 4, 5, 12, 52
MSR_ERROR, MSR_INDEX, MSR_DATA = 32, 11, 6

APIC_BASE, X2APIC_TPR, APIC_TPR = 0x1B, 0x808, 0x80
APIC_RESET: Final = 0xFEE0_0800
APIC_BSP: Final = 0x100
MTRR_DEF_TYPE, MTRR_RESET = 0x2FF, 0xC06
PAGE: Final = 4096
PIECES: Final = 1 << 16  # unfinished requests that a processor may have: none has

UNFINISHED: Final = (ExitReason.IO, ExitReason.MMIO, ExitReason.X86_RDMSR, ExitReason.X86_WRMSR)
"""Exits in the middle of an instruction."""
KNOWN: Final = 4096  # OUTs whose parts are kept


@dataclass(frozen=True, slots=True)
class KvmConfig:
    """What a virtual CPU is; what KVM here cannot give is left out of `features`."""

    features: frozenset[str]
    apic_id: int = 0
    cpus: int = 1
    physical_bits: int = 40
    identity: Identity = OURS
    topology: Topology | None = None


class KvmVcpu:
    """One virtual CPU of a `KvmMachine`. See `xuni.exits.Vcpu` for the interface."""

    def __init__(self, machine: KvmMachine, config: KvmConfig) -> None:
        self.machine = machine
        self.config = config
        self.identity = cpuid.identity(config, machine.supported)
        chosen = cpuid.usable(config.features, machine.supported) - {"amd"} | cpuid.amd_like(self.identity)
        self.physical_bits = machine.physical_bits(config.physical_bits)
        self.kvm = kvm = machine.vm.create_vcpu(config.apic_id)
        if machine.can_scale_tsc:
            kvm.set_tsc_khz(TSC_KHZ)
        self.tsc_khz = kvm.tsc_khz()
        kvm.set_cpuid(cpuid.entries(chosen, config, self.identity, self.physical_bits, self.tsc_khz))
        self.features = cpuid.visible(chosen, kvm.cpuid())
        self.msr_indexes = saved.msr_indexes(self.features)
        self._entry = Entry(kvm)
        self._known: dict[int, tuple[int, int, int]] = {}
        self._u8 = kvm.bytes
        self._u32 = kvm.bytes.cast("I")
        self._u64 = kvm.bytes.cast("Q")
        self.apic_base = APIC_RESET | (APIC_BSP if config.apic_id == 0 else 0)
        self.halted = False
        self.nmi_requested = False
        self._intr = False
        self._kicked = False
        self._init = False
        self._startup: int | None = None
        self._attention = True
        self._deadline = NEVER
        self._alarm: Alarm | None = None
        self._thread = 0  # the kernel's number: Python's is given to the next thread as soon as one has ended
        self._open: Callable[[Reply], object] | None = None  # what takes the answer to the last exit
        self._held: list[tuple[Exit, Callable[[Reply], object] | None]] = []  # exits that come before the guest goes on
        self._server: PortServer | None = None
        self.fallback = Fallback(self)
        self.debugger = Debugger(self)
        self.watchdog = Watchdog(self)
        self.comparison = Comparison(self)
        saved.put_msrs(self, {APIC_BASE: self.apic_base, MTRR_DEF_TYPE: MTRR_RESET})
        machine.join(self)

    @property
    def tpr(self) -> int:
        """CR8 as the board's local APIC knows it."""
        return self._entry.cr8

    @tpr.setter
    def tpr(self, value: int) -> None:
        self._entry.cr8 = value

    @property
    def memory(self) -> GuestMemory:
        return self.machine.memory

    # -- the interface of exits.Vcpu -----------------------------------------------------------------------------------
    def run(self, reply: Reply) -> Exit:
        if self._open is not None:
            answer, self._open = self._open, None
            if not self._init:  # else the access is forgotten
                answer(reply)
        server = None if self.debugger.active else self._server
        enter, known = self._entry.call, self._known if server else {}
        write = server.write if server else None
        while True:
            if self._attention:
                event = self._attend()
                if event is not None:
                    return event
            left = enter()
            out = known.get(left)
            if out is None:
                if left == 0:
                    return self.decode()
                if left >= FAILED:
                    return self._interrupted((1 << 64) - left)
                if server is None:
                    return self._decode()
                self._serve(server, left)
            else:
                assert write is not None  # what is known was served
                write(*out)

    def serve_ports(self, server: PortServer | None) -> None:
        """Hand port accesses to `server` instead of ending `run`."""
        self._server = server
        self._known.clear()
        self._attention = True  # it may be another thread's from now on

    def _serve(self, server: PortServer, left: int) -> None:
        """A port access that is not known by its number yet."""
        out, port, size, data = port_access(left)
        if out:
            if len(self._known) >= KNOWN:
                self._known.clear()
            self._known[left] = port, size, data
            server.write(port, size, data)
        else:
            self._put(self._u64[IO_DATA], size, server.read(port, size))

    def set_deadline(self, nanoseconds: int) -> None:
        self._deadline = nanoseconds
        if self._alarm:
            self._alarm.set(self._monotonic(nanoseconds))

    def set_interrupt(self, level: bool) -> None:
        self._intr = level
        self._u8[WINDOW] = level
        if level:
            self._call_back()

    def nmi(self) -> None:
        self.nmi_requested = True
        self._call_back()

    def init(self) -> None:
        self._init, self._startup = True, None
        self._call_back()

    def startup(self, vector: int) -> None:
        self._startup = vector
        self._call_back()

    def kick(self) -> None:
        self._kicked = self._attention = True
        if self._alarm:
            self._alarm.ring()

    def start(self, at: CpuState) -> None:
        self._take_requests()
        self._settle()
        saved.put_registers(self, at)

    def save(self) -> VcpuState:
        self._take_requests()
        waiting = [event for event, _ in self._held if event != TprRead()]
        assert self._open is None and not waiting and not self.fallback.active, "an instruction is unfinished"
        return saved.save(self)

    def load(self, state: VcpuState) -> None:
        self._take_requests()
        self._settle()
        saved.load(self, state)
        self.halted = state.halted
        self.nmi_requested = False
        self._u8[READY] = bool(state.registers.rflags & INTERRUPT_FLAG and not state.interrupt_shadow
                               and state.pending_interrupt is None)  # fmt: skip
        self._ask_tpr()

    def translate(self, linear: int) -> int | None:
        self._take_requests()
        s = self.kvm.sregs()  # and not KVM_TRANSLATE, which marks entries as accessed
        try:
            return translate(self.memory.read, int(s.cr0), int(s.cr3), int(s.cr4), int(s.efer), linear)
        except GuestAddressError:
            return None  # a table where no memory is

    def debug(self, control: DebugControl) -> None:
        self.debugger.control(control)
        self._attention = True

    def now(self) -> int:
        return monotonic_ns() - self.machine.clock_base

    def set_now(self, nanoseconds: int) -> None:
        self.machine.set_now(nanoseconds)

    def tsc_time(self, tsc: int) -> int:
        """The guest clock at which the time-stamp counter reaches `tsc`. In the virtual CPU's own thread, or while it is
        stopped.
        """
        ahead = tsc - self.kvm.msrs([saved.TSC])[saved.TSC]
        return self.now() + ahead * 1_000_000 // self.tsc_khz

    # -- before the guest goes on --------------------------------------------------------------------------------------
    def _attend(self) -> Exit | None:
        """Whatever others asked for; an exit if the guest does not go on yet."""
        self._attention = self._kicked
        if get_native_id() != self._thread:
            self._bind()
        if self._init or self._startup is not None:
            self._take_requests()
        if self._held:
            event, self._open = self._held.pop()
            self._attention = True
            return event
        if self.fallback.active:
            self._attention = True
            return self.fallback.go_on()
        if self.nmi_requested:
            self.nmi_requested = self.halted = False
            self.kvm.nmi()
        if self._intr:
            self._attention = True
            if self._u8[READY]:
                self._open = self._inject
                return InterruptWindow()
        if self.halted:
            self._attention = True
            return self._sliced() if self._kicked else Halt()
        if self.debugger.active:
            self._attention = True
            return self.debugger.before()
        if self.comparison.wanted:
            self._attention = True
            return self.comparison.step()
        return None

    def run_bound(self) -> None:
        """`run` will be called in this thread."""
        if get_native_id() != self._thread:
            self._bind()

    def _bind(self) -> None:
        """Run in this thread from now on."""
        if self._alarm:
            self._alarm.close()
        self._alarm = Alarm()
        self._thread = get_native_id()
        self.kvm.set_signal_mask(self._alarm.blocked)
        self._alarm.set(self._monotonic(self._deadline))
        if self._kicked:
            self._alarm.ring()

    def _take_requests(self) -> None:
        """INIT and start-up IPI."""
        if self._init:
            self._init = self.halted = self.nmi_requested = False
            self._settle()
            self.tpr = self._u64[CR8] = 0
            self.apic_base = self.apic_base & APIC_BSP | APIC_RESET
            # What INIT leaves alone (x87, SSE, most MSRs) stays; the rest is as after reset (SDM vol. 3, table 10-1).
            saved.reset(self, at_reset(self.identity.signature))
        if self._startup is not None:
            vector, self._startup, self.halted = self._startup, None, False
            saved.put_registers(self, real_mode(vector << 8, 0))

    def _settle(self) -> None:
        """Have KVM finish the instruction in progress, whose effect no longer counts."""
        self._open = None
        self._held.clear()
        self.fallback.abandon()
        for _ in range(PIECES):
            if not self.finish():
                break
        self._u8[READY] = 0

    def finish(self) -> bool:
        """Have KVM finish the instruction in progress, without going on; True if that ended in an exit."""
        self._u8[IMMEDIATE_EXIT] = 1
        try:
            return self.kvm.run()
        finally:
            self._u8[IMMEDIATE_EXIT] = 0

    def _call_back(self) -> None:
        self._attention = True
        if self._alarm and get_native_id() != self._thread:
            self._alarm.ring()

    def _monotonic(self, deadline: int) -> int:
        return deadline if deadline >= NEVER else self.machine.clock_base + deadline

    # -- exits -----------------------------------------------------------------------------------------------------------
    def _interrupted(self, number: int) -> Exit:
        """KVM_RUN ended by a signal, or failed."""
        if number not in (errno.EINTR, errno.EAGAIN):
            return EngineFailure(f"KVM_RUN: {os.strerror(number)} (RIP {self.kvm.regs().rip:#x})")
        event = self._sliced()
        if self._u64[CR8] != self.tpr:
            event = self._tpr_moved(event)
        return self.watchdog.look() or event

    def interrupted(self) -> Exit:
        """KVM_RUN ended by a signal."""
        return self._interrupted(errno.EINTR)

    def _sliced(self) -> Exit:
        self._kicked = False
        self._attention = True  # another thread may call next, and has to be known
        assert self._alarm is not None
        self._alarm.silence()
        return Sliced()

    @contextmanager
    def alarm_after(self, nanoseconds: int) -> Iterator[None]:
        """Within, KVM_RUN is interrupted after this time."""
        assert self._alarm is not None
        self._alarm.set(self._monotonic(self.now() + nanoseconds))
        try:
            yield
        finally:
            self._alarm.silence()
            self._alarm.set(self._monotonic(self._deadline))

    def decode(self) -> Exit:
        """What the run page says."""
        event = self._decode()
        return event if self._u64[CR8] == self.tpr else self._tpr_moved(event)

    def expect(self, answer: Callable[[Reply], object]) -> None:
        """Give the answer to the exit that is returned next to this function."""
        self._open = answer
        self._attention = True

    def linear_rip(self) -> int:
        """The linear address of the next instruction."""
        return int(self.kvm.sregs().cs.base) + int(self.kvm.regs().rip) & (1 << 64) - 1

    def instruction_places(self) -> list[tuple[int, int]]:
        """Guest-physical addresses and lengths of the 15 bytes at RIP, as far as they are mapped."""
        linear = self.linear_rip()
        in_page = min(15, PAGE - linear % PAGE)
        found = []
        for start, length in ((linear, in_page), (linear + in_page, 15 - in_page)):
            place = self.translate(start & (1 << 64) - 1) if length else None
            if place is not None:
                found.append((place, length))
        return found

    def instruction_bytes(self) -> bytes:
        """Up to 15 bytes at RIP, as far as they lie in memory."""
        return b"".join(self.memory.read(address, length) for address, length in self.instruction_places()
                        if self.memory.contains(address, length))  # fmt: skip

    def _tpr_moved(self, event: Exit) -> Exit:
        """The guest wrote CR8 since the last exit: the board hears of that first."""
        self.tpr = self._u64[CR8]
        self.hold(event)
        return TprWrite(self.tpr)

    def hold(self, event: Exit) -> None:
        """Give this exit, which waits for its answer, when the next one is asked for."""
        self._held.append((event, self._open))
        self._open = None
        self._attention = True

    def _port(self) -> Exit:
        kind, count = self._u32[IO_KIND], self._u32[IO_COUNT]
        if count != 1:
            return self._string(kind, count)
        port, size, at = kind >> 16, kind >> 8 & 0xFF, self._u64[IO_DATA]
        if kind & 1:
            return PortOut(port, size, int.from_bytes(self._u8[at : at + size], "little"))
        self._open = self._answer_data(at, size)
        return PortIn(port, size)

    def _string(self, kind: int, count: int) -> Exit:
        """REP INS and REP OUTS: KVM hands over several accesses at once."""
        size, port, at = kind >> 8 & 0xFF, kind >> 16, self._u64[IO_DATA]
        if kind & 1:
            for n in reversed(range(count)):
                self.hold(PortOut(port, size, int.from_bytes(self._u8[at + n * size : at + (n + 1) * size], "little")))
        else:
            for n in reversed(range(count)):
                self._open = self._answer_data(at + n * size, size)
                self.hold(PortIn(port, size))
        event, self._open = self._held.pop()
        return event

    def _answer_data(self, at: int, size: int) -> Callable[[Reply], object]:
        def answer(reply: Reply) -> None:
            assert isinstance(reply, Data)
            self._put(at, size, reply.value)

        return answer

    def _put(self, at: int, size: int, value: int) -> None:
        """The data of an IN."""
        self._u8[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")

    def _answer_mmio(self, reply: Reply) -> None:
        assert isinstance(reply, Data)
        self._u64[MMIO_DATA] = reply.value & (1 << 64) - 1

    def _answer_rdmsr(self, reply: Reply) -> None:
        if isinstance(reply, Data):
            self._u64[MSR_DATA] = reply.value & (1 << 64) - 1
        self._u8[MSR_ERROR] = not isinstance(reply, Data)

    def _answer_wrmsr(self, reply: Reply) -> None:
        refused = isinstance(reply, Refuse)
        self._u8[MSR_ERROR] = refused
        index = self._u32[MSR_INDEX]
        if not refused and index == APIC_BASE:
            self.apic_base = self._u64[MSR_DATA]
            self.kvm.set_msrs({APIC_BASE: self.apic_base})
        if index == X2APIC_TPR:
            self._ask_tpr()

    def _ask_tpr(self) -> None:
        """The board's local APIC may have another task priority now: ask it, so that MOV from CR8 sees it."""
        self._open = self._answer_tpr
        self.hold(TprRead())

    def _answer_tpr(self, reply: Reply) -> None:
        assert isinstance(reply, Data)
        self.tpr = self._u64[CR8] = reply.value & 15

    def _inject(self, reply: Reply) -> None:
        self._u8[READY] = 0  # until the next exit says so again
        if isinstance(reply, Inject):
            self.halted = False
            self.kvm.interrupt(reply.vector)

    def _decode(self) -> Exit:
        if self.debugger.active and self._u32[REASON] in UNFINISHED:
            self.debugger.unfinished = True
        match self._u32[REASON]:
            case ExitReason.IO:
                return self._port()
            case ExitReason.MMIO:
                return self._mmio()
            case ExitReason.HLT:
                self.halted = self._attention = True
                return Halt()
            case ExitReason.IRQ_WINDOW_OPEN:
                self._open = self._inject
                return InterruptWindow()
            case ExitReason.X86_RDMSR:
                self._open = self._answer_rdmsr
                return MsrRead(self._u32[MSR_INDEX])
            case ExitReason.X86_WRMSR:
                self._open = self._answer_wrmsr
                return MsrWrite(self._u32[MSR_INDEX], self._u64[MSR_DATA])
            case ExitReason.SET_TPR:
                self.tpr = self._u64[CR8]
                return TprWrite(self.tpr)
            case ExitReason.INTR:
                return Sliced()
        return self._rare(reasons.reason(self.kvm.run_page))

    def _mmio(self) -> Exit:
        address, size = self._u64[MMIO_ADDRESS], self._u32[MMIO_LENGTH]
        if not self._u8[MMIO_WRITES]:
            self._open = self._answer_mmio
            return MmioRead(address, size)
        data = self._u64[MMIO_DATA] & (1 << 8 * size) - 1
        if address & 0xFFF == APIC_TPR:
            self._ask_tpr()
        return MmioWrite(address, size, data)

    def _rare(self, reason: reasons.Reason) -> Exit:
        match reason:
            case reasons.Debug():
                return self.debugger.stopped(reason)
            case reasons.Shutdown():
                return Shutdown(f"KVM met a triple fault at RIP {self.kvm.regs().rip:#x}")
            case reasons.EmulationFailure():
                return self.fallback.begin(reason.instruction)
            case reasons.FailEntry(number, _):
                return EngineFailure(f"the processor refuses to enter the guest: reason {number:#x} "
                                     f"(RIP {self.kvm.regs().rip:#x})")
            case _:
                return EngineFailure(f"KVM_RUN ended with {reason} at RIP {self.kvm.regs().rip:#x}")

    def close(self) -> None:
        """Let KVM's objects go."""
        if self._alarm:
            self._alarm.close()
        self.fallback.close()
        self._entry.close()
        self._u32.release()
        self._u64.release()
        self.kvm.close()
        self.machine.release(self)
