"""Moves, exchanges, conditions."""

from __future__ import annotations

import pytest

from tests.isa.plain import Memory, PlainCpu, Register, Value, run
from xuni.isa.x86.flags import Condition
from xuni.isa.x86.state import Eflags, Gpr, Seg

RBX = 0xFFFF_FFFF_8899_AABB


def fresh() -> PlainCpu:
    cpu = PlainCpu()
    cpu.s.gpr[Gpr.RAX], cpu.s.gpr[Gpr.RBX] = 0x1122_3344_5566_7788, RBX
    return cpu


def holds(condition: Condition, flags: int) -> bool:
    """SDM vol. 1, appendix B, table B-1."""
    cf, pf, zf, sf, of = (bool(flags & 1 << n) for n in (0, 2, 6, 7, 11))
    positive = [of, cf, zf, cf or zf, sf, pf, sf != of, zf or sf != of][condition >> 1]
    return positive != bool(condition & 1)


@pytest.mark.parametrize("condition", Condition)
def test_conditions(condition: Condition) -> None:
    for bits in range(32):
        flags = sum((bits >> i & 1) << n for i, n in enumerate((0, 2, 6, 7, 11)))
        cpu = fresh()
        cpu.eflags = flags
        run(cpu, f"SET{condition.name}", Register(cpu, Gpr.RCX, 8))
        assert int(cpu.s.gpr[Gpr.RCX]) == holds(condition, flags)
        run(cpu, f"CMOV{condition.name}", Register(cpu, Gpr.RAX, 32), Register(cpu, Gpr.RBX, 32))
        assert int(cpu.s.gpr[Gpr.RAX]) == (0x8899_AABB if holds(condition, flags) else 0x5566_7788)  # zero-extended


def test_extensions() -> None:
    cpu = fresh()
    for name, width, source, expected in (
        ("MOVZX", 32, 8, 0xBB), ("MOVSX", 32, 8, 0xFFFF_FFBB), ("MOVSX", 64, 16, 0xFFFF_FFFF_FFFF_AABB),
        ("MOVSXD", 64, 32, RBX), ("MOV", 32, 32, 0x8899_AABB), ("MOVZX", 64, 16, 0xAABB),
    ):  # fmt: skip
        run(cpu, name, Register(cpu, Gpr.RCX, width), Register(cpu, Gpr.RBX, source))
        assert int(cpu.s.gpr[Gpr.RCX]) == expected
    run(cpu, "MOVSX", Register(cpu, Gpr.RAX, 16), Register(cpu, Gpr.RBX, 8))
    assert int(cpu.s.gpr[Gpr.RAX]) == 0x1122_3344_5566_FFBB


def test_lea_cuts_the_address_and_reads_nothing() -> None:
    cpu = fresh()
    nowhere = Memory(cpu, 32, Seg.DS, 0xFFFF_8000_1234_5678)
    for width, expected in ((64, 0xFFFF_8000_1234_5678), (32, 0x1234_5678)):
        run(cpu, "LEA", Register(cpu, Gpr.RAX, width), nowhere)
        assert int(cpu.s.gpr[Gpr.RAX]) == expected


def test_exchange_and_byte_order() -> None:
    cpu = fresh()
    run(cpu, "XCHG", Register(cpu, Gpr.RAX, 8, high=True), Register(cpu, Gpr.RBX, 8))
    assert (int(cpu.reg(Gpr.RAX, 16)), int(cpu.reg(Gpr.RBX, 8))) == (0xBB88, 0x77)
    run(cpu, "BSWAP", Register(cpu, Gpr.RAX, 64))
    assert int(cpu.s.gpr[Gpr.RAX]) == 0x88BB_6655_4433_2211
    cpu.map(0x1000, bytes(range(8)))
    run(cpu, "MOVBE", Register(cpu, Gpr.RAX, 32), Memory(cpu, 32, Seg.DS, 0x1001))
    assert int(cpu.s.gpr[Gpr.RAX]) == 0x0102_0304


def test_xlat_adds_al_to_rbx_and_wraps_at_the_address_size() -> None:
    cpu = fresh()
    cpu.map(0x0000, bytes(range(200)))
    for cpu.asize, rbx in ((64, 20), (32, 0xFFFF_FFFF_0000_0014), (16, 0xFFF4)):
        cpu.s.gpr[Gpr.RBX], cpu.s.gpr[Gpr.RAX] = rbx, 0xAA20
        run(cpu, "XLAT", Memory(cpu, 8, Seg.DS, 0))
        assert int(cpu.s.gpr[Gpr.RAX]) == 0xAA00 + (rbx + 0x20 & (1 << cpu.asize) - 1)


def test_flag_bits_in_ah() -> None:
    cpu = fresh()
    for value in (0, 0xFF, 0x55, 0xAA):
        cpu.eflags = int(Eflags.OF)
        cpu.s.gpr[Gpr.RAX] = value << 8 | 7
        run(cpu, "SAHF")
        assert cpu.eflags & 0x8D5 == (value & 0xD5) | Eflags.OF
        cpu.s.gpr[Gpr.RAX] = 7
        run(cpu, "LAHF")
        assert int(cpu.s.gpr[Gpr.RAX]) == ((value & 0xD5) | 2) << 8 | 7


def test_carry_and_direction() -> None:
    cpu = fresh()
    for name, carry in (("STC", 1), ("CMC", 0), ("CMC", 1), ("CLC", 0)):
        cpu.eflags = cpu.eflags | int(Eflags.ZF)
        run(cpu, name)
        assert cpu.eflags & 1 == carry and cpu.eflags & Eflags.ZF
    run(cpu, "STD")
    assert int(cpu.s.eflags) & Eflags.DF and cpu.eflags & Eflags.ZF
    run(cpu, "CLD")
    assert not int(cpu.s.eflags) & Eflags.DF


def test_an_immediate_keeps_what_lies_beside_a_narrow_register() -> None:
    cpu = fresh()
    run(cpu, "MOV", Register(cpu, Gpr.RAX, 8, high=True), Value(cpu, 0, 8))
    assert int(cpu.s.gpr[Gpr.RAX]) == 0x1122_3344_5566_0088
