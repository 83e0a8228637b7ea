"""Decimal adjustment: sums and differences of decimal numbers come out right."""

from __future__ import annotations

import pytest

from tests.isa.plain import PlainCpu, Register, Value, run
from xuni.isa.x86.exceptions import GuestFault, Vector
from xuni.isa.x86.state import Eflags, Gpr


def packed(n: int) -> int:
    return n // 10 << 4 | n % 10


def after(cpu: PlainCpu, name: str, a: int, b: int, adjust: str) -> tuple[int, bool]:
    cpu.s.gpr[Gpr.RAX] = a
    run(cpu, name, Register(cpu, Gpr.RAX, 8), Value(cpu, b, 8))
    run(cpu, adjust)
    return int(cpu.reg(Gpr.RAX, 16)), bool(cpu.eflags & Eflags.CF)


def test_packed_decimal() -> None:
    cpu = PlainCpu()
    for a in range(100):
        for b in range(0, 100, 3):
            assert after(cpu, "ADD", packed(a), packed(b), "DAA") == (packed((a + b) % 100), a + b > 99)
            assert after(cpu, "SUB", packed(a), packed(b), "DAS") == (packed((a - b) % 100), a < b)


def test_unpacked_decimal() -> None:
    cpu = PlainCpu()
    for a in range(10):
        for b in range(10):
            total, difference = a + b, a - b
            assert after(cpu, "ADD", 0x0100 | a, b, "AAA") == ((1 + total // 10) << 8 | total % 10, total > 9)
            low, borrow = difference % 10, difference < 0
            assert after(cpu, "SUB", 0x0100 | a, b, "AAS") == ((1 - borrow) << 8 | low, borrow)


def test_multiplication_and_division_adjustments_are_inverse() -> None:
    cpu = PlainCpu()
    for base in (10, 16, 7):
        for n in range(base * base):
            cpu.s.gpr[Gpr.RAX] = n
            run(cpu, "AAM", Value(cpu, base, 8))
            assert int(cpu.reg(Gpr.RAX, 16)) == n // base << 8 | n % base
            assert bool(cpu.eflags & Eflags.ZF) == (n % base == 0)
            run(cpu, "AAD", Value(cpu, base, 8))
            assert int(cpu.reg(Gpr.RAX, 16)) == n
    with pytest.raises(GuestFault):
        run(cpu, "AAM", Value(cpu, 0, 8))
    assert int(cpu.s.fault_vector) == Vector.DE


def test_salc_spreads_the_carry() -> None:
    cpu = PlainCpu()
    for carry, expected in ((0, 0x1200), (1, 0x12FF)):
        cpu.eflags, cpu.s.gpr[Gpr.RAX] = carry, 0x1234
        run(cpu, "SALC")
        assert int(cpu.s.gpr[Gpr.RAX]) == expected
