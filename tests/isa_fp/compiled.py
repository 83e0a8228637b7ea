"""Runs single instruction definitions, compiled, without an engine: one function an encoding and form.

The functions read which registers, address and immediate to use from the state's scratch area, so that one function
serves all cases. LLVM ends the process on an internal error: use it in a process of its own.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding as llvm
from iced_x86 import Decoder

from tests.hardware.case import DATA, PAGE, WINDOW, WINDOW_SIZE, Case, Outcome
from xuni.isa.bits import Bits, const, u64
from xuni.isa.compiler import Stage
from xuni.isa.llvm import Function
from xuni.isa.native import compile_native
from xuni.isa.stage import Native, staged
from xuni.isa.struct import Place, PlainPlace, StagedPlace, place_at
from xuni.isa.x86.cpu import Cpu
from xuni.isa.x86.encodings import Encoding
from xuni.isa.x86.exceptions import GuestFault, Vector
from xuni.isa.x86.state import State

from .bare import Immediate, Memory, Register_, address_of_operand, load_state, operand_size, outcome, split

SCRATCH = State.offset_of("scratch")
CATCH = State.offset_of("catch")
HOST_WINDOW, OPERANDS, CONTROL, MXCSR, STATUS = 0, 8, 40, 41, 42  # scratch words


def at(word: int) -> int:
    return SCRATCH + 8 * word


GLUE = f"""
.text
.globl enter
enter:
  pushq %rbx; pushq %rbp; pushq %r12; pushq %r13; pushq %r14; pushq %r15; pushq %rdi
  movq %rsp, {CATCH}(%rdi)
  fninit; fldcw {at(CONTROL)}(%rdi); ldmxcsr {at(MXCSR)}(%rdi)
  callq *%rsi
  xorl %eax, %eax
leave_:
  popq %rdi
  stmxcsr {at(MXCSR)}(%rdi); fnstsw {at(STATUS)}(%rdi); fninit
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbp; popq %rbx
  retq
.globl throw
throw:
  movq {CATCH}(%rdi), %rsp
  movl %esi, %eax
  jmp leave_
"""


class CompiledCpu(Cpu):
    """Memory is the case's page, wherever it lies in this process."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(State(StagedPlace(stage, "%s")))
        self.stage = stage

    def at(self, pointer: Bits) -> Place:
        return place_at(self.stage, pointer)

    @staged
    def _check(self, offset: Bits, size: int, write: bool) -> Bits:
        if (offset - DATA) > PAGE - size:
            if offset.sar(47) + 1 > 1:
                raise GuestFault(self, Vector.GP, 0)
            address = offset
            if (offset - DATA) < PAGE:
                address = u64(DATA + PAGE)
            self.s.fault_address = address
            raise GuestFault(self, Vector.PF, 4 | write << 1)
        return self.s.scratch[HOST_WINDOW] + (offset - DATA)

    def load(self, segment: int | Bits, offset: Bits, width: int, lanes: int = 1) -> Bits:
        return self.at(self._check(offset, width * lanes // 8, False)).load(0, width, lanes)

    def has_feature(self, name: str) -> Bits:
        return const(1, 1)

    def flush_tlb(self) -> None:
        pass

    def store(self, segment: int | Bits, offset: Bits, value: Bits) -> None:
        self.at(self._check(offset, value.width * value.lanes // 8, True)).store(0, value)

    def probe_write(self, segment: int | Bits, offset: Bits, size: int) -> None:
        self._check(offset, size, True)

    @staged
    def window(self, segment: int | Bits, offset: Bits, write: bool) -> tuple[Bits, Bits]:
        self._check(offset, 1, write)
        return const(0, 64), const(0, 64)

    @property
    def rip(self) -> Bits:
        return self.s.rip


class LaterRegister(Register_):
    """A register whose number is known when the function runs."""

    @property
    def at(self) -> Any:
        size = 3 if self.array == "gpr" else 4
        return (self._number() << size) + State.offset_of(self.array)

    def _number(self) -> Bits:
        return self.cpu.s.place.load(at(OPERANDS + self.number), 64)

    def write(self, value: Bits) -> None:
        assert value.width * value.lanes == self.width * self.lanes
        if self.array == "gpr" and self.width == 32:
            value = value.zext(64)
        self.cpu.s.place.store(self.at, value)
        if self.array == "st":
            self.cpu.s.place.store(self.at + 8, const(0xFFFF, 16))

    @property
    def index(self) -> Bits:
        return self._number().trunc(8)


class LaterMemory(Memory):
    @property
    def offset(self) -> Bits:
        return self.cpu.s.place.load(at(OPERANDS + self.address), 64)

    def _check(self) -> None:
        if self.aligned:
            _aligned(self.cpu, self.offset)

    def _probe(self) -> None:
        self.cpu._check(self.offset, 10, True)


@staged
def _aligned(cpu: Cpu, offset: Bits) -> None:
    if (offset & 15) != 0:
        raise GuestFault(cpu, Vector.GP, 0)


class LaterImmediate(Immediate):
    def __init__(self, cpu: Cpu, index: int) -> None:
        super().__init__(0, 8)
        self.cpu, self.at_index = cpu, index

    def read(self) -> Bits:
        return self.cpu.s.place.load(at(OPERANDS + self.at_index), 8)


def _name(line: str) -> str:
    """What a definition or declaration defines or declares."""
    return line.split("@", 1)[1].split("(", 1)[0]


def function_text(encoding: Encoding, name: str, memory: bool, osize: int, note: Callable[[Native], None]) -> Function:
    """The LLVM function of one encoding, with a memory operand or without one."""
    code = Function(name, f"void @{name}(ptr %s) nounwind")
    stage = Stage(code, on_native=note)
    cpu = CompiledCpu(stage)
    stage.cpu = cpu
    cpu.osize = osize
    with stage.active():
        operands: list[Any] = []
        for i, (kind, width, aligned) in enumerate(split(encoding, osize)):
            match kind:
                case "imm":
                    operands.append(LaterImmediate(cpu, i))
                case "rm" if memory:
                    operands.append(LaterMemory(cpu, i, width, aligned))  # type: ignore[arg-type]
                case "rm":
                    operands.append(LaterRegister(cpu, rm_array(encoding, i), i, width))
                case "sti" | "ax":
                    operands.append(LaterRegister(cpu, "st" if kind == "sti" else "gpr", i, width))
                case _:
                    operands.append(LaterRegister(cpu, kind, i, width))
        encoding.definition.run(cpu, *operands)
    if code.live:
        code.end("ret void")
    return code


def rm_array(encoding: Encoding, index: int) -> str:
    arrays = {"E": "gpr", "R": "gpr", "W": "xmm", "U": "xmm", "Q": "st", "N": "st"}
    return arrays.get(encoding.operands[index][0], "gpr")


class Compiled:
    """Encodings compiled together, as a `Target` for cases of each."""

    name = "compiled"

    def __init__(self, encodings: Sequence[Encoding]) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        llvm.initialize_native_asmparser()
        natives: dict[str, Native] = {}

        def note(native: Native) -> None:
            natives.setdefault(native.symbol, native)

        functions: list[str] = []
        declarations: set[str] = set()
        self.names: dict[tuple[int, bool, int], str] = {}
        for number, encoding in enumerate(encodings):
            for memory in (False, True):
                if encoding.memory is not None and encoding.memory != memory:
                    continue
                if memory and not any(k == "rm" for k, _, _ in split(encoding, 32)):
                    continue
                for osize in (16, 32, 64):
                    if osize == 16 and "M" not in encoding.operands:
                        continue
                    name = f"f{number}_{int(memory)}_{osize}"
                    function = function_text(encoding, name, memory, osize, note)
                    functions.append(function.text())
                    declarations |= function.declarations
                    self.names[number, memory, osize] = name
        done: set[str] = set()
        while todo := natives.keys() - done:
            for symbol in sorted(todo):
                text, needs = compile_native(natives[symbol], CompiledCpu, note)
                functions.append(text)
                declarations |= needs
                done.add(symbol)
        lines = (line for text in functions for line in text.splitlines())
        defined = {_name(line) for line in lines if line.startswith("define")}
        wanted = [d for d in sorted(declarations) if _name(d) not in defined]
        weights = '!0 = !{!"branch_weights", i32 2000, i32 1}\n!1 = !{!"branch_weights", i32 1, i32 2000}\n'
        glue = "\n".join(f'module asm "{line}"' for line in GLUE.strip().splitlines())
        self.text = "\n".join([glue, *wanted, *functions, weights])
        self.encodings = list(encodings)
        self.engine: Any = None

    def link(self) -> None:
        module = llvm.parse_assembly(self.text)
        module.verify()
        machine = llvm.Target.from_default_triple().create_target_machine(opt=2, cpu="x86-64-v2")
        self.module = module
        self.engine = llvm.create_mcjit_compiler(module, machine)
        self.engine.finalize_object()
        # SAFETY: the engine keeps the code mapped; `self` keeps the engine.
        self.enter = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(
            self.engine.get_function_address("enter"))

    def run(self, encoding: Encoding, case: Case) -> Outcome:
        number = next(i for i, e in enumerate(self.encodings) if e is encoding)
        memory = (ctypes.c_uint8 * (State.SIZE + 16))()
        page = (ctypes.c_uint8 * PAGE)()
        ctypes.memmove(ctypes.addressof(page) + WINDOW - DATA, case.memory, WINDOW_SIZE)
        base = (ctypes.addressof(memory) + 15) // 16 * 16
        # SAFETY: `memory` and `page` live until this function returns.
        state = State(PlainPlace(base))
        load_state(state, case)
        instruction = Decoder(64, case.code, ip=case.mode.rip).decode()
        values, in_memory = address_of_operand(encoding, case, instruction)
        state.scratch[HOST_WINDOW] = ctypes.addressof(page)
        for i, value in enumerate(values):
            state.scratch[OPERANDS + i] = value
        state.scratch[CONTROL] = int(state.fpu_control) | 0x3F
        state.scratch[MXCSR] = int(state.mxcsr) | 0x1F80
        osize = operand_size(case.code)
        if osize == 16 and "M" not in encoding.operands:
            osize = 32
        code = self.enter(base, self.engine.get_function_address(self.names[number, in_memory, osize]))
        state.mxcsr = int(state.mxcsr) | int(state.scratch[MXCSR]) & 0x3F
        state.fpu_status = int(state.fpu_status) | int(state.scratch[STATUS]) & 0x3F
        number_of_vector = int(state.fault_vector) if code else None
        rip = case.mode.rip + (0 if code else instruction.len)
        data = bytes(page)[WINDOW - DATA :]
        return outcome(state, case, data, number_of_vector, rip)
