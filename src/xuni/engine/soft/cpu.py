"""The soft engine's processor: what `isa.x86.cpu.Cpu` leaves open, for compiled handlers and for plain Python.

`SoftCpu` is common. `StagedCpu` emits code: in a fast handler (`inline`) memory is reached through the TLB, in any
other code by calls. `PlainCpu` (plain.py) just runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, TypeVar

from xuni.engine.soft import memory, outside, physical
from xuni.engine.soft.records import Arena, Aux, Mode, Op
from xuni.isa.bits import Bits, const, mask, select, u1, u64
from xuni.isa.compiler import Stage
from xuni.isa.stage import likely, native_instance, staged, unlikely
from xuni.isa.struct import Place, Struct
from xuni.isa.x86.cpu import Cpu
from xuni.isa.x86.exceptions import GuestFault, Vector
from xuni.isa.x86.features import BY_NAME
from xuni.isa.x86.segment import segment_address
from xuni.isa.x86.state import Attr, ExitKind, Gpr, Seg, Slot, State

if TYPE_CHECKING:
    from collections.abc import Callable

S = TypeVar("S", bound=Struct)
SCHED_YIELD = 24  # arch/x86/entry/syscalls/syscall_64.tbl


class SoftCpu(Cpu):
    """One logical processor of the soft engine."""

    @property
    def op(self) -> Op:
        """The decoded operation being executed."""
        return self.struct(Op, self.s.uop)

    # -- what only a back end can do -----------------------------------------------------------------------------------
    def attempt(self, function: Callable[..., None]) -> Bits:
        """Call a native function of the CPU alone; 0, or the code of what unwound."""
        raise NotImplementedError

    def enter(self) -> None:
        """Run handlers, beginning with the Op in the state."""
        raise NotImplementedError

    def yield_host(self) -> None:
        """Let the host run another thread: what we wait for may need this processor."""
        raise NotImplementedError

    def fence(self) -> None:
        """Nothing after this is read before what was written is visible to others."""
        self.s.place.exchange(State.offset_of("reserved"), u64(0), u64(0))  # a locked access is a full fence

    def load_fpu(self) -> None:
        """Before handlers run: let the guest's control settings hold, with all exceptions masked."""

    def save_fpu(self) -> None:
        """After handlers ran: bring the guest's exception flags into the state."""

    # -- records -------------------------------------------------------------------------------------------------------
    def struct(self, kind: type[S], pointer: Bits) -> S:
        """A record at a host address."""
        return kind(self.at(pointer))

    @property
    def arena(self) -> Arena:
        return self.struct(Arena, self.s.arena)

    def handler_address(self, name: str) -> Bits:
        """Address of a handler that no encoding leads to."""
        raise NotImplementedError

    # -- where we are --------------------------------------------------------------------------------------------------
    def _cut(self, rip: Bits) -> Bits:
        """RIP as the code size has it."""
        if self.long:
            return rip
        return rip & select((self.s.mode & Mode.SIZE) == 0, u64(0xFFFF), u64(0xFFFFFFFF))

    @property
    def rip(self) -> Bits:
        rip = self.s.rip_base + self.op.offset.zext(64)
        return rip if self.long else rip & 0xFFFFFFFF

    @property
    def next_rip(self) -> Bits:
        rip = self.s.rip_base + (self.op.offset.zext(64) + self.op.length.zext(64))
        return rip if self.long else rip & 0xFFFFFFFF

    def _target(self, target: Bits) -> Bits:
        """A near target cut to the operand size."""
        return target if self.osize == 64 else target & mask(self.osize)

    @property
    def address_mask(self) -> Bits:
        asize = self.op.aux & Aux.ASIZE
        return select(asize == 2, u64(-1), select(asize == 1, u64(0xFFFFFFFF), u64(0xFFFF)))

    @staged
    def check_target(self, target: Bits) -> None:
        if self.long:
            if unlikely(target.sar(47) + 1 > 1):
                raise GuestFault(self, Vector.GP, 0)
        elif unlikely(target > self.s.seg_limit[int(Seg.CS)].zext(64)):
            raise GuestFault(self, Vector.GP, 0)

    # -- segmentation --------------------------------------------------------------------------------------------------
    @property
    def data_segment(self) -> Bits:
        """Number of the segment for an implicit DS operand (string instructions, XLAT): DS unless overridden."""
        slot = self.op.seg
        number = (slot >> 3) - int(Slot.SEGMENT_BASE)
        return select(slot == 8 * int(Slot.ZERO), const(int(Seg.DS), 8), number)

    def stack_access(self) -> Bits:
        """Whether the current instruction's memory operand is relative to SS (width 1): which fault a bad address
        is.
        """
        uop = self.s.uop
        return (uop != 0) & ((self.struct(Op, select(uop == 0, self.s.place.address(), uop)).aux & Aux.STACK) != 0)

    def linear(self, segment: int | Bits, offset: Bits, size: int, write: bool) -> Bits:
        """The linear address of an access through a segment register; faults as segmentation demands."""
        if self.long and isinstance(segment, int):
            if segment in (Seg.FS, Seg.GS):
                return self.s.seg_base[segment] + offset
            return offset
        number = const(segment, 8) if isinstance(segment, int) else segment
        return segment_address(self, number, offset, u64(size), u1(int(write)))

    # -- memory --------------------------------------------------------------------------------------------------------
    def load(self, segment: int | Bits, offset: Bits, width: int, lanes: int = 1) -> Bits:
        return self.load_current(self.linear(segment, offset, width * lanes // 8, False), width, lanes)

    def store(self, segment: int | Bits, offset: Bits, value: Bits) -> None:
        self.store_current(self.linear(segment, offset, value.width * value.lanes // 8, True), value)

    def load_current(self, address: Bits, width: int, lanes: int = 1) -> Bits:
        """Read at a linear address as the current privilege."""
        return self._pieces(address, width, lanes, memory.load_virtual)

    def store_current(self, address: Bits, value: Bits) -> None:
        """Write at a linear address as the current privilege."""
        if value.width * value.lanes > 64:
            memory.probe_write(self, address, u64(value.width * value.lanes // 8))
            for i in range(value.width * value.lanes // 64):
                memory.store_virtual(self, address + 8 * i, value.as_lanes(64).lane(i), 8)
            return
        plain = value.as_lanes(value.width * value.lanes)
        memory.store_virtual(self, address, plain.zext(64), plain.width // 8)

    def load_update(self, address: Bits, width: int, lanes: int) -> tuple[Bits | None, Bits]:
        """Read what will be written back: (host pointer if the memory is direct, value)."""
        return None, self._pieces(address, width, lanes, memory.load_for_update)

    def store_update(self, pointer: Bits | None, address: Bits, value: Bits) -> None:
        """Write back what `load_update` read."""
        self.store_current(address, value)

    @staged
    def exchange(self, pointer: Bits | None, address: Bits, old: Bits, value: Bits) -> None:
        """Write back under LOCK: start the instruction over if memory no longer holds `old`."""
        if old.lanes > 1:
            expected = old.as_lanes(128)
            if unlikely(memory.exchange_pair_virtual(self, address, expected, value.as_lanes(128)) != expected):
                self.retry()
        else:
            seen = memory.exchange_virtual(self, address, old.zext(64), value.zext(64), old.width // 8)
            if unlikely(seen != old.zext(64)):
                self.retry()

    def retry(self) -> None:
        """Execute the current instruction again from its start; nothing of it is visible yet."""
        raise NotImplementedError

    def _pieces(self, address: Bits, width: int, lanes: int, load: Callable[..., Bits]) -> Bits:
        from xuni.isa.bits import vector

        if width * lanes > 64:
            parts = [load(self, address + 8 * i, 8) for i in range(width * lanes // 64)]
            return vector(parts).as_lanes(width)
        return load(self, address, width * lanes // 8).trunc(width * lanes).as_lanes(width)

    updating = False  # the instruction writes back what it reads (LOCK is allowed)

    def load_linear(self, address: Bits, width: int, system: bool = True) -> Bits:
        if not system:
            return self.load_current(address, width)
        return memory.load_system(self, address, width // 8).trunc(width)

    def store_linear(self, address: Bits, value: Bits, system: bool = True) -> None:
        if not system:
            self.store_current(address, value)
            return
        memory.store_system(self, address, value.zext(64), value.width // 8)

    @staged
    def load_physical(self, address: Bits, width: int) -> Bits:
        if likely(address < self.s.low_size):
            return self.at(self.s.low_host + address).load(0, width)
        return physical.load_physical(self, address, width // 8).trunc(width)

    def store_physical(self, address: Bits, value: Bits) -> None:
        physical.store_physical(self, address, value.zext(64), value.width // 8)

    def mark_entry(self, address: Bits, entry: Bits, flags: Bits) -> Bits:
        return physical.mark_entry(self, address, entry.zext(64), flags.zext(64), entry.width // 8)

    @staged
    def window(self, segment: int | Bits, offset: Bits, write: bool) -> tuple[Bits, Bits]:
        number = const(segment, 8) if isinstance(segment, int) else segment
        host, room = memory.window(self, segment_address(self, number, offset, u64(1), u1(int(write))), u64(int(write)))
        if (self.s.mode & Mode.SIZE) != 2:
            attr = self.s.seg_attr[number]
            room = room.umin(self.s.seg_limit[number].zext(64) - offset + 1)
            if (attr & 0xC) == 4:  # expand-down data
                room = u64(0)
        return host, room

    def probe_write(self, segment: int | Bits, offset: Bits, size: int) -> None:
        memory.probe_write(self, self.linear(segment, offset, size, True), u64(size))

    # -- the stack -----------------------------------------------------------------------------------------------------
    @property
    def _stack_mask(self) -> Bits:
        wide = (self.s.seg_attr[int(Seg.SS)] & Attr.DB) != 0
        legacy = select(wide, u64(0xFFFFFFFF), u64(0xFFFF))
        return select((self.s.mode & Mode.SIZE) == 2, u64(mask(64)), legacy)

    @property
    def _stack_pointer(self) -> Bits:
        return self.rsp if self.long else self.rsp & self._stack_mask

    def _set_stack_pointer(self, value: Bits) -> None:
        if self.long:
            self.s.gpr[Gpr.RSP] = value
        else:
            keep = self._stack_mask
            narrow = keep == 0xFFFF
            self.s.gpr[Gpr.RSP] = select(narrow, self.rsp & ~u64(0xFFFF), u64(0)) | value & keep

    def push(self, value: Bits) -> None:
        to = self._stack_pointer - value.width // 8
        if not self.long:
            to = to & self._stack_mask
        self.store(int(Seg.SS), to, value)
        self._set_stack_pointer(to)

    def pop(self, width: int) -> Bits:
        value = self.top(width)
        self.drop(width // 8)
        return value

    def top(self, width: int) -> Bits:
        return self.load(int(Seg.SS), self._stack_pointer, width)

    def drop(self, count: Bits | int) -> None:
        self._set_stack_pointer(self._stack_pointer + count)

    # -- what the engine must know -------------------------------------------------------------------------------------
    def flush_tlb(self) -> None:
        memory.flush_tlb(self)

    def flush_tlb_nonglobal(self) -> None:
        memory.flush_tlb_nonglobal(self)

    def flush_tlb_page(self, address: Bits) -> None:
        memory.flush_tlb_page(self, address)

    def mode_changed(self) -> None:
        memory.mode_changed(self)

    def privilege_changed(self) -> None:
        memory.choose_privilege(self)

    def commit(self) -> None:
        self.s.uop = 0

    # -- the world outside ---------------------------------------------------------------------------------------------
    def port_in(self, port: Bits, width: int) -> Bits:
        answer = outside.ask_machine(self, port.zext(64), u64(0), u64(width // 8), ExitKind.PORT_IN)
        return answer.trunc(width)

    def port_out(self, port: Bits, value: Bits) -> None:
        outside.ask_machine(self, port.zext(64), value.zext(64), u64(value.width // 8), ExitKind.PORT_OUT)

    def chip_msr_read(self, index: Bits) -> Bits:
        return outside.ask_machine(self, index.zext(64), u64(0), u64(0), ExitKind.MSR_READ)

    def chip_msr_write(self, index: Bits, value: Bits) -> None:
        outside.ask_machine(self, index.zext(64), value, u64(0), ExitKind.MSR_WRITE)

    def tpr_read(self) -> Bits:
        return outside.ask_machine(self, u64(0), u64(0), u64(0), ExitKind.TPR_READ)

    def tpr_write(self, value: Bits) -> None:
        outside.ask_machine(self, u64(0), value, u64(0), ExitKind.TPR_WRITE)

    def hypercall(self, width: Bits) -> Bits:
        return outside.ask_machine(self, u64(0), u64(0), width, ExitKind.HYPERCALL)

    def halt(self) -> None:
        self.s.halted = 1

    def shutdown(self) -> NoReturn:
        outside.shutdown(self)

    def random(self) -> Bits:
        # splitmix64 over a seed from the host's entropy: the guest mixes what it gets with its own.
        s = self.s
        s.random_seed = s.random_seed + 0x9E3779B97F4A7C15
        z = s.random_seed
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9
        z = (z ^ z >> 27) * 0x94D049BB133111EB
        return z ^ z >> 31

    def has_feature(self, name: str) -> Bits:
        number = BY_NAME[name].number
        return self.s.features[number // 64][number % 64]


def new_stage_cpu(stage: Stage) -> StagedCpu:
    """The processor of a native function."""
    from xuni.isa.struct import StagedPlace

    cpu = StagedCpu(State(StagedPlace(stage, "%s")), stage)
    cpu.long = False  # one function for all modes: what depends on the mode asks the state
    return cpu


class StagedCpu(SoftCpu):
    """Emits code. In handlers `code.registers` holds what travels in machine registers."""

    def __init__(self, state: State, stage: Stage) -> None:
        super().__init__(state)
        self.stage = stage

    def at(self, pointer: Bits) -> Place:
        from xuni.isa.struct import place_at

        return place_at(self.stage, pointer)

    def handler_address(self, name: str) -> Bits:
        self.stage.code.declare(f"declare dso_local preserve_nonecc void @{name}(ptr, ptr, i64, i64, i64, i64, ptr)")
        return self.stage.llvm.wrap(64, f"ptrtoint ptr @{name} to i64")

    def _pointer(self, pointer: Bits) -> str:
        return self.stage.code.value(f"inttoptr i64 {self.stage.llvm.lift(pointer)} to ptr")

    def copy_bytes(self, target: Bits, source: Bits, count: Bits) -> None:
        to, come, n = self._pointer(target), self._pointer(source), self.stage.llvm.lift(count)
        self.stage.code.emit(
            f'call {{ ptr, ptr, i64 }} asm sideeffect "rep movsb", "={{di}},={{si}},={{cx}},0,1,2,~{{memory}},'
            f'~{{dirflag}},~{{fpsr}},~{{flags}}"(ptr {to}, ptr {come}, i64 {n})'
        )

    def fill_bytes(self, target: Bits, byte: Bits, count: Bits) -> None:
        to, value, n = self._pointer(target), self.stage.llvm.lift(byte), self.stage.llvm.lift(count)
        self.stage.code.emit(
            f'call {{ ptr, i64 }} asm sideeffect "rep stosb", "={{di}},={{cx}},{{al}},0,1,~{{memory}},~{{dirflag}},'
            f'~{{fpsr}},~{{flags}}"(i8 {value}, ptr {to}, i64 {n})'
        )

    def clock(self) -> Bits:
        s, code = self.s, self.stage.code
        function = self._pointer(s.clock_function)
        scratch = code.value(f"getelementptr i8, ptr %s, i64 {State.offset_of('clock_scratch')}")
        code.value(f"call i32 {function}(i32 1, ptr {scratch})")
        return s.clock_scratch[0] * 1_000_000_000 + s.clock_scratch[1] - s.clock_base

    def attempt(self, function: Callable[..., None]) -> Bits:
        """Call a native function of the CPU alone; 0, or the code of what unwound."""
        instance = native_instance(function.__native__)  # type: ignore[attr-defined]
        self.stage.on_native(instance)
        code = self.stage.code
        code.declare("declare dso_local i64 @attempt(ptr, ptr)")
        code.declare(f"declare dso_local void @{instance.symbol}(ptr)")
        return self.stage.llvm.wrap(64, f"call i64 @attempt(ptr %s, ptr @{instance.symbol})")

    def enter(self) -> None:
        """Run handlers, beginning with the Op in the state."""
        self.stage.code.declare("declare dso_local void @enter(ptr)")
        self.stage.code.emit("call void @enter(ptr %s)")

    def yield_host(self) -> None:
        self.stage.code.emit(
            f'call i64 asm sideeffect "syscall", "={{ax}},0,~{{rcx}},~{{r11}},~{{memory}},~{{dirflag}},~{{fpsr}},~{{flags}}"'
            f"(i64 {SCHED_YIELD})"
        )

    def load_fpu(self) -> None:
        """Give the host's FPU the guest's control settings, with all exceptions masked."""
        s, code = self.s, self.stage.code
        s.fpu_host[0] = (s.mxcsr | 0x1F80).zext(64)
        s.fpu_host[1] = (s.fpu_control | 0x3F).zext(64)
        at = State.offset_of("fpu_host")
        text = f"fnclex; ldmxcsr {at}($0); fldcw {at + 8}($0)"
        code.emit(f'call void asm sideeffect "{text}", "r,~{{memory}},~{{fpsr}}"(ptr %s)')

    def save_fpu(self) -> None:
        """Keep the guest's exception flags, and give the host its settings back."""
        s, code = self.s, self.stage.code
        at = State.offset_of("fpu_host")
        code.emit(f'call void asm sideeffect "stmxcsr {at}($0)", "r,~{{memory}}"(ptr %s)')
        s.mxcsr = s.mxcsr | (s.fpu_host[0].trunc(32) & 0x3F)
        s.fpu_host[0] = 0x1F80
        s.fpu_host[1] = 0x37F
        code.emit(f'call void asm sideeffect "ldmxcsr {at}($0); fldcw {at + 8}($0)", "r,~{{memory}},~{{fpsr}}"(ptr %s)')

    def divide(self, high: Bits, low: Bits, divisor: Bits, is_signed: bool) -> tuple[Bits, Bits]:
        width = low.width
        lift, t = self.stage.llvm.lift, f"i{low.width}"
        if width < 64:
            whole = high.zext(2 * width) << width | low.zext(2 * width)
            by = divisor.sext(2 * width) if is_signed else divisor.zext(2 * width)
            q, r = (whole.sdiv(by), whole.srem(by)) if is_signed else (whole.udiv(by), whole.urem(by))
            return q.trunc(width), r.trunc(width)
        name = "idivq" if is_signed else "divq"
        pair = self.stage.code.value(
            f'call {{ {t}, {t} }} asm sideeffect "{name} $4", "={{ax}},={{dx}},0,1,r,~{{flags}},~{{fpsr}},~{{dirflag}}"'
            f"({t} {lift(low)}, {t} {lift(high)}, {t} {lift(divisor)})"
        )
        wrap = self.stage.llvm.wrap
        return wrap(64, f"extractvalue {{ {t}, {t} }} {pair}, 0"), wrap(64, f"extractvalue {{ {t}, {t} }} {pair}, 1")
