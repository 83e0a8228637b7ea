"""Arithmetic and logic against formulas over Python's unbounded integers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.isa.plain import Memory, PlainCpu, Register, Value, run
from xuni.isa.bits import signed
from xuni.isa.x86.exceptions import GuestFault, Vector
from xuni.isa.x86.state import Eflags, Gpr, Seg

EDGES = {w: sorted({0, 1, 2, 15, 16, (1 << w - 1) - 1, 1 << w - 1, (1 << w) - 1, 0x1234_5678_9ABC_DEF0 & (1 << w) - 1})
         for w in (8, 16, 32, 64)}  # fmt: skip
CF, PF, AF, ZF, SF, OF = Eflags.CF, Eflags.PF, Eflags.AF, Eflags.ZF, Eflags.SF, Eflags.OF
ALL = CF | PF | AF | ZF | SF | OF


def flags_of(r: int, width: int, cf: bool, of: bool, af: bool) -> int:
    low = bin(r & 0xFF).count("1")
    return int(
        CF * cf | OF * of | AF * af | PF * (low % 2 == 0) | ZF * (r == 0) | SF * (r >> width - 1)
    )  # fmt: skip


def add_model(a: int, b: int, c: int, w: int) -> tuple[int, int]:
    r = (a + b + c) % (1 << w)
    exact = signed(a, w) + signed(b, w) + c
    return r, flags_of(r, w, a + b + c >> w > 0, signed(r, w) != exact, (a & 15) + (b & 15) + c > 15)


def sub_model(a: int, b: int, c: int, w: int) -> tuple[int, int]:
    r = (a - b - c) % (1 << w)
    exact = signed(a, w) - signed(b, w) - c
    return r, flags_of(r, w, a < b + c, signed(r, w) != exact, (a & 15) < (b & 15) + c)


def logic_model(operation: Callable[[int, int], int]) -> Callable[[int, int, int, int], tuple[int, int]]:
    def model(a: int, b: int, c: int, w: int) -> tuple[int, int]:
        r = operation(a, b)
        return r, flags_of(r, w, False, False, False)

    return model


BINARY = {
    "ADD": lambda a, b, c, w: add_model(a, b, 0, w),
    "ADC": add_model,
    "SUB": lambda a, b, c, w: sub_model(a, b, 0, w),
    "SBB": sub_model,
    "AND": logic_model(lambda a, b: a & b),
    "OR": logic_model(lambda a, b: a | b),
    "XOR": logic_model(lambda a, b: a ^ b),
}

@pytest.mark.parametrize("width", [8, 16, 32, 64])
@pytest.mark.parametrize("name", BINARY)
def test_result_and_all_flags(name: str, width: int) -> None:
    cpu = PlainCpu()
    values = range(0, 256, 5) if width == 8 else EDGES[width]
    for a in values:
        for b in values:
            for carry in (0, 1):
                cpu.eflags = carry | int(OF | AF)
                cpu.s.gpr[3] = a
                run(cpu, name, Register(cpu, 3, width), Value(cpu, b, width))
                r, flags = BINARY[name](a, b, carry, width)
                assert int(cpu.reg(3, width)) == r
                assert (cpu.eflags ^ flags) & ALL & ~cpu.undefined == 0, (name, width, a, b, carry)


@pytest.mark.parametrize("width", [8, 16, 32, 64])
def test_compare_test_negate_and_step_by_one(width: int) -> None:
    cpu = PlainCpu()
    for a in EDGES[width] + [0x7E, 0x80]:
        for carry in (0, 1):
            def after(name: str, *operands: Value, a: int = a, carry: int = carry) -> tuple[int, int]:
                cpu.eflags = carry
                cpu.s.gpr[5] = a
                run(cpu, name, Register(cpu, 5, width), *operands)
                return int(cpu.reg(5, width)), cpu.eflags & ALL

            assert after("CMP", Value(cpu, 3, width)) == (a, sub_model(a, 3, 0, width)[1])
            assert after("TEST", Value(cpu, 3, width)) == (a, flags_of(a & 3, width, False, False, False))
            assert after("NEG") == sub_model(0, a, 0, width)
            assert after("NOT") == (a ^ (1 << width) - 1, carry)
            for name, model in (("INC", add_model), ("DEC", sub_model)):
                r, flags = model(a, 1, 0, width)
                assert after(name) == (r, flags & ~CF | carry)


def test_a_32_bit_result_clears_the_upper_half_and_narrow_ones_keep_it() -> None:
    for width, expected in ((64, 1 << 64), (32, 0), (16, 0xFFFF_FFFF_FFFF_0000), (8, 0xFFFF_FFFF_FFFF_FF00)):
        cpu = PlainCpu()
        cpu.s.gpr[0] = (1 << 64) - 1
        run(cpu, "ADD", Register(cpu, 0, width), Value(cpu, 1, width))
        assert int(cpu.s.gpr[0]) == expected % (1 << 64)


@pytest.mark.parametrize("width", [8, 16, 32, 64])
def test_multiplication(width: int) -> None:
    cpu = PlainCpu()
    for a in EDGES[width]:
        for b in EDGES[width]:
            for name, exact in (("MUL", a * b), ("IMUL", signed(a, width) * signed(b, width))):
                cpu.s.gpr[Gpr.RAX], cpu.s.gpr[Gpr.RBX] = a, b
                run(cpu, name, Register(cpu, Gpr.RBX, width), encoding="F6")
                high = int(cpu.reg(Gpr.RAX, 16)) >> 8 if width == 8 else int(cpu.reg(Gpr.RDX, width))
                assert high << width | int(cpu.reg(Gpr.RAX, width)) == exact % (1 << 2 * width)
                fits = exact < 1 << width if name == "MUL" else -(1 << width - 1) <= exact < 1 << width - 1
                assert bool(cpu.eflags & CF) == bool(cpu.eflags & OF) == (not fits)


@pytest.mark.parametrize("width", [8, 16, 32, 64])
@pytest.mark.parametrize("name", ["DIV", "IDIV"])
def test_division_gives_the_quotient_or_faults(name: str, width: int) -> None:
    cpu = PlainCpu()
    size, sign = 1 << width, name == "IDIV"
    for high in [*EDGES[width], 3]:
        for low in EDGES[width]:
            for divisor in [*EDGES[width], 7, size - 7]:
                cpu.s.gpr[Gpr.RAX], cpu.s.gpr[Gpr.RDX] = (high << 8 | low, 0xD) if width == 8 else (low, high)
                cpu.s.gpr[Gpr.RBX] = divisor
                before = cpu.gprs()
                dividend = high << width | low
                n, d = (signed(dividend, 2 * width), signed(divisor, width)) if sign else (dividend, divisor)
                q = 0 if d == 0 else abs(n) // abs(d) * (1 if (n < 0) == (d < 0) else -1)
                limits = range(-size // 2, size // 2) if sign else range(size)
                if d == 0 or not limits.start <= q < limits.stop:
                    with pytest.raises(GuestFault):
                        run(cpu, name, Register(cpu, Gpr.RBX, width))
                    assert int(cpu.s.fault_vector) == Vector.DE and cpu.gprs() == before
                    continue
                run(cpu, name, Register(cpu, Gpr.RBX, width))
                remainder = int(cpu.reg(Gpr.RAX, 16)) >> 8 if width == 8 else int(cpu.reg(Gpr.RDX, width))
                assert (int(cpu.reg(Gpr.RAX, width)), remainder) == (q % size, (n - q * d) % size), (n, d)


def test_sign_extension_of_the_accumulator() -> None:
    cpu = PlainCpu()
    for cpu.osize, expected in ((16, 0x1234_5678_9ABC_FF80), (32, 0xFFFF_8080), (64, 0xFFFF_FFFF_9ABC_8080)):
        cpu.s.gpr[0] = {16: 0x1234_5678_9ABC_0080, 32: 0x1234_5678_9ABC_8080, 64: 0x1234_5678_9ABC_8080}[cpu.osize]
        run(cpu, "CBW", Register(cpu, 0, cpu.osize))
        assert int(cpu.s.gpr[0]) == expected
        run(cpu, "CWD", Register(cpu, 0, cpu.osize))
        assert int(cpu.reg(Gpr.RDX, cpu.osize)) == (1 << cpu.osize) - 1


def test_compare_and_exchange() -> None:
    cpu = PlainCpu()
    cpu.map(0x1000, (5).to_bytes(8, "little"))
    cell, accumulator = Memory(cpu, 32, Seg.DS, 0x1000), Register(cpu, Gpr.RAX, 32)
    cpu.s.gpr[Gpr.RCX], cpu.s.gpr[Gpr.RAX] = 9, 0xFFFF_FFFF_0000_0004
    run(cpu, "CMPXCHG", cell, Register(cpu, Gpr.RCX, 32), accumulator)
    assert int(cpu.s.gpr[Gpr.RAX]) == 5 and not cpu.eflags & ZF and cpu.eflags & CF  # 4 - 5
    cpu.s.gpr[Gpr.RAX] = 0xFFFF_FFFF_0000_0005
    run(cpu, "CMPXCHG", cell, Register(cpu, Gpr.RCX, 32), accumulator)
    assert cpu.eflags & ZF and cpu.peek(0x1000, 4) == b"\x09\0\0\0"
    assert int(cpu.s.gpr[Gpr.RAX]) == 0xFFFF_FFFF_0000_0005  # untouched when equal


def test_16_byte_exchange_must_be_aligned() -> None:
    cpu = PlainCpu()
    cpu.map(0x1000)
    for offset in (0x1008, 0x1001):
        with pytest.raises(GuestFault):
            run(cpu, "CMPXCHG16B", Memory(cpu, 64, Seg.DS, offset, lanes=2))
        assert (int(cpu.s.fault_vector), int(cpu.s.fault_error)) == (Vector.GP, 0)
    cpu.s.gpr[Gpr.RBX], cpu.s.gpr[Gpr.RCX] = 1, 2
    run(cpu, "CMPXCHG16B", Memory(cpu, 64, Seg.DS, 0x1010, lanes=2))
    assert cpu.eflags & ZF and cpu.peek(0x1010, 16) == bytes([1, *[0] * 7, 2, *[0] * 7])
    cpu.s.seg_base[Seg.FS] = 8  # what counts is the linear address
    run(cpu, "CMPXCHG16B", Memory(cpu, 64, Seg.FS, 0x1018, lanes=2))


def test_a_faulting_destination_leaves_no_trace() -> None:
    cpu = PlainCpu()
    missing = Memory(cpu, 32, Seg.DS, 0x5000)
    cpu.eflags = 0
    for name in ("ADD", "SUB", "XOR", "XADD", "XCHG"):
        cpu.s.gpr[Gpr.RBX] = 0x77
        before = cpu.gprs(), cpu.eflags
        with pytest.raises(GuestFault):
            run(cpu, name, missing, Register(cpu, Gpr.RBX, 32))
        assert (cpu.gprs(), cpu.eflags) == before and int(cpu.s.fault_address) == 0x5000


def test_xadd_of_one_register_keeps_the_sum() -> None:
    cpu = PlainCpu()
    cpu.s.gpr[1] = 21
    run(cpu, "XADD", Register(cpu, 1, 32), Register(cpu, 1, 32))
    assert int(cpu.s.gpr[1]) == 42
