"""Machine code for hot loops: the instructions of some traces as one function, optimized by LLVM as a whole.

A handler works on registers in memory and knows nothing of its neighbours. Here the same semantics are emitted one after
the other: what is static in an Op becomes a constant, general registers live in the host's, flags that nothing reads are
never computed. The function has a handler's signature and stands in for the handler of the first Op; wherever it meets
something that is not the usual course (a TLB miss, a fault, a branch out, an instruction that needs a call) it writes the
registers back and goes on at the Op in question in the interpreter.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from xuni.engine.soft import program
from xuni.engine.soft.handlers import CC, SIGNATURE, TYPES, HandlerCpu, Shape, is_cold, reaches_memory, set_up
from xuni.engine.soft.hot import OUT, Loop, OpImage
from xuni.engine.soft.records import OP_SIZE, PRODUCERS, Aux, Form, Op
from xuni.isa.bits import Bits, u64
from xuni.isa.compiler import Stage
from xuni.isa.llvm import Function
from xuni.isa.stage import Unreachable, likely, staged, unlikely
from xuni.isa.struct import PlainPlace, StagedPlace
from xuni.isa.x86.encodings import Encoding
from xuni.isa.x86.state import Slot, State

GENERAL: Final = 16  # registers that become local
_REGISTERS: Final = range(State.offset_of("gpr"), State.offset_of("gpr") + 8 * GENERAL)
_ZERO: Final = 8 * int(Slot.ZERO)
_FLAGS: Final = ("flag_a", "flag_kind", "flag_b")
_FLUSH: Final = "; registers"


class NotHere(Exception):
    """An instruction needs more than its handler's inline part."""


@functools.cache
def encodings() -> list[Encoding]:
    """All, as handlers' names number them."""
    return program.everything()


@functools.cache
def meaning(number: int) -> dict[int, Shape]:
    """The shapes of an encoding by their position in its leaf's list, with either reading of the form."""
    leaf = program.plan_leaf(encodings()[number])
    found = dict(program.shapes(leaf, False))
    return {**dict(program.shapes(leaf, True)), **found}


@functools.cache
def parse(name: str) -> tuple[Encoding, Shape, bool] | None:
    """What a handler's name says: encoding, shape, and whether a conditional branch is fused to it."""
    if not (name.startswith("h") and name[1:2].isdigit()):
        return None
    number, _, rest = name[1:].partition("_")
    position, _, fused = rest.partition("_j")
    if not position.isdigit():
        return None  # a slow twin
    shape = meaning(int(number)).get(int(position))
    return None if shape is None else (encodings()[int(number)], shape, bool(fused))


class Registers(StagedPlace):
    """The processor's state, its general registers in local variables."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage, "%s")
        self.touched: set[int] = set()
        self.written: set[int] = set()

    def _local(self, offset: int | Bits, size: int) -> str | None:
        if isinstance(offset, Bits):
            if not offset.known:
                raise NotHere
            offset = int(offset)
        if offset not in _REGISTERS:
            return None
        number, inside = divmod(offset - _REGISTERS.start, 8)
        if inside + size > 8:
            raise NotHere
        self.touched.add(number)
        return self.stage.code.value(f"getelementptr i8, ptr %g{number}, i64 {inside}")

    def load(self, offset: int | Bits, width: int, lanes: int = 1) -> Bits:
        if (not isinstance(offset, Bits) or offset.known) and int(offset) == _ZERO and lanes == 1:
            return u64(0).trunc(width) if width < 64 else u64(0)
        pointer = self._local(offset, width * lanes // 8) if width > 1 else None
        if pointer is None:
            return super().load(offset, width, lanes)
        return StagedPlace(self.stage, pointer).load(0, width, lanes)

    def store(self, offset: int | Bits, value: Bits) -> None:
        pointer = self._local(offset, value.width * value.lanes // 8)
        if pointer is None:
            super().store(offset, value)
            return
        self.written.add((int(offset) - _REGISTERS.start) // 8)
        StagedPlace(self.stage, pointer).store(0, value)


class LoopStage(Stage):
    """A compilation in which whatever unwinds goes back to the interpreter instead, before it had any effect."""

    def _raise(self, error: Any) -> None:
        self.cpu.exit_here()
        raise Unreachable


class LoopCpu(HandlerCpu):
    """Emits one instruction after the other."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage, inline=True, cold=False)
        self.registers = Registers(stage)
        self.s = State(self.registers)
        self.position = (0, 0)  # trace and Op
        self.edges: list[tuple[str, dict[str, Bits]]] = []
        self.target = OUT
        self.jumps: set[tuple[int, int]] = set()
        """From which trace to which one control goes without leaving the function."""
        self.label_after = ""
        self.converted = False
        """The present Op reaches memory inline though its handler does not."""
        self._op: Op | None = None
        stage.before_call = self._refuse_call

    @property
    def op(self) -> Op:
        assert self._op is not None
        return self._op

    @property
    def u(self) -> str:
        """The address of the present Op, from the table of addresses."""
        code = self.stage.code
        trace, number = self.position
        place = code.value(f"getelementptr i64, ptr @ops, i64 {trace}")
        first = code.value(f"load ptr, ptr {place}")
        return code.value(f"getelementptr i8, ptr {first}, i64 {number * OP_SIZE}")

    @u.setter
    def u(self, value: str) -> None:
        pass

    def _refuse_call(self, function: Callable[..., Any] | None) -> None:
        if function is None or not getattr(function, "__pure__", False):
            raise NotHere

    # -- leaving -------------------------------------------------------------------------------------------------------
    def tail(self, handler: str, op: str, n: Bits) -> None:
        self.stage.code.emit(_FLUSH)
        super().tail(handler, op, n)

    def exit_here(self) -> None:
        """Go on at the present Op in the interpreter, which begins it anew."""
        code = self.stage.code
        code.registers.update(self.entry)
        if self.position == (0, 0):  # whose handler is this function
            code.declare(f"declare dso_local {CC} void @first{TYPES}")
            self.tail("@first", self.u, self.n)
        else:
            self._go(self.u, self.n)

    def common(self, name: str, n: Bits) -> None:
        if self.converted and name.startswith("tlb_miss"):
            self.exit_here()  # its handler has no twin: it reaches memory by calls
        else:
            super().common(name, n)

    def retry(self) -> None:
        self.exit_here()

    # -- staying -------------------------------------------------------------------------------------------------------
    def next(self) -> None:
        """Fall through to the next Op."""
        code = self.stage.code
        self.edges.append((code.block, dict(code.registers)))
        code.jump(self.label_after)

    @staged
    def transfer(self, count: int) -> None:
        self.ended = True
        n = self.retired(count)
        if self.form != 0 or self.target == OUT:
            self.jump_cached(self.branch_target(), n)
        elif likely(n.sge(0)):
            if unlikely(self.is_stale()):
                self.s.rip = self.branch_target()
                self.common("jump_miss", n)
            else:
                self.go_on(n)
        else:
            self.s.rip = self.branch_target()
            self.common("leave", n)

    def is_stale(self) -> Bits:
        """Whether the trace that the branch leads to has been killed since."""
        code = self.stage.code
        place = code.value(f"getelementptr i64, ptr @ops, i64 {self.target}")
        first = code.value(f"load ptr, ptr {place}")
        handler = code.value(f"load volatile ptr, ptr {first}")
        code.declare(f"declare dso_local {CC} void @stale(ptr, ptr, i64, i64, i64, i64, ptr)")
        return self.stage.llvm.wrap(1, f"icmp eq ptr {handler}, @stale")

    def go_on(self, n: Bits) -> None:
        """Go to the first Op of the target."""
        code, lift = self.stage.code, self.stage.llvm.lift
        self.jumps.add((self.position[0], self.target))
        code.emit(f"store i64 {lift(n)}, ptr %budget")
        for name, value in zip(_FLAGS, self._flags(), strict=True):
            code.emit(f"store i64 {lift(value)}, ptr %{name}")
        code.jump(f"trace{self.target}")


class NotALoop(Exception):
    """Each way round leaves the function: it would only cost."""


def emit(loop: Loop) -> str:
    """The module. Its function is `hot`, its table of the traces' first Ops `ops`. Raises NotALoop."""
    out = Function("hot", f"dso_local {CC} void @hot({SIGNATURE}) nounwind")
    stage = LoopStage(out)
    with stage.active():
        cpu = stage.cpu = LoopCpu(stage)
        for number, trace in enumerate(loop.traces):
            _trace(cpu, number, trace, loop.updates)
    reached: set[int] = set()
    while more := {to for come, to in cpu.jumps if come == 0 or come in reached} - reached:
        reached |= more
    if 0 not in reached:
        raise NotALoop
    body = out.text()
    touched, written = sorted(cpu.registers.touched), sorted(cpu.registers.written)
    head = [f"  %{name} = alloca i64" for name in ("budget", *_FLAGS, *(f"g{n}" for n in touched))]
    head += ["  store i64 %n, ptr %budget", "  store i64 %fa, ptr %flag_a", "  store i64 %fk, ptr %flag_kind",
             "  store i64 %fb, ptr %flag_b"]  # fmt: skip
    for n in touched:
        head += [f"  %in_at{n} = getelementptr i8, ptr %s, i64 {_REGISTERS.start + 8 * n}",
                 f"  %in{n} = load i64, ptr %in_at{n}", f"  store i64 %in{n}, ptr %g{n}"]  # fmt: skip
    head.append("  br label %trace0")
    lines: list[str] = []
    for count, line in enumerate(body.splitlines()):
        if line.strip() != _FLUSH:
            lines.append(line)
            continue
        for n in written:
            lines += [f"  %out{count}_{n} = load i64, ptr %g{n}",
                      f"  %out_at{count}_{n} = getelementptr i8, ptr %s, i64 {_REGISTERS.start + 8 * n}",
                      f"  store i64 %out{count}_{n}, ptr %out_at{count}_{n}"]  # fmt: skip
    entry = lines.index("entry:")
    lines[entry + 1 : entry + 1] = head
    text = "\n".join(lines).replace(" nounwind {", " nounwind prefix ptr @twin {", 1)
    table = f"@ops = dso_local global [{len(loop.traces)} x i64] zeroinitializer, align 8"
    twin = "@twin = external dso_local global i8"
    return "\n".join([table, twin, *sorted(out.declarations), text])


def _trace(cpu: LoopCpu, number: int, trace: tuple[OpImage, ...], updates: dict[str, tuple[bool, ...]]) -> None:
    code, llvm = cpu.stage.code, cpu.stage.llvm
    code.start(f"trace{number}")
    cpu.n = llvm.wrap(64, "load i64, ptr %budget")
    code.registers = {name: llvm.wrap(64, f"load i64, ptr %{name}") for name in _FLAGS}
    index = 0
    while True:
        image = trace[index]
        cpu.position, cpu.target, cpu.ended, cpu.edges = (number, index), image.target, False, []
        cpu.label_after = f"op{number}_{index + 1}"
        cpu.entry, cpu.converted = dict(code.registers), False
        mark = len(code.lines), code.block, set(code.declarations)
        try:
            _op(cpu, image, updates)
        except NotHere:
            del code.lines[mark[0] :]
            code.block, code.live, code.declarations = mark[1], True, mark[2]
            code.registers = dict(cpu.entry)
            cpu.edges = []
            cpu.exit_here()
        if not cpu.edges:
            return
        code.start(cpu.label_after)
        code.registers = cpu.stage._merge_registers(cpu.edges)
        index += 1


def _op(cpu: LoopCpu, image: OpImage, updates: dict[str, tuple[bool, ...]]) -> None:
    code = cpu.stage.code
    buffer = ctypes.create_string_buffer(image.data, OP_SIZE)
    # SAFETY: the buffer lives until the Op is emitted; nothing keeps the place longer.
    cpu._op = op = Op(PlainPlace(ctypes.addressof(buffer)))
    if image.name in ("close_linked", "close_far"):
        cpu.long, cpu.osize, cpu.asize, cpu.closing = False, 64, 64, True
        cpu.form = 0 if image.name == "close_linked" else 1
        with suppress(Unreachable):
            cpu.transfer(0)
        return
    found = parse(image.name)
    if found is None:
        raise NotHere
    encoding, shape, _ = found
    definition = encoding.definition
    if is_cold(definition):
        raise NotHere
    shape = replace(shape, long=True)  # handlers that are the same in all modes have the name of the first
    if reaches_memory(encoding, shape) and shape.form == Form.GENERAL:
        if int(op.aux) & Aux.ASIZE != 2:
            raise NotHere
        shape = replace(shape, form=int(Form.INDEXED))
        if int(op.aux) & Aux.RIP_RELATIVE:
            disp = int(op.disp) + int(op.offset) + int(op.length)
            if (int(op.disp) ^ disp) >> 31 & 1:
                raise NotHere
            op.disp = disp & 0xFFFFFFFF
        cpu.converted = True
    kind = PRODUCERS[shape.producer]
    if kind is not None:
        code.registers["flag_kind"] = u64(kind)
    operands = set_up(cpu, definition, encoding, shape, updates.get(image.name, (False,) * len(encoding.operands)))
    with suppress(Unreachable):
        definition.run(cpu, *operands)
    if code.live and not cpu.ended:
        cpu.next()
