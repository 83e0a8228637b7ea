"""A processor over plain ints with flat memory, and one that only compiles: what the tests of this folder run on."""

from __future__ import annotations

import ctypes
from typing import NoReturn

from xuni.isa.bits import Bits, const, mask, u1, u64
from xuni.isa.compiler import Stage
from xuni.isa.stage import Unreachable, Unwind
from xuni.isa.struct import Place, PlainPlace, StagedPlace, place_at
from xuni.isa.x86 import features
from xuni.isa.x86.cpu import Cpu
from xuni.isa.x86.exceptions import GuestFault, Vector
from xuni.isa.x86.paging import Access, walk
from xuni.isa.x86.segment import segment_address
from xuni.isa.x86.state import Attr, Cr0, Efer, Gpr, Seg, State

MEMORY_SIZE = 1 << 20


class Shutdown(Unwind):
    """Triple fault."""

    code = 4


class Memory:
    """Flat memory from physical address 0; outside it reads give all ones."""

    def __init__(self, size: int = MEMORY_SIZE) -> None:
        self.data = bytearray(size)

    def read(self, address: int, size: int) -> int:
        if address + size > len(self.data):
            return mask(8 * size)
        return int.from_bytes(self.data[address : address + size], "little")

    def write(self, address: int, value: int, size: int) -> None:
        if address + size <= len(self.data):
            self.data[address : address + size] = value.to_bytes(size, "little")


class PlainCpu(Cpu):
    """The reference processor of the tests."""

    def __init__(self, ram: Memory | None = None) -> None:
        # SAFETY: `storage` lives as long as this object, which alone uses the place.
        self.storage = ctypes.create_string_buffer(State.SIZE + 64)
        base = (ctypes.addressof(self.storage) + 63) & ~63
        super().__init__(State(PlainPlace(base)))
        self.ram = ram or Memory()
        self.log: list[tuple[object, ...]] = []  # what the semantics told the engine
        self.ports: dict[int, int] = {}
        self.msrs: dict[int, int] = {}
        self.features = {f.name for f in features.FEATURES if f.default}
        self.ns = 1000
        s = self.s
        s.eflags = 2
        s.physical_mask = mask(40)
        s.cr0 = int(Cr0.ET)
        for seg in Seg:
            s.seg_limit[seg] = 0xFFFF
            s.seg_attr[seg] = 0x9B if seg == Seg.CS else 0x93
        self.length = 2  # of the instruction under test

    # -- set-up --------------------------------------------------------------------------------------------------------
    def enter_protected(self, cpl: int = 0, db: int = 1) -> None:
        """Flat 4 GiB segments."""
        s = self.s
        s.cr0 = int(s.cr0) | Cr0.PE
        s.cpl = cpl
        self.long = False
        for seg in range(6):
            kind = 0xB if seg == Seg.CS else 3
            s.seg_attr[seg] = kind | Attr.S | cpl << 5 | Attr.P | Attr.G | (Attr.DB if db else 0)
            s.seg_limit[seg] = 0xFFFFFFFF
            s.seg_base[seg] = 0
            s.seg_selector[seg] = (8 if seg == Seg.CS else 16) | cpl

    def enter_long(self, cpl: int = 0) -> None:
        """64-bit mode; the caller supplies page tables (`identity_map`)."""
        self.enter_protected(cpl)
        s = self.s
        s.seg_attr[Seg.CS] = 0xB | Attr.S | cpl << 5 | Attr.P | Attr.G | Attr.L
        s.cr0 = int(s.cr0) | Cr0.PG
        s.cr4 = int(s.cr4) | 0x20
        s.efer = int(s.efer) | Efer.LME | Efer.LMA
        self.long = True
        self.osize = 64

    def identity_map(self, at: int, flags: int = 7) -> None:
        """4-level tables of 2M pages for the first GiB, in three pages at `at`."""
        self.ram.write(at, at + 0x1000 | flags, 8)
        self.ram.write(at + 0x1000, at + 0x2000 | flags, 8)
        for i in range(512):
            self.ram.write(at + 0x2000 + 8 * i, i << 21 | flags | 0x80, 8)
        self.s.cr3 = at

    # -- memory --------------------------------------------------------------------------------------------------------
    def _bytes(self, linear: int, size: int, access: int) -> list[int]:
        found = []
        wrap = mask(64) if self.is_long_mode else mask(32)
        for i in range(size):
            at, _ = walk(self, u64((linear + i) & wrap), u64(access))
            found.append(int(at))
        return found

    @property
    def is_long_mode(self) -> bool:
        return bool(self.s.efer & Efer.LMA)

    def _read(self, linear: int, width: int, access: int) -> Bits:
        places = self._bytes(linear, width // 8, access)
        return const(sum(self.ram.read(at, 1) << (8 * i) for i, at in enumerate(places)), width)

    def _write(self, linear: int, value: Bits, access: int) -> None:
        for i, at in enumerate(self._bytes(linear, value.width // 8, access | Access.WRITE)):
            self.ram.write(at, int(value) >> (8 * i) & 0xFF, 1)

    def _user(self) -> int:
        return int(Access.USER) if int(self.s.cpl) == 3 else 0

    def load(self, segment: int | Bits, offset: Bits, width: int, lanes: int = 1) -> Bits:
        seg = const(int(segment), 8)
        return self._read(int(segment_address(self, seg, offset, u64(width // 8), u1(0))), width, self._user())

    def store(self, segment: int | Bits, offset: Bits, value: Bits) -> None:
        at = segment_address(self, const(int(segment), 8), offset, u64(value.width // 8), u1(1))
        self._write(int(at), value, self._user())

    def load_linear(self, address: Bits, width: int, system: bool = True) -> Bits:
        return self._read(int(address), width, int(Access.IMPLICIT) if system else self._user())

    def store_linear(self, address: Bits, value: Bits, system: bool = True) -> None:
        self._write(int(address), value, int(Access.IMPLICIT) if system else self._user())

    def load_physical(self, address: Bits, width: int) -> Bits:
        return const(self.ram.read(int(address), width // 8), width)

    def store_physical(self, address: Bits, value: Bits) -> None:
        self.ram.write(int(address), int(value), value.width // 8)

    def mark_entry(self, address: Bits, entry: Bits, flags: Bits) -> Bits:
        size = entry.width // 8
        same = self.ram.read(int(address), size) == int(entry)
        if same:
            self.ram.write(int(address), int(entry) | int(flags), size)
        return u1(int(same))

    # -- the stack and RIP ---------------------------------------------------------------------------------------------
    def _stack_width(self) -> int:
        if self.long:
            return 64
        return 32 if self.s.seg_attr[Seg.SS] & Attr.DB else 16

    def push(self, value: Bits) -> None:
        width = self._stack_width()
        top = self.reg(Gpr.RSP, width) - value.width // 8
        self.store(Seg.SS, top.zext(64), value)
        self.set_reg(Gpr.RSP, top)

    def pop(self, width: int) -> Bits:
        stack = self._stack_width()
        top = self.reg(Gpr.RSP, stack)
        value = self.load(Seg.SS, top.zext(64), width)
        self.set_reg(Gpr.RSP, top + width // 8)
        return value

    @property
    def rip(self) -> Bits:
        return self.s.rip

    @property
    def next_rip(self) -> Bits:
        return self.s.rip + self.length

    def jump(self, target: Bits) -> None:
        if self.long:
            if int(target.field(0, 48).sext(64)) != int(target):
                raise GuestFault(self, Vector.GP, 0)
        elif int(target) > int(self.s.seg_limit[Seg.CS]):
            raise GuestFault(self, Vector.GP, 0)
        self.s.rip = target

    # -- the engine ----------------------------------------------------------------------------------------------------
    def flush_tlb(self) -> None:
        self.log.append(("flush",))

    def flush_tlb_nonglobal(self) -> None:
        self.log.append(("flush nonglobal",))

    def flush_tlb_page(self, address: Bits) -> None:
        self.log.append(("flush page", int(address)))

    def mode_changed(self) -> None:
        self.log.append(("mode",))
        self.long = self.is_long_mode and bool(self.s.seg_attr[Seg.CS] & Attr.L)

    def commit(self) -> None:
        self.log.append(("commit",))

    def repeat(self) -> None:
        self.log.append(("repeat",))

    def port_in(self, port: Bits, width: int) -> Bits:
        return const(self.ports.get(int(port), mask(width)), width)

    def port_out(self, port: Bits, value: Bits) -> None:
        self.log.append(("out", int(port), int(value), value.width))

    def chip_msr_read(self, index: Bits) -> Bits:
        return u64(self.msrs.get(int(index), 0))

    def chip_msr_write(self, index: Bits, value: Bits) -> None:
        self.msrs[int(index)] = int(value)

    def tpr_read(self) -> Bits:
        return u64(self.msrs.get(-8, 0))

    def tpr_write(self, value: Bits) -> None:
        self.msrs[-8] = int(value)

    def hypercall(self, width: Bits) -> Bits:
        self.log.append(("hypercall", int(width)))
        return u64(-22)

    def halt(self) -> None:
        self.log.append(("halt",))

    def shutdown(self) -> NoReturn:
        raise Shutdown

    def clock(self) -> Bits:
        return u64(self.ns)

    def random(self) -> Bits:
        return u64(4)

    def at(self, pointer: Bits) -> Place:
        return place_at(None, pointer)

    def has_feature(self, name: str) -> Bits:
        assert name in features.BY_NAME, name
        return u1(name in self.features)


class StagedCpu(Cpu):
    """Compiles: memory and the engine are external functions."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(State(StagedPlace(stage, "%s")))
        self.stage = stage

    def _call(self, name: str, width: int, *args: Bits | int) -> Bits:
        bits = [a if isinstance(a, Bits) else const(a, 64) for a in args]
        code, lift = self.stage.code, self.stage.llvm.lift
        result = f"i{width}" if width else "void"
        types = ", ".join(["ptr", *(f"i{b.width}" for b in bits)])
        symbol = "_".join([name, result, *(str(b.width) for b in bits)])
        code.declare(f"declare dso_local {result} @{symbol}({types})")
        call = f"call {result} @{symbol}({', '.join(['ptr %s', *(f'i{b.width} {lift(b)}' for b in bits)])})"
        if width:
            return self.stage.llvm.wrap(width, call)
        code.emit(call)
        return u64(0)

    @property
    def rip(self) -> Bits:
        return self._call("rip", 64)

    @property
    def next_rip(self) -> Bits:
        return self._call("next_rip", 64)

    def jump(self, target: Bits) -> None:
        self._call("jump", 0, target)

    def load(self, segment: int | Bits, offset: Bits, width: int, lanes: int = 1) -> Bits:
        assert offset.width == 64
        return self._call("load", width, segment, offset)

    def store(self, segment: int | Bits, offset: Bits, value: Bits) -> None:
        assert offset.width == 64
        self._call("store", 0, segment, offset, value)

    def load_linear(self, address: Bits, width: int, system: bool = True) -> Bits:
        assert address.width == 64
        return self._call("load_linear", width, address, int(system))

    def store_linear(self, address: Bits, value: Bits, system: bool = True) -> None:
        assert address.width == 64
        self._call("store_linear", 0, address, value, int(system))

    def load_physical(self, address: Bits, width: int) -> Bits:
        return self._call("load_physical", width, address)

    def store_physical(self, address: Bits, value: Bits) -> None:
        self._call("store_physical", 0, address, value)

    def mark_entry(self, address: Bits, entry: Bits, flags: Bits) -> Bits:
        assert address.width == 64
        return self._call("mark_entry", 1, address, entry, flags)

    def push(self, value: Bits) -> None:
        self._call("push", 0, value)

    def pop(self, width: int) -> Bits:
        return self._call("pop", width)

    def flush_tlb(self) -> None:
        self._call("flush_tlb", 0)

    def flush_tlb_nonglobal(self) -> None:
        self._call("flush_tlb_nonglobal", 0)

    def flush_tlb_page(self, address: Bits) -> None:
        self._call("flush_tlb_page", 0, address)

    def mode_changed(self) -> None:
        self._call("mode_changed", 0)

    def commit(self) -> None:
        self._call("commit", 0)

    def repeat(self) -> None:
        self._call("repeat", 0)

    @property
    def iteration_limit(self) -> Bits:
        return self._call("iteration_limit", 64)

    def port_in(self, port: Bits, width: int) -> Bits:
        assert port.width == 16
        return self._call("port_in", width, port)

    def port_out(self, port: Bits, value: Bits) -> None:
        assert port.width == 16
        self._call("port_out", 0, port, value)

    def chip_msr_read(self, index: Bits) -> Bits:
        assert index.width == 32
        return self._call("chip_msr_read", 64, index)

    def chip_msr_write(self, index: Bits, value: Bits) -> None:
        assert (index.width, value.width) == (32, 64)
        self._call("chip_msr_write", 0, index, value)

    def tpr_read(self) -> Bits:
        return self._call("tpr_read", 64)

    def tpr_write(self, value: Bits) -> None:
        assert value.width == 64
        self._call("tpr_write", 0, value)

    def hypercall(self, width: Bits) -> Bits:
        assert width.width == 64
        return self._call("hypercall", 64, width)

    def halt(self) -> None:
        self._call("halt", 0)

    def shutdown(self) -> NoReturn:
        self._call("shutdown", 0)
        self.stage.code.end("unreachable")
        raise Unreachable

    def clock(self) -> Bits:
        return self._call("clock", 64)

    def random(self) -> Bits:
        return self._call("random", 64)

    def at(self, pointer: Bits) -> Place:
        return place_at(self.stage, pointer)

    def has_feature(self, name: str) -> Bits:
        number = features.BY_NAME[name].number
        return self.s.features[number // 64][number % 64]


class StagedOperand:
    """An operand of a definition that is compiled alone."""

    lanes = 1

    def __init__(self, cpu: StagedCpu, code: str, width: int, is_memory: bool) -> None:
        self.cpu = cpu
        self.code = code
        self.width = width
        self.is_memory = is_memory

    def read(self) -> Bits:
        return self.cpu._call(f"read_{self.code}", self.width)

    def write(self, value: Bits) -> None:
        assert value.width == self.width, f"{self.code} has {self.width} bits, not {value.width}"
        self.cpu._call(f"write_{self.code}", 0, value)

    @property
    def offset(self) -> Bits:
        assert self.is_memory
        return self.cpu._call(f"offset_{self.code}", 64)

    @property
    def segment(self) -> Bits:
        assert self.is_memory
        return self.cpu._call(f"segment_{self.code}", 8)

    @property
    def index(self) -> Bits:
        return self.cpu._call(f"index_{self.code}", 8)

    @property
    def selector(self) -> Bits:
        assert self.code == "Ap"
        return self.cpu._call("selector", 16)
