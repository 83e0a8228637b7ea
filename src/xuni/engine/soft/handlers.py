"""Handlers: for each instruction, operand form, size and mode, the small native function that a decoded Op points to.

All have one signature; each ends in a tail call of the next one:

    void handler(state, op, budget, flag_a, flag_kind, flag_b, tlb)

A *fast* handler reaches memory inline and has no stack frame: what it does not find in the TLB it hands to
`tlb_miss_*`, which fills the TLB and starts the same Op again, or continues at the *slow* twin that reaches memory
through calls. The address of the twin lies in the eight bytes before a fast handler. A *cold* handler keeps the flags
in the state and does everything by calls. Handlers whose instruction `ends` a trace by anything but a jump return to
the loop (run.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from xuni.engine.soft import debugger
from xuni.engine.soft.cpu import StagedCpu
from xuni.engine.soft.endings import Endings
from xuni.engine.soft.memory import tlb_at
from xuni.engine.soft.operands import Memory, make
from xuni.engine.soft.physical import paused
from xuni.engine.soft.records import OP_SIZE, PAGE, PRODUCERS, Effect, Form, Mode, Op, TlbEntry
from xuni.isa.bits import Bits, select, u64
from xuni.isa.compiler import Stage
from xuni.isa.llvm import Function
from xuni.isa.stage import Native, Unreachable, staged, unlikely
from xuni.isa.struct import StagedPlace
from xuni.isa.x86.encodings import Encoding
from xuni.isa.x86.exceptions import GuestFault, Vector
from xuni.isa.x86.instruction import Definition, Operand
from xuni.isa.x86.state import Cr0, Cr4, State

SIGNATURE: Final = "ptr %s, ptr %u, i64 %n, i64 %fa, i64 %fk, i64 %fb, ptr %t"
TYPES: Final = "(ptr, ptr, i64, i64, i64, i64, ptr)"
CC: Final = "preserve_nonecc"
PAGE_OFFSET: Final = PAGE - 1


class HandlerCpu(Endings, StagedCpu):
    """Emits one handler."""

    def __init__(self, stage: Stage, *, inline: bool, cold: bool) -> None:
        super().__init__(State(StagedPlace(stage, "%s")), stage)
        self.inline = inline
        self.cold = cold
        self.u = "%u"
        self.tlb = "%t"
        self.form = Form.REGISTER
        self.step = 1  # Ops that this handler executes (two when fused)
        self.ended = False
        self.effect: int | None = None
        self.accessed: set[str] = set()
        self._slots: dict[str, Any] = {}
        llvm, code = stage.llvm, stage.code
        flags = {"flag_a": "%fa", "flag_kind": "%fk", "flag_b": "%fb"}
        self.entry = {name: Bits(llvm, 64, raw) for name, raw in flags.items()}
        self.n = Bits(llvm, 64, "%n")
        if cold:
            self.sync()
        else:
            code.registers.update(self.entry)
        if not inline and not cold:
            self.sync()
        stage.before_call = self._before_call

    # -- static facts, noting which ones matter ------------------------------------------------------------------------
    def _fact(name: str) -> Any:  # type: ignore[misc]
        def read(self: HandlerCpu) -> Any:
            self.accessed.add(name)
            return self._slots[name]

        def write(self: HandlerCpu, value: Any) -> None:
            if "_slots" not in self.__dict__:
                self._slots = {}
            self._slots[name] = value

        return property(read, write)

    osize = _fact("osize")
    asize = _fact("asize")
    long = _fact("long")
    rep = _fact("rep")

    @property
    def op(self) -> Op:
        return Op(StagedPlace(self.stage, self.u))

    # -- leaving compiled code safely ----------------------------------------------------------------------------------
    def sync(self) -> None:
        """Store what travels in registers: from here on the state is complete, and calls may unwind."""
        s = self.s
        s.uop = self.stage.llvm.wrap(64, f"ptrtoint ptr {self.u} to i64")
        s.budget = self.n
        s.flag_a, s.flag_kind, s.flag_b = self.entry["flag_a"], self.entry["flag_kind"], self.entry["flag_b"]

    def _before_call(self, function: Callable[..., Any] | None) -> None:
        if self.inline and not getattr(function, "__pure__", False):
            self.sync()

    # -- ending --------------------------------------------------------------------------------------------------------
    def _flags(self) -> tuple[Bits, Bits, Bits]:
        registers = self.stage.code.registers
        if "flag_kind" in registers:
            return registers["flag_a"], registers["flag_kind"], registers["flag_b"]
        s = self.s
        return s.flag_a, s.flag_kind, s.flag_b

    def note_effect(self) -> None:
        registers = self.stage.code.registers
        effect = int(Effect.UNKNOWN)
        if "flag_kind" in registers:
            kind = registers["flag_kind"]
            if kind.known:
                effect = int(kind)
            elif kind.raw == "%fk":
                effect = int(Effect.KEEP)
        self.effect = effect if self.effect in (None, effect) else int(Effect.UNKNOWN)

    def privilege_changed(self) -> None:
        super().privilege_changed()
        self.tlb = self._pointer(self.s.tlb)  # the handlers that follow in this trace look there

    def tail(self, handler: str, op: str, n: Bits) -> None:
        """Tail-call a handler."""
        lift = self.stage.llvm.lift
        a, kind, b = (lift(x) for x in self._flags())
        code = self.stage.code
        passed = f"ptr %s, ptr {op}, i64 {lift(n)}, i64 {a}, i64 {kind}, i64 {b}, ptr {self.tlb}"
        code.emit(f"musttail call {CC} void {handler}({passed})")
        code.end("ret void")

    def _go(self, op: str, n: Bits) -> None:
        handler = self.stage.code.value(f"load ptr, ptr {op}")
        self.tail(handler, op, n)

    def dispatch(self, op: Bits, n: Bits) -> None:
        self._go(self._pointer(op), n)

    def again(self, n: Bits) -> None:
        self._go("%u", n)

    def next(self) -> None:
        self.note_effect()
        code = self.stage.code
        self._go(code.value(f"getelementptr i8, ptr {self.u}, i64 {OP_SIZE}"), self.n)

    def common(self, name: str, n: Bits) -> None:
        self.stage.code.declare(f"declare dso_local {CC} void @{name}{TYPES}")
        self.tail(f"@{name}", self.u, n)

    def retry(self) -> None:
        code = self.stage.code
        code.registers.update({name: self.entry[name] for name in code.registers})
        self.again(self.n)

    def finish(self) -> None:
        s = self.s
        a, kind, b = self._flags()
        if "flag_kind" in self.stage.code.registers:
            s.flag_a, s.flag_kind, s.flag_b = a, kind, b
        self.stage.code.end("ret void")

    # -- memory inline -------------------------------------------------------------------------------------------------
    def _direct(self, address: Bits, size: int, write: bool) -> Bits:
        """Host pointer for an access of the current privilege; leaves for `tlb_miss_*` if the TLB does not know it."""
        code, llvm = self.stage.code, self.stage.llvm
        lift = llvm.lift
        at = lift(tlb_at(address))
        entry = code.value(f"getelementptr i8, ptr %t, i64 {at}")
        where = TlbEntry.offset_of("write" if write else "read")
        tag_at = code.value(f"getelementptr i8, ptr {entry}, i64 {where}") if where else entry
        tag = code.value(f"load i64, ptr {tag_at}")
        inside = code.value(f"sub i64 {lift(address)}, {tag}")
        hit = code.value(f"icmp ule i64 {inside}, {PAGE - size}")
        hit_label, miss_label = code.label("hit"), code.label("miss")
        code.branch(hit, hit_label, miss_label, likely=True)
        code.start(miss_label)
        saved = dict(code.registers)
        code.registers.update({name: self.entry[name] for name in code.registers})
        self.s.scratch[0] = address
        self.s.scratch[1] = u64(size)
        self.common("tlb_miss_write" if write else "tlb_miss_read", self.n)
        code.registers = saved
        code.start(hit_label)
        host_at = code.value(f"getelementptr i8, ptr {entry}, i64 {TlbEntry.offset_of('host')}")
        host = code.value(f"load i64, ptr {host_at}")
        return llvm.wrap(64, f"add i64 {host}, {inside}")

    def load_current(self, address: Bits, width: int, lanes: int = 1) -> Bits:
        if not self.inline:
            return super().load_current(address, width, lanes)
        return self.at(self._direct(address, width * lanes // 8, False)).load(0, width, lanes)

    def store_current(self, address: Bits, value: Bits) -> None:
        if not self.inline:
            super().store_current(address, value)
            return
        self.at(self._direct(address, value.width * value.lanes // 8, True)).store(0, value)

    def load_update(self, address: Bits, width: int, lanes: int) -> tuple[Bits | None, Bits]:
        if not self.inline:
            return super().load_update(address, width, lanes)
        pointer = self._direct(address, width * lanes // 8, True)
        return pointer, self.at(pointer).load(0, width, lanes)

    def store_update(self, pointer: Bits | None, address: Bits, value: Bits) -> None:
        if pointer is None:
            super().store_update(pointer, address, value)
        else:
            self.at(pointer).store(0, value)

    @staged
    def exchange(self, pointer: Bits | None, address: Bits, old: Bits, value: Bits) -> None:
        if pointer is None:
            StagedCpu.exchange(self, pointer, address, old, value)
        else:
            bits = old.width * old.lanes
            expected = old.as_lanes(bits)
            seen = self.at(pointer).exchange(0, expected, value.as_lanes(bits))
            if unlikely(seen != expected):
                self.retry()


# -- handlers that no encoding leads to --------------------------------------------------------------------------------
@staged
def invalid(cpu: Any) -> None:
    raise GuestFault(cpu, Vector.UD)


@staged
def unavailable_x87(cpu: Any) -> None:
    raise GuestFault(cpu, Vector.NM)


@staged
def unavailable_mmx(cpu: Any) -> None:
    if (cpu.s.cr0 & Cr0.EM) != 0:
        raise GuestFault(cpu, Vector.UD)
    raise GuestFault(cpu, Vector.NM)


@staged
def unavailable_sse(cpu: Any) -> None:
    if ((cpu.s.cr0 & Cr0.EM) != 0) | ((cpu.s.cr4 & Cr4.OSFXSR) == 0):
        raise GuestFault(cpu, Vector.UD)
    raise GuestFault(cpu, Vector.NM)


@staged
def too_long(cpu: Any) -> None:
    raise GuestFault(cpu, Vector.GP, 0)


def close_linked(cpu: Any) -> None:
    cpu.form = 0
    cpu.transfer(0)


def close_far(cpu: Any) -> None:
    cpu.form = 1
    cpu.transfer(0)


def stale(cpu: Any) -> None:
    """Decoded code that was overwritten: look the instruction up anew."""
    rip = cpu.s.rip_base + cpu.op.offset.zext(64)
    cpu.s.rip = select((cpu.s.mode & Mode.SIZE) == 2, rip, rip & 0xFFFFFFFF)
    cpu.ended = True
    cpu.common("jump_miss", cpu.retired(0))


def pause(cpu: Any) -> None:
    """PAUSE: whoever the guest waits for may wait for this host processor."""
    paused(cpu)
    cpu.next()


def breakpoint(cpu: Any) -> None:
    """Before an instruction at the offset of a breakpoint."""
    debugger.ask(cpu)
    cpu.next()


# In this order: the decoder relies on 0 and on `records.Fpu`.
SPECIALS: Final[tuple[Callable[[Any], None], ...]] = (
    invalid, unavailable_x87, unavailable_mmx, unavailable_sse, unavailable_x87,
    close_linked, close_far, too_long, stale, pause, breakpoint,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shape:
    """Which handler of an encoding: everything that is static while it runs."""

    long: bool
    variant: int  # 0, 1: LOCK or REP(E), 2: REPNE
    osize: int
    form: int
    producer: int  # index in PRODUCERS


@dataclass(slots=True)
class Handler:
    """One handler: what it executes, and its text once generated."""

    name: str
    definition: Definition | None
    encoding: Encoding | None
    shape: Shape | None
    slow: bool
    text: str = ""
    twin: str = ""
    effect: int = int(Effect.UNKNOWN)
    declarations: set[str] = field(default_factory=set)
    updates: tuple[bool, ...] = ()


SIZES: Final = (16, 32, 64)


def returns(definition: Definition) -> bool:
    """Whether handlers of an instruction return to the loop."""
    return definition.ends and definition.name not in INLINE_ENDS


def is_cold(definition: Definition) -> bool:
    """Whether handlers of an instruction keep the flags in the state."""
    return definition.cold or returns(definition)


def reaches_memory(encoding: Encoding, shape: Shape) -> bool:
    """Whether the form of a shape is that of a memory operand."""
    return shape.form != Form.REGISTER and any(c[0] in "EMWQ" and c not in ("1",) for c in encoding.operands)


def set_up(cpu: Endings, definition: Definition, encoding: Encoding, shape: Shape,
           updates: Sequence[bool]) -> list[Operand]:  # fmt: skip
    """Give a processor what is static in one handler, and make the operands."""
    in_memory = reaches_memory(encoding, shape)
    cpu.long, cpu.osize = shape.long, SIZES[shape.osize]
    cpu.asize = SIZES[shape.form] if not in_memory and shape.form < 3 else 64
    cpu.lock = definition.lock and (shape.variant == 1 or definition.name == "XCHG")
    cpu.updating = definition.lock
    cpu.rep = ("", "rep" if definition.rep == "rep" else "repe", "repne")[shape.variant] if definition.rep else ""
    form = Form(shape.form) if in_memory else Form.REGISTER
    operands = [make(c, cpu, form, u) for c, u in zip(encoding.operands, updates, strict=True)]
    cpu.form, cpu.closing = shape.form, False
    return operands


def set_up_special(cpu: Endings) -> None:
    """The same for one of SPECIALS."""
    cpu.long, cpu.osize, cpu.asize, cpu.closing = False, 64, 64, True


def emit(handler: Handler, on_native: Callable[[Native], None], fused: Handler | None = None) -> HandlerCpu:
    """Generate the text of a handler (of two, for a fused pair). The CPU object says what mattered."""
    definition, encoding, shape = handler.definition, handler.encoding, handler.shape
    assert definition is not None and encoding is not None and shape is not None
    cold = is_cold(definition)
    general = reaches_memory(encoding, shape) and shape.form == Form.GENERAL
    inline = not cold and not handler.slow and not general
    reads_memory = False
    updates = [False] * len(encoding.operands)
    while True:
        out = Function(handler.name, "")
        stage = Stage(out, on_native=on_native)
        with stage.active():
            cpu = HandlerCpu(stage, inline=inline, cold=cold)
            stage.cpu = cpu
            kind = PRODUCERS[shape.producer]
            if kind is not None and "flag_kind" in out.registers:
                out.registers["flag_kind"] = u64(kind)
            operands = set_up(cpu, definition, encoding, shape, updates)
            cpu.accessed.clear()
            ends = returns(definition)
            if ends:
                cpu.s.rip = cpu.next_rip
            with suppress(Unreachable):
                definition.run(cpu, *operands)
            wanted = [isinstance(o, Memory) and o.was_read and o.was_written for o in operands]
            if wanted != updates:
                updates = wanted
                continue
            reads_memory = "@tlb_miss" in "".join(out.declarations)
            if out.live and not cpu.ended:
                if fused is not None:
                    assert fused.definition is not None
                    cpu.u = out.value(f"getelementptr i8, ptr %u, i64 {OP_SIZE}")
                    cpu.form, cpu.osize = 0, 64
                    with suppress(Unreachable):
                        fused.definition.run(cpu, None)
                elif ends:
                    cpu.leave()
                else:
                    cpu.next()
        break
    handler.updates = tuple(updates)
    handler.effect = int(Effect.UNKNOWN) if cpu.effect is None else cpu.effect
    handler.declarations = out.declarations
    out.signature = f"dso_local {CC} void @{handler.name}({SIGNATURE}) nounwind"
    handler.text = out.text()
    cpu.inline = inline and reads_memory  # from here on: whether it needs a slow twin
    return cpu


def emit_special(number: int, on_native: Callable[[Native], None]) -> Handler:
    """Generate one of SPECIALS."""
    run = SPECIALS[number]
    name = run.__name__ if SPECIALS.index(run) == number else f"{run.__name__}_{number}"
    handler = Handler(name, None, None, None, False)
    out = Function(name, f"dso_local {CC} void @{name}({SIGNATURE}) nounwind")
    stage = Stage(out, on_native=on_native)
    with stage.active():
        cpu = HandlerCpu(stage, inline=number in (5, 6, 8), cold=False)
        set_up_special(cpu)
        with suppress(Unreachable):
            run(cpu)
    handler.text, handler.declarations = out.text(), out.declarations
    return handler


INLINE_ENDS: Final = frozenset({"JMP", "CALL", "RET"})


def digest(handler: Handler) -> str:
    """What makes two handlers the same code."""
    text = handler.text.replace(f"@{handler.name}(", "@(", 1)
    return hashlib.sha1((text + handler.twin).encode()).hexdigest()


