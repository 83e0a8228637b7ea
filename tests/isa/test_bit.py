"""Bit tests, scans, BMI, ADX and CRC32."""

from __future__ import annotations

import zlib
from random import Random

import pytest

from tests.isa.plain import Memory, PlainCpu, Register, Value, run
from xuni.isa.bits import u32, u64
from xuni.isa.x86.bit import deposit, extract
from xuni.isa.x86.misc import crc32c
from xuni.isa.x86.state import Eflags, Gpr, Seg

CF, ZF, OF = Eflags.CF, Eflags.ZF, Eflags.OF


@pytest.mark.parametrize("width", [16, 32, 64])
@pytest.mark.parametrize("bit", [0, 5, 63, 64, 777, -1, -64, -777])
def test_a_register_offset_reaches_any_bit_of_memory(width: int, bit: int) -> None:
    cpu = PlainCpu()
    cpu.asize = 64
    cpu.map(0x1000)
    base = 0x1000 + 0x200
    byte, mask = base + (bit >> 3), 1 << (bit & 7)
    cpu.s.gpr[Gpr.RCX] = bit % (1 << 64)
    operands = Memory(cpu, width, Seg.DS, base), Register(cpu, Gpr.RCX, width)
    for name, before, after in (("BTS", 0, mask), ("BT", mask, mask), ("BTR", 255, 255 ^ mask), ("BTC", mask, 0)):
        cpu.poke(byte, bytes([before]))
        cpu.eflags = int(ZF)
        run(cpu, name, *operands, encoding="0F A3" if name == "BT" else "0F B3" if name == "BTR" else
            "0F AB" if name == "BTS" else "0F BB")  # fmt: skip
        assert cpu.peek(byte, 1)[0] == after
        assert bool(cpu.eflags & CF) == bool(before & mask) and cpu.eflags & ZF


def test_an_immediate_offset_and_a_register_operand_stay_inside() -> None:
    cpu = PlainCpu()
    cpu.s.gpr[1] = 0
    run(cpu, "BTS", Register(cpu, 1, 32), Value(cpu, 35, 8), encoding="0F BA")
    assert int(cpu.s.gpr[1]) == 8
    cpu.s.gpr[2] = 33
    run(cpu, "BTC", Register(cpu, 1, 32), Register(cpu, 2, 32), encoding="0F BB")
    assert int(cpu.s.gpr[1]) == 10 and not cpu.eflags & CF


@pytest.mark.parametrize("width", [16, 32, 64])
def test_scans(width: int) -> None:
    cpu = PlainCpu()
    for value in (1, 0x80, 1 << width - 1, 0x1400, (1 << width) - 1, 0):
        low = (value & -value).bit_length() - 1
        for name, r in (("BSF", low), ("BSR", value.bit_length() - 1)):
            cpu.s.gpr[0], cpu.s.gpr[1] = 0xDEAD_BEEF_DEAD_BEEF, value
            run(cpu, name, Register(cpu, 0, width), Register(cpu, 1, width))
            if value:
                assert int(cpu.reg(0, width)) == r
            else:
                assert int(cpu.s.gpr[0]) == 0xDEAD_BEEF_DEAD_BEEF  # unchanged
            assert bool(cpu.eflags & ZF) == (value == 0)
        counts = ("TZCNT", low if value else width), ("LZCNT", width - value.bit_length())
        for name, r in (*counts, ("POPCNT", value.bit_count())):
            run(cpu, name, Register(cpu, 0, width), Register(cpu, 1, width))
            assert int(cpu.reg(0, width)) == r
            assert bool(cpu.eflags & ZF) == (r == 0)
            assert bool(cpu.eflags & CF) == (value == 0 and name != "POPCNT")


def test_counts_are_scans_on_a_processor_without_them() -> None:
    cpu = PlainCpu()
    cpu.lacking = {"bmi1", "lzcnt"}
    cpu.s.gpr[1] = 0x100
    for name, r in (("TZCNT", 8), ("LZCNT", 8)):
        run(cpu, name, Register(cpu, 0, 32), Register(cpu, 1, 32))
        assert int(cpu.s.gpr[0]) == r
    cpu.s.gpr[1] = 0
    run(cpu, "TZCNT", Register(cpu, 0, 32), Register(cpu, 1, 32))
    assert int(cpu.s.gpr[0]) == 8 and cpu.eflags & ZF


def test_deposit_and_extract() -> None:
    cpu, random = PlainCpu(), Random(7)
    for where in (0, 1, 1 << 63, (1 << 64) - 1, *[random.getrandbits(64) & random.getrandbits(64) for _ in range(20)]):
        source = random.getrandbits(64)
        places = [n for n in range(64) if where >> n & 1]
        assert int(deposit(cpu, u64(source), u64(where))) == sum((source >> i & 1) << n for i, n in enumerate(places))
        assert int(extract(cpu, u64(source), u64(where))) == sum((source >> n & 1) << i for i, n in enumerate(places))


@pytest.mark.parametrize("width", [32, 64])
def test_bit_fields(width: int) -> None:
    cpu, whole = PlainCpu(), (1 << width) - 1
    value = 0xFEDC_BA98_7654_3210 & whole
    a, b, c = (Register(cpu, n, width) for n in (0, 1, 2))
    for start, length in ((0, 0), (4, 8), (0, width), (8, 255), (width - 1, 9), (200, 5)):
        cpu.s.gpr[1], cpu.s.gpr[2] = value, start | length << 8
        run(cpu, "BEXTR", a, b, c)
        assert int(cpu.s.gpr[0]) == value >> start & (1 << min(length, 64)) - 1
        cpu.s.gpr[2] = length | 0xFF00
        run(cpu, "BZHI", a, b, c)
        assert int(cpu.s.gpr[0]) == value & (1 << length) - 1
        assert bool(cpu.eflags & CF) == (length > width - 1)
    for x in (0, 1, 0x5000, whole, 1 << width - 1):
        cpu.s.gpr[1] = x
        for name, r, cf in (("BLSI", x & -x, x != 0), ("BLSR", x & (x - 1), x == 0), ("BLSMSK", x ^ (x - 1), x == 0)):
            run(cpu, name, a, b)
            assert int(cpu.s.gpr[0]) == r & whole and bool(cpu.eflags & CF) == cf
    cpu.s.gpr[1], cpu.s.gpr[2] = 0b1100, 0b1010
    run(cpu, "ANDN", a, b, c)
    assert int(cpu.s.gpr[0]) == 0b0010


def test_mulx_and_the_two_carry_chains() -> None:
    cpu = PlainCpu()
    cpu.eflags = 0x8D5
    cpu.s.gpr[Gpr.RDX], cpu.s.gpr[1] = (1 << 64) - 1, 3
    run(cpu, "MULX", Register(cpu, 3, 64), Register(cpu, 5, 64), Register(cpu, 1, 64))
    assert (int(cpu.s.gpr[3]), int(cpu.s.gpr[5])) == (2, (1 << 64) - 3) and cpu.eflags & 0x8D5 == 0x8D5
    run(cpu, "MULX", Register(cpu, 3, 64), Register(cpu, 3, 64), Register(cpu, 1, 64))
    assert int(cpu.s.gpr[3]) == 2  # the high half wins
    for name, flag, other in (("ADCX", CF, OF), ("ADOX", OF, CF)):
        cpu.s.gpr[0], cpu.s.gpr[1] = (1 << 64) - 1, 0
        cpu.eflags = int(flag)
        run(cpu, name, Register(cpu, 0, 64), Register(cpu, 1, 64))
        assert int(cpu.s.gpr[0]) == 0 and cpu.eflags & flag and not cpu.eflags & other


def test_crc32_has_the_known_check_value() -> None:
    cpu, crc = PlainCpu(), u32(0xFFFF_FFFF)
    for byte in b"123456789":
        crc = crc32c(cpu, crc, u64(byte), 8)
    assert int(crc) ^ 0xFFFF_FFFF == 0xE306_9283 != zlib.crc32(b"123456789")
    whole = crc32c(cpu, u32(0xFFFF_FFFF), u64(int.from_bytes(b"12345678", "little")), 64)
    assert int(crc32c(cpu, whole, u64(ord("9")), 8)) == int(crc)
