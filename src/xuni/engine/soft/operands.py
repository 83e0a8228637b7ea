"""Operand codes of encodings (see isa/x86/instruction.py) as objects that read and write.

Register operands read their byte of the Op: an offset from the start of the general (or MMX, XMM) registers, so that AH
is just offset 1. Memory operands come in the forms that the decoder distinguishes (`records.Form`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xuni.engine.soft.memory import probe_write
from xuni.engine.soft.records import OFFSET, PAGE, Aux, Form
from xuni.isa.bits import Bits, const, select, u1, u64, vector
from xuni.isa.stage import staged, staging, unlikely
from xuni.isa.x86.exceptions import GuestFault, Vector
from xuni.isa.x86.instruction import Operand
from xuni.isa.x86.segment import segment_address
from xuni.isa.x86.state import Gpr, Seg, Slot, State

if TYPE_CHECKING:
    from xuni.engine.soft.cpu import SoftCpu


class Base:
    """What all operands share."""

    width = 0
    lanes = 1
    is_memory = False

    def __init__(self, cpu: SoftCpu, width: int, lanes: int = 1) -> None:
        self.cpu = cpu
        self.width = width
        self.lanes = lanes

    def read(self) -> Bits:
        raise AssertionError("this operand cannot be read")

    def write(self, value: Bits) -> None:
        raise AssertionError("this operand cannot be written")

    @property
    def offset(self) -> Bits:
        raise AssertionError("not a memory operand")

    def displaced(self, by: Bits) -> Operand:
        raise AssertionError("not a memory operand")

    @property
    def segment(self) -> Bits:
        raise AssertionError("not a memory operand")

    @property
    def index(self) -> Bits:
        raise AssertionError("not a numbered register")


class General(Base):
    """A general register: `field` of the Op has its byte offset."""

    def __init__(self, cpu: SoftCpu, width: int, field: str) -> None:
        super().__init__(cpu, width)
        self.field = field

    def _at(self) -> Bits:
        return getattr(self.cpu.op, self.field).zext(64)  # type: ignore[no-any-return]

    def read(self) -> Bits:
        return self.cpu.s.place.load(self._at(), self.width)

    def write(self, value: Bits) -> None:
        assert value.width == self.width, f"{value!r} written to {self.width} bits"
        self.cpu.s.place.store(self._at(), value.zext(64) if self.width == 32 else value)

    @property
    def index(self) -> Bits:
        """Its number (meaningful for 16 to 64-bit operands)."""
        return getattr(self.cpu.op, self.field) >> 3  # type: ignore[no-any-return]


class Fixed(Base):
    """A register that the opcode implies."""

    def __init__(self, cpu: SoftCpu, width: int, register: Gpr) -> None:
        super().__init__(cpu, width)
        self.register = register

    def read(self) -> Bits:
        return self.cpu.reg(self.register, self.width)

    def write(self, value: Bits) -> None:
        self.cpu.set_reg(self.register, value)


class Immediate(Base):
    """The immediate of the Op: sign- or zero-extended by the decoder."""

    def read(self) -> Bits:
        return self.cpu.op.imm.trunc(self.width)


class Constant(Base):
    """The operand `1` of shifts."""

    def read(self) -> Bits:
        return const(1, self.width)


class Numbered(Base):
    """A segment, control or debug register."""

    @property
    def index(self) -> Bits:
        return self.cpu.op.r


class Branch(Base):
    """A branch displacement; `cpu.branch` uses it."""


class FarPointer(Base):
    """ptr16:16 and ptr16:32: the offset is what `read` gives, the selector is `selector`."""

    def read(self) -> Bits:
        return self.cpu.op.imm.trunc(self.width)

    @property
    def selector(self) -> Bits:
        return self.cpu.op.imm.field(32, 16)


class XmmRegister(Base):
    """The low `width * lanes` bits of an XMM register."""

    array = "xmm"

    def __init__(self, cpu: SoftCpu, width: int, lanes: int, field: str) -> None:
        super().__init__(cpu, width, lanes)
        self.field = field

    def _at(self) -> Bits:
        return getattr(self.cpu.op, self.field).zext(64) + State.offset_of(self.array)  # type: ignore[no-any-return]

    def read(self) -> Bits:
        return self.cpu.s.place.load(self._at(), self.width, self.lanes)

    def write(self, value: Bits) -> None:
        assert value.width * value.lanes == self.width * self.lanes, f"{value!r} written to {self.width}x{self.lanes}"
        self.cpu.s.place.store(self._at(), value)

    @property
    def index(self) -> Bits:
        return getattr(self.cpu.op, self.field) >> 4  # type: ignore[no-any-return]


class MmxRegister(XmmRegister):
    """MM0-MM7 are the low 64 bits of the physical x87 registers; a write sets the rest of them to ones."""

    array = "st"

    def write(self, value: Bits) -> None:
        super().write(value)
        self.cpu.s.place.store(self._at() + 8, const(0xFFFF, 16))


class StackRegister(Base):
    """ST(i) of an x87 instruction: its number; x87.py knows the stack."""

    @property
    def index(self) -> Bits:
        return self.cpu.op.b >> 4


class Memory(Base):
    """The ModRM memory operand. `update`: it is read and written back, so its read faults as a write does."""

    is_memory = True

    def __init__(self, cpu: SoftCpu, width: int, lanes: int, form: Form, aligned: bool = False,
                 update: bool = False) -> None:  # fmt: skip
        super().__init__(cpu, width, lanes)
        self.form = form
        self.aligned = aligned
        self.update = update
        self._linear: Bits | None = None
        self._scope: tuple[int, ...] = ()
        self._old: Bits | None = None
        self._pointer: Bits | None = None
        self.was_read = False
        self.was_written = False

    @property
    def size(self) -> int:
        return self.width * self.lanes // 8

    @property
    def offset(self) -> Bits:
        """The effective address."""
        op, place = self.cpu.op, self.cpu.s.place
        address = place.load(op.b.zext(64), 64) + op.disp.sext(64)
        if self.form == Form.BASE:
            return address
        address = address + (place.load(op.x.zext(64), 64) << (op.scale.zext(64) & 3))
        if self.form == Form.INDEXED:
            return address
        relative = (op.aux & Aux.RIP_RELATIVE) != 0
        return self._wrapped(address + select(relative, op.offset.zext(64) + op.length.zext(64), u64(0)))

    def _wrapped(self, address: Bits) -> Bits:
        """Cut to the address size."""
        if self.form != Form.GENERAL:
            return address
        asize = self.cpu.op.aux & Aux.ASIZE
        return address & select(asize == 2, u64(-1), select(asize == 1, u64(0xFFFFFFFF), u64(0xFFFF)))

    def displaced(self, by: Bits) -> Operand:
        return Displaced(self, by, self.cpu.updating)

    @property
    def segment(self) -> Bits:
        number = (self.cpu.op.seg >> 3) - int(Slot.SEGMENT_BASE)
        stack = (self.cpu.op.aux & Aux.STACK) != 0
        default = select(stack, const(int(Seg.SS), 8), const(int(Seg.DS), 8))
        return select(self.cpu.op.seg == 8 * int(Slot.ZERO), default, number)

    def address(self, write: bool) -> Bits:
        """The linear address of the whole operand, computed once where that serves all that follows."""
        stage = staging()
        if self._linear is None or (stage is not None and not stage.sees(self._scope)):
            self._linear = self.compute_address(write)
            self._scope = () if stage is None else stage.scope
        return self._linear

    def compute_address(self, write: bool) -> Bits:
        if self.form == Form.BASE:
            linear = self.offset
        elif self.form == Form.INDEXED:
            linear = self.offset + self.cpu.s.place.load(self.cpu.op.seg.zext(64), 64)
        else:
            early = self.aligned and not self.cpu.long
            if early:  # before the segment's limit
                base = self.cpu.s.place.load((self.segment.zext(64) + int(Slot.SEGMENT_BASE)) << 3, 64)
                _check_aligned(self.cpu, self.offset + base, self.size)
            linear = segment_address(self.cpu, self.segment, self.offset, u64(self.size), u1(int(write)))
            if early:
                return linear
        if self.aligned:
            _check_aligned(self.cpu, linear, self.size)
        return linear

    def read(self) -> Bits:
        cpu = self.cpu
        self.was_read = True
        address = self.address(self.update)
        if not self.update:
            return cpu.load_current(address, self.width, self.lanes)
        self._pointer, old = cpu.load_update(address, self.width, self.lanes)
        if cpu.lock:
            self._old = old
        return old

    def write(self, value: Bits) -> None:
        assert value.width * value.lanes == self.width * self.lanes, f"{value!r} written to {self.width}x{self.lanes}"
        self.was_written = True
        cpu = self.cpu
        address = self.address(True)
        if not self.update:
            cpu.store_current(address, value)
        elif self._old is not None:
            cpu.exchange(self._pointer, address, self._old, value)
        else:
            cpu.store_update(self._pointer, address, value)


@staged
def _check_aligned(cpu: SoftCpu, address: Bits, size: int) -> None:
    if unlikely((address & (size - 1)) != 0):
        raise GuestFault(cpu, Vector.GP, 0)


class ExtendedMemory(Memory):
    """An 80-bit memory operand: 2 lanes of 64 bits, of which the upper one has 16 in use."""

    def __init__(self, cpu: SoftCpu, form: Form) -> None:
        super().__init__(cpu, 64, 2, form)

    @property
    def size(self) -> int:
        return 10

    def read(self) -> Bits:
        address = self.address(False)
        low = self.cpu.load_current(address, 64)
        return vector([low, self.cpu.load_current(address + 8, 16).zext(64)])

    def write(self, value: Bits) -> None:
        address = self.address(True)
        _probe_if_split(self.cpu, address, self.size)
        self.cpu.store_current(address, value.lane(0))
        self.cpu.store_current(address + 8, value.lane(1).trunc(16))


@staged
def _probe_if_split(cpu: SoftCpu, address: Bits, size: int) -> None:
    """A write that crosses a page may fault half-way: ask first."""
    if unlikely((address & OFFSET) + size > PAGE):
        probe_write(cpu, address, u64(size))


class Absolute(Memory):
    """moffs: memory at an immediate address."""

    @property
    def offset(self) -> Bits:
        return self.cpu.op.imm

    def address(self, write: bool) -> Bits:
        if self._linear is None:

            if self.cpu.long:
                self._linear = self.offset + self.cpu.s.place.load(self.cpu.op.seg.zext(64), 64)
            else:
                self._linear = segment_address(self.cpu, self.segment, self.offset, u64(self.size), u1(int(write)))
        return self._linear


class Displaced(Memory):
    """Memory some bytes away from another operand (bit strings)."""

    def __init__(self, base: Memory, by: Bits, update: bool) -> None:
        super().__init__(base.cpu, base.width, base.lanes, base.form, update=update)
        self.base = base
        self.by = by

    @property
    def offset(self) -> Bits:
        return self._wrapped(self.base.offset + self.by)

    @property
    def segment(self) -> Bits:
        return self.base.segment


class Indexed(Memory):
    """The operands of string instructions: DS:rSI (overridable) and ES:rDI."""

    def __init__(self, cpu: SoftCpu, width: int, register: Gpr) -> None:
        super().__init__(cpu, width, 1, Form.GENERAL)
        self.register = register

    @property
    def offset(self) -> Bits:
        return self.cpu.reg(self.register, self.cpu.asize).zext(64)

    @property
    def segment(self) -> Bits:
        if self.register == Gpr.RDI:
            return const(int(Seg.ES), 8)
        return self.cpu.data_segment

    def compute_address(self, write: bool) -> Bits:
        if self.cpu.long and self.register == Gpr.RDI:
            return self.offset
        if self.cpu.long:
            return self.offset + self.cpu.s.place.load(self.cpu.op.seg.zext(64), 64)
        return super().compute_address(write)


WIDTHS = {"b": 8, "w": 16, "wb": 24, "d": 32, "q": 64, "dq": 128, "ss": 32, "sd": 64, "x": 128, "xu": 128, "t": 80}


def width_of(code: str, osize: int) -> int:
    """Bits of an operand code's suffix."""
    if code in ("v", ""):
        return osize
    if code == "y":
        return 64 if osize == 64 else 32
    if code == "z":
        return 16 if osize == 16 else 32
    return WIDTHS[code]


def make(code: str, cpu: SoftCpu, form: Form, update: bool) -> Operand:
    """The operand that a code stands for in one handler."""
    fixed = {"AL": (8, Gpr.RAX), "CL": (8, Gpr.RCX), "AX": (16, Gpr.RAX), "DX": (16, Gpr.RDX), "EAX": (32, Gpr.RAX),
             "rAX": (cpu.osize, Gpr.RAX)}
    if code in fixed:
        return Fixed(cpu, *fixed[code])
    if code == "1":
        return Constant(cpu, 8)
    if code in ("ST0", "STi"):
        return StackRegister(cpu, 80)
    kind, suffix = code[0], code[1:]
    if kind == "I":
        return Immediate(cpu, {"bs": cpu.osize, "z": cpu.osize, "bu": 8}.get(suffix) or width_of(suffix, cpu.osize))
    if kind == "J":
        return Branch(cpu, cpu.osize)
    if kind == "A":
        return FarPointer(cpu, cpu.osize)
    if kind in "SCD":
        return Numbered(cpu, 8)
    if kind == "X":
        return Indexed(cpu, width_of(suffix, cpu.osize), Gpr.RSI)
    if kind == "Y":
        return Indexed(cpu, width_of(suffix, cpu.osize), Gpr.RDI)
    if kind == "O":
        return Absolute(cpu, width_of(suffix, cpu.osize), 1, Form.GENERAL)
    if kind in "GZB":
        return General(cpu, width_of(suffix, cpu.osize), {"G": "r", "Z": "b", "B": "v"}[kind])
    if kind in "VWU":
        width = width_of(suffix or "x", cpu.osize)
        width, lanes = (64, 2) if width == 128 else (width, 1)
        if kind == "V":
            return XmmRegister(cpu, width, lanes, "r")
        if kind == "U" or form == Form.REGISTER:
            return XmmRegister(cpu, width, lanes, "b")
        return Memory(cpu, width, lanes, form, aligned=suffix in ("x", ""), update=update)
    if kind in "PQN":
        width = width_of(suffix, cpu.osize)
        if kind in "PN" or form == Form.REGISTER:
            return MmxRegister(cpu, width, 1, "r" if kind == "P" else "b")
        return Memory(cpu, width, 1, form, update=update)
    assert kind in "EMR", f"unknown operand code {code}"
    if form == Form.REGISTER:
        return General(cpu, width_of(suffix, cpu.osize), "b")
    if suffix in ("", "p", "s"):
        return Memory(cpu, cpu.osize, 1, form, update=update)
    width = width_of(suffix, cpu.osize)
    if width == 80:
        return ExtendedMemory(cpu, form)
    width, lanes = (64, 2) if width == 128 else (width, 1)
    return Memory(cpu, width, lanes, form, aligned=suffix == "x", update=update)


