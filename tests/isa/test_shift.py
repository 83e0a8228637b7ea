"""Shifts and rotates against a model that moves one bit at a time, as SDM vol. 2 writes them."""

from __future__ import annotations

import pytest

from tests.isa.plain import PlainCpu, Register, Value, run
from xuni.isa.x86.state import Eflags

VALUES = {w: [0, 1, 1 << w - 1, (1 << w) - 1, 0x9C3A_55E1_0F78_B6D2 % (1 << w), 0x5A5A_A5A5_1234_8001 % (1 << w)]
          for w in (8, 16, 32, 64)}  # fmt: skip
CF, OF, AF = int(Eflags.CF), int(Eflags.OF), int(Eflags.AF)


def step(name: str, a: int, cf: int, w: int) -> tuple[int, int]:
    """One bit."""
    top, low, whole = a >> w - 1, a & 1, (1 << w) - 1
    match name:
        case "SHL": return a << 1 & whole, top
        case "SHR": return a >> 1, low
        case "SAR": return a >> 1 | top << w - 1, low
        case "ROL": return a << 1 & whole | top, top
        case "ROR": return a >> 1 | low << w - 1, low
        case "RCL": return a << 1 & whole | cf, top
    return a >> 1 | cf << w - 1, low


def overflow(name: str, before: int, after: int, cf: int, w: int) -> int:
    """OF of a shift by one."""
    match name:
        case "SHL" | "ROL" | "RCL": return after >> w - 1 ^ cf
        case "SHR": return before >> w - 1
        case "SAR": return 0
    return (after >> w - 1 ^ after >> w - 2) & 1


@pytest.mark.parametrize("width", [8, 16, 32, 64])
@pytest.mark.parametrize("name", ["SHL", "SHR", "SAR", "ROL", "ROR", "RCL", "RCR"])
def test_every_count(name: str, width: int) -> None:
    cpu = PlainCpu()
    for a in VALUES[width]:
        for count in (*range(70), 255):
            for start in (0, CF | OF | AF | int(Eflags.ZF)):
                cpu.eflags = start
                cpu.s.gpr[2] = a
                run(cpu, name, Register(cpu, 2, width), Value(cpu, count, 8))
                r, cf, times = a, start & CF, count & (63 if width == 64 else 31)
                for _ in range(times):
                    r, cf = step(name, r, cf, width)
                assert int(cpu.reg(2, width)) == r, (a, count)
                got = cpu.eflags & 0x8D5
                if times == 0:
                    assert got == start and cpu.undefined == 0
                    continue
                expected = start & ~CF | cf
                if name.startswith("S"):
                    parity = bin(r & 0xFF).count("1") % 2 == 0
                    expected = cf | parity << 2 | (r == 0) << 6 | (r >> width - 1) << 7
                if times == 1:
                    expected = expected & ~OF | overflow(name, a, r, cf, width) * OF
                    assert not cpu.undefined & OF
                assert (got ^ expected) & ~cpu.undefined & 0x8D5 == 0, (a, count)


@pytest.mark.parametrize("width", [16, 32, 64])
@pytest.mark.parametrize("name", ["SHLD", "SHRD"])
def test_double_shifts(name: str, width: int) -> None:
    cpu = PlainCpu()
    whole = (1 << width) - 1
    for a in VALUES[width]:
        for b in VALUES[width]:
            for count in range(width + 1 if width == 16 else 70):
                times = count & (63 if width == 64 else 31)
                cpu.eflags = 0
                cpu.s.gpr[1], cpu.s.gpr[2] = a, b
                run(cpu, name, Register(cpu, 1, width), Register(cpu, 2, width), Value(cpu, count, 8))
                if name == "SHLD":
                    wide = (a << width | b) << times
                    r, cf = wide >> width & whole, wide >> 2 * width & 1
                else:
                    wide = (b << width | a) << 1 >> times  # bit 0 is the last bit shifted out
                    r, cf = wide >> 1 & whole, wide & 1
                assert int(cpu.reg(1, width)) == r
                if times:
                    assert cpu.eflags & CF == cf
                else:
                    assert cpu.eflags & 0x8D5 == 0


@pytest.mark.parametrize("width", [32, 64])
def test_flagless_shifts_take_the_count_modulo_the_width(width: int) -> None:
    cpu = PlainCpu()
    for a in VALUES[width]:
        for count in (0, 1, width - 1, width, width + 3, 0xFFFF_FFFF):
            n = count % width
            for name, r in (("SHLX", a << n), ("SHRX", a >> n), ("SARX", (a - (a >> width - 1 << width)) >> n)):
                cpu.eflags = 0x8D5
                cpu.s.gpr[1], cpu.s.gpr[2] = a, count
                run(cpu, name, Register(cpu, 0, width), Register(cpu, 1, width), Register(cpu, 2, width))
                assert int(cpu.s.gpr[0]) == r % (1 << width) and cpu.eflags & 0x8D5 == 0x8D5
            run(cpu, "RORX", Register(cpu, 0, width), Register(cpu, 1, width), Value(cpu, count & 255, 8))
            assert int(cpu.s.gpr[0]) == (a >> n | a << width - n) % (1 << width)
