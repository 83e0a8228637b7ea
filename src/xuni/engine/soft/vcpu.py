"""The soft engine's virtual CPU: lays out its memory, starts compiled code, and turns what it left into exits."""

from __future__ import annotations

import ctypes
import os
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Final

from xuni.engine.soft import build, saved
from xuni.engine.soft.code_cache import CodeCache
from xuni.engine.soft.hot import HotLoops
from xuni.engine.soft.records import (
    FILL_LOG,
    HOT_ENTRIES,
    HOT_RING,
    JUMP_ENTRIES,
    PAGE,
    TLB_ENTRIES,
    WATCHPOINTS,
    HotEntry,
    HotLoop,
    JumpEntry,
    Privilege,
    Watch,
)
from xuni.engine.soft.region import Parts, Region
from xuni.exits import (
    Data,
    DebugCause,
    DebugControl,
    Debugged,
    EngineFailure,
    Exit,
    Halt,
    Hypercall,
    Inject,
    InterruptWindow,
    MmioRead,
    MmioWrite,
    MsrRead,
    MsrWrite,
    PortIn,
    PortOut,
    Refuse,
    Reply,
    Resume,
    Shutdown,
    Sliced,
    TprRead,
    TprWrite,
)
from xuni.isa.struct import PlainPlace
from xuni.isa.x86 import features as features_table
from xuni.isa.x86.cpuid import OURS, Identity, Topology, build_cpuid_table
from xuni.isa.x86.cpustate import CpuState, VcpuState, at_reset, real_mode
from xuni.isa.x86.exceptions import Vector
from xuni.isa.x86.flags import pack, unpack
from xuni.isa.x86.hypercall import HYPERCALL_REGISTERS
from xuni.isa.x86.state import ARITHMETIC, REPLAY, Attr, Cr0, Cr4, Efer, Eflags, ExitKind, Seg, State
from xuni.isa.x86.translation import translate
from xuni.memory.guest import GuestAddressError, GuestMemory

BREAKPOINTS: Final = 4096
HOT_SPACE: Final = 32 << 20  # for compiled loops; virtual
QUANTUM: Final = 20_000  # instructions, about 20 us: the latency of a kick or an interrupt


class Code:
    """Compiled code in this process: one copy for all vCPUs."""

    def __init__(self, image: build.Image) -> None:
        self.image = image
        self.region = Region((len(image.code) + HOT_SPACE + PAGE - 1) & ~(PAGE - 1), executable=True)
        self._end = (len(image.code) + 15) & ~15
        self._lock = Lock()
        code = bytearray(image.code)
        base = self.region.address
        view = memoryview(code)
        for at in image.absolute:
            value = int.from_bytes(view[at : at + 8], "little") + base
            view[at : at + 8] = value.to_bytes(8, "little")
        self.region.put(0, bytes(code))
        self.symbols = image.symbols
        self._put_handler = self.function("put_handler", *[ctypes.c_uint64] * 4)
        offsets = array("Q", image.tables["handlers"])
        self.handlers = array("Q", [base + o for o in offsets])

    def function(self, name: str, *types: type) -> Callable[..., int]:
        """A compiled function as a Python callable; it runs without the GIL."""
        prototype = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p, *types)
        return prototype(self.region.address + self.symbols[name])


    def bytes_before(self, address: int) -> bytes:
        """The eight bytes before a handler: the address of its slow twin."""
        at = address - self.region.address
        return self.region.map[at - 8 : at]

    def install(self, cache: CodeCache, data: bytes, ops: Sequence[int], first: int, twin: int, generation: int) -> int:
        """Link a hot loop's object file and let it stand in for `first`, the handler of `ops[0]`.

        `twin` is that handler's slow twin. Returns the function's address, or 0 if the trace has been killed or there is
        no room.
        """
        base = self.region.address
        with self._lock:
            at = self._end
            # Only handlers that reach memory inline have a twin; what lies before others is not used.
            twin = twin - base if base <= twin < base + at else 0
            known = {**self.symbols, "first": first - base, "twin": twin}
            linked, symbols, absolute = build.link([data], at, known)
            code = bytearray(linked)
            if at + len(code) > len(self.region.map):
                return 0
            for place in absolute:
                value = int.from_bytes(code[place - at : place - at + 8], "little") + base
                code[place - at : place - at + 8] = (value & (1 << 64) - 1).to_bytes(8, "little")
            table = symbols["ops"] - at
            code[table : table + 8 * len(ops)] = array("Q", ops).tobytes()
            self.region.put(at, bytes(code))
            self._end = (at + len(code) + 63) & ~63
        function = base + symbols["hot"]
        return function if self._put_handler(cache.host_state, ops[0], first, function, generation) & 1 else 0

    def cache(self, memory: GuestMemory, features: frozenset[str]) -> CodeCache:
        """An empty code cache, for the virtual CPUs of one machine."""
        cache = CodeCache(memory, self.image.tables, self.handlers.tobytes(), features, self.function("host_write"))
        cache.hot = HotLoops(cache, self)
        return cache


_code: Code | None = None


def code(progress: Callable[[int, int], None] = lambda done, total: None) -> Code:
    """The engine's compiled code, compiled now if there is no cached copy."""
    global _code
    if _code is None:
        _code = Code(build.load(progress))
    return _code


@dataclass(frozen=True, slots=True)
class SoftConfig:
    """What a virtual CPU of the soft engine is.

    `features`: names of features.py; `apic_id`, `cpus`, `topology` (one socket of cores): for CPUID; `physical_bits`:
    MAXPHYADDR; `identity`: who made it.
    """

    features: frozenset[str] = features_table.DEFAULT
    apic_id: int = 0
    cpus: int = 1
    physical_bits: int = 40
    identity: Identity = OURS
    topology: Topology | None = None


class BaseVcpu:
    """One virtual CPU, whatever executes handlers. See `xuni.exits.Vcpu` for the interface."""

    quantum = QUANTUM

    def __init__(self, memory: GuestMemory, cache: CodeCache, config: SoftConfig | None,
                 clock_base: int | None) -> None:  # fmt: skip
        self.config = config or SoftConfig()
        assert cache.memory is memory and cache.features == self.config.features
        self.memory = memory
        self.cache = cache
        tlb = len(cache.clean_tlb)
        jumps = 3 * JUMP_ENTRIES * JumpEntry.SIZE
        self.region = Parts({"state": State.SIZE, "tlb": tlb * len(Privilege), "jumps": jumps, "cpuid": 256 * 32,
                             "global": TLB_ENTRIES * len(Privilege), "fills": 8 * FILL_LOG,
                             "breakpoints": 8 * BREAKPOINTS, "watches": Watch.SIZE * WATCHPOINTS,
                             "hot": HotEntry.SIZE * HOT_ENTRIES, "ring": HotLoop.SIZE * HOT_RING})  # fmt: skip
        self.region.put_part("tlb", cache.clean_tlb * len(Privilege))
        self.region.put_part("jumps", b"\xff" * jumps)
        self.state = State(PlainPlace(self.region.address))
        # SAFETY: the region outlives the array (both belong to this object).
        self.q = (ctypes.c_uint64 * (State.SIZE // 8)).from_buffer(self.region.map)
        self.clock_base = time.monotonic_ns() if clock_base is None else clock_base
        self._set_up()
        self.reset()
        cache.attach(self.state, self.region.address, self._flush)
        self._stepping = False
        self._hot_seen = 0

    # -- what a back end does ------------------------------------------------------------------------------------------
    def _call(self) -> None:
        """Execute until `exit_kind` is set."""
        raise NotImplementedError

    def _flush(self) -> None:
        """`memory.flush_tlb`."""
        raise NotImplementedError

    def _empty_arena(self) -> None:
        """`run.empty_arena`."""
        raise NotImplementedError

    def _set_up(self) -> None:
        s, place = self.state, self.region.address_of
        s.tlb_base, s.jump_cache_base = place("tlb"), place("jumps")
        s.tlb_global, s.fill_log = place("global"), place("fills")
        for i in range(3):
            s.jump_generations[i] = 1 << 48
        s.cpuid_table = place("cpuid")
        s.breakpoints, s.watches = place("breakpoints"), place("watches")
        s.hot_table, s.hot_ring = place("hot"), place("ring")
        libc = ctypes.CDLL(None)
        s.clock_function = ctypes.cast(libc.clock_gettime, ctypes.c_void_p).value or 0
        s.clock_base = self.clock_base
        s.deadline = 2**63 - 1
        s.quantum = self.quantum
        s.random_seed = int.from_bytes(os.urandom(8), "little")
        s.physical_mask = (1 << self.config.physical_bits) - 1
        s.apic_id = self.config.apic_id
        for i, word in enumerate(features_table.feature_words(self.config.features)):
            s.features[i] = word
        self._write_cpuid()

    def _write_cpuid(self) -> None:
        rows = build_cpuid_table(self.config.features, self.config.cpus, self.config.physical_bits,
                                 self.config.identity, self.config.topology)
        self.region.put_part("cpuid", b"".join(row.pack() for row in rows))
        self.state.cpuid_count = len(rows)

    # -- registers -----------------------------------------------------------------------------------------------------
    def reset(self) -> None:
        """The state after power-up that no boot loader sets (SDM vol. 3, table 9-1)."""
        s = self.state
        s.eflags = int(Eflags.FIXED)
        s.mxcsr, s.fpu_control, s.fpu_tag = 0x1F80, 0x37F, 0xFFFF
        s.xcr0 = 1
        s.pat = 0x0007040600070406
        s.dr[6], s.dr[7] = 0xFFFF0FF0, 0x400
        s.misc_enable = 1
        s.mtrr_def_type = 0xC06
        s.apic_base = 0xFEE00000 | 0x800 | (0x100 if self.config.apic_id == 0 else 0)

    def start(self, at: CpuState) -> None:
        """Begin with the state that a boot loader prepared."""
        s = self.state
        for i, name in enumerate(saved.GENERAL):
            s.gpr[i] = getattr(at, name)
        s.rip = at.rip
        self.rflags = at.rflags
        for number, name in enumerate(saved.SEGMENTS):
            segment = getattr(at, name)
            s.seg_selector[number] = segment.selector
            s.seg_base[number] = segment.base
            s.seg_limit[number] = segment.limit
            s.seg_attr[number] = segment.attributes | (0 if segment.p else int(Attr.UNUSABLE))
        s.cr0, s.cr3, s.cr4, s.efer = at.cr0, at.cr3, at.cr4, at.efer
        if at.cr0 & Cr0.PG and at.cr4 & Cr4.PAE and not at.efer & Efer.LMA:  # as loading CR3 would
            for i in range(4):
                s.pdpte[i] = self.memory.read_u64((at.cr3 & 0xFFFFFFE0) + 8 * i)
        s.gdtr_base, s.gdtr_limit = at.gdtr.base, at.gdtr.limit
        s.idtr_base, s.idtr_limit = at.idtr.base, at.idtr.limit
        real = not at.cr0 & 1 or at.rflags & int(Eflags.VM)
        s.cpl = 0 if real else int(s.seg_attr[int(Seg.SS)]) >> 5 & 3

    def save(self) -> VcpuState:
        return saved.save(self)

    def load(self, state: VcpuState) -> None:
        saved.load(self, state)

    def translate(self, linear: int) -> int | None:
        s = self.state
        read = self.memory.read
        try:
            return translate(read, int(s.cr0), int(s.cr3), int(s.cr4), int(s.efer), linear)
        except GuestAddressError:
            return None  # a table where no memory is

    def debug(self, control: DebugControl) -> None:
        if len(control.breakpoints) > BREAKPOINTS or len(control.watchpoints) > WATCHPOINTS:
            raise ValueError(f"at most {BREAKPOINTS} breakpoints and {WATCHPOINTS} watchpoints")
        s = self.state
        self._stepping = control.step
        self.region.put_part("breakpoints", array("Q", sorted(control.breakpoints)).tobytes())
        s.breakpoint_count = len(control.breakpoints)
        watching = int(s.watch_count) != 0 or bool(control.watchpoints)
        for n, watchpoint in enumerate(control.watchpoints):
            watch = Watch(PlainPlace(self.region.address_of("watches") + n * Watch.SIZE))
            watch.start, watch.length, watch.reads = watchpoint.address, watchpoint.length, not watchpoint.writes_only
        s.watch_count = len(control.watchpoints)
        if watching:
            self._flush()
        if self.cache.set_breakpoints(self.region.address, control.breakpoints):
            self.cache.arena.end = 0
            self._empty_arena()

    def _note_hot(self) -> None:
        """Hand the places that were met often to the compiler of hot loops."""
        count = self.q[_HOT_COUNT]
        for number in range(max(self._hot_seen, count - HOT_RING), count):
            entry = HotLoop(PlainPlace(self.region.address_of("ring") + number % HOT_RING * HotLoop.SIZE))
            if self.cache.hot is not None:
                self.cache.hot.note(int(entry.host), int(entry.mode))
        self._hot_seen = count

    def forget(self) -> None:
        """Forget all that was derived from registers: translations, and where jumps lead."""
        self._flush()

    def bytes_of(self, name: str, offset: int, length: int) -> bytes:
        """Bytes of a field of the state."""
        at = State.offset_of(name) + offset
        return self.region.map[at : at + length]

    def put_bytes(self, name: str, offset: int, data: bytes) -> None:
        """Write bytes of a field of the state."""
        self.region.put(State.offset_of(name) + offset, data)

    @property
    def rflags(self) -> int:
        """EFLAGS, the arithmetic flags computed."""
        s = self.state
        return int(s.eflags) & ~ARITHMETIC | unpack(int(s.flag_kind), int(s.flag_a), int(s.flag_b))

    @rflags.setter
    def rflags(self, value: int) -> None:
        s = self.state
        s.eflags = value & ~ARITHMETIC | int(Eflags.FIXED)
        s.flag_kind, s.flag_a, s.flag_b = pack(value)

    # -- the interface of exits.Vcpu -----------------------------------------------------------------------------------
    def run(self, reply: Reply) -> Exit:
        match reply:
            case Resume():
                self._answer(0)
            case Data(value):
                self._answer(value)
            case Inject(vector):
                self.q[_INJECT] = vector + 1
            case Refuse():
                self._answer(0)
                self.q[_EXIT_SIZE] = 0xFFFF
        if self._stepping:
            self.state.steps = 1
        self._call()
        return self._exit()

    def _answer(self, value: int) -> None:
        """Record the answer to a device access, if one is open."""
        q = self.q
        if _FIRST_QUESTION <= q[_EXIT_KIND] <= _LAST_QUESTION:
            n = q[_REPLAY_COUNT]
            assert n < REPLAY
            q[_REPLAY_DATA + n] = value & 0xFFFFFFFFFFFFFFFF
            q[_REPLAY_COUNT] = n + 1
            q[_EXIT_SIZE] = 0
            q[_EXIT_KIND] = 0

    def _exit(self) -> Exit:
        q = self.q
        if q[_HOT_COUNT] != self._hot_seen:
            self._note_hot()
        make = _EXITS.get(q[_EXIT_KIND])
        if make is None:
            return EngineFailure(f"the engine left for no reason ({q[_EXIT_KIND]})")
        return make(self, q[_EXIT_ADDRESS], q[_EXIT_DATA], q[_EXIT_SIZE])

    def _hypercall(self, size: int) -> Hypercall:
        call, *arguments = (int(self.state.gpr[n]) & (1 << 8 * size) - 1 for n in HYPERCALL_REGISTERS)
        return Hypercall(call, tuple(arguments), size)

    def _breakpoint(self, address: int) -> Debugged:
        self.state.passed = address + 1
        return Debugged(DebugCause.BREAKPOINT, address)

    def _sliced(self) -> Exit:
        if self._stepping and int(self.state.steps) == 0:
            return Debugged(DebugCause.STEP, int(self.state.rip))
        return Sliced()

    def _why_shutdown(self) -> str:
        s = self.state
        def name(number: int) -> str:
            return f"#{Vector(number).name}" if number in Vector._value2member_map_ else f"vector {number}"

        first = name(int(s.first_vector))
        at = f" at {int(s.first_address):#x}" if s.first_vector == Vector.PF else ""
        return (f"{first}({int(s.first_error):#x}){at} at RIP {int(s.first_rip):#x}, and its delivery failed: "
                f"{name(int(s.fault_vector))}({int(s.fault_error):#x})")

    def set_deadline(self, nanoseconds: int) -> None:
        self.q[_DEADLINE] = nanoseconds

    def set_interrupt(self, level: bool) -> None:
        self.q[_INTR] = level

    def nmi(self) -> None:
        # As if it had been seen at once: one is being delivered while another is latched. What comes then is lost.
        q = self.q
        if q[_NMI_SENT] - q[_NMI_TAKEN] < (1 if q[_NMI_BLOCKED] else 2):
            q[_NMI_SENT] += 1

    def init(self) -> None:
        # What INIT leaves alone (x87, SSE, most MSRs) stays; the rest is as after reset (SDM vol. 3, table 10-1).
        s = self.state
        self.start(at_reset(self.config.identity.signature))
        s.cr2 = 0
        s.dr[6], s.dr[7] = 0xFFFF0FF0, 0x400
        s.nmi_taken = s.nmi_sent
        for name in ("halted", "nmi_blocked", "interrupt_shadow", "pending_debug", "inject",
                     "delivering", "replay_count", "exit_kind"):
            setattr(s, name, 0)
        self._flush()

    def startup(self, vector: int) -> None:
        self.start(real_mode(vector << 8, 0))
        self.state.halted = 0

    def kick(self) -> None:
        self.q[_KICK] = 1

    def now(self) -> int:
        return time.monotonic_ns() - self.clock_base

    def set_now(self, nanoseconds: int) -> None:
        self.clock_base = self.state.clock_base = time.monotonic_ns() - nanoseconds

    def close(self) -> None:
        """Forget the guest memory's hooks."""
        self.cache.close()


class SoftVcpu(BaseVcpu):
    """The virtual CPU that compiled code executes. `cache`: that of the machine's other virtual CPUs, if any."""

    def __init__(self, memory: GuestMemory, config: SoftConfig | None = None, *, clock_base: int | None = None,
                 compiled: Code | None = None, cache: CodeCache | None = None) -> None:  # fmt: skip
        self.code = compiled or code()
        self._run_compiled = self.code.function("run")
        self._flush_compiled = self.code.function("flush_tlb")
        self._empty_arena_compiled = self.code.function("empty_arena")
        config = config or SoftConfig()
        super().__init__(memory, cache or self.code.cache(memory, config.features), config, clock_base)

    def _call(self) -> None:
        self._run_compiled(self.region.address)

    def _flush(self) -> None:
        self._flush_compiled(self.region.address)

    def _empty_arena(self) -> None:
        self._empty_arena_compiled(self.region.address)


def _at(name: str) -> int:
    return State.offset_of(name) // 8


_EXIT_KIND, _EXIT_ADDRESS, _EXIT_DATA, _EXIT_SIZE = map(_at, ("exit_kind", "exit_address", "exit_data", "exit_size"))
_REPLAY_COUNT, _REPLAY_DATA, _INJECT = map(_at, ("replay_count", "replay_data", "inject"))
_HOT_COUNT = _at("hot_count")
_DEADLINE, _INTR, _KICK = map(_at, ("deadline", "intr", "kick"))
_NMI_SENT, _NMI_TAKEN, _NMI_BLOCKED = map(_at, ("nmi_sent", "nmi_taken", "nmi_blocked"))
_FIRST_QUESTION, _LAST_QUESTION = int(ExitKind.PORT_IN), int(ExitKind.HYPERCALL)

# What an exit is made of: address, data and size as the compiled code left them. A table of ints, since looking up a
# member of an enum takes as long as an exit.
_EXITS: Final[dict[int, Callable[[BaseVcpu, int, int, int], Exit]]] = {
    int(ExitKind.PORT_IN): lambda cpu, port, data, size: PortIn(port & 0xFFFF, size),
    int(ExitKind.PORT_OUT): lambda cpu, port, data, size: PortOut(port & 0xFFFF, size, data & (1 << 8 * size) - 1),
    int(ExitKind.MMIO_READ): lambda cpu, address, data, size: MmioRead(address, size),
    int(ExitKind.MMIO_WRITE): lambda cpu, address, data, size: MmioWrite(address, size, data & (1 << 8 * size) - 1),
    int(ExitKind.MSR_READ): lambda cpu, index, data, size: MsrRead(index),
    int(ExitKind.MSR_WRITE): lambda cpu, index, data, size: MsrWrite(index, data),
    int(ExitKind.TPR_READ): lambda cpu, address, data, size: TprRead(),
    int(ExitKind.TPR_WRITE): lambda cpu, address, data, size: TprWrite(data),
    int(ExitKind.HYPERCALL): lambda cpu, address, data, size: cpu._hypercall(size),
    int(ExitKind.INTERRUPT_WINDOW): lambda cpu, address, data, size: InterruptWindow(),
    int(ExitKind.HALT): lambda cpu, address, data, size: Halt(),
    int(ExitKind.SLICED): lambda cpu, address, data, size: cpu._sliced(),
    int(ExitKind.BREAKPOINT): lambda cpu, address, data, size: cpu._breakpoint(address),
    int(ExitKind.WATCHPOINT): lambda cpu, address, data, size: Debugged(DebugCause.WATCHPOINT, address),
    int(ExitKind.SHUTDOWN): lambda cpu, address, data, size: Shutdown(cpu._why_shutdown()),
    int(ExitKind.FAILURE): lambda cpu, address, data, size: EngineFailure(
        f"the guest jumped to physical address {address:#x}, where no memory is (RIP {int(cpu.state.rip):#x})"),
}  # fmt: skip
