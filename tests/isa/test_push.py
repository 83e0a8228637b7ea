"""The stack: what is pushed, where RSP is when something faults, and who may change which flag."""

from __future__ import annotations

import pytest

from tests.isa.plain import Memory, PlainCpu, Register, Value, run
from xuni.isa.bits import Bits, const
from xuni.isa.x86.exceptions import GuestFault, Vector
from xuni.isa.x86.state import Attr, Cr4, Eflags, Gpr, Seg

TOP = 0x1800
IF, IOPL, VM, VIF, VIP, TF, AC, NT = (
    int(f) for f in (Eflags.IF, Eflags.IOPL, Eflags.VM, Eflags.VIF, Eflags.VIP, Eflags.TF, Eflags.AC, Eflags.NT)
)


def fresh(osize: int = 64) -> PlainCpu:
    cpu = PlainCpu()
    cpu.long, cpu.osize = osize == 64, osize
    cpu.map(0x1000)
    cpu.s.gpr[Gpr.RSP] = TOP
    return cpu


def top(cpu: PlainCpu, size: int = 8) -> int:
    return int.from_bytes(cpu.peek(int(cpu.s.gpr[Gpr.RSP]), size), "little")


def test_push_and_pop_of_the_stack_pointer() -> None:
    cpu = fresh()
    run(cpu, "PUSH", Register(cpu, Gpr.RSP, 64))
    assert top(cpu) == TOP and int(cpu.rsp) == TOP - 8  # the value before
    run(cpu, "POP", Register(cpu, Gpr.RSP, 64), encoding="58")
    assert int(cpu.rsp) == TOP
    cpu.poke(TOP, b"\x34\x12")
    run(cpu, "POP", Register(cpu, Gpr.RSP, 16), encoding="58")
    assert int(cpu.rsp) == 0x1234


def test_a_narrow_stack_pointer_wraps_and_keeps_its_upper_half() -> None:
    cpu = fresh(16)
    cpu.s.seg_attr[Seg.SS] = int(Attr.P | Attr.S | 3)
    cpu.map(0xF000)
    cpu.s.gpr[Gpr.RSP] = 0xABCD_0000
    run(cpu, "PUSH", Value(cpu, 0x1234, 16))
    assert int(cpu.rsp) == 0xABCD_FFFE and cpu.peek(0xFFFE, 2) == b"\x34\x12"


class AtTop(Memory):
    """[rsp + 8]"""

    @property
    def offset(self) -> Bits:
        return self.cpu.rsp + 8


def test_pop_computes_an_address_from_rsp_after_the_increment() -> None:
    cpu = fresh()
    cpu.poke(TOP, b"\x77")
    run(cpu, "POP", AtTop(cpu, 64, Seg.SS, 0), encoding="8F")
    assert cpu.peek(TOP + 16, 1) == b"\x77" and int(cpu.rsp) == TOP + 8
    cpu.s.gpr[Gpr.RSP] = 0x1FF0  # [rsp + 8] is then in the next page
    with pytest.raises(GuestFault):
        run(cpu, "POP", AtTop(cpu, 64, Seg.SS, 0), encoding="8F")
    assert int(cpu.rsp) == 0x1FF0 and int(cpu.s.fault_address) == 0x2000


@pytest.mark.parametrize("osize", [16, 32])
def test_all_registers(osize: int) -> None:
    cpu = fresh(osize)
    for n in range(8):
        if n != Gpr.RSP:
            cpu.s.gpr[n] = 0x1111_1111 * n
    before = cpu.gprs()
    run(cpu, "PUSHA")
    pushed = [int.from_bytes(cpu.peek(TOP - osize // 8 * (n + 1), osize // 8), "little") for n in range(8)]
    assert pushed == [value & (1 << osize) - 1 for value in before[:8]]
    for n in range(8):
        if n != Gpr.RSP:
            cpu.s.gpr[n] = 0
    run(cpu, "POPA")
    keep = 0 if osize == 16 else 0xFFFF_0000
    assert cpu.gprs()[:8] == [b if n == Gpr.RSP else b & (0xFFFF | keep) for n, b in enumerate(before[:8])]


def test_pusha_that_faults_halfway_does_not_move_rsp() -> None:
    cpu = fresh(32)
    cpu.s.gpr[Gpr.RSP] = 0x1010
    with pytest.raises(GuestFault):
        run(cpu, "PUSHA")
    assert int(cpu.rsp) == 0x1010


@pytest.mark.parametrize(
    ("cpl", "iopl", "changed"),
    [(0, 0, IF | IOPL), (0, 3, IF | IOPL), (3, 3, IF), (3, 2, 0), (2, 2, IF), (1, 0, 0)],
)
def test_popf_by_privilege(cpl: int, iopl: int, changed: int) -> None:
    always = int(0x8D5 | TF | Eflags.DF | NT | AC | Eflags.ID)
    for value in (0, 0xFFFF_FFFF):
        cpu = fresh()
        cpu.s.cpl = cpl
        cpu.eflags = iopl << 12 | (IF if value == 0 else 0)
        before = cpu.eflags
        cpu.poke(TOP, value.to_bytes(8, "little"))
        run(cpu, "POPF")
        assert cpu.eflags == before & ~(always | changed) | value & (always | changed)
        assert int(cpu.rsp) == TOP + 8
        assert cpu.modes_changed == (value != 0)


def test_a_16_bit_popf_leaves_the_upper_flags() -> None:
    cpu = fresh()
    cpu.osize = 16
    cpu.eflags = AC | VIP
    cpu.poke(TOP, b"\0\0\0\0")
    run(cpu, "POPF")
    assert cpu.eflags & (AC | VIP) == AC | VIP and cpu.modes_changed == 0


def test_pushf_hides_vm_and_rf() -> None:
    cpu = fresh()
    cpu.eflags = int(Eflags.RF | Eflags.CF | AC)
    run(cpu, "PUSHF")
    assert top(cpu) == 2 | 1 | AC


def virtual(osize: int, iopl: int, more: int = 0, vme: bool = True) -> PlainCpu:
    cpu = fresh(osize)
    cpu.s.cr4 = int(Cr4.VME) if vme else 0
    cpu.eflags = VM | iopl << 12 | more
    return cpu


def test_virtual_8086_flags() -> None:
    # IOPL 3: IF itself, not IOPL
    cpu = virtual(16, 3)
    cpu.poke(TOP, (IF).to_bytes(2, "little"))
    run(cpu, "POPF")
    assert cpu.eflags & (IF | IOPL | VIF) == IF | IOPL
    # below 3, VME: IF stands for VIF, IOPL reads 3
    cpu = virtual(16, 0, IF)
    cpu.poke(TOP, (IF).to_bytes(2, "little"))
    run(cpu, "POPF")
    assert cpu.eflags & (IF | VIF | IOPL) == IF | VIF
    run(cpu, "PUSHF")
    assert top(cpu, 2) & (IF | IOPL) == IF | IOPL
    cpu.eflags = VM | IF
    run(cpu, "PUSHF")
    assert top(cpu, 2) & (IF | IOPL) == IOPL


@pytest.mark.parametrize(
    ("osize", "more", "vme", "value"),
    [(16, 0, False, 0), (32, 0, True, 0), (16, VIP, True, IF), (16, 0, True, TF)],
    ids=["no VME", "32 bits", "interrupt pending", "TF"],
)
def test_virtual_8086_popf_that_the_monitor_must_see(osize: int, more: int, vme: bool, value: int) -> None:
    cpu = virtual(osize, 0, more, vme)
    cpu.poke(TOP, value.to_bytes(2, "little"))
    before = cpu.eflags
    with pytest.raises(GuestFault):
        run(cpu, "POPF")
    assert (int(cpu.s.fault_vector), int(cpu.s.fault_error)) == (Vector.GP, 0)
    assert int(cpu.rsp) == TOP and cpu.eflags == before


def test_frames() -> None:
    cpu = fresh()
    cpu.s.gpr[Gpr.RBP] = 0x1900
    cpu.poke(0x1900 - 8, b"\x11")  # the enclosing frame's pointers
    cpu.poke(0x1900 - 16, b"\x22")
    run(cpu, "ENTER", Value(cpu, 3 << 16 | 0x20, 24))
    slots = [int.from_bytes(cpu.peek(TOP - 8 * n, 8), "little") for n in range(1, 5)]
    assert slots == [0x1900, 0x11, 0x22, TOP - 8]
    assert (int(cpu.s.gpr[Gpr.RBP]), int(cpu.rsp)) == (TOP - 8, TOP - 32 - 0x20)
    run(cpu, "LEAVE")
    assert (int(cpu.s.gpr[Gpr.RBP]), int(cpu.rsp)) == (0x1900, TOP)


def test_enter_probes_the_new_top_of_the_stack() -> None:
    cpu = fresh()
    with pytest.raises(GuestFault):
        run(cpu, "ENTER", Value(cpu, 0x1000, 24))
    assert int(cpu.rsp) == TOP and int(cpu.s.fault_error) & 2


def test_leave_that_faults_leaves_no_trace() -> None:
    cpu = fresh()
    cpu.s.gpr[Gpr.RBP] = 0x9000
    with pytest.raises(GuestFault):
        run(cpu, "LEAVE")
    assert (int(cpu.s.gpr[Gpr.RBP]), int(cpu.rsp)) == (0x9000, TOP)


def test_bound() -> None:
    cpu = fresh(32)
    cpu.asize = 32
    cpu.poke(0x1000, (-5 % (1 << 32)).to_bytes(4, "little") + (9).to_bytes(4, "little"))
    for index, inside in ((-6, False), (-5, True), (0, True), (9, True), (10, False)):
        cpu.s.gpr[Gpr.RCX] = const(index, 32).zext(64)
        operands = Register(cpu, Gpr.RCX, 32), Memory(cpu, 32, Seg.DS, 0x1000)
        if inside:
            run(cpu, "BOUND", *operands)
        else:
            with pytest.raises(GuestFault):
                run(cpu, "BOUND", *operands)
            assert int(cpu.s.fault_vector) == Vector.BR
