"""Runs single instruction definitions without an engine: a case of `tests.hardware`, its definition, plain ints.

The encoding is known, so only ModRM, SIB and the immediate are read from the case's bytes; memory is the case's window.
What is checked here is the definitions alone, so a difference is theirs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from iced_x86 import Decoder, Instruction, OpKind, Register, RegisterExt

from tests.hardware.case import DATA, PAGE, WINDOW, WINDOW_SIZE, Case, Outcome
from tests.hardware.forms import from_encoding
from tests.hardware.generate import GPR_OF
from xuni.isa.bits import Bits, const, vector
from xuni.isa.struct import Place, PlainPlace
from xuni.isa.x86.cpu import Cpu
from xuni.isa.x86.encodings import Encoding, all_encodings
from xuni.isa.x86.exceptions import HAS_ERROR_CODE, GuestFault, Vector
from xuni.isa.x86.flags import unpack
from xuni.isa.x86.instruction import Definition
from xuni.isa.x86.state import Cr0, Cr4, State

from . import image

PREFIXES = (0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3)
WIDTHS = {"b": 8, "w": 16, "d": 32, "q": 64, "dq": 128, "ss": 32, "sd": 64, "x": 128, "xu": 128, "t": 80, "bs": 8,
          "bu": 8}  # fmt: skip
SEGMENT_BASES = {Register.FS: 0x0FFF_0000, Register.GS: 0x1000_F800}


def encodings(*modules: str) -> list[Encoding]:
    """All encodings that the modules define."""
    return [e for e in all_encodings() if _module(e.definition) in modules]


def _module(definition: Definition) -> str:
    return definition.run.__module__.rsplit(".", 1)[-1]


class BareCpu(Cpu):
    """Known values, and memory that is the window of a case."""

    def __init__(self, state: State, memory: bytearray) -> None:
        super().__init__(state)
        self.memory = memory
        self.bases: dict[int, int] = {}

    def at(self, pointer: Bits) -> Place:
        return PlainPlace(int(pointer))

    def _check(self, offset: Bits, size: int, write: bool) -> int:
        start = int(offset)
        if start >> 47 not in (0, (1 << 17) - 1):
            raise GuestFault(self, Vector.GP, 0)
        if DATA <= start and start + size <= DATA + PAGE:
            return start - WINDOW
        self.s.fault_address = start if not DATA <= start < DATA + PAGE else DATA + PAGE
        raise GuestFault(self, Vector.PF, 4 | write << 1)

    def load(self, segment: int | Bits, offset: Bits, width: int, lanes: int = 1) -> Bits:
        size = width * lanes // 8
        at = self._check(offset, size, False)
        value = int.from_bytes(self.memory[at : at + size], "little")
        return const(value, width * lanes).as_lanes(width)

    def has_feature(self, name: str) -> Bits:
        return const(1, 1)

    def flush_tlb(self) -> None:
        pass

    def store(self, segment: int | Bits, offset: Bits, value: Bits) -> None:
        whole = int(value.as_lanes(value.width * value.lanes))
        size = value.width * value.lanes // 8
        at = self._check(offset, size, True)
        self.memory[at : at + size] = whole.to_bytes(size, "little")

    def probe_write(self, segment: int | Bits, offset: Bits, size: int) -> None:
        self._check(offset, size, True)

    def window(self, segment: int | Bits, offset: Bits, write: bool) -> tuple[Bits, Bits]:
        self._check(offset, 1, write)
        return const(0, 64), const(0, 64)


class Register_:
    """A register operand: a place in the state."""

    is_memory = False

    def __init__(self, cpu: Cpu, array: str, number: int, width: int) -> None:
        self.cpu = cpu
        self.array = array
        self.number = number
        self.width, self.lanes = (64, 2) if width == 128 else (width, 1)

    @property
    def at(self) -> int:
        return State.offset_of(self.array) + self.number * (8 if self.array == "gpr" else 16)

    def read(self) -> Bits:
        return self.cpu.s.place.load(self.at, self.width, self.lanes)

    def write(self, value: Bits) -> None:
        assert value.width * value.lanes == self.width * self.lanes
        if self.array == "gpr" and self.width == 32:
            value = value.zext(64)
        self.cpu.s.place.store(self.at, value)
        if self.array == "st":
            self.cpu.s.place.store(self.at + 8, const(0xFFFF, 16))

    @property
    def index(self) -> Bits:
        return const(self.number, 8)


class Memory:
    """A memory operand at a linear address."""

    is_memory = True

    def __init__(self, cpu: BareCpu, address: int, width: int, aligned: bool) -> None:
        self.cpu = cpu
        self.address = address
        self.aligned = aligned
        self.extended = width == 80
        self.width, self.lanes = (64, 2) if width >= 80 else (width, 1)

    @property
    def offset(self) -> Bits:
        return const(self.address, 64)

    @property
    def segment(self) -> Bits:
        return const(3, 8)

    def _check(self) -> None:
        if self.aligned and self.address % 16:
            raise GuestFault(self.cpu, Vector.GP, 0)

    def _probe(self) -> None:
        self.cpu._check(self.offset, 10, True)

    def read(self) -> Bits:
        self._check()
        if self.extended:
            low = self.cpu.load(3, self.offset, 64)
            return vector([low, self.cpu.load(3, self.offset + 8, 16).zext(64)])
        return self.cpu.load(3, self.offset, self.width, self.lanes)

    def write(self, value: Bits) -> None:
        assert value.width * value.lanes == self.width * self.lanes
        self._check()
        if self.extended:
            self._probe()
            self.cpu.store(3, self.offset + 8, value.lane(1).trunc(16))
            self.cpu.store(3, self.offset, value.lane(0))
        else:
            self.cpu.store(3, self.offset, value)


class Immediate:
    is_memory = False
    lanes = 1

    def __init__(self, value: int, width: int) -> None:
        self.value, self.width = value, width

    def read(self) -> Bits:
        return const(self.value, self.width)


class Bare:
    """The definitions on plain ints as a `Target` for cases of one encoding."""

    name = "bare"

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding

    def run(self, cases: Sequence[Case]) -> list[Outcome]:
        return [self._run(case) for case in cases]

    def _run(self, case: Case) -> Outcome:
        memory = (ctypes.c_uint8 * (State.SIZE + 16))()
        # SAFETY: `memory` lives until this function returns; the state is not used afterwards.
        state = State(PlainPlace((ctypes.addressof(memory) + 15) // 16 * 16))
        load_state(state, case)
        data = bytearray(PAGE - WINDOW_SIZE)  # what is below the window reads as zeros, at negative offsets
        window = Window(case.memory + bytes(data))
        cpu = BareCpu(state, window)
        instruction = Decoder(64, case.code, ip=case.mode.rip).decode()
        vector_number: int | None = None
        try:
            cpu.osize = operand_size(case.code)
            cpu.asize = 64
            operands = build(cpu, self.encoding, case, instruction)
            self.encoding.definition.run(cpu, *operands)
        except GuestFault:
            vector_number = int(state.fault_vector)
        rip = case.mode.rip + (0 if vector_number is not None else instruction.len)
        return outcome(state, case, bytes(window[:WINDOW_SIZE]), vector_number, rip)


class Window(bytearray):
    """The window first, then the zeros that lie before it in the page: offsets wrap around."""


def operand_size(code: bytes) -> int:
    at = 0
    size = 32
    while code[at] in PREFIXES:
        size = 16 if code[at] == 0x66 else size
        at += 1
    return 64 if code[at] & 0xF8 == 0x48 else size


def split(encoding: Encoding, osize: int) -> list[tuple[str, int, bool]]:
    """What each operand is: "imm", "rm" or the array of its register; its width; whether memory must be aligned."""
    found: list[tuple[str, int, bool]] = []
    for operand in encoding.operands:
        kind, suffix = operand[0], operand[1:]
        sizes = {"y": 64 if osize == 64 else 32, "": 0 if kind == "M" else 128, "v": osize}
        width = sizes.get(suffix) or WIDTHS.get(suffix, 0)
        if operand in ("STi", "ST0"):
            found.append(("sti", 80, False))
        elif operand in ("AX",):
            found.append(("ax", 16, False))
        elif kind == "I":
            found.append(("imm", 8, False))
        elif kind in "GVP":
            found.append(({"G": "gpr", "V": "xmm", "P": "st"}[kind], width, False))
        else:
            found.append(("rm", width, suffix == "x" or (kind == "W" and suffix == "")))
    return found


def address_of_operand(encoding: Encoding, case: Case, instruction: Instruction) -> tuple[list[int], bool]:
    """Register numbers, addresses and immediates, and whether there is a memory operand."""
    form = from_encoding(encoding)
    code = case.code
    at = 0
    while code[at] in PREFIXES:
        at += 1
    rex = 0
    if code[at] & 0xF0 == 0x40:
        rex = code[at]
        at += 1
    at += len(form.opcode)
    modrm = code[at - 1] if form.register_in_opcode else code[at] if at < len(code) else 0
    reg, rm = modrm >> 3 & 7 | (rex & 4) << 1, modrm & 7 | (rex & 1) << 3
    values: list[int] = []
    in_memory = False
    for operand, (kind, _, _) in zip(encoding.operands, split(encoding, 32), strict=True):
        if kind == "sti":
            values.append(modrm & 7)
        elif kind == "ax":
            values.append(0)
        elif kind == "imm":
            values.append(code[-1])
        elif kind != "rm":
            values.append(reg & 7 if kind == "st" else reg)
        elif modrm >= 0xC0:
            values.append(rm & 7 if operand[0] in "QN" else rm)
        else:
            values.append(address(case, instruction))
            in_memory = True
    return values, in_memory


def build(cpu: BareCpu, encoding: Encoding, case: Case, instruction: Instruction) -> list[object]:
    """The operand objects of a case."""
    values, in_memory = address_of_operand(encoding, case, instruction)
    result: list[object] = []
    arrays = {"E": "gpr", "R": "gpr", "W": "xmm", "U": "xmm", "Q": "st", "N": "st"}
    for operand, (kind, width, aligned), value in zip(
        encoding.operands, split(encoding, cpu.osize), values, strict=True
    ):
        match kind:
            case "imm":
                result.append(Immediate(value, width))
            case "rm" if in_memory:
                result.append(Memory(cpu, value, width, aligned))
            case "rm":
                result.append(Register_(cpu, arrays[operand[0]], value, width))
            case "sti":
                result.append(Register_(cpu, "st", value, 128))
            case "ax":
                result.append(Register_(cpu, "gpr", 0, 16))
            case _:
                result.append(Register_(cpu, kind, value, width))
    return result


def address(case: Case, instruction: Instruction) -> int:
    """The linear address of the memory operand."""

    def value(register: int) -> int:
        if register == Register.NONE:
            return 0
        return case.gpr[GPR_OF[register]] & ((1 << 8 * RegisterExt.info(register).size) - 1)

    kinds = [instruction.op_kind(i) for i in range(instruction.op_count)]
    assert OpKind.MEMORY in kinds
    mask = (1 << 64) - 1
    if instruction.memory_base in (Register.RIP, Register.EIP):
        total = instruction.memory_displacement
    else:
        total = value(instruction.memory_base) + value(instruction.memory_index) * instruction.memory_index_scale
        total += instruction.memory_displacement
    code = case.code
    if 0x67 in code[: len(code) - 1] and _has_prefix(code, 0x67):
        mask = 0xFFFF_FFFF
    return (total & mask) + SEGMENT_BASES.get(instruction.memory_segment, 0) & (1 << 64) - 1


def _has_prefix(code: bytes, prefix: int) -> bool:
    for byte in code:
        if byte == prefix:
            return True
        if byte not in PREFIXES:
            return False
    return False


def load_state(state: State, case: Case) -> None:
    """The state before a case."""
    for i, value in enumerate(case.gpr):
        state.gpr[i] = value
    image.load(state, case.fxsave)
    state.cr0 = Cr0.PE | Cr0.PG | Cr0.NE | Cr0.ET | Cr0.MP
    state.cr4 = Cr4.PAE | Cr4.OSFXSR | Cr4.OSXMMEXCPT | Cr4.OSXSAVE
    state.xcr0 = 7
    state.flag_kind = 0
    state.flag_b = case.rflags & 0x8D5


def outcome(state: State, case: Case, memory: bytes, vector_number: int | None, rip: int) -> Outcome:
    """The state after a case."""
    flags = unpack(int(state.flag_kind), int(state.flag_a), int(state.flag_b)) | case.rflags & ~0x8D5
    error = int(state.fault_error) if vector_number in HAS_ERROR_CODE else 0
    return Outcome(
        tuple(int(state.gpr[i]) for i in range(16)), rip, flags | 2, image.store(state, case.fxsave), memory,
        vector_number, error, int(state.fault_address),
    )  # fmt: skip
