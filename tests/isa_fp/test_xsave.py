"""XSAVE and its kin, without a host: what the manual says about the image, the header and the faults."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from random import Random

import pytest

from tests.hardware import values
from tests.hardware.case import DATA, WINDOW
from xuni.isa.struct import PlainPlace
from xuni.isa.x86 import xsave
from xuni.isa.x86.exceptions import GuestFault, Vector
from xuni.isa.x86.state import Cr0, Cr4, Gpr, State

from . import image
from .bare import BareCpu, Memory, Window

AREA = DATA  # the start of the page: it lies below the window, at negative offsets
AT = AREA - WINDOW
HEADER, EXTENDED = AT + 512, AT + 576
INITIAL = 0x1F80
EVERYTHING = 0x203


class Machine:
    """A processor and its window of memory."""

    def __init__(self) -> None:
        self.buffer = (ctypes.c_uint8 * (State.SIZE + 16))()
        # SAFETY: the buffer lives as long as this object, which holds the state.
        self.state = State(PlainPlace((ctypes.addressof(self.buffer) + 15) // 16 * 16))
        self.memory = Window(bytes(1024 + 3072))
        self.cpu = BareCpu(self.state, self.memory)
        s = self.state
        s.cr0, s.cr4, s.xcr0 = Cr0.PE | Cr0.NE, Cr4.OSFXSR | Cr4.OSXSAVE, EVERYTHING  # type: ignore[assignment]
        s.mxcsr, s.fpu_control, s.fpu_tag = INITIAL, 0x37F, 0xFFFF  # type: ignore[assignment]
        self.cpu.osize = 64
        self.request(EVERYTHING)

    def fill(self, seed: int) -> bytes:
        """Random registers; gives their FXSAVE image."""
        before = values.fxsave(Random(seed), unmasked=False, x87=True)
        image.load(self.state, before)
        self.state.pkru = 0x55
        return before

    def request(self, components: int) -> None:
        self.state.gpr[Gpr.RAX], self.state.gpr[Gpr.RDX] = components, 0

    def run(self, instruction: object, address: int = AREA) -> None:
        instruction(self.cpu, Memory(self.cpu, address, 0, False))  # type: ignore[operator]

    def word(self, at: int) -> int:
        return int.from_bytes(self.memory[at : at + 8], "little")

    def put(self, at: int, value: int, size: int = 8) -> None:
        self.memory[at : at + size] = value.to_bytes(size, "little")

    def image(self) -> bytes:
        return image.store(self.state, bytes(512))


@pytest.fixture
def machine() -> Iterator[Machine]:
    yield Machine()


def named(name: str) -> object:
    from xuni.isa.x86.instruction import DEFINITIONS

    return next(d.run for d in DEFINITIONS if d.name == name)


def expect_fault(machine: Machine, vector: Vector, name: str, address: int = AREA) -> None:
    with pytest.raises(GuestFault):
        machine.run(named(name), address)
    assert int(machine.state.fault_vector) == vector


@pytest.mark.parametrize("save", ["XSAVE", "XSAVEOPT", "XSAVEC", "XSAVES"])
def test_what_is_saved_comes_back(machine: Machine, save: str) -> None:
    machine.fill(1)
    before = machine.image()
    machine.run(named(save))
    machine.fill(2)
    machine.state.pkru = 0
    machine.run(named("XRSTORS" if save == "XSAVES" else "XRSTOR"))
    assert machine.image() == before
    assert int(machine.state.pkru) == 0x55


def test_the_compacted_format_has_no_holes(machine: Machine) -> None:
    machine.fill(3)
    machine.run(named("XSAVEC"))
    assert machine.word(HEADER) == EVERYTHING
    assert machine.word(HEADER + 8) == EVERYTHING | 1 << 63
    assert machine.word(EXTENDED) == 0x55


def test_components_not_asked_for_stay_as_they_are(machine: Machine) -> None:
    machine.fill(4)
    machine.put(HEADER, 0x203)
    machine.request(1)
    machine.run(named("XSAVE"))
    assert machine.word(HEADER) == 0x203
    assert machine.memory[AT + 160 : AT + 416] == bytes(256)
    assert machine.memory[AT + 24 : AT + 32] == bytes(8)  # MXCSR
    assert machine.memory[AT : AT + 2] != bytes(2)


def test_absent_components_are_initialized(machine: Machine) -> None:
    machine.fill(5)
    machine.put(AT + 24, 0x1F80, 4)
    machine.run(named("XRSTOR"))
    s = machine.state
    assert (int(s.fpu_control), int(s.fpu_status), int(s.fpu_tag), int(s.mxcsr)) == (0x37F, 0, 0xFFFF, INITIAL)
    assert all(s.xmm[n].raw == (0, 0) for n in range(16))
    assert int(s.pkru) == 0


def test_optimized_saving_skips_what_is_in_its_initial_state(machine: Machine) -> None:
    machine.put(AT, 0x1234, 2)
    machine.run(named("XSAVEOPT"))
    assert machine.memory[AT : AT + 2] == b"\x34\x12"
    assert machine.word(HEADER) == 0


@pytest.mark.parametrize(("at", "value"), [(HEADER, 1 << 5), (HEADER + 8, 1), (HEADER + 16, 1), (AT + 24, 1 << 16)])
def test_a_bad_image_is_a_protection_fault_and_changes_nothing(machine: Machine, at: int, value: int) -> None:
    machine.fill(6)
    before = machine.image()
    machine.put(HEADER, 3)
    machine.put(at, value)
    expect_fault(machine, Vector.GP, "XRSTOR")
    assert machine.image() == before


def test_where_the_instructions_are_refused(machine: Machine) -> None:
    expect_fault(machine, Vector.GP, "XSAVE", AREA + 16)
    expect_fault(machine, Vector.GP, "FXSAVE", AREA + 8)
    machine.state.cpl = 3
    expect_fault(machine, Vector.GP, "XSAVES")
    machine.state.cr0 = Cr0.PE | Cr0.TS
    expect_fault(machine, Vector.NM, "XSAVE")
    machine.state.cr4 = 0
    expect_fault(machine, Vector.UD, "XSAVE")


def test_compaction_must_be_announced_to_xrstors(machine: Machine) -> None:
    expect_fault(machine, Vector.GP, "XRSTORS")


@pytest.mark.parametrize(("value", "allowed"), [(1, True), (3, True), (0x203, True), (2, False), (0x401, False),
                                                   (5, False)])  # fmt: skip
def test_xcr0_takes_what_is_possible(machine: Machine, value: int, allowed: bool) -> None:
    machine.request(value)
    machine.state.gpr[Gpr.RCX] = 0
    if allowed:
        xsave.xsetbv(machine.cpu)
        assert int(machine.state.xcr0) == value
        xsave.xgetbv(machine.cpu)
        assert int(machine.state.gpr[Gpr.RAX]) == value
    else:
        with pytest.raises(GuestFault):
            xsave.xsetbv(machine.cpu)
        assert int(machine.state.xcr0) == EVERYTHING


def test_an_image_is_what_fxsave_writes(machine: Machine) -> None:
    machine.fill(7)
    machine.run(named("FXSAVE"))
    assert bytes(machine.memory[AT : AT + 512]) == machine.image()
