"""Lazy flags: every formula and every short cut gives the flags that the eager definition gives."""

from __future__ import annotations

from random import Random

import pytest

from xuni.isa.bits import Bits, const, u64
from xuni.isa.x86.flags import CF, FLAG_BITS, ZF, Condition, Kind, _arithmetic_flags, _nonzero, _quick_condition, unpack

from .plain import PlainCpu

RANDOM = Random(11)
WIDTH = {kind: 8 << (kind - Kind.SUB8) % 4 for kind in Kind if kind >= Kind.SUB8}


def operands(kind: Kind) -> list[tuple[int, int]]:
    if kind == Kind.RAW:
        return [(RANDOM.getrandbits(64), RANDOM.getrandbits(12) & 0x8D5) for _ in range(40)]
    if kind == Kind.RESULT:
        rest = (0, 1, 1 << 4, 1 << 11, 0x811)
        return [(a, b) for a in (0, 1, (1 << 64) - 1, 1 << 63, 0x7F, 0x8000_0000) for b in rest]
    width = WIDTH[kind]
    edges = [0, 1, 0x7F, 1 << width - 1, (1 << width) - 1, RANDOM.getrandbits(width)]
    return [(a, b) for a in edges for b in edges]


@pytest.mark.parametrize("kind", Kind)
def test_short_cuts(kind: Kind) -> None:
    for a, b in operands(kind):
        value = unpack(kind, a, b)
        later = u64(kind), u64(a), u64(b)
        assert int(_arithmetic_flags(*later)) == value
        assert (int(_nonzero(*later)) == 0) == bool(value >> ZF & 1)
        for which, expected in ((1, value >> CF & 1), (2, value >> ZF & 1), (3, (value >> CF | value >> ZF) & 1)):
            assert int(_quick_condition(which, *later)) == expected


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("names", [("cf",), ("cf", "of"), ("zf",), ("sf", "pf", "af")])
def test_change_keeps_the_other_flags(kind: Kind, names: tuple[str, ...]) -> None:
    cpu = PlainCpu()
    mask = sum(1 << FLAG_BITS[name] for name in names)
    for a, b in operands(kind)[::5]:
        for bit in (0, 1):
            cpu.s.flag_kind, cpu.s.flag_a, cpu.s.flag_b = int(kind), a, b
            new: dict[str, Bits | int] = {name: const(bit, 1) for name in names}
            cpu.flags.change(**new)
            assert int(cpu.flags.value) == unpack(kind, a, b) & ~mask | mask * bit


@pytest.mark.parametrize("kind", Kind)
def test_set_carry_keeps_zf(kind: Kind) -> None:
    cpu = PlainCpu()
    for a, b in operands(kind):
        for bit in (0, 1):
            cpu.s.flag_kind, cpu.s.flag_a, cpu.s.flag_b = int(kind), a, b
            cpu.flags.set_carry(const(bit, 1))
            assert int(cpu.flags.value) & (1 << CF | 1 << ZF) == unpack(kind, a, b) & 1 << ZF | bit


def test_conditions_of_a_comparison_are_those_of_its_flags() -> None:
    cpu = PlainCpu()
    for width in (8, 16, 32, 64):
        for a, b in operands(Kind(Kind.SUB8 + (8, 16, 32, 64).index(width))):
            cpu.flags.set_sub(const(a, width), const(b, width))
            lazy = [int(cpu.flags.condition(cc)) for cc in Condition]
            cpu.flags.set_all(cpu.flags.value)
            assert lazy == [int(cpu.flags.condition(cc)) for cc in Condition]
