"""The definitions over plain ints as a target that the host's processor can be compared with.

A small decoder finds the definition by the same encodings that the engine's decoder is made of; it knows the operand
codes of integer instructions only.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from tests.hardware.case import CODE, DATA, FS_BASE, GS_BASE, PAGE, WINDOW, WINDOW_SIZE, Case, Mode, Outcome
from tests.isa.plain import WRITE, Memory, PlainCpu, Register, Value
from xuni.isa.bits import Bits, const
from xuni.isa.stage import Unwind
from xuni.isa.x86 import bcd, bit, integer, logic, misc, move, push, shift, string
from xuni.isa.x86.encodings import DIMENSIONS, MAP_COUNT, Choice, Encoding, decide, parse
from xuni.isa.x86.exceptions import GuestFault, Vector
from xuni.isa.x86.instruction import DEFINITIONS, Operand
from xuni.isa.x86.state import Attr, Gpr, Seg

SEGMENT_PREFIXES = {0x26: Seg.ES, 0x2E: Seg.CS, 0x36: Seg.SS, 0x3E: Seg.DS, 0x64: Seg.FS, 0x65: Seg.GS}
SHORT = [(Gpr.RBX, Gpr.RSI), (Gpr.RBX, Gpr.RDI), (Gpr.RBP, Gpr.RSI), (Gpr.RBP, Gpr.RDI), (Gpr.RSI,), (Gpr.RDI,),
         (Gpr.RBP,), (Gpr.RBX,)]  # fmt: skip
FIXED = {"AL": (Gpr.RAX, 8), "CL": (Gpr.RCX, 8), "AX": (Gpr.RAX, 16), "DX": (Gpr.RDX, 16), "EAX": (Gpr.RAX, 32)}
FAMILIES = frozenset(m.__name__ for m in (bcd, bit, integer, logic, misc, move, push, shift, string))


class Unknown(Exception):
    """No definition here has this encoding."""


class Trees:
    """The decision trees of every map and opcode."""

    def __init__(self) -> None:
        lists: dict[tuple[int, int], list[Encoding]] = {}
        for definition in DEFINITIONS:
            if definition.run.__module__ not in FAMILIES:
                continue
            for text in definition.encodings:
                for encoding in parse(definition, text):
                    assert encoding.map < MAP_COUNT
                    lists.setdefault((encoding.map, encoding.opcode), []).append(encoding)
        self.modrm = {key for key, encodings in lists.items() if any(e.modrm for e in encodings)}
        self.trees = {key: decide(encodings) for key, encodings in lists.items()}
        self.nop = next(e for e in lists[1, 0x1F] if e.definition.name == "NOP")


class Decoded:
    """One instruction: its encoding, its operands and how many bytes it has."""

    def __init__(self, trees: Trees, cpu: PlainCpu, code: bytes, mode: Mode, rip: int) -> None:
        self.cpu, self.code, self.mode, self.rip, self.at = cpu, code, mode, rip, 0
        self.long = mode is Mode.LONG
        self.rex = self.vvvv = vexl = 0
        self.relative: int | None = None
        self.segment: Seg | None = None
        prefixes: set[int] = set()
        rep = 0
        while True:
            byte = self.take(1)
            if self.long and byte & 0xF0 == 0x40:
                self.rex = byte
                continue
            if byte in SEGMENT_PREFIXES:
                if not self.long or byte >= 0x64:
                    self.segment = SEGMENT_PREFIXES[byte]
            elif byte in (0xF2, 0xF3):
                rep = byte
            elif byte not in (0x66, 0x67, 0xF0):
                break
            prefixes.add(byte)
            self.rex = 0
        prefix = {0xF2: 3, 0xF3: 2, 0: int(0x66 in prefixes)}[rep]
        table = 0
        if byte == 0x0F:
            byte, table = self.take(1), 1
            if byte in (0x38, 0x3A):
                table = 2 if byte == 0x38 else 3
                byte = self.take(1)
        elif byte in (0xC4, 0xC5) and (self.long or code[self.at] >= 0xC0):
            first = self.take(1)
            last = self.take(1) if byte == 0xC4 else first
            self.rex = 0x40 | (~first >> 5 & 7 | last >> 4 & 8 if byte == 0xC4 else ~first >> 5 & 4)
            table = (first & 31) + 3 if byte == 0xC4 else 4
            self.vvvv, vexl, prefix = ~last >> 3 & 15, last >> 2 & 1, last & 3
            if not self.long:
                self.rex, self.vvvv = self.rex & 8, self.vvvv & 7
            byte = self.take(1)
        tree: Choice | Encoding | None = trees.trees.get((table, byte))
        self.modrm = code[self.at] if (table, byte) in trees.modrm else 0xC0
        facts = {"long": int(self.long), "prefix": prefix, "vexl": vexl, "memory": int(self.modrm < 0xC0),
                 "reg": self.modrm >> 3 & 7, "rm": self.modrm & 7, "rexw": self.rex >> 3 & 1}  # fmt: skip
        assert set(facts) == {name for name, _ in DIMENSIONS}
        while isinstance(tree, Choice):
            tree = tree.children[facts[tree.dimension]]
        if tree is None:
            raise Unknown
        self.opcode = byte
        if table == 0 and byte == 0x90 and not self.rex & 1:
            tree = trees.nop
        self.encoding, self.definition = tree, tree.definition
        if 0xF0 in prefixes and not (self.definition.lock and self.modrm < 0xC0 and tree.modrm):
            raise GuestFault(cpu, Vector.UD)
        # -- sizes
        small = mode is Mode.PROTECTED_16
        self.osize = 16 if (0x66 in prefixes) != small else 32
        if tree.prefix == 1 and not tree.vex:
            self.osize = 32
        if self.long:
            wide = self.rex & 8 or tree.osize == "f64" or (tree.osize == "d64" and 0x66 not in prefixes)
            self.osize = 64 if wide else self.osize
        sizes = {Mode.LONG: (64, 32), Mode.PROTECTED_32: (32, 16), Mode.PROTECTED_16: (16, 32)}
        self.asize = sizes[mode][0x67 in prefixes]
        cpu.osize, cpu.asize, cpu.long, cpu.lock = self.osize, self.asize, self.long, 0xF0 in prefixes
        kind = self.definition.rep
        cpu.rep = "" if not rep or not kind else "rep" if kind == "rep" else "repne" if rep == 0xF2 else "repe"
        if tree.modrm and (table, byte) != (0, 0x90):
            self.take(1)
            self.address = self.effective() if self.modrm < 0xC0 else 0
        self.operands = [self.operand(code) for code in tree.operands]
        self.relocate()

    def relocate(self) -> None:
        """A displacement relative to RIP counts from the end, immediates included."""
        if self.relative is not None:
            for operand in self.operands:
                if isinstance(operand, Memory):
                    operand.move(self.relative + self.rip + self.at & (1 << self.asize) - 1)

    def take(self, size: int) -> int:
        self.at += size
        assert self.at <= len(self.code)
        return int.from_bytes(self.code[self.at - size : self.at], "little")

    def signed(self, size: int) -> int:
        value = self.take(size)
        return value - (value >> (8 * size - 1) << 8 * size)

    def effective(self) -> int:
        mod, rm, cpu = self.modrm >> 6, self.modrm & 7, self.cpu
        bases: list[tuple[int, int]] = []  # register, scale
        size = {0: 0, 1: 1, 2: 2 if self.asize == 16 else 4}[mod]
        if self.asize == 16:
            if mod == 0 and rm == 6:
                size = 2
            else:
                bases = [(register, 1) for register in SHORT[rm]]
        else:
            base = rm | self.rex << 3 & 8
            if rm == 4:
                sib = self.take(1)
                index, base = sib >> 3 & 7 | self.rex << 2 & 8, sib & 7 | self.rex << 3 & 8
                if index != 4:
                    bases.append((index, 1 << (sib >> 6)))
                if mod == 0 and sib & 7 == 5:
                    base, size = -1, 4
            elif mod == 0 and rm == 5:
                base, size = -1, 4
                self.relative = 0 if self.long else None
            if base >= 0:
                bases.insert(0, (base, 1))
        stack = bool(bases) and bases[0][1] == 1 and bases[0][0] in (Gpr.RSP, Gpr.RBP)
        if self.asize != 16 and rm == 4 and len(bases) == 1 and self.code[self.at - 1] & 7 == 5 and mod == 0:
            stack = False  # an index without a base
        self.default = Seg.SS if stack else Seg.DS
        displacement = self.signed(size) if size else 0
        if self.relative is not None:
            self.relative = displacement
        self.bases, self.displacement = bases, displacement
        total = displacement + sum(int(cpu.s.gpr[register]) * scale for register, scale in bases)
        return total & (1 << self.asize) - 1

    def width(self, suffix: str) -> int:
        sizes = {"b": 8, "w": 16, "d": 32, "q": 64, "dq": 64, "v": self.osize, "": self.osize,
                 "y": 64 if self.osize == 64 else 32, "z": min(self.osize, 32)}  # fmt: skip
        return sizes[suffix]

    def register(self, number: int, width: int) -> Register:
        if width == 8 and not self.rex and 4 <= number < 8:
            return Register(self.cpu, number - 4, 8, high=True)
        return Register(self.cpu, number, width)

    def operand(self, code: str) -> Operand:
        cpu, kind, suffix = self.cpu, code[0], code[1:]
        if code in FIXED:
            return Register(cpu, *FIXED[code])
        if code == "rAX":
            return Register(cpu, Gpr.RAX, self.osize)
        if code == "1":
            return Value(cpu, 1, 8)
        if code in ("Ib", "Iw"):
            return Value(cpu, self.take(self.width(suffix) // 8), self.width(suffix))
        if code == "Iwb":
            return Value(cpu, self.take(3), 24)
        if code == "Ibs":
            return Value(cpu, self.signed(1), self.osize)
        if code in ("Iz", "Iv"):
            return Value(cpu, self.signed(self.width(suffix) // 8), self.osize)
        if kind == "G":
            return self.register(self.modrm >> 3 & 7 | self.rex << 1 & 8, self.width(suffix))
        if kind == "B":
            return self.register(self.vvvv, self.width(suffix))
        if kind == "Z":
            return self.register(self.opcode & 7 | self.rex << 3 & 8, self.width(suffix))
        if kind == "O":
            return Memory(cpu, self.width(suffix), self.override(Seg.DS), self.take(self.asize // 8))
        if kind == "X":
            return Memory(cpu, self.width(suffix), self.override(Seg.DS), cpu.reg(Gpr.RSI, self.asize).zext(64))
        if kind == "Y":
            return Memory(cpu, self.width(suffix), Seg.ES, cpu.reg(Gpr.RDI, self.asize).zext(64))
        if kind in "EMR" and self.modrm >= 0xC0:
            return self.register(self.modrm & 7 | self.rex << 3 & 8, self.width(suffix))
        if kind in "EM":
            lanes = 2 if suffix == "dq" else 1
            return Late(self, self.width(suffix), self.override(self.default), self.address, lanes)
        raise Unknown(f"operand code {code}")

    def override(self, default: Seg) -> Seg:
        return default if self.segment is None else self.segment


class Late(Memory):
    """A ModRM operand: `offset` follows the registers."""

    def __init__(self, decoded: Decoded, width: int, segment: Seg, offset: int, lanes: int) -> None:
        super().__init__(decoded.cpu, width, segment, offset, lanes)
        self.decoded = decoded

    @property
    def offset(self) -> Bits:
        d = self.decoded
        if d.relative is not None:
            return self._offset
        total = d.displacement + sum(int(d.cpu.s.gpr[register]) * scale for register, scale in d.bases)
        return const(total & (1 << d.asize) - 1, 64)


class PlainTarget:
    """Runs cases; one whose encoding belongs to another family gives None."""

    name = "plain"

    def __init__(self, limit: int = 4096) -> None:
        self.trees = Trees()
        self.limit = limit

    def run(self, cases: Sequence[Case]) -> list[Outcome]:
        return [outcome for case in cases if (outcome := self.run_one(case)) is not None]

    def prepare(self, case: Case) -> PlainCpu:
        cpu = PlainCpu()
        cpu.limit = self.limit
        cpu.map(CODE, case.code)
        cpu.map(DATA)
        cpu.poke(WINDOW, case.memory)
        for number, value in enumerate(case.gpr):
            cpu.s.gpr[number] = value
        cpu.eflags = case.rflags | 0x200
        cpu.s.seg_base[Seg.FS], cpu.s.seg_base[Seg.GS] = FS_BASE, GS_BASE
        if case.mode is Mode.PROTECTED_16:
            for segment in (Seg.ES, Seg.CS, Seg.SS, Seg.DS):
                cpu.s.seg_base[segment] = case.mode.code_base if segment == Seg.CS else case.mode.data_base
                cpu.s.seg_limit[segment] = PAGE - 1
                cpu.s.seg_attr[segment] = int(Attr.P | Attr.S | 3)
        cpu.instruction_rip = case.mode.rip
        return cpu

    def run_one(self, case: Case) -> Outcome | None:
        cpu = self.prepare(case)
        vector: int | None = None
        rip = case.mode.rip
        try:
            while True:
                decoded = Decoded(self.trees, cpu, case.code, case.mode, rip)
                before = cpu.buffer.raw
                cpu.again, cpu.length = False, decoded.at
                cpu.flags.undefined.clear()
                decoded.definition.run(cpu, *decoded.operands)
                if not cpu.again:
                    break
            rip += decoded.at
        except Unknown:
            return None
        except GuestFault:
            vector = int(cpu.s.fault_vector)
            if vector == Vector.PF and not int(cpu.s.fault_error) & WRITE:
                vector, error = self.as_update(case, cpu, before)
                cpu.s.fault_error = error
        return Outcome(
            tuple(cpu.gprs()), rip, cpu.eflags, case.fxsave, cpu.peek(WINDOW, WINDOW_SIZE), vector,
            int(cpu.s.fault_error), int(cpu.s.fault_address), cpu.undefined,
        )  # fmt: skip

    def as_update(self, case: Case, cpu: PlainCpu, before: bytes) -> tuple[int, int]:
        """Vector and error code of a read that faulted: the write's, if the instruction would have written there."""
        with cpu.attempt():
            read, address = int(cpu.s.fault_error), int(cpu.s.fault_address)
            ctypes.memmove(cpu.buffer, before, len(before))
            cpu.tolerant = True
            decoded = Decoded(self.trees, cpu, case.code, case.mode, case.mode.rip)
            try:
                decoded.definition.run(cpu, *decoded.operands)
            except Unwind:
                vector, error = int(cpu.s.fault_vector), int(cpu.s.fault_error)
                if vector == Vector.GP or (vector == Vector.PF and int(cpu.s.fault_address) == address):
                    return vector, error
            finally:
                cpu.tolerant = False
            return int(Vector.PF), read
